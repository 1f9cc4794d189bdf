"""Files of pictures before they are read: folders in an order of their own, layouts compared, refusals that name what
differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from midefense.types import Refused

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key under which numbers inside names count as numbers: s2 before s10."""
    pieces = re.split(r"([0-9]+)", name)  # text and digits alternate, so that like is compared with like
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name


def entries(folder: Path) -> list[Path]:
    """What lies in `folder`, in natural order, without hidden and system files."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted((p for p in visible if p.name.lower() not in _SYSTEM_FILES), key=lambda path: natural_key(path.name))


def require_folder(root: str | None, argument: str, tree: str) -> Path:
    """The folder given by a constructor argument, or a refusal that says where it was looked for."""
    if not root:
        raise Refused(f"dataset.{argument} is not set; expected a folder\n{tree}\nTry dataset.{argument}=DIR.")
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        raise Refused(f"no folder at {path}; expected\n{tree}\nTry dataset.{argument}=DIR.")
    return path


def first_difference(expected: Iterable[str], got: Iterable[str]) -> str:
    """The first place where two listings differ, in words; empty if they are the same."""
    for wanted, found in zip_longest(expected, got):
        if wanted != found:
            return f"expected {wanted or 'nothing more'}, got {found or 'nothing more'}"
    return ""


@dataclass(frozen=True)
class Files:
    """Pictures by file, not yet decoded: `paths` [N], `labels` int64 [N], `ids` int64 [N], `names` one text per label;
    `boxes` float64 [N, 4] (left, top, right, bottom in pixels) is the part of each picture that counts (None: all)."""

    paths: Sequence[Path]
    labels: Tensor
    ids: Tensor
    names: Sequence[str]
    boxes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Tensor) -> Files:
        """The files at `rows` (indices or a mask), labels unchanged."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        paths = [self.paths[row] for row in rows.tolist()]
        boxes = None if self.boxes is None else self.boxes[rows]
        return replace(self, paths=paths, labels=self.labels[rows], ids=self.ids[rows], boxes=boxes)
