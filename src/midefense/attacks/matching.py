"""The objective of feature inversion: an image whose features are those that were observed of the target (He et al.,
ACSAC 2019; Wang et al., Crafter, NDSS 2024, card crafter.md, 4.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Look
from midefense.priors.base import Prior
from midefense.types import Refused, Setting, refuse_unknown

DISTANCES = ("l2", "squared", "cosine")


class FeatureMatch(Part):
    """How far the features of an image are from what was observed of its target, at the cut of the evidence.

    Args:
        distance: `l2` is the norm of the difference, not squared (Crafter's); `squared` its square; `cosine` is
            1 - cos, for releases that keep a direction but not a length.
        coupled: as the authors' code, which takes one norm over the whole batch: how far an image moves then depends on
            its batch mates, about as 1 / sqrt(images). Each image bears its share of the norm, in proportion to its
            square. The weight of a batch of n images, coupled, is that of one image by itself times sqrt(n).
    """

    reads = ("features", "gradient")

    def __init__(self, *, distance: str = "l2", coupled: bool = False):
        if distance not in DISTANCES:
            raise refuse_unknown("attack.objective.distance", distance, DISTANCES)
        if coupled and distance != "l2":
            raise Refused(
                f"attack.objective.coupled: expected false for distance={distance}, which is a sum over images however "
                "they are batched, got true; try distance=l2"
            )
        self.distance, self.coupled = distance, coupled

    def check(self, setting: Setting) -> None:
        """Refuses evidence of which nothing is observed."""
        require_observed(type(self).__name__, setting)

    def check_prior(self, prior: Prior) -> None:
        """Refuses a generator that is told classes: the class of a private image is what an attacker is after."""
        if prior.held:
            raise Refused(
                f"{type(self).__name__}: expected a prior that is told no classes, as nobody tells an attacker whom "
                f"a released feature shows, got {type(prior).__name__}; try prior=gmi_gan_small"
            )

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        if look.observed is None:
            raise nothing_observed(type(self).__name__)
        features = look.answer.features
        if features.shape != look.observed.shape:
            raise Refused(
                f"{type(self).__name__}: expected features {list(look.observed.shape[1:])} of each image, the shape of "
                f"what was observed, got {list(features.shape[1:])}; try the evidence.cut behind which it was released"
            )
        each = distances(features, look.observed.to(features), self.distance)
        return shares(each) if self.coupled else each


def distances(left: Tensor, right: Tensor, kind: str) -> Tensor:
    """The distance of every row of `left` [B, ...] to that of `right` [B], of one of the `DISTANCES`."""
    left, right = (side.flatten(1).to(torch.promote_types(side.dtype, torch.float32)) for side in (left, right))
    if kind == "cosine":
        return 1 - F.cosine_similarity(left, right)
    if kind == "squared":
        return (left - right).square().sum(1)
    return torch.linalg.vector_norm(left - right, dim=1)


def shares(norms: Tensor) -> Tensor:
    """The norm of a whole batch, sqrt(sum of squares), given to its rows [B] by their squares: they sum to it, and so
    do their gradients."""
    whole = torch.linalg.vector_norm(norms)
    squares = norms.detach().square()
    return whole * squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)


def require_observed(who: str, setting: Setting) -> None:
    """Refuse evidence of classes alone, as soon as it is known."""
    evidence = setting.evidence
    if evidence.labels is not None and evidence.observed is None and not evidence.releases:
        raise nothing_observed(who)


def nothing_observed(who: str) -> Refused:
    """The refusal of evidence that names classes and shows nothing of them."""
    return Refused(
        f"{who} compares with what was observed of each target, got evidence of classes alone; "
        "try evidence=released_features"
    )
