"""Losses per image of what a target tells beside its inside: for who sees scores or labels, and no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Look
from midefense.ranges import Count, InnerShare, NotNegative, Share

LEAST = 1e-12  # of a probability that a logarithm is taken of: rounded or cut answers hold zeros


class LogConfidence(Part):
    """-log p_y, the cross-entropy. A probability of 0 counts as 1e-12 (card query_budgets.md)."""

    reads = ("probs",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0 to 27.7."""
        return -wanted(look).clamp_min(LEAST).log()


class Doubt(Part):
    """1 - p_y, MI-Face's cost (Fredrikson et al., CCS 2015, algorithm 1)."""

    reads = ("probs",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], in [0, 1]."""
        return 1 - wanted(look)


class Score(Part):
    """Minus the probability of the label, -p_y, of a target that tells scores (C2FMI, Ye et al., TDSC 2023: the fitness
    of its search). Near 0 it keeps what 1 - p_y loses to rounding.

    Args:
        top: of a target that tells its `top` largest probabilities alone: where the label is not among them, their sum,
            so that the less they hold, the better; None: the label's probability, whatever it is.
    """

    reads = ("probs",)

    def __init__(self, *, top: Count | None = None):
        self.top = top

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], in [-1, 1]."""
        probs = look.answer.probs.float()
        score = wanted(look).float()
        if self.top is None:
            return -score
        largest = probs.topk(min(self.top, probs.shape[1]), dim=1)
        told = (largest.indices == look.labels[:, None]).any(1)
        return torch.where(told, -score, largest.values.sum(1))


class Reward(Part):
    """Minus the reward of RLB-MI for an image (Han et al., CVPR 2023, equation 3): `confidence` log p_y + `margin` log
    max(`least_margin`, p_y - max_k p_k), k not y. It takes no gradient. Where y does not come first, the margin's term
    is at its floor, and p_y alone tells where to go.

    Args:
        confidence, margin: weights of the two terms.
        least_margin: floor of the margin.
        least: floor of p_y: an oracle that rounds may say 0. The authors' code has none (0).
    """

    reads = ("probs",)

    def __init__(
        self,
        *,
        confidence: NotNegative = 2.0,
        margin: NotNegative = 8.0,
        least_margin: InnerShare = 1e-7,
        least: Share = 1e-7,
    ):
        self.confidence, self.margin, self.least_margin, self.least = confidence, margin, least_margin, least

    def as_published(self) -> Reward:
        """Without a floor under p_y."""
        return Reward(confidence=self.confidence, margin=self.margin, least_margin=self.least_margin, least=0.0)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B]."""
        sure, others = wanted(look).detach(), look.answer.probs.scatter(1, look.labels[:, None], -torch.inf)
        margin = sure - others.detach().amax(1)
        reward = self.confidence * sure.clamp_min(self.least).log()
        return -(reward + self.margin * margin.clamp_min(self.least_margin).log())


class WrongLabel(Part):
    """1 where the target says another label than the one wanted, else 0: all that an answer of labels tells (BREP-MI's
    Phi is 1 - 2 of it)."""

    reads = ("labels",)
    decides = True

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], 0 or 1."""
        return (look.answer.labels != look.labels).float()


def wanted(look: Look) -> Tensor:
    """The probability of the label wanted [B]."""
    return look.answer.probs.gather(1, look.labels[:, None])[:, 0]
