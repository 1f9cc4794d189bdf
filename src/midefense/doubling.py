"""Convolutions that halve maps, and transposed ones that double them, in float32 on a GPU, by weights that learn not.

For the transposed one, which is also the other's gradient, cuDNN has no kernel in float32 that is both fast and the
same twice: it took two fifths of a step of Plug & Play (benchmarks/gpu.md). But each of the four phases of what it
gives, the pixels of even and odd rows and columns, is a plain convolution of what it takes, by every other tap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def doubled(maps: Tensor, weight: Tensor, padding: int, output_padding: int) -> Tensor:
    """conv_transpose2d with stride 2 of maps [B, I, H, W] by weight [I, O, k, k], k from 2."""
    if _in_phases(maps, weight):
        size = tuple(2 * (side - 1) - 2 * padding + weight.shape[2] + output_padding for side in maps.shape[2:])
        return _Doubled.apply(maps, weight, padding, size)
    return F.conv_transpose2d(maps, weight, stride=2, padding=padding, output_padding=output_padding)


def halved(maps: Tensor, weight: Tensor, padding: int) -> Tensor:
    """conv2d with stride 2 of maps [B, I, H, W] by weight [O, I, k, k]."""
    if _in_phases(maps, weight):
        return _Halved.apply(maps, weight, padding)
    return F.conv2d(maps, weight, stride=2, padding=padding)


class Doubling(nn.ConvTranspose2d):
    """`doubled` as a layer: stride 2, square kernels, no groups."""

    def forward(self, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not _in_phases(inputs, self.weight):
            return super().forward(inputs, output_size)
        given = doubled(inputs, self.weight, self.padding[0], self.output_padding[0])
        return given if self.bias is None else given + self.bias.view(-1, 1, 1)


class Halving(nn.Conv2d):
    """`halved` as a layer: stride 2, square kernels, no groups."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not _in_phases(inputs, self.weight):
            return super().forward(inputs)
        given = halved(inputs, self.weight, self.padding[0])
        return given if self.bias is None else given + self.bias.view(-1, 1, 1)


def _in_phases(maps: Tensor, weight: Tensor) -> bool:
    """On a GPU in float32 (for the kinds of tensor cores there are good kernels), where the weight learns nothing (what
    learns was not measured)."""
    if not maps.is_cuda or maps.dtype is not torch.float32 or weight.requires_grad:
        return False
    return not (torch.backends.cudnn.allow_tf32 or torch.is_autocast_enabled("cuda"))


class _Doubled(torch.autograd.Function):
    """Differentiable in the maps, as often as wanted, like `_Halved`: each is the other's gradient."""

    @staticmethod
    def forward(ctx, maps: Tensor, weight: Tensor, padding: int, size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return by_phases(maps, weight, padding, size)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Halved.apply(gradient, *ctx.saved_tensors, ctx.padding), None, None, None


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.size = padding, tuple(maps.shape[2:])
        return F.conv2d(maps, weight, stride=2, padding=padding)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Doubled.apply(gradient, *ctx.saved_tensors, ctx.padding, ctx.size), None, None


def by_phases(maps: Tensor, weight: Tensor, padding: int, size: tuple[int, int]) -> Tensor:
    """`doubled`, cut or continued to `size`, as a plain convolution for each phase; in the memory format of `maps`.

    Pixel 2m + r sums x[m + (r + padding - k) / 2] w[k] over the taps k for which that is a whole number.
    """
    last = not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)
    kind = torch.channels_last if last else torch.contiguous_format
    shape = (len(maps), weight.shape[1], *size)
    given = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=kind)
    turned = weight.transpose(0, 1).flip(2, 3)  # a plain convolution reads from the other end
    for row in range(2):
        for column in range(2):
            down, vertical = _phase(row, weight.shape[2], padding, size[0], maps.shape[2])
            across, horizontal = _phase(column, weight.shape[3], padding, size[1], maps.shape[3])
            kernel = turned[:, :, down::2, across::2].contiguous(memory_format=kind)
            given[:, :, row::2, column::2] = F.conv2d(F.pad(maps, (*horizontal, *vertical)), kernel)
    return given


def _phase(start: int, side: int, padding: int, outputs: int, inputs: int) -> tuple[int, tuple[int, int]]:
    """Along one axis, of pixels start, start + 2, ... of `outputs`: the first tap that they read, of `side` taps in the
    order of a plain convolution (they read every other); and how many zeros stand before and behind the `inputs`
    (negative: how many are left out)."""
    begin = (side - 1 - start - padding) % 2
    taps = [side - 1 - place for place in range(begin, side, 2)]
    first, last = ((start + padding - tap) // 2 for tap in (taps[0], taps[-1]))
    return begin, (-first, len(range(start, outputs, 2)) - 1 + last - (inputs - 1))
