"""Accuracy against queries: the curve that compares attacks of different budgets (methods card: query budgets, section
"Fair comparison")."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from midefense.metrics.intervals import SHARE, mean_interval

LINES = 8  # of the grid of costs per power of ten


@dataclass(frozen=True)
class Curve:
    """For what each target had cost: `queries` float [P], ascending; the share of targets whose best candidate of then
    an evaluator recognised, `accuracy` float [P], with its interval over classes, `low` and `high` (NaN: none)."""

    queries: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def tensors(self) -> dict[str, Tensor]:
        """Its fields by name, float64 [P] each."""
        return {name: torch.from_numpy(value) for name, value in vars(self).items()}


def against_queries(hits: Tensor, queries: Tensor, owners: Tensor, labels: Tensor, shared: int) -> Curve:
    """The curve of a trace.

    A target counts as its last row at or below a cost says, and as a failure before its first; one that has no row
    was never reached, and is a failure throughout. Of `shared` queries every target bears the same part.

    Args:
        hits: bool [R], whether the evaluator recognises the row's candidate.
        queries: int64 [R], what the row's target had been asked of its own.
        owners: int64 [R], the row's target, a place in `labels`.
        labels: int64 [N], the class of every target of the attack.
        shared: queries asked for all targets together.
    """
    own, targets, right = (value.cpu().numpy() for value in (queries, owners, hits))
    order = np.lexsort((own, targets))
    own, targets, right = own[order], targets[order], right[order]
    classes, of_class = np.unique(labels.cpu().numpy(), return_inverse=True)
    counts = np.bincount(of_class, minlength=len(classes)).astype(float)
    costs = _costs(own)
    accuracy, low, high = (np.full(len(costs), np.nan) for _ in range(3))
    for place, cost in enumerate(costs):
        known = own <= cost
        hit = np.zeros(len(labels))
        hit[targets[known]] = right[known]  # rows ascend in cost: the last of a target stands
        accuracy[place] = hit.mean()
        found = mean_interval(np.bincount(of_class, weights=hit, minlength=len(classes)), counts, SHARE)
        if found.low is not None:
            low[place], high[place] = found.low, found.high
    return Curve(costs + shared / len(labels), accuracy, low, high)


def next_line(queries: int) -> int:
    """The line of the grid behind a number of queries: 1, 2, 3, 4, 5, 6, 8, 10, 14, 18, 24, 32, ... of ever 8 per power
    of ten, so that a candidate is known to be found within a third more queries than were needed."""
    place = 0 if queries < 1 else math.floor(LINES * math.log10(queries) + 1e-9) + 1
    return max(math.ceil(10 ** (place / LINES) - 1e-9), queries + 1)


def _costs(own: np.ndarray) -> np.ndarray:
    """Where a curve has points: the least and the largest cost, and the lines between."""
    if not len(own):
        return np.zeros(0)
    costs, last = [int(own.min())], int(own.max())
    while costs[-1] < last:
        costs.append(min(next_line(costs[-1]), last))
    return np.array(costs, dtype=float)
