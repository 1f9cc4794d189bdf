"""PLG-MI's class-conditional generator (Yuan et al., AAAI 2023; card plg_mi.md, section 4): residual blocks whose batch
norms take scale and shift from the class.

At width 64 and 64 px RGB: 17,973,379 parameters with 1000 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.resampling import resized


class ConditionalBatchNorm(nn.BatchNorm2d):
    """Batch norm, then a gain and a bias per class and channel, which start at 1 and 0."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, affine=False)
        self.gains = nn.Embedding.from_pretrained(torch.ones(classes, width), freeze=False)
        self.biases = nn.Embedding.from_pretrained(torch.zeros(classes, width), freeze=False)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        gain, bias = self.gains(labels)[..., None, None], self.biases(labels)[..., None, None]
        return gain * super().forward(hidden) + bias


class UpBlock(nn.Module):
    """Double the resolution (bilinear): two 3x3 convolutions behind conditional norms, beside a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.first_norm = ConditionalBatchNorm(inputs, classes)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second_norm = ConditionalBatchNorm(outputs, classes)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        residual = self.first(_double(F.relu(self.first_norm(hidden, labels))))
        residual = self.second(F.relu(self.second_norm(residual, labels)))
        return residual + self.shortcut(_double(hidden))


class Generator(nn.Module):
    """Latents [B, latent_size] and labels int64 [B] to images [B, channels, size, size] in (-1, 1) (tanh).

    The originals train it on images in [0, 1], so that what it gives lies mostly there: it is not rescaled.
    """

    def __init__(self, *, classes: int, latent_size: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        doublings = {32: 3, 64: 4}[size]  # from 4 px
        widths = [width * 2**doubling for doubling in range(doublings, -1, -1)]
        self.project = nn.Linear(latent_size, widths[0] * 16)
        self.grow = nn.ModuleList(UpBlock(a, b, classes) for a, b in zip(widths, widths[1:], strict=False))
        self.norm = nn.BatchNorm2d(width)
        self.paint = nn.Conv2d(width, channels, 1)

    @property
    def published(self) -> dict[str, str]:
        """Names of the original's `ResNetGenerator`."""
        inside = {
            "c1": "first",
            "c2": "second",
            "c_sc": "shortcut",
            "b1": "first_norm",
            "b1.weights": "first_norm.gains",
            "b1.biases": "first_norm.biases",
            "b2": "second_norm",
            "b2.weights": "second_norm.gains",
            "b2.biases": "second_norm.biases",
        }
        table = {"l1": "project"}
        for index in range(len(self.grow)):
            table |= {f"block{index + 2}.{theirs}": f"grow.{index}.{ours}" for theirs, ours in inside.items()}
        last = len(self.grow) + 2
        return {**table, f"b{last}": "norm", f"conv{last}": "paint"}

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        hidden = self.project(latents).view(len(latents), -1, 4, 4)
        for block in self.grow:
            hidden = block(hidden, labels)
        return self.paint(F.relu(self.norm(hidden))).tanh()


def _double(hidden: Tensor) -> Tensor:
    return resized(hidden, 2 * hidden.shape[2], 2 * hidden.shape[3])
