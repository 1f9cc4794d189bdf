"""ResNets (He et al., CVPR 2016) and ResNeXts (Xie et al., CVPR 2017) as torchvision defines them, cut into the stages
this toolkit names."""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import nn

from midefense.architectures.base import Classifier
from midefense.architectures.official import official_network, original_names
from midefense.ranges import Channels, Count, Deviation, Side
from midefense.types import Refused, refuse_unknown

# torchvision's name of each variant.
VARIANTS = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
}
LAYERS = ("layer1", "layer2", "layer3", "layer4")


class ResNet(Classifier):
    """Stages `stem`, `layer1` to `layer4`, and `features` (global average pooling; 512 wide, 2048 from 50 layers on).

    `stem`: `imagenet` (7x7 convolution, stride 2, and max-pooling) or `small` (3x3, stride 1, no pooling: for 32 to 64
    pixels). `pretrained` starts from torchvision's `weights`, which must lie in torch's cache unless `download` is set;
    what happens to its input and head is said in `official_network`.

    `without_weights`: the arguments of a network that stored weights are put into, which needs no others to start from.
    """

    revision = 1
    without_weights = {"pretrained": False}

    def __init__(
        self,
        *,
        variant: str,
        classes: Count,
        channels: Channels,
        size: Side = 224,
        stem: str = "imagenet",
        pretrained: bool = False,
        weights: str | None = "IMAGENET1K_V1",
        download: bool = False,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        if variant not in VARIANTS:
            raise refuse_unknown("variant", variant, VARIANTS)
        if stem not in ("imagenet", "small"):
            raise refuse_unknown("stem", stem, ("imagenet", "small"))
        if pretrained and stem != "imagenet":
            raise Refused(f"pretrained: expected stem=imagenet, got stem={stem}; try pretrained=false")
        name = VARIANTS[variant]
        network = official_network(
            name,
            getattr(torchvision.models, name),
            classes=classes,
            channels=channels if stem == "imagenet" else 3,
            pretrained=pretrained,
            weights=weights,
            download=download,
        )
        stages = {
            "stem": _stem(network) if stem == "imagenet" else _small_stem(network, channels),
            **{layer: getattr(network, layer) for layer in LAYERS},
            "features": nn.Sequential(network.avgpool, nn.Flatten()),
        }
        super().__init__(stages, network.fc, channels=channels, size=size, mean=mean, std=std)
        self.published = original_names(network, self)


def _stem(network: nn.Module) -> nn.Sequential:
    """Everything in front of `layer1`."""
    return nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)


def _small_stem(network: nn.Module, channels: int) -> nn.Sequential:
    """The same for small images: it keeps their side."""
    network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(network.conv1, network.bn1, network.relu)
