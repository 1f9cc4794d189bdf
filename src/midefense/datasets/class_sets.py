"""Ten classes with an official training and an official test part, stored as tables of pixels: MNIST and its like."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from midefense.datasets.base import Dataset, resize_pixels
from midefense.datasets.cache import Caches, cached_pixels
from midefense.datasets.files import require_folder, stamp
from midefense.datasets.splits import Part, Splits, choose_classes, fewer, hashes_of
from midefense.foreign import path_of
from midefense.ranges import Count, Side, Whole
from midefense.types import Images, Refused

ROWS = 1024  # resized at a time, to bound the memory
SUBSET_SEED = 42


@dataclass(frozen=True)
class Official:
    """All images as stored, labels by `class_names`: the first `trained` are the official training images, the others
    the official test images. `paths`: the files they were read from."""

    images: Images
    trained: int
    paths: Sequence[Path]


class ClassSet(Dataset):
    """`private_classes` are private, in that order, split as officially: trained on their official training images,
    tested on their official test images. Both parts of the other classes are public, but for pictures that are also
    private; ten private classes leave nothing public.

    `root` is the folder torchvision takes; `download` lets torchvision fetch what is missing there. Images are resized
    to size x size (bilinear, antialiased); ids count training images, then test images. `images_per_class` of the
    private training images are used, drawn alike each time (None: all); the others are left out.

    A subclass sets `channels` and `class_names` and writes `tree`, `missing`, `official` and `fetch`.
    """

    places = ("root",)
    unhashed = ("download",)
    later: ClassVar[dict[str, object]] = {"images_per_class": None}
    class_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        root: str = "data",
        private_classes: Sequence[Whole] = (0, 1, 2, 3, 4),
        size: Side = 32,
        download: bool = False,
        images_per_class: Count | None = None,
    ) -> None:
        self.private_classes = list(private_classes)
        distinct = set(self.private_classes)
        if not (2 <= len(distinct) == len(self.private_classes) and distinct <= set(range(10))):
            raise Refused(
                f"dataset.private_classes: expected 2 to 10 different classes of 0 to 9, got {self.private_classes}; "
                "the others are public. Try [0,1,2,3,4]."
            )
        self.root = root
        self.size = size
        self.download = download
        self.images_per_class = images_per_class

    @abstractmethod
    def tree(self) -> str:
        """The expected layout, to be shown."""

    @abstractmethod
    def missing(self, root: Path) -> str:
        """The first difference to `tree` among the names in `root`, in words; empty if there is none."""

    @abstractmethod
    def official(self, root: Path) -> Official:
        """The images of a complete layout; refused if a file is broken."""

    @abstractmethod
    def fetch(self, root: Path) -> None:
        """Download into `root`, by torchvision."""

    def read(self, cache: Caches) -> Splits:
        """Parts are slices of one array, not copies."""
        official = self.official(self.located())
        self._refuse_odd_labels(official)
        train, test, public = self.split(official.images, official.trained)
        parts = train, test, _without(public, train, test)

        def fill(array: np.ndarray, first: int) -> Iterator[int]:
            done = 0
            for part in parts:
                for chunk in part.pixels.split(ROWS) if len(part) else ():
                    if done + len(chunk) > first:
                        array[done : done + len(chunk)] = resize_pixels(chunk, self.size).numpy()
                    done += len(chunk)
                    yield done

        lengths = [len(part) for part in parts]
        key = {
            "what": f"{type(self).__name__} {self.revision}",
            "private": self.private_classes,
            "files": [stamp(path) for path in official.paths],
            **({} if self.images_per_class is None else {"images_per_class": self.images_per_class}),
        }
        pixels, hashes = cached_pixels((sum(lengths), self.channels, self.size, self.size), fill, key, cache)
        return Splits(
            *(
                Images(own, part.labels, part.ids, part.names, (own, own_hashes))
                for part, own, own_hashes in zip(parts, pixels.split(lengths), hashes.split(lengths), strict=True)
            )
        )

    def split(self, whole: Part, trained: int) -> tuple[Part, Part, Part]:
        """Private training (as many as are used of each class), private test and public part; ids of `whole` are its
        rows."""
        public = [label for label in range(10) if label not in self.private_classes]
        private = choose_classes(whole, self.private_classes)
        first = private.ids < trained
        train = fewer(private.take(first), self.images_per_class, SUBSET_SEED)
        return train, private.take(~first), choose_classes(whole, public)

    def located(self) -> Path:
        """The root, downloaded into if wanted; refused unless its layout is complete."""
        if self.download and self.root:
            self._download(path_of(self.root).absolute())
        root = require_folder(self.root, "root", self.tree())
        if difference := self.missing(root):
            raise self.refuse(root, difference, "dataset.root=DIR, or dataset.download=true")
        return root

    def refuse(self, where: Path, difference: str, try_: str = "unpacking the set again") -> Refused:
        """The refusal of a layout or a file that is not as expected."""
        return Refused(f"expected\n{self.tree()}\nfirst difference in {where}: {difference}. Try {try_}.")

    def _refuse_odd_labels(self, official: Official) -> None:
        labels, where = official.images.labels, official.paths[0].parent
        if not 0 < official.trained < len(labels):
            counts = f"{official.trained} and {len(labels) - official.trained}"
            raise self.refuse(where, f"expected images to train on and to test on, got {counts}")
        if labels.min() < 0 or labels.max() > 9:
            raise self.refuse(where, f"expected labels 0 to 9, got {int(labels.min())} to {int(labels.max())}")

    def _download(self, root: Path) -> None:
        if not root.is_dir() or self.missing(root):
            try:
                self.fetch(root)
            except (OSError, RuntimeError) as error:  # no network, a full disk; torchvision's own
                raise Refused(
                    f"{type(self).__name__} could not be downloaded into {root} ({error}); expected there\n"
                    f"{self.tree()}\nTry again, or put the files there by hand."
                ) from error


def _without(public: Images, *private: Images) -> Images:
    """The public images that are not, pixel by pixel, among the private ones: some sets repeat a picture under two
    labels, and their files cannot be corrected."""
    if not len(public):
        return public
    known = {row.tobytes() for part in private for row in hashes_of(part).numpy()}
    kept = [row.tobytes() not in known for row in hashes_of(public).numpy()]
    return public.take(torch.tensor(kept, dtype=torch.bool))
