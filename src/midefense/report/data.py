"""What the page's script shows on demand: every number, fact and configuration of every setup, as compact JSON.

Texts are formatted here, once; the script only places them. Names that repeat stand in lists and are referred to by
their places, so that 48 setups over three seeds stay far below a megabyte.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from midefense.report.columns import Column, columns, other_columns
from midefense.report.configuration import Configurations, flat
from midefense.report.markup import Markup
from midefense.report.numbers import show, show_spread
from midefense.report.rows import NAMES, SEEDS, Row, Setup, anchor_lines, spread, summarise

MOST_CLASSES = 20  # of more, a number's spread over classes is told instead of every class
# Parts of `about` that are told in words of their own, or are no facts about the setup.
TOLD = ("seeds", "setup", "baseline", "ids", "command", "stopped", "unreached", "class_names", "protocol", "selection")


class Places:
    """Texts in the order in which they first came; a text's place stands for it."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))

    def texts(self) -> list[str]:
        """The texts by place."""
        return list(self._places)


def script_data(groups: Mapping[str, tuple[Sequence[Row], Sequence[Setup]]], place: Path) -> Markup:
    """The JSON for `<script type="application/json">`. `groups`: rows and setups by protocol, in the page's order;
    links to results are relative to the folder `place`. No text in it can end the script element."""
    texts, found = Places(), []
    protocols = {}
    configurations = Configurations()
    for protocol, (rows, setups) in groups.items():
        shown = columns(rows)
        everything = [*shown, *other_columns(rows, shown)]
        protocols[protocol] = {
            "columns": [[c.metric, c.title, c.leaks, c.meaning] for c in everything],
            "anchors": [
                [name, [_level(values.get(c.metric, []), c) for c in everything]] for name, values in anchor_lines(rows)
            ],
        }
        found += [_setup(setup, protocol, everything, configurations, texts, place) for setup in setups]
    document = {"protocols": protocols, "setups": found, "texts": texts.texts()}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def facts(rows: Sequence[Row]) -> dict[str, str]:
    """What rows say of themselves by dotted key, whatever they will come to say; values that differ between seeds stand
    side by side."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        said = {name: row.about[name] for name in NAMES if name in row.about}
        said |= {name: value for name, value in row.about.items() if name not in TOLD}
        for key, text in flat(said | ({"selection": row.selection} if row.selection else {})):
            found.setdefault(key, {})[text] = None
    return {key: ", ".join(texts) for key, texts in found.items()}


def numbers(setup: Setup, column: Column) -> list[object]:
    """A metric of a setup: mean as text, its spread, its interval, a remark, and the mean as a number (None: n/a)."""
    found = summarise(setup.rows, column.metric)
    if not found.seen:
        return ["n/a", "", "", found.reason, None]
    deviation = show_spread(found.std, column.unit, found.mean)
    bounds = ""
    if math.isfinite(found.low):
        bounds = f"{show(found.low, column.unit)} to {show(found.high, column.unit)}"
    partly = f" ({found.seen}/{found.total})" if found.seen < found.total else ""
    return [show(found.mean, column.unit) + partly, deviation, bounds, found.reason, _rounded(found.mean)]


def _setup(
    setup: Setup,
    protocol: str,
    shown: Sequence[Column],
    configurations: Configurations,
    texts: Places,
    place: Path,
) -> dict[str, object]:
    told = [configurations.of(row) for row in setup.rows]
    common = told[0][0]
    seeds = []
    for row, (configuration, missing) in zip(setup.rows, told, strict=True):
        own = {key: value for key, value in configuration.items() if common.get(key) != value}
        absent = {key: "–" for key in common if key not in configuration} if configuration else {}
        seeds.append(_seed(row, shown, texts, place) | {"own": _pairs(own | absent, texts), "missing": missing})
    return {
        "protocol": protocol,
        "note": setup.note,
        "stopped": setup.stopped,
        "facts": _pairs(facts(setup.rows), texts),
        "configuration": _pairs(common, texts),
        "numbers": [_numbers(setup, column, texts) for column in shown],
        "classes": [_by_class(setup, column.metric, texts) for column in shown],
        "seeds": seeds,
    }


def _numbers(setup: Setup, column: Column, texts: Places) -> list[object]:
    *words, remark, value = numbers(setup, column)
    images = sum(row.metrics[column.metric].n for row in setup.rows if column.metric in row.metrics)
    return [*words, texts(str(remark)), value, images]


def _seed(row: Row, shown: Sequence[Column], texts: Places, place: Path) -> dict[str, object]:
    """One result: how to make it again, where its files are, what it came from, and its numbers."""
    seeds = {f"seed of {name}": str(row.seeds[name]) for name in SEEDS if name in row.seeds}
    ids = [(f"id of {role}", one) for role, one in flat(dict(row.about.get("ids") or {}))]
    return {
        "name": row.seed_text or "result",
        "command": row["command"],
        **_files(row, place, texts),
        "facts": _pairs(seeds | dict(ids), texts),
        "values": [
            _rounded(row.metrics[column.metric].value) if column.metric in row.metrics else None for column in shown
        ],
    }


def _by_class(setup: Setup, metric: str, texts: Places) -> list[object]:
    """A metric class by class, each the mean over seeds: the classes' names (the place of a text with one a line) and
    their numbers; of many classes the least, the quartiles and the largest."""
    seeds = [row.metrics[metric].per_class for row in setup.rows if metric in row.metrics]
    labels = list(dict.fromkeys(label for values in seeds for label in values))
    means = {label: statistics.fmean(values[label] for values in seeds if label in values) for label in labels}
    if len(means) <= MOST_CLASSES:
        names = [setup.rows[0].class_name(label) or f"class {label}" for label in means]
        return [texts("\n".join(names)), " ".join(f"{mean:.3g}" for mean in means.values())] if means else []
    finite = [mean for mean in means.values() if math.isfinite(mean)]
    if len(finite) < 2:
        return []
    spots = [min(finite), *statistics.quantiles(finite, n=4), max(finite)]
    words = ("least", "quartile", f"median of {len(finite)} classes", "quartile", "largest")
    return [texts("\n".join(words)), " ".join(f"{spot:.3g}" for spot in spots)]


def _files(row: Row, place: Path, texts: Places) -> dict[str, object]:
    """The address of a result's folder, and the names of its files."""
    if row.folder is None:
        return {"base": "", "files": []}
    names = sorted(path.name for path in row.folder.iterdir() if path.is_file() and not path.name.startswith("."))
    base = Path(os.path.relpath(row.folder, place)).as_posix()
    return {"base": urllib.parse.quote(base), "files": [texts(name) for name in names]}


def _pairs(said: Mapping[str, str], texts: Places) -> list[int]:
    """Keys and values as places, one after the other."""
    return [texts(text) for pair in said.items() for text in pair]


def _level(values: Sequence[float], column: Column) -> list[str]:
    mean, std = spread(values)
    return [show(mean, column.unit), show_spread(std, column.unit, mean)] if values else ["–", ""]


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
