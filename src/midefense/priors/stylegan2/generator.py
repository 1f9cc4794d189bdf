"""StyleGAN2-ADA's generator (Karras et al., "Training generative adversarial networks with limited data", NeurIPS 2020;
architecture of StyleGAN2, CVPR 2020) under the published parameter names, written from the maths.

Latents z [B, z_dim] are mapped to styles ws [B, num_ws, w_dim], one row per layer; images [B, C, R, R] are nominally in
[-1, 1] and not clamped. Convolutions scale the input by the style and the output by the demodulation coefficient, with
one shared weight for the batch: the same maths as a weight per image (`fused=True`), without its memory.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from midefense.doubling import doubled, halved
from midefense.precision import at_least_float32, explicit_kinds, working_kind
from midefense.priors.stylegan2 import kernels
from midefense.types import Refused, refuse_unknown

TAPS = (1.0, 3.0, 3.0, 1.0)  # the resampling filter, per axis
GAIN = math.sqrt(2)  # of the leaky rectifier
SLOPE = 0.2
NOISE = ("const", "random", "none")
CRITICS = ("resnet", "orig")


@dataclass(frozen=True)
class StyleGan2Config:
    """The shape of a pair of networks; defaults are those of the 1024-px files for FFHQ and MetFaces.

    `label_size`: width of the label of a conditional pair, 0 without. `conv_clamp`: bound on what a convolution gives.
    `critic_kind`: `resnet`, or `orig` (CIFAR). `minibatch_group`: images compared in the critic's last block.
    """

    resolution: int = 1024
    image_channels: int = 3
    z_dim: int = 512
    w_dim: int = 512
    label_size: int = 0
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    mapping_rate: float = 0.01
    conv_clamp: float | None = 256.0
    critic_kind: str = "resnet"
    minibatch_group: int = 4
    label_mapping_layers: int = 8

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise Refused(f"resolution: expected a power of two from 8, got {self.resolution}; try 32, 64 or 1024")
        if self.critic_kind not in CRITICS:
            raise refuse_unknown("critic_kind", self.critic_kind, CRITICS)
        smallest = (self.image_channels, self.z_dim, self.w_dim, self.channel_base, self.channel_max)
        if min(*smallest, self.mapping_layers, self.minibatch_group, self.label_mapping_layers) < 1:
            raise Refused(f"StyleGAN2: expected widths, layers and minibatch_group from 1, got {self}")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides of the blocks' images: 4, 8, ..., resolution."""
        return tuple(2**power for power in range(2, self.resolution.bit_length()))

    @property
    def num_ws(self) -> int:
        """Rows of styles that synthesis takes."""
        return 2 * len(self.resolutions)

    def channels(self, resolution: int) -> int:
        """Channels of the features at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)


class Dense(nn.Module):
    """A linear layer whose stored weight is scaled when it is used (equalised learning rate)."""

    def __init__(self, inputs: int, outputs: int, *, rate: float = 1.0, bias: float = 0.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.rate, self.activate = rate, activate
        self.scale = rate / math.sqrt(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        bias = self.bias if self.rate == 1 else self.bias * self.rate
        outputs = F.linear(inputs, self.weight * self.scale, bias)
        return F.leaky_relu(outputs, SLOPE) * GAIN if self.activate else outputs


class Mapping(nn.Module):
    """Latents z [B, z_dim] (and labels [B, label_size]) to styles w [B, w_dim]; without `z_dim`, of labels alone.

    In training mode `w_avg` follows the mean style.
    """

    def __init__(self, *, z_dim: int, label_size: int, w_dim: int, layers: int, rate: float, average: bool):
        super().__init__()
        if label_size:
            self.embed = Dense(label_size, w_dim)
        self.z_dim, self.label_size, self.layers = z_dim, label_size, layers
        widths = [z_dim + (w_dim if label_size else 0), *[w_dim] * layers]
        for index in range(layers):
            self.add_module(f"fc{index}", Dense(widths[index], widths[index + 1], rate=rate, activate=True))
        if average:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, latents: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """Styles [B, w_dim]."""
        parts = [] if latents is None else [_normalised(latents.float())]
        if self.label_size:
            if labels is None:
                raise Refused(f"labels: expected [B, {self.label_size}] for a conditional generator, got none")
            parts.append(_normalised(self.embed(labels.float())))
        hidden = torch.cat(parts, 1)
        for index in range(self.layers):
            hidden = getattr(self, f"fc{index}")(hidden)
        if self.training and hasattr(self, "w_avg"):
            with torch.no_grad():
                self.w_avg.lerp_(hidden.mean(0), 0.005)
        return hidden


class Styled(nn.Module):
    """A modulated 3x3 convolution, twice as large if `up`, with noise, bias and a leaky rectifier."""

    def __init__(self, inputs: int, outputs: int, *, w_dim: int, resolution: int, up: bool, clamp: float | None):
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("resample_filter", resample_filter())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.up, self.clamp = up, None if clamp is None else clamp * GAIN

    def forward(self, features: Tensor, w: Tensor, noise: str, fused: bool) -> Tensor:
        """Features [B, inputs, H, H] and styles [B, w_dim] to [B, outputs, r, r]."""
        style = self.affine(w)
        convolved, strength = modulated(features, self.weight, style, up=self.up, fused=fused)
        on_gpu, drawn = kernels.usable(convolved), None
        if noise == "const":
            drawn = self.noise_const[None, None]
        elif noise == "random":
            drawn = torch.randn_like(convolved[:, :1], dtype=torch.float32 if on_gpu else None)
        if on_gpu:
            loudness = None if drawn is None else self.noise_strength * GAIN
            outside = (strength * GAIN, self.bias * GAIN, drawn, loudness)
            return kernels.Finished.apply(kernels.dense(convolved), *outside, SLOPE, self.clamp)
        offset = self.bias.view(1, -1, 1, 1)
        if drawn is not None:
            offset = offset + drawn * self.noise_strength
        # the rectifier's gain is positive, so it may be applied before it, to the smaller tensors
        return _Finished.apply(convolved, strength * GAIN, offset * GAIN, self.clamp)


class ToRgb(nn.Module):
    """Features to an image: a modulated 1x1 convolution without demodulation."""

    def __init__(self, inputs: int, outputs: int, *, w_dim: int, clamp: float | None):
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.clamp = clamp

    def forward(self, features: Tensor, w: Tensor) -> Tensor:
        """Images [B, C, r, r]; few outputs, so a weight per image is cheaper than scaling all features."""
        style = self.affine(w) / math.sqrt(self.weight.shape[1])
        weights, kind = self.weight[:, :, 0, 0] * style[:, None], features.dtype
        if kernels.usable(features):
            return kernels.Picture.apply(kernels.dense(features), weights, self.bias, self.clamp)
        images = torch.baddbmm(self.bias[None, :, None].to(kind), weights.to(kind), features.flatten(2))
        images = at_least_float32(images.unflatten(2, features.shape[2:]))
        return images if self.clamp is None else images.clamp(-self.clamp, self.clamp)


class Block(nn.Module):
    """One resolution: two styled convolutions (in the first block one, on a learned constant), a part of the image."""

    def __init__(self, config: StyleGan2Config, resolution: int):
        super().__init__()
        outputs, clamp = config.channels(resolution), config.conv_clamp
        common = {"w_dim": config.w_dim, "resolution": resolution, "clamp": clamp}
        self.register_buffer("resample_filter", resample_filter())
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(outputs, 4, 4))
        else:
            self.conv0 = Styled(config.channels(resolution // 2), outputs, up=True, **common)
        self.conv1 = Styled(outputs, outputs, up=False, **common)
        self.torgb = ToRgb(outputs, config.image_channels, w_dim=config.w_dim, clamp=clamp)
        self.first = resolution == 4

    def forward(
        self, features: Tensor | None, images: Tensor | None, ws: Tensor, noise: str, fused: bool, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Features and image of the block below (None: nothing) and this block's rows of ws to those of this block.
        Features are of the `kind` that is told; what becomes a picture is float32 at least."""
        features = self.const.expand(len(ws), -1, -1, -1) if self.first else features
        if features.is_cuda and kernels.side_by_side(kind):
            features = features.to(kind, memory_format=torch.channels_last)
        else:
            features = features.to(kind)
        if self.first:
            features = self.conv1(features, ws[:, 0], noise, fused)
        else:
            features = self.conv0(features, ws[:, 0], noise, fused)
            features = self.conv1(features, ws[:, 1], noise, fused)
        own = self.torgb(features, ws[:, -1])
        return features, own if images is None else upsampled(images) + own


