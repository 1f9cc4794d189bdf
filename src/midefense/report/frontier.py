"""The privacy-utility frontier of each attack: the setups that no other one beats in both, drawn and listed.

A setup is on the frontier of an attack where every other setup of that attack that is at least as useful leaks more
(Pareto efficiency). Setups of one protocol only are held against each other, by their means over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from midefense.report.columns import Column
from midefense.report.markup import Markup, join, tag
from midefense.report.numbers import show, show_spread
from midefense.report.plot import NARROW, WIDE, Axis, Frame, Point, mark, scale_lines, series, utility_axis
from midefense.report.rows import Setup, summarise, told_apart

LEAD = (
    "Of each attack, the setups that no other beats: whatever is at least as useful leaks more. Means over seeds, "
    "without their intervals: neighbours may change places with more seeds."
)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other one dominates, from the most useful to the one that leaks least; of equals the first.
    Utility is better where it is higher, a leak where it is lower or, by its column, higher."""
    ordered = sorted(points, key=lambda point: (-point.x.mean, _leak(point)))
    found: list[Point] = []
    for point in ordered:
        if not found or _leak(point) < _leak(found[-1]):
            found.append(point)
    return found


def _leak(point: Point) -> float:
    return point.y.mean if point.columns[1].higher_leaks is not False else -point.y.mean


def by_attack(found: Sequence[Setup], utility: Column, attack: Column) -> dict[str, list[Point]]:
    """The frontier of each attack of which two setups or more have both numbers; `number` of a point is its setup's
    place in `found`."""
    points: dict[str, list[Point]] = {}
    for number, setup in enumerate(found):
        x, y = (summarise(setup.rows, column.metric) for column in (utility, attack))
        if math.isfinite(x.mean) and math.isfinite(y.mean):
            points.setdefault(setup["attack"], []).append(Point(setup, number, x, y, (utility, attack)))
    return {name: frontier(own) for name, own in points.items() if len(own) > 1}


def frontiers(found: Sequence[Setup], utility: Column, attack: Column) -> Markup | None:
    """The figure, for wide and for narrow screens, and the list; None without an attack on two setups."""
    lines = by_attack(found, utility, attack)
    if not lines:
        return None
    pictures = [_picture(frame, lines, utility, attack) for frame in (WIDE, NARROW)]
    figure = tag("figure", *pictures, _legend(list(lines)), class_="plot")
    return join(tag("p", LEAD, class_="lead"), figure, _table(lines, told_apart(found), utility, attack))


def _picture(frame: Frame, lines: dict[str, list[Point]], utility: Column, attack: Column) -> Markup:
    drawn = [point for own in lines.values() for point in own]
    right = frame.width - (frame.right if frame.inside else 24)
    across = utility_axis(drawn, frame.left, right)
    up = Axis(0, 1, frame.height - frame.bottom, frame.top)
    curves = [_curve(own, across, up, series(number)) for number, own in enumerate(lines.values())]
    words = f"{attack.title} against {utility.title}: the frontier of each attack; the numbers are in the table below"
    scale = scale_lines(frame, across, up, utility.title, attack.title)
    box = f"0 0 {frame.width} {frame.height}"
    return tag("svg", scale, *curves, viewBox=box, role="img", class_=frame.name, aria_label=words)


def _curve(own: Sequence[Point], across: Axis, up: Axis, style: str) -> Markup:
    places = [(across(point.x.mean), up(point.y.mean)) for point in own]
    (x, y), *rest = places
    # Between two setups nothing is known but the worse of both: the line goes level, then down.
    path = f"M{x} {y}" + "".join(f"H{x}V{y}" for x, y in rest)
    marks = [
        tag("g", tag("title", f"{point.setup['defense']}\n{point.text}"), mark("circle", *place))
        for point, place in zip(own, places, strict=True)
    ]
    return tag("g", tag("path", d=path, class_="curve"), *marks, class_=f"point {style}")


def _legend(attacks: Sequence[str]) -> Markup:
    keys = []
    for number, name in enumerate(attacks):
        dot = tag("g", mark("circle", 9, 9), class_=f"point {series(number)}")
        keys.append(tag("li", tag("svg", dot, viewBox="0 0 18 18", aria_hidden="true"), name))
    return tag("div", tag("ul", *keys, aria_label="Attack"), class_="legend")


def _table(lines: dict[str, list[Point]], varied: Sequence[str], utility: Column, attack: Column) -> Markup:
    body = []
    for name, own in lines.items():
        for point in own:
            note = f" · {point.setup.note}" if point.setup.note else ""
            who = join(tag("b", point.setup["defense"]), f" · {point.setup.described(varied)}{note}")
            numbers = [
                tag(
                    "td",
                    f"{show(one.mean, column.unit)} {show_spread(one.std, column.unit, one.mean)}".strip(),
                    class_="number",
                )
                for one, column in zip((point.x, point.y), (utility, attack), strict=True)
            ]
            body.append(tag("tr", tag("td", name), tag("td", who), *numbers))
    heads = [
        tag("th", head, scope="col", class_="number" if number > 1 else None)
        for number, head in enumerate(("attack", "setup", utility.title, attack.title))
    ]
    caption = tag(
        "caption", "Setups on the frontier of each attack: mean ± standard deviation over seeds", class_="unseen"
    )
    table = tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="asked")
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Frontier of each attack")
