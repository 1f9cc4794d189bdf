"""Result rows as a page, a terminal table and CSV: `midefense report`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from midefense.report.page import render
from midefense.report.rows import (
    NAMES,
    SEEDS,
    Broken,
    Row,
    anchor_lines,
    by_protocol,
    columns,
    read_rows,
    setups,
    show,
    show_spread,
    spread,
    summarise,
)
from midefense.report.tradeoff import trade_offs

__all__ = ["Broken", "Row", "build", "read_rows", "table", "write_csv"]

ANCHORS = ("real", "prior", "chance")
HEADS = ("dataset", "architecture", "defense", "prior", "attack")


def build(rows: Sequence[Row], out: Path, broken: Sequence[Broken] = (), lead: str = "") -> Path:
    """Write the self-contained HTML page `out`; results in `broken` are named on it, and `lead` is its first sentence.
    Returns `out`."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(rows, broken, out.parent.resolve(), lead), encoding="utf-8")
    return out


def table(rows: Sequence[Row]) -> str:
    """The leading numbers for a terminal, one table per protocol: mean ± standard deviation over seeds."""
    return "\n\n".join(_protocol_text(name, group) for name, group in by_protocol(rows).items()) or "no results"


def write_csv(rows: Sequence[Row], out: Path) -> tuple[Path, Path]:
    """Write `out` with one line per row and metric, and beside it `<stem>.wide.csv` with one line per row.
    Returns both paths. Values that could not be computed stay `nan`, with their reason in the flat file."""
    out = Path(out)
    wide = out.with_suffix(".wide.csv")
    about = (*NAMES, "protocol", "classes", "candidates", "date", "device")
    setup = [*about, "selection", "stopped", *(f"seed_{name}" for name in SEEDS), "result"]
    names = sorted({name for row in rows for name in row.metrics})
    flat_lines, wide_lines = [], []
    for row in rows:
        known = [row[name] for name in about] + [row.selection, row.stopped]
        known += [row.seeds.get(name, "") for name in SEEDS]
        known.append(row.folder.name if row.folder else "")
        wide_lines.append(known + [row.metrics[name].value if name in row.metrics else "" for name in names])
        for name, value in sorted(row.metrics.items()):
            measured = [name, value.kind, value.value, value.low, value.high, value.n, value.higher_leaks, value.reason]
            flat_lines.append(known + measured + [row.anchors.get(kind, {}).get(name, "") for kind in ANCHORS])
    measured = ["metric", "kind", "value", "low", "high", "n", "higher_leaks", "reason"]
    _write_lines(out, [*setup, *measured, *(f"anchor_{kind}" for kind in ANCHORS)], flat_lines)
    _write_lines(wide, [*setup, *names], wide_lines)
    return out, wide


def _write_lines(path: Path, heads: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heads, *lines])


def _protocol_text(protocol: str, rows: Sequence[Row]) -> str:
    shown, found = columns(rows), setups(rows)
    lines = [[*HEADS, "seeds", *(column.title.lower() for column in shown)]]
    for setup in found:
        numbers = []
        for column in shown:
            seen = summarise(setup.rows, column.metric)
            partly = f" ({seen.seen}/{seen.total})" if 0 < seen.seen < seen.total else ""
            numbers.append(_cell(seen.mean, seen.std, column.unit) + partly)
        attack = f"{setup['attack']} ({setup.note})" if setup.note else setup["attack"]
        attack += ", stopped early" if setup.stopped else ""
        attack += f", target {setup.legacy}" if setup.legacy else ""
        lines.append([*(setup[name] for name in HEADS[:-1]), attack, str(len(setup.rows)), *numbers])
    results = len(lines)
    for name, values in anchor_lines(rows):
        numbers = [_cell(*spread(values.get(column.metric, [])), column.unit, "") for column in shown]
        lines.append([name, *[""] * len(HEADS), *numbers])
    traded = [
        f"trade-off Δ of {one.setup['defense']} · {one.setup['attack']} on {one.setup['architecture']}: {one.text}"
        for one in trade_offs(found)
    ]
    return "\n".join([f"protocol {protocol}", *_aligned(lines, results), *traded])


def _cell(mean: float, std: float, unit: str, absent: str = "n/a") -> str:
    if math.isnan(mean):
        return absent
    return f"{show(mean, unit)} {show_spread(std, unit)}".strip()


def _aligned(lines: Sequence[Sequence[str]], results: int) -> list[str]:
    """Texts to the left, numbers to the right; anchors (lines from `results` on) have one text over all heads."""
    texts = len(HEADS)
    widths = [max(len(line[place]) for line in lines[:results]) for place in range(texts)]
    widths += [max(len(line[place]) for line in lines) for place in range(texts, len(lines[0]))]
    missing = max((len(line[0]) for line in lines[results:]), default=0) - (sum(widths[:texts]) + 2 * (texts - 1))
    widths[texts - 1] += max(0, missing)
    left = sum(widths[:texts]) + 2 * (texts - 1)
    shown = []
    for number, line in enumerate(lines):
        names = (text.ljust(width) for text, width in zip(line[:texts], widths[:texts], strict=True))
        start = line[0].ljust(left) if number >= results else "  ".join(names)
        shown.append(
            "  ".join([start, *(t.rjust(w) for t, w in zip(line[texts:], widths[texts:], strict=True))]).rstrip()
        )
    rule = "-" * max(len(line) for line in shown)
    return [shown[0], rule, *shown[1:results], rule, *shown[results:]]
