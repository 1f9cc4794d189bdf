"""ResNet-18 (He et al., CVPR 2016) as torchvision defines it, cut into the stages this toolkit names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import nn

from midefense.architectures.base import Classifier
from midefense.types import Refused, refuse_unknown


class ResNet18(Classifier):
    """Stages `stem`, `layer1` to `layer4`, and `features` (global average pooling, 512 wide).

    `stem`: `imagenet` (7x7 convolution, stride 2, and max-pooling) or `small` (3x3, stride 1, no pooling: for 32 to 64
    pixels). `pretrained` starts from torchvision's `weights`, which must lie in torch's cache unless `download` is set.
    Grey images get the sum of the pretrained RGB kernels, which is what three equal channels would see. As in the
    training code of Plug & Play Attacks, the ImageNet head is kept if there happen to be 1000 classes.

    `blank`: the arguments of a network that stored weights are put into, which needs no others to start from.
    """

    revision = 1
    blank = {"pretrained": False}

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: int = 224,
        stem: str = "imagenet",
        pretrained: bool = False,
        weights: str | None = "IMAGENET1K_V1",
        download: bool = False,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        if stem not in ("imagenet", "small"):
            raise refuse_unknown("stem", stem, ("imagenet", "small"))
        if pretrained and (stem != "imagenet" or channels not in (1, 3)):
            raise Refused(
                f"pretrained: expected stem=imagenet and 1 or 3 channels, got stem={stem} and {channels} channels; "
                "try pretrained=false"
            )
        network = torchvision.models.resnet18(weights=None, num_classes=1000 if pretrained else classes)
        if pretrained:
            network.load_state_dict(_pretrained_weights(weights, download))
        if network.fc.out_features != classes:
            network.fc = nn.Linear(network.fc.in_features, classes)
        stages = {
            "stem": _stem(network, stem, channels, pretrained),
            **{name: getattr(network, name) for name in ("layer1", "layer2", "layer3", "layer4")},
            "features": nn.Sequential(network.avgpool, nn.Flatten()),
        }
        super().__init__(stages, network.fc, channels=channels, size=size, mean=mean, std=std)


def _stem(network: nn.Module, kind: str, channels: int, pretrained: bool) -> nn.Sequential:
    """Everything in front of `layer1`, for `channels` input channels."""
    convolution = network.conv1
    if kind == "small":
        convolution = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(convolution, network.bn1, network.relu)
    if channels != 3:
        convolution = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if channels == 1 and pretrained:
        with torch.no_grad():
            convolution.weight.copy_(network.conv1.weight.sum(dim=1, keepdim=True))
    return nn.Sequential(convolution, network.bn1, network.relu, network.maxpool)


def _pretrained_weights(name: str | None, download: bool) -> dict[str, torch.Tensor]:
    """torchvision's weights `name`, from torch's cache or, if asked, from the net. Either way the file must have the
    SHA-256 that its name begins to tell, and only tensors are read from it."""
    choices = torchvision.models.ResNet18_Weights
    if name not in choices.__members__:
        raise refuse_unknown("weights", name, choices.__members__)
    entry = choices[name]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if file.exists():
        _require_hash(file, f"try removing it, then architecture.download=true, or put {entry.url} there")
    elif not download:
        raise Refused(
            f"weights {name}: expected the file {file}, got none; "
            f"try architecture.download=true, or put {entry.url} there"
        )
    return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)


def _require_hash(file: Path, advice: str) -> None:
    """Refuse a file `<name>-<hash>.pth` whose SHA-256 does not begin so. torchvision checks what it downloads only."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(file.stem.rsplit("-", 1)[1]):
        raise Refused(f"weights: expected SHA-256 as in the name of {file}, got {digest[:8]}; {advice}")
