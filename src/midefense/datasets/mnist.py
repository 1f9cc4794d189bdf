"""MNIST (LeCun, Bottou, Bengio and Haffner, 1998) and FashionMNIST (Xiao, Rasul and Vollgraf, 2017): grey, 28x28."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torchvision

from midefense.datasets.class_sets import ClassSet, Official
from midefense.types import Images

NAMES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
SIDE = 28
IDX_MAGIC = 0x800  # of unsigned bytes; the number of dimensions is added


class Mnist(ClassSet):
    """The published files, unpacked: `root/MNIST/raw/train-images-idx3-ubyte` and three more. How many images there
    are is read from them (officially 60,000 and 10,000)."""

    revision = 1
    may_be_shown = True
    channels = 1
    class_names = tuple(str(digit) for digit in range(10))
    folder: ClassVar[str] = "MNIST"
    source: ClassVar[type] = torchvision.datasets.MNIST

    def tree(self) -> str:
        """Four files."""
        return "\n".join(f"  ROOT/{self.folder}/raw/{name}" for name in NAMES)

    def missing(self, root: Path) -> str:
        """The first file that is not there, and whether it lies there packed."""
        raw = root / self.folder / "raw"
        absent = [name for name in NAMES if not (raw / name).is_file()]
        if not absent:
            return ""
        packed = [name for name in absent if (raw / f"{name}.gz").is_file()]
        got = f"{packed[0]}.gz, still packed" if packed else "no such file"
        return f"expected {self.folder}/raw/{(packed or absent)[0]}, got {got}"

    def official(self, root: Path) -> Official:
        """Pixels uint8 [N, 1, 28, 28] of both parts."""
        paths = [root / self.folder / "raw" / name for name in NAMES]
        train, train_labels, test, test_labels = (self._read(path) for path in paths)
        for path, images, labels in ((paths[1], train, train_labels), (paths[3], test, test_labels)):
            if len(images) != len(labels):
                raise self.refuse(path, f"expected {len(images)} labels, one per image, got {len(labels)}")
        images = Images(
            pixels=torch.from_numpy(np.concatenate([train, test])[:, None]),
            labels=torch.from_numpy(np.concatenate([train_labels, test_labels]).astype(np.int64)),
            ids=torch.arange(len(train) + len(test)),
            names=self.class_names,
        )
        return Official(images, len(train), paths)

    def fetch(self, root: Path) -> None:
        """Both parts come together."""
        self.source(root, download=True)

    def _read(self, path: Path) -> np.ndarray:
        """Bytes in the IDX format: a magic number, the sizes, both big-endian, then the values."""
        data = path.read_bytes()
        sizes = (SIDE, SIDE) if "images" in path.name else ()
        header = np.frombuffer(data[: 8 + 4 * len(sizes)].ljust(8 + 4 * len(sizes), b"\0"), dtype=">u4").tolist()
        magic = IDX_MAGIC + 1 + len(sizes)
        if header[0] != magic:
            raise self.refuse(path, f"expected the magic number {magic}, got {header[0]}")
        if tuple(header[2:]) != sizes:
            raise self.refuse(path, f"expected pictures of 28x28, got {header[2]}x{header[3]}")
        length = 4 * len(header) + header[1] * math.prod(sizes)
        if len(data) != length:
            raise self.refuse(path, f"expected {length} bytes for its {header[1]} entries, got {len(data)}")
        return np.frombuffer(data, dtype=np.uint8, offset=4 * len(header)).reshape(header[1], *sizes)


class FashionMnist(Mnist):
    """Clothes in MNIST's format: `root/FashionMNIST/raw/train-images-idx3-ubyte` and three more."""

    revision = 1
    class_names = tuple(torchvision.datasets.FashionMNIST.classes)
    folder = "FashionMNIST"
    source = torchvision.datasets.FashionMNIST
