"""GMI's generator and critic (Zhang et al., CVPR 2020; card gmi.md, section 4A).

At width 64 and 64 px RGB: 5,142,083 and 4,316,545 parameters; at 32 px grey: 1,443,777 and 1,030,913.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from midefense.doubling import Doubling, Halving


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Double the resolution: transposed 5x5 convolution without bias, batch norm, ReLU."""
    convolution = Doubling(inputs, outputs, 5, 2, padding=2, output_padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _down(inputs: int, outputs: int) -> nn.Sequential:
    """Halve the resolution: 5x5 convolution, instance norm, leaky ReLU."""
    convolution = Halving(inputs, outputs, 5, 2, padding=2)
    return nn.Sequential(convolution, nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.2))


class Generator(nn.Module):
    """Latents [B, latent_size] to images [B, channels, size, size] in [0, 1] (sigmoid). `start`: the side in pixels of
    the maps that the linear layer makes, which are doubled until they have the images' size."""

    def __init__(self, *, latent_size: int, channels: int, size: int, width: int, start: int = 4):
        super().__init__()
        stages = _doublings(start, size)
        deepest = width * 2 ** (stages - 1)
        units = deepest * start * start
        self.project = nn.Sequential(nn.Linear(latent_size, units, bias=False), nn.BatchNorm1d(units), nn.ReLU())
        widths = [deepest // 2**stage for stage in range(stages)]
        self.grow = nn.Sequential(*(up(a, b) for a, b in zip(widths, widths[1:], strict=False)))
        self.paint = nn.Sequential(Doubling(width, channels, 5, 2, padding=2, output_padding=1), nn.Sigmoid())
        self.deepest, self.start = deepest, start

    @property
    def published(self) -> dict[str, str]:
        """Names of the originals' `Generator` (64 px) and `GeneratorMNIST` (32 px)."""
        growing = {f"l2_5.{index}": f"grow.{index}" for index in range(len(self.grow))}
        return {"l1": "project", **growing, f"l2_5.{len(self.grow)}": "paint.0"}

    def forward(self, latents: Tensor) -> Tensor:
        return self.paint(self.grow(self.project(latents).view(-1, self.deepest, self.start, self.start)))


class Critic(nn.Module):
    """Images [B, channels, size, size] to one unbounded score each [B]. Instance norm keeps no statistics, so an
    image's score never depends on its batch mates. Images of 128 px are judged in 25 places; the score is their
    mean."""

    def __init__(self, *, channels: int, size: int, width: int):
        super().__init__()
        stages = _doublings(4, min(size, 64))
        widths = [width * 2**stage for stage in range(stages)]
        self.look = nn.Sequential(Halving(channels, width, 5, 2, padding=2), nn.LeakyReLU(0.2))
        self.shrink = nn.Sequential(*(_down(a, b) for a, b in zip(widths, widths[1:], strict=False)))
        self.score = nn.Conv2d(widths[-1], 1, 4)

    @property
    def published(self) -> dict[str, str]:
        """Names of the originals' `DGWGAN`, which counts its layers in one list, and of `DGWGAN32`, which does not."""
        depth = len(self.shrink)
        if depth == 2:
            shrinking = {f"layer{index + 2}": f"shrink.{index}" for index in range(depth)}
            return {"layer1": "look", **shrinking, f"layer{depth + 2}": "score"}
        shrinking = {f"ls.{index + 2}": f"shrink.{index}" for index in range(depth)}
        return {"ls.0": "look.0", **shrinking, f"ls.{depth + 2}": "score"}

    def forward(self, images: Tensor) -> Tensor:
        return self.score(self.shrink(self.look(images))).flatten(1).mean(1)


def _doublings(start: int, size: int) -> int:
    """How many times `start` px are doubled to reach `size`: 4 for 4 and 64 px."""
    return round(math.log2(size / start))
