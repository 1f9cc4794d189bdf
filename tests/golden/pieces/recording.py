"""Recorded files: their pieces, and what of a piece was replayed."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from midefense.types import Refused

from .rules import TOLERANCE, Draws, relative_error, row_errors, without_gradient

CONFIG = "config_json"
METADATA = ("trial", "rounding")  # how a recording was chosen, and how far it is reproducible


@dataclass(frozen=True)
class Entry:
    """One comparison: the recorded key, the largest relative error, and what it may be. `note` says how it was made."""

    key: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Family:
    """Files whose pieces have names that mean something in that file alone (`attack`, `net`), so that they are called
    `<name>/<piece>`: known by the start of the file's name, or by `marks`, pieces that together no other file has.
    `whole`: the file is a single piece, whatever it is called."""

    name: str
    marks: tuple[str, ...]
    whole: bool = False


FAMILIES = (
    Family("stylegan2", ("state", "io", CONFIG), whole=True),
    Family("brep_mi", ("init_targeted", "slab")),
    Family("rlb_mi", ("main", "hot", "G", "T")),
    Family("mirror", ("pool_w", "ga")),
    Family("c2f_mi", ("p2f", "stage1")),
    Family("lokt", ("G64", "D64", "Wq", "Wt")),
    Family("secret_gen", ("toyselect", "mask")),
    Family("deep_inversion", ("adi", "lowres")),
    Family("vib_mid", ("vgg16_vib",)),
    Family("tl_dmi", ("vgg16", "ir152", "facenet64")),
    Family("rolss", ("resnet18", "x_uint8")),
    Family("trap_mid", ("negls", "blend")),
    Family("dp_sgd", ("opacus", "per_sample_norms_step0")),
    Family("crafter", ("toy", "craftz")),
    Family("network_inversion", ("kkt", "stat")),
)


@dataclass
class Recording:
    """A piece of a recorded file: `arrays` by their key within the piece, `file` all arrays of the file.

    Reading or comparing a key marks it; what stays unmarked was not replayed.
    """

    path: Path
    name: str
    arrays: Mapping[str, np.ndarray]
    file: Mapping[str, np.ndarray]
    given_prefix: str | None = None
    seen: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> dict:
        """The piece's configuration; empty where it has none."""
        self.seen.add(CONFIG)
        return json.loads(bytes(self.arrays[CONFIG]).decode()) if CONFIG in self.arrays else {}

    @property
    def draws(self) -> Draws:
        """The named numbers of this piece; a prefix given on the command line goes before the configuration's."""
        prefix = self.config.get("prefix", "") if self.given_prefix is None else self.given_prefix
        return Draws(prefix)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        """The array `key`. Raises `Refused` if the piece has none of that name."""
        if key not in self.arrays:
            raise Refused(f"expected the key {key!r} in this piece, got {', '.join(self.arrays)}")
        self.seen.add(key)
        return torch.from_numpy(np.array(self.arrays[key]))

    def elsewhere(self, key: str) -> Tensor:
        """An array of another piece of the same file, by its full key."""
        if key not in self.file:
            raise Refused(f"expected the key {key!r} in the same file, got {', '.join(self.file)}")
        return torch.from_numpy(np.array(self.file[key]))

    def keys(self, pattern: str) -> list[str]:
        """The keys that fit a pattern such as `restart0/z*`."""
        return [key for key in self.arrays if fnmatchcase(key, pattern)]

    def compare(self, key: str, got: Tensor, tolerance: float = TOLERANCE, floor: float = 0.0, note: str = "") -> Entry:
        """Compare `got` with the array `key`: max |got - known| / max(max |known|, floor)."""
        known = self[key]
        if got.shape != known.shape:
            note = f"shape {list(got.shape)} instead of {list(known.shape)}"
        return Entry(key, relative_error(got, known, floor), tolerance, note)

    def compare_exactly(self, key: str, got: Tensor, note: str = "") -> Entry:
        """Compare whole numbers: the error is the share that differs, and none may."""
        known = self[key]
        same = got.shape == known.shape
        error = float((got != known).double().mean()) if same else math.inf
        return Entry(key, error, 0.0, note or "share that differs")

    def compare_rows(self, key: str, got: Tensor, names: Sequence[str], tolerance: float = TOLERANCE) -> Entry:
        """Compare a table with a row per parameter (norms, or sums and norms), but for rows that are rounding alone."""
        known = self[key]
        if got.shape != known.shape or len(names) != len(known):
            note = f"shape {list(got.shape)} instead of {list(known.shape)} for {len(names)} parameters"
            return Entry(key, math.inf, tolerance, note)
        errors = row_errors(got, known)
        skipped = torch.tensor(without_gradient(names))
        worst = int(errors.masked_fill(skipped, -1).argmax())
        note = f"worst at {names[worst]}; without {int(skipped.sum())} biases in front of a norm"
        return Entry(key, float(errors[worst]), tolerance, note)

    def leave_out(self, pattern: str, reason: str) -> None:
        """Say why keys are not compared."""
        for key in self.keys(pattern):
            self.left_out[key] = reason

    def forgotten(self) -> list[str]:
        """Keys that were neither read, compared nor left out: what is recorded there was not replayed."""
        return [key for key in self.arrays if key not in self.seen | set(self.left_out) | set(METADATA)]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a recorded file. Raises `Refused` where there is none, or where it holds Python objects."""
    if not path.is_file():
        raise Refused(f"{path}: expected a recorded file, got none")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            read = {key: arrays[key] for key in arrays.files}
    except (ValueError, TypeError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error) as why:
        raise Refused(f"{path}: expected an .npz file of plain arrays, got something else ({why})") from why
    if not read:
        raise Refused(f"{path}: expected at least one array, got none")
    return read


def recordings(path: Path, prefix: str | None = None) -> Iterator[Recording]:
    """The pieces of a file, in their order."""
    arrays = read_arrays(path)
    tops = list(dict.fromkeys(key.split("/")[0] for key in arrays))
    family = family_of(path, tops)
    if family is not None and family.whole:
        yield Recording(path, family.name, arrays, arrays, prefix)
        return
    for top in tops:
        inside = {key.removeprefix(f"{top}/"): array for key, array in arrays.items() if key.split("/")[0] == top}
        name = top if family is None else f"{family.name}/{top}"
        yield Recording(path, name, inside, arrays, prefix)


def family_of(path: Path, tops: Sequence[str]) -> Family | None:
    """The family of a file with these pieces; None where they have names of their own."""
    named = [family for family in FAMILIES if path.stem.startswith(family.name) and not family.whole]
    marked = [family for family in FAMILIES if set(family.marks) <= set(tops)]
    return next(iter(named + marked), None)
