"""Small changes to a picture under which a person stays recognisable, and what merely fools a network does not.

Features that only a network sees are fine: they seldom survive a shift, a blur or a rounding (Xu, Evans and Qi,
"Feature squeezing", NDSS 2018, detect adversarial examples so; Athalye et al., ICML 2018, on what does survive). What
moves, crops or blurs is relative to the side of the picture, so that a change hides the same part of it at any size.
`noise` and `levels` are not: they change each pixel by itself, whatever the size, so that noise of one strength hides
less of a larger picture, whose neighbouring pixels tell the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from midefense import seeds
from midefense.resampling import cropped, resized

SMALLEST_CROP = 0.9  # share of the side
FARTHEST_SHIFT = 0.06  # share of the side, either way
NOISE = 0.06  # standard deviation, of pixels in [0, 1]
BLUR = 0.02  # standard deviation as a share of the side
COARSE = 0.5  # of the resolution
LEVELS = 8  # of a channel that are told apart


@dataclass(frozen=True)
class Draws:
    """Uniform numbers for images by the counters that name each, int64 [B] all: whoever comes beside an image, and in
    whatever order, it draws the same."""

    seed: int
    counters: tuple[Tensor, ...]

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), float64 [B, *shape]."""
        places = torch.arange(math.prod(shape), device=self.counters[0].device)
        return seeds.hashed_uniform(self.seed, *(counter[:, None] for counter in self.counters), places[None]).view(
            len(self.counters[0]), *shape
        )

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float64 [B, *shape], by Box and Muller."""
        first, second = self.uniform(2, *shape).unbind(1)
        return (-2 * torch.log1p(-first)).sqrt() * (2 * math.pi * second).cos()


def crop(images: Tensor, draws: Draws) -> Tensor:
    """A square box of at least `SMALLEST_CROP` of the side, anywhere, enlarged to the picture's size."""
    share, x, y = draws.uniform(3).to(images).unbind(1)
    half = SMALLEST_CROP + (1 - SMALLEST_CROP) * share
    return cropped(
        images, torch.stack([half, half, (2 * x - 1) * (1 - half), (2 * y - 1) * (1 - half)], 1), SMALLEST_CROP
    )


def shift(images: Tensor, draws: Draws) -> Tensor:
    """Moved by up to `FARTHEST_SHIFT` along either axis; the border is repeated."""
    x, y = (2 * FARTHEST_SHIFT * (2 * draws.uniform(2) - 1)).to(images).unbind(1)
    whole = torch.ones_like(x)
    return cropped(images, torch.stack([whole, whole, x, y], 1), 1.0)


def noise(images: Tensor, draws: Draws) -> Tensor:
    """With Gaussian noise of `NOISE` in every pixel."""
    return images + NOISE * draws.normal(*images.shape[1:]).to(images)


def blur(images: Tensor, draws: Draws) -> Tensor:
    """Through a Gaussian window of `BLUR`."""
    deviation = BLUR * images.shape[-1]
    window = 2 * math.ceil(3 * deviation) + 1
    window = min(window, images.shape[-1] - (1 - images.shape[-1] % 2))  # no wider than a tiny picture
    return gaussian_blur2d(images, (window, window), (deviation, deviation), border_type="replicate")


def coarse(images: Tensor, draws: Draws) -> Tensor:
    """At `COARSE` of its resolution, and enlarged again."""
    side = images.shape[-1]
    return resized(resized(images, max(1, round(COARSE * side))), side)


def levels(images: Tensor, draws: Draws) -> Tensor:
    """With `LEVELS` levels per channel."""
    return (images * (LEVELS - 1)).round() / (LEVELS - 1)


def mirror(images: Tensor, draws: Draws) -> Tensor:
    """Mirrored; for pictures, such as faces, that show the same then."""
    return images.flip(-1)


@dataclass(frozen=True)
class Change:
    """A change of images [B, C, S, S] in [0, 1] by draws; `drawn`: whether it is another one each time."""

    apply: Callable[[Tensor, Draws], Tensor]
    drawn: bool

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return self.apply(images, draws).clamp(0, 1)


CHANGES = {
    "crop": Change(crop, True),
    "shift": Change(shift, True),
    "noise": Change(noise, True),
    "blur": Change(blur, False),
    "coarse": Change(coarse, False),
    "levels": Change(levels, False),
    "mirror": Change(mirror, False),
}
EVERYWHERE = ("crop", "shift", "noise", "blur", "coarse", "levels")  # that leave a digit what it is, and a face
