"""Distance in feature space between recovered images and the private training images of their class.

Sources: `knn_distance` is the KNN distance of KED-MI (Chen et al., ICCV 2021) and delta of PPA (Struppek et al., ICML
2022): squared L2 to the nearest training image of the target class; `feature_distance` is GMI's distance to the mean
feature of the class. Distances of different evaluators are in different units and must not be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.metrics.base import Judged, Measured, Metric, World, over_classes
from midefense.metrics.features import evaluator_names, judged_trace, reference_features
from midefense.metrics.intervals import POSITIVE
from midefense.ranges import Count


class FeatureDistance(Metric):
    """`knn_distance/<evaluator>` and `feature_distance/<evaluator>`: squared L2, at least 0, lower leaks more.

    After `compute`, `nearest` int64 [M] holds, in the order of `row_order`, the row of `world.references` that the
    first evaluator finds nearest, on the CPU (-1 where the class has no reference).
    """

    revision = 2
    higher_leaks = False
    unhashed = ("batch_size",)
    best = {"knn_distance": 0.0}

    def __init__(self, *, batch_size: Count = 256) -> None:
        super().__init__()
        self.batch_size = batch_size

    def reset(self) -> None:
        super().reset()
        self.nearest: Tensor | None = None

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {name: judged_trace(judged, world, name, self.batch_size).features for name in evaluator_names(world)}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        measured, nearest = {}, []
        for name in evaluator_names(world):
            private = reference_features(world, name, self.batch_size)
            knn, mean, rows_of_nearest = class_distances(rows[name], rows["label"], private, world.references.labels)
            nearest.append(rows_of_nearest)
            measured[f"knn_distance/{name}"] = self._measured(knn, rows["label"])
            measured[f"feature_distance/{name}"] = self._measured(mean, rows["label"])
        self.nearest = nearest[0].cpu()
        return measured

    def _measured(self, distances: Tensor, labels: Tensor) -> Measured:
        lonely = labels[distances.isnan()].unique().tolist()
        if lonely:
            return Measured.undefined(f"no private training image of classes {lonely}", len(labels), higher_leaks=False)
        return over_classes(distances, labels, False, POSITIVE)


def class_distances(
    features: Tensor, labels: Tensor, private: Tensor, private_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For `features` [M, F]: squared distances [M] to the nearest of `private` [N, F] with the same label and to the
    mean of those, both float64, and the row [M] of the nearest; NaN and -1 where the class has none."""
    private_labels = private_labels.to(labels.device)
    knn = torch.full((len(features),), torch.nan, dtype=torch.float64, device=features.device)
    mean = knn.clone()
    nearest = torch.full_like(labels, -1)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        theirs = (private_labels == label).nonzero()[:, 0]
        if len(theirs) == 0:
            continue
        images, references = features[own].double(), private[theirs].double()
        # The matrix form of the distance cancels: two equal images would not be at distance 0.
        distances = torch.cdist(images, references, compute_mode="donot_use_mm_for_euclid_dist")
        smallest, index = distances.min(1)
        knn[own], nearest[own] = smallest.square(), theirs[index]
        mean[own] = (images - references.mean(0)).square().sum(1)
    return knn, mean, nearest
