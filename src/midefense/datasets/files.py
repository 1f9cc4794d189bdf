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

from midefense.foreign import path_of
from midefense.types import Refused

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key under which numbers inside names count as numbers: s2 before s10."""
    pieces = re.split(r"([0-9]+)", name)  # text and digits alternate, so that like is compared with like
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name


def entries(folder: Path) -> list[Path]:
    """What lies in `folder`, in natural order, without hidden and system files."""
    return sorted((p for p in folder.iterdir() if not is_left_behind(p.name)), key=lambda path: natural_key(path.name))


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or what an operating system leaves in folders of its own."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES | _SYSTEM_FOLDERS


def require_folder(root: str | None, argument: str, tree: str, node: str = "dataset") -> Path:
    """The folder given by a constructor argument, or a refusal that says where it was looked for. `node` is where the
    dataset stands in the configuration."""
    if not root:
        raise Refused(f"{node}.{argument} is not set; expected a folder\n{tree}\nTry {node}.{argument}=DIR.")
    path = path_of(root).absolute()
    if not path.is_dir():
        raise Refused(f"no folder at {path}; expected\n{tree}\nTry {node}.{argument}=DIR.")
    return path


def require_inside(root: Path, inside: str, tree: str, node: str = "dataset", argument: str = "root") -> Path:
    """The file or folder `root`/`inside`, or a refusal that names the first part of it that is missing, what lies
    there instead, and the folder one level up or down that would have been right."""
    path = root
    for name in Path(inside).parts:
        if not (path / name).exists():
            meant = [folder for folder in [root.parent, *entries(root)] if (folder / inside).exists()]
            raise Refused(
                f"expected\n{tree}\nfirst difference in {path}: expected {name}, got {_shown(path)}. "
                f"Try {node}.{argument}={meant[0] if meant else 'DIR'}."
            )
        path /= name
    return path


def _shown(path: Path) -> str:
    """A few names of what lies in a folder."""
    if not path.is_dir():
        return "a file"
    names = [entry.name for entry in entries(path)]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") or "nothing"


def first_difference(expected: Iterable[str], got: Iterable[str]) -> str:
    """The first place where two listings differ, in words; empty if they are the same."""
    for wanted, found in zip_longest(expected, got):
        if wanted != found:
            return f"expected {wanted or 'nothing more'}, got {found or 'nothing more'}"
    return ""


def stamp(path: Path) -> list:
    """What tells a file from another version of it without reading it."""
    status = path.stat()
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Files:
    """Pictures by file, not yet decoded: `paths` [N], `labels` int64 [N], `ids` int64 [N], `names` one text per label;
    `boxes` float64 [N, 4] (left, top, right, bottom in pixels) is the part of each picture that counts (None: all)."""

    paths: Sequence[Path]
    labels: Tensor
    ids: Tensor
    names: Sequence[str]
    boxes: Tensor | None = None

    @classmethod
    def grouped(cls, groups: Sequence[Sequence[Path]], names: Sequence[str], first_id: int = 0) -> Files:
        """One group of pictures per label, one after the other; ids count on from `first_id`."""
        paths = [path for group in groups for path in group]
        counts = torch.tensor([len(group) for group in groups], dtype=torch.int64)
        labels = torch.arange(len(groups)).repeat_interleave(counts)
        return cls(paths, labels, torch.arange(first_id, first_id + len(paths)), names)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Tensor) -> Files:
        """The files at `rows` (indices or a mask), labels unchanged."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        paths = [self.paths[row] for row in rows.tolist()]
        boxes = None if self.boxes is None else self.boxes[rows]
        return replace(self, paths=paths, labels=self.labels[rows], ids=self.ids[rows], boxes=boxes)
