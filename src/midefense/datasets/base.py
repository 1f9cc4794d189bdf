"""What a dataset is, and where the attacker's public images come from."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.datasets.cache import Caches
from midefense.datasets.decoding import Decoding, decode
from midefense.datasets.files import Files
from midefense.datasets.splits import (
    Splits,
    copies,
    follow,
    join,
    refuse_few_classes,
    refuse_overlap,
    refuse_shared_identities,
    refuse_small_classes,
    refuse_unwritable,
)
from midefense.types import Images, Refused, refuse_unknown

logger = logging.getLogger(__name__)
DATASET_OPTION = re.compile(r"(?<![\w.])dataset\.(?=[a-z_]+)")


class Dataset(ABC):
    """A source of images. Constructing is cheap (arguments are checked); `load` does the work.

    A subclass sets `channels` (1 or 3) and `size` (images are size x size) and writes `read`. One whose pictures have
    binary attributes names them in `attribute_names` and writes `attributes`; its option `label` says what a target is
    taught, `identity` or `attributes`. Labels of the parts are identities either way.
    """

    revision = 1
    places: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    label = "identity"
    may_be_shown = False  # to people who rate pictures: of nobody, and under terms that let anybody look
    channels: int
    size: int

    def attributes(self, ids: Tensor) -> Tensor:
        """Which of `attribute_names` the pictures `ids` int64 [N] of this dataset show: uint8 [N, K] of 0 and 1, or
        `attributes.UNKNOWN` where nobody noted it."""
        raise Refused(
            f"{type(self).__name__}: expected a dataset with attributes, got one without; try synthetic_faces"
        )

    def tree(self) -> str:
        """The files it expects, one line per kind, as refusals and `midefense datasets check` show them."""
        return "  no files"

    @abstractmethod
    def read(self, cache: Caches) -> Splits:
        """The three parts, unchecked. The order of images must not depend on the file system. `cache` is the folder
        for pixels that are costly to make (None: make them anew)."""

    def load(self, cache: Caches = None) -> Splits:
        """The three parts, checked by `Splits.check` (`Refused` says what is wrong)."""
        splits = self.read(cache)
        splits.check()
        expected, got = (self.channels, self.size, self.size), tuple(splits.private_train.pixels.shape[1:])
        if got != expected:
            raise Refused(f"{type(self).__name__}: expected images [C, S, S] = {expected}, got {got}")
        return splits

    def load_public(self, cache: Caches = None) -> Images:
        """The public part alone; a dataset that can read it without the private one does."""
        return self.load(cache).public


class FileDataset(Dataset):
    """Pictures in files. A subclass sets `decoding` and lists the files of each part; split before they are decoded,
    the parts lie one after the other in one cached file."""

    decoding: Decoding
    stratified = True  # False: the private split is drawn over all images, and a class may have none to test on

    @property
    def channels(self) -> int:
        return self.decoding.channels

    @property
    def size(self) -> int:
        return self.decoding.size

    @abstractmethod
    def tree(self) -> str:
        """The layout of its folders."""

    @abstractmethod
    def listing(self) -> tuple[Files, Files, Files]:
        """The files of the private training, private test and public part; refused if the layout differs."""

    def public_listing(self) -> Files:
        """The files of the public part alone."""
        return self.listing()[2]

    def read(self, cache: Caches) -> Splits:
        """Parts are slices of one array, not copies."""
        parts = decode(self.checked_listing(), self.decoding, cache)
        for remark in copies(parts):
            logger.warning("%s", remark)
        return Splits(*parts, stratified=self.stratified)

    def checked_listing(self) -> tuple[Files, Files, Files]:
        """`listing`, refused for what can be seen without decoding: small classes and shared identities."""
        train, test, public = self.listing()
        for part in (train, public):
            refuse_unwritable(part.names)
        refuse_few_classes(train.names)
        refuse_small_classes(train, test, "private", tested=int(self.stratified))
        refuse_shared_identities([train, test], public)
        return train, test, public

    def load_public(self, cache: Caches = None) -> Images:
        """The public part alone; its files are read and no others."""
        (images,) = decode((self.public_listing(),), self.decoding, cache)
        for remark in copies([images]):
            logger.warning("%s", remark)
        return images


class Own:
    """The attacker owns the dataset's own public part."""

    revision = 1

    def public(self, splits: Splits, channels: int, size: int, cache: Caches = None) -> Images:
        """Public images uint8 [N, channels, size, size]."""
        return splits.public


class PublicFrom:
    """The attacker owns another dataset's images: `part` is its public part, or `all` of it."""

    revision = 1

    def __init__(self, *, dataset: Dataset, part: str = "public") -> None:
        if part not in ("public", "all"):
            raise refuse_unknown("public.part", part, ["public", "all"])
        self.dataset = dataset
        self.part = part

    def public(self, splits: Splits, channels: int, size: int, cache: Caches = None) -> Images:
        """Public images uint8 [N, channels, size, size] (bilinear, antialiased), beside the private ones of `splits`.

        Refused where grey meets colour, and where an identity or a picture is also private. Ids count within the
        other dataset.
        """
        if self.dataset.channels != channels:
            raise Refused(
                f"public images have {self.dataset.channels} channel(s), private images have {channels}; expected "
                f"the same. Try public images with {channels} channel(s); image_folder converts with "
                f"public.dataset.channels={channels} public.dataset.convert=true."
            )
        images = self._images(cache)
        images = replace(images, pixels=resize_pixels(images.pixels, size))
        refuse_overlap([splits.private_train, splits.private_test], images)
        return images

    def _images(self, cache: Caches) -> Images:
        """A dataset's refusals name its options as those of `dataset`; here it stands under `public.dataset`."""
        try:
            return self._part(cache)
        except Refused as refusal:
            raise Refused(DATASET_OPTION.sub("public.dataset.", str(refusal))) from refusal

    def _part(self, cache: Caches) -> Images:
        if self.part == "public":
            return self.dataset.load_public(cache)
        whole = self.dataset.load(cache)
        return follow(join(whole.private_train, whole.private_test), whole.public)


def resize(images: Tensor, size: int) -> Tensor:
    """Images [N, C, H, W] in any range, bilinear and antialiased, as float64 [N, C, size, size].

    Float64, so that pixels rounded afterwards are the same on every machine.
    """
    return F.interpolate(images.double(), size=(size, size), mode="bilinear", antialias=True)


def resize_pixels(pixels: Tensor, size: int, rows: int = 512) -> Tensor:
    """Pixels uint8 [N, C, H, W] as uint8 [N, C, size, size], `rows` images at a time to bound the memory."""
    if pixels.shape[2:] == (size, size):
        return pixels
    return torch.cat([resize(chunk, size).round().clamp(0, 255).to(torch.uint8) for chunk in pixels.split(rows)])


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [0, 1] as stored pixels, rounded. NaN, infinities and other ranges are refused."""
    broken = int((~torch.isfinite(images)).sum())
    if broken:
        raise Refused(f"images hold {broken} NaN or infinite values; expected finite values in [0, 1]")
    low, high = images.aminmax()
    if low < 0 or high > 1:
        raise Refused(f"images range from {low:.4g} to {high:.4g}; expected [0, 1]. Try dividing by the largest value.")
    return (images * 255).round().to(torch.uint8)


def require_private(private: int | None, classes: int) -> None:
    """Refuse more private classes than there are, or fewer than one; None is all of them."""
    if private is not None and not 1 <= private <= classes:
        raise Refused(f"dataset.private: expected 1 to {classes} private classes, got {private}; try null for all")
