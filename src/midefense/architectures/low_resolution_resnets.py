"""The two ResNets for 64 pixels that BiDO defends beside VGG16 (Peng et al., KDD 2022; card bido.md, section 4).

Their residual blocks are torchvision's (He et al., CVPR 2016); stem, neck and names are those of the original code.
With 1000 classes at 64 px `VmiResNet34` has 21,362,446 parameters, `BidoResNet18` 12,732,968.
"""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import nn

from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Deviation, Share, Side, Width
from midefense.types import Refused

LAYERS = ("layer1", "layer2", "layer3", "layer4")
FEATURES = 512
# torchvision's names of what is in a block, and those of the few-shot code that VMI's network is from.
FEW_SHOT = {
    "conv1": "C1",
    "bn1": "BN1",
    "conv2": "C2",
    "bn2": "BN2",
    "downsample.0": "shortcut",
    "downsample.1": "BNshortcut",
}


class VmiResNet34(Classifier):
    """The target of VMI (Wang et al., NeurIPS 2021), the original's `ResNetClsH`: a ResNet-34 whose features pass
    through a narrow layer. Stages `stem` (with its max-pooling), `layer1` to `layer4`, `embedding` (mean over the map,
    ReLU, batch norm, a linear layer to `embedding` numbers) and `features` (ReLU and batch norm of these). BiDO taps
    all seven.

    `embedding`: 50 in BiDO's runs. Pixels are shown in [-1, 1].
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 64,
        embedding: Width = 50,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        network = torchvision.models.resnet34(num_classes=1)
        if channels != 3:
            network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        neck = nn.Sequential(
            network.avgpool, nn.Flatten(), nn.ReLU(), nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, embedding)
        )
        stages = {
            "stem": nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool),
            **{layer: getattr(network, layer) for layer in LAYERS},
            "embedding": neck,
            "features": nn.Sequential(nn.ReLU(), nn.BatchNorm1d(embedding)),
        }
        head = nn.Linear(embedding, classes)
        super().__init__(stages, head, channels=channels, size=size, mean=mean, std=std)

    @property
    def published(self) -> dict[str, str]:
        """The original calls stem and layers blocks 1 to 5."""
        table = {"backbone.block1.0": "stages.stem.0", "backbone.block1.1": "stages.stem.1"}
        for index, layer in enumerate(LAYERS, start=2):
            for block in range(len(self.stages[layer])):
                ours, theirs = f"stages.{layer}.{block}", f"backbone.block{index}.{block}"
                table |= {f"{theirs}.{their}": f"{ours}.{our}" for our, their in FEW_SHOT.items()}
        neck = {"bn1": "stages.embedding.3", "fc1": "stages.embedding.4", "bn2": "stages.features.1"}
        return {**table, **neck, "fc2": "classifier"}


class BidoResNet18(Classifier):
    """BiDO's ResNet-18 with the stem of CIFAR (3x3, no pooling). Stages `stem`, `block1` to `block8` (two of each
    layer), and `features`: means over 4x4 pixels, batch norm, dropout, a linear layer to 512 and a batch norm. BiDO
    taps all ten.

    `size`: a multiple of 32. The weights are drawn as torch draws layers. Pixels stay in [0, 1].
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 64,
        dropout: Share = 0.5,
        mean: float | Sequence[float] = 0.0,
        std: Deviation = 1.0,
    ) -> None:
        if size < 32 or size % 32:
            raise Refused(f"size: expected a multiple of 32 pixels, got {size}; try 64")
        network = torchvision.models.resnet18(num_classes=1)
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        blocks = [block for layer in LAYERS for block in getattr(network, layer)]
        neck = nn.Sequential(
            nn.AvgPool2d(4),
            nn.BatchNorm2d(FEATURES),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(FEATURES * (size // 32) ** 2, FEATURES),
            nn.BatchNorm1d(FEATURES),
        )
        stages = {
            "stem": nn.Sequential(network.conv1, network.bn1, network.relu),
            **{f"block{index}": block for index, block in enumerate(blocks, start=1)},
            "features": neck,
        }
        super().__init__(stages, nn.Linear(FEATURES, classes), channels=channels, size=size, mean=mean, std=std)

    @property
    def published(self) -> dict[str, str]:
        """The original counts blocks within their layers, and its neck without the pooling."""
        table = {"conv1": "stages.stem.0", "bn1": "stages.stem.1", "fc_layer": "classifier"}
        for index in range(8):
            ours, theirs = f"stages.block{index + 1}", f"layer{index // 2 + 1}.{index % 2}"
            table |= {f"{theirs}.shortcut": f"{ours}.downsample", theirs: ours}
        return {**table, **{f"output_layer.{index - 1}": f"stages.features.{index}" for index in (1, 4, 5)}}
