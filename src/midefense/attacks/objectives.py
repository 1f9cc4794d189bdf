"""Losses per image. All take a `Look` and give [B]; the search sums them, so no image depends on its batch, unless a
loss says that it is `coupled`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.attacks.base import Look, Part
from midefense.identity_losses import max_margin, poincare
from midefense.ranges import InnerShare
from midefense.types import Refused, Setting


class CrossEntropy(Part):
    """-log p_y (GMI's identity loss and most others')."""

    reads = ("logits", "gradient")

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        return F.cross_entropy(look.answer.logits.float(), look.labels, reduction="none")


class MaxMargin(Part):
    """The best other logit minus that of the label (PLG-MI): see `identity_losses.max_margin`. It has no lower bound,
    so that latents may leave the region they are drawn from."""

    reads = ("logits", "gradient")

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B]; below 0 where the answer is the label wanted."""
        return max_margin(look.answer.logits, look.labels)


class Confidence(Part):
    """1 - p_y, the cost of Fredrikson et al. (CCS 2015, algorithm 1). Its gradient vanishes where p_y is near 0."""

    reads = ("logits", "gradient")

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], in [0, 1]."""
        return 1 - look.answer.logits.float().softmax(1).gather(1, look.labels[:, None])[:, 0]


class Poincare(Part):
    """Distance in the Poincaré ball between the L1-normalised logits and the one-hot label (PPA, equation 4).

    u = o / ||o||_1, v = onehot(y) clipped to [0, 1 - xi]; loss = arccosh(1 + 2 ||u - v||^2 / ((1 - ||u||^2)
    (1 - ||v||^2))). It does not saturate at high confidence and does not change with the logits' scale.

    Computed in float64: in float32 the original loses 2.16e-4 to cancellation (card ppa.md, gotcha 2).

    Args:
        xi: keeps v inside the ball.
    """

    reads = ("logits", "gradient")

    def __init__(self, *, xi: InnerShare = 1e-4):
        if not 0 < xi < 1:
            raise Refused(f"attack.objective.xi: expected a value between 0 and 1, got {xi}")
        self.xi = xi

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B]."""
        return poincare(look.answer.logits, look.labels, self.xi)


class Realism(Part):
    """Minus the prior's critic: looking unreal costs (GMI's prior loss -D(G(z)))."""

    reads = ("gradient",)
    needs = ("realism",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], unbounded."""
        return -look.prior.realism(look.drawn)


class NonSaturating(Part):
    """softplus(-D(G(w))): looking unreal costs, ever less where the critic is content (PPA's discriminator term)."""

    reads = ("gradient",)
    needs = ("realism",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        return F.softplus(-look.prior.realism(look.drawn))


class TotalVariation(Part):
    """Sum of absolute differences between neighbouring pixels: against high-frequency noise in pixel space."""

    reads = ("gradient",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        across = look.images.diff(dim=3).abs().flatten(1).sum(1)
        return across + look.images.diff(dim=2).abs().flatten(1).sum(1)


class WeightedSum(Part):
    """Several losses, weighted.

    Args:
        terms: by name, each a `Weighted` pair of a loss and its weight.
    """

    def __init__(self, *, terms: Mapping[str, Weighted]):
        if not terms:
            raise Refused("attack.objective.terms: expected at least one term, got none")
        self.terms = list(terms.values())
        self.reads = tuple(dict.fromkeys(read for term in self.terms for read in term.loss.reads))
        self.needs = tuple(dict.fromkeys(need for term in self.terms for need in term.loss.needs))
        self.coupled = any(term.loss.coupled for term in self.terms)

    def check(self, setting: Setting) -> None:
        """Whatever a term refuses."""
        for term in self.terms:
            term.loss.check(setting)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B]."""
        return torch.stack([term.weight * term.loss(look) for term in self.terms]).sum(0)


class Weighted(Part):
    """A loss and its weight, a term of `WeightedSum`."""

    def __init__(self, *, loss: Part, weight: float):
        self.loss, self.weight = loss, weight
