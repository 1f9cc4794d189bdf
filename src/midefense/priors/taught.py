"""What priors share that learn from a target: the question they put to it, and the mode it answers in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from midefense.oracle import MODES, Oracle
from midefense.priors.base import Prior
from midefense.types import Progress, Refused, refuse_unknown


def require_mode(mode: str) -> str:
    """Refuse a mode that no target answers in."""
    if mode not in MODES:
        raise refuse_unknown("prior.target_mode", mode, MODES)
    return mode


def require_answers(prior: Prior, oracle: Oracle | None, reads: str = "probs") -> Callable[[Tensor], Tensor]:
    """A function that asks the target for what the prior `reads`, scores or logits [B, classes]; refuses to go without
    a target, and one that tells other classes apart than the prior."""
    oracle = _required(prior, oracle)

    def ask(images: Tensor) -> Tensor:
        answers = getattr(oracle(images, reads=(reads,)), reads)
        _require_classes(prior, answers.shape[1])
        return answers

    return ask


class Labels:
    """Asks the target for labels: images [B, C, H, W] to int64 [B]. Nothing waits for the device: that a label is none
    of the prior's classes is seen by `watched`, where the work waits anyhow, and until then it counts as the last.

    Refuses to go without a target.
    """

    def __init__(self, prior: Prior, oracle: Oracle | None):
        self._prior, self._oracle = prior, _required(prior, oracle)
        self._highest: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        labels = self._oracle(images, reads=("labels",)).labels
        highest = labels.amax()
        self._highest = highest if self._highest is None else torch.maximum(self._highest, highest)
        return labels.clamp(max=self._prior.classes - 1)

    def watched(self, work: Iterator[Progress]) -> Iterator[Progress]:
        """The work that asks, refused before a state is handed on that learned from labels of other classes."""
        for progress in work:
            if self._highest is not None:
                _require_classes(self._prior, max(self._prior.classes, int(self._highest) + 1))
            yield progress


def _required(prior: Prior, oracle: Oracle | None) -> Oracle:
    if oracle is None:
        raise Refused(
            f"{type(prior).__name__}: expected a target to learn from, got none; it is trained by attack.py and "
            "evaluate.py"
        )
    return oracle


def _require_classes(prior: Prior, told: int) -> None:
    if told != prior.classes:
        raise Refused(f"{type(prior).__name__}: expected a target of {prior.classes} classes, got one of {told}")
