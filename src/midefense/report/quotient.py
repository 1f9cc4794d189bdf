"""The quotient of two drops, with an interval that knows when there is no quotient.

Fieller's interval (Journal of the Royal Statistical Society B 16, 1954) holds every quotient q for which the attack's
drop less q times the target's may be 0. It is bounded exactly where the interval of the target's drop excludes 0, which
is where a quotient means anything. A bootstrap of the quotient has no such rule: where its denominator comes near 0 it
has no mean, and its quantiles still look like an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midefense.metrics.intervals import ONE_CLASS, mean_interval, student

DIFFERENCES = (-1.0, 1.0)  # between what two accuracies may differ
NORMAL = 1.96  # standard errors to either side of a 95 % interval of many test images


@dataclass(frozen=True)
class Drops:
    """What a defense takes, as fractions, paired: `attack` [T] and `target` [T] per seed of a target, `classes` [C] the
    attack's drop per class, mean over seeds. `sampling`: variance of the target's drop over test images, which counts
    where there is one seed; NaN where it is not known."""

    attack: Sequence[float]
    target: Sequence[float]
    classes: Sequence[float]
    sampling: float = math.nan


@dataclass(frozen=True)
class Quotient:
    """`value` within `low` and `high`, or NaN and the `reason`."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


def sampling_variance(accuracies: Sequence[float], images: int) -> float:
    """Variance of the difference of two accuracies on `images` test images; NaN without any.

    That both saw the same images only narrows the difference, and rows do not say which they got right: it is not used.
    """
    return sum(one * (1 - one) for one in accuracies) / images if images else math.nan


def quotient(drops: Drops, paid: str = "the target's accuracy") -> Quotient:
    """The attack's drop per point of the target's. `paid`: what the target loses, for reasons.

    Seeds of targets are pairs (both networks from the same seed): their covariance enters with Student's t. The
    attack's drop has further error, as the classes are a draw too (`intervals.py`, for differences); the test images
    are taken as they are. Each part enters with its own quantile, squared and summed, which holds whatever the shares
    of the parts (Banerjee, Sankhya 22, 1960). With one seed, the target's drop has the error of its test images; the
    interval is then of these two networks, as nothing shows what another training would give.
    """
    attack, target = np.mean(drops.attack), np.mean(drops.target)
    reach = _reach(drops)
    if target <= 0:
        return Quotient(reason=f"{paid} does not drop")
    if math.isnan(reach[1, 1]):
        return Quotient(reason="one seed, and rows that do not say of how many test images: try seed=0,1,2")
    if len(drops.target) > 1 and reach[1, 1] <= 1e-20:
        return Quotient(reason=f"{paid} drops alike in every seed: nothing tells its error; try more seeds")
    if target**2 <= reach[1, 1]:
        low, high = (100 * (target + sign * math.sqrt(reach[1, 1])) for sign in (-1, 1))
        return Quotient(reason=f"{paid} may not drop at all ({low:.1f} to {high:.1f} points)")
    over_classes = mean_interval(drops.classes, np.ones(len(drops.classes)), DIFFERENCES)
    if over_classes.low is None:
        return Quotient(reason=ONE_CLASS)
    middle = np.mean(drops.classes)
    low, high = (
        _root(attack, target, reach, middle - bound, side)
        for side, bound in ((-1, over_classes.low), (1, over_classes.high))
    )
    return Quotient(attack / target, low, high)


def _reach(drops: Drops) -> np.ndarray:
    """Squared half-widths [2, 2] of the intervals of both drops, and what they have in common."""
    seeds = len(drops.target)
    if seeds == 1:
        return np.diag([0.0, NORMAL**2 * drops.sampling])
    return student(seeds - 1) ** 2 * np.cov(drops.attack, drops.target) / seeds


def _root(attack: float, target: float, reach: np.ndarray, further: float, side: int) -> float:
    """The quotient q farthest to one `side` (-1 or 1) with (attack - q target)^2 no larger than its squared reach, that
    of the attack widened by `further`."""
    square = target**2 - reach[1, 1]
    linear = attack * target - reach[0, 1]
    constant = attack**2 - reach[0, 0] - further**2
    # at q = attack / target the left side is 0 and the right one is not below: the roots are real but for rounding
    return float((linear + side * math.sqrt(max(linear**2 - square * constant, 0.0))) / square)
