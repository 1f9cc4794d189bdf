"""Rectangles to erase, drawn per image as torchvision's RandomErasing does (Zhong et al., AAAI 2020).

The defense that trains behind them and the attack that knows of it both draw here, so that they see one distribution.
First come dice, numbers in [0, 1) that know nothing of an image's size; a size turns them into boxes, int64 [4, B]:
top, left, height and width in pixels. A box of no pixels leaves its image whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from midefense.types import Refused

TRIES = 10  # as in torchvision: after ten refused sizes the image stays whole
COLUMNS = 2 * TRIES + 3  # areas, ratios, two for the place, one for whether at all


def require_boxes(p: float, scale: Sequence[float], ratio: Sequence[float]) -> None:
    """Refuse what is no probability, no range of shares of the area, or no range of height to width."""
    if not 0 <= p <= 1:
        raise Refused(f"p: expected a probability in [0, 1], got {p}; try 1.0")
    if not 0 <= scale[0] <= scale[1] <= 1:
        raise Refused(f"scale: expected 0 <= low <= high <= 1, got {list(scale)}; try [0.1, 0.4]")
    if not 0 < ratio[0] <= ratio[1]:
        raise Refused(f"ratio: expected 0 < low <= high, got {list(ratio)}; try [1.0, 1.0]")


def roll(count: int, rng: torch.Generator) -> Tensor:
    """Dice [count, COLUMNS] in [0, 1), float64."""
    sizes = torch.rand(2, count, TRIES, generator=rng, dtype=torch.float64)
    # One place of ten is used: to draw fewer would move the numbers that results were published with.
    places = torch.rand(2, count, TRIES, generator=rng, dtype=torch.float64)[..., 0]
    chance = torch.rand(count, 1, generator=rng)
    return torch.cat([sizes.transpose(0, 1).flatten(1), places.T, chance], 1)


def sizes_of(dice: Tensor, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Heights and widths [2, B]: the first of ten that is smaller than the image, else nothing.

    `scale`: (low, high) of the share of the area; `ratio`: (low, high) of height to width, log-uniform.
    """
    areas, ratios = dice[:, : 2 * TRIES].unflatten(1, (2, TRIES)).unbind(1)
    area = height * width * _between(areas, *scale)
    shape = _between(ratios, math.log(ratio[0]), math.log(ratio[1])).exp()
    sides = torch.stack([(area * shape).sqrt().round(), (area / shape).sqrt().round()]).long()
    fits = (sides[0] < height) & (sides[1] < width)
    first = fits.int().argmax(1).expand(2, -1).unsqueeze(-1)
    return sides.gather(2, first).squeeze(-1) * fits.any(1)


def places_of(dice: Tensor) -> Tensor:
    """The dice [2, B] for the top and for the left edge."""
    return dice[:, 2 * TRIES : -1].T


def chosen(dice: Tensor, p: float) -> Tensor:
    """Whether an image is erased at all [B]."""
    return dice[:, -1].float() < p


def random_boxes(
    dice: Tensor, height: int, width: int, *, p: float, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Boxes [4, B] that are everywhere as likely as they fit."""
    sizes = sizes_of(dice, height, width, scale, ratio)
    room = extent(height, width, sizes) - sizes
    return torch.cat([(places_of(dice) * (room + 1)).long(), sizes * chosen(dice, p)])


def extent(height: int, width: int, like: Tensor) -> Tensor:
    """Height and width of an image for every column of `like` [2, B], made on its device: nothing is copied there."""
    return torch.stack([torch.full_like(like[0], height), torch.full_like(like[1], width)])


def inside(boxes: Tensor, height: int, width: int, wrap: bool = False) -> Tensor:
    """Pixels within their image's box, bool [B, 1, height, width]; with `wrap`, a box that leaves the image at one edge
    comes back at the other, without it what leaves is cut off."""
    top, left, tall, wide = boxes.view(4, -1, 1, 1, 1)
    down = torch.arange(height, device=boxes.device).view(1, 1, -1, 1) - top
    right = torch.arange(width, device=boxes.device).view(1, 1, 1, -1) - left
    if wrap:
        down, right = down % height, right % width
    return (down >= 0) & (down < tall) & (right >= 0) & (right < wide)


def fill_of(value: float | Sequence[float], channels: int, name: str = "value") -> Tensor:
    """`value` (one, or one per channel) as a tensor [1, channels, 1, 1]; grey images get the mean of several. `name` is
    what a refusal calls it."""
    values = torch.as_tensor(value, dtype=torch.float32).flatten()
    if channels == 1:
        values = values.mean(0, keepdim=True)
    if len(values) not in (1, channels):
        raise Refused(f"{name}: expected 1 or {channels} values for {channels} channels, got {len(values)}")
    return values.expand(channels).reshape(1, channels, 1, 1).clone()


@functools.cache
def fill_on(value: float | tuple[float, ...], channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`fill_of` on a device, copied there once: a copy at every step of a search would make it wait."""
    return fill_of(value, channels).to(device, dtype)


def _between(dice: Tensor, low: float, high: float) -> Tensor:
    return dice * (high - low) + low
