"""The worst case: what the strongest of all attacks recovers of a release.

A defense at release is as good as the attack that hurts it most (card `split_inference`: the ladder A0 to A5). Two
numbers say so, both by the identity that an evaluator sees: the accuracy of the one attack that finds most, and the
share of private images that at least one of the attacks recognises, which no choice of attack can make smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from midefense.metrics.intervals import SHARE, Interval, mean_interval
from midefense.report.columns import IDENTITY, columns
from midefense.report.numbers import show
from midefense.report.rows import Row, Setup, Summary, summarise

RUNGS = ("A0", "A1", "A2", "A3", "A4", "A5")
UNPROTECTED = "none"


@dataclass(frozen=True)
class WorstCase:
    """All attacks on one deployed defense. `worst` is the setup whose attack finds most, `leak` what it finds; `union`
    the share of images that any of the `attacks` recognises (NaN where rows did not keep it) with its bounds;
    `rungs` those of the ladder that were tried; `assisted` what attacks find that learned from private labels;
    `unprotected` the worst case without a defense (NaN: not in this table)."""

    defense: str
    worst: Setup
    leak: Summary
    attacks: int
    union: float
    bounds: Interval
    rungs: Sequence[str]
    assisted: Sequence[tuple[str, float]]
    unprotected: float = math.nan

    @property
    def text(self) -> str:
        """`feature_latent (A2) finds 41.0% [30.0%, 52.0%] of identities, the most of 3 attacks (A0, A2, A4); ...`."""
        rung = f" ({self.worst['rung']})" if self.worst["rung"] else ""
        most = f"the most of {self.attacks} attacks" if self.attacks > 1 else "the only attack"
        tried = f" ({', '.join(self.rungs)})" if self.rungs else ""
        said = [f"{self.worst['attack']}{rung} finds {_between(self.leak)} of identities, {most}{tried}"]
        if self.attacks > 1 and math.isfinite(self.union):
            bounds = f" [{_show(self.bounds.low)}, {_show(self.bounds.high)}]" if self.bounds.way else ""
            said.append(f"{_show(self.union)}{bounds} of images are recognised by one of them or more")
        if math.isfinite(self.unprotected) and self.defense != UNPROTECTED:
            said.append(f"{_show(self.unprotected)} without a defense")
        if self.rungs and (left := [rung for rung in RUNGS if rung not in self.rungs]):
            said.append(f"not tried: {', '.join(left)}")
        said += [f"{attack}, oracle-assisted: {_show(found)}" for attack, found in self.assisted]
        return "; ".join(said)


def worst_cases(found: Sequence[Setup]) -> list[WorstCase]:
    """One per deployed defense of a protocol, in the order of the table; none where reconstructions are not held
    against private images of their own."""
    shown = columns([row for setup in found for row in setup.rows])
    column = next((one for one in shown if one.title == IDENTITY), None)
    if column is None:
        return []
    deployed: dict[tuple, list[Setup]] = {}
    for setup in found:
        deployed.setdefault(_deployed(setup), []).append(setup)
    cases = [_worst(setups, column.metric) for setups in deployed.values()]
    plain = {_world(case.worst): case.leak.mean for case in cases if case is not None and case.defense == UNPROTECTED}
    return [
        WorstCase(**{**case.__dict__, "unprotected": plain.get(_world(case.worst), math.nan)})
        for case in cases
        if case is not None
    ]


def _worst(setups: Sequence[Setup], metric: str) -> WorstCase | None:
    """None where no attack of the attacker's own was measured."""
    leaks = {id(setup): summarise(setup.rows, metric) for setup in setups}
    measured = [setup for setup in setups if math.isfinite(leaks[id(setup)].mean)]
    own = [setup for setup in measured if not setup.rows[0].assisted]
    if not own:
        return None
    worst = max(own, key=lambda setup: leaks[id(setup)].mean)
    union, bounds = _union([row for setup in own for row in setup.rows], metric.partition("/")[2])
    rungs = sorted({setup["rung"] for setup in own} & set(RUNGS))
    assisted = [(setup["attack"], leaks[id(setup)].mean) for setup in measured if setup.rows[0].assisted]
    return WorstCase(worst["defense"], worst, leaks[id(worst)], len(own), union, bounds, rungs, assisted)


def _union(rows: Iterable[Row], evaluator: str) -> tuple[float, Interval]:
    """The share of private images that a row of any attack recognises, each seed of a target by itself, mean over them;
    its bounds over identities."""
    recognised: dict[tuple, dict[int, bool]] = {}
    identity: dict[int, int] = {}
    for row in rows:
        kept = row.paired(evaluator)
        if kept is None:
            return math.nan, Interval()
        ids, identities, seen = kept
        of_target = recognised.setdefault(row.seeds.get("target"), {})
        for one, who, right in zip(ids.tolist(), identities.tolist(), (seen == identities).tolist(), strict=True):
            identity[one] = who
            of_target[one] = of_target.get(one, False) or right
    found = {one: [image[one] for image in recognised.values() if one in image] for one in identity}
    shares = np.array([np.mean(found[one]) for one in identity])
    owner = np.unique(list(identity.values()), return_inverse=True)[1]
    return float(shares.mean()), mean_interval(np.bincount(owner, shares), np.bincount(owner), SHARE)


def _deployed(setup: Setup) -> tuple[str, ...]:
    """What is attacked: the target as deployed, whatever attacks it. Rows say its hash beside the names."""
    return (*_world(setup), setup["defense"], setup["deployed"])


def _world(setup: Setup) -> tuple[str, ...]:
    return setup["dataset"], setup["architecture"]


def _between(leak: Summary) -> str:
    bounds = f" [{_show(leak.low)}, {_show(leak.high)}]" if math.isfinite(leak.low) else ""
    return _show(leak.mean) + bounds


def _show(value: float) -> str:
    return show(value, "percent")
