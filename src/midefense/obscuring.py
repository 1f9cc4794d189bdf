"""Pictures of which an attacker was shown less than all: masked or blurred.

The victim's side (`evidence`) hides private images with these, and a prior that completes such pictures practises on
public ones, so that both know one way to hide. Dice come first, one row per image and drawn from a generator that is
handed in; what was `seen` of images [B, C, H, W] is [B, C + 1, H, W]: the picture as it is left, and last where nothing
is known for certain (1) and where the pixel is the image's own (0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import rectangles
from midefense.ranges import Colour, Positive, Ratios, Share, Shares, Some
from midefense.types import Refused

CELEBA_MEAN = (0.5061, 0.4254, 0.3828)  # what GMI's code fills a hole with


class Obscuring:
    """One way to hide a part of a picture."""

    revision = 1
    columns = 0

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Dice [count, columns]; here nothing is drawn."""
        return torch.zeros(count, self.columns)

    def __call__(self, images: Tensor, dice: Tensor) -> Tensor:
        """What is seen [B, C + 1, H, W] of images [B, C, H, W] in [0, 1]; `dice` [B, columns] on their device."""
        raise NotImplementedError


class Mask(Obscuring):
    """Rectangles at fixed places are painted over.

    Args:
        boxes: each (top, bottom, left, right), in shares of the side; GMI's centre square is .15 to .85 both ways.
        fill: their colour, one value or one per channel; grey images get the mean of several.
    """

    def __init__(
        self,
        *,
        boxes: Annotated[Sequence[Sequence[Share]], Some()] = ((0.15, 0.85, 0.15, 0.85),),
        fill: Colour = CELEBA_MEAN,
    ):
        for box in boxes:
            if len(box) != 4 or not (box[0] < box[1] and box[2] < box[3]):
                raise Refused(
                    f"boxes: expected [top, bottom, left, right] with top < bottom and left < right, got {list(box)}; "
                    "try [[0.15, 0.85, 0.15, 0.85]]"
                )
        self.boxes, self.fill = tuple(map(tuple, boxes)), _colour(fill)

    def __call__(self, images: Tensor, dice: Tensor) -> Tensor:
        """As `Obscuring`; edges are rounded to whole pixels."""
        hidden = torch.zeros_like(images[:, :1])
        for box in self.boxes:
            top, bottom, left, right = (round(share * images.shape[-1]) for share in box)
            hidden[..., top:bottom, left:right] = 1
        return _painted(images, hidden, self.fill)


class RandomMask(Obscuring):
    """One rectangle per image, somewhere, is painted over.

    Args:
        scale: least and largest share of the area.
        ratio: least and largest height divided by width.
        fill: as `Mask`.
    """

    columns = rectangles.COLUMNS

    def __init__(self, *, scale: Shares = (0.2, 0.5), ratio: Ratios = (0.5, 2.0), fill: Colour = CELEBA_MEAN):
        rectangles.require_boxes(1.0, scale, ratio)
        self.scale, self.ratio, self.fill = tuple(scale), tuple(ratio), _colour(fill)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Dice [count, columns] in [0, 1)."""
        return rectangles.roll(count, rng)

    def __call__(self, images: Tensor, dice: Tensor) -> Tensor:
        """As `Obscuring`."""
        height, width = images.shape[-2:]
        boxes = rectangles.random_boxes(dice, height, width, p=1.0, scale=self.scale, ratio=self.ratio)
        return _painted(images, rectangles.inside(boxes, height, width).to(images).expand_as(images[:, :1]), self.fill)


class Blur(Obscuring):
    """The whole picture under a Gaussian: no pixel of it is the image's own.

    Args:
        deviation: of the Gaussian, in shares of the side (.05 is 3.2 pixels of 64).
    """

    def __init__(self, *, deviation: Positive = 0.05):
        self.deviation = deviation

    def __call__(self, images: Tensor, dice: Tensor) -> Tensor:
        """As `Obscuring`; differentiable in the images. What lies beyond an edge mirrors what lies before it."""
        size = images.shape[-1]
        deviation, reach = self.deviation * size, min(max(1, round(3 * self.deviation * size)), size - 1)
        places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
        kernel = (-places.square() / (2 * deviation**2)).exp()
        kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
        padded = F.pad(images, (reach,) * 4, mode="reflect")
        across = F.conv2d(padded, kernel, groups=images.shape[1])
        blurred = F.conv2d(across, kernel.mT, groups=images.shape[1])
        return torch.cat([blurred, torch.ones_like(blurred[:, :1])], 1)


def _colour(fill: Colour) -> float | tuple[float, ...]:
    return fill if isinstance(fill, int | float) else tuple(fill)


def _painted(images: Tensor, hidden: Tensor, fill: float | tuple[float, ...]) -> Tensor:
    """What is seen of images behind `hidden` [B, 1, H, W] (1 where nothing is)."""
    colour = rectangles.fill_on(fill, images.shape[1], images.device, images.dtype)
    return torch.cat([images * (1 - hidden) + colour * hidden, hidden], 1)


def completed(seen: Tensor, made: Tensor) -> Tensor:
    """Images [B, C, H, W] that are what was `seen` [B, C + 1, H, W] where that is known, and `made` elsewhere."""
    picture, hidden = seen[:, :-1], seen[:, -1:]
    return picture * (1 - hidden) + made * hidden
