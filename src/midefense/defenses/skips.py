"""The skip connections of blocks that are known here, reached one by one: each becomes a `Skip`, a part of the block
that says how much of it is left. Blocks that concatenate (DenseNet) become narrower instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.densenet import _DenseBlock
from torchvision.models.maxvit import MBConv, PartitionAttentionLayer
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.vision_transformer import EncoderBlock

from midefense.architectures.base import Classifier
from midefense.architectures.face_evolve import Unit
from midefense.architectures.tiny_vit import Layer
from midefense.types import Refused

BRANCHES = ("all", "attention", "mlp")


class Skip(nn.Sequential):
    """What goes around the layers of a block, `inside` in order (nothing inside: the block's input), times a factor. At
    0 it gives a zero without dimensions, and computes nothing."""

    def __init__(self, factor: float, *inside: nn.Module) -> None:
        super().__init__(*inside)
        self.factor = factor

    def forward(self, hidden: Tensor) -> Tensor:
        if self.factor == 0:
            return hidden.new_zeros(())
        around = super().forward(hidden)
        return around if self.factor == 1 else self.factor * around


class SkippedEncoder(EncoderBlock):
    """torchvision's layer of a transformer, with its two skips as parts."""

    attention_skip: Skip
    mlp_skip: Skip

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        attended = self.self_attention(normed, normed, normed, need_weights=False)[0]
        tokens = self.dropout(attended) + self.attention_skip(tokens)
        return self.mlp_skip(tokens) + self.mlp(self.ln_2(tokens))


class SkippedPartition(PartitionAttentionLayer):
    """torchvision's attention within windows, or over a grid, of MaxViT, with its two skips as parts."""

    attention_skip: Skip
    mlp_skip: Skip

    def forward(self, hidden: Tensor) -> Tensor:
        rows, columns = (side // self.p for side in self.grid_size)
        hidden = self.partition_swap(self.partition_op(hidden, self.p))
        hidden = self.attention_skip(hidden) + self.stochastic_dropout(self.attn_layer(hidden))
        hidden = self.mlp_skip(hidden) + self.stochastic_dropout(self.mlp_layer(hidden))
        return self.departition_op(self.departition_swap(hidden), self.p, rows, columns)


class SkippedConvNeXt(CNBlock):
    """torchvision's block of ConvNeXt, with its skip as a part."""

    skip: Skip

    def forward(self, hidden: Tensor) -> Tensor:
        return self.stochastic_depth(self.layer_scale * self.block(hidden)) + self.skip(hidden)


class SkippedResidual(InvertedResidual):
    """torchvision's block of MobileNetV2, with its skip as a part."""

    skip: Skip

    def forward(self, hidden: Tensor) -> Tensor:
        return self.skip(hidden) + self.conv(hidden)


# torchvision's blocks add their input in `forward`, so they become one of these in place: weights and names stay.
SKIPPED = {
    EncoderBlock: SkippedEncoder,
    PartitionAttentionLayer: SkippedPartition,
    CNBlock: SkippedConvNeXt,
    InvertedResidual: SkippedResidual,
}
# Where a block keeps the layers of its skip (None, or one that passes on, where there are none).
AROUND = {Unit: "shortcut", MBConv: "proj"}
# The parts that are skips alone, and the branch each goes around.
PARTS = {
    Layer: {"attention_skip": "attention", "mixing_skip": "mlp"},
    EncoderBlock: {"attention_skip": "attention", "mlp_skip": "mlp"},
    PartitionAttentionLayer: {"attention_skip": "attention", "mlp_skip": "mlp"},
    CNBlock: {"skip": "all"},
    InvertedResidual: {"skip": "all"},
}


def blocks_of(stage: nn.Module) -> list[nn.Module]:
    """The blocks of a stage that have a skip known here, in order."""
    return [module for module in stage.modules() if concatenates(module) or _around(module) or _parts(module)]


def concatenates(block: nn.Module) -> bool:
    """Whether a block hands all its outputs on side by side, and adds none."""
    return isinstance(block, _DenseBlock)


def is_resnet(block: nn.Module) -> bool:
    """Whether it is a block of a ResNet, torchvision's or timm's, of any kind."""
    return hasattr(block, "downsample") and hasattr(block, "conv1")


def scale(block: nn.Module, factor: float, branches: str, keep: bool) -> Iterator[Skip]:
    """Give the skips of a block a factor; those of the other branch of a transformer are whole. A projection that
    nothing goes through is taken out, unless all are to be kept."""
    if (name := _around(block)) is not None:
        skip = Skip(factor, *_inside(getattr(block, name), nothing=factor == 0 and not keep))
        setattr(block, name, skip)
        yield skip
        return
    if type(block) in SKIPPED:
        block.__class__ = SKIPPED[type(block)]
    for name, branch in _parts(block).items():
        wanted = "all" in (branch, branches) or branch == branches
        setattr(block, name, Skip(factor if wanted else 1.0))
        if wanted:
            yield getattr(block, name)


def _around(block: nn.Module) -> str | None:
    if is_resnet(block):
        return "downsample"
    return next((name for kind, name in AROUND.items() if isinstance(block, kind)), None)


def _parts(block: nn.Module) -> Mapping[str, str]:
    if isinstance(block, InvertedResidual) and not block.use_res_connect:
        return {}
    return next((parts for kind, parts in PARTS.items() if isinstance(block, kind)), {})


def _inside(around: nn.Module | None, nothing: bool) -> Iterable[nn.Module]:
    """The layers of a skip, under whose numbers they stay."""
    if nothing or around is None:
        return ()
    return around if isinstance(around, nn.Sequential) else (around,)


class Chain(_DenseBlock):
    """torchvision's dense block, each of whose layers sees the first `factor` share of the channels of every output
    but the last, and all of that; the block gives what a further layer would see."""

    factor: float

    def forward(self, hidden: Tensor) -> Tensor:
        seen = [hidden]
        for layer in self.values():
            made = layer(seen)
            seen[-1] = seen[-1][:, : kept(seen[-1].shape[1], self.factor)]
            seen.append(made)
        return torch.cat(seen, 1)


def kept(channels: int, factor: float) -> int:
    """How many of `channels` a later layer still sees."""
    return round(factor * channels)


def narrow(model: Classifier, factors: Mapping[str, float]) -> None:
    """Make dense blocks chains of a factor, by the stage; what follows takes fewer channels, its weights drawn anew."""
    width = None
    for name, stage in model.stages.items():
        if concatenates(stage):
            width = _narrow_block(stage, factors.get(name, 1.0), width)
        elif width is not None and "conv" in dict(stage.named_children()):  # a transition halves its channels
            stage.norm = _norm(stage.norm, width)
            stage.conv = _convolution(stage.conv, width, width // 2)
            width //= 2
        elif width is not None and name != "features":
            raise Refused(
                f"defense: expected a network whose head stands behind its features, got a stage {name!r} between "
                "them, which another defense put there; try this one in front of it in the stack"
            )
        elif width is not None:
            for layer, norm in list(stage.named_children()):
                if isinstance(norm, nn.BatchNorm2d):
                    setattr(stage, layer, _norm(norm, width))
    model.classifier = _linear(model.classifier, width)


def _narrow_block(block: _DenseBlock, factor: float, width: int | None) -> int:
    """Give the layers of a block the inputs that a factor leaves; the width of its output."""
    block.__class__, block.factor = Chain, factor
    width = next(iter(block.values())).norm1.num_features if width is None else width
    for index, layer in enumerate(block.values()):
        if layer.norm1.num_features != width:
            layer.norm1 = _norm(layer.norm1, width)
            layer.conv1 = _convolution(layer.conv1, width, layer.conv1.out_channels)
        growth = layer.conv2.out_channels
        last = width if index == 0 else growth
        width = width - last + kept(last, factor) + growth
    return width


def _norm(norm: nn.BatchNorm2d, width: int) -> nn.BatchNorm2d:
    return norm if norm.num_features == width else nn.BatchNorm2d(width)


def _convolution(old: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    if (old.in_channels, old.out_channels) == (inputs, outputs):
        return old
    new = nn.Conv2d(inputs, outputs, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight)  # as torchvision draws a DenseNet
    return new


def _linear(old: nn.Linear, inputs: int) -> nn.Linear:
    if old.in_features == inputs:
        return old
    new = nn.Linear(inputs, old.out_features)
    nn.init.zeros_(new.bias)
    return new
