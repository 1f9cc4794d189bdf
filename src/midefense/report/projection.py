"""Features of private, erased and recovered images in one plane per class, drawn as inline SVG with their hulls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from midefense.metrics.hull import convex_hull
from midefense.report.markup import Markup, join, tag
from midefense.report.rows import Row, Setup, told_apart

SIDE, MARGIN = 220, 14
SETS = ("private", "erased", "recovered")  # in the order of their numbers and of COLOURS
COLOURS = ("series-2", "series-6", "series-3")
CAPTION = (
    "The target's features of one class each, in the plane of the two principal components of the private ones. Hulls "
    "of recovered images within those of private ones leak; a defense that erases draws them to the erased ones."
)


def projections(found: Sequence[Setup], numbered: Sequence[int]) -> Markup | None:
    """One figure per setup whose rows hold projections (of its first seed that does); None without any.
    `numbered`: the number of each setup on the page."""
    varied = told_apart(found)
    drawn = (_figure(setup, number, varied) for setup, number in zip(found, numbered, strict=True))
    figures = [figure for figure in drawn if figure is not None]
    return join(*figures) if figures else None


def _figure(setup: Setup, number: int, varied: Sequence[str]) -> Markup | None:
    for row in setup.rows:
        planes = row.projections()
        if planes is not None:
            return _draw(setup, row, planes, number, varied)
    return None


def _draw(setup: Setup, row: Row, planes: dict[str, np.ndarray], number: int, varied: Sequence[str]) -> Markup:
    name = tag("h4", tag("b", setup["defense"]), f" · {setup.described(varied)}")
    note = tag("p", row.seed_text + (f" · {setup.note}" if setup.note else ""))
    classes = [_plane(int(label), row.class_name(label), planes) for label in np.unique(planes["labels"])]
    keys = [
        tag("li", tag("svg", tag("circle", cx=9, cy=9, r=5), viewBox="0 0 18 18", class_=colour), name)
        for name, colour in zip(SETS, COLOURS, strict=True)
    ]
    legend = tag("div", tag("ul", *keys, aria_label="Images"), class_="legend")
    return tag(
        "figure",
        tag("header", name, note),
        tag("div", *classes, class_="planes"),
        legend,
        tag("figcaption", CAPTION),
        class_="plot",
        data_setup=number,
    )


def _plane(label: int, name: str, planes: dict[str, np.ndarray]) -> Markup:
    own = planes["labels"] == label
    points, sets = planes["points"][own].astype(np.float64), planes["sets"][own]
    low, extent = points.min(0), max(float(np.ptp(points, axis=0).max()), 1e-12)
    # One scale for both axes: the distances that are measured are those that are seen.
    placed = MARGIN + (points - low) / extent * (SIDE - 2 * MARGIN)
    placed[:, 1] = SIDE - placed[:, 1]
    drawn = [_set(placed[sets == which], colour) for which, colour in enumerate(COLOURS)]
    words = f"features of class {label}: " + ", ".join(
        f"{int((sets == which).sum())} {name}" for which, name in enumerate(SETS)
    )
    picture = tag("svg", *drawn, viewBox=f"0 0 {SIDE} {SIDE}", role="img", aria_label=words)
    return tag("div", tag("h5", name or f"class {label}", title=f"class {label}"), picture)


def _set(points: np.ndarray, colour: str) -> Markup:
    hull = convex_hull(points) if len(points) else points
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in hull)
    outline = tag("polygon", points=corners, class_="hull") if len(hull) > 2 else None
    # Lines of no length with round ends: a quarter of the text of circles, and there are thousands.
    dots = tag("path", d="".join(f"M{x:.1f} {y:.1f}h0" for x, y in points), class_="dots") if len(points) else None
    return tag("g", outline, dots, class_=colour)
