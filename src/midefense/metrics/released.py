"""What released features are still good for, how far they are from what the edge computed, and what they cost.

Privacy of a release means nothing without its utility: a defense that releases zeros is perfectly private. Source: Wang
et al., NDSS 2024 (Crafter), who report the ROC-AUC per attribute, mean over the attributes that have both classes among
the test images; for a target of one label, its accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from midefense.metrics.base import Judged, Measured, Metric, Released, World, over_classes, recorded
from midefense.metrics.features import batch_rows
from midefense.metrics.intervals import POSITIVE, REAL, SHARE, jackknife_interval
from midefense.ranges import Count

GROUPS = 50  # identities are left out in so many groups at most, for the interval of an AUC


class ReleasedUtility(Metric):
    """What the cloud's half of the target says of released features, beside what it says of clean ones.

    Of a target of one label: `released_accuracy_top1` and `clean_accuracy_top1`, in [0, 1]. Of a target of attributes:
    `released_auc` and `clean_auc`, means over the attributes that some of the images have and others have not, and each
    of those as `released_auc/<attribute>`; in [0, 1], where guessing has one half. `feature_distortion` is the mean of
    ||f' - f|| / ||f|| over images. Intervals are over identities.
    """

    kind = "utility"
    matches = None
    judges_release = True
    unhashed = ("batch_size",)

    def __init__(self, *, batch_size: Count = 256) -> None:
        super().__init__()
        self.batch_size = batch_size

    def update(self, judged: Judged, world: World) -> None:
        """Nothing to see: utility does not depend on recovered images."""

    def compute(self, world: World) -> dict[str, Measured]:
        released = world.released
        if released is None:
            return {"released_utility": Measured.undefined("nothing was released: the evidence is no feature")}
        identities = world.identities(released.ids).cpu()
        measured = {"feature_distortion": _distortion(released, identities)}
        for name, features in (("released", released.features), ("clean", released.clean)):
            measured |= self._judged(name, features, released, identities, world.device)
        return measured

    def chance(self, world: World) -> dict[str, float]:
        """An AUC of one half; an accuracy of one in as many as the cloud tells apart."""
        if world.released is None:
            return {}
        if world.released.labels.ndim == 2:
            return {"released_auc": 0.5, "clean_auc": 0.5}
        return dict.fromkeys(("released_accuracy_top1", "clean_accuracy_top1"), 1 / world.classes)

    def _judged(
        self, name: str, features: Tensor, released: Released, identities: Tensor, device: torch.device | str
    ) -> dict[str, Measured]:
        wanted, got = released.clean.shape[1:], features.shape[1:]
        one_label = released.labels.ndim == 1
        headline = f"{name}_accuracy_top1" if one_label else f"{name}_auc"
        if wanted != got:
            reason = f"the cloud takes features {list(wanted)}, what was released is {list(got)}"
            return {headline: Measured.undefined(reason, len(features))}
        logits = self._asked(features, released, device)
        if one_label:
            return {headline: over_classes(logits.argmax(1) == released.labels.cpu(), identities, None, SHARE)}
        return attribute_auc(headline, logits, released.labels.cpu(), released.attributes, identities)

    @torch.no_grad()
    def _asked(self, features: Tensor, released: Released, device: torch.device | str) -> Tensor:
        """Logits [N, outputs] on the CPU."""
        rows = batch_rows(self.batch_size, features.shape[-1])
        return torch.cat([released.cloud(part.to(device)).float().cpu() for part in features.split(rows)])


class ReleaseCost(Metric):
    """`cost/release_seconds_per_image` and `cost/bytes_per_feature`: what a release takes at the edge, and sends."""

    kind = "cost"
    matches = None
    judges_release = True

    def update(self, judged: Judged, world: World) -> None:
        """Nothing to see: cost does not depend on recovered images."""

    def compute(self, world: World) -> dict[str, Measured]:
        known = world.released
        bill = {} if known is None else {"release_seconds_per_image": known.seconds, "bytes_per_feature": known.bytes}
        return recorded("cost", bill, ("release_seconds_per_image", "bytes_per_feature"))


def attribute_auc(
    headline: str, scores: Tensor, labels: Tensor, attributes: Sequence[str], identities: Tensor
) -> dict[str, Measured]:
    """The mean AUC of `scores` [N, K] for `labels` bool [N, K] under the name `headline`, with its interval over
    `identities` int64 [N], and `headline/<attribute>` of each that both some have and some have not."""
    scores, labels = scores.numpy(), labels.bool().numpy()
    each = aucs(scores, labels)
    known = np.isfinite(each)
    if not known.any():
        return {headline: Measured.undefined("all images agree in every attribute", len(scores))}
    groups = np.unique(identities.numpy(), return_inverse=True)[1] % GROUPS
    without = [np.nanmean(left) if np.isfinite(left).any() else math.nan for left in _left_out(scores, labels, groups)]
    mean = Measured(float(each[known].mean()), n=len(scores))
    measured = {headline: mean.within(jackknife_interval(mean.value, np.array(without), REAL))}
    if not known.all():
        silent = ", ".join(name for name, there in zip(attributes, known, strict=True) if not there)
        mean.reason = "; ".join(filter(None, (mean.reason, f"without {silent}, in which all images agree")))
    for name, value, there in zip(attributes, each, known, strict=True):
        if there:
            measured[f"{headline}/{name}"] = Measured(float(value), n=len(scores))
    return measured


def aucs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of each column of `scores` [N, K] for `labels` bool [N, K]: [K], NaN where all
    labels agree."""
    from sklearn.metrics import roc_auc_score  # slow to import (a seventh of a start), and few ask

    pairs = zip(scores.T, labels.T, strict=True)
    return np.array(
        [roc_auc_score(truth, score) if 0 < truth.sum() < len(truth) else math.nan for score, truth in pairs]
    )


def _left_out(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    return [aucs(scores[groups != group], labels[groups != group]) for group in np.unique(groups)]


def _distortion(released: Released, identities: Tensor) -> Measured:
    if released.features.shape != released.clean.shape:
        shapes = f"{list(released.features.shape[1:])} and {list(released.clean.shape[1:])}"
        return Measured.undefined(f"what was released and what the edge computed are of other shapes: {shapes}")
    clean = released.clean.double().flatten(1)
    length = clean.norm(dim=1)
    if not (length > 0).all():
        return Measured.undefined("the edge's features of some images are 0 throughout", len(clean))
    moved = (released.features.double().flatten(1) - clean).norm(dim=1)
    return over_classes(moved / length, identities, None, POSITIVE)
