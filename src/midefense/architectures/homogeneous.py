"""Networks that are homogeneous in their weights: scaled by c, they scale their logits by c to the power of their
layers. Reconstruction from weights needs them (Lyu and Li, ICLR 2020; Haim et al., NeurIPS 2022): ReLU, no
normalisation, no residuals, and a bias in the first layer alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Deviation, Positive, Side, Width, Widths
from midefense.types import Refused


class HomogeneousMLP(Classifier):
    """Linear layers with ReLU; stages `hidden1`, ..., the last one is `features`; the head has no bias either.

    Args:
        widths: units per hidden layer (Haim et al.: 1000, 1000).
        first_deviation: standard deviation of the first layer's weights as drawn (Haim et al.: 1e-4, of the second
            1/sqrt(inputs)); None leaves torch's own. What training adds outweighs a small start, as the theory asks.
        mean, std: of the images, in units of [0, 1].
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 28,
        widths: Widths = (1000, 1000),
        first_deviation: Positive | None = 1e-4,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 1.0,
    ) -> None:
        stages: dict[str, nn.Module] = {}
        inputs = channels * size * size
        for index, width in enumerate(widths, start=1):
            name = "features" if index == len(widths) else f"hidden{index}"
            linear = nn.Linear(inputs, width, bias=index == 1)
            stages[name] = nn.Sequential(nn.Flatten(), linear, nn.ReLU())
            inputs = width
        head = nn.Linear(inputs, classes, bias=False)
        super().__init__(stages, head, channels=channels, size=size, mean=mean, std=std)
        _draw_small(next(iter(stages.values()))[1], first_deviation)


class HomogeneousCNN(Classifier):
    """Stages `stage1`, ... of 3x3 convolution with stride 2 and ReLU, then `features`, a linear layer with ReLU.

    Args:
        widths: channels per stage; each halves the side (rounded up).
        features: units of the linear layer.
        first_deviation: as `HomogeneousMLP`'s.
        mean, std: of the images, in units of [0, 1].
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 28,
        widths: Widths = (32, 64),
        features: Width = 256,
        first_deviation: Positive | None = 1e-4,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 1.0,
    ) -> None:
        stages: dict[str, nn.Module] = {}
        inputs, side = channels, size
        for index, width in enumerate(widths, start=1):
            if side < 2:
                raise Refused(f"widths: expected as many stages as {size} px can be halved, got {list(widths)}")
            convolution = nn.Conv2d(inputs, width, kernel_size=3, stride=2, padding=1, bias=index == 1)
            stages[f"stage{index}"] = nn.Sequential(convolution, nn.ReLU())
            inputs, side = width, -(-side // 2)
        linear = nn.Linear(inputs * side * side, features, bias=False)
        stages["features"] = nn.Sequential(nn.Flatten(), linear, nn.ReLU())
        head = nn.Linear(features, classes, bias=False)
        super().__init__(stages, head, channels=channels, size=size, mean=mean, std=std)
        _draw_small(stages["stage1"][0], first_deviation)


@torch.no_grad()
def _draw_small(first: nn.Module, deviation: float | None) -> None:
    if deviation is not None:
        nn.init.normal_(first.weight, std=deviation)
        nn.init.normal_(first.bias, std=deviation)
