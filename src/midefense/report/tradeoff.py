"""What a defense takes from the attack for what it takes from the target: the trade-off of MIDRE and TL-DMI.

Delta = (attack accuracy undefended - defended) / (target accuracy undefended - defended), Tran et al., TMLR 2025, after
Ho et al., CVPR 2024: points of attack accuracy won per point of target accuracy lost. It stands with its interval, and
only where the target's accuracy surely drops: over a drop that may be none, any number comes out. Beside it stands what
needs no quotient: which attack accuracy other defenses leave at the same target accuracy.

Where each reconstruction is held against the private image it answers (split inference), the same is said of the
identity accuracy and of what released features are good for: a defense that only releases leaves the target as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from midefense.report.columns import RELEASED, TARGET, Column, axes, columns
from midefense.report.numbers import show
from midefense.report.quotient import NORMAL, Drops, Quotient, quotient, sampling_variance
from midefense.report.rows import Row, Setup, Value
from midefense.report.strengths import AtEqual, Curve, curves

UNDEFENDED = "none"
PAID = {TARGET: "the target's accuracy", RELEASED: "the released utility"}  # in a sentence


@dataclass(frozen=True)
class TradeOff:
    """A defended setup held against the undefended one that is equal in everything else, over the seeds that both have.
    `attack_drop` and `target_drop` are differences of accuracies (fractions, means over seeds), below 0 where the
    defended one is higher; `found` is their quotient with its interval, or why there is none; `targets` counts the
    seeds of targets; `equal` is what other defenses leave at the `accuracy` of this target. `won` and `paid` name the
    two: attack and target accuracy, or, of rows that are held against their own private images, identity accuracy and
    released utility."""

    setup: Setup
    attack_drop: float
    target_drop: float
    found: Quotient
    targets: int = 0
    accuracy: float = math.nan
    equal: Sequence[AtEqual] = ()
    won: str = "attack accuracy"
    paid: str = "target accuracy"

    @property
    def delta(self) -> float:
        """Points of attack accuracy per point of target accuracy, NaN with a `reason`."""
        return self.found.value

    @property
    def reason(self) -> str:
        """Why there is no `delta`, "" if there is one."""
        return self.found.reason

    @property
    def text(self) -> str:
        """`9.6 / 1.5 points = 6.4 [2.1, 19.8] over 3 seeds`, or `n/a` and why; and the attack accuracy of others at the
        same target accuracy."""
        drops = f"{_points(self.attack_drop)} / {_points(self.target_drop)} points"
        others = ", ".join(one.text for one in self.equal)
        beside = f"; {self.won} at {show(self.accuracy, 'percent')} {self.paid}: {others}" if others else ""
        return f"{drops} = {self._quotient}{beside}"

    @property
    def _quotient(self) -> str:
        if self.reason:
            return f"n/a, {self.reason}"
        value, low, high = (show(number, "number") for number in (self.delta, self.found.low, self.found.high))
        whose = f"over {self.targets} seeds" if self.targets > 1 else "of these two networks: one seed"
        return f"{value} [{low}, {high}] {whose}"


def trade_offs(found: Sequence[Setup]) -> list[TradeOff]:
    """One per defended setup of a protocol that has its undefended counterpart (`baseline`, the hash of everything but
    seeds and defense, is the same) among `found`."""
    held = axes(columns([row for setup in found for row in setup.rows]))
    if held is None or any(column.unit != "percent" for column in held):
        return []
    target, attack = held
    undefended = {setup["baseline"]: setup for setup in found if setup["defense"] == UNDEFENDED}
    defended = [setup for setup in found if setup["baseline"] in undefended and setup["defense"] != UNDEFENDED]
    known = {
        baseline: curves([setup for setup in defended if setup["baseline"] == baseline], target.metric, attack.metric)
        for baseline in undefended
        if baseline
    }
    return [
        _trade_off(setup, undefended[setup["baseline"]], target, attack, known[setup["baseline"]])
        for setup in defended
        if setup["baseline"]
    ]


def _trade_off(setup: Setup, undefended: Setup, target: Column, attack: Column, known: Mapping[str, Curve]) -> TradeOff:
    accuracy, names = _mean(setup.rows, target.metric), {"won": attack.title.lower(), "paid": target.title.lower()}
    others = [curve for curve in known.values() if not curve.holds(setup)]
    equal = [curve.at(accuracy) for curve in others if math.isfinite(accuracy)]
    plain = {_seeds(row): row for row in undefended.rows}
    pairs = [(plain[_seeds(row)], row) for row in setup.rows if _seeds(row) in plain]
    whole = [pair for pair in pairs if all(_finite(row, column.metric) for row in pair for column in (attack, target))]
    if not whole:
        drops = [_mean(undefended.rows, one.metric) - _mean(setup.rows, one.metric) for one in (attack, target)]
        reason = "an accuracy is n/a" if pairs else "no seed that both have"
        return TradeOff(setup, *drops, Quotient(reason=reason), accuracy=accuracy, equal=equal, **names)
    drops = _drops(whole, attack.metric, target.metric)
    targets = len(drops.target)
    means = statistics.fmean(drops.attack), statistics.fmean(drops.target)
    return TradeOff(setup, *means, quotient(drops, PAID[target.title]), targets, accuracy, equal, **names)


def _drops(pairs: Sequence[tuple[Row, Row]], attack: str, target: str) -> Drops:
    """What every seed of a target lost: attacks on one target are averaged, as they share its accuracy."""
    by_target: dict[object, list[tuple[float, float]]] = {}
    for plain, row in pairs:
        drop = tuple(plain.metrics[name].value - row.metrics[name].value for name in (attack, target))
        by_target.setdefault(row.seeds.get("target"), []).append(drop)
    attacks, targets = zip(*(map(statistics.fmean, zip(*one, strict=True)) for one in by_target.values()), strict=True)
    classes: dict[str, list[float]] = {}
    for plain, row in pairs:
        of_plain, of_row = plain.metrics[attack].per_class, row.metrics[attack].per_class
        for label in of_plain.keys() & of_row.keys():
            classes.setdefault(label, []).append(of_plain[label] - of_row[label])
    sampling = [_sampling([row.metrics[target] for row in pair], _images(pair)) for pair in pairs]
    return Drops(
        attacks, targets, [statistics.fmean(classes[label]) for label in sorted(classes)], float(np.max(sampling))
    )


def _sampling(pair: Sequence[Value], images: int) -> float:
    """Variance of the difference of two numbers over what they were measured on: of those that have an interval by
    that, of accuracies without one by how many test `images` there were."""
    if all(math.isfinite(value.low) and math.isfinite(value.high) for value in pair):
        return sum(((value.high - value.low) / (2 * NORMAL)) ** 2 for value in pair)
    return sampling_variance([value.value for value in pair], images)


def _seeds(row: Row) -> frozenset:
    return frozenset(row.seeds.items())


def _images(pair: Sequence[Row]) -> int:
    """How many test images both targets were asked, 0 where a row does not say: as many as the evaluators were."""
    counts = [int(judge["images"]) for row in pair for judge in row.about.get("evaluators", {}).values()]
    return min(counts, default=0)


def _finite(row: Row, metric: str) -> bool:
    return metric in row.metrics and math.isfinite(row.metrics[metric].value)


def _mean(rows: Sequence[Row], metric: str) -> float:
    values = [row.metrics[metric].value for row in rows if _finite(row, metric)]
    return statistics.fmean(values) if values else math.nan


def _points(difference: float) -> str:
    return "n/a" if math.isnan(difference) else f"{100 * difference:.1f}"
