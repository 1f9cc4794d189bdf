"""A defense along its strengths: which attack accuracy it leaves at a target accuracy that another one has.

Defenses at one setting each cannot be ranked, as one gives up more of the target than the other. Where a defense was
tried at several strengths, its attack accuracy at any target accuracy between them is read off the straight lines from
each strength to the next. Beyond its weakest and its strongest setting nothing is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midefense.report.numbers import show
from midefense.report.rows import Setup, summarise

NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
STRENGTH = re.compile(rf"[\w.]+=(\[?{NUMBER}(, ?{NUMBER})*\]?)", re.IGNORECASE)


@dataclass(frozen=True)
class AtEqual:
    """The attack accuracy that `defense` leaves at a given target accuracy (both fractions): NaN where its strengths
    reach from `low` to `high` only."""

    defense: str
    attack: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """`nls 40.1%`, or `nls n/a (known from 90.1% to 94.0%)`."""
        if math.isfinite(self.attack):
            return f"{self.defense} {show(self.attack, 'percent')}"
        return f"{self.defense} n/a (known from {show(self.low, 'percent')} to {show(self.high, 'percent')})"


@dataclass(frozen=True)
class Curve:
    """A defense at two strengths or more: `target` accuracies [K], rising, and the `attack` accuracies [K] there, means
    over seeds."""

    defense: str
    target: Sequence[float]
    attack: Sequence[float]

    def holds(self, setup: Setup) -> bool:
        """Whether a setup is of this defense, at whatever strength."""
        return without_strength(setup["defense"]) == self.defense

    def at(self, accuracy: float) -> AtEqual:
        """The attack accuracy at a target `accuracy`."""
        found = np.interp(accuracy, self.target, self.attack, left=math.nan, right=math.nan)
        return AtEqual(self.defense, float(found), self.target[0], self.target[-1])


def curves(found: Sequence[Setup], target: str, attack: str) -> dict[str, Curve]:
    """By name, the defenses that setups equal in all else show at two target accuracies or more.

    `target` and `attack`: names of the two accuracies. Strengths of equal target accuracy count once, with the mean of
    their attack accuracies.
    """
    points: dict[str, dict[float, list[float]]] = {}
    for setup in found:
        place, height = (summarise(setup.rows, metric).mean for metric in (target, attack))
        if math.isfinite(place) and math.isfinite(height):
            points.setdefault(without_strength(setup["defense"]), {}).setdefault(place, []).append(height)
    return {
        name: Curve(name, sorted(of), [float(np.mean(of[place])) for place in sorted(of)])
        for name, of in points.items()
        if len(of) > 1
    }


def without_strength(defense: str) -> str:
    """The name of a defense without the numbers that were changed: `vib(beta=0.1, mode=x)` is `vib(mode=x)`. What is no
    number makes another defense, not another strength."""
    name, _, changed = defense.partition("(")
    words = re.split(r", (?=[\w.+~]+[=@])", changed.removesuffix(")")) if changed else []
    kept = [word for word in words if not STRENGTH.fullmatch(word)]
    return f"{name}({', '.join(kept)})" if kept else name
