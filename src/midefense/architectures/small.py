"""Two small classifiers, trained in seconds on a CPU: a multilayer perceptron and a convolutional network (ours)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Deviation, Share, Side, Width, Widths
from midefense.types import Refused


class MLP(Classifier):
    """Fully connected layers with ReLU; stages `hidden1`, `hidden2`, ..., the last one is `features`.

    `widths` are the units per hidden layer; `dropout` is the share of units dropped behind each while training.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 32,
        widths: Widths = (256, 128),
        dropout: Share = 0.0,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        _require_widths(widths)
        stages: dict[str, nn.Module] = {}
        inputs = channels * size * size
        for index, width in enumerate(widths, start=1):
            name = "features" if index == len(widths) else f"hidden{index}"
            layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            stages[name] = nn.Sequential(nn.Flatten(), *layers)
            inputs = width
        super().__init__(stages, nn.Linear(inputs, classes), channels=channels, size=size, mean=mean, std=std)


class CNN(Classifier):
    """Stages of 3x3 convolution, batch norm, ReLU and 2x2 max-pooling, then a linear feature layer with ReLU.

    `widths` are the channels of `stage1`, `stage2`, ...; each stage halves the side. Raises `Refused` if `size` is
    too small for so many stages.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 32,
        widths: Widths = (32, 64, 128),
        features: Width = 64,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        _require_widths(widths)
        side = size // 2 ** len(widths)
        if side < 1:
            raise Refused(
                f"size: expected at least {2 ** len(widths)} pixels for {len(widths)} stages, got {size}; "
                "try fewer widths"
            )
        stages: dict[str, nn.Module] = {}
        inputs = channels
        for index, width in enumerate(widths, start=1):
            stages[f"stage{index}"] = nn.Sequential(
                nn.Conv2d(inputs, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            inputs = width
        stages["features"] = nn.Sequential(nn.Flatten(), nn.Linear(inputs * side * side, features), nn.ReLU())
        super().__init__(stages, nn.Linear(features, classes), channels=channels, size=size, mean=mean, std=std)


def _require_widths(widths: Sequence[int]) -> None:
    if not widths or any(width < 1 for width in widths):
        raise Refused(f"widths: expected one or more positive integers, got {list(widths)}; try [64, 32]")
