"""Random erasing as a defense (MIDRE; Tran et al., "Random Erasing vs. Model Inversion", TMLR 2025).

Every training image has one rectangle overwritten with a constant colour, drawn anew for every image and epoch, so
that the classifier never sees a whole object and has less of it to give away. Where the rectangles lie is what the
authors' ablations vary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.defenses.masking import Masking
from midefense.ranges import Ratios, Share, Shares
from midefense.rectangles import chosen, extent, inside, places_of, require_boxes, roll, sizes_of
from midefense.types import Batch, Origin, Refused, refuse_unknown

LOCATIONS = ("random", "center", "torus", "boundary", "per_image", "per_image_boundary")
FIXED = ("per_image", "per_image_boundary")
AVOIDED = ("contained", "strict")


class RandomErasing(Masking):
    """Erase one rectangle per training image, on the batch's device, at the resolution of the stored images.

    `p`: share of images erased. `scale`: (low, high) of the erased share of the area. `ratio`: (low, high) of height
    to width, log-uniform. `value`: the fill, one value or one per channel; grey images get the mean of several.
    `fill_space`: `normalized`, the value is what the network sees after normalising (as the authors' code does), or
    `pixel`, it is a colour in [0, 1]. `location`: `random`, which hides the middle most and the corners hardly ever;
    `center`; `torus`, random but wrapped around the edges, so that every pixel is hidden equally often; `boundary`,
    random but off the central half; `per_image`, one place per image id for the whole training, hidden before the
    recipe's augmentation; `per_image_boundary`, both. `avoid_center` is what off the central half means: not wholly
    `contained` in it (the authors' code), or `strict`, not touching it. Where no place is allowed, the image stays
    whole.
    """

    revision = 2
    salt: Tensor

    def __init__(
        self,
        *,
        p: Share = 1.0,
        scale: Shares = (0.1, 0.4),
        ratio: Ratios = (1.0, 1.0),
        value: float | Sequence[float] = (0.485, 0.456, 0.406),
        fill_space: str = "normalized",
        location: str = "random",
        avoid_center: str = "contained",
    ) -> None:
        super().__init__(p=p, value=value, fill_space=fill_space)
        require_boxes(p, scale, ratio)
        if location not in LOCATIONS:
            raise refuse_unknown("location", location, LOCATIONS)
        if avoid_center not in AVOIDED:
            raise refuse_unknown("avoid_center", avoid_center, AVOIDED)
        squarest = min(max(1.0, ratio[0]), ratio[1])
        if avoid_center == "strict" and scale[1] * min(squarest, 1 / squarest) > 1 / 16:
            raise Refused(
                f"avoid_center: strict leaves a quarter of the side, expected scale up to 0.0625 (at ratio 1), got "
                f"{list(scale)}; try [0.02, 0.0625]"
            )
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.location = location
        self.avoid_center = avoid_center
        self.register_buffer("salt", torch.zeros((), dtype=torch.int64))

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Express the fill as a pixel value, and draw the key of the fixed places."""
        if self.location in FIXED:
            self.salt = torch.randint(2**62, ())
        return super().rebuild(model, origin)

    def before_augment(self, batch: Batch) -> Batch:
        return self.masked(batch) if self.location in FIXED else batch

    def transform(self, batch: Batch) -> Batch:
        return batch if self.location in FIXED else self.masked(batch)

    def hidden(self, batch: Batch) -> Tensor:
        return inside(self.boxes(batch), *batch.images.shape[-2:], wrap=self.location == "torus")

    def boxes(self, batch: Batch) -> Tensor:
        """Top, left, height and width in pixels, int64 [4, B]; a box of no pixels leaves its image whole."""
        count, _, height, width = batch.images.shape
        dice, device = roll(count, batch.rng), batch.images.device
        sizes = sizes_of(dice, height, width, self.scale, self.ratio).to(device)
        places = places_of(dice).to(device)
        if self.location in FIXED:
            # the counter of a place is 2 id + axis: pinned, since it decides the pixels of stored targets
            places = torch.stack([seeds.hashed_uniform(self.salt, 2 * batch.ids + axis - 1) for axis in (0, 1)])
        corners, placed = self._corners(places, sizes, extent(height, width, sizes))
        return torch.cat([corners, sizes * (placed & chosen(dice, self.p).to(device))])

    def _corners(self, places: Tensor, sizes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Tops and lefts [2, B] from places [2, B] in [0, 1) of an `image` so large, and whether there was one."""
        room = image - sizes
        if self.location in ("boundary", "per_image_boundary"):
            start, stop = image // 4, image - image // 4  # the central half
            if self.avoid_center == "strict":
                return around(places, room + 1, (start - sizes + 1).clamp(min=0), torch.minimum(stop, room + 1))
            return around(places, room + 1, start, stop - sizes + 1)
        always = torch.ones_like(places[0], dtype=torch.bool)
        if self.location == "center":
            return room // 2, always
        choices = image if self.location == "torus" else room + 1
        return (places * choices).long(), always


def around(places: Tensor, choices: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Corners [2, B] that are equally likely wherever they are not both within [start, stop), and whether any is [B].

    `places` [2, B] in [0, 1) pick the row and the column among `choices` of each: first the rows off the block, where
    every column will do, then those of the block with the columns beside it.
    """
    block = (stop - start).clamp(min=0)
    (rows, columns), (block_rows, block_columns) = choices, block
    free, beside = (rows - block_rows) * columns, columns - block_columns
    drawn = places[0] * (free + block_rows * beside)
    off = drawn < free
    row = torch.where(off, drawn / columns, (drawn - free) / beside.clamp(min=1)).long()
    column = (places[1] * torch.where(off, columns, beside)).long()
    row = torch.where(off, skip(row, start[0], block_rows), start[0] + row)
    column = torch.where(off, column, skip(column, start[1], block_columns))
    return torch.stack([row, column]), free + block_rows * beside > 0


def skip(index: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """The `index`-th number from 0 that is not one of the `count` from `start` on."""
    return index + count * (index >= start)
