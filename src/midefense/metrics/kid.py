"""Kernel distance between features of private training images and of recovered images; it suits few images.

Source: Binkowski et al., ICLR 2018, section 4 and equation 4: the unbiased squared maximum mean discrepancy with the
kernel (x.y / F + 1)^3. Papers average it over random subsets; all pairs of images are used here, which is what that
average estimates, without its draw.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from midefense.metrics.base import Measured, World
from midefense.metrics.features import FeatureMetric, feature_sets
from midefense.metrics.intervals import jackknife_interval
from midefense.ranges import Count

ROWS = 1024


class KernelDistance(FeatureMetric):
    """`kid/<network>` over all attacked classes together; lower means closer to the private images.

    0 is what two draws of one distribution get on average; exact copies get slightly less, as the estimate is unbiased.
    `features`: `inception`, the name of an evaluator, or `auto` (see `pin`). The interval leaves out whole classes,
    with their private and recovered images together. NaN unless both sets hold at least two images.
    """

    revision = 2
    higher_leaks = False
    best = {"kid": 0.0}

    def __init__(self, *, features: str = "auto", batch_size: Count = 256) -> None:
        super().__init__(features=features, batch_size=batch_size)

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        private, private_labels, recovered = feature_sets(rows, world, self.network, self.batch_size)
        name = f"kid/{self.features}"
        if min(len(private), len(recovered)) < 2:
            reason = f"{len(private)} private and {len(recovered)} recovered images: expected at least 2 of each"
            return {name: Measured.undefined(reason, len(recovered), higher_leaks=False)}
        return {name: kernel_distance(private, private_labels, recovered, rows["label"])}


def kernel_distance(private: Tensor, private_labels: Tensor, recovered: Tensor, labels: Tensor) -> Measured:
    """Unbiased squared MMD of features [N, F] and [M, F] with its interval over classes.

    Sums of the kernel per pair of classes are enough for both: to leave out a class only weighs the classes.
    """
    classes = labels.unique()
    first, second = torch.searchsorted(classes, private_labels), torch.searchsorted(classes, labels)
    counts = [torch.bincount(owners, minlength=len(classes)).double() for owners in (first, second)]
    within = [_distinct_pairs(private, first, counts[0]), _distinct_pairs(recovered, second, counts[1])]
    between = _class_sums(private, first, recovered, second, len(classes)), _outer(*counts)

    def distance(weights: np.ndarray) -> np.ndarray:
        return sum(_mean(weights, *pairs) for pairs in within) - 2 * _mean(weights, *between)

    measured = Measured(value=float(distance(np.ones((1, len(classes))))[0]), n=len(recovered), higher_leaks=False)
    # With one image per class, the one class that two leave has no pair of distinct images: NaN.
    return measured.within(jackknife_interval(measured.value, distance(1 - np.eye(len(classes)))))


def _class_sums(first: Tensor, first_owners: Tensor, second: Tensor, second_owners: Tensor, classes: int) -> np.ndarray:
    """Sum of the kernel over all pairs, per pair of classes [C, C]; owners are class numbers [N] and [M]."""
    sums = first.new_zeros(classes, classes, dtype=torch.float64)
    for rows, owners in zip(first.split(ROWS), first_owners.split(ROWS), strict=True):
        rows, owners = rows.double(), one_hot(owners, classes).double()
        for others, their_owners in zip(second.split(ROWS), second_owners.split(ROWS), strict=True):
            kernel = (rows @ others.double().T / first.shape[1] + 1) ** 3
            sums += owners.T @ kernel @ one_hot(their_owners, classes).double()
    return sums.cpu().numpy()


def _outer(first: Tensor, second: Tensor) -> np.ndarray:
    """Number of pairs per pair of classes [C, C] of sets with so many images per class."""
    return torch.outer(first, second).cpu().numpy()


def _distinct_pairs(features: Tensor, owners: Tensor, counts: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Kernel sums and counts [C, C] of the pairs within one set; no image is paired with itself."""
    itself = torch.cat([(r.double().square().sum(1) / r.shape[1] + 1) ** 3 for r in features.split(ROWS)])
    own = np.bincount(owners.cpu().numpy(), itself.cpu().numpy(), len(counts))
    sums = _class_sums(features, owners, features, owners, len(counts)) - np.diag(own)
    return sums, _outer(counts, counts) - np.diag(counts.cpu().numpy())


def _mean(weights: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean kernel [R] when class c counts weights[:, c] times, weights [R, C]; NaN where no pair is left."""
    total = (weights @ sums * weights).sum(1)
    pairs = (weights @ counts * weights).sum(1)
    return np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)
