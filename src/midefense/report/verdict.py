"""What the seeds of one setup say, in a sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from midefense.report.columns import columns
from midefense.report.numbers import show
from midefense.report.rows import Row
from midefense.types import Refused

ANCHORS = {"chance": "chance", "prior": "unattacked samples", "real": "real images"}
SPELT = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def verdict(rows: Sequence[Row]) -> str:
    """Whether a target leaks, by the rows of one setup, with chance, floor and ceiling.

    It leaks if every seed is above both chance and the samples of the prior that no attack has touched. Where real
    images are not above them either, the evaluator cannot tell. Intervals over classes have no part in it: it is about
    the classes that were attacked, whose floor and ceiling were measured too, and seeds are what varies.

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
    floor = max([known[kind] for kind in ("chance", "prior") if kind in known], default=0.0)
    held = ", ".join(f"{ANCHORS[kind]} {show(level, 'percent')}" for kind, level in known.items())
    recovered = f"{rows[0]['attack'].split('(')[0]} recovers {show(statistics.fmean(values), 'percent')} of identities"
    return f"{_judged(values, floor, known.get('real', 1.0))}: {recovered} ({_seeds(values)}); {held}."


def _judged(values: Sequence[float], floor: float, ceiling: float) -> str:
    if ceiling <= floor:
        return "Not judged, as the evaluator does not know real images either"
    if min(values) > floor:
        return "It leaks"
    if max(values) > floor:
        return "Undecided, as not every seed is above chance and unattacked samples"
    return "No leak shown by this attack, which does not rule out a stronger one"


def _seeds(values: Sequence[float]) -> str:
    count = len(values)
    if count == 1:
        return "one seed"
    number = SPELT[count] if count < len(SPELT) else str(count)
    return f"{show(min(values), 'percent')} to {show(max(values), 'percent')} over {number} seeds"
