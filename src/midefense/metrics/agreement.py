"""How far several who judge the same things agree, beyond what their habits alone would give.

Cohen (Educational and Psychological Measurement, 1960) for two; Fleiss (Psychological Bulletin, 1971) for several.
"""

from __future__ import annotations

import math

import numpy as np


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two who put N things into categories, int [N] each: 1 where they always agree, 0 where they do
    as often as each one's own shares would give, at least -1. NaN where both name one category throughout, or N is
    0."""
    first, second = np.asarray(first), np.asarray(second)
    if not len(first):
        return math.nan
    categories = np.union1d(first, second)
    expected = sum(float(np.mean(first == one)) * float(np.mean(second == one)) for one in categories)
    return _beyond(float(np.mean(first == second)), expected)


def fleiss_kappa(counts: np.ndarray) -> float:
    """Fleiss' kappa of things that were put into categories: how many named each, int [N, categories], by equally many,
    two or more, of every thing. NaN where all name one category throughout, or N is 0."""
    counts = np.asarray(counts, dtype=np.float64)
    if not len(counts):
        return math.nan
    judges = counts[0].sum()
    if judges < 2 or not (counts.sum(1) == judges).all():
        raise ValueError(f"expected two or more judges of every thing, equally many, got {sorted(set(counts.sum(1)))}")
    shares = counts.sum(0) / counts.sum()
    pairs = (counts * (counts - 1)).sum(1) / (judges * (judges - 1))
    return _beyond(float(pairs.mean()), float(np.square(shares).sum()))


def _beyond(observed: float, expected: float) -> float:
    return math.nan if expected >= 1 - 1e-12 else (observed - expected) / (1 - expected)
