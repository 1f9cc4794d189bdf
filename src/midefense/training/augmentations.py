"""Augmentations of a training batch: every image gets draws of its own, the whole batch is changed at once.

Each is called as `augmentation(images, rng)` with images [B, C, H, W] in [0, 1] and a CPU generator, and gives images
of the same shape and range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor

from midefense.ranges import Range, Ratios, Share, Shares
from midefense.resampling import cropped, turned
from midefense.types import Refused


class HorizontalFlip:
    """Mirror each image with probability `p`."""

    revision = 1

    def __init__(self, *, p: Share = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        flipped = torch.rand(len(images), 1, 1, 1, generator=rng) < self.p
        return torch.where(flipped.to(images.device), images.flip(-1), images)


class ResizedCrop:
    """Crop a share `scale` = (low, high) of each image's area, of side `ratio` = (low, high) width to height
    (log-uniform), and resize it back: torchvision's RandomResizedCrop, bilinear. Crops of a share near 1 are enlarged,
    so antialiasing has nothing to do; a box larger than the image is cut to it."""

    revision = 1

    def __init__(self, *, scale: Shares = (0.85, 1.0), ratio: Ratios = (1.0, 1.0)) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise Refused(f"scale: expected 0 < low <= high <= 1, got {list(scale)}; try [0.85, 1.0]")
        if not 0 < ratio[0] <= ratio[1]:
            raise Refused(f"ratio: expected 0 < low <= high, got {list(ratio)}; try [1.0, 1.0]")
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        area = height * width * _uniform(count, *self.scale, rng)
        ratio = _uniform(count, math.log(self.ratio[0]), math.log(self.ratio[1]), rng).exp()
        wide = (area * ratio).sqrt().round().clamp(1, width)
        tall = (area / ratio).sqrt().round().clamp(1, height)
        top = (_uniform(count, 0, 1, rng) * (height - tall + 1)).floor()
        left = (_uniform(count, 0, 1, rng) * (width - wide + 1)).floor()
        x, y = (2 * left + wide) / width - 1, (2 * top + tall) / height - 1
        boxes = torch.stack([wide / width, tall / height, x, y], 1).to(images.device)
        return cropped(images, boxes, self._smallest(min(height, width)), apart=True)

    def _smallest(self, side: int) -> float:
        """The least side of a box, as a share of the image's."""
        share = math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1]))
        return min(1.0, max(share - 1 / side, 1 / side))  # boxes have whole pixels


class Rotation:
    """Turn each square image about its middle by an angle of up to `degrees` either way: bilinear, black around."""

    revision = 1

    def __init__(self, *, degrees: Annotated[float, Range(0, 180)] = 30.0) -> None:
        self.degrees = degrees

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        degrees = _uniform(len(images), -self.degrees, self.degrees, rng)
        return turned(images, torch.deg2rad(degrees).to(images))


class Sometimes:
    """Another augmentation, for a share `p` of the images; the others stay as they are."""

    revision = 1

    def __init__(self, *, p: Share, augmentation: Callable[[Tensor, torch.Generator], Tensor]) -> None:
        self.p = p
        self.augmentation = augmentation

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), 1, 1, 1, generator=rng) < self.p
        return torch.where(chosen.to(images.device), self.augmentation(images, rng), images)


class ColorJitter:
    """Scale brightness, contrast and saturation by factors in [1 - x, 1 + x] and turn the hue by [-hue, hue] turns.

    Factors are drawn per image, the order of the four once per batch (torchvision draws it per image). Grey images
    keep their saturation and hue.
    """

    revision = 1

    def __init__(
        self,
        *,
        brightness: Share = 0.0,
        contrast: Share = 0.0,
        saturation: Share = 0.0,
        hue: Annotated[float, Range(0, 0.5)] = 0.0,
    ) -> None:
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        adjustments = [
            (adjust_brightness_accumulative, 1 - self.brightness, 1 + self.brightness),
            (adjust_contrast_with_mean_subtraction, 1 - self.contrast, 1 + self.contrast),
            (adjust_saturation, 1 - self.saturation, 1 + self.saturation),
            (adjust_hue, -self.hue, self.hue),
        ]
        for index in torch.randperm(len(adjustments), generator=rng).tolist():
            adjust, low, high = adjustments[index]
            images = adjust(images, _uniform(len(images), low, high, rng).to(images))
        return images


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Away from (factors [B] above 1) or towards the grey image; grey images come back unchanged."""
    return images if images.shape[1] == 1 else adjust_saturation_with_gray_subtraction(images, factors)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB images by `turns` [B], through HSV; grey images come back unchanged.

    Ours, because it takes a fraction of the time of kornia's and gives the same to 2e-5: few passes over memory, and
    remainders by `floor`, which is vectorised where `%` is not.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=torch.finfo(images.dtype).tiny).reciprocal()
    behind_green_or_blue = torch.where(green == value, (blue - red) * scale + 2, (red - green) * scale + 4)
    sextant = torch.where(red == value, (green - blue) * scale, behind_green_or_blue)
    sextant += 6 * turns.view(-1, 1, 1)
    turned = torch.empty_like(images)
    # Channel n of RGB is v - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + sextant) mod 6, n = 5, 3, 1.
    for channel, offset in enumerate((5, 3, 1)):
        place = sextant + offset
        place -= 6 * (place * (1 / 6)).floor_()
        weight = place.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, weight, value=-1, out=turned[:, channel])
    return turned


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng, dtype=torch.float64) * (high - low) + low
