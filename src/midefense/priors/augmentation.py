"""PLG-MI's augmentation (Yuan et al., AAAI 2023): a crop, a jitter of brightness and contrast, a mirror image and a
small rotation per image, differentiable, with explicit parameters. It does what kornia 0.6.6 did, which the authors
pin.

Its prior learns behind it and its attack searches behind it, so it stands here, where both reach it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from midefense.ranges import Share
from midefense.resampling import stretched, turned
from midefense.types import Refused

COLUMNS = 11
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Parameters:
    """What happens to each of B images: `boxes` [B, 4], the corners (x1, y1, x2, y2) of a crop, the last pixels
    included; `flip` bool [B]; `jitter` bool [B], whether `brightness` and `contrast` [B] are multiplied, the brightness
    first or second (`brightness_first` bool [B]) and pixels clamped before both or not (`clamp_first` bool [B]);
    `degrees` [B], counter-clockwise, 0 for no rotation. No box reaches less than the share `smallest` of an image from
    corner to corner."""

    boxes: Tensor
    flip: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    brightness_first: Tensor
    clamp_first: Tensor
    degrees: Tensor
    smallest: float


class Augmentation:
    """Draws `Parameters` and applies them.

    Args:
        scale: least and largest share of the area that is cut out. Of S pixels at most S - 1 are: S is drawn anew.
        flip: probability of a mirror image.
        jitter: probability that brightness and contrast change, to a factor in [1 - strength, 1 + strength] each; the
            order of the two is drawn once per call, as in the original.
        brightness, contrast: the strengths.
        rotation: probability of a rotation by up to `degrees` either way.
    """

    revision = 1
    columns = COLUMNS

    def __init__(
        self,
        *,
        scale: Sequence[float] = (0.8, 1.0),
        flip: Share = 0.5,
        jitter: Share = 1.0,
        brightness: Share = 0.2,
        contrast: Share = 0.2,
        rotation: Share = 0.5,
        degrees: float = 5.0,
    ):
        if not (0 < scale[0] <= scale[1] <= 1):
            raise Refused(f"augmentation.scale: expected 0 < low <= high <= 1, got {list(scale)}; try [0.8, 1.0]")
        if not 0 <= degrees <= 180:
            raise Refused(f"augmentation.degrees: expected an angle from 0 to 180, got {degrees}; try 5")
        self.scale, self.flip, self.jitter, self.rotation = tuple(scale), flip, jitter, rotation
        self.strengths, self.degrees = (brightness, contrast), degrees

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Dice [count, columns] in [0, 1), float32; the last two columns are those of the whole call."""
        own = torch.rand(count, COLUMNS - 2, generator=rng)
        return torch.cat([own, torch.rand(1, 2, generator=rng).expand(count, 2)], 1)

    def parameters(self, dice: Tensor, size: int) -> Parameters:
        """What dice [B, columns] mean for images of `size` pixels a side."""
        area, left, top, flip, jitter, brightness, contrast, rotate, angle, order, clamps = dice.unbind(1)
        largest = min(self.scale[1], (1 - 0.5 / size) ** 2)  # above it the side would be rounded to the whole
        smallest = min(self.scale[0], largest)
        side = (size * (smallest + (largest - smallest) * area).sqrt()).round().clamp(1, size)
        x, y = (left * (size - side + 1)).floor(), (top * (size - side + 1)).floor()
        strengths = zip(self.strengths, (brightness, contrast), strict=True)
        factors = (1 + strength * (2 * die - 1) for strength, die in strengths)
        angles = torch.where(rotate < self.rotation, self.degrees * (2 * angle - 1), 0.0)
        return Parameters(
            torch.stack([x, y, x + side - 1, y + side - 1], 1),
            flip < self.flip,
            jitter < self.jitter,
            *factors,
            order < 0.5,
            clamps < 1 / 3,  # of three in a random order, the change of saturation comes first
            angles,
            max(round(size * math.sqrt(smallest)) - 1, 1) / max(size - 1, 1),
        )

    def __call__(self, images: Tensor, dice: Tensor) -> Tensor:
        """Views [B, C, S, S] of images [B, C, S, S]; `dice` [B, columns] on the images' device."""
        return apply(images, self.parameters(dice, images.shape[-1]))


def apply(images: Tensor, how: Parameters) -> Tensor:
    """Images [B, C, S, S] as `how` says. A mirror image of the crop has the same brightness and contrast, so it is
    taken while cropping."""
    return rotated(jittered(cropped(images, how.boxes, how.flip, how.smallest), how), how.degrees)


def cropped(images: Tensor, boxes: Tensor, flip: Tensor, smallest: float) -> Tensor:
    """The inside of boxes [B, 4], mirrored where `flip` [B], scaled to full size: corners on corners, bilinear.
    `smallest` is the least share of the image that a box reaches from corner to corner."""
    boxes = boxes.to(images.dtype)
    return stretched(images, torch.where(flip[:, None], boxes[:, [2, 1, 0, 3]], boxes), smallest)


def jittered(images: Tensor, how: Parameters) -> Tensor:
    """Brightness and contrast of images [B, C, S, S] changed where `how.jitter`. Each clamps to [0, 1], and what is cut
    gets no gradient; so does a change of saturation by the factor 1, which shows only where it comes first. A change of
    hue by 0 is none."""
    brightness, contrast = (factor.to(images.dtype).view(-1, 1, 1, 1) for factor in (how.brightness, how.contrast))
    start = torch.where(_spread(how.clamp_first), images.clamp(0, 1), images)
    bright_first = _contrasted((start * brightness).clamp(0, 1), contrast)
    bright_last = (_contrasted(start, contrast) * brightness).clamp(0, 1)
    changed = torch.where(_spread(how.brightness_first), bright_first, bright_last)
    return torch.where(_spread(how.jitter), changed, images)


def _contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Images moved away from the mean of their grey values by a factor [B, 1, 1, 1], clamped."""
    weights = GREY if images.shape[1] == len(GREY) else [1 / images.shape[1]] * images.shape[1]
    grey = (images * images.new_tensor(weights).view(1, -1, 1, 1)).sum(1, keepdim=True)
    return (images * factor + (1 - factor) * grey.mean((1, 2, 3), keepdim=True)).clamp(0, 1)


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Images [B, C, S, S] turned counter-clockwise about their middle by degrees [B]: bilinear, black around."""
    whirled = turned(images, torch.deg2rad(degrees.to(images.dtype)))
    return torch.where(_spread(degrees != 0), whirled, images)


def _spread(flags: Tensor) -> Tensor:
    return flags.view(-1, 1, 1, 1)
