"""Privacy against utility: one point per setup, drawn as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from midefense.report.columns import Column
from midefense.report.markup import Markup, join, tag
from midefense.report.numbers import show, show_spread
from midefense.report.rows import Setup, Summary, anchor_lines, summarise

LINE = 15  # height of a line of text
COLOURS = 8  # --series-1 ... of the style sheet; the next eight defenses get hollow marks
SHAPES = ("circle", "square", "diamond", "triangle", "wedge", "bow", "plus", "hexagon")
CORNERS = {
    "diamond": ((0, -8), (8, 0), (0, 8), (-8, 0)),
    "triangle": ((0, -8), (7.5, 6), (-7.5, 6)),
    "wedge": ((0, 8), (7.5, -6), (-7.5, -6)),
    "bow": ((-7.5, -6.5), (7.5, 6.5), (7.5, -6.5), (-7.5, 6.5)),
    "plus": ((-2.5, -8), (2.5, -8), (2.5, -2.5), (8, -2.5), (8, 2.5), (2.5, 2.5), (2.5, 8), (-2.5, 8), (-2.5, 2.5))
    + ((-8, 2.5), (-8, -2.5), (-2.5, -2.5)),
    "hexagon": ((-4, -7), (4, -7), (8, 0), (4, 7), (-4, 7), (-8, 0)),
}


@dataclass(frozen=True)
class Frame:
    """A drawing's size and margins in its own pixels. `name`: the style that says on which screens it is shown;
    `longest`: characters of an anchor's name; `ticks`: most ticks along x. The names of the anchors stand at the right,
    where no point can cover them, or, where that is too narrow, within the frame above their lines."""

    name: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    longest: int
    ticks: int = 7
    inside: bool = False


WIDE = Frame("wide-only", 900, 480, left=62, right=200, top=20, bottom=52, longest=28)
# As wide as a phone leaves it, so that text keeps its size there.
NARROW = Frame("narrow-only", 330, 400, left=62, right=10, top=16, bottom=48, longest=34, ticks=4, inside=True)


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low`..`high` (fractions) to pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        clipped = min(max(value, self.low), self.high)
        return round(self.start + (clipped - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, most: int = 7) -> list[float]:
        steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
        step = next(step for step in steps if (self.high - self.low) / step <= most or step == steps[-1])
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scatter(found: Sequence[Setup], numbered: Sequence[int], utility: Column, attack: Column) -> Markup | None:
    """A figure with target accuracy along x and attack accuracy along y, drawn for wide and for narrow screens; None if
    no setup has both. `numbered`: the number of each setup on the page."""
    points = [
        Point(setup, number, *(summarise(setup.rows, column.metric) for column in (utility, attack)), (utility, attack))
        for setup, number in zip(found, numbered, strict=True)
    ]
    drawn = [point for point in points if math.isfinite(point.x.mean) and math.isfinite(point.y.mean)]
    if not drawn:
        return None
    pictures = [_picture(frame, found, drawn, utility, attack) for frame in (WIDE, NARROW)]
    defenses, attacks = drawn_names(drawn)
    cut = utility_axis(drawn, 0, 1).low > 0
    return tag("figure", *pictures, legend(defenses, attacks), _caption(cut, len(points) - len(drawn)), class_="plot")


@dataclass(frozen=True)
class Point:
    """A setup, its number on the page, its utility and its leak, and what these are called."""

    setup: Setup
    number: int
    x: Summary
    y: Summary
    columns: tuple[Column, Column]

    @property
    def text(self) -> str:
        """Both numbers, a line each."""
        told = [
            (column.title.lower(), show(one.mean, "percent"), show_spread(one.std, "percent"))
            for column, one in zip(self.columns, (self.x, self.y), strict=True)
        ]
        return "\n".join(" ".join(words) for words in told)


def drawn_names(drawn: Sequence[Point]) -> tuple[list[str], list[str]]:
    """Defenses and attacks in the order in which they get colours and shapes."""
    return tuple(list(dict.fromkeys(point.setup[name] for point in drawn)) for name in ("defense", "attack"))


def _picture(frame: Frame, found: Sequence[Setup], drawn: Sequence[Point], utility: Column, attack: Column) -> Markup:
    across = utility_axis(drawn, frame.left, frame.width - frame.right)
    up = Axis(0, 1, frame.height - frame.bottom, frame.top)
    defenses, attacks = drawn_names(drawn)
    marks = [
        _point(point, across, up, series(defenses.index(point.setup["defense"])), _shape(point.setup, attacks))
        for point in drawn
    ]
    levels = _levels(frame, found, attack, up)
    return tag(
        "svg",
        scale_lines(frame, across, up, utility.title, attack.title),
        # names within the frame are written over the marks, those beside it leave the marks whole
        *((*marks, levels) if frame.inside else (levels, *marks)),
        viewBox=f"0 0 {frame.width} {frame.height}",
        role="img",
        class_=frame.name,
        aria_label=f"{attack.title} against {utility.title}, one point per setup; the numbers are in the table",
    )


def utility_axis(drawn: Sequence[Point], start: float, end: float) -> Axis:
    """The axis of what `drawn` points are good for, from pixel `start` to `end`. Utilities lie close together: the axis
    shows their range with a margin, in whole ticks, not 0 to 1."""
    values = [point.x for point in drawn]
    reach = [0 if math.isnan(value.std) else value.std for value in values]
    low = min(value.mean - r for value, r in zip(values, reach, strict=True))
    high = max(value.mean + r for value, r in zip(values, reach, strict=True))
    margin = max(0.01, 0.1 * (high - low))
    lowest, highest = math.floor((low - margin) * 100) / 100, math.ceil((high + margin) * 100) / 100
    return Axis(max(0.0, lowest), min(1.01, highest), start, end)


def series(number: int) -> str:
    """The style of what comes as `number` in its legend."""
    return f"series-{number % COLOURS + 1}" + (" hollow" if number // COLOURS % 2 else "")


def _shape(setup: Setup, attacks: Sequence[str]) -> str:
    return SHAPES[attacks.index(setup["attack"]) % len(SHAPES)]


def scale_lines(frame: Frame, across: Axis, up: Axis, across_title: str, up_title: str) -> Markup:
    """The lines, ticks and titles of a plot."""
    parts = []
    for value in up.ticks():
        y = up(value)
        parts.append(tag("line", x1=across.start, x2=across.end, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{100 * value:.0f}%", x=across.start - 10, y=y + 4, class_="tick end"))
    for value in across.ticks(frame.ticks):
        if value <= 1:
            x = across(value)
            parts.append(tag("line", x1=x, x2=x, y1=up.start, y2=up.start + 5, class_="axis"))
            parts.append(tag("text", f"{100 * value:.0f}%", x=x, y=up.start + 20, class_="tick middle"))
    parts.append(tag("line", x1=across.start, x2=across.end, y1=up.start, y2=up.start, class_="axis"))
    middle = (across.start + across.end) / 2
    parts.append(tag("text", f"{across_title} (useful →)", x=middle, y=frame.height - 10, class_="title middle"))
    turned = f"translate(14 {(up.start + up.end) / 2}) rotate(-90)"
    parts.append(tag("text", f"{up_title} (leaks →)", transform=turned, class_="title middle"))
    return join(*parts)


def _levels(frame: Frame, found: Sequence[Setup], attack: Column, up: Axis) -> Markup:
    """Horizontal lines at the anchors: what an unattacked prior and a guess reach. Their names stand at the right;
    those of near lines move up until each has a line of text, and a stroke leads to it."""
    named: dict[str, float] = {}
    for name, values in anchor_lines([row for setup in found for row in setup.rows]):
        numbers = values.get(attack.metric)
        if numbers and not name.startswith("Real"):
            named[name.removesuffix(", no attack (floor)")] = up(sum(numbers) / len(numbers))
    parts, end, free = [], frame.width - frame.right, math.inf
    for name, y in sorted(named.items(), key=lambda item: -item[1]):
        place = min(y, free)
        free = place - LINE
        shown = name if len(name) <= frame.longest else f"{name[: frame.longest - 1]}…"
        parts.append(tag("line", x1=frame.left, x2=end, y1=y, y2=y, class_="level"))
        if frame.inside:
            parts.append(tag("text", tag("title", name), shown, x=end - 2, y=place - 4, class_="tick end"))
        else:
            parts.append(tag("line", x1=end, x2=end + 12, y1=y, y2=place, class_="axis"))
            parts.append(tag("text", tag("title", name), shown, x=end + 16, y=place + 4, class_="tick"))
    return join(*parts)


def _point(point: Point, across: Axis, up: Axis, colour: str, shape: str) -> Markup:
    setup, x, y = point.setup, point.x, point.y
    centre = across(x.mean), up(y.mean)
    bottom, top = (y.mean - y.std, y.mean + y.std) if math.isfinite(y.std) else (y.low, y.high)
    bars = []
    if math.isfinite(bottom) and math.isfinite(top):
        bars.append(tag("line", x1=centre[0], x2=centre[0], y1=up(bottom), y2=up(top), class_="bar"))
    if math.isfinite(x.std):
        ends = across(x.mean - x.std), across(x.mean + x.std)
        bars.append(tag("line", x1=ends[0], x2=ends[1], y1=centre[1], y2=centre[1], class_="bar"))
    names = ("defense", "attack", "architecture", "dataset", "prior")
    words = " · ".join(word for word in (*map(setup.__getitem__, names), setup.note) if word)
    title = f"{words}\n{point.text}\nseeds: {len(setup.rows)}"
    return tag(
        "g",
        tag("title", title),
        *bars,
        mark(shape, *centre),
        class_=f"point {colour}",
        tabindex=0,
        data_setup=point.number,
    )


def mark(shape: str, x: float, y: float) -> Markup:
    """A mark of one of `SHAPES` around a place."""
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=6.5)
    if shape == "square":
        return tag("rect", x=x - 5.5, y=y - 5.5, width=11, height=11)
    return tag("polygon", points=" ".join(f"{round(x + dx, 1)},{round(y + dy, 1)}" for dx, dy in CORNERS[shape]))


def legend(defenses: Sequence[str], attacks: Sequence[str]) -> Markup:
    """What colours (defenses) and marks (attacks) mean."""

    def entry(name: str, shape: str, colour: str) -> Markup:
        key = tag("svg", tag("g", mark(shape, 9, 9), class_=f"point {colour}"), viewBox="0 0 18 18", aria_hidden="true")
        return tag("li", key, name)

    colours = [entry(name, "circle", series(n)) for n, name in enumerate(defenses)]
    shapes = [entry(name, SHAPES[n % len(SHAPES)], "series-0") for n, name in enumerate(attacks)]
    return tag(
        "div", tag("ul", *colours, aria_label="Defense"), tag("ul", *shapes, aria_label="Attack"), class_="legend"
    )


def _caption(cut: bool, left_out: int) -> Markup:
    text = (
        "Down and to the right is better: a useful target that gives little away. Bars: one standard deviation over "
        "seeds, or the 95% interval over classes where there is one seed."
    )
    if cut:
        text += " The horizontal axis does not begin at zero."
    if left_out:
        text += f" Not drawn, because a number is n/a: {left_out}."
    return tag("figcaption", text)
