"""Whether an evaluator sees the right classes in recovered pictures more often than luck explains.

If pictures tell nothing of the class they were recovered for, it makes no difference which class that was. So the test
exchanges the classes: the pictures of each class, of all seeds together, are held to be those of another, and the right
answers are counted again (an exact permutation test; Fisher, The Design of Experiments, 1935). It takes pictures of one
class to depend on each other as they may, and holds for an evaluator that sees the same class everywhere: exchanging
changes nothing then.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import numpy as np

from midefense import seeds

LEVEL = 0.05  # how rarely luck may do as well
FEWEST = 4  # classes: of three, luck finds all in one of six tries
EXACT = 8  # classes up to which every exchange is tried
DRAWS = 9_999  # exchanges that are drawn of more


def seen_as(answers: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """How many pictures recovered for each class (row) were seen as each of them (column): int64 [K, K].

    Args:
        answers: per seed, the class that each picture was recovered for and the class that was seen in it, int64 [M].
    """
    wanted, seen = (np.concatenate(part) for part in zip(*answers, strict=True))
    classes, rows = np.unique(wanted, return_inverse=True)
    known = np.isin(seen, classes)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (rows[known], np.searchsorted(classes, seen[known])), 1)
    return counts


def luck(counts: np.ndarray) -> float:
    """In which share of all exchanges of the K classes as many pictures are seen as they should be, or more: in (0, 1].

    Args:
        counts: as `seen_as` gives them, int64 [K, K].
    """
    orders = _orders(len(counts))
    as_many = int((counts[np.arange(len(counts)), orders].sum(1) >= np.trace(counts)).sum())
    return as_many / len(orders)


@functools.lru_cache(maxsize=1)
def _orders(classes: int) -> np.ndarray:
    """Every order of so many classes or, of many, some that are drawn, always the same: int64 [N, classes]. The order
    that they have is one of them."""
    if classes <= EXACT:
        return np.array(list(itertools.permutations(range(classes))))
    rng = np.random.default_rng(seeds.derive("report", "luck"))
    orders = np.tile(np.arange(classes), (1 + DRAWS, 1))
    orders[1:] = rng.permuted(orders[1:], axis=1)
    return orders
