"""Label smoothing, negative as a defense and positive as its opposite (Struppek et al., "Be Careful What You
Smooth For", ICLR 2024)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from midefense.defenses.base import Defense, cross_entropy
from midefense.ranges import Share
from midefense.types import Batch, Refused, Trace


class LabelSmoothing(Defense):
    """Cross-entropy against `(1 - alpha) onehot + alpha / classes`; `alpha` in (-inf, 1], below 0 to defend.

    A negative `alpha` is ramped as the authors' code does, with `start` and `full` as shares of all epochs E: 0 before
    `start * E`, then `alpha (epoch + 1 - start E) / (E - start E)`, and from `full * E` on all of it (a jump, at the
    default from about alpha/2). `start = full = 0` keeps it constant; a positive one always is. The loss is computed
    here, because torch's own `label_smoothing` ignores negative values without a word; it has no lower bound.
    """

    revision = 1
    needs_classes = True
    owns = ("task",)
    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0}

    def __init__(self, *, alpha: float, start: Share = 0.5, full: Share = 0.75) -> None:
        super().__init__()
        if alpha > 1:
            raise Refused(f"alpha: expected at most 1, got {alpha}; try -0.05 to defend, 0.1 to smooth")
        if not 0 <= start <= full <= 1:
            raise Refused(f"start, full: expected shares 0 <= start <= full <= 1, got {start}, {full}; try 0.5, 0.75")
        self.alpha = alpha
        self.start = start
        self.full = full
        self.current = alpha

    def scheduled(self, epoch: int, epochs: int) -> float:
        """The alpha of epoch `epoch` (from 0) of `epochs`."""
        start, full = self.start * epochs, self.full * epochs
        if self.alpha >= 0 or epoch >= full:
            return self.alpha
        if epoch < start:
            return 0.0
        return self.alpha * (epoch + 1 - start) / (epochs - start)

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        self.current = self.scheduled(epoch, epochs)
        return {"alpha": self.current}

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        return {"task": smoothed_cross_entropy(trace.logits, batch.labels, self.current)}


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) (-log p_y) + alpha mean_k(-log p_k)` per image [B], in float32; k runs over all classes.

    logits [B, classes]; labels int64 [B] or soft [B, classes].
    """
    logits = logits.float()
    towards_uniform = logits.logsumexp(dim=1) - logits.mean(dim=1)
    return (1 - alpha) * cross_entropy(logits, labels) + alpha * towards_uniform
