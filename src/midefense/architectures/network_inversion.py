"""The classifiers that network inversion attacks (Suhail and Sethi, 2024; card network_inversion.md, section 4.1): a
multilayer perceptron and a convolutional network with batch norm, leaky ReLU and dropout. They see 28 px."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Deviation, Share, Side, Width, Widths
from midefense.types import Refused


class NetworkInversionMLP(Classifier):
    """Linear layers, each with batch norm, leaky ReLU and dropout; stages `hidden1`, ..., the last one is `features`.

    `widths` are the units per hidden layer, `slope` that of the leaky ReLU, `dropout` the share of units dropped.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 28,
        widths: Widths = (512, 256),
        slope: Share = 0.2,
        dropout: Share = 0.4,
        mean: float | Sequence[float] = 0.1307,
        std: Deviation = 0.3081,
    ) -> None:
        if not widths or any(width < 1 for width in widths):
            raise Refused(f"widths: expected one or more positive integers, got {list(widths)}; try [512, 256]")
        stages: dict[str, nn.Module] = {}
        inputs = channels * size * size
        for index, width in enumerate(widths, start=1):
            name = "features" if index == len(widths) else f"hidden{index}"
            stages[name] = _linear(inputs, width, slope, dropout)
            inputs = width
        super().__init__(stages, nn.Linear(inputs, classes), channels=channels, size=size, mean=mean, std=std)


class NetworkInversionCNN(Classifier):
    """Stages `stage1`, ... of 3x3 convolution, batch norm, leaky ReLU, 2x2 max-pooling and dropout of whole maps, then
    `features`, a linear layer with batch norm, leaky ReLU and dropout.

    `widths` are the channels per stage, `features` the units of the linear layer; `slope` that of the leaky ReLU;
    `map_dropout` and `dropout` the shares dropped of maps and of features. Raises `Refused` if `size` is too small for
    so many stages.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 28,
        widths: Widths = (32, 64, 128),
        features: Width = 256,
        slope: Share = 0.2,
        map_dropout: Share = 0.25,
        dropout: Share = 0.4,
        mean: float | Sequence[float] = 0.1307,
        std: Deviation = 0.3081,
    ) -> None:
        side = size // 2 ** len(widths)
        if not widths or side < 1:
            raise Refused(f"widths: expected from 1 stage to as many as {size} px can be halved, got {list(widths)}")
        stages: dict[str, nn.Module] = {}
        inputs = channels
        for index, width in enumerate(widths, start=1):
            stages[f"stage{index}"] = nn.Sequential(
                nn.Conv2d(inputs, width, kernel_size=3, padding=1),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(slope),
                nn.MaxPool2d(2),
                nn.Dropout2d(map_dropout),
            )
            inputs = width
        stages["features"] = _linear(inputs * side * side, features, slope, dropout)
        super().__init__(stages, nn.Linear(features, classes), channels=channels, size=size, mean=mean, std=std)


def _linear(inputs: int, outputs: int, slope: float, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, outputs),
        nn.BatchNorm1d(outputs),
        nn.LeakyReLU(slope),
        nn.Dropout(dropout),
    )
