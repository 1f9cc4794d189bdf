"""What priors share that learn from a target: the question they put to it, and the mode it answers in."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from midefense.oracle import MODES, Oracle
from midefense.priors.base import Prior
from midefense.types import Refused, refuse_unknown


def require_mode(mode: str) -> str:
    """Refuse a mode that no target answers in."""
    if mode not in MODES:
        raise refuse_unknown("prior.target_mode", mode, MODES)
    return mode


def require_answers(prior: Prior, oracle: Oracle | None, reads: str = "probs") -> Callable[[Tensor], Tensor]:
    """A function that asks the target for what the prior `reads`: scores or logits [B, classes], or `labels` int64 [B];
    refuses to go without a target, and one that tells other classes apart than the prior, as far as answers show."""
    who, classes = type(prior).__name__, prior.classes
    if oracle is None:
        raise Refused(f"{who}: expected a target to learn from, got none; it is trained by attack.py and evaluate.py")

    def ask(images: Tensor) -> Tensor:
        answers = getattr(oracle(images, reads=(reads,)), reads)
        told = answers.shape[1] if reads != "labels" else max(classes, int(answers.max()) + 1)
        if told != classes:
            raise Refused(f"{who}: expected a target of {classes} classes, got one of {told}")
        return answers

    return ask
