"""The pixels themselves: no knowledge at all. A latent is an image (MI-Face; DeepInversion)."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense import rectangles
from midefense.priors.base import Prior
from midefense.ranges import Colour, Deviation
from midefense.types import refuse_unknown


class Pixels(Prior):
    """Latents are images [B, C, H, W], (image - mean) / std: as they are, or in a classifier's own scale of colours
    (DeepInversion; Yin et al., CVPR 2020).

    It offers `pixels`: an attack that makes images without a generator stands on it.

    Args:
        start: where a search begins: `zeros` (black), `grey` (.5), `noise` (uniform in [0, 1]), or `normal` (latents of
            N(0, 1), many of which are no pixels).
        clip: clamp images to [0, 1] as they are decoded. Clamped pixels get no gradient, hence off by default.
        mean, std: of colours, one value or one per channel; grey images get the mean of several.
    """

    later = {"mean": 0.0, "std": 1.0}
    offers = frozenset({"sample", "pixels"})
    starts = {"zeros": 0.0, "grey": 0.5, "noise": None, "normal": None}

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        start: str = "grey",
        clip: bool = False,
        mean: Colour = 0.0,
        std: Deviation = 1.0,
    ):
        super().__init__(channels=channels, size=size)
        if start not in self.starts:
            raise refuse_unknown("prior.start", start, self.starts)
        self.start, self.clip = start, clip
        self.register_buffer("_mean", rectangles.fill_of(mean, channels, "prior.mean"), persistent=False)
        self.register_buffer("_std", rectangles.fill_of(std, channels, "prior.std"), persistent=False)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Start images [count, C, H, W]."""
        shape = (count, self.channels, self.size, self.size)
        if self.start == "normal":
            return torch.randn(shape, generator=rng)
        level = self.starts[self.start]
        images = torch.rand(shape, generator=rng) if level is None else torch.full(shape, level)
        return (images - self._mean.cpu()) / self._std.cpu()

    def decode(self, latents: Tensor) -> Tensor:
        """The images, clamped only if the prior was told to."""
        images = latents * self._std.to(latents) + self._mean.to(latents)
        return images.clamp(0, 1) if self.clip else images

    def normalised(self, images: Tensor) -> Tensor:
        """The latents of images [B, C, H, W] of any size."""
        return (images - self._mean.to(images)) / self._std.to(images)

    @property
    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """The least and the largest latents [1, C, 1, 1] that are pixels, of images in [0, 1]."""
        return (0 - self._mean) / self._std, (1 - self._mean) / self._std
