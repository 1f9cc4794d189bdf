"""Bring your own images: a private folder and, if there is one, a public folder, each with one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from midefense.datasets.base import FileDataset
from midefense.datasets.decoding import Decoding
from midefense.datasets.files import SUFFIXES, Files, entries, first_difference, require_folder
from midefense.datasets.splits import cut
from midefense.ranges import InnerShare, Seed, Side
from midefense.types import Refused

TREE = f"  ROOT/<class>/<image>    one folder per class, images directly inside it ({' '.join(SUFFIXES)})"


class ImageFolder(FileDataset):
    """Classes are named after their folders and numbered in natural order (2 before 10).

    Without `public_root` nothing is public. Without `private_test_root`, `test_share` of each private class is cut off
    as the test set; with it, that folder holds the test images of the same classes. `channels`, `size`, `framing`,
    `crop`, `convert`, `orientation` and `alpha` are those of `Decoding`: without `convert` the first image that is not
    as `channels` says is refused.
    """

    places = ("private_root", "public_root", "private_test_root")
    later = {"orientation": "applied", "alpha": "refused"}  # where they bite, the hashes of the images differ

    def __init__(
        self,
        *,
        private_root: str | None = None,
        public_root: str | None = None,
        private_test_root: str | None = None,
        channels: int = 3,
        size: Side = 64,
        framing: str = "centre_crop",
        crop: Sequence[float] | None = None,
        convert: bool = False,
        orientation: str = "applied",
        alpha: str = "refused",
        test_share: InnerShare = 0.2,
        split_seed: Seed = 42,
    ) -> None:
        self.decoding = Decoding(
            channels=channels,
            size=size,
            framing=framing,
            crop=crop,
            convert=convert,
            orientation=orientation,
            alpha=alpha,
        )
        self.private_root = private_root
        self.public_root = public_root
        self.private_test_root = private_test_root
        self.test_share = test_share
        self.split_seed = split_seed

    def tree(self) -> str:
        """Of each of the three roots."""
        return TREE

    def listing(self) -> tuple[Files, Files, Files]:
        """Private images first, then the separate test images if any, then the public ones; ids count them."""
        train, test = self._private_listing()
        if not self.public_root:
            return train, test, Files.grouped([], [])
        return train, test, self._list("public_root", first_id=len(train) + len(test))

    def public_listing(self) -> Files:
        """The public folder alone: no private folder is needed. Ids count from 0."""
        return self._list("public_root", first_id=0)

    def _private_listing(self) -> tuple[Files, Files]:
        files = self._list("private_root", first_id=0)
        if self.private_test_root is None:
            return cut(files, self.test_share, self.split_seed)
        test = self._list("private_test_root", first_id=len(files))
        difference = first_difference(files.names, test.names)
        if difference:
            raise Refused(
                f"dataset.private_test_root: expected the class folders of dataset.private_root\n{self.tree()}\n"
                f"first difference: {difference}"
            )
        return files, test

    def _list(self, argument: str, first_id: int) -> Files:
        root = require_folder(getattr(self, argument), argument, self.tree())
        return list_folders(class_folders(root), first_id)


def list_folders(folders: Sequence[Path], first_id: int = 0) -> Files:
    """The pictures of class folders, one label per folder, in natural order; ids count on from `first_id`."""
    return Files.grouped([_image_files(folder) for folder in folders], [folder.name for folder in folders], first_id)


def class_folders(root: Path) -> list[Path]:
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
