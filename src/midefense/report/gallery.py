"""Reconstructions over their nearest private images, class by class, as PNG inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np

from midefense.report.markup import Markup, join, tag, void
from midefense.report.numbers import show
from midefense.report.rows import Row, Setup, told_apart

MOST_CLASSES = 10
MOST_COLUMNS = 15  # image columns over all classes of a strip; they share them evenly
FEWEST_COLUMNS = 5
MOST_PAIRS = 480  # on a page, as long as every strip has its fewest columns: a phone has to hold them
MOST_CANDIDATES = 4
LARGEST = 96  # pixels; larger images are reduced, smaller ones kept exactly


def gallery(found: Sequence[Setup], numbered: Sequence[int]) -> Markup | None:
    """One strip per setup: the first seed that has pictures, classes side by side; None without any pictures.
    `numbered`: the number of each setup on the page."""
    most = min(MOST_COLUMNS, max(FEWEST_COLUMNS, MOST_PAIRS // max(1, len(found))))
    varied = told_apart(found)
    drawn = (_strip(setup, number, most, varied) for setup, number in zip(found, numbered, strict=True))
    strips = [strip for strip in drawn if strip is not None]
    return tag("div", *strips, class_="gallery") if strips else None


def _strip(setup: Setup, number: int, most: int, varied: Sequence[str]) -> Markup | None:
    for row in setup.rows:
        pictures = row.pictures()
        if pictures is not None and len(pictures["labels"]):
            return _draw(setup, row, pictures, number, most, varied)
    return None


def _draw(
    setup: Setup, row: Row, pictures: dict[str, np.ndarray], number: int, most: int, varied: Sequence[str]
) -> Markup:
    labels = np.unique(pictures["labels"])
    shown = labels[: min(MOST_CLASSES, most)]
    candidates = max(1, min(MOST_CANDIDATES, most // len(shown)))
    classes = []
    for label in shown:
        places = np.flatnonzero(pictures["labels"] == label)[:candidates]
        pairs = [pair(pictures, place, class_words(row, label), row.matched) for place in places]
        heading = tag("h5", row.class_name(label) or f"class {label}", title=f"class {label}")
        columns = f"--columns:{len(places)}"
        classes.append(tag("div", heading, tag("div", *pairs, class_="pairs"), class_="class", style=columns))
    name = tag("h4", tag("b", setup["defense"]), f" · {setup.described(varied)}")
    more = f", {len(shown)} of {len(labels)} classes" if len(labels) > len(shown) else ""
    note = f"{row.seed_text}{more}" + (f" · {setup.note}" if setup.note else "")
    below = "private image" if row.matched else "nearest private"
    key = tag("div", tag("span", "recovered"), tag("span", below), class_="key", aria_hidden="true")
    strip = tag(
        "div", key, *classes, class_="strip", tabindex=0, role="group", aria_label=f"Pictures of {setup['defense']}"
    )
    return tag("section", tag("header", name, tag("p", note)), strip, data_setup=number)


def class_words(row: Row, label: int) -> str:
    """A class in words: `class 3`, and what it is called."""
    name = row.class_name(label)
    return f"class {label} ({name})" if name else f"class {label}"


def pair(pictures: dict[str, np.ndarray], place: int, named: str, matched: bool) -> Markup:
    """One reconstruction over its private image. `pictures` as `Row.pictures` gives them, `place`: which of them,
    `named`: its class in words, `matched`: whether it answers that private image, or that one is the nearest."""
    confidence, distance = float(pictures["confidence"][place]), float(pictures["distance"][place])
    sure = show(confidence, "percent") if math.isfinite(confidence) else "n/a"
    words = f"confidence {sure}, distance {show(distance, 'number')}"
    return tag(
        "figure",
        _image(pictures["reconstructions"][place], f"reconstruction of {named}"),
        _image(pictures["nearest"][place], f"{'private image' if matched else 'nearest private image'} of {named}"),
        tag("figcaption", join(sure), title="the attacked target's confidence in the class"),
        title=words,
    )


def _image(pixels: np.ndarray, words: str) -> Markup:
    address = "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")
    return void("img", src=address, alt=words)


def png(pixels: np.ndarray) -> bytes:
    """A uint8 image [C, H, W], C 1 or 3, as a PNG file, reduced to at most `LARGEST` pixels a side."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
