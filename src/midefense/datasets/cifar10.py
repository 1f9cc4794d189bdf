"""CIFAR-10 (Krizhevsky, 2009): RGB, 32x32, as published in binary or for Python, or as folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.datasets.utils import check_integrity

from midefense.datasets.cache import Caches
from midefense.datasets.class_sets import ClassSet, Official
from midefense.datasets.decoding import Decoding, decode
from midefense.datasets.files import Files, entries, first_difference
from midefense.datasets.image_folder import list_folders
from midefense.datasets.splits import Splits
from midefense.types import Images

BINARY = "cifar-10-batches-bin"
PYTHON = "cifar-10-batches-py"
PARTS = ("train", "test")
BINARY_NAMES = (*(f"data_batch_{batch}.bin" for batch in range(1, 6)), "test_batch.bin")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the label, then red, green and blue rows


class Cifar10(ClassSet):
    """One of three layouts, looked for in this order: class folders `root/train/<class>/*` and `root/test/<class>/*`;
    the binary version `root/cifar-10-batches-bin`; the Python version `root/cifar-10-batches-py`, which holds pickles
    and is therefore read (by torchvision) only if every file has its published MD5."""

    revision = 1
    channels = 3
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def tree(self) -> str:
        """Three choices."""
        return (
            "  ROOT/train/<class>/<image> and ROOT/test/<class>/<image>, classes airplane ... truck\n"
            f"  or ROOT/{BINARY}/data_batch_1.bin ... data_batch_5.bin and test_batch.bin\n"
            f"  or ROOT/{PYTHON}/data_batch_1 ... data_batch_5, test_batch and batches.meta"
        )

    def missing(self, root: Path) -> str:
        """The first difference to the layout that is there at least in part."""
        if self._is_folders(root):
            for part in PARTS:
                folders = entries(root / part) if (root / part).is_dir() else []
                if difference := first_difference(self.class_names, (path.name for path in folders)):
                    return f"in {part}, {difference}"
            return ""
        folder = BINARY if (root / BINARY).is_dir() else PYTHON
        if not (root / folder).is_dir():
            return "expected one of these layouts, got none"
        names = BINARY_NAMES if folder == BINARY else tuple(_published())
        absent = [name for name in names if not (root / folder / name).is_file()]
        return f"expected {folder}/{absent[0]}, got no such file" if absent else ""

    def read(self, cache: Caches) -> Splits:
        """Class folders hold pictures that are decoded; the other layouts hold pixels."""
        root = self.located()
        if not self._is_folders(root):
            return super().read(cache)
        train, test = (list_folders([root / part / name for name in self.class_names]) for part in PARTS)
        whole = Files(
            paths=[*train.paths, *test.paths],
            labels=torch.cat([train.labels, test.labels]),
            ids=torch.arange(len(train) + len(test)),
            names=self.class_names,
        )
        parts = self.split(whole, len(train))
        return Splits(*decode(parts, Decoding(channels=self.channels, size=self.size), cache))

    def official(self, root: Path) -> Official:
        """Pixels uint8 [N, 3, 32, 32] of both parts, in the order of the batches."""
        return self._binary(root / BINARY) if (root / BINARY).is_dir() else self._python(root)

    def fetch(self, root: Path) -> None:
        """The Python version; both parts come together."""
        torchvision.datasets.CIFAR10(root, download=True)

    @staticmethod
    def _is_folders(root: Path) -> bool:
        return any((root / part).is_dir() for part in PARTS)

    def _binary(self, folder: Path) -> Official:
        paths = [folder / name for name in BINARY_NAMES]
        batches = [self._batch(path) for path in paths]
        records = torch.from_numpy(np.concatenate(batches))
        images = Images(
            pixels=records[:, 1:].reshape(-1, 3, SIDE, SIDE),
            labels=records[:, 0].long(),
            ids=torch.arange(len(records)),
            names=self.class_names,
        )
        return Official(images, len(records) - len(batches[-1]), paths)

    def _batch(self, path: Path) -> np.ndarray:
        data = path.read_bytes()
        if not data or len(data) % RECORD:
            raise self.refuse(path, f"expected a multiple of {RECORD} bytes (a label and 3x32x32), got {len(data)}")
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)

    def _python(self, root: Path) -> Official:
        for name, md5 in _published().items():
            if not check_integrity(str(root / PYTHON / name), md5):
                raise self.refuse(root / PYTHON, f"expected {name} with MD5 {md5}, got another file of that name")
        train, test = (torchvision.datasets.CIFAR10(root, train=trained) for trained in (True, False))
        images = Images(
            pixels=torch.from_numpy(np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2).copy()),
            labels=torch.tensor([*train.targets, *test.targets]),
            ids=torch.arange(len(train) + len(test)),
            names=self.class_names,
        )
        return Official(images, len(train), [root / PYTHON / name for name in _published()])


def _published() -> dict[str, str]:
    """The files of the Python version, with their published MD5."""
    source = torchvision.datasets.CIFAR10
    return {**dict([*source.train_list, *source.test_list]), source.meta["filename"]: source.meta["md5"]}
