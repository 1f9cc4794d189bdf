"""The pairs of pictures on which face verification is measured: LFW's `pairs.txt` (Huang et al., 2007)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from midefense.types import Refused

_HEADER = re.compile(r"(\d+)(?:\s+(\d+))?")
_PAIR = re.compile(r"(\S+)\s+(\d+)(?:\s+(\S+))?\s+(\d+)")
_FORMAT = "'FOLDS PAIRS' or 'PAIRS', then lines 'Name 1 4' (the same person) and 'Name 1 Other 2' (two people)"


@dataclass(frozen=True)
class Pair:
    """Two pictures, as paths below the folder of people, whether they show the `same` person, and the `fold` (from 0)
    in which the pair is tested."""

    first: str
    second: str
    same: bool
    fold: int


def read_pairs(path: Path) -> list[Pair]:
    """All pairs, in the order of the file: of each fold those of one person, then as many of two people.

    Files of the development sets (`pairsDevTest.txt`) have one number in their first line and are one fold. Refused if
    a line, or how many of each kind there are, is not as the first line says.
    """
    if not path.is_file():
        raise Refused(f"no file at {path}; expected {_FORMAT}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        raise Refused(f"{path}: expected {_FORMAT}; got a first line {lines[0] if lines else ''!r}")
    folds, count = (int(header[1]), int(header[2])) if header[2] else (1, int(header[1]))
    if len(lines) - 1 != 2 * folds * count:
        raise Refused(
            f"{path}: expected {2 * folds * count} pairs ({folds} folds of {count} and {count}), got {len(lines) - 1}"
        )
    return [
        _pair(path, line, same=place % (2 * count) < count, fold=place // (2 * count))
        for place, line in enumerate(lines[1:])
    ]


def _pair(path: Path, line: str, same: bool, fold: int) -> Pair:
    match = _PAIR.fullmatch(line)
    if match is None or (match[3] is None) != same:
        kind = "one person" if same else "two people"
        raise Refused(f"{path}: expected {_FORMAT}; got {line!r} where fold {fold} has pairs of {kind}")
    return Pair(_picture(match[1], match[2]), _picture(match[3] or match[1], match[4]), same, fold)


def _picture(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}.jpg"
