"""Privacy against utility: one point per setup, drawn as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from midefense.report.markup import Markup, join, tag
from midefense.report.rows import Column, Setup, Summary, anchor_lines, show, show_spread, summarise

WIDTH, HEIGHT = 900, 480
LEFT, RIGHT, TOP, BOTTOM = 62, 200, 20, 52  # names of the anchors stand at the right, where no point can cover them
LINE = 15  # height of a line of text
LONGEST = 28  # characters of an anchor's name
COLOURS = 8  # --series-1 ... of the style sheet; the next eight defenses get hollow marks
SHAPES = ("circle", "square", "diamond", "triangle")


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

    def ticks(self) -> list[float]:
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (self.high - self.low) / step <= 7 or step == 0.2)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scatter(found: Sequence[Setup], utility: Column, attack: Column) -> Markup | None:
    """A figure with target accuracy along x and attack accuracy along y; None if no setup has both."""
    points = [(setup, summarise(setup.rows, utility.metric), summarise(setup.rows, attack.metric)) for setup in found]
    drawn = [point for point in points if math.isfinite(point[1].mean) and math.isfinite(point[2].mean)]
    if not drawn:
        return None
    across = _axis([point[1] for point in drawn], LEFT, WIDTH - RIGHT)
    up = Axis(0, 1, HEIGHT - BOTTOM, TOP)
    defenses = list(dict.fromkeys(setup["defense"] for setup, _, _ in drawn))
    attacks = list(dict.fromkeys(setup["attack"] for setup, _, _ in drawn))
    marks = [
        _point(setup, x, y, across, up, _colour(defenses.index(setup["defense"])), _shape(setup, attacks))
        for setup, x, y in drawn
    ]
    picture = tag(
        "svg",
        _frame(across, up, utility.title, attack.title),
        _levels(found, attack, up),
        *marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{attack.title} against {utility.title}, one point per setup; the numbers are in the table",
    )
    return tag(
        "figure", picture, _legend(defenses, attacks), _caption(across.low > 0, len(points) - len(drawn)), class_="plot"
    )


def _axis(values: Sequence[Summary], start: float, end: float) -> Axis:
    """Utilities lie close together: the axis shows their range with a margin, in whole ticks, not 0 to 1."""
    reach = [0 if math.isnan(value.std) else value.std for value in values]
    low = min(value.mean - r for value, r in zip(values, reach, strict=True))
    high = max(value.mean + r for value, r in zip(values, reach, strict=True))
    margin = max(0.01, 0.1 * (high - low))
    lowest, highest = math.floor((low - margin) * 100) / 100, math.ceil((high + margin) * 100) / 100
    return Axis(max(0.0, lowest), min(1.01, highest), start, end)


def _colour(number: int) -> str:
    """The style of the defense that comes as `number`."""
    return f"series-{number % COLOURS + 1}" + (" hollow" if number // COLOURS % 2 else "")


def _shape(setup: Setup, attacks: Sequence[str]) -> str:
    return SHAPES[attacks.index(setup["attack"]) % len(SHAPES)]


def _frame(across: Axis, up: Axis, across_title: str, up_title: str) -> Markup:
    parts = []
    for value in up.ticks():
        y = up(value)
        parts.append(tag("line", x1=across.start, x2=across.end, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{100 * value:.0f}%", x=across.start - 10, y=y + 4, class_="tick end"))
    for value in across.ticks():
        if value <= 1:
            x = across(value)
            parts.append(tag("line", x1=x, x2=x, y1=up.start, y2=up.start + 5, class_="axis"))
            parts.append(tag("text", f"{100 * value:.0f}%", x=x, y=up.start + 20, class_="tick middle"))
    parts.append(tag("line", x1=across.start, x2=across.end, y1=up.start, y2=up.start, class_="axis"))
    middle = (across.start + across.end) / 2
    parts.append(tag("text", f"{across_title} (useful →)", x=middle, y=HEIGHT - 10, class_="title middle"))
    turned = f"translate(14 {(up.start + up.end) / 2}) rotate(-90)"
    parts.append(tag("text", f"{up_title} (leaks →)", transform=turned, class_="title middle"))
    return join(*parts)


def _levels(found: Sequence[Setup], attack: Column, up: Axis) -> Markup:
    """Horizontal lines at the anchors: what an unattacked prior and a guess reach. Their names stand at the right;
    those of near lines move up until each has a line of text, and a stroke leads to it."""
    named: dict[str, float] = {}
    for name, values in anchor_lines([row for setup in found for row in setup.rows]):
        numbers = values.get(attack.metric)
        if numbers and not name.startswith("Real"):
            named[name.removesuffix(", no attack (floor)")] = up(sum(numbers) / len(numbers))
    parts, end, free = [], WIDTH - RIGHT, math.inf
    for name, y in sorted(named.items(), key=lambda item: -item[1]):
        place = min(y, free)
        free = place - LINE
        parts.append(tag("line", x1=LEFT, x2=end, y1=y, y2=y, class_="level"))
        parts.append(tag("line", x1=end, x2=end + 12, y1=y, y2=place, class_="axis"))
        shown = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        parts.append(tag("text", tag("title", name), shown, x=end + 16, y=place + 4, class_="tick"))
    return join(*parts)


def _point(setup: Setup, x: Summary, y: Summary, across: Axis, up: Axis, colour: str, shape: str) -> Markup:
    centre = across(x.mean), up(y.mean)
    bottom, top = (y.mean - y.std, y.mean + y.std) if math.isfinite(y.std) else (y.low, y.high)
    bars = []
    if math.isfinite(bottom) and math.isfinite(top):
        bars.append(tag("line", x1=centre[0], x2=centre[0], y1=up(bottom), y2=up(top), class_="bar"))
    if math.isfinite(x.std):
        ends = across(x.mean - x.std), across(x.mean + x.std)
        bars.append(tag("line", x1=ends[0], x2=ends[1], y1=centre[1], y2=centre[1], class_="bar"))
    words = " · ".join(word for word in (setup["defense"], setup["attack"], setup["architecture"], setup.note) if word)
    title = (
        f"{words}\ntarget accuracy {show(x.mean, 'percent')} {show_spread(x.std, 'percent')}\n"
        f"attack accuracy {show(y.mean, 'percent')} {show_spread(y.std, 'percent')}\nseeds: {len(setup.rows)}"
    )
    return tag("g", tag("title", title), *bars, _mark(shape, *centre), class_=f"point {colour}", tabindex=0)


def _mark(shape: str, x: float, y: float) -> Markup:
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=6.5)
    if shape == "square":
        return tag("rect", x=x - 5.5, y=y - 5.5, width=11, height=11)
    corners = ((0, -8), (8, 0), (0, 8), (-8, 0)) if shape == "diamond" else ((0, -8), (7.5, 6), (-7.5, 6))
    return tag("polygon", points=" ".join(f"{x + dx},{y + dy}" for dx, dy in corners))


def _legend(defenses: Sequence[str], attacks: Sequence[str]) -> Markup:
    def entry(name: str, shape: str, colour: str) -> Markup:
        key = tag(
            "svg", tag("g", _mark(shape, 9, 9), class_=f"point {colour}"), viewBox="0 0 18 18", aria_hidden="true"
        )
        return tag("li", key, name)

    colours = [entry(name, "circle", _colour(n)) for n, name in enumerate(defenses)]
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
