"""The prior of the `toy` dataset, in closed form: the best a generator could learn, without training one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from midefense.closed_form import render
from midefense.priors.base import Prior
from midefense.types import Refused

WORLD = "Toy"  # the class of the dataset; a prior does not import datasets


class ToyFamily(Prior):
    """Latents [B, 2] in [-1, 1] place the bell; `decode` draws it without noise.

    It can be entered: block 0 hands the place on as its features [B, 2], block 1 draws the bell there. A style is a
    place for each block [B, 2, 2], of which only the first matters.
    """

    offers = frozenset({"sample", "realism", "normal", "styles", "blocks"})
    blocks = rows = 2
    normal_width = 2

    def __init__(self, *, channels: int, size: int):
        super().__init__(channels=channels, size=size)
        if channels != 1:
            raise Refused(f"the toy prior makes grey images, got channels={channels}; use it with dataset=toy")
        self.mass = float(render(torch.zeros(1, 2, dtype=torch.float64), size).mean())

    @classmethod
    def require_world(cls, dataset: type) -> None:
        """The bells of the toy, and nothing else."""
        if WORLD not in {kind.__name__ for kind in dataset.__mro__}:
            raise Refused(
                f"prior=toy: expected dataset=toy, whose images it draws in closed form, got {dataset.__name__}; "
                "try prior=gmi_gan or prior=gmi_gan_small"
            )

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Places [count, 2], uniform in the square."""
        return torch.rand(count, 2, generator=rng) * 2 - 1

    def of_normal(self, noise: Tensor) -> Tensor:
        """Places [..., 2], uniform where the noise is normal."""
        return torch.erf(noise / math.sqrt(2))

    def styles(self, count: int, rng: torch.Generator, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Places per block [count, 2, 2], the first `cutoff` drawn towards the centre."""
        places = self.sample(count, rng)[:, None].repeat(1, self.blocks, 1)
        places[:, :cutoff] *= psi
        return places

    def decode(self, latents: Tensor) -> Tensor:
        """Bells [B, 1, size, size]."""
        return render(latents[:, 0] if latents.ndim == 3 else latents, self.size)

    def at(self, block: int) -> ToyEntrance:
        """The whole of it (0), or the drawing of the bell alone (1)."""
        return ToyEntrance(self, block)

    def realism(self, images: Tensor) -> Tensor:
        """Minus the squared error of an image's mean brightness, which every whole bell shares [B]; at most 0."""
        return -((images.mean((1, 2, 3)) - self.mass) ** 2)


@dataclass(frozen=True)
class ToyEntrance:
    """See `ToyFamily`."""

    prior: ToyFamily
    block: int

    def draw(self, latents: Tensor, features: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        """Bells [B, 1, size, size]."""
        return self.prior.decode(latents if self.block == 0 else features)

    def lift(
        self, latents: Tensor, features: Tensor | None = None, images: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """The place [B, 2]; there is no picture yet."""
        return (latents[:, 0] if latents.ndim == 3 else latents), None
