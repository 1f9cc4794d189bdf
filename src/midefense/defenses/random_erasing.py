"""Random erasing as a defense (MIDRE; Tran et al., "Random Erasing vs. Model Inversion", TMLR 2025).

Every training image has one rectangle overwritten with a constant colour, drawn anew for every image and epoch, so
that the classifier never sees a whole object and has less of it to give away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from midefense.architectures.base import Classifier, per_channel
from midefense.defenses.base import Defense
from midefense.types import Batch, Refused, refuse_unknown

TRIES = 10  # as in torchvision: after ten refused draws the image stays whole
LOCATIONS = ("random", "center", "per_image", "boundary")
FILL_SPACES = ("normalized", "pixel")


class RandomErasing(Defense):
    """Erase one rectangle per training image, on the batch's device, at the resolution of the stored images.

    `p`: share of images erased. `scale`: (low, high) of the erased share of the area. `ratio`: (low, high) of height
    to width, log-uniform. `value`: the fill, one value or one per channel; grey images get the mean of several.
    `fill_space`: `normalized`, the value is what the network sees after normalising (as the authors' code does), or
    `pixel`, it is a colour in [0, 1]. `location`: `random`; `center`; `per_image`, one place per image id for the whole
    training; `boundary`, random but never wholly inside the central half.
    """

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"p": 0.0}
    fill: Tensor | None
    salt: Tensor

    def __init__(
        self,
        *,
        p: float = 1.0,
        scale: Sequence[float] = (0.1, 0.4),
        ratio: Sequence[float] = (1.0, 1.0),
        value: float | Sequence[float] = (0.485, 0.456, 0.406),
        fill_space: str = "normalized",
        location: str = "random",
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise Refused(f"p: expected a probability in [0, 1], got {p}; try 1.0")
        if not 0 <= scale[0] <= scale[1] <= 1:
            raise Refused(f"scale: expected 0 <= low <= high <= 1, got {list(scale)}; try [0.1, 0.4]")
        if not 0 < ratio[0] <= ratio[1]:
            raise Refused(f"ratio: expected 0 < low <= high, got {list(ratio)}; try [1.0, 1.0]")
        if fill_space not in FILL_SPACES:
            raise refuse_unknown("fill_space", fill_space, FILL_SPACES)
        if location not in LOCATIONS:
            raise refuse_unknown("location", location, LOCATIONS)
        self.p = p
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.value = value
        self.fill_space = fill_space
        self.location = location
        self.register_buffer("fill", None, persistent=False)
        self.register_buffer("salt", torch.zeros((), dtype=torch.int64))

    def rebuild(self, model: Classifier) -> Classifier:
        """Express the fill as a pixel value, and draw the key of the fixed places."""
        value = torch.as_tensor(self.value, dtype=torch.float32)
        fill = per_channel("value", value.mean() if model.channels == 1 else value, model.channels)
        preprocess = model.preprocess
        if self.fill_space == "normalized":
            fill = fill.to(preprocess.mean.device) * preprocess.std + preprocess.mean
        self.fill = fill
        if self.location == "per_image":
            self.salt = torch.randint(2**62, ())
        return model

    def transform(self, batch: Batch) -> Batch:
        if self.fill is None:
            raise Refused("random_erasing: expected rebuild(model) before training, got none; try train.assemble")
        height, width = batch.images.shape[-2:]
        top, left, tall, wide = self.boxes(batch).view(4, -1, 1, 1, 1)
        rows = torch.arange(height, device=batch.images.device).view(1, 1, -1, 1)
        columns = torch.arange(width, device=batch.images.device).view(1, 1, 1, -1)
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        return replace(batch, images=torch.where(inside, self.fill, batch.images))

    def boxes(self, batch: Batch) -> Tensor:
        """Top, left, height and width in pixels, int64 [4, B]; a box of no pixels leaves its image whole."""
        count, _, height, width = batch.images.shape
        tall, wide = self._sizes(count, height, width, batch.rng).to(batch.images.device)
        top, left, placed = self._places(tall, wide, height, width, batch)
        erased = placed & (torch.rand(count, generator=batch.rng) < self.p).to(placed.device)
        return torch.stack([top, left, tall * erased, wide * erased])

    def _sizes(self, count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
        """Heights and widths [2, count]: the first of ten draws that is smaller than the image, else nothing."""
        area = height * width * _uniform((count, TRIES), *self.scale, rng)
        ratio = _uniform((count, TRIES), math.log(self.ratio[0]), math.log(self.ratio[1]), rng).exp()
        tall, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (tall < height) & (wide < width)
        first = _first(fits)
        some = fits.any(dim=1)
        return torch.stack([_at(tall, first) * some, _at(wide, first) * some])

    def _places(
        self, tall: Tensor, wide: Tensor, height: int, width: int, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Top-left corners [B], [B], and whether a place was found [B]."""
        room = torch.stack([height - tall, width - wide])
        always = torch.ones_like(tall, dtype=torch.bool)
        if self.location == "center":
            return *(room // 2), always
        if self.location == "per_image":
            draws = torch.stack([hashed_uniform(batch.ids, self.salt, axis) for axis in (0, 1)])
            return *(draws * (room + 1)).long(), always
        draws = _uniform((2, len(tall), TRIES), 0, 1, batch.rng).to(room.device)
        top, left = (draws * (room + 1).unsqueeze(-1)).long()
        if self.location == "random":
            return top[:, 0], left[:, 0], always
        inner_rows = (top >= height // 4) & (top + tall.unsqueeze(-1) <= height - height // 4)
        inner_columns = (left >= width // 4) & (left + wide.unsqueeze(-1) <= width - width // 4)
        allowed = ~(inner_rows & inner_columns)
        first = _first(allowed)
        return _at(top, first), _at(left, first), allowed.any(dim=1)


def hashed_uniform(ids: Tensor, salt: Tensor, axis: int) -> Tensor:
    """Numbers in [0, 1), float64, one per id: the same for the same (id, salt, axis), in any batch.

    SplitMix64's finaliser (Steele et al., OOPSLA 2014); int64 products wrap, which is what it needs.
    """
    state = (2 * ids + axis) * -0x61C8864680B583EB + salt
    state = (state ^ _shifted(state, 30)) * -0x40A7B892E31B1A47
    state = (state ^ _shifted(state, 27)) * -0x6B2FB644ECCEEE15
    return _shifted(state ^ _shifted(state, 31), 11).double() * 2.0**-53


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (state >> bits) & (2 ** (64 - bits) - 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64) * (high - low) + low


def _first(accepted: Tensor) -> Tensor:
    """Index [B] of the first accepted try of [B, tries]."""
    return accepted.int().argmax(dim=1)


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.unsqueeze(1)).squeeze(1)
