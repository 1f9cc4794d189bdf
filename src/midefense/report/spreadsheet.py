"""Result rows as CSV, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from midefense.report.files import refuse_odd_places, save
from midefense.report.rows import DERIVED, NAMES, SEEDS, Row, Value

ANCHORS = ("real", "prior", "chance", "truncated", "other", "placebo")
ABOUT = (*NAMES, "protocol", "classes", "candidates", "date", "device")
SETUP = (
    *ABOUT,
    "evaluators",
    "machines",
    "selection",
    "stopped",
    "unreached",
    "few_classes",
    "rung",
    "knew_defense",
    *(f"seed_{name}" for name in SEEDS),
    "result",
)
MEASURED = ("metric", "kind", "value", "low", "high", "n", "higher_leaks", "reason")
FLAT = (*SETUP, *MEASURED, *(f"anchor_{kind}" for kind in ANCHORS))  # heads of the table of a line per metric
# Text that begins so is a formula to a spreadsheet, and is run when the file is opened; the wide forms are those of
# East Asian keyboards.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def wide_beside(out: Path) -> Path:
    """Where the table with one line per row goes: `<stem>.wide.csv` beside the flat one."""
    return out.with_suffix(".wide.csv")


def write_csv(rows: Sequence[Row], out: Path) -> tuple[Path, Path]:
    """Write `out` with one line per row and metric, and beside it `<stem>.wide.csv` with one line per row, each whole
    or not at all. Returns both paths. Values that could not be computed stay `nan`, with their reason in the flat file.
    Text that a spreadsheet would run as a formula begins with an apostrophe.

    Raises:
        Refused: a path is no place for a file.
        OSError: the disk is full or may not be written.
    """
    out = Path(out)
    wide = wide_beside(out)
    refuse_odd_places([out, wide])
    names = sorted({name for row in rows for name in _measured(row)})
    judges = sorted({name for row in rows for name in row.evaluator_accuracy})
    wide_lines = [[*_about(row), *_wide(row, names, judges)] for row in rows]
    texts = {
        out: _lines([FLAT, *flat_lines(rows)]),
        wide: _lines([[*SETUP, *names, *(f"evaluator_accuracy/{name}" for name in judges)], *wide_lines]),
    }
    for path, text in texts.items():
        save(path, text)
    return out, wide


def flat_lines(rows: Sequence[Row]) -> list[list[object]]:
    """One line per result and metric, with the cells of `FLAT`."""
    return [[*_about(row), *line] for row in rows for line in _flat(row)]


def quoted(cell: object) -> object:
    """A cell as it is, or, where it is a text that a spreadsheet would run, behind an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(FORMULA) else cell


def _about(row: Row) -> list[object]:
    seeds = [row.seeds.get(name, "") for name in SEEDS]
    said = [row.evaluators, row.machines, row.selection, row.stopped, row.unreached, row.few_classes]
    said += [row["rung"], row["knew"]]
    return [*(row[name] for name in ABOUT), *said, *seeds, row.folder.name if row.folder else ""]


def _measured(row: Row) -> dict[str, Value]:
    """A row's own numbers; those that the report derives from them are its own affair."""
    return {name: value for name, value in sorted(row.metrics.items()) if value.kind != DERIVED}


def _flat(row: Row) -> list[list[object]]:
    return [
        [name, value.kind, value.value, value.low, value.high, value.n, value.higher_leaks, value.reason]
        + [row.anchors.get(kind, {}).get(name, "") for kind in ANCHORS]
        for name, value in _measured(row).items()
    ]


def _wide(row: Row, names: Sequence[str], judges: Sequence[str]) -> list[object]:
    measured = [row.metrics[name].value if name in row.metrics else "" for name in names]
    return [*measured, *(row.evaluator_accuracy.get(name, "") for name in judges)]


def _lines(lines: Sequence[Sequence[object]]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([quoted(cell) for cell in line] for line in lines)
    return file.getvalue()
