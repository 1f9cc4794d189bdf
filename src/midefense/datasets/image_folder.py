"""Bring your own images: a private and a public folder, each with one folder per class."""

from __future__ import annotations

from pathlib import Path

import torch

from midefense.datasets.base import Dataset, require_positive, require_share
from midefense.datasets.files import SUFFIXES, entries, first_difference, read_images, require_folder, require_framing
from midefense.datasets.splits import Splits, cut
from midefense.types import Images, Refused

TREE = f"  ROOT/<class>/<image>    one folder per class, images directly inside it ({' '.join(SUFFIXES)})"


class ImageFolder(Dataset):
    """Classes are named after their folders and numbered in natural order (2 before 10).

    Without `private_test_root`, `test_share` of each private class is cut off as the test set; with it, that folder
    holds the test images of the same classes. `convert` turns grey and colour images into `channels`; without it
    the first image that differs is refused.
    """

    places = ("private_root", "public_root", "private_test_root")

    def __init__(
        self,
        *,
        private_root: str | None = None,
        public_root: str | None = None,
        private_test_root: str | None = None,
        channels: int = 3,
        size: int = 64,
        framing: str = "centre_crop",
        convert: bool = False,
        test_share: float = 0.2,
        split_seed: int = 42,
    ) -> None:
        if channels not in (1, 3):
            raise Refused(f"dataset.channels: expected 1 (grey) or 3 (RGB), got {channels}")
        require_positive(size=size)
        require_share(test_share)
        require_framing(framing)
        self.private_root = private_root
        self.public_root = public_root
        self.private_test_root = private_test_root
        self.channels = channels
        self.size = size
        self.framing = framing
        self.convert = convert
        self.test_share = test_share
        self.split_seed = split_seed

    def read(self) -> Splits:
        """Private images first, then the separate test images if any, then the public ones; ids count them."""
        train, test = self._read_private()
        return Splits(train, test, self._read("public_root", first_id=len(train) + len(test)))

    def load_public(self) -> Images:
        """The public folder alone: no private folder is needed. Ids count from 0."""
        return self._read("public_root", first_id=0)

    def _read_private(self) -> tuple[Images, Images]:
        images = self._read("private_root", first_id=0)
        if self.private_test_root is None:
            return cut(images, self.test_share, self.split_seed)
        test = self._read("private_test_root", first_id=len(images))
        difference = first_difference(images.names, test.names)
        if difference:
            raise Refused(
                f"dataset.private_test_root: expected the class folders of dataset.private_root\n{TREE}\n"
                f"first difference: {difference}"
            )
        return images, test

    def _read(self, argument: str, first_id: int) -> Images:
        root = require_folder(getattr(self, argument), argument, TREE)
        folders = _class_folders(root)
        files = [_image_files(folder) for folder in folders]
        paths = [path for group in files for path in group]
        counts = torch.tensor([len(group) for group in files])
        return Images(
            pixels=read_images(
                paths, channels=self.channels, size=self.size, framing=self.framing, convert=self.convert
            ),
            labels=torch.arange(len(folders)).repeat_interleave(counts),
            ids=torch.arange(first_id, first_id + len(paths)),
            names=[folder.name for folder in folders],
        )


def _class_folders(root: Path) -> list[Path]:
    """Folders of `root`; other files beside them (a README, a table) are left alone, but no images."""
    inside = entries(root)
    stray = [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]
    folders = [path for path in inside if path.is_dir()]
    if stray or not folders:
        found = f"image {stray[0].name}" if stray else "no folder"
        raise Refused(f"expected\n{TREE}\nfirst difference in {root}: expected a class folder, got {found}")
    return folders


def _image_files(folder: Path) -> list[Path]:
    paths = entries(folder)
    if not paths:
        raise Refused(f"class folder {folder} is empty; expected images. Try adding images or removing the folder.")
    for path in paths:
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            kind = "folder" if path.is_dir() else "file"
            raise Refused(f"expected\n{TREE}\nfirst difference in {folder}: expected an image, got {kind} {path.name}")
    return paths
