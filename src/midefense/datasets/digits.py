"""Real handwriting that needs no download: the 8x8 digits bundled with scikit-learn (1,797 images, ten classes).

The test half of UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from sklearn.datasets import load_digits

from midefense.compute import require_memory
from midefense.datasets.base import Dataset, resize, to_uint8
from midefense.datasets.cache import Caches
from midefense.datasets.splits import Splits, fewer, split_classes
from midefense.ranges import Count, InnerShare, Seed, Side, Whole
from midefense.types import Images, Refused

COUNT = 1797  # images
ENLARGED = 16  # bytes per pixel while images are enlarged, in float64


class Digits(Dataset):
    """Grey digits, enlarged to size x size. `private_classes` are private, in that order; the others are public.
    `images_per_class` of the private training images are used (None: all); the others are left out."""

    may_be_shown = True
    channels = 1
    later: ClassVar[dict[str, object]] = {"images_per_class": None}

    def __init__(
        self,
        *,
        private_classes: Sequence[Whole] = (0, 1, 2, 3, 4),
        size: Side = 32,
        test_share: InnerShare = 0.2,
        split_seed: Seed = 42,
        images_per_class: Count | None = None,
    ) -> None:
        self.private_classes = list(private_classes)
        distinct = set(self.private_classes)
        if not (2 <= len(distinct) == len(self.private_classes) <= 9 and distinct <= set(range(10))):
            raise Refused(
                f"dataset.private_classes: expected 2 to 9 different digits of 0 to 9, got {self.private_classes}; "
                "the others are public. Try [0,1,2,3,4]."
            )
        require_memory(COUNT * size**2 * ENLARGED, f"dataset.size={size} for {COUNT:,} images")
        self.size = size
        self.test_share = test_share
        self.split_seed = split_seed
        self.images_per_class = images_per_class

    def read(self, cache: Caches) -> Splits:
        """Rows of scikit-learn's table, in its order; ids are row numbers."""
        table = load_digits()
        shares = torch.from_numpy(table.images)[:, None] / 16  # ink counts 0..16 per cell
        images = Images(
            pixels=to_uint8(resize(shares, self.size)),
            labels=torch.from_numpy(table.target).to(torch.int64),
            ids=torch.arange(len(table.target)),
            names=[str(digit) for digit in range(10)],
        )
        train, test, public = split_classes(images, self.private_classes, self.test_share, self.split_seed)
        return Splits(fewer(train, self.images_per_class, self.split_seed), test, public)
