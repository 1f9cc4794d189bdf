"""Augmentations of a training batch: every image gets draws of its own, the whole batch is changed at once.

Each is called as `augmentation(images, rng)` with images [B, C, H, W] in [0, 1] and a CPU generator, and gives images
of the same shape and range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.types import Refused

# ITU-R BT.601 luma, as torchvision's grey conversion.
LUMA = (0.2989, 0.587, 0.114)


class HorizontalFlip:
    """Mirror each image with probability `p`."""

    revision = 1

    def __init__(self, *, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise Refused(f"p: expected a probability in [0, 1], got {p}; try 0.5")
        self.p = p

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        flipped = torch.rand(len(images), 1, 1, 1, generator=rng) < self.p
        return torch.where(flipped.to(images.device), images.flip(-1), images)


class ResizedCrop:
    """Crop a share `scale` = (low, high) of each image's area, of side `ratio` = (low, high) width to height
    (log-uniform), and resize it back: torchvision's RandomResizedCrop, bilinear. Crops of a share near 1 are enlarged,
    so antialiasing has nothing to do; a box larger than the image is cut to it."""

    revision = 1

    def __init__(self, *, scale: Sequence[float] = (0.85, 1.0), ratio: Sequence[float] = (1.0, 1.0)) -> None:
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
        rows = _source_positions(top, tall, height).unsqueeze(2).expand(-1, -1, width)
        columns = _source_positions(left, wide, width).unsqueeze(1).expand(-1, height, -1)
        grid = torch.stack([columns, rows], dim=-1).to(images)
        return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


class ColorJitter:
    """Scale brightness, contrast and saturation by factors in [1 - x, 1 + x] and turn the hue by [-hue, hue] turns.

    Factors are drawn per image, the order of the four once per batch (torchvision draws it per image). Grey images
    keep their saturation and hue.
    """

    revision = 1

    def __init__(
        self, *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        if min(brightness, contrast, saturation) < 0 or max(brightness, contrast, saturation) > 1:
            raise Refused("brightness, contrast, saturation: expected values in [0, 1]; try 0.2")
        if not 0 <= hue <= 0.5:
            raise Refused(f"hue: expected a value in [0, 0.5], got {hue}; try 0.1")
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        adjustments = [
            (adjust_brightness, 1 - self.brightness, 1 + self.brightness),
            (adjust_contrast, 1 - self.contrast, 1 + self.contrast),
            (adjust_saturation, 1 - self.saturation, 1 + self.saturation),
            (adjust_hue, -self.hue, self.hue),
        ]
        for index in torch.randperm(len(adjustments), generator=rng).tolist():
            adjust, low, high = adjustments[index]
            amounts = _uniform(len(images), low, high, rng).to(images).view(-1, 1, 1, 1)
            images = adjust(images, amounts)
        return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Images times `factor` [B, 1, 1, 1], clipped."""
    return (images * factor).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from (factor above 1) or towards the image's mean grey."""
    middle = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return (factor * images + (1 - factor) * middle).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from (factor above 1) or towards the grey image."""
    return (factor * images + (1 - factor) * _grey(images)).clamp(0, 1)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB images by `turns` [B, 1, 1, 1], through HSV; grey images come back unchanged."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    value, lead = images.max(dim=1)
    chroma = value - images.min(dim=1).values
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextant = torch.stack([(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4], dim=1)
    hue = sextant.gather(1, lead.unsqueeze(1)) + 6 * turns
    # Channel n of RGB is v - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6, n = 5, 3, 1.
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    distance = (offsets + hue) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(distance, 4 - distance).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng, dtype=torch.float64) * (high - low) + low


def _source_positions(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Where the pixels of the output come from, [B, side], in grid_sample's units. Positions are kept inside the
    crop, which makes this equal to cropping and then resizing."""
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * (length / side).unsqueeze(1) - 0.5
    pixels = start.unsqueeze(1) + torch.minimum(centres.clamp(min=0), (length - 1).unsqueeze(1))
    return (2 * pixels + 1) / side - 1
