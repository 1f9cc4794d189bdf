"""95 % intervals over classes, of few classes as of many.

Classes are what is drawn: images of one class come from one attack and are not independent. The usual intervals take
the classes at hand for all kinds that there are. Student's t over classes of which each is recovered wholly or not at
all holds the truth in 65 % of cases at 10 classes of which a tenth is recovered, and in 83 % at 100 classes of which
97 % are (`tests/test_intervals.py`); a bootstrap is worse. What is known of the numbers decides what can be done:

- in a range (accuracies, shares): the mean of a bounded variable by Gaffke ("Three test statistics for a nonparametric
  one-sided hypothesis on the mean of a nonnegative variable", Mathematical Methods of Statistics 2005; as a confidence
  bound in Learned-Miller and Thomas, arXiv 1905.06208). Weigh the classes by a draw from the flat Dirichlet
  distribution, together with one more class that lies at the end of the range; the bound is a quantile over such
  draws. Where every class is at 0 or at 1, this is exactly the interval of Clopper and Pearson (1934) with classes as
  trials: none of 10 gives [0, 0.31]. It never asks how classes are distributed, and is wide for few of them even if
  they agree.
- of at least 0 (distances): Student's t for the logarithm of the mean, as distances are skewed to the right.
- any sign (kernel distances): Student's t.

The last two take their standard error from leaving out one class at a time (jackknife; Tukey 1958), which also serves
what is no mean. Nothing bounds them where all classes say the same, and then there is no interval.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from midefense import seeds

FEW = 10  # classes: rows of fewer are marked
DRAWS = 10_000
TAIL = 0.025

Span = tuple[float, float]
SHARE: Span = (0.0, 1.0)
POSITIVE: Span = (0.0, math.inf)
REAL: Span = (-math.inf, math.inf)

ONE_CLASS = "one class only: no confidence interval over classes"
ALL_ALIKE = "all classes say the same: no confidence interval over classes"
# How the bounds of a stored number were found.
DIRICHLET, LOG_T, STUDENT_T = "dirichlet", "log t", "t"


class Interval(NamedTuple):
    """The bounds of a 95 % interval and the way they were found; None and "" where there is none, with the `reason`."""

    low: float | None = None
    high: float | None = None
    way: str = ""
    reason: str = ""


def mean_interval(sums: np.ndarray, counts: np.ndarray, span: Span, tail: float = TAIL) -> Interval:
    """The interval of a mean over the images of all classes, `sums` [C] over `counts` [C] images each.

    `span`: the least and the largest value that an image may have: SHARE, POSITIVE, REAL or another range. `tail`: how
    often the truth may lie beyond either end, of numbers in a range.
    """
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if len(sums) < 2:
        return Interval(reason=ONE_CLASS)
    if all(map(math.isfinite, span)):
        return _bounded(sums, counts, span, tail)
    value = sums.sum() / counts.sum()
    without = (sums.sum() - sums) / (counts.sum() - counts)
    return jackknife_interval(value, without, span)


def jackknife_interval(value: float, without: np.ndarray, span: Span = REAL) -> Interval:
    """The interval of any number over classes from its `value` and from those `without` [C] each of them; NaN where the
    rest is too little for one. Where `span` begins at 0, on the scale of the logarithm."""
    classes = len(without)
    if classes < 2:
        return Interval(reason=ONE_CLASS)
    if not np.isfinite(without).all():
        return Interval(reason="without one of the classes there is no such number: no confidence interval over them")
    error = math.sqrt((classes - 1) / classes * float(np.square(without - without.mean()).sum()))
    if error <= 1e-12 * abs(value):
        return Interval(reason=ALL_ALIKE)
    reach = student(classes - 1) * error
    if span[0] == 0:
        # a value at the very end of its range is one that all classes have
        factor = math.exp(min(reach / value, 700.0))
        return Interval(value / factor, value * factor, LOG_T)
    return Interval(value - reach, value + reach, STUDENT_T)


def student(degrees: int) -> float:
    """How many standard errors a 95 % interval reaches to either side, by Student's t with `degrees` of freedom."""
    return float(stdtrit(degrees, 1 - TAIL))


def _bounded(sums: np.ndarray, counts: np.ndarray, span: Span, tail: float) -> Interval:
    """Gaffke's bounds. The further class has as many images as the largest that was seen."""
    (least, largest), (shares, further) = span, _dirichlet(len(sums))
    further = further * counts.max()
    total, images = shares @ sums, shares @ counts + further
    low = np.quantile((total + further * least) / images, tail)
    high = np.quantile((total + further * largest) / images, 1 - tail)
    return Interval(max(float(low), least), min(float(high), largest), DIRICHLET)


@functools.lru_cache(maxsize=1)
def _dirichlet(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the flat Dirichlet distribution over the classes and a further one: float64 [DRAWS, classes] and
    [DRAWS], always the same. The share of the further class is evenly spaced in its distribution instead of drawn, so
    that bounds which hang on it alone are exact."""
    shares = np.random.default_rng(seeds.derive("metrics", "intervals")).exponential(size=(DRAWS, classes))
    further = 1 - (1 - (np.arange(DRAWS) + 0.5) / DRAWS) ** (1 / classes)
    return shares * ((1 - further) / shares.sum(1))[:, None], further
