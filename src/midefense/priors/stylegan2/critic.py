"""StyleGAN2-ADA's discriminator (Karras et al., NeurIPS 2020) under the published parameter names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.precision import at_least_float32, explicit_kinds, working_kind
from midefense.priors.stylegan2 import kernels
from midefense.priors.stylegan2.generator import (
    GAIN,
    Dense,
    Mapping,
    StyleGan2Config,
    blurred,
    is_half,
    rectified,
    resample_filter,
)
from midefense.types import Refused


class Convolution(nn.Module):
    """A convolution with equalised learning rate, halving if `down`; `activate` adds bias, rectifier and clamp."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        down: bool = False,
        activate: bool = True,
        clamp: float | None = None,
        gain: float = 1.0,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        if activate:
            self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("resample_filter", resample_filter())
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.down, self.gain, self.activate = down, gain, activate
        self.clamp = None if clamp is None else clamp * gain
        self.padding = kernel // 2

    def forward(self, images: Tensor) -> Tensor:
        """[B, inputs, H, H] to [B, outputs, H or H/2, ...]."""
        # what the rectifier's output is multiplied by goes into the weight and bias: both are positive
        scale = self.scale * self.gain * (GAIN if self.activate else 1)
        bias = self.bias * (self.gain * GAIN) if self.activate else None
        padding, stride = self.padding, 1
        if self.down:
            # what a wider step of a small kernel leaves out need not be convolved
            every, stride = (2, 1) if self.weight.shape[2] == 1 else (1, 2)
            images, padding = blurred(images, padding=self.padding + 1, every=every), 0
        kind = images.dtype
        bias = None if bias is None else bias.to(kind)
        outputs = F.conv2d(images, (self.weight * scale).to(kind), bias, stride=stride, padding=padding)
        return rectified(outputs, self.clamp) if self.activate else outputs


class CriticBlock(nn.Module):
    """One resolution: two convolutions, the second to half the size, beside a skip connection (`resnet`) or not."""

    def __init__(self, config: StyleGan2Config, resolution: int):
        super().__init__()
        inputs, outputs = config.channels(resolution), config.channels(resolution // 2)
        clamp, self.resnet = config.conv_clamp, config.critic_kind == "resnet"
        self.register_buffer("resample_filter", resample_filter())
        if resolution == config.resolution:
            self.fromrgb = Convolution(config.image_channels, inputs, 1, clamp=clamp)
        self.conv0 = Convolution(inputs, inputs, 3, clamp=clamp)
        gain = math.sqrt(0.5) if self.resnet else 1.0
        self.conv1 = Convolution(inputs, outputs, 3, down=True, clamp=clamp, gain=gain)
        if self.resnet:
            self.skip = Convolution(inputs, outputs, 1, down=True, activate=False, gain=gain)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, r, r] (images at the first block) to [B, C', r/2, r/2]."""
        if hasattr(self, "fromrgb"):
            features = self.fromrgb(features)
        outputs = self.conv1(self.conv0(features))
        return outputs + self.skip(features) if self.resnet else outputs


class Epilogue(nn.Module):
    """4x4 features to one number per image, or to a vector that is compared with a label's."""

    def __init__(self, config: StyleGan2Config):
        super().__init__()
        width = config.channels(4)
        self.conv = Convolution(width + 1, width, 3, clamp=config.conv_clamp)
        self.fc = Dense(width * 16, width, activate=True)
        self.out = Dense(width, width if config.label_size else 1)
        self.group = config.minibatch_group

    def forward(self, features: Tensor, deviation: Tensor | None) -> Tensor:
        """Scores [B, 1] or vectors [B, width]."""
        spread = minibatch_deviation(features, self.group) if deviation is None else deviation.expand(len(features))
        features = torch.cat([features, spread.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)], 1)
        return self.out(self.fc(self.conv(features).flatten(1)))


class Discriminator(nn.Module):
    """Images [B, C, R, R] in [-1, 1] (and labels) to scores [B]; higher is more real."""

    def __init__(self, config: StyleGan2Config):
        super().__init__()
        self.config = config
        self.half_blocks = 0  # how many of the highest blocks take half precision
        for resolution in config.resolutions[:0:-1]:
            self.add_module(f"b{resolution}", CriticBlock(config, resolution))
        self.b4 = Epilogue(config)
        if config.label_size:
            self.mapping = Mapping(
                z_dim=0,
                label_size=config.label_size,
                w_dim=config.channels(4),
                layers=config.label_mapping_layers,
                rate=config.mapping_rate,
                average=False,
            )

    def features(self, images: Tensor) -> Tensor:
        """What the last block sees [B, C, 4, 4]."""
        usual, blocks = working_kind(images), len(self.config.resolutions)
        with explicit_kinds(images):
            for index in range(blocks - 1, 0, -1):
                kind = torch.float16 if is_half(index, blocks, self.half_blocks) else usual
                last = images.is_cuda and kernels.side_by_side(kind)
                how = {"memory_format": torch.channels_last} if last else {}
                images = getattr(self, f"b{self.config.resolutions[index]}")(images.to(kind, **how))
        return at_least_float32(images)

    def forward(self, images: Tensor, labels: Tensor | None = None, deviation: Tensor | None = None) -> Tensor:
        """Scores [B]. `deviation` (a scalar) stands in for the spread within a group of images, which otherwise ties
        the scores of a batch to each other."""
        features = self.features(images)
        with explicit_kinds(images):
            scores = self.b4(features, deviation)
            if self.config.label_size:
                scores = (scores * self.mapping(None, labels)).sum(1, keepdim=True) / math.sqrt(scores.shape[1])
        return scores[:, 0]


def minibatch_deviation(features: Tensor, group: int) -> Tensor:
    """Mean deviation within groups of images [B]: image j belongs with j + B/G, j + 2B/G, ... (strided groups of G).

    Raises `Refused` if B is no multiple of min(group, B).
    """
    count = len(features)
    group = min(group, count)
    if count % group:
        raise Refused(
            f"critic: expected a multiple of {group} images, the size of its groups, got {count}; try another batch"
        )
    grouped = features.float().unflatten(0, (group, count // group))
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)
    return deviation.repeat(group).to(features.dtype)
