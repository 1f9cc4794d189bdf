"""BatchNorm over several ranks: a batch is normalised by the statistics of all its rows, whichever rank has them.

So a network with BatchNorm trains to the same weights, up to rounding, however many processes share a batch. torch's
own SyncBatchNorm does the same on GPUs alone, and takes the place of the layers; here the layers stay what they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def over_all_ranks(model: nn.Module, ranks: int) -> Iterator[None]:
    """Within, every BatchNorm layer of `model` in training mode sees the rows of all `ranks`, which must call it as
    often as each other; of one rank nothing changes, nor of layers with a forward of their own."""
    norms = [layer for layer in model.modules() if _is_plain(layer)] if ranks > 1 else []
    for norm in norms:
        norm.forward = functools.partial(_normalised, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and type(layer).forward is _BatchNorm.forward


def _normalised(norm: _BatchNorm, images: Tensor) -> Tensor:
    """What `norm` makes of this rank's rows [B, C, ...]: in training mode with the mean and the variance over the rows
    of all ranks (Ioffe, Szegedy, ICML 2015), in at least float32."""
    if not norm.training:  # without running statistics it then takes those of the rows it is given, as ever
        return type(norm).forward(norm, images)
    norm._check_input_dim(images)
    wide = images if images.dtype == torch.float64 else images.float()
    over, shape = [0, *range(2, images.dim())], [1, -1, *[1] * (images.dim() - 2)]
    count = _Sum.apply(wide.new_tensor(float(wide.numel() / wide.shape[1])))
    mean = _Sum.apply(wide.sum(over)) / count
    centred = wide - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(over)) / count
    _remember(norm, mean.detach(), (variance * count / (count - 1)).detach())
    found = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        found = found * norm.weight.view(shape) + norm.bias.view(shape)
    return found.to(images.dtype)


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch does, towards `mean` [C] and the unbiased `variance` [C]."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over ranks. What a rank's loss owes to it is owed to the rows of every rank, so that gradients are summed
    in turn."""

    @staticmethod
    def forward(ctx: object, own: Tensor) -> Tensor:
        total = own.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, owed: Tensor) -> Tensor:
        total = owed.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total
