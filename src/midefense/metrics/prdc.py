"""Precision, recall, density and coverage of recovered images against the private training images of their class.

Sources: Kynkaanniemi et al., NeurIPS 2019 (precision: share of recovered images within the reach of a private one;
recall: the reverse) and Naeem et al., ICML 2020, equations 2 to 4 (density: how many private images reach a recovered
one, in units of k; coverage: share of private images that reach one). An image reaches as far as its k-th neighbour.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from midefense.metrics.base import Measured, World, over_classes
from midefense.metrics.features import FeatureMetric, feature_sets
from midefense.metrics.intervals import POSITIVE, SHARE, Span
from midefense.ranges import Count

STEMS = {"precision": SHARE, "recall": SHARE, "density": POSITIVE, "coverage": SHARE}


class PRDC(FeatureMetric):
    """`precision`, `recall` and `coverage` in [0, 1] and `density` from 0 up, each `/<network>`: measured per class,
    then the mean over classes. Higher means that recovered images look like the private ones and show more of them.

    Scattered images reach far, so that noise may have a high recall: it means something only beside precision.

    `k`: which neighbour sets the reach. `features`: `inception`, the name of an evaluator, or `auto`, as in FID. NaN
    unless every attacked class holds more than k private images, and for recall more than k recovered ones.

    `legacy_ppa`: the formulas of PPA's code (Struppek et al., ICML 2022), as `precision_legacy_ppa/<network>` and so
    on: precision and recall ask the nearest image alone whether it reaches, density divides by the private images
    instead of the recovered ones, and Inception sees images in [-1, 1]. Its mix-up of classes (class 0 stands for all
    of them; of `targets: all` the first three are measured) is not repeated.
    """

    revision = 2
    higher_leaks = True
    best = {"precision": 1.0, "recall": 1.0, "coverage": 1.0}

    def __init__(
        self, *, k: Count = 3, features: str = "auto", legacy_ppa: bool = False, batch_size: Count = 256
    ) -> None:
        super().__init__(features=features, batch_size=batch_size, legacy_ppa=legacy_ppa)
        self.k = k

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        private, private_labels, recovered = feature_sets(rows, world, self.network, self.batch_size)
        labels = rows["label"]
        classes = labels.unique()
        found = torch.tensor(
            [
                list(overlap(private[private_labels == label], recovered[labels == label], self.k, self.legacy_ppa))
                for label in classes
            ],
            dtype=torch.float64,
        )
        mark = "_legacy_ppa" if self.legacy_ppa else ""
        numbers = zip(STEMS, found.unbind(1), strict=True)
        return {
            f"{stem}{mark}/{self.features}": self._measured(values, classes, len(labels), STEMS[stem])
            for stem, values in numbers
        }

    def _measured(self, values: Tensor, classes: Tensor, images: int, span: Span) -> Measured:
        lacking = classes[values.isnan().to(classes.device)].tolist()
        if lacking:
            reason = f"classes {lacking}: expected more than k={self.k} images of each to find a k-th neighbour"
            return Measured.undefined(reason, images, higher_leaks=True)
        measured = over_classes(values, classes, True, span)
        measured.n = images
        return measured


def overlap(private: Tensor, recovered: Tensor, k: int, legacy_ppa: bool = False) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage of features [N, F] and [M, F] of one class; NaN where a set is too small
    to have a k-th neighbour. Distances in the direct form and float64: two equal images are at distance 0."""
    private, recovered = private.double(), recovered.double()
    distances = _distances(private, recovered)
    precision = recall = density = coverage = math.nan
    if len(private) > k:
        reaches = _reaches(private, k)
        reached = distances <= reaches[:, None]
        smallest, nearest = distances.min(0)
        precision = float((smallest <= reaches[nearest] if legacy_ppa else reached.any(0)).double().mean())
        density = float(reached.sum()) / (k * reached.shape[0 if legacy_ppa else 1])
        coverage = float(reached.any(1).double().mean())
    if len(recovered) > k and len(private):
        reaches = _reaches(recovered, k)
        smallest, nearest = distances.min(1)
        recall = float((smallest <= reaches[nearest] if legacy_ppa else (distances <= reaches).any(1)).double().mean())
    return precision, recall, density, coverage


def _reaches(features: Tensor, k: int) -> Tensor:
    """Distance [N] of each image to its k-th neighbour; the smallest of its row is the distance to itself."""
    return _distances(features, features).topk(k + 1, dim=1, largest=False).values[:, -1]


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
