"""What the two CelebA protocols share: the layout, identities, attributes, and public pictures of other people."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from torch import Tensor

from midefense.datasets.base import FileDataset
from midefense.datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IDENTITIES,
    Pictures,
    read_attributes,
    read_pictures,
)
from midefense.datasets.files import Files, require_folder, require_inside
from midefense.types import Refused


class CelebaSet(FileDataset):
    """The published layout `root/img_align_celeba/000001.jpg` ... and `root/identity_CelebA.txt`; a picture may also be
    a .png. Names of classes are identity numbers, ids the numbers of pictures.

    `images` is the folder of pictures. `partial`: whether a part of the set will do; then only pictures that are there
    count. `public_root`: another root of that layout for the public pictures, null: the same. `public_images` of the
    public pictures are drawn (null: all of them).

    `label`: what a target is taught, `identity` or `attributes` (of `root/list_attr_celeba.txt`).

    A subclass says which identities are private, how they are split, and which pictures are public.
    """

    places = ("root", "public_root")
    later: ClassVar[dict[str, object]] = {"label": "identity"}
    attribute_names = ATTRIBUTES
    root: str | None
    public_root: str | None
    images: str
    partial: bool
    identities: int
    public_images: int | None
    split_seed: int

    def tree(self) -> str:
        """Pictures, and whose they are."""
        return f"  ROOT/{self.images}/000001.jpg ... 202599.jpg\n  ROOT/{IDENTITIES}    lines like: 000001.jpg 2880"

    def attributes(self, ids: Tensor) -> Tensor:
        """The 40 binary attributes (`attribute_names`) of pictures `ids` int64 [N], uint8 [N, 40] of 0 and 1, from
        `root/list_attr_celeba.txt`."""
        root = require_folder(self.root, "root", self.tree())
        return read_attributes(require_inside(root, ATTRIBUTE_FILE, f"  ROOT/{ATTRIBUTE_FILE}"), ids)

    @abstractmethod
    def private(self, pictures: Pictures) -> np.ndarray:
        """The private identities by label, at most `identities` of them."""

    @abstractmethod
    def split(self, own: Files) -> tuple[Files, Files]:
        """The private pictures to train on and to test on."""

    @abstractmethod
    def pool(self, pictures: Pictures) -> np.ndarray:
        """Which pictures may be public as far as they are not private, bool [N]."""

    def listing(self) -> tuple[Files, Files, Files]:
        """Pictures in the order of the identity file, as `split` leaves it."""
        pictures = self.pictures("root")
        private = self.private(pictures)
        if len(private) < self.identities:
            raise Refused(
                f"{pictures.folder.parent}: expected {self.identities} private identities ({self._wanted()}), got "
                f"{len(private)} among {len(pictures.stems)} pictures. Try completing the set, or fewer "
                "dataset.identities."
            )
        rows, labels = _rows_of(pictures, private)
        return *self.split(pictures.files(rows, labels, private, self.tree())), self._public(pictures, private)

    def public_listing(self) -> Files:
        """The public pictures; the private ones need not be there."""
        pictures = self.pictures("root")
        return self._public(pictures, self.private(pictures))

    def pictures(self, argument: str) -> Pictures:
        """What lies under the root given by `argument`."""
        tree = self.tree()
        root = require_folder(getattr(self, argument), argument, tree)
        for name in (self.images, IDENTITIES):
            require_inside(root, name, tree, argument=argument)
        return read_pictures(root, self.images, self.partial, tree)

    def _wanted(self) -> str:
        return f"dataset.identities={self.identities}"

    def _public(self, pictures: Pictures, private: np.ndarray) -> Files:
        if self.public_root:
            pictures = self.pictures("public_root")
        rows = np.flatnonzero(self.pool(pictures) & ~np.isin(pictures.identities, private))
        if self.public_images is not None:
            if len(rows) < self.public_images:
                raise Refused(
                    f"{pictures.folder}: expected at least {self.public_images} public pictures, got {len(rows)}. Try "
                    "dataset.public_images=null, which takes them all."
                )
            drawn = np.random.RandomState(self.split_seed).permutation(rows)  # its stream is frozen across versions
            rows = np.sort(drawn[: self.public_images])
        identities, labels = np.unique(pictures.identities[rows], return_inverse=True)
        return pictures.files(rows, labels, identities, self.tree())


def _rows_of(pictures: Pictures, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pictures of `identities`, ascending, and their labels (places in `identities`)."""
    place = np.full(pictures.identities.max(initial=0) + 1, -1)
    place[identities] = np.arange(len(identities))
    labels = place[pictures.identities]
    rows = np.flatnonzero(labels >= 0)
    return rows, labels[rows]
