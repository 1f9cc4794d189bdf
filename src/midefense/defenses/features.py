"""The cheap defenses of released features, which every other has to beat at equal utility: noise, pruned channels, fewer
bits. They train nothing; what they draw comes from the image's own generator."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.defenses.base import Defense
from midefense.ranges import NotNegative, Range, Share
from midefense.types import refuse_unknown

Bits = Annotated[int, Range(0, 16)]
NOISES = ("gaussian", "laplace")
ORDERS = ("random", "magnitude")


class FeatureDefense(Defense):
    """Changes what the edge made of an image, and needs no more than that."""

    owns = ("release",)
    only_releases = True

    def release(self, edge: nn.Module, images: Tensor, ids: Tensor, rng: torch.Generator) -> Tensor:
        return self.change(edge(images), seeds.by_row(rng, ids))

    def change(self, features: Tensor, draws: list[torch.Generator]) -> Tensor:
        """What is released instead of `features` [B, ...]; `draws` holds a generator per image."""
        raise NotImplementedError


class FeatureNoise(FeatureDefense):
    """Noise of a norm relative to the feature's own: ||F' - F|| = scale ||F|| for every image.

    `distribution` of its numbers before they are scaled: `gaussian` or `laplace`.
    """

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"scale": 0.0}

    def __init__(self, *, scale: NotNegative, distribution: str = "gaussian") -> None:
        super().__init__()
        if distribution not in NOISES:
            raise refuse_unknown("defense.distribution", distribution, NOISES)
        self.scale, self.distribution = scale, distribution

    def change(self, features: Tensor, draws: list[torch.Generator]) -> Tensor:
        if self.scale == 0:
            return features
        noise = torch.stack([self.noise(features.shape[1:], own) for own in draws]).to(features)
        lengths = (features.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))
        factor = self.scale * lengths[0] / lengths[1]
        return features + noise * factor.view(-1, *[1] * (features.dim() - 1))

    def noise(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        """Numbers of the distribution, of no particular scale."""
        if self.distribution == "gaussian":
            return torch.randn(shape, generator=rng)
        sign, size = torch.rand(2, *shape, generator=rng, dtype=torch.float64)
        return ((sign - 0.5).sign() * -torch.log1p(-size)).float()


class FeaturePruning(FeatureDefense):
    """A share of an image's channels set to zero (of a vector's units): `random` ones, drawn for each image, or those of
    the least mean `magnitude`."""

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"share": 0.0}

    def __init__(self, *, share: Share, by: str = "random") -> None:
        super().__init__()
        if by not in ORDERS:
            raise refuse_unknown("defense.by", by, ORDERS)
        self.share, self.by = share, by

    def change(self, features: Tensor, draws: list[torch.Generator]) -> Tensor:
        channels = features.shape[1]
        pruned = round(self.share * channels)
        if self.by == "random":
            ranks = torch.stack([torch.rand(channels, generator=own) for own in draws]).to(features.device)
        else:
            ranks = features.abs().flatten(2).mean(2) if features.dim() > 2 else features.abs()
        order = ranks.argsort(dim=1, stable=True)[:, :pruned]
        kept = torch.ones_like(ranks, dtype=torch.bool).scatter_(1, order, False)
        return torch.where(kept.view(*kept.shape, *[1] * (features.dim() - 2)), features, 0.0)


class FeatureQuantisation(FeatureDefense):
    """Each number rounded to the nearest of 2^bits levels, evenly between the smallest and the largest of its image's
    feature; at 0 bits there is one level, 0. Nothing is drawn: what is asked twice is the same.

    `bits` None leaves features as they are.
    """

    revision = 1
    neutral: ClassVar[dict[str, None]] = {"bits": None}

    def __init__(self, *, bits: Bits | None) -> None:
        super().__init__()
        self.bits = bits

    def change(self, features: Tensor, draws: list[torch.Generator]) -> Tensor:
        if self.bits is None:
            return features
        if self.bits == 0:
            return torch.zeros_like(features)
        flat, steps = features.flatten(1), 2**self.bits - 1
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        unit = (high - low) / steps
        level = ((flat - low) / unit.where(unit > 0, torch.ones_like(unit))).round()
        return (low + level * unit).view_as(features)
