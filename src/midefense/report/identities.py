"""A page per identity: what every setup recovered of one class, beside the private images it is held against.

What may be shown is decided when a result is made: only results that keep pictures have any (`Row.pictures`), and a
dataset none of whose results does gets no page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from midefense.report.gallery import class_words, pair
from midefense.report.markup import Markup, join, tag
from midefense.report.rows import Row, Setup

MOST_IDENTITIES = 100  # pages of a dataset
MOST_SETUPS, FEWEST_SETUPS = 60, 5  # on a page
MOST_PAIRS = 3_000  # of a dataset, as long as every page has its fewest setups
PAIRS = 2  # candidates of a setup on a page


@dataclass(frozen=True)
class Shelf:
    """The page of one identity: its `dataset`, its `name` in a list, the `title` and `counts` at its head, the `file`
    it is written to, and what stands on it."""

    dataset: str
    name: str
    title: str
    counts: str
    file: str
    markup: Markup


def shelves(found: Sequence[Setup]) -> list[Shelf]:
    """One per dataset and class, of the setups that keep pictures; of many setups first one of every defense and
    attack."""
    datasets = dict.fromkeys(setup["dataset"] for setup in found)
    return [
        shelf
        for number, dataset in enumerate(datasets, 1)
        for shelf in _of_dataset(dataset, number, [setup for setup in found if setup["dataset"] == dataset])
    ]


def _of_dataset(dataset: str, number: int, found: Sequence[Setup]) -> Iterator[Shelf]:
    pictured = [(setup, row) for setup in _spread(found) if (row := _pictured(setup)) is not None]
    seen = [(setup, row, pictures) for setup, row in pictured[:MOST_SETUPS] if (pictures := row.pictures()) is not None]
    labels = sorted({int(label) for _, _, pictures in seen for label in np.unique(pictures["labels"])})[
        :MOST_IDENTITIES
    ]
    most = min(MOST_SETUPS, max(FEWEST_SETUPS, MOST_PAIRS // (PAIRS * max(1, len(labels)))))
    for label in labels:
        strips = [(setup, row, pictures) for setup, row, pictures in seen if (pictures["labels"] == label).any()][:most]
        yield _shelf(dataset, number, label, strips, len(pictured))


def _spread(found: Sequence[Setup]) -> list[Setup]:
    """The setups, first one of every defense and attack."""
    first: dict[tuple[str, str], Setup] = {}
    for setup in found:
        first.setdefault((setup["defense"], setup["attack"]), setup)
    chosen = set(map(id, first.values()))
    return [*first.values(), *(setup for setup in found if id(setup) not in chosen)]


def _pictured(setup: Setup) -> Row | None:
    return next((row for row in setup.rows if row.picture_file is not None), None)


def _shelf(dataset: str, number: int, label: int, strips: Sequence[tuple], of: int) -> Shelf:
    name = next((word for _, row, _ in strips if (word := row.class_name(label))), "") or f"class {label}"
    sections = [_strip(setup, row, pictures, label) for setup, row, pictures in strips]
    below = "the private image that it answers" if strips[0][1].matched else "the private image nearest to it"
    lead = f"Above: recovered by the attack. Below: {below}. Shown in stored order, not picked."
    markup = join(tag("p", lead, class_="lead"), tag("div", *sections, class_="shelf"))
    said = f"class {label} of {dataset} · {len(strips)} of {of:,} setups with pictures"
    return Shelf(dataset, name, f"{dataset}: {name}", said, f"identities-{number}-{label}.html", markup)


def _strip(setup: Setup, row: Row, pictures: dict[str, np.ndarray], label: int) -> Markup:
    places = np.flatnonzero(pictures["labels"] == label)[:PAIRS]
    pairs = [pair(pictures, place, class_words(row, label), row.matched) for place in places]
    others = (
        setup["attack"],
        setup["architecture"],
        setup["prior"],
        setup.note,
        row.seed_text,
        f"protocol {setup['protocol']}",
    )
    about = tag("small", " · ".join(word for word in others if word))
    return tag("section", tag("h3", setup["defense"]), about, tag("div", *pairs, class_="pairs"))
