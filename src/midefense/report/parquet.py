"""Result rows as one Parquet file, for data frames of any language: the flat table of `--csv`, with types.

pyarrow is an optional extra (`pip install midefense[parquet]`).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from midefense.report.files import save_bytes
from midefense.report.rows import Row
from midefense.report.spreadsheet import ANCHORS, FLAT, flat_lines
from midefense.types import Refused

NUMBERS = ("value", "low", "high", *(f"anchor_{kind}" for kind in ANCHORS))
COUNTS = ("n", "seed_target", "seed_prior", "seed_attack", "classes", "candidates")


def require_pyarrow() -> None:
    """Refuse where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise Refused(
            "--parquet: expected the library pyarrow, got none; try `pip install 'midefense[parquet]'` or "
            "`pip install pyarrow`, or --csv, which needs nothing"
        )


def write_parquet(rows: Sequence[Row], out: Path) -> Path:
    """Write `out`, whole or not at all: one line per result and metric. Numbers are float64 (NaN: could not be
    computed, null: not there), counts and seeds int64, `higher_leaks` is a truth value, all else text. Returns `out`.

    Raises:
        Refused: pyarrow is not installed, or `out` is no place for a file.
        OSError: the disk is full or may not be written.
    """
    require_pyarrow()
    import pyarrow
    from pyarrow import parquet

    lines = flat_lines(rows)
    table = {
        name: pyarrow.array([typed(name, line[place]) for line in lines], _type(pyarrow, name))
        for place, name in enumerate(FLAT)
    }
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(table), buffer)
    return save_bytes(Path(out), buffer.getvalue())


def typed(name: str, cell: object) -> object:
    """A cell of the column `name` as its type; None where there is nothing."""
    if cell is None or cell == "":
        return None
    if name in NUMBERS:
        return float(cell)
    if name in COUNTS:
        return int(cell) if str(cell).lstrip("-").isdecimal() else None
    return bool(cell) if name == "higher_leaks" else str(cell)


def _type(pyarrow, name: str):
    if name in NUMBERS:
        return pyarrow.float64()
    if name in COUNTS:
        return pyarrow.int64()
    return pyarrow.bool_() if name == "higher_leaks" else pyarrow.string()
