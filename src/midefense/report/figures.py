"""The figures of one protocol on a page of their own: worst cases, heat map, frontiers, curves against queries."""

from __future__ import annotations

from collections.abc import Sequence

from midefense.report.columns import axes, columns
from midefense.report.frontier import frontiers
from midefense.report.heat_map import heat_map
from midefense.report.markup import Markup, join, tag
from midefense.report.page import HEADLINE, part, trade_off_list, worst_case_list
from midefense.report.plot import scatter
from midefense.report.queries import against_queries
from midefense.report.rows import Setup, notes_on
from midefense.store.sweeps import Outcome

MOST_DRAWN = 200  # setups with a mark or a line of their own: of more, nothing is told apart


def figures(found: Sequence[Setup], untried: Sequence[Outcome]) -> Markup | None:
    """All figures of a protocol's setups; None where there is nothing to draw. Frontiers and the heat map are of all
    setups, marks, lines and trade-offs of the first `MOST_DRAWN`."""
    numbered = range(len(found))
    rows = [row for setup in found for row in setup.rows]
    held = axes(columns(rows))
    drawn = found[:MOST_DRAWN]
    parts = [
        part(HEADLINE, worst_case_list(found, numbered)),
        part("Defense × attack", heat_map(found, numbered, untried)),
        part("Frontier of each attack", frontiers(found, *held) if held else None),
        part("Privacy against utility", scatter(drawn, numbered[: len(drawn)], *held) if held else None, _cut(found)),
        part("Accuracy against queries", against_queries(drawn, numbered[: len(drawn)]), _cut(found)),
        part("Trade-off", trade_off_list(drawn, numbered[: len(drawn)]), _cut(found)),
    ]
    shown = [one for one in parts if one is not None]
    notes = [tag("p", note, class_="lead") for note in notes_on(rows)]
    return join(*notes, *shown) if shown else None


def _cut(found: Sequence[Setup]) -> Markup | None:
    if len(found) <= MOST_DRAWN:
        return None
    return tag("p", f"Shown: the first {MOST_DRAWN} of {len(found):,} setups, undefended ones first.", class_="lead")
