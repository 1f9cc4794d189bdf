"""Inception-v3 (Szegedy et al., CVPR 2016) as torchvision defines it: the evaluation network of Plug & Play Attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torchvision
from torch import Tensor, nn

from midefense.architectures.base import Classifier, per_channel
from midefense.architectures.official import IMAGENET_CLASSES, official_network, original_names
from midefense.ranges import Channels, Count, Deviation, NotNegative, Share, Side
from midefense.types import Refused, Trace

# torchvision's blocks in the order it runs them.
BLOCKS = (
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "maxpool1",
    "Conv2d_3b_1x1",
    "Conv2d_4a_3x3",
    "maxpool2",
    "Mixed_5b",
    "Mixed_5c",
    "Mixed_5d",
    "Mixed_6a",
    "Mixed_6b",
    "Mixed_6c",
    "Mixed_6d",
    "Mixed_6e",
    "Mixed_7a",
    "Mixed_7b",
    "Mixed_7c",
)
AUXILIARY_BLOCK = "Mixed_6e"
LEAST_SIZE = 75
AUXILIARY_LEAST_SIZE = 299  # the auxiliary head pools and convolves a map of 17 x 17 pixels, that of 299-pixel images
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class InceptionV3(Classifier):
    """Stages under torchvision's names of its blocks, from `Conv2d_1a_3x3` to `Mixed_7c`, and `features` (2048 wide).

    While training, the logits of the auxiliary head behind `Mixed_6e` stand in `Trace.taps["aux"]`, and
    `auxiliary_weight` times their cross-entropy is added to the loss (Plug & Play Attacks: 1, not the paper's 0.4). As
    there, the auxiliary head keeps ImageNet's 1000 outputs unless there are more classes. 0 leaves the head out, which
    is the only way below 299 px.

    `transform_input` maps what was normalised by .5/.5 to ImageNet's mean and deviation, as torchvision does for its
    pretrained weights. Plug & Play Attacks trained its evaluator with it and then judged without: its released weights
    under `transform_input` false are the network that its numbers were measured with. The names of the weights are the
    same either way.

    `pretrained` starts from torchvision's `weights`, which must lie in torch's cache unless `download` is set; what
    happens to its input and head is said in `official_network`.

    `without_weights`: the arguments of a network that stored weights are put into, which needs no others to start from.
    """

    revision = 1
    without_weights = {"pretrained": False}

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side = 299,
        transform_input: bool = False,
        auxiliary_weight: NotNegative = 1.0,
        dropout: Share = 0.5,
        pretrained: bool = False,
        weights: str | None = "IMAGENET1K_V1",
        download: bool = False,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        if size < LEAST_SIZE:
            raise Refused(f"size: expected at least {LEAST_SIZE}, got {size}; try 299")
        if auxiliary_weight and size < AUXILIARY_LEAST_SIZE:
            raise Refused(
                f"auxiliary_weight: expected 0 below {AUXILIARY_LEAST_SIZE} pixels, where its head has no room, "
                f"got {auxiliary_weight} at size={size}; try auxiliary_weight=0, or size=299"
            )
        if transform_input and channels != 3:
            raise Refused(f"transform_input: expected 3 channels, got {channels}; try transform_input=false")

        def build(num_classes: int) -> nn.Module:
            # Pretrained weights come with an auxiliary head: it is built, and left out below if it is not wanted.
            return torchvision.models.Inception3(num_classes, init_weights=not pretrained, dropout=dropout)

        network = official_network(
            "inception_v3",
            build,
            classes=classes,
            channels=channels,
            pretrained=pretrained,
            weights=weights,
            download=download,
        )
        pool = nn.Sequential(network.avgpool, network.dropout, nn.Flatten())
        stages = {**{name: getattr(network, name) for name in BLOCKS}, "features": pool}
        if transform_input:
            mean, std = _transformed(per_channel("mean", mean, 3), per_channel("std", std, 3))
        super().__init__(stages, network.fc, channels=channels, size=size, mean=mean, std=std)
        if auxiliary_weight:
            self.auxiliary_weight = auxiliary_weight
            self.auxiliary = _auxiliary_head(network, max(classes, IMAGENET_CLASSES))
        self.published = original_names(network, self)

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        """As `Classifier.forward`; while training, `taps["aux"]` holds the auxiliary logits [B, at least classes]."""
        if not (self.training and self.auxiliary_weight):
            return super().forward(images, taps)
        trace = super().forward(images, (*taps, AUXILIARY_BLOCK))
        kept = {name: tap for name, tap in trace.taps.items() if name in taps}
        return replace(trace, taps={**kept, "aux": self.auxiliary(trace.taps[AUXILIARY_BLOCK])})


def _transformed(mean: Tensor, std: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation that give at once what normalising and then torchvision's map x s/.5 + (m - .5)/.5 gives."""
    imagenet_mean, imagenet_std = (torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    scale, shift = imagenet_std / 0.5, (imagenet_mean - 0.5) / 0.5
    return (mean.flatten() - shift * std.flatten() / scale).tolist(), (std.flatten() / scale).tolist()


def _auxiliary_head(network: nn.Module, classes: int) -> nn.Module:
    head = network.AuxLogits
    if head.fc.out_features != classes:
        head.fc = nn.Linear(head.fc.in_features, classes)
    return head
