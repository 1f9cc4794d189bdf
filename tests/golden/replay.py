"""Replay recorded answers of original implementations through our code.

    python tests/golden/replay.py [--prefix TEXT] FILE.npz ...

Prints per entry the largest relative error and the tolerance, and what is recorded of methods that are not there yet.
Exit code 1 if an error is beyond its tolerance, a piece is unknown, or a file cannot be read. The layout of the files
is that of `../shared/reference/README.md` and `../shared/reference/attacks/README.md`, `README_2.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pieces.recording import Entry, Recording, recordings
from pieces.registry import replay_of
from pieces.rules import NotThereYet

from midefense.types import Refused


@dataclass(frozen=True)
class Line:
    """A line of the report: an `outcome` (ok, FAIL, not there yet, left out), and the entry it is about, if any."""

    outcome: str
    where: str
    what: str
    entry: Entry | None = None

    def __str__(self) -> str:
        if self.entry is None:
            return f"{self.outcome:4s}  {self.where}: {self.what}"
        error, tolerance, note = self.entry.error, self.entry.tolerance, self.entry.note
        numbers = f"{error:.1e} of {tolerance:.1e}" + (f"  ({note})" if note else "")
        return f"{self.outcome:4s}  {self.where} {self.what}  {numbers}"


def replay_file(path: Path, prefix: str | None = None) -> Iterator[Line]:
    """Replay every piece of a file."""
    waiting: dict[str, list[str]] = {}
    try:
        for recording in recordings(path, prefix):
            try:
                yield from replay_piece(recording)
            except NotThereYet as method:
                waiting.setdefault(str(method), []).append(recording.name)
    except Refused as why:
        yield Line("FAIL", path.name, str(why))
    for method, names in waiting.items():
        yield Line("not there yet", path.name, f"{method}: {', '.join(names)}")


def replay_piece(recording: Recording) -> Iterator[Line]:
    """Replay one piece; what of it was neither used nor compared is a failure.

    Raises:
        NotThereYet: its method is not implemented.
    """
    where = f"{recording.path.name} {recording.name}"
    replay = replay_of(recording.name)
    if replay is None:
        yield Line("FAIL", where, "expected a piece that is known, got one that no replay is registered for")
        return
    compared = 0
    try:
        for compared, entry in enumerate(replay(recording), start=1):  # noqa: B007 -- counted to the end
            yield Line("ok" if entry.ok else "FAIL", where, entry.key, entry)
    except NotThereYet:
        raise
    except Exception as why:  # whatever a strange file makes of a replay is the file's failure, not the end of all
        yield Line("FAIL", where, f"cannot be replayed: {type(why).__name__}: {' '.join(str(why).split())}")
        return
    if not compared:
        yield Line("FAIL", where, "expected something to compare, got none")
    for reason in dict.fromkeys(recording.left_out.values()):
        keys = [key for key, given in recording.left_out.items() if given == reason]
        yield Line("left out", where, f"{', '.join(keys)} ({reason})")
    for key in recording.forgotten():
        yield Line("FAIL", where, f"{key}: expected a key that this piece has, got one that its replay does not know")


def summary(lines: Sequence[Line]) -> str:
    """How many entries are within their tolerance, and the one nearest to it."""
    compared = [line for line in lines if line.entry is not None]
    failed = sum(line.outcome == "FAIL" for line in lines)
    text = f"{len(compared)} entries compared, {failed} failures"
    within = [line for line in compared if line.entry.ok and line.entry.tolerance > 0]
    if within:
        nearest = max(within, key=lambda line: line.entry.error / line.entry.tolerance)
        text += f"; nearest to its tolerance: {nearest.where} {nearest.what}, {nearest.entry.error:.1e}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay the files named on the command line; the exit code."""
    parser = argparse.ArgumentParser(description="Replay recorded answers through our code.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--prefix", help="put before every name that is hashed, instead of a piece's own prefix")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the recordings were made on one: threads sum in another order
    lines = []
    for path in options.files:
        for line in replay_file(path, options.prefix):
            print(line, flush=True)
            lines.append(line)
    print(summary(lines))
    return int(any(line.outcome == "FAIL" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
