"""Where reconstructions lie in the target's own feature space: with the private images, or with their erased copies?

Source: MIDRE (Tran et al., "Random Erasing vs. Model Inversion", TMLR 2025) shows it as scatter plots of penultimate
features, one person each: f_priv of clean private images, f_RE of erased ones, f_recon of reconstructions. The numbers
are ours: what the plots let one see, measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from midefense import seeds
from midefense.metrics.base import Judged, Measured, Metric, World, over_classes
from midefense.metrics.features import TARGET, ask_features, batch_rows, feature_sets, judged_trace, network
from midefense.metrics.hull import convex_hull, in_hull
from midefense.metrics.intervals import REAL, SHARE, Span
from midefense.metrics.kid import kernel_distance
from midefense.ranges import Count, Whole
from midefense.types import Batch, Refused

ROWS = 1024
ERASED_AT_ONCE = 64  # images per draw: part of the key of what is drawn, so no option


class FeatureSpace(Metric):
    """In the penultimate features of the attacked target, each a mean over the attacked classes:

    - `feature_space_hull_share/target`: share of f_recon inside the convex hull of f_priv, in the plane of the two
      principal components of f_priv (in [0, 1], higher leaks);
    - `feature_space_mmd_private/target`: unbiased squared MMD between f_recon and f_priv, with KID's kernel (lower
      leaks), and `feature_space_mmd_erased/target` the same between f_recon and f_RE. The second alone proves nothing,
      erased images scatter: hold both against those of the undefended target;
    - `feature_space_centroid_accuracy/target`: share of f_priv whose nearest class mean is that of its class: what is
      left of the classes.

    `erasing`: the defense whose `before_augment` and `transform` erase. `drawn`: of so many classes the projections are
    kept, for the report to draw. `seed`: of the erasing. NaN where a class is too small, or its images lie on a line.
    """

    revision = 2
    unhashed = ("batch_size",)
    best = {"feature_space_hull_share": 1.0}

    def __init__(self, *, erasing: nn.Module, drawn: Count = 4, seed: Whole = 0, batch_size: Count = 256) -> None:
        super().__init__()
        if not hasattr(erasing, "transform"):
            raise Refused(f"FeatureSpace.erasing: expected a defense, got {type(erasing).__name__}; try random_erasing")
        self.erasing = erasing
        self.drawn = drawn
        self.key = ("metrics", "feature space", seed)
        self.batch_size = batch_size

    def reset(self) -> None:
        super().reset()
        self._drawings: list[tuple[int, int, Tensor]] = []

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {"features": judged_trace(judged, world, TARGET, self.batch_size).features}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        private, private_labels, recovered = feature_sets(rows, world, TARGET, self.batch_size)
        labels = rows["label"]
        classes = labels.unique()
        erased = self._erased(world)[torch.isin(world.references.labels.to(labels.device), classes)]
        self._drawings = []
        found = []
        for label in classes:
            own = private_labels == label
            found.append(self._of_class(int(label), private[own], erased[own], recovered[labels == label]))
        shares, near_private, near_erased = torch.tensor(found, dtype=torch.float64).unbind(1)
        accuracy = _centroid_accuracy(private, private_labels, classes)
        few = "expected at least 2 private and 2 recovered images"
        flat = "expected at least 3 private images that do not lie on a line"
        return {
            "feature_space_hull_share/target": _mean(shares, classes, len(labels), flat, True, SHARE),
            "feature_space_mmd_private/target": _mean(near_private, classes, len(labels), few, False, REAL),
            "feature_space_mmd_erased/target": _mean(near_erased, classes, len(labels), few, None, REAL),
            "feature_space_centroid_accuracy/target": accuracy,
        }

    def drawings(self) -> dict[str, Tensor]:
        """`projection.points` float32 [P, 2], `projection.labels` [P], and `projection.sets` [P]: 0 for private, 1 for
        erased, 2 for recovered; of the first `drawn` classes."""
        if not self._drawings:
            return {}
        return {
            "projection.points": torch.cat([points for _, _, points in self._drawings]).float().cpu(),
            "projection.labels": torch.cat([torch.full((len(p),), label) for label, _, p in self._drawings]),
            "projection.sets": torch.cat([torch.full((len(p),), which) for _, which, p in self._drawings]),
        }

    def _of_class(self, label: int, private: Tensor, erased: Tensor, recovered: Tensor) -> tuple[float, float, float]:
        """Hull share and both distances of one class; NaN where they are not defined. Keeps what will be drawn."""
        share = near_private = near_erased = torch.nan
        if len(private) > 2:
            sets = principal_plane(private, [private, erased, recovered])
            if len(self._drawings) < 3 * self.drawn:
                self._drawings += [(label, which, points) for which, points in enumerate(sets)]
            hull = convex_hull(sets[0].cpu().numpy())
            if len(hull) > 2:
                share = float(np.mean(in_hull(sets[2].cpu().numpy(), hull)))
        if min(len(private), len(recovered)) > 1:
            near_private, near_erased = (_class_distance(known, recovered) for known in (private, erased))
        return share, near_private, near_erased

    def _erased(self, world: World) -> Tensor:
        """Features of the erased private images [N, F], computed once per world."""
        key = ("erased", self)
        if key not in world.cache:
            target = network(world, TARGET)
            with seeds.isolated(*self.key):
                self.erasing.to(world.device).rebuild(target)
            rows = batch_rows(self.batch_size, world.references.pixels.shape[-1], target)
            batches = (part for images in self._erased_images(world) for part in images.split(rows))
            world.cache[key] = ask_features(target, batches, TARGET, len(world.references))
        return world.cache[key]

    def _erased_images(self, world: World) -> Iterator[Tensor]:
        """The private images as the defense erases them, a few at a time."""
        images, device = world.references, world.device
        for index, rows in enumerate(torch.arange(len(images)).split(ERASED_AT_ONCE)):
            batch = Batch(
                images=images.floats(rows, device),
                labels=images.labels[rows].to(device),
                ids=images.ids[rows].to(device),
                weight=torch.ones(len(rows), device=device),
                rng=seeds.generator(*self.key, index),
            )
            with seeds.isolated(*self.key, index):
                erased = self.erasing.transform(self.erasing.before_augment(batch)).images
            yield erased


def principal_plane(reference: Tensor, sets: list[Tensor]) -> list[Tensor]:
    """`sets` of features [M, F] in the plane [M, 2] of the two principal components of `reference` [N, F], float64.

    A component points to where its largest entry is positive, so that pictures do not flip from run to run.
    """
    mean = reference.double().mean(0)
    axes = torch.linalg.svd(reference.double() - mean, full_matrices=False).Vh[:2]
    axes = pad(axes, (0, 0, 0, 2 - len(axes)))  # of one feature, or of images that are all equal
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = torch.where(largest < 0, -axes, axes)
    return [(features.double() - mean) @ axes.T for features in sets]


def _class_distance(known: Tensor, recovered: Tensor) -> float:
    """KID's distance within one class."""
    one = [torch.zeros(len(features), dtype=torch.int64, device=known.device) for features in (known, recovered)]
    return kernel_distance(known, one[0], recovered, one[1]).value


def _centroid_accuracy(private: Tensor, labels: Tensor, classes: Tensor) -> Measured:
    if len(classes) < 2:
        return Measured.undefined("one class only: its mean is always the nearest", len(private))
    means = torch.stack([private[labels == label].double().mean(0) for label in classes])
    nearest = torch.cat([torch.cdist(rows.double(), means).argmin(1) for rows in private.split(ROWS)])
    return over_classes(classes[nearest] == labels, labels, None, SHARE)


def _mean(
    values: Tensor, classes: Tensor, images: int, expected: str, higher_leaks: bool | None, span: Span
) -> Measured:
    """Mean over classes; NaN with a reason where one class has no value."""
    if values.isnan().any():
        lacking = classes[values.isnan().to(classes.device)].tolist()
        return Measured.undefined(f"classes {lacking}: {expected}", images, higher_leaks)
    measured = over_classes(values, classes, higher_leaks, span)
    measured.n = images
    return measured