class Synthesis(nn.Module):
    """Styles to images, block by block; it can be entered at any block and left at any resolution."""

    def __init__(self, config: StyleGan2Config):
        super().__init__()
        self.resolutions = config.resolutions
        self.checkpoint = False  # True: activations of a block are computed again for the backward pass
        self.half_blocks = 0  # how many of the highest blocks take half precision
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", Block(config, resolution))

    def forward(
        self,
        ws: Tensor,
        *,
        noise: str = "const",
        fused: bool = False,
        first: int = 0,
        last: int | None = None,
        features: Tensor | None = None,
        images: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features and images behind block `last` (None: the last), entered at block `first`.

        Args:
            ws: styles [B, num_ws, w_dim].
            noise: `const` (stored), `random` (torch's stream) or `none`.
            features: what block `first` takes, [B, channels, r, r], unless it is block 0.
            images: the image so far [B, C, r, r]; None leaves out what the blocks below would have added.
        """
        if noise not in NOISE:
            raise refuse_unknown("noise", noise, NOISE)
        last = len(self.resolutions) - 1 if last is None else last
        usual = working_kind(ws)
        with explicit_kinds(ws):
            for index in range(first, last + 1):
                block = getattr(self, f"b{self.resolutions[index]}")
                # the image of a block shares its row with the first convolution of the next
                rows = ws[:, 0:2] if index == 0 else ws[:, 2 * index - 1 : 2 * index + 2]
                kind = torch.float16 if is_half(index, len(self.resolutions), self.half_blocks) else usual
                given = (features, images, rows, noise, fused, kind)
                if self.checkpoint and torch.is_grad_enabled():
                    features, images = checkpoint(block, *given, use_reentrant=False)
                else:
                    features, images = block(*given)
        return features, images


class Generator(nn.Module):
    """`mapping` and `synthesis` under the published names."""

    def __init__(self, config: StyleGan2Config):
        super().__init__()
        self.config = config
        self.mapping = Mapping(
            z_dim=config.z_dim,
            label_size=config.label_size,
            w_dim=config.w_dim,
            layers=config.mapping_layers,
            rate=config.mapping_rate,
            average=True,
        )
        self.synthesis = Synthesis(config)

    def styles(
        self, latents: Tensor, labels: Tensor | None = None, *, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """Styles ws [B, num_ws, w_dim] of latents z; the first `cutoff` rows (None: all) drawn towards the mean style,
        w_avg + psi (w - w_avg)."""
        ws = self.mapping(latents, labels)[:, None].repeat(1, self.config.num_ws, 1)
        if psi != 1:
            ws[:, :cutoff] = self.mapping.w_avg.lerp(ws[:, :cutoff], psi)
        return ws


def modulated(
    features: Tensor, weight: Tensor, style: Tensor, *, up: bool, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Convolution of features [B, I, H, H] by `weight` [O, I, 3, 3] modulated by `style` [B, I], and the demodulation
    coefficients [B, O] that its output is still to be multiplied by (StyleGAN2, equations 1 to 3)."""
    if fused:
        own = weight * style[:, None, :, None, None]
        own = (own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()).to(features.dtype)
        batch, inputs = style.shape
        grouped = features.reshape(1, batch * inputs, *features.shape[2:])
        convolved = _convolved(grouped, own.flatten(0, 1), up=up, groups=batch)
        return convolved.unflatten(1, (batch, -1))[0], torch.ones_like(own[:, :, 0, 0, 0])
    if features.dtype is torch.float16:
        weight, style = within_half(weight, style)
    strength = (style.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()
    weight = weight.to(features.dtype)
    if kernels.usable(features):
        scaled = kernels.Scaled.apply(kernels.dense(features), style)
        if kernels.is_channels_last(features):
            weight = weight.contiguous(memory_format=torch.channels_last)
    else:
        scaled = _Scaled.apply(features, style)
    return _convolved(scaled, weight, up=up, groups=1), strength


def within_half(weight: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [O, I, 3, 3] and styles [B, I] scaled so that products and sums of half-precision features by them stay
    within its range; the demodulation takes the factors out again (StyleGAN2-ADA, appendix D)."""
    largest = weight.abs().amax((1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel())
    return weight / largest, style / style.abs().amax(1, keepdim=True)


def is_half(index: int, blocks: int, half_blocks: int) -> bool:
    """Whether the block `index` from below takes half precision: never the first."""
    return index >= max(blocks - half_blocks, 1)


def _convolved(features: Tensor, weight: Tensor, *, up: bool, groups: int) -> Tensor:
    if not up:
        return convolve(features, weight, padding=1, groups=groups)
    # inputs and outputs change places within a group: the transposed convolution is a true one of the stretched input
    swapped = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    if features.is_cuda and kernels.is_channels_last(features):
        swapped = swapped.contiguous(memory_format=torch.channels_last)
    stretched = convolve(features, swapped, stride=2, groups=groups, transposed=True)
    return blurred(stretched, padding=1, gain=4.0)


def resample_filter() -> Tensor:
    """The filter [4, 4] of all up- and downsampling, of sum 1."""
    taps = torch.tensor(TAPS)
    return torch.outer(taps, taps) / taps.sum() ** 2


@functools.cache
def _kernel(gain: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The filter times `gain` [1, 1, 4, 4], made once: a copy to the device in every layer would make it wait."""
    return (resample_filter() * gain)[None, None].to(device, dtype)


def blurred(images: Tensor, *, padding: int, gain: float = 1.0, every: int = 1) -> Tensor:
    """Images [B, C, H, W], padded with zeros on every side, under the filter: [B, C, H + 2 padding - 3, ...], of which
    one place in `every` is kept along each axis.

    A convolution per channel: twice as fast on a CPU as one axis at a time, five times as fast as sums of slices.
    """
    if kernels.usable(images):
        size = tuple((side + 2 * padding - 4) // every + 1 for side in images.shape[2:])
        return kernels.Resampled.apply(images, 1, every, padding, gain, size)
    channels = images.shape[1]
    kernel = _kernel(gain, images.device, images.dtype).expand(channels, 1, 4, 4)
    images = convolve(images, kernel, padding=padding, groups=channels)
    return images[:, :, ::every, ::every] if every > 1 else images


def upsampled(images: Tensor) -> Tensor:
    """Images [B, C, H, W] at twice the size: y[2i] = .75 x[i] + .25 x[i-1], y[2i+1] = .75 x[i] + .25 x[i+1] per axis,
    zero outside."""
    if kernels.usable(images):
        return kernels.Resampled.apply(images, 2, 1, 2, 4.0, tuple(2 * side for side in images.shape[2:]))
    channels = images.shape[1]
    kernel = _kernel(4.0, images.device, images.dtype).expand(channels, 1, 4, 4)
    return convolve(images, kernel, stride=2, padding=1, groups=channels, transposed=True)


def convolve(
    images: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1, transposed: bool = False
) -> Tensor:
    """torch's convolution, or its transposed one. Where the weight learns nothing, its input is not kept for it: half
    of what a frozen generator would keep for the gradient to its styles."""
    how = (stride, padding, groups, transposed)
    if weight.requires_grad or not images.requires_grad:
        return _by_torch(images, weight, *how)
    return _Frozen.apply(images, weight, how)


def rectified(values: Tensor, clamp: float | None) -> Tensor:
    """The leaky rectifier and a clamp, in place; its gradient is read off the result, so nothing else is kept."""
    return _Rectified.apply(values, clamp)


def _by_torch(images: Tensor, weight: Tensor, stride: int, padding: int, groups: int, transposed: bool) -> Tensor:
    if stride == 2 and groups == 1:
        return doubled(images, weight, padding, 0) if transposed else halved(images, weight, padding)
    convolution = F.conv_transpose2d if transposed else F.conv2d
    return convolution(images, weight, stride=stride, padding=padding, groups=groups)


class _Frozen(torch.autograd.Function):
    """A convolution by a weight that gets no gradient; its own gradient is the same convolution the other way round."""

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, how: tuple) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how, ctx.shape = how, images.shape
        return _by_torch(images, weight, *how)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        stride, padding, groups, transposed = ctx.how
        # a gradient of the gradient is wanted; or on a GPU, where torch would read off `images` below, a map without
        # memory, in which format to turn the gradient round
        if torch.is_grad_enabled() or gradient.is_cuda:
            return _Frozen.apply(gradient, weight, (stride, padding, groups, not transposed)), None, None
        images = gradient.new_empty(1).expand(ctx.shape)  # only its shape is read
        pair = ([stride, stride], [padding, padding], [1, 1], transposed, [0, 0], groups)
        wanted = [True, False, False]
        given = torch.ops.aten.convolution_backward(gradient, images, weight, None, *pair, wanted)
        return given[0], None, None


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, clamp: float | None) -> Tensor:
        ctx.mark_dirty(_rectify_(values, clamp))
        ctx.save_for_backward(values)
        ctx.clamp = clamp
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        return _before(_unclamped(gradient, values, ctx.clamp), values, overwrite=ctx.clamp is not None), None


class _Finished(torch.autograd.Function):
    """The end of a layer in the convolution's own memory: times `strength` [B, O], plus `offset` [1, O, h, w] (one
    place stands for all), rectified and clamped. What the convolution gave is not kept but read off the result."""

    @staticmethod
    def forward(ctx, convolved: Tensor, strength: Tensor, offset: Tensor, clamp: float | None) -> Tensor:
        kind = convolved.dtype
        torch.addcmul(offset.to(kind), convolved, strength[:, :, None, None].to(kind), out=convolved)
        ctx.mark_dirty(_rectify_(convolved, clamp))
        ctx.save_for_backward(convolved, strength, offset)
        ctx.clamp = clamp
        return convolved

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        outputs, strength, offset = ctx.saved_tensors
        gradient = _unclamped(gradient, outputs, ctx.clamp)
        along = None
        if ctx.needs_input_grad[1]:
            # below zero outputs are SLOPE times what was rectified, and its gradient SLOPE times theirs: the product of
            # outputs and their gradient is that of what was rectified and its own
            along = _inner(gradient, outputs)
        gradient = _before(gradient, outputs, overwrite=ctx.clamp is not None)
        if along is not None:
            along = (along - _inner(gradient, offset)) / strength
        apart = gradient.sum_to_size(offset.shape).to(offset.dtype) if ctx.needs_input_grad[2] else None
        scale = strength[:, :, None, None].to(gradient.dtype)
        # the sums above have read it, so that it may be written over, unless a gradient of the gradient is wanted
        return gradient * scale if torch.is_grad_enabled() else gradient.mul_(scale), along, apart, None


class _Scaled(torch.autograd.Function):
    """Features [B, I, H, H] times a style [B, I]; the style's gradient is one inner product, without their product."""

    @staticmethod
    def forward(ctx, features: Tensor, style: Tensor) -> Tensor:
        ctx.save_for_backward(features, style)
        return features * style[:, :, None, None].to(features.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, style = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            gradient * style[:, :, None, None].to(gradient.dtype) if needed[0] else None,
            _inner(gradient, features) if needed[1] else None,
        )


def _rectify_(values: Tensor, clamp: float | None) -> Tensor:
    F.leaky_relu_(values, SLOPE)
    return values if clamp is None else values.clamp_(-clamp, clamp)


def _unclamped(gradient: Tensor, outputs: Tensor, clamp: float | None) -> Tensor:
    """The gradient where the result was not clamped, 0 elsewhere."""
    return gradient if clamp is None else torch.ops.aten.hardtanh_backward(gradient, outputs, -clamp, clamp)


def _before(gradient: Tensor, outputs: Tensor, overwrite: bool) -> Tensor:
    """The gradient in front of the rectifier, read off its result; in the memory of `gradient` where it is our own and
    no gradient of the gradient is wanted."""
    if overwrite and not torch.is_grad_enabled():
        return torch.ops.aten.leaky_relu_backward(gradient, outputs, SLOPE, True, grad_input=gradient)
    return torch.ops.aten.leaky_relu_backward(gradient, outputs, SLOPE, True)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Inner products [B, C], float32 at least, over the places of two maps [B or 1, C, h, w]; a map of one place stands
    for all."""
    kind = torch.promote_types(first.dtype, torch.float32)
    if second.shape[2:] == (1, 1):
        return first.sum((2, 3), dtype=kind) * second[:, :, 0, 0]
    return (first * second).sum((2, 3), dtype=kind)


def _normalised(vectors: Tensor) -> Tensor:
    """Vectors [B, N] of mean square 1."""
    return vectors * (vectors.square().mean(1, keepdim=True) + 1e-8).rsqrt()
