"""Defenses that hide a part of every training image, or of every epoch, so that the classifier never learns the whole.

Masking augmentations as the defenses they are in the ablations of MIDRE (Tran et al., TMLR 2025); rectangles of random
size have a file of their own, `random_erasing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense
from midefense.ranges import Count, Share, Shares, Some
from midefense.rectangles import fill_of, inside
from midefense.types import Batch, Origin, Refused, refuse_unknown

FILL_SPACES = ("normalized", "pixel")


class Masking(Defense):
    """Overwrite the pixels that `hidden` names, on the batch's device, at the resolution of the stored images.

    `p`: share of images masked, drawn anew for every image and epoch. `value`: the fill, one value or one per channel;
    grey images get the mean of several. `fill_space`: `normalized`, the value is what the network sees after
    normalising, or `pixel`, it is a colour in [0, 1].
    """

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"p": 0.0}
    fill: Tensor | None

    def __init__(self, *, p: float, value: float | Sequence[float], fill_space: str) -> None:
        super().__init__()
        if fill_space not in FILL_SPACES:
            raise refuse_unknown("fill_space", fill_space, FILL_SPACES)
        self.p = p
        self.value = value
        self.fill_space = fill_space
        self.register_buffer("fill", None, persistent=False)

    def hidden(self, batch: Batch) -> Tensor:
        """Which pixels are overwritten, bool [B, 1, H, W]."""
        raise NotImplementedError

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Express the fill as a pixel value."""
        fill, preprocess = fill_of(self.value, model.channels), model.preprocess
        if self.fill_space == "normalized":
            fill = fill.to(preprocess.mean.device) * preprocess.std + preprocess.mean
        self.fill = fill
        return model

    def transform(self, batch: Batch) -> Batch:
        return self.masked(batch)

    def masked(self, batch: Batch) -> Batch:
        """The batch with its hidden pixels overwritten."""
        if self.fill is None:
            who = type(self).__name__
            raise Refused(f"{who}: expected rebuild(model) before training, got none; try loop.assemble")
        return replace(batch, images=torch.where(self.hidden(batch), self.fill, batch.images))

    def chosen(self, batch: Batch) -> Tensor:
        """Which images are masked at all, bool [B, 1, 1, 1]."""
        drawn = torch.rand(len(batch.images), 1, 1, 1, generator=batch.rng) < self.p
        return drawn.to(batch.images.device)


class Cutout(Masking):
    """A square of fixed size around a pixel that is everywhere as likely, cut off at the edges (DeVries and Taylor,
    "Improved Regularization of Convolutional Neural Networks with Cutout", 2017).

    `side`: of the square, as a share of the image's shorter side.
    """

    revision = 1

    def __init__(
        self, *, p: Share = 1.0, side: Share = 0.5, value: float | Sequence[float] = 0.0, fill_space: str = "normalized"
    ) -> None:
        super().__init__(p=p, value=value, fill_space=fill_space)
        self.side = side

    def hidden(self, batch: Batch) -> Tensor:
        height, width = batch.images.shape[-2:]
        boxes = self.boxes(len(batch.images), height, width, batch.rng).to(batch.images.device)
        return inside(boxes, height, width) & self.chosen(batch)

    def boxes(self, count: int, height: int, width: int, rng: torch.Generator) -> Tensor:
        """Top, left, height and width in pixels before the edges cut, int64 [4, count]."""
        side = round(self.side * min(height, width))
        centres = torch.rand(2, count, generator=rng) * torch.tensor([[height], [width]])
        return torch.cat([centres.long() - side // 2, torch.full((2, count), side)])


class HideAndSeek(Masking):
    """Each cell of a grid hidden independently (Singh and Lee, "Hide-and-Seek", ICCV 2017).

    `grids`: cells per side, one of them drawn per image. `q`: probability that a cell is hidden.
    """

    revision = 1

    def __init__(
        self,
        *,
        p: Share = 1.0,
        grids: Annotated[Sequence[Count], Some()] = (4, 8, 16),
        q: Share = 0.5,
        value: float | Sequence[float] = (0.485, 0.456, 0.406),
        fill_space: str = "pixel",
    ) -> None:
        super().__init__(p=p, value=value, fill_space=fill_space)
        self.grids = tuple(grids)
        self.q = q

    def hidden(self, batch: Batch) -> Tensor:
        count, _, height, width = batch.images.shape
        most = max(self.grids)
        grid = torch.tensor(self.grids)[torch.randint(len(self.grids), (count, 1), generator=batch.rng)]
        cells = torch.rand(count, most * most, generator=batch.rng) < self.q
        row, column = (torch.arange(size) * grid // size for size in (height, width))
        cell = row.unsqueeze(2) * most + column.unsqueeze(1)
        hidden = cells.gather(1, cell.flatten(1)).view(count, 1, height, width)
        return hidden.to(batch.images.device) & self.chosen(batch)


class GridMask(Masking):
    """Squares on a grid of random period and offset (Chen et al., "GridMask Data Augmentation", 2020).

    `period`: (low, high) of the grid, as shares of the image's shorter side. `kept`: share r of a period's side between
    two squares, which hides (1 - r)^2 of the area. The authors' ramp of p over the epochs and their rotation (of no
    degrees in their settings) are left out.
    """

    revision = 1

    def __init__(
        self,
        *,
        p: Share = 1.0,
        period: Shares = (0.25, 0.5),
        kept: Share = 0.5,
        value: float | Sequence[float] = 0.0,
        fill_space: str = "normalized",
    ) -> None:
        super().__init__(p=p, value=value, fill_space=fill_space)
        if not 0 < period[0] <= period[1] <= 1:
            raise Refused(f"period: expected 0 < low <= high <= 1, got {list(period)}; try [0.25, 0.5]")
        self.period = tuple(period)
        self.kept = kept

    def hidden(self, batch: Batch) -> Tensor:
        count, _, height, width = batch.images.shape
        low, high = (max(2, round(share * min(height, width))) for share in self.period)
        dice = torch.rand(3, count, 1, generator=batch.rng)
        period = low + (dice[0] * (high - low + 1)).long()
        side = period - (self.kept * period).round().long()
        rows, columns = (
            (torch.arange(size) + (offset * period).long()) % period < side
            for size, offset in zip((height, width), dice[1:], strict=True)
        )
        hidden = rows.view(count, 1, height, 1) & columns.view(count, 1, 1, width)
        return hidden.to(batch.images.device) & self.chosen(batch)


class PixelDropout(Masking):
    """Every pixel hidden independently with probability `q`, in all channels at once: as much hidden as by a rectangle,
    but no part of the object (ours, a control)."""

    revision = 1

    def __init__(
        self, *, p: Share = 1.0, q: Share = 0.25, value: float | Sequence[float] = 0.0, fill_space: str = "normalized"
    ) -> None:
        super().__init__(p=p, value=value, fill_space=fill_space)
        self.q = q

    def hidden(self, batch: Batch) -> Tensor:
        count, _, height, width = batch.images.shape
        hidden = torch.rand(count, 1, height, width, generator=batch.rng) < self.q
        return hidden.to(batch.images.device) & self.chosen(batch)


class EntireErasing(Defense):
    """Whole images withheld instead of parts: every epoch ends after a share `rate` of its shuffled batches (the
    ablation "EE" in the first upload of MIDRE's code). Schedules still count epochs, so there are fewer updates."""

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"rate": 1.0}

    def __init__(self, *, rate: Share = 0.5) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise Refused(f"rate: expected a share of the batches in (0, 1], got {rate}; try 0.5")
        self.epoch_share = rate
