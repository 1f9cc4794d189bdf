"""Accuracy against queries: one line per setup on a logarithmic axis, and the same as a table at powers of ten.

Attacks of different budgets are compared at equal cost, and not by their end points (methods card: query budgets).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midefense.report.markup import Markup, join, tag
from midefense.report.numbers import show
from midefense.report.plot import SHAPES, Frame, mark, series
from midefense.report.rows import Setup, told_apart

WIDE = Frame("wide-only", 900, 420, left=62, right=24, top=16, bottom=52, longest=28)
NARROW = Frame("narrow-only", 330, 340, left=62, right=24, top=16, bottom=48, longest=34)
CAPTION = (
    "How many of the attacked classes an independent evaluator recognises in the best candidate that the attack had "
    "when it had asked so many images per target: its own, and its part of what was asked once for all targets. A "
    "target without a candidate counts as failed. A line ends where the attack did; seeds are averaged."
)
NOT_DRAWN = " Not drawn, because they ask the target nothing: {}."


@dataclass(frozen=True)
class Line:
    """A setup, its number on the page, and its curve over all seeds: `queries` float [P], ascending, from 1 on;
    `accuracy` [P], the mean over seeds; `low` and `high` [P], the outermost bounds of the seeds' intervals."""

    setup: Setup
    number: int
    queries: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, queries: float) -> tuple[float, float, float] | None:
        """Accuracy with its bounds after so many queries: the last known, also behind the end of the attack; None
        before its first candidate."""
        place = int(np.searchsorted(self.queries, queries * (1 + 1e-9), side="right")) - 1
        return None if place < 0 else (float(self.accuracy[place]), float(self.low[place]), float(self.high[place]))


def lines(found: Sequence[Setup], numbered: Sequence[int]) -> list[Line]:
    """Of the setups whose rows have curves and that asked anything, in their order."""
    drawn = []
    for setup, number in zip(found, numbered, strict=True):
        curves = [curve for curve in (row.curve() for row in setup.rows) if curve is not None and len(curve["queries"])]
        costs = sorted({float(cost) for curve in curves for cost in curve["queries"] if cost >= 1})
        if costs:
            steps = [[_step(curve, cost) for cost in costs] for curve in curves]
            accuracy, low, high = np.array(steps).transpose(2, 0, 1)
            drawn.append(
                Line(setup, number, np.array(costs), accuracy.mean(0), np.fmin.reduce(low), np.fmax.reduce(high))
            )
    return drawn


def _step(curve: dict[str, np.ndarray], cost: float) -> tuple[float, float, float]:
    """What a seed's curve says at a cost: nothing recognised before its first point, the last number behind its end."""
    place = int(np.searchsorted(curve["queries"], cost, side="right")) - 1
    if place < 0:
        return 0.0, math.nan, math.nan
    return tuple(float(curve[name][place]) for name in ("accuracy", "low", "high"))


def against_queries(found: Sequence[Setup], numbered: Sequence[int]) -> Markup | None:
    """The figure, for wide and for narrow screens, and the table; None if no setup has a curve. `numbered`: the number
    of each setup on the page."""
    drawn = lines(found, numbered)
    if not drawn:
        return None
    names = _names(drawn)
    silent = [setup["attack"] for setup in found if setup not in [line.setup for line in drawn] and _traced(setup)]
    caption = CAPTION + (NOT_DRAWN.format(", ".join(dict.fromkeys(silent))) if silent else "")
    pictures = [_picture(frame, drawn, names) for frame in (WIDE, NARROW)]
    figure = tag("figure", *pictures, _legend(names), tag("figcaption", caption), class_="plot")
    return join(figure, _table(drawn, told_apart(found)))


def _traced(setup: Setup) -> bool:
    return any(row.curve() is not None for row in setup.rows)


def _names(drawn: Sequence[Line]) -> tuple[list[str], list[str]]:
    """Attacks in the order in which they get colours, and defenses in that in which they get marks."""
    return tuple(list(dict.fromkeys(line.setup[name] for line in drawn)) for name in ("attack", "defense"))


def _style(setup: Setup, names: tuple[list[str], list[str]]) -> tuple[str, str]:
    attacks, defenses = names
    return series(attacks.index(setup["attack"])), SHAPES[defenses.index(setup["defense"]) % len(SHAPES)]


def decades(drawn: Sequence[Line]) -> list[int]:
    """The powers of ten between which all lines lie, as exponents."""
    low = min(float(line.queries[0]) for line in drawn)
    high = max(float(line.queries[-1]) for line in drawn)
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return list(range(first, max(last, first + 1) + 1))


