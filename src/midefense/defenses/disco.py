"""DISCO: a network at the edge that learns which channels of a feature to keep, against a decoder (Singh et al., CVPR 2021;
as Crafter's authors compare with it, card crafter.md, 4.11 and gotcha 12)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.defenses.adversarial import AgainstDecoder
from midefense.ranges import Positive, Share
from midefense.types import Batch, Origin, Refused, Trace, refuse_unknown

PRUNER_LOSSES = ("intended", "original")


class Pruner(nn.Module):
    """Features [B, C, ...] times a gate per image and channel: sigmoid(steepness (s - t)), s the scores of the channels
    that a `body` and a linear layer give, t the score that a `share` of the channels lie below.

    At the original's share of 0.99, of 64 channels, t is the largest score: one channel passes by half, the others
    hardly.
    """

    def __init__(self, body: nn.Module, scores: nn.Linear, *, share: float, steepness: float = 30.0) -> None:
        super().__init__()
        self.body, self.scores, self.share, self.steepness = body, scores, share, steepness

    def gate(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and gates of the channels, both [B, C]."""
        scores = self.scores(self.body(features))
        rank = min(int(self.share * scores.shape[1]), scores.shape[1] - 1)
        threshold = scores.sort(dim=1).values[:, rank : rank + 1]
        return scores, torch.sigmoid(self.steepness * (scores - threshold))

    def forward(self, features: Tensor) -> Tensor:
        return gated(features, self.gate(features)[1])


class PrunedStage(nn.Module):
    """A stage whose output is pruned. While it trains it keeps what the last forward pruned, and the gate; the task's
    gradient reaches the gate `task_share` times."""

    def __init__(self, stage: nn.Module, pruner: Pruner, task_share: float) -> None:
        super().__init__()
        self.stage, self.pruner, self.task_share = stage, pruner, task_share
        self.last: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        features = self.stage(hidden)
        gate = self.pruner.gate(features)[1]
        if self.training:
            self.last = features.detach(), gate
            gate = gate.detach() + self.task_share * (gate - gate.detach())
        return gated(features, gate)


class Disco(AgainstDecoder):
    """The pruner minimises (1 - alpha) task - alpha error, the decoder the error, and the network the task; the error is
    the mean squared one of the pixels. The pruner is a part of the deployed network: what is released is pruned, and the
    cloud was trained on it.

    Args:
        cut: the stage behind which features are released and pruned. The pruner has the layers behind it.
        decoder: see `AgainstDecoder`.
        share: of the channels that are pruned; 0 prunes nothing.
        alpha: weight of privacy.
        steepness: of the gate.
        pruner_loss: `intended`, or `original`: the authors' script creates a tensor anew before it is used, so that the
            pruner gets (1 - 2 alpha) of the task's gradient and nothing of the decoder's.
    """

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"share": 0.0}

    def __init__(
        self,
        *,
        cut: str,
        decoder: Callable[..., nn.Module],
        share: Share = 0.99,
        alpha: Share = 0.4,
        steepness: Positive = 30.0,
        pruner_loss: str = "intended",
    ) -> None:
        super().__init__(cut=cut, decoder=decoder)
        if pruner_loss not in PRUNER_LOSSES:
            raise refuse_unknown("defense.pruner_loss", pruner_loss, PRUNER_LOSSES)
        self.share, self.alpha, self.steepness, self.pruner_loss = share, alpha, steepness, pruner_loss
        self.pruned: list[PrunedStage] = []  # a list, as it is a part of the network and not of the defense

    @property
    def taps(self) -> tuple[str, ...]:
        return ()

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Put the pruner behind the stage of the cut: a copy of the layers that follow, and a score per channel."""
        if self.share == 0:
            return model
        model = super().rebuild(model, origin)
        behind = list(model.stages)[model.tap_names.index(self.cut) + 1 :]
        if not behind:
            raise Refused(f"defense.cut: expected a stage with others behind it, got {self.cut}; try an earlier one")
        body = nn.Sequential(*(copy.deepcopy(model.stages[name]) for name in behind))
        scores = nn.Linear(model.feature_width, self.shape(model)[0])
        task_share = 1 - self.alpha if self.pruner_loss == "intended" else 1 - 2 * self.alpha
        pruner = Pruner(body, scores, share=self.share, steepness=self.steepness)
        model.stages[self.cut] = PrunedStage(model.stages[self.cut], pruner, task_share)
        self.pruned = [model.stages[self.cut]]
        return model

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        if not self.pruned:
            return {}
        features, gate = self.pruned[0].last
        learned, moved = self.against(gated(features, gate), batch.images)
        if self.pruner_loss == "original":
            return {"decoder": learned}
        return {"decoder": learned, "privacy": -self.alpha * moved}

    def distance(self, images: Tensor, decoded: Tensor) -> Tensor:
        return (images - decoded).square().flatten(1).mean(1)


def gated(features: Tensor, gate: Tensor) -> Tensor:
    """Features [B, C, ...] times a gate [B, C]."""
    return features * gate.view(*gate.shape, *[1] * (features.dim() - 2))
