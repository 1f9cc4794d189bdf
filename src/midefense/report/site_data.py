"""What the site's script browses: every result with every key and every number, as compact JSON.

Ten thousand results have to be read by a browser at once. So texts stand in one list and are referred to by their
places, and each key and each number is a column over all results: one value where all have the same, else one a result.
"""

from __future__ import annotations

import json
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy import stats

from midefense.report.columns import columns, other_columns
from midefense.report.configuration import Configurations
from midefense.report.data import Places, facts
from midefense.report.markup import Markup
from midefense.report.numbers import show, show_spread
from midefense.report.rows import SEEDS, Row, Setup, anchor_lines, spread

MOST_FREEDOM = 30  # degrees of freedom from which on the normal distribution's 1.96 stands for Student's t
NUMBERS = ("value", "low", "high")


def student(freedom: int) -> float:
    """How many standard errors a mean's two-sided 95 % interval reaches, at so many degrees of freedom (seeds less
    one): Student's t (Biometrika 1908)."""
    return float(stats.t.ppf(0.975, freedom))


def site_data(
    groups: Mapping[str, Sequence[Setup]], place: Path, links: Mapping[str, Mapping[str, str]] | None = None
) -> Markup:
    """The JSON for `<script type="application/json">`. No text in it can end the script element.

    Args:
        groups: setups by protocol, in the order of the page.
        place: the folder of the page, to which links to results are relative.
        links: further pages of a protocol by name, as `{"Figures": "figures-1.html"}`.
    """
    texts = Places()
    texts("")  # place 0: what a result does not say
    found = [setup for setups in groups.values() for setup in setups]
    rows = [row for setup in found for row in setup.rows]
    shown = columns(rows)
    everything = [*shown, *other_columns(rows, shown)]
    document = {
        "count": len(rows),
        "keys": _keys(found, Configurations(), texts),
        "metrics": [[c.metric, c.title, c.unit, c.higher_leaks, c.meaning] for c in everything],
        "leading": len(shown),
        "numbers": [_numbers(rows, column.metric, texts) for column in everything],
        "setups": _merged([number for number, setup in enumerate(found) for _ in setup.rows]),
        "names": [texts(row.folder.name if row.folder else "") for row in rows],
        "bases": [texts(_base(row, place)) for row in rows],
        "protocols": [
            {
                "name": name,
                "links": dict((links or {}).get(name, {})),
                "anchors": _anchors([row for setup in setups for row in setup.rows], everything[: len(shown)]),
            }
            for name, setups in groups.items()
        ],
        "student": [round(student(freedom), 4) for freedom in range(1, MOST_FREEDOM + 1)],
        "texts": texts.texts(),
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _keys(found: Sequence[Setup], configurations: Configurations, texts: Places) -> list[list]:
    """`[key, column]` for everything that any result says of itself, its configuration and its making."""
    told = [_of(row, configurations) | _of_setup(setup) for setup in found for row in setup.rows]
    names = dict.fromkeys(key for one in told for key in one)
    return [[name, _merged([texts(one.get(name, "")) for one in told])] for name in names]


def _of(row: Row, configurations: Configurations) -> dict[str, str]:
    """Everything a row says, by key, in words: later parts win where two have a key."""
    made_with = configurations.made_with(row)
    configuration, missing = configurations.of(row)
    said = {f"seed of {name}": str(row.seeds[name]) for name in SEEDS if name in row.seeds}
    said |= {f"evaluator accuracy {name}": show(value, "percent") for name, value in row.evaluator_accuracy.items()}
    own = {"stopped": row.stopped, "unreached": row.unreached, "command": row["command"]}
    own |= {"configuration missing": "; ".join(missing)}
    own = {key: text for key, text in own.items() if text}
    return {**configuration, **facts([row]), **said, **made_with, **own, "protocol": row["protocol"]}


def _of_setup(setup: Setup) -> dict[str, str]:
    """What tells a setup from others of its names, and what a reader of its numbers must know."""
    early = "stopped early" if setup.stopped else ""
    said = (setup.ladder, setup.awareness, early, setup.unreached, setup.few_classes, setup.legacy)
    own = {"differs by": setup.note, "remarks": " · ".join(word for word in said if word)}
    return {key: text for key, text in own.items() if text}


def _numbers(rows: Sequence[Row], metric: str, texts: Places) -> dict[str, object]:
    """A metric's columns: `value`, `low`, `high` (null: n/a) and `reason`, the place of a text."""
    measured = [row.metrics.get(metric) for row in rows]
    found = {
        name: _merged([None if one is None else _rounded(getattr(one, name)) for one in measured]) for name in NUMBERS
    }
    return {**found, "reason": _merged([0 if one is None else texts(one.reason) for one in measured])}


def _anchors(rows: Sequence[Row], shown: Sequence) -> list[list]:
    """Name and numbers, as texts, of what a protocol's results are to be held against."""
    lines = []
    for name, values in anchor_lines(rows):
        told = [(spread(values.get(column.metric, [])), column.unit) for column in shown]
        lines.append([name, [_level(mean, std, unit) for (mean, std), unit in told]])
    return lines


def _level(mean: float, std: float, unit: str) -> str:
    return f"{show(mean, unit)} {show_spread(std, unit, mean)}".strip() if math.isfinite(mean) else "–"


def _base(row: Row, place: Path) -> str:
    """The address of a result's folder; "" where it has none."""
    return urllib.parse.quote(Path(os.path.relpath(row.folder, place)).as_posix()) if row.folder else ""


def _merged(values: list) -> object:
    """A column: the value that all results share stands alone."""
    return values[0] if values and all(value == values[0] for value in values) else values


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
