"""Losses per image of the target's probabilities alone: for who sees scores and no gradient."""

from __future__ import annotations

from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Look

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


def wanted(look: Look) -> Tensor:
    """The probability of the label wanted [B]."""
    return look.answer.probs.gather(1, look.labels[:, None])[:, 0]
