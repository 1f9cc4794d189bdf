"""CelebA (Liu, Luo, Wang and Tang, ICCV 2015) by identity, under the two protocols of model inversion papers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from midefense.datasets.attributes import require_label
from midefense.datasets.celeba_base import CelebaSet
from midefense.datasets.celeba_files import IDENTITIES, Pictures, read_list
from midefense.datasets.decoding import Decoding
from midefense.datasets.files import Files, require_folder
from midefense.datasets.splits import legacy_shuffle_split, stratify
from midefense.ranges import Classes, Count, InnerShare, Seed, Side, Whole
from midefense.types import Refused

LISTS = "  LISTS/trainset.txt  LISTS/testset.txt  LISTS/ganset.txt"


class Celeba(CelebaSet):
    """The 64x64 protocol of GMI, KED-MI, LOMMA and PLG-MI. Its lists are published, its recipe is not; this one gives
    the same people and counts: private are the first `identities` identity numbers with at least `min_images` pictures,
    `test_share` of each (rounded up) is tested on, and public are `public_images` pictures of people with a number
    above `public_above` and fewer than `min_images` pictures.

    The draws are pinned but not those of the lists, which `lists` takes instead: a folder with trainset.txt,
    testset.txt and ganset.txt.
    """

    revision = 1
    places = ("root", "public_root", "lists")

    def __init__(
        self,
        *,
        root: str = "data/celeba",
        public_root: str | None = None,
        lists: str | None = None,
        images: str = "img_align_celeba",
        partial: bool = False,
        identities: Classes = 1000,
        min_images: Count = 30,
        test_share: InnerShare = 0.1,
        public_above: Whole = 1000,
        public_images: Whole | None = 30000,
        split_seed: Seed = 42,
        crop: Sequence[float] | None = (35, 55, 143, 163, 178, 218),
        size: Side = 64,
        label: str = "identity",
    ) -> None:
        require_label(label)
        if partial and lists:
            raise Refused("dataset.lists name pictures of the whole set: expected dataset.partial=false, got true")
        self.decoding = Decoding(channels=3, size=size, framing="squash", crop=crop)
        self.root = root
        self.public_root = public_root
        self.lists = lists
        self.images = images
        self.partial = partial
        self.identities = identities
        self.min_images = min_images
        self.test_share = test_share
        self.public_above = public_above
        self.public_images = public_images
        self.split_seed = split_seed
        self.label = label

    def private(self, pictures: Pictures) -> np.ndarray:
        """Ascending numbers."""
        counts = np.bincount(pictures.identities)
        return np.flatnonzero(counts >= self.min_images)[: self.identities]

    def split(self, own: Files) -> tuple[Files, Files]:
        """The same share of every identity."""
        train, test = stratify(own.labels, self.test_share, self.split_seed, rounded=_round_up)
        return own.take(train), own.take(test)

    def pool(self, pictures: Pictures) -> np.ndarray:
        """People who are photographed too seldom to be private."""
        counts = np.bincount(pictures.identities)
        return (pictures.identities > self.public_above) & (counts[pictures.identities] < self.min_images)

    def listing(self) -> tuple[Files, Files, Files]:
        """Pictures in the order of the identity file, or of the lists."""
        if not self.lists:
            return super().listing()
        pictures = self.pictures("root")
        train, test = (self._listed(pictures, part) for part in ("trainset", "testset"))
        return train, test, self.public_listing()

    def public_listing(self) -> Files:
        """The public pictures; the private ones need not be there."""
        if not self.lists:
            return super().public_listing()
        return self._listed(self.pictures("public_root" if self.public_root else "root"), "ganset")

    def _wanted(self) -> str:
        return f"dataset.min_images={self.min_images} or more pictures of each"

    def _listed(self, pictures: Pictures, part: str) -> Files:
        """The pictures of a list; labels are the list's, or for public pictures count their identities."""
        stems, listed = read_list(require_folder(self.lists, "lists", LISTS), part)
        row_of = {stem: row for row, stem in enumerate(pictures.stems.tolist())}
        unknown = [stem for stem in stems if stem not in row_of]
        if unknown:
            raise Refused(
                f"{pictures.folder.parent / IDENTITIES}: expected all pictures of {part}.txt, got no {unknown[0]}.jpg. "
                "Try the published file."
            )
        rows = np.array([row_of[stem] for stem in stems], dtype=np.int64)
        found, labels = np.unique(pictures.identities[rows], return_inverse=True)
        if listed and listed != labels.tolist():  # in the published lists too, labels are ranks of identity numbers
            raise Refused(
                f"{pictures.folder.parent / IDENTITIES}: expected one identity per label of {part}.txt, in their "
                "order, got others. Try the published file."
            )
        return pictures.files(rows, labels, found.tolist(), self.tree())


class CelebaPpa(CelebaSet):
    """The 224x224 protocol of Plug & Play Attacks (Struppek et al., ICML 2022): private are the `identities` people
    with most pictures (ties by first appearance), the label is that rank, and all their pictures are shuffled and cut,
    so that an identity may have none to test on. Everyone else is public, `public_images` pictures of them.

    The paper crops the pictures anew (HD-CelebA-Cropper: 224x224, face factor 0.65, bicubic, .png); of the published
    ones set `crop`.
    """

    revision = 1
    stratified = False

    def __init__(
        self,
        *,
        root: str = "data/celeba",
        public_root: str | None = None,
        images: str = "img_align_celeba",
        partial: bool = False,
        identities: Classes = 1000,
        train_share: InnerShare = 0.9,
        public_images: Whole | None = 10000,
        split_seed: Seed = 42,
        crop: Sequence[float] | None = None,
        framing: str = "centre_crop",
        size: Side = 224,
        label: str = "identity",
    ) -> None:
        require_label(label)
        self.decoding = Decoding(channels=3, size=size, framing=framing, crop=crop)
        self.root = root
        self.public_root = public_root
        self.images = images
        self.partial = partial
        self.identities = identities
        self.train_share = train_share
        self.public_images = public_images
        self.split_seed = split_seed
        self.label = label

    def private(self, pictures: Pictures) -> np.ndarray:
        """The most photographed first."""
        found, first, counts = np.unique(pictures.identities, return_index=True, return_counts=True)
        return found[np.lexsort((first, -counts))][: self.identities]

    def split(self, own: Files) -> tuple[Files, Files]:
        """In shuffled order, as the paper's code leaves them."""
        train, test = legacy_shuffle_split(len(own), self.train_share, self.split_seed)
        return own.take(train), own.take(test)

    def pool(self, pictures: Pictures) -> np.ndarray:
        """Everyone."""
        return np.ones(len(pictures.stems), dtype=bool)


def _round_up(count: float) -> int:
    return math.ceil(count - 1e-9)  # 0.1 x 110 is a little more than 11
