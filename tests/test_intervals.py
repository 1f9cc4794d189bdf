"""95 % intervals over few classes: known answers, and how often they hold the truth where it is known."""

import functools
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from midefense.metrics.intervals import (
    DIRICHLET,
    LOG_T,
    POSITIVE,
    REAL,
    SHARE,
    STUDENT_T,
    jackknife_interval,
    mean_interval,
    student,
)

REPETITIONS = 300
IMAGES = 20  # per class
# How classes differ: each is recovered nearly always or nearly never, anything between, or all alike.
HETEROGENEITY = {"all or none": 0.02, "mixed": 1.0, "alike": 500.0}


def drawn_classes(classes, mean, concentration, rng):
    """Beta-binomial shares [REPETITIONS, classes] of images recovered per class."""
    chances = rng.beta(mean * concentration, (1 - mean) * concentration, size=(REPETITIONS, classes))
    return rng.binomial(IMAGES, chances) / IMAGES


@functools.lru_cache(maxsize=100_000)
def interval_of(values, span=SHARE):
    return mean_interval(np.array(values), np.ones(len(values)), span)


def coverage(values, truth, interval):
    """How often intervals of `values` [R, C] hold the `truth`; their order says nothing."""
    found = [interval(tuple(one)) for one in np.sort(values, 1).tolist()]
    return np.mean([low <= truth <= high for low, high, *_ in found])


def student_t(values):
    """What everyone does."""
    reach = student(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values) - reach, np.mean(values) + reach


def student_t_with_exact_ends(values):
    """Student's t, but Clopper and Pearson's bound where all classes are at one end."""
    if set(values) in ({0.0}, {1.0}):
        return binomtest(int(sum(values)), len(values)).proportion_ci(method="exact")
    return student_t(values)


def bootstrap(values, resamples=500):
    """The percentile bootstrap over classes, which was here before."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, size=(resamples, len(values))).mean(1)
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("classes", [5, 10, 100])
def test_shares_hold_the_truth_however_classes_differ(classes):
    rng = np.random.default_rng(0)
    for name, concentration in HETEROGENEITY.items():
        for mean in (0.03, 0.3, 0.9):
            values = drawn_classes(classes, mean, concentration, rng)
            assert coverage(values, mean, interval_of) >= 0.9, (name, mean)


@pytest.mark.parametrize(
    ("interval", "classes", "mean"),
    [(student_t, 10, 0.9), (bootstrap, 10, 0.9), (bootstrap, 5, 0.3), (student_t_with_exact_ends, 100, 0.969)],
)
def test_the_simulation_tells_intervals_that_are_too_narrow(interval, classes, mean):
    values = drawn_classes(classes, mean, HETEROGENEITY["all or none"], np.random.default_rng(0))
    assert coverage(values, mean, interval) < 0.9 <= coverage(values, mean, interval_of)


@pytest.mark.parametrize("classes", [5, 10, 100])
@pytest.mark.parametrize(
    ("span", "draw"),
    [
        (REAL, lambda rng, size: 1 + rng.standard_normal(size)),
        (REAL, lambda rng, size: rng.uniform(0, 2, size)),
        (POSITIVE, lambda rng, size: rng.gamma(4, 1 / 4, size)),
        (POSITIVE, lambda rng, size: rng.exponential(1, size)),
    ],
)
def test_distances_hold_the_truth_also_where_they_are_skewed(classes, span, draw):
    values = draw(np.random.default_rng(0), (1000, classes))
    assert coverage(values, 1.0, lambda one: interval_of(one, span)) >= 0.9


def test_students_t_is_too_narrow_for_skewed_distances():
    values = np.random.default_rng(0).exponential(1, (1000, 5))
    assert coverage(values, 1.0, student_t) < 0.9


@pytest.mark.parametrize("classes", [5, 100])
def test_classes_of_unequal_counts_hold_the_truth(classes):
    """The mean is over images: a class with more of them weighs more."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.6, 0.2, size=(REPETITIONS, classes))
    counts = rng.integers(1, 30, size=(REPETITIONS, classes))
    sums = rng.binomial(counts, chances)
    found = [mean_interval(*one, SHARE) for one in zip(sums, counts, strict=True)]
    assert np.mean([one.low <= 0.75 <= one.high for one in found]) >= 0.9


@pytest.mark.parametrize("classes", [2, 5, 10, 100, 530])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_classes_that_are_recovered_wholly_or_not_are_trials_of_clopper_and_pearson(classes, share):
    right = round(share * classes)
    found = mean_interval(np.arange(classes) < right, np.ones(classes), SHARE)
    exact = binomtest(right, classes).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)
    assert found.way == DIRICHLET
    if share == 0:
        assert (found.low, found.high) == (0, pytest.approx(1 - 0.025 ** (1 / classes), rel=1e-3))
    if share == 1:
        assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / classes), rel=1e-3), 1)


def test_means_of_any_sign_have_students_interval():
    values = np.array([-1.0, 0.5, 2.0, 4.0])
    found = mean_interval(values, np.ones(4), REAL)
    assert (found.low, found.high) == pytest.approx(student_t(values)) and found.way == STUDENT_T
    assert student(3) == pytest.approx(3.1824, abs=1e-4)


def test_distances_stay_above_zero():
    found = mean_interval(np.array([0.1, 0.2, 9.0]), np.ones(3), POSITIVE)
    value, (_, high) = 3.1, student_t([0.1, 0.2, 9.0])
    assert 0 < found.low < value < high < found.high and found.low * found.high == pytest.approx(value**2)
    assert found.way == LOG_T


def test_what_is_no_mean_leaves_out_one_class_at_a_time():
    """A weighted mean without each of its classes is the mean of the others."""
    sums, counts = np.array([3.0, 1.0, 8.0]), np.array([3.0, 4.0, 2.0])
    without = np.array([9 / 6, 11 / 5, 4 / 7])
    assert mean_interval(sums, counts, REAL) == jackknife_interval(12 / 9, without)


def test_no_interval_says_why():
    one = mean_interval(np.ones(1), np.ones(1), SHARE)
    assert one.low is None and one.high is None and "one class only" in one.reason
    for span in (POSITIVE, REAL):
        alike = mean_interval(np.full(4, 0.3), np.ones(4), span)
        assert alike.low is None and "all classes say the same" in alike.reason
    zero = mean_interval(np.zeros(4), np.ones(4), POSITIVE)
    assert zero.low is None and "all classes say the same" in zero.reason
    lone = jackknife_interval(1.0, np.array([0.9, math.nan]))
    assert lone.low is None and "no such number" in lone.reason


def test_the_bounds_are_the_same_every_time():
    values = np.random.default_rng(3).random(7)
    first = mean_interval(values, np.ones(7), SHARE)
    mean_interval(values[:5], np.ones(5), SHARE)
    assert mean_interval(values, np.ones(7), SHARE) == first
