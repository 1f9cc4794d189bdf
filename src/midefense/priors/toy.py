"""The prior of the `toy` dataset, in closed form: the best a generator could learn, without training one."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.closed_form import render
from midefense.priors.base import Prior
from midefense.types import Refused


class ToyFamily(Prior):
    """Latents [B, 2] in [-1, 1] place the bell; `decode` draws it without noise."""

    offers = frozenset({"sample", "realism"})

    def __init__(self, *, channels: int, size: int):
        super().__init__(channels=channels, size=size)
        if channels != 1:
            raise Refused(f"the toy prior makes grey images, got channels={channels}; use it with dataset=toy")
        self.mass = float(render(torch.zeros(1, 2, dtype=torch.float64), size).mean())

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Places [count, 2], uniform in the square."""
        return torch.rand(count, 2, generator=rng) * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Bells [B, 1, size, size]."""
        return render(latents, self.size)

    def realism(self, images: Tensor) -> Tensor:
        """Minus the squared error of an image's mean brightness, which every whole bell shares [B]; at most 0."""
        return -((images.mean((1, 2, 3)) - self.mass) ** 2)
