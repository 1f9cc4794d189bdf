"""Frechet distance between Gaussians fitted to features of private training images and of recovered images.

Source: Heusel et al., NeurIPS 2017, equation 6: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). The feature network is
part of the name: numbers of different networks must not be compared, and only `fid/inception` is the FID of papers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.metrics.base import Judged, Measured, Metric, World
from midefense.metrics.features import INCEPTION, feature_sets, judged_trace, pin_features, require_inception

COMFORTABLE = 10


class FrechetDistance(Metric):
    """`fid/<network>` over all attacked classes together, at least 0, lower means closer to the private images.

    `features`: `inception`, the name of an evaluator, or `auto` (see `pin`). NaN unless both sets hold more images than
    the network has features, since a covariance of fewer is singular and the distance is then mostly bias.
    """

    higher_leaks = False
    aside = ("batch_size",)
    best = {"fid": 0.0}

    def __init__(self, *, features: str = "auto", batch_size: int = 256) -> None:
        super().__init__()
        self.features = str(self.pin({"features": features})["features"])
        self.batch_size = batch_size
        if self.features == INCEPTION:
            require_inception()

    @classmethod
    def pin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments with `features: auto` made concrete for this machine."""
        return pin_features(arguments)

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {"features": judged_trace(judged, world, self.features, self.batch_size).features}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        private, _, recovered = feature_sets(rows, world, self.features, self.batch_size)
        return {f"fid/{self.features}": self._measure(private, recovered)}

    def _measure(self, private: Tensor, recovered: Tensor) -> Measured:
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
    first, second = first.double(), second.double()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    first_covariance, second_covariance = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(first_covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ second_covariance @ root)
    overlap = product.clamp(min=0).sqrt().sum()
    return float(shift + first_covariance.trace() + second_covariance.trace() - 2 * overlap)
