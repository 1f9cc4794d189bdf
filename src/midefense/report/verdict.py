"""What the seeds of one setup say, in a sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from midefense.report.columns import columns
from midefense.report.luck import FEWEST, LEVEL, luck, seen_as
from midefense.report.numbers import show
from midefense.report.rows import Row
from midefense.types import Refused

ANCHORS = {
    "chance": "chance",
    "prior": "unattacked samples",
    "truncated": "unattacked samples truncated as the attack's starts",
    "placebo": "a placebo that was never told who is who",
    "real": "real images",
}
FLOORS = ("chance", "prior", "truncated")  # no placebo: what it estimates, `luck` counts
SPELT = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def verdict(rows: Sequence[Row]) -> str:
    """Whether a target leaks, by the rows of one setup, with chance, floor and ceiling.

    *It leaks*: the seeds together recover more than chance and than the samples of the prior that no attack has
    touched (drawn as the prior draws them and, where the attack starts nearer to the mean, as it draws its starts), and
    more than luck explains (`luck.luck`). *No leak shown*: they recover no more than these. *Cannot tell* is everything
    between, and wherever classes are too few, or the evaluator does not know real images either. Intervals over classes
    have no part in it: it is about the classes that were attacked, whose floor and ceiling were measured too. Nor has a
    placebo, which is told of beside them: it estimates, with the luck of one attack, what evaluators see in pictures
    that say nothing of whom they were recovered for, and that is what `luck` counts.

    Raises `Refused` for rows without an attack accuracy.
    """
    column = next((column for column in columns(rows) if column.title == "Attack accuracy"), None)
    values = (
        [] if column is None else [row.metrics[column.metric].value for row in rows if column.metric in row.metrics]
    )
    if not values or not all(map(math.isfinite, values)):
        raise Refused("verdict: expected rows with an attack accuracy, got none; try metrics=all")
    levels = {kind: [row.anchors.get(kind, {}).get(column.metric, math.nan) for row in rows] for kind in ANCHORS}
    known = {kind: statistics.fmean(found) for kind, found in levels.items() if all(map(math.isfinite, found))}
    held = ", ".join(f"{ANCHORS[kind]} {show(level, 'percent')}" for kind, level in known.items())
    recovered = f"{rows[0]['attack'].split('(')[0]} recovers {show(statistics.fmean(values), 'percent')} of identities"
    answers = [row.answers(column.metric.partition("/")[2]) for row in rows]
    judged = _judged(statistics.fmean(values), known, None if None in answers else seen_as(answers))
    return f"{judged}: {recovered} ({_seeds(values)}); {held}."


def _judged(value: float, known: dict[str, float], counts: np.ndarray | None) -> str:
    """The answer, by the mean accuracy, what it is held against, and what was seen in the pictures of each class."""
    floor = max([known[kind] for kind in FLOORS if kind in known], default=0.0)
    if known.get("real", 1.0) <= floor:
        return "Cannot tell, as the evaluator does not know real images either"
    if counts is None:
        return "Cannot tell, as what was seen in each picture was not kept when these rows were measured"
    if len(counts) < FEWEST:
        return f"Cannot tell from {SPELT[len(counts)]} of the classes, at least {SPELT[FEWEST]} are needed"
    odds = luck(counts)
    said = f"p = {odds:.2g}"
    if value > floor and odds <= LEVEL:
        return f"It leaks ({said})"
    if value > floor:
        return f"Cannot tell, as luck may explain it ({said})"
    if odds <= LEVEL:
        return f"Cannot tell, as it is more than luck explains ({said}) and no more than chance or unattacked samples"
    return f"No leak shown by this attack ({said}), which does not rule out a stronger one"


def _seeds(values: Sequence[float]) -> str:
    count = len(values)
    if count == 1:
        return "one seed"
    number = SPELT[count] if count < len(SPELT) else str(count)
    return f"{show(min(values), 'percent')} to {show(max(values), 'percent')} over {number} seeds"
