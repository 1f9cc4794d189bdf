"""Result rows: reading them from the store, and grouping the seeds of one setup."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from midefense.metrics.intervals import FEW
from midefense.metrics.relative import relative
from midefense.report.numbers import show
from midefense.store.store import Store
from midefense.types import Refused

NAMES = ("dataset", "public", "architecture", "defense", "prior", "attack", "access")
ALWAYS = ("defense", "attack")
SEEDS = ("target", "prior", "attack")
LEGACY = "selected on the test set (legacy)"  # a target whose test accuracy is too high
PICTURES = ("reconstructions", "nearest", "labels", "distance", "confidence")
CURVE = ("queries", "accuracy", "low", "high")
PROJECTION = ("points", "labels", "sets")
AWARE = {"yes": "knew the defense", "partly": "knew part of the defense"}
NOT_MEASURED = "not measured in this row"
DERIVED = "derived"  # the kind of a number that is computed here, from others of its row
ENOUGH = 30  # classes, from which on the bootstrap of former rows held what it said
TOO_NARROW = "its interval is a former one, too narrow over so few classes: evaluate again"


@dataclass(frozen=True)
class Value:
    """One measured number: NaN with a `reason` if it could not be computed; `low` and `high` bound the 95 %
    interval over classes; `higher_leaks` says which direction is worse for the owner of the images."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    per_class: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    higher_leaks: bool | None = None
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """One evaluated attack. `about` holds the setup's texts and numbers, `seeds` one integer per verb."""

    about: Mapping[str, object]
    seeds: Mapping[str, int]
    metrics: Mapping[str, Value]
    anchors: Mapping[str, Mapping[str, float]]
    folder: Path | None = None

    @classmethod
    def parse(cls, document: Mapping, folder: Path | None = None) -> Row:
        """A row from the content of a result's `metrics.json`; `Refused` names what is missing, or that something is
        not what `evaluate` writes."""
        try:
            row = cls._parsed(document, folder)
            row._require_readable()
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise Refused(
                f"metrics.json: expected a row as evaluate writes it, got another ({type(error).__name__}: {error})"
            ) from error
        return row

    @classmethod
    def _parsed(cls, document: Mapping, folder: Path | None) -> Row:
        for part in ("row", "metrics"):
            if not isinstance(document, Mapping) or not isinstance(document.get(part), Mapping):
                raise Refused(f"metrics.json: expected an object with an object {part!r}")
        about = document["row"]
        missing = [name for name in (*NAMES, "seeds", "protocol", "setup") if name not in about]
        if missing:
            raise Refused(f"metrics.json: row lacks {', '.join(missing)}")
        for name, said in about.get("evaluators", {}).items():
            if lacking := [key for key in ("name", "accuracy", "images", "guessed") if key not in said]:
                raise Refused(f"metrics.json: evaluator {name} lacks {', '.join(lacking)}")
        metrics = {name: _value(name, entry) for name, entry in document["metrics"].items()}
        anchors = {
            kind: {name: _number(value) for name, value in levels.items()}
            for kind, levels in document.get("anchors", {}).items()
        }
        derived = [_relative(name, value, anchors) for name, value in metrics.items()]
        for name, value, levels in (found for found in derived if found is not None):
            metrics[name] = value
            for kind, level in levels.items():
                anchors[kind][name] = level
        return cls(about, about["seeds"], metrics, anchors, folder)

    def _require_readable(self) -> None:
        """Read all that tables and pages do, so that what cannot be is named here and not there."""
        for name, seed in self.seeds.items():
            if name not in SEEDS or not (seed is None or type(seed) is int):  # None: a prior that draws nothing
                raise Refused(f"metrics.json: expected whole numbers as seeds, got {name}={seed!r}")
        "".join(
            [*self.key, self.seed_text, self.stopped, self.unreached, self.selection, self.evaluators, self.machines]
        )
        sum(self.evaluator_accuracy.values())

    def __getitem__(self, name: str) -> str:
        return str(self.about.get(name, ""))

    @property
    def names(self) -> tuple[str, ...]:
        """What a table calls a setup; setups of the same names may differ in what no name tells."""
        return tuple(self[name] for name in (*NAMES, "protocol"))

    @property
    def key(self) -> tuple[str, ...]:
        """What rows must share to be seeds of one setup: the names, and the hash of all settings but the seeds."""
        return (*self.names, self["setup"])

    @property
    def seed_text(self) -> str:
        return " · ".join(f"{name} {self.seeds[name]}" for name in SEEDS if name in self.seeds)

    @property
    def stopped(self) -> str:
        """Why the attack ended early (a budget spent), "" if it did not."""
        return "; ".join(self.about.get("stopped") or ())

    @property
    def unreached(self) -> str:
        """Which classes the attack stands by nothing of, "" if it has a candidate of each: they count as failed."""
        lost = self.about.get("unreached") or ()
        return ", ".join(self.class_name(label) or f"class {label}" for label in lost)

    @property
    def few_classes(self) -> str:
        """`5 classes only` where a row is about fewer than its numbers need, else ""."""
        count = self["classes"]
        if not count.isdecimal() or int(count) >= FEW:
            return ""
        return "1 class only" if int(count) == 1 else f"{count} classes only"

    @property
    def selection(self) -> str:
        """How the target's weights were chosen, spelt out where that flatters them."""
        return LEGACY if self["selection"] == "test_legacy" else self["selection"]

    def class_name(self, label: object) -> str:
        """What the dataset calls the class `label`, "" where the row does not say."""
        names = self.about.get("class_names")
        return str(names.get(str(label), "")) if isinstance(names, Mapping) else ""

    @property
    def evaluators(self) -> str:
        """Who judged, and what each knows of real test images; rows of before it was recorded tell nothing."""
        return "; ".join(_evaluator(name, one) for name, one in self.about.get("evaluators", {}).items())

    @property
    def evaluator_accuracy(self) -> dict[str, float]:
        """The share of real test images that each evaluator gets right, by evaluator."""
        return {name: _number(one["accuracy"]) for name, one in self.about.get("evaluators", {}).items()}

    @property
    def matched(self) -> bool:
        """Whether each reconstruction answers one private image and is held against that."""
        return self["matched"] == "image"

    @property
    def machines(self) -> str:
        """On what its parts were computed, each machine once: a GPU by its kind, a CPU with its threads."""
        return ", ".join(dict.fromkeys(self.about.get("made_on", {}).values())) or self["device"]

    @property
    def picture_file(self) -> Path | None:
        """Where the row's pictures lie, None if it has none."""
        path = self.folder / "tensors.safetensors" if self.folder else None
        return path if path is not None and path.exists() else None

    def pictures(self) -> dict[str, np.ndarray] | None:
        """`reconstructions` and `nearest` uint8 [K, C, H, W], `labels` [K], `distance` [K], `confidence` [K];
        None if the row has none."""
        if self.picture_file is None:
            return None
        with safe_open(self.picture_file, framework="numpy") as tensors:
            return {name: tensors.get_tensor(name) for name in PICTURES}

    def answers(self, evaluator: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The class that each picture was recovered for, and the one that `evaluator` saw in it (-1: none), int64 [M]
        each; None for rows from before these were kept."""
        names = ("answered", f"answers.{evaluator}")
        if self.picture_file is None:
            return None
        with safe_open(self.picture_file, framework="numpy") as tensors:
            if not set(names) <= set(tensors.keys()):
                return None
            wanted, seen = (tensors.get_tensor(name) for name in names)
        return wanted, seen

    def paired(self, evaluator: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The private image that each reconstruction answers, whom it shows, and whom `evaluator` saw in the
        reconstruction (-1: nobody), int64 [M] each; None for rows that match no images."""
        names = ("paired.ids", "paired.identities", f"paired.answers.{evaluator}")
        if self.picture_file is None:
            return None
        with safe_open(self.picture_file, framework="numpy") as tensors:
            if not set(names) <= set(tensors.keys()):
                return None
            ids, identities, seen = (tensors.get_tensor(name) for name in names)
        return ids, identities, seen

    def curve(self) -> dict[str, np.ndarray] | None:
        """Accuracy against queries, as the evaluator called main sees it, or the first: `queries` float [P], ascending,
        and `accuracy`, `low` and `high` [P]; None if the row has none."""
        names = [name for name in self.about.get("evaluators", {}) if name == "main"] or list(
            self.about.get("evaluators", {})
        )
        if self.picture_file is None or not names:
            return None
        with safe_open(self.picture_file, framework="numpy") as tensors:
            full = {name: f"curve.{names[0]}.{name}" for name in CURVE}
            if not set(full.values()) <= set(tensors.keys()):
                return None
            return {name: tensors.get_tensor(one) for name, one in full.items()}

    def projections(self) -> dict[str, np.ndarray] | None:
        """Features of a few classes in a plane each: `points` [P, 2], `labels` [P], and `sets` [P] (0 private, 1
        erased, 2 recovered); None if the row has none."""
        if self.picture_file is None:
            return None
        with safe_open(self.picture_file, framework="numpy") as tensors:
            names = {name: f"projection.{name}" for name in PROJECTION}
            if not set(names.values()) <= set(tensors.keys()):
                return None
            return {name: tensors.get_tensor(full) for name, full in names.items()}


@dataclass(frozen=True)
class Broken:
    """A result that could not be read or is not what was written, and why."""

    name: str
    reason: str


def read_rows(store: str | Path) -> tuple[list[Row], list[Broken]]:
    """All results of a store, sorted by setup and seed, and those that cannot be read, were changed since they were
    written, or were computed from parents that were exchanged since (`Store.verified`)."""
    rows, broken = [], []
    shelf = Store(store)
    for folder in shelf.folders("result"):
        try:
            row = Row.parse(shelf.verified(folder).metrics, folder)
            if row.picture_file is not None:
                _check_pictures(row.picture_file)
        except (OSError, ValueError, SafetensorError) as error:
            broken.append(Broken(folder.name, f"{type(error).__name__}: {error}"))
        else:
            rows.append(row)
    return sorted(rows, key=lambda row: (_order(row), sorted(row.seeds.items()))), broken


@dataclass(frozen=True)
class Setup:
    """Rows that differ in their seeds only. `note` tells apart setups of the same names: what their commands add."""

    rows: Sequence[Row]
    note: str = ""

    def __getitem__(self, name: str) -> str:
        return self.rows[0][name]

    def described(self, varied: Sequence[str]) -> str:
        """`gmi on cnn`, and what else of the names `varied` tells it from others of its defense."""
        rest = [self[name] for name in varied if name not in (*ALWAYS, "architecture")]
        return " · ".join([f"{self['attack']} on {self['architecture']}", *filter(None, rest)])

    @property
    def stopped(self) -> str:
        """Why attacks ended early, each reason once; "" if none did."""
        return "; ".join(dict.fromkeys(row.stopped for row in self.rows if row.stopped))

    @property
    def unreached(self) -> str:
        """`never reached: class 3, class 8`, of all seeds together; "" where each class has a candidate."""
        said = list(dict.fromkeys(row.unreached for row in self.rows if row.unreached))
        return f"never reached: {'; '.join(said)}" if said else ""

    @property
    def few_classes(self) -> str:
        """`5 classes only` where the rows are about fewer than their numbers need, else ""."""
        return self.rows[0].few_classes

    @property
    def ladder(self) -> str:
        """At which rung of the ladder of attacks on released features it stands; "" for attacks on none."""
        return self["rung"] and f"rung {self['rung']}"

    @property
    def awareness(self) -> str:
        """`knew the defense`, or `knew part of the defense`; "" where its attack was not made for what is deployed,
        where nothing is, and where rows do not say (`knew`)."""
        said = {row["knew"] for row in self.rows}
        return AWARE.get(said.pop(), "") if len(said) == 1 else ""

    @property
    def legacy(self) -> str:
        """What makes the target's accuracy incomparable, "" if nothing does."""
        return LEGACY if any(row.selection == LEGACY for row in self.rows) else ""


def told_apart(found: Sequence[Setup]) -> list[str]:
    """The names that tell setups of one table apart; defense and attack are always said."""
    return [name for name in NAMES if name in ALWAYS or len({setup[name] for setup in found}) > 1]


def by_protocol(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows per protocol hash: numbers of different protocols are not to be ranked together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["protocol"], []).append(row)
    return groups


def setups(rows: Iterable[Row]) -> list[Setup]:
    """Group the seeds of each setup; setups of the same names get notes that tell them apart."""
    groups = [list(group) for _, group in itertools.groupby(sorted(rows, key=_order), key=lambda row: row.key)]
    found = []
    for _, alike in itertools.groupby(groups, key=lambda group: group[0].names):
        same_names = list(alike)
        found += [Setup(group, note) for group, note in zip(same_names, _notes(same_names), strict=True)]
    return found


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds of a setup: `mean` and sample standard deviation `std` of the `seen` finite values
    out of `total`; `low` and `high` are the outermost bounds of the seeds' intervals over classes, since every seed
    attacks the same classes: more seeds do not make more of them. `std` says how far one seed is from another, and is
    no interval of the mean."""

    mean: float
    std: float
    seen: int
    total: int
    low: float
    high: float
    reason: str


def summarise(rows: Sequence[Row], metric: str) -> Summary:
    """Collapse `metric` over `rows`; the reasons of values that are missing are kept."""
    absent = Value(math.nan, reason=NOT_MEASURED)
    values = [row.metrics.get(metric, absent) for row in rows]
    finite = [value for value in values if math.isfinite(value.value)]
    reasons = list(dict.fromkeys(value.reason for value in values if value.reason))
    mean, std = spread([value.value for value in finite])
    lows = [value.low for value in finite if math.isfinite(value.low)]
    highs = [value.high for value in finite if math.isfinite(value.high)]
    low, high = min(lows, default=math.nan), max(highs, default=math.nan)
    return Summary(mean, std, len(finite), len(values), low, high, "; ".join(reasons))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def notes_on(rows: Sequence[Row]) -> list[str]:
    """What a reader of a table must know of its numbers, a line each: who judged and how well they know real images,
    and on what the rows were computed."""
    judges = dict.fromkeys(row.evaluators or "not recorded" for row in rows)
    others = dict.fromkeys(other for row in rows if (other := row["prior_learned_from"]))
    machines = dict.fromkeys(row.machines or "not recorded" for row in rows)
    return [
        *(f"evaluators: {text}" for text in judges),
        *(f"prior learned from {other}, not from the target attacked: it understates what leaks" for other in others),
        *(f"computed on: {text}" for text in machines),
    ]


def anchor_lines(rows: Sequence[Row]) -> list[tuple[str, dict[str, list[float]]]]:
    """What the numbers of a table are to be held against: real images, every prior's samples, chance. Each line
    has a name and, per metric, the finite values found in the rows."""
    lines = [
        ("Real private images (ceiling)", _anchors(rows, "real")),
        ("Other images of the same identities", _anchors(rows, "other")),
    ]
    for prior in sorted({row["prior"] for row in rows}):
        own = [row for row in rows if row["prior"] == prior]
        lines.append((f"Samples of {prior}, no attack (floor)", _anchors(own, "prior")))
        lines.append((f"Samples of {prior}, truncated as the attack's starts (floor)", _anchors(own, "truncated")))
    lines.append(("The same attack on a placebo that was never told who is who", _anchors(rows, "placebo")))
    lines.append(("Chance", _anchors(rows, "chance")))
    return [line for line in lines if line[1]]


def _order(row: Row) -> tuple:
    """Undefended targets first: they are what a defense is compared with."""
    return tuple((part != "none", part) for part in row.key)


def _notes(groups: Sequence[Sequence[Row]]) -> list[str]:
    """One note per setup of the same names: what its commands have and not all others, else the setup's hash."""
    if len(groups) == 1:
        return [""]
    said = [_settings(rows) for rows in groups]
    common = set.intersection(*(set(words) for words in said))
    notes = [" ".join(word for word in words if word not in common) or "as in its files" for words in said]
    hashes = [f"setup {rows[0]['setup']}" for rows in groups]
    return [note if notes.count(note) == 1 else own for note, own in zip(notes, hashes, strict=True)]


def _settings(rows: Sequence[Row]) -> list[str]:
    """The words that the commands of a setup's seeds share."""
    commands = [row["command"].split() for row in rows]
    shared = set.intersection(*(set(words) for words in commands))
    return [word for word in commands[0] if word in shared and not re.match(r"\+*seeds?(\.\w+)?=", word)]


def _evaluator(name: str, said: Mapping[str, object]) -> str:
    known = f"{show(said['accuracy'], 'percent')} of {said['images']:,} real test images"
    return f"{name} = {said['name']}, {known}" + (", which is what guessing gives" if said["guessed"] else "")


def _anchors(rows: Sequence[Row], kind: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for metric, value in row.anchors.get(kind, {}).items():
            if math.isfinite(value):
                found.setdefault(metric, []).append(value)
    return found


def _value(name: str, entry: object) -> Value:
    if not isinstance(entry, Mapping) or "value" not in entry:
        raise Refused(f"metrics.json: {name} lacks a value")
    former = not entry.get("interval") and entry.get("low") is not None
    few = former and len(entry.get("per_class") or {}) < ENOUGH
    return Value(
        value=_number(entry["value"]),
        low=_number(entry.get("low")),
        high=_number(entry.get("high")),
        n=int(entry.get("n") or 0),
        per_class={
            str(label): math.nan if value is None else float(value)
            for label, value in (entry.get("per_class") or {}).items()
        },
        reason="; ".join(filter(None, (str(entry.get("reason") or ""), TOO_NARROW if few else ""))),
        higher_leaks=entry.get("higher_leaks"),
        kind=str(entry.get("kind") or ""),
    )


def _relative(
    name: str, raw: Value, anchors: Mapping[str, Mapping[str, float]]
) -> tuple[str, Value, dict[str, float]] | None:
    """A number of `metrics.relative`, with its interval and its anchors."""
    found = relative(name, raw.value, anchors)
    if found is None:
        return None
    known, placed, levels = found
    value = replace(raw, value=placed(raw.value), low=placed(raw.low), high=placed(raw.high), kind=DERIVED)
    return known, value, levels


def _number(value: object) -> float:
    """A number of a JSON file; null and the text "nan" are NaN."""
    return math.nan if value is None else float(value)


def _check_pictures(path: Path) -> None:
    """Refuse a file of pictures that does not hold what `Row.pictures` promises; reads its header only."""
    with safe_open(path, framework="numpy") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys() if name in PICTURES}  # noqa: SIM118
        shapes = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    missing = [name for name in PICTURES if name not in shapes]
    if missing:
        raise Refused(f"{path.name}: expected {', '.join(PICTURES)}; {', '.join(missing)} missing")
    lengths = {name: shape[0] if shape else 0 for name, (_, shape) in shapes.items()}
    if len(set(lengths.values())) > 1:
        raise Refused(f"{path.name}: expected aligned rows, got lengths {lengths}")
    for name in ("reconstructions", "nearest"):
        dtype, shape = shapes[name]
        if dtype != "U8" or len(shape) != 4 or shape[1] not in (1, 3):
            raise Refused(f"{path.name}: {name}: expected U8 [K, 1 or 3, H, W], got {dtype} {shape}")
