"""VGG16 for 64 pixels, as GMI, KED-MI, LOMMA and PLG-MI attack it (card low_res_benchmark.md, section 3).

The convolutions are those of VGG16 with batch norm (Simonyan and Zisserman, ICLR 2015; torchvision's `vgg16_bn`). With
1000 classes it has 16,776,232 parameters, of which 2,048 are frozen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from midefense.architectures.backbones import load_backbone, pin_weights
from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Deviation, Side
from midefense.types import Refused

BLOCKS = {
    "block1": (64, 64),
    "block2": (128, 128),
    "block3": (256, 256, 256),
    "block4": (512, 512, 512),
    "block5": (512, 512, 512),
}


class VGG16(Classifier):
    """One stage per block, behind its max-pooling: `block1` to `block4`, then `features`: the fifth block, flattened,
    behind a batch norm whose bias is frozen at 0 (512 for every 32 x 32 pixels: 2048 wide at 64 px). These five are
    what BiDO taps.

    `size`: a multiple of 32. `weights`: a file of torchvision's `vgg16_bn` (ImageNet), whose convolutions are taken
    and whose head is not; None draws them as torchvision does. Its content, not its path, decides the target's id.
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
        weights: str | None = None,
        mean: float | Sequence[float] = 0.0,
        std: Deviation = 1.0,
    ) -> None:
        if size < 32 or size % 32:
            raise Refused(f"size: expected a multiple of 32 pixels, got {size}; try 64")
        stages: dict[str, nn.Module] = {}
        inputs = channels
        for name, widths in BLOCKS.items():
            stages[name] = _block(inputs, widths)
            inputs = widths[-1]
        norm = nn.BatchNorm1d(inputs * (size // 32) ** 2)
        norm.bias.requires_grad_(False)
        parts = OrderedDict(block5=stages.pop("block5"), flatten=nn.Flatten(), norm=norm)
        stages["features"] = nn.Sequential(parts)
        head = nn.Linear(norm.num_features, classes)
        super().__init__(stages, head, channels=channels, size=size, mean=mean, std=std)
        if weights is not None:
            load_backbone(self, weights, prefix="features.", aside=("classifier.",))

    @property
    def published(self) -> dict[str, str]:
        """The original counts the layers of all blocks in one list."""
        blocks = {f"stages.{name}": self.stages[name] for name in self.tap_names if name in BLOCKS}
        blocks["stages.features.block5"] = self.stages["features"].block5
        layers = [f"{place}.{layer}" for place, block in blocks.items() for layer in range(len(block))]
        table = {f"feature.{index}": layer for index, layer in enumerate(layers)}
        return {**table, "bn": "stages.features.norm", "fc_layer": "classifier"}


def _block(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions with batch norm and ReLU, then 2x2 max-pooling; drawn as torchvision draws VGG."""
    layers: list[nn.Module] = []
    for width in widths:
        convolution = nn.Conv2d(inputs, width, kernel_size=3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.MaxPool2d(2))
