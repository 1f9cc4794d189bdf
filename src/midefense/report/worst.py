"""The headline of a defense: the worst case over all attacks that were tried on it, made for it or not.

A defense is as good as the attack that hurts it most (card `split_inference`: the ladder A0 to A5; card
`defense_matrix`, section 5: an adaptive attack per defense), by the number that says what attacks find: the identities
that an evaluator sees or, where a training set is reconstructed, the gain in similarity. Where reconstructions answer
private images there is a second number, the share of them that at least one of the attacks recognises, which no choice
of attack can make smaller. Attacks of different protocols are never held against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from midefense.metrics.intervals import SHARE, Interval, mean_interval
from midefense.report.columns import ATTACK, IDENTITY, MATCHED, Column, columns
from midefense.report.numbers import show
from midefense.report.rows import Row, Setup, Summary, summarise

RUNGS = ("A0", "A1", "A2", "A3", "A4", "A5")
UNPROTECTED = "none"
ASSISTED = "feature_to_id_oracle_assisted/released"
FINDS = {IDENTITY: "of identities", ATTACK: "attack accuracy", MATCHED: "matched SSIM gain"}  # what attacks find


@dataclass(frozen=True)
class WorstCase:
    """All attacks on one deployed defense. `worst` is the setup whose attack finds most, `leak` what it finds, by the
    number `column`; `aware` and `aware_leak` the same of those attacks that knew the defense, or part of a stack of
    them (None: none did), `asked` whether all rows say who knew it; `union` the share of images that any of the
    `attacks` recognises (NaN where rows did not keep it) with its bounds; `rungs` those of the ladder that were tried;
    `assisted` what a network that learned from private labels tells of features, which is no attack (NaN: not
    measured); `unprotected` the worst case without a defense (NaN: not in this table)."""

    defense: str
    column: Column
    worst: Setup
    leak: Summary
    aware: Setup | None
    aware_leak: Summary | None
    asked: bool
    attacks: int
    union: float
    bounds: Interval
    rungs: Sequence[str]
    assisted: float
    unprotected: float = math.nan

    @property
    def text(self) -> str:
        """`feature_latent (A2) finds 41.0% [30.0%, 52.0%] of identities, the most of 3 attacks (A0, A2, A4); ...`."""
        most = f"the most of {self.attacks} attacks" if self.attacks > 1 else "the only attack"
        tried = f" ({', '.join(self.rungs)})" if self.rungs else ""
        found = f"{self._between(self.leak)} {FINDS[self.column.title]}"
        said = [f"{self._who(self.worst)} finds {found}, {most}{tried}", *self._of_those_who_knew]
        if self.attacks > 1 and math.isfinite(self.union):
            bounds = f" [{self._show(self.bounds.low)}, {self._show(self.bounds.high)}]" if self.bounds.way else ""
            said.append(f"{self._show(self.union)}{bounds} of images are recognised by one of them or more")
        if math.isfinite(self.unprotected) and self.defense != UNPROTECTED:
            said.append(f"{self._show(self.unprotected)} without a defense")
        if self.rungs and (left := [rung for rung in RUNGS if rung not in self.rungs]):
            said.append(f"not tried: {', '.join(left)}")
        if math.isfinite(self.assisted):
            said.append(f"oracle-assisted, from the features themselves: {self._show(self.assisted)}")
        return "; ".join(said)

    @property
    def _of_those_who_knew(self) -> list[str]:
        """What attacks that knew the defense find, where the worst did not; that none was tried."""
        if self.aware is None:
            return ["no attack that knew the defense was tried"] if self.asked else []
        if self.aware is self.worst:
            return []
        return [f"of those that knew it {self._who(self.aware)} finds most, {self._between(self.aware_leak)}"]

    def _who(self, setup: Setup) -> str:
        """`gmi_small (whitebox, knew the defense)`."""
        access = setup["access"] if self.column.title == ATTACK else ""
        said = [word for word in (setup["rung"], access, setup.awareness) if word]
        return setup["attack"] + (f" ({', '.join(said)})" if said else "")

    def _between(self, leak: Summary) -> str:
        bounds = f" [{self._show(leak.low)}, {self._show(leak.high)}]" if math.isfinite(leak.low) else ""
        return self._show(leak.mean) + bounds

    def _show(self, value: float) -> str:
        return show(value, self.column.unit)


def worst_cases(found: Sequence[Setup]) -> list[WorstCase]:
    """One per deployed defense of a protocol, in the order of the table; none where what attacks find was not
    measured."""
    shown = {column.title: column for column in columns([row for setup in found for row in setup.rows])}
    column = next((shown[title] for title in FINDS if title in shown), None)
    if column is None:
        return []
    deployed: dict[tuple, list[Setup]] = {}
    for setup in found:
        deployed.setdefault(_deployed(setup), []).append(setup)
    cases = [case for setups in deployed.values() if (case := _worst(setups, column)) is not None]
    plain = {_world(case.worst): case.leak.mean for case in cases if case.defense == UNPROTECTED}
    return [replace(case, unprotected=plain.get(_world(case.worst), math.nan)) for case in cases]


def _worst(setups: Sequence[Setup], column: Column) -> WorstCase | None:
    """None where what these attacks find was not measured."""
    leaks = {id(setup): summarise(setup.rows, column.metric) for setup in setups}
    own = [setup for setup in setups if math.isfinite(leaks[id(setup)].mean)]
    if not own:
        return None

    def most(some: Iterable[Setup]) -> Setup | None:
        return max(some, key=lambda setup: leaks[id(setup)].mean, default=None)

    worst, aware = most(own), most(setup for setup in own if setup.awareness)
    rows = [row for setup in own for row in setup.rows]
    union, bounds = _union(rows, column.metric.partition("/")[2])
    return WorstCase(
        defense=worst["defense"],
        column=column,
        worst=worst,
        leak=leaks[id(worst)],
        aware=aware,
        aware_leak=None if aware is None else leaks[id(aware)],
        asked=all(row["knew"] for row in rows),
        attacks=len(own),
        union=union,
        bounds=bounds,
        rungs=sorted({setup["rung"] for setup in own} & set(RUNGS)),
        assisted=summarise(rows, ASSISTED).mean,
    )


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
