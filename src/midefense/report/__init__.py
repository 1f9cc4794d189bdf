"""Result rows as a page, a site, a terminal table, CSV, LaTeX and Parquet: `midefense report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from midefense.report.columns import columns
from midefense.report.files import refuse_odd_places, save
from midefense.report.heat_map import read_untried
from midefense.report.latex import write_latex
from midefense.report.numbers import show, show_spread
from midefense.report.page import render
from midefense.report.parquet import require_pyarrow, write_parquet
from midefense.report.rows import (
    Broken,
    Row,
    anchor_lines,
    by_protocol,
    notes_on,
    read_rows,
    setups,
    spread,
    summarise,
    told_apart,
)
from midefense.report.site import build_site, refuse_odd_folder
from midefense.report.spreadsheet import wide_beside, write_csv
from midefense.report.tradeoff import trade_offs
from midefense.report.worst import worst_cases
from midefense.store.sweeps import Outcome

__all__ = [
    "Broken",
    "Row",
    "build",
    "build_site",
    "read_rows",
    "read_untried",
    "refuse_odd_folder",
    "refuse_odd_places",
    "require_pyarrow",
    "table",
    "wide_beside",
    "write_csv",
    "write_latex",
    "write_parquet",
]

HEADS = ("dataset", "architecture", "defense", "prior", "attack")


def build(
    rows: Sequence[Row],
    out: Path,
    broken: Sequence[Broken] = (),
    lead: str = "",
    untried: Sequence[Outcome] = (),
) -> Path:
    """Write the self-contained HTML page `out`, whole or not at all, and return `out`. Results in `broken` are named on
    it, `lead` is its first sentence, and `untried` are the points of sweeps that gave no row (`read_untried`).

    Raises:
        Refused: `out` is no place for a file.
        OSError: the disk is full or may not be written.
    """
    return save(Path(out), render(rows, broken, Path(out).parent.resolve(), lead, untried))


def table(rows: Sequence[Row]) -> str:
    """The leading numbers for a terminal, one table per protocol: mean ± standard deviation over seeds."""
    return "\n\n".join(_protocol_text(name, group) for name, group in by_protocol(rows).items()) or "no results"


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
        attack += f", {setup.ladder}" if setup.ladder else ""
        attack += f", {setup.awareness}" if setup.awareness else ""
        attack += f", {setup.unreached}" if setup.unreached else ""
        attack += f", {setup.few_classes}" if setup.few_classes else ""
        attack += ", stopped early" if setup.stopped else ""
        attack += f", target {setup.legacy}" if setup.legacy else ""
        lines.append([*(setup[name] for name in HEADS[:-1]), attack, str(len(setup.rows)), *numbers])
    results = len(lines)
    for name, values in anchor_lines(rows):
        numbers = [_cell(*spread(values.get(column.metric, [])), column.unit, "") for column in shown]
        lines.append([name, *[""] * len(HEADS), *numbers])
    traded = [
        f"trade-off Δ of {one.setup['defense']} · {one.setup.described(told_apart(found))}: {one.text}"
        for one in trade_offs(found)
    ]
    worst = [f"worst case of {one.defense}: {one.text}" for one in worst_cases(found)]
    return "\n".join([f"protocol {protocol}", *_aligned(lines, results), *notes_on(rows), *traded, *worst])


def _cell(mean: float, std: float, unit: str, absent: str = "n/a") -> str:
    if math.isnan(mean):
        return absent
    return f"{show(mean, unit)} {show_spread(std, unit, mean)}".strip()


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
