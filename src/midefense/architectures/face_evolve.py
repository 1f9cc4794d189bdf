"""The face networks of the 64-pixel benchmark: residual networks of face.evoLVe (mode "ir", without squeeze and
excitation; Zhao et al., 2019), as GMI and KED-MI call them IR152, FaceNet64 and FaceNet (card low_res_benchmark.md, 3).

With 1000 classes: IR-152 at 64 px 62,599,848 parameters, IR-50 at 64 px 35,437,224 (neither Google's FaceNet nor
IR-SE50), and the evaluator, IR-50 at 112 px, 44,087,976.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from midefense.architectures.backbones import load_backbone, pin_weights
from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Depth, Deviation, Share, Side
from midefense.types import Refused, refuse_unknown

UNITS = {50: (3, 4, 14, 3), 152: (3, 8, 36, 3)}  # residual units per stage, by depth
WIDTHS = (64, 128, 256, 512)
FEATURES = 512
PUBLISHED_SIDE = 112  # pixels of face.evoLVe's own backbones


class FaceEvolve(Classifier):
    """Stages `stem`, `stage1` to `stage4` (each halves the side), and `features`: batch norm, dropout, a linear layer
    to 512 and a batch norm, whose output is what the originals call the feature.

    `depth`: 50 or 152. `size`: a multiple of 16; the targets see 64 px, the evaluator 112. `weights`: a file of a
    face.evoLVe backbone (MS-Celeb-1M, 112 px), whose output layer is taken at 112 px, where it fits, and left out
    elsewhere; None draws Xavier-uniform weights. Its content, not its path, decides the target's id.
    """

    revision = 1
    without_weights = {"weights": None}
    pin = staticmethod(pin_weights)

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 64,
        depth: Depth = 50,
        dropout: Share = 0.5,
        weights: str | None = None,
        mean: float | Sequence[float] = 0.0,
        std: Deviation = 1.0,
    ) -> None:
        if depth not in UNITS:
            raise refuse_unknown("depth", depth, UNITS)
        if size < 16 or size % 16:
            raise Refused(f"size: expected a multiple of 16 pixels, got {size}; try 64 or 112")
        stages = {"stem": _stem(channels)}
        inputs = WIDTHS[0]
        for index, (width, units) in enumerate(zip(WIDTHS, UNITS[depth], strict=True), start=1):
            rest = [Unit(width, width, stride=1) for _ in range(units - 1)]
            stages[f"stage{index}"] = nn.Sequential(Unit(inputs, width, stride=2), *rest)
            inputs = width
        stages["features"] = _neck(inputs, size // 16, dropout)
        for module in [layer for stage in stages.values() for layer in stage.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        head = nn.Linear(FEATURES, classes)
        super().__init__(stages, head, channels=channels, size=size, mean=mean, std=std)
        if weights is not None:
            aside = () if size == PUBLISHED_SIDE else ("output_layer.",)
            load_backbone(self, weights, prefix="", aside=aside)

    @property
    def published(self) -> dict[str, str]:
        """The original counts the units of all stages in one list, and keeps the output layer of the 112-pixel
        backbone within it."""
        stages = [name for name in self.tap_names if name.startswith("stage")]
        units = [f"stages.{name}.{unit}" for name in stages for unit in range(len(self.stages[name]))]
        table = {"feature.input_layer": "stages.stem", "fc_layer": "classifier"}
        for index, unit in enumerate(units):
            table[f"feature.body.{index}.res_layer"] = f"{unit}.residual"
            table[f"feature.body.{index}.shortcut_layer"] = f"{unit}.shortcut"
        output_layer = "feature.output_layer" if self.size == PUBLISHED_SIDE else "output_layer"
        return {**table, output_layer: "stages.features"}


class Unit(nn.Module):
    """Residual unit: the sum of a shortcut and two convolutions, without an activation behind it."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        if inputs == outputs:
            self.shortcut: nn.Module = nn.MaxPool2d(1, stride)  # keeps every stride-th pixel
        else:
            convolution = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.shortcut(hidden) + self.residual(hidden)


def _stem(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, WIDTHS[0], kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(WIDTHS[0]), nn.PReLU(WIDTHS[0]))


def _neck(width: int, side: int, dropout: float) -> nn.Sequential:
    linear = nn.Linear(width * side * side, FEATURES)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm2d(width), nn.Dropout(dropout), nn.Flatten(), linear, nn.BatchNorm1d(FEATURES))
