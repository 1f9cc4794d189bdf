"""Frechet distance between Gaussians fitted to features of private training images and of recovered images.

Source: Heusel et al., NeurIPS 2017, equation 6: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). The feature network is
part of the name: numbers of different networks must not be compared, and only `fid/inception` is the FID of papers.
`fid_legacy_ppa/inception` is the number of PPA's code (Struppek et al., ICML 2022), which shows the network images of
another range than it was made for; no other paper's FID can be compared with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.metrics.base import Measured, World
from midefense.metrics.features import INCEPTION, FeatureMetric, feature_sets
from midefense.ranges import Count
from midefense.types import Refused

COMFORTABLE = 10
ROWS = 1024


class FrechetDistance(FeatureMetric):
    """`fid/<network>` over all attacked classes together, at least 0, lower means closer to the private images.

    `features`: `inception`, the name of an evaluator, or `auto` (see `pin`). NaN unless both sets hold more images than
    the network has features, since a covariance of fewer is singular and the distance is then mostly bias.
    `legacy_ppa`: show Inception both sets as PPA's code does (see `Inception`), as `fid_legacy_ppa/inception`.
    """

    higher_leaks = False
    best = {"fid": 0.0}

    def __init__(self, *, features: str = "auto", legacy_ppa: bool = False, batch_size: Count = 256) -> None:
        super().__init__(features=features, batch_size=batch_size, legacy_ppa=legacy_ppa)
        if legacy_ppa and self.features != INCEPTION:
            raise Refused(
                f"legacy_ppa: expected features=inception, whose input range it changes, got {self.features}; "
                "try legacy_ppa=false"
            )

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        private, _, recovered = feature_sets(rows, world, self.network, self.batch_size)
        stem = "fid_legacy_ppa" if self.legacy_ppa else "fid"
        return {f"{stem}/{self.features}": measured_distance(private, recovered)}


def measured_distance(private: Tensor, recovered: Tensor) -> Measured:
    """The Frechet distance of feature sets [N, F] and [M, F]; NaN where one holds no more images than features."""
    counts = f"{len(private)} private and {len(recovered)} recovered images for {private.shape[1]} features"
    fewest, width = min(len(private), len(recovered)), private.shape[1]
    if fewest <= width:
        reason = f"{counts}: expected more than {width} of each; try kid or a narrower network"
        return Measured.undefined(reason, len(recovered), higher_leaks=False)
    few = f"{counts}: biased upwards, below {COMFORTABLE} images per feature"
    return Measured(
        value=frechet_distance(private, recovered),
        n=len(recovered),
        reason=few if fewest < COMFORTABLE * width else "",
        higher_leaks=False,
    )


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two feature sets [N, F] and [M, F], in float64.

    tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric: no general
    matrix root, whose complex or failed results are known to spoil this number.
    """
    (first_mean, first_covariance), (second_mean, second_covariance) = moments(first), moments(second)
    values, vectors = torch.linalg.eigh(first_covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ second_covariance @ root)
    overlap = product.clamp(min=0).sqrt().sum()
    shift = (first_mean - second_mean).square().sum()
    return float(shift + first_covariance.trace() + second_covariance.trace() - 2 * overlap)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F] and unbiased covariance [F, F] of features [N, F], in float64, a few rows at a time."""
    mean = sum(rows.double().sum(0) for rows in features.split(ROWS)) / len(features)
    centred = (rows.double() - mean for rows in features.split(ROWS))
    return mean, sum(rows.T @ rows for rows in centred) / (len(features) - 1)
