"""The variational information bottleneck (Alemi et al., ICLR 2017) as a defense: MID, mutual information regularisation
(Wang, Zhang, Jia, AAAI 2021; card vib_mid.md). Between features and head stands a Gaussian code of each image, whose
divergence from N(0, I) bounds what the answer can tell of the image."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense
from midefense.precision import at_least_float32
from midefense.ranges import NotNegative, Share
from midefense.types import Batch, Origin, Refused, Trace, refuse_unknown

DEPLOYED = ("mean", "sampled")
REDUCTIONS = ("sum", "mean")
NECKS = ("keep", "drop")
BOTTLENECK, SAMPLE = "bottleneck", "sample"
SHIFT = 5.0  # a code begins nearly without noise: softplus(-5) is 0.0067
LEAST_DEVIATION = 1e-6  # under the logarithm, as softplus underflows to 0 below -98.5


class VIB(Defense):
    """The loss is the task's plus beta times KL(N(mean, deviation^2) || N(0, I)) of the code of each image; in training
    the head sees a sample of the code.

    Two stages stand behind `features`: `bottleneck` [B, 2 k], the code before its deviation was made positive, and
    `sample` [B, k], what the head sees, which is the feature of the deployed network too.

    Args:
        beta: weight of the divergence, which grows with k where it is summed: no beta carries over to another k.
        width: k as a share of the features, rounded down; 0 puts no bottleneck in, which is no defense.
        reduction: over the dimensions of a code, `sum` as in the paper, or `mean`.
        deployed: what the head sees once deployed, the `mean` of the code, or a `sampled` one, drawn anew for every
            answer, as in the authors' code.
        neck: `drop` takes a batch norm away that the features end in, as the authors' VGG16 does; `keep`.
    """

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"width": 0.0}

    def __init__(
        self,
        *,
        beta: NotNegative,
        width: Share = 0.5,
        reduction: str = "sum",
        deployed: str = "mean",
        neck: str = "keep",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("reduction", reduction, REDUCTIONS),
            ("deployed", deployed, DEPLOYED),
            ("neck", neck, NECKS),
        ):
            if value not in choices:
                raise refuse_unknown(f"defense.{name}", value, choices)
        self.beta, self.width, self.reduction, self.deployed, self.neck = beta, width, reduction, deployed, neck
        self.taps = (BOTTLENECK,) if width else ()
        self.stochastic_when_deployed = bool(width) and deployed == "sampled"

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Put the bottleneck and a head for its codes in, both drawn anew."""
        if not self.width:
            return model
        if BOTTLENECK in model.stages:
            raise Refused("defense: expected one information bottleneck, got two; try leaving one of them out")
        if self.neck == "drop":
            _drop_norm(model.stages["features"])
        size = max(1, int(self.width * model.feature_width))
        model.stages[BOTTLENECK] = nn.Linear(model.feature_width, 2 * size)
        model.stages[SAMPLE] = Sample(always=self.deployed == "sampled")
        model.classifier = nn.Linear(size, model.classes)
        return model

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        if not self.width:
            return {}
        told = divergence(*mean_and_deviation(trace.taps[BOTTLENECK]))
        return {"kl": self.beta * (told.sum(1) if self.reduction == "sum" else told.mean(1))}


class Sample(nn.Module):
    """Codes [B, 2 k] to what the head sees [B, k]: a draw while training (`always`: of the deployed network too), from
    torch's global stream, as dropout's; else the mean."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.draws_when_deployed = always

    def forward(self, codes: Tensor) -> Tensor:
        mean, deviation = mean_and_deviation(codes)
        if self.training or self.draws_when_deployed:
            mean = mean + deviation * self.noise(deviation)
        return mean.to(codes.dtype)

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape of `like`."""
        return torch.randn_like(like)


def mean_and_deviation(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [B, 2 k] as their mean and deviation, [B, k] each, in float32 at least."""
    mean, raw = at_least_float32(codes).chunk(2, dim=1)
    return mean, F.softplus(raw - SHIFT)


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, 1)) of every dimension of codes [B, k]."""
    return (mean.square() + deviation.square() - 1) / 2 - deviation.clamp_min(LEAST_DEVIATION).log()


def _drop_norm(features: nn.Module) -> None:
    """Take away the batch norm that a stage ends in."""
    name, last = (list(features.named_children()) or [("", features)])[-1]
    if not isinstance(last, nn.BatchNorm1d):
        raise Refused(
            f"defense.neck: expected features that end in a batch norm, to drop it, got {type(last).__name__}; "
            "try defense.neck=keep"
        )
    delattr(features, name)
