"""More of torchvision's networks for large images, cut into the stages this toolkit names: DenseNet (Huang et al.,
CVPR 2017), EfficientNet (Tan and Le, ICML 2019), ViT (Dosovitskiy et al., ICLR 2021), Swin (Liu et al., ICCV 2021) and
MaxViT (Tu et al., ECCV 2022)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.architectures.official import last_linear, official_network, original_names, weights_of
from midefense.ranges import Channels, Count, Deviation, Side
from midefense.types import Refused, refuse_unknown

Stages = dict[str, nn.Module]


class Vision(Classifier):
    """Stages by family; the last, `features`, is everything between the last block and the last linear layer.

    - `densenet121` `densenet161` `densenet169` `densenet201`: `stem`, `denseblock1`, `transition1`, ..., `denseblock4`
    - `efficientnet_b0` `efficientnet_b1` `efficientnet_b2`: `stem`, `stage1` to `stage7`
    - `vit_b_16`: `stem` (patches, class token, positions), `encoder_layer_0` to `encoder_layer_11`, tokens [B, N, D]
    - `swin_t`: `stem`, `stage1` to `stage4` (each begins with its patch merging), maps [B, H, W, C]
    - `maxvit_t`: `stem`, `block1` to `block4`; windows and grids have size / 32 pixels a side: 7 at 224, as published

    `pretrained` starts from torchvision's `weights`, which must lie in torch's cache unless `download` is set; what
    happens to input and head is said in `official_network`. Raises `Refused` for a `size` that the network, or its
    pretrained weights, cannot take.

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
        pretrained: bool = False,
        weights: str | None = "IMAGENET1K_V1",
        download: bool = False,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        if variant not in VARIANTS:
            raise refuse_unknown("variant", variant, VARIANTS)
        family = VARIANTS[variant]
        family.require_size(variant, size)
        if pretrained:
            family.require_pretrained_size(variant, size, weights)
        network = official_network(
            variant,
            family.build(variant, size),
            classes=classes,
            channels=channels,
            pretrained=pretrained,
            weights=weights,
            download=download,
        )
        head = last_linear(network)[1]
        if not pretrained:
            head.reset_parameters()  # torchvision's ViT begins with a head of zeros, which no gradient passes
        super().__init__(family.cut(network), head, channels=channels, size=size, mean=mean, std=std)
        self.published = original_names(network, self)


@dataclass(frozen=True)
class Family:
    """How a family's networks are cut into stages and built for a size, and which sizes they take."""

    cut: Callable[[nn.Module], Stages]
    build: Callable[[str, int], Callable[..., nn.Module]] = lambda variant, size: getattr(torchvision.models, variant)
    least: int = 32
    step: int = 1
    weights_fit_one_size: bool = False

    def require_size(self, variant: str, size: int) -> None:
        if size < self.least or size % self.step:
            multiple = f"a multiple of {self.step}, " if self.step > 1 else ""
            raise Refused(f"size: expected {multiple}at least {self.least} for {variant}, got {size}; try 224")

    def require_pretrained_size(self, variant: str, size: int, weights: str | None) -> None:
        """Position tables have the length of the images they were learnt on. An unknown `weights` is refused later."""
        entry = weights_of(variant).__members__.get(weights)
        if self.weights_fit_one_size and entry is not None and entry.meta["min_size"] != (size, size):
            fits = entry.meta["min_size"][0]
            raise Refused(f"size: expected {fits}, as weights={weights} of {variant} were learnt, got {size}")


def _densenet(network: nn.Module) -> Stages:
    parts = dict(network.features.named_children())
    stem = nn.Sequential(*[parts.pop(name) for name in ("conv0", "norm0", "relu0", "pool0")])
    last_norm = parts.pop("norm5")
    pool = nn.AdaptiveAvgPool2d(1)
    return {"stem": stem, **parts, "features": nn.Sequential(last_norm, nn.ReLU(inplace=True), pool, nn.Flatten())}


def _efficientnet(network: nn.Module) -> Stages:
    stem, *blocks, last = network.features
    dropout = network.classifier[0]
    return {
        "stem": stem,
        **{f"stage{index}": block for index, block in enumerate(blocks, start=1)},
        "features": nn.Sequential(last, network.avgpool, nn.Flatten(), dropout),
    }


def _vit(network: nn.Module) -> Stages:
    layers = dict(network.encoder.layers.named_children())
    return {"stem": Tokens(network), **layers, "features": nn.Sequential(network.encoder.ln, ClassToken())}


def _swin(network: nn.Module) -> Stages:
    stem, first, *rest = network.features
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return {
        "stem": stem,
        "stage1": first,
        **{f"stage{index}": nn.Sequential(*pair) for index, pair in enumerate(pairs, start=2)},
        "features": nn.Sequential(network.norm, network.permute, network.avgpool, network.flatten),
    }


def _maxvit(network: nn.Module) -> Stages:
    blocks = {f"block{index}": block for index, block in enumerate(network.blocks, start=1)}
    return {"stem": network.stem, **blocks, "features": network.classifier[:-1]}


def _build_vit(variant: str, size: int) -> Callable[..., nn.Module]:
    return functools.partial(getattr(torchvision.models, variant), image_size=size)


def _build_maxvit(variant: str, size: int) -> Callable[..., nn.Module]:
    """`maxvit_t` as torchvision builds it at 224, where a window has 7 pixels a side; its own function knows no other
    size."""
    return functools.partial(
        torchvision.models.MaxVit,
        input_size=(size, size),
        partition_size=size // 32,
        stem_channels=64,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )


class Tokens(nn.Module):
    """The first stage of ViT: images [B, C, H, W] to tokens [B, 1 + patches, D], the class token in front."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.pos_embedding = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.pos_embedding)


class ClassToken(nn.Module):
    """Tokens [B, N, D] to the first one [B, D]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


DENSENET = Family(cut=_densenet)
EFFICIENTNET = Family(cut=_efficientnet)
VIT = Family(cut=_vit, build=_build_vit, step=16, weights_fit_one_size=True)
SWIN = Family(cut=_swin)
MAXVIT = Family(cut=_maxvit, build=_build_maxvit, least=64, step=32, weights_fit_one_size=True)
VARIANTS = {
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), DENSENET),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_b1", "efficientnet_b2"), EFFICIENTNET),
    "vit_b_16": VIT,
    "swin_t": SWIN,
    "maxvit_t": MAXVIT,
}
