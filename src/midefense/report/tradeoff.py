"""What a defense takes from the attack for what it takes from the target: the trade-off of MIDRE and TL-DMI.

Delta = (attack accuracy undefended - defended) / (target accuracy undefended - defended), Tran et al., TMLR 2025, after
Ho et al., CVPR 2024: points of attack accuracy won per point of target accuracy lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from midefense.report.columns import Column, columns
from midefense.report.numbers import show
from midefense.report.rows import Setup, summarise

UNDEFENDED = "none"


@dataclass(frozen=True)
class TradeOff:
    """A defended setup held against the undefended one that is equal in everything else. `attack_drop` and
    `target_drop` are differences of accuracies (fractions, means over seeds), below 0 where the defended one is higher;
    `delta` is their quotient, NaN with a `reason` where the target lost nothing."""

    setup: Setup
    attack_drop: float
    target_drop: float
    delta: float
    reason: str = ""

    @property
    def text(self) -> str:
        """`9.6 / 1.5 points = 6.4`, or `n/a` and why."""
        drops = f"{_points(self.attack_drop)} / {_points(self.target_drop)} points"
        return f"{drops} = n/a, {self.reason}" if self.reason else f"{drops} = {show(self.delta, 'number')}"


def trade_offs(found: Sequence[Setup]) -> list[TradeOff]:
    """One per defended setup of a protocol that has its undefended counterpart (`baseline`, the hash of everything but
    seeds and defense, is the same) among `found`."""
    shown = {column.title: column for column in columns([row for setup in found for row in setup.rows])}
    if not {"Target accuracy", "Attack accuracy"} <= set(shown):
        return []
    target, attack = shown["Target accuracy"], shown["Attack accuracy"]
    undefended = {setup["baseline"]: setup for setup in found if setup["defense"] == UNDEFENDED}
    pairs = [(setup, undefended.get(setup["baseline"])) for setup in found if setup["baseline"]]
    return [
        _trade_off(setup, other, target, attack)
        for setup, other in pairs
        if other is not None and setup["defense"] != UNDEFENDED
    ]


def _trade_off(setup: Setup, undefended: Setup, target: Column, attack: Column) -> TradeOff:
    drops = [
        summarise(undefended.rows, column.metric).mean - summarise(setup.rows, column.metric).mean
        for column in (attack, target)
    ]
    attack_drop, target_drop = drops
    if math.isnan(attack_drop) or math.isnan(target_drop):
        return TradeOff(setup, attack_drop, target_drop, math.nan, "an accuracy is n/a")
    if target_drop <= 0:
        return TradeOff(setup, attack_drop, target_drop, math.nan, "the target's accuracy does not drop")
    return TradeOff(setup, attack_drop, target_drop, attack_drop / target_drop)


def _points(difference: float) -> str:
    return "n/a" if math.isnan(difference) else f"{100 * difference:.1f}"
