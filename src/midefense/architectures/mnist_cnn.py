"""The MNIST target and evaluator of KED-MI and its followers (Chen et al., ICCV 2021; card low_res_benchmark.md, 3).

Both see 32 px, pixels in [0, 1] without normalisation. With 5 classes MCNN has 1,029,765 parameters, with 10 classes
SCNN has 1,740,234.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Deviation

SIDE = 32  # the third convolution takes the whole of the map that 32 px leave


class MCNN(Classifier):
    """The target: convolutions of 7, 5 and 5 pixels, 64 to 256 wide. Stages `stage1`, `stage2` (behind their
    max-pooling, as BiDO taps them) and `features` (256 wide)."""

    revision = 1
    published: ClassVar[dict[str, str]] = {
        "feature.0": "stages.stage1.0",
        "feature.1": "stages.stage1.1",
        "feature.4": "stages.stage2.0",
        "feature.5": "stages.stage2.1",
        "feature.8": "stages.features.0",
        "feature.9": "stages.features.1",
        "fc_layer": "classifier",
    }

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        mean: float | Sequence[float] = 0.0,
        std: Deviation = 1.0,
    ) -> None:
        stages = {
            "stage1": _convolution(channels, 64, kernel=7, padding=1).append(nn.MaxPool2d(2)),
            "stage2": _convolution(64, 128, kernel=5).append(nn.MaxPool2d(2)),
            "features": _convolution(128, 256, kernel=5).append(nn.Flatten()),
        }
        super().__init__(stages, nn.Linear(256, classes), channels=channels, size=SIDE, mean=mean, std=std)


class SCNN(Classifier):
    """The evaluator: half as wide, with two more convolutions on the last map of one pixel. Stages `stage1` to `stage4`
    and `features` (512 wide)."""

    revision = 1
    published: ClassVar[dict[str, str]] = {
        "feature.0": "stages.stage1.0",
        "feature.1": "stages.stage1.1",
        "feature.4": "stages.stage2.0",
        "feature.5": "stages.stage2.1",
        "feature.8": "stages.stage3.0",
        "feature.9": "stages.stage3.1",
        "feature.11": "stages.stage4.0",
        "feature.12": "stages.stage4.1",
        "feature.14": "stages.features.0",
        "feature.15": "stages.features.1",
        "fc_layer": "classifier",
    }

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        mean: float | Sequence[float] = 0.0,
        std: Deviation = 1.0,
    ) -> None:
        stages = {
            "stage1": _convolution(channels, 32, kernel=7, padding=1).append(nn.MaxPool2d(2)),
            "stage2": _convolution(32, 64, kernel=5).append(nn.MaxPool2d(2)),
            "stage3": _convolution(64, 128, kernel=5),
            "stage4": _convolution(128, 256, kernel=3, padding=1),
            "features": _convolution(256, 512, kernel=3, padding=1).append(nn.Flatten()),
        }
        super().__init__(stages, nn.Linear(512, classes), channels=channels, size=SIDE, mean=mean, std=std)


def _convolution(inputs: int, outputs: int, *, kernel: int, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)
    )
