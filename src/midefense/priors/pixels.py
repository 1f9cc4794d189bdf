"""The pixels themselves: no knowledge at all. A latent is an image (MI-Face; DeepInversion)."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.priors.base import Prior
from midefense.types import refuse_unknown


class Pixels(Prior):
    """Latents are images [B, C, H, W].

    It offers `pixels`: an attack that makes images without a generator stands on it.

    Args:
        start: where a search begins: `zeros` (black), `grey` (.5), or `noise` (uniform in [0, 1]).
        clip: clamp images to [0, 1] as they are decoded. Clamped pixels get no gradient, hence off by default.
    """

    offers = frozenset({"sample", "pixels"})
    starts = {"zeros": 0.0, "grey": 0.5, "noise": None}

    def __init__(self, *, channels: int, size: int, start: str = "grey", clip: bool = False):
        super().__init__(channels=channels, size=size)
        if start not in self.starts:
            raise refuse_unknown("prior.start", start, self.starts)
        self.start, self.clip = start, clip

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Start images [count, C, H, W]."""
        shape = (count, self.channels, self.size, self.size)
        level = self.starts[self.start]
        return torch.rand(shape, generator=rng) if level is None else torch.full(shape, level)

    def decode(self, latents: Tensor) -> Tensor:
        """The latents, clamped only if the prior was told to."""
        return latents.clamp(0, 1) if self.clip else latents