def _picture(frame: Frame, drawn: Sequence[Line], names: tuple[list[str], list[str]]) -> Markup:
    powers = decades(drawn)
    left, right = frame.left, frame.width - frame.right
    bottom, top = frame.height - frame.bottom, frame.top

    def across(queries: float) -> float:
        share = (math.log10(queries) - powers[0]) / (powers[-1] - powers[0])
        return round(left + share * (right - left), 1)

    def up(share: float) -> float:
        return round(bottom + share * (top - bottom), 1)

    parts = []
    for fifth in range(6):
        y = up(fifth / 5)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{20 * fifth}%", x=left - 10, y=y + 4, class_="tick end"))
    for power in powers:
        x = across(10**power)
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom + 5, class_="grid"))
        parts.append(tag("text", show(10**power, "number"), x=x, y=bottom + 20, class_="tick middle"))
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    middle = (left + right) / 2
    parts.append(tag("text", "Images asked per target (log)", x=middle, y=frame.height - 10, class_="title middle"))
    turned = f"translate(14 {(top + bottom) / 2}) rotate(-90)"
    parts.append(tag("text", "Attack accuracy (leaks →)", transform=turned, class_="title middle"))
    parts += [_line(line, across, up, *_style(line.setup, names)) for line in drawn]
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {frame.width} {frame.height}",
        role="img",
        class_=frame.name,
        aria_label="Attack accuracy against queries, one line per setup; the numbers are in the table below",
    )


def _line(line: Line, across, up, style: str, shape: str) -> Markup:
    places = [(across(cost), up(share)) for cost, share in zip(line.queries, line.accuracy, strict=True)]
    (x, y), *rest = places
    path = f"M{x} {y}" + "".join(f"H{x}V{y}" for x, y in rest)
    words = " · ".join(filter(None, (line.setup["defense"], line.setup["attack"], line.setup.note)))
    asked, share = line.queries[-1], line.accuracy[-1]
    title = f"{words}\n{show(share, 'percent')} after {show(asked, 'count')} images per target"
    end = mark(shape, *places[-1])
    curve = tag("path", d=path, class_="curve")
    return tag("g", tag("title", title), curve, end, class_=f"point {style}", tabindex=0, data_setup=line.number)


def _legend(names: tuple[list[str], list[str]]) -> Markup:
    def entry(name: str, shape: str, style: str) -> Markup:
        key = tag("svg", tag("g", mark(shape, 9, 9), class_=f"point {style}"), viewBox="0 0 18 18", aria_hidden="true")
        return tag("li", key, name)

    attacks, defenses = names
    colours = [entry(name, "circle", series(n)) for n, name in enumerate(attacks)]
    shapes = [entry(name, SHAPES[n % len(SHAPES)], "series-0") for n, name in enumerate(defenses)]
    return tag(
        "div", tag("ul", *colours, aria_label="Attack"), tag("ul", *shapes, aria_label="Defense"), class_="legend"
    )


def _table(drawn: Sequence[Line], varied: Sequence[str]) -> Markup:
    """Accuracy with its interval at every power of ten, and at the end."""
    powers = decades(drawn)
    heads = ["setup", *(show(10**power, "count") for power in powers), "at its end"]
    body = []
    for line in drawn:
        setup = line.setup
        name = join(
            tag("b", setup["defense"]), f" · {setup.described(varied)}", f" · {setup.note}" if setup.note else ""
        )
        cells = [_cell(line.at(10.0**power)) for power in powers]
        end = (float(line.accuracy[-1]), float(line.low[-1]), float(line.high[-1]))
        cells.append(_cell(end, f"after {show(float(line.queries[-1]), 'count')}"))
        body.append(tag("tr", tag("td", name), *cells, data_setup=line.number))
    table = tag(
        "table",
        tag("caption", "Attack accuracy after so many images per target", class_="unseen"),
        tag(
            "thead",
            tag("tr", *(tag("th", head, scope="col", class_="number" * (n > 0)) for n, head in enumerate(heads))),
        ),
        tag("tbody", *body),
        class_="asked",
    )
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Accuracy against queries")


def _cell(known: tuple[float, float, float] | None, below: str = "") -> Markup:
    if known is None:
        return tag("td", "–", class_="number")
    share, low, high = known
    bounds = f"[{show(low, 'percent')}, {show(high, 'percent')}]" if math.isfinite(low) else ""
    small = " · ".join(filter(None, (bounds, below)))
    return tag("td", show(share, "percent"), tag("small", small) if small else None, class_="number")
