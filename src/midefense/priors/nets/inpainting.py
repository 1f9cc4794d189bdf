"""GMI's generator with an auxiliary image (Zhang et al., CVPR 2020, `Celeba/mask`; card gmi.md, section 4C), which
SecretGen took over: what is seen of a picture, and a latent for what is not. At width 64 and 64 px RGB: 6,996,259
parameters. Its critics are `nets.gmi.Critic`, one for whole images and one for parts of half the side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midefense.priors.nets.gmi import up

DILATIONS = (2, 4, 8, 16)
COARSEST = 4  # times smaller than the image is what context and latent are joined at


def _seeing(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, ReLU, batch norm: in this order."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=padding, dilation=dilation)
    return nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm2d(outputs))


class InpaintingGenerator(nn.Module):
    """What is seen [B, channels + 1, size, size] and latents [B, latent_size] to images [B, channels, size, size] in
    [0, 1] (sigmoid)."""

    def __init__(self, *, latent_size: int, channels: int, size: int, width: int):
        super().__init__()
        joined = 2 * width
        self.context = nn.Sequential(
            _seeing(channels + 1, max(width // 2, 1), kernel=5),
            _seeing(max(width // 2, 1), width, stride=2),
            _seeing(width, width),
            _seeing(width, joined, stride=2),
            _seeing(joined, joined),
            _seeing(joined, joined),
            *(_seeing(joined, joined, dilation=dilation) for dilation in DILATIONS),
        )
        doublings = (size // COARSEST // 4).bit_length() - 1
        deepest = joined * 2**doublings
        self.project = nn.Sequential(
            nn.Linear(latent_size, deepest * 16, bias=False), nn.BatchNorm1d(deepest * 16), nn.ReLU()
        )
        self.grow = nn.Sequential(*(up(deepest // 2**i, deepest // 2 ** (i + 1)) for i in range(doublings)))
        self.paint = nn.Sequential(
            up(2 * joined, joined),
            up(joined, width),
            nn.Conv2d(width, max(width // 2, 1), 3, padding=1),
            nn.BatchNorm2d(max(width // 2, 1)),
            nn.ReLU(),
            nn.Conv2d(max(width // 2, 1), channels, 3, padding=1),
            nn.Sigmoid(),
        )
        self.deepest = deepest

    def forward(self, seen: Tensor, latents: Tensor) -> Tensor:
        imagined = self.grow(self.project(latents).view(-1, self.deepest, 4, 4))
        return self.paint(torch.cat([self.context(seen), imagined], 1))
