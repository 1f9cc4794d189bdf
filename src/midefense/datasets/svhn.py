"""Street View House Numbers, cropped digits (Netzer et al., 2011): RGB, 32x32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision

from midefense.datasets.class_sets import ClassSet, Official
from midefense.datasets.matlab import read_variables
from midefense.types import Images

NAMES = ("train_32x32.mat", "test_32x32.mat")
SIDE = 32


class Svhn(ClassSet):
    """The published Matlab files `root/train_32x32.mat` and `root/test_32x32.mat` (73,257 and 26,032 images). Their
    label 10 stands for the digit 0."""

    revision = 1
    channels = 3
    class_names = tuple(str(digit) for digit in range(10))

    def tree(self) -> str:
        """Two files."""
        return "\n".join(f"  ROOT/{name}    X uint8 [32, 32, 3, N], y [N, 1] with labels 1 to 10" for name in NAMES)

    def missing(self, root: Path) -> str:
        """The first file that is not there."""
        absent = [name for name in NAMES if not (root / name).is_file()]
        return f"expected {absent[0]}, got no such file" if absent else ""

    def official(self, root: Path) -> Official:
        """Pixels uint8 [N, 3, 32, 32] of both parts."""
        paths = [root / name for name in NAMES]
        (train, train_labels), (test, test_labels) = (self._read(path) for path in paths)
        images = Images(
            pixels=torch.from_numpy(np.concatenate([train, test])),
            labels=torch.from_numpy(np.concatenate([train_labels, test_labels])),
            ids=torch.arange(len(train) + len(test)),
            names=self.class_names,
        )
        return Official(images, len(train), paths)

    def fetch(self, root: Path) -> None:
        """Two files, one after the other."""
        for part in ("train", "test"):
            torchvision.datasets.SVHN(root, split=part, download=True)

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 [N, 3, 32, 32] and labels int64 [N], 0 to 9."""
        found = read_variables(path, ("X", "y"))
        pixels, labels = found["X"], found["y"]
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (SIDE, SIDE, 3):
            raise self.refuse(path, f"expected X uint8 [32, 32, 3, N], got {pixels.dtype} {list(pixels.shape)}")
        if labels.shape != pixels.shape[3:] or labels.dtype.kind not in "iu":
            got = f"{len(labels)} of {labels.dtype}"
            raise self.refuse(path, f"expected y with {pixels.shape[3]} whole numbers, one per image, got {got}")
        labels = labels.astype(np.int64)
        labels[labels == 10] = 0
        return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels
