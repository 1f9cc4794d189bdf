"""LOKT's discriminator (Nguyen et al., NeurIPS 2023; card lokt.md, section 4): the residual blocks of PLG-MI's critic
under two plain heads, one for what is real and one for the class. Its generator is PLG-MI's.

At width 64 and 64 px RGB, with 5 classes: 10,146,566 parameters; the generator has 12,242,179.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from midefense.priors.nets.plg import DownBlock, Generator
from midefense.types import Trace


class ClassGenerator(Generator):
    """PLG-MI's generator, whose layers the originals call by other names."""

    @property
    def published(self) -> dict[str, str]:
        """Names of the toolbox's generator."""
        last = len(self.grow) + 2
        theirs = {"l1": "block1.0", f"b{last}": f"block{last - 1}_res.0", f"conv{last}": f"block{last}.0"}
        return {theirs.get(name, name): ours for name, ours in super().published.items()}


class Discriminator(nn.Module):
    """Images [B, channels, size, size] to how real each is [B], as a logit, and to logits of its class [B, classes].
    Rows do not depend on each other."""

    def __init__(self, *, classes: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        halvings = {32: 4, 64: 5}[size]  # to 2 px
        widths = [channels, *(width * 2**halving for halving in range(halvings))]
        pairs = zip(widths, widths[1:], strict=False)
        self.shrink = nn.ModuleList(DownBlock(a, b, entering=index == 0) for index, (a, b) in enumerate(pairs))
        self.realness, self.labels = nn.Linear(widths[-1], 1), nn.Linear(widths[-1], classes)

    @property
    def published(self) -> dict[str, str]:
        """Names of the toolbox's discriminator."""
        inside = {"c1": "first", "c2": "second", "c_sc": "shortcut"}
        table = {f"l{len(self.shrink) + 1}": "realness", "l_y": "labels"}
        for index in range(len(self.shrink)):
            table |= {f"block{index + 1}.{theirs}": f"shrink.{index}.{ours}" for theirs, ours in inside.items()}
        return table

    def features(self, images: Tensor) -> Tensor:
        """What both heads see [B, F]: sums over the places."""
        for block in self.shrink:
            images = block(images)
        return F.relu(images).sum((2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.realness(features)[:, 0], self.labels(features)


class ClassHead(nn.Module):
    """A discriminator as a classifier: its class head alone."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Trace:
        features = self.discriminator.features(images)
        return Trace(self.discriminator.labels(features), features)
