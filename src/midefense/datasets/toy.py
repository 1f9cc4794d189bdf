"""A world in closed form: the best possible recovery of every class is known, so attacks can be held to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from midefense import seeds
from midefense.closed_form import render
from midefense.compute import require_memory
from midefense.datasets.base import Dataset, to_uint8
from midefense.datasets.cache import Caches
from midefense.datasets.splits import Splits
from midefense.ranges import Classes, Count, NotNegative, Side, Whole
from midefense.types import Images

DRAWN = 16  # bytes per pixel while images are drawn: two numbers in float64


class Toy(Dataset):
    """A class is a bell at a place of its own; its images shift it a little and add pixel noise.

    Places lie on a sunflower spiral over the disc of latents; private ones are spread evenly among the public ones,
    so that what is learned from the public classes can express the private ones. `jitter` is the standard deviation
    of the shift in latents, `noise` that of the pixels in [0, 1]. Public classes have `images_per_class` each.
    """

    may_be_shown = True
    channels = 1

    def __init__(
        self,
        *,
        classes: Classes = 4,
        public_classes: Count = 8,
        images_per_class: Count = 40,
        test_images_per_class: Count = 10,
        size: Side = 32,
        jitter: NotNegative = 0.05,
        noise: NotNegative = 0.03,
        seed: Whole = 0,
    ) -> None:
        pictures = classes * (images_per_class + test_images_per_class) + public_classes * images_per_class
        require_memory(pictures * size**2 * DRAWN, f"dataset.size={size} for {pictures:,} images")
        self.classes = classes
        self.public_classes = public_classes
        self.images_per_class = images_per_class
        self.test_images_per_class = test_images_per_class
        self.size = size
        self.jitter = jitter
        self.noise = noise
        self.seed = seed

    def latents(self, labels: Tensor) -> Tensor:
        """Places [N, 2] of classes `labels` int64 [N]; public classes count on after the private ones."""
        count = self.classes + self.public_classes
        rank = torch.arange(count, dtype=torch.float64)
        radius = ((rank + 0.5) / count).sqrt()
        angle = rank * math.pi * (3 - math.sqrt(5))  # the golden angle fills the disc evenly (Vogel, 1979)
        places = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        private = [(2 * label + 1) * count // (2 * self.classes) for label in range(self.classes)]
        public = sorted(set(range(count)) - set(private))
        return places[private + public][labels.cpu()]

    def answer(self, labels: Tensor) -> Tensor:
        """The noise-free images float32 [N, 1, size, size] in [0, 1] of classes `labels` int64 [N]."""
        return render(self.latents(labels), self.size).float().to(labels.device)

    def read(self, cache: Caches) -> Splits:
        """Drawn in float64, so that the rounded pixels are the same on every machine."""
        train = torch.arange(self.classes).repeat_interleave(self.images_per_class)
        test = torch.arange(self.classes).repeat_interleave(self.test_images_per_class)
        public = torch.arange(self.public_classes).repeat_interleave(self.images_per_class)
        pixels = self._draw(torch.cat([train, test, public + self.classes]))
        lengths = [len(train), len(test), len(public)]
        private_names = [f"private {label}" for label in range(self.classes)]
        public_names = [f"public {label}" for label in range(self.public_classes)]
        parts = zip(
            pixels.split(lengths),
            [train, test, public],
            torch.arange(len(pixels)).split(lengths),
            [private_names, private_names, public_names],
            strict=True,
        )
        return Splits(*(Images(*part) for part in parts))

    def _draw(self, labels: Tensor) -> Tensor:
        rng = seeds.generator(self.seed, "dataset", "toy")
        shift = torch.randn(len(labels), 2, generator=rng, dtype=torch.float64)
        grain = torch.randn(len(labels), 1, self.size, self.size, generator=rng, dtype=torch.float64)
        places = (self.latents(labels) + self.jitter * shift).clamp(-1, 1)
        return to_uint8((render(places, self.size) + self.noise * grain).clamp(0, 1))
