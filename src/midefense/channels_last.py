"""Frozen networks as tensor cores like them: the channels of a pixel side by side in memory, so that no convolution has
to turn its maps round; and without the passes over memory that norms take where their statistics stand still."""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.doubling import Doubling, Halving

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)  # not what inherits from them: that may calculate otherwise
BEFORE = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, Doubling, Halving)  # that take up a norm's product and sum: alike


def channels_last(network: nn.Module) -> nn.Module:
    """A copy of a frozen network whose answers and gradients differ in rounding alone. Names of layers are the copy's
    own: it is there to be run. BatchNorm in train mode stays what it is."""
    made = copy.deepcopy(network)
    parents = list(made.modules())
    # a layer may stand in several places, of one parent too, which `named_children` leaves out
    places = Counter(layer for parent in parents for layer in parent._modules.values())
    for parent in parents:
        before = None
        for name, layer in list(parent._modules.items()):
            if _hooked(layer):
                pass  # who listens to it hears what it did
            elif type(layer) in NORMS and layer.track_running_stats and not layer.training:
                affine = Affine(layer)
                alone = _in_turn(parent) and places[before] == 1 and type(before) in BEFORE and not _hooked(before)
                setattr(parent, name, nn.Identity() if alone and affine.taken_up_by(before) else affine)
            elif type(layer) is nn.InstanceNorm2d and not layer.track_running_stats:
                setattr(parent, name, PerMap(layer))
            before = layer
    return made.to(memory_format=torch.channels_last)


def _in_turn(parent: nn.Module) -> bool:
    """Whether each child reads what the one before it gave, and nobody else does."""
    return isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward


def _hooked(layer: nn.Module | None) -> bool:
    """Whether somebody reads or changes what goes into a layer or comes out, as older weight and spectral norms do."""
    return layer is not None and any(
        (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    )


class Affine(nn.Module):
    """What a BatchNorm layer in eval mode does to inputs [B, C] or [B, C, H, W]: x scale + shift, in the inputs' kind,
    calculated in float32 at least. Statistics and weights are those of now."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        return torch.addcmul(self.shift.view(shape), inputs, self.scale.view(shape)).to(inputs.dtype)

    @torch.no_grad()
    def taken_up_by(self, layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> bool:
        """Whether the weights of the layer before could take it up, which then does both."""
        outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        if getattr(layer, "groups", 1) != 1 or layer.weight.shape[outputs] != len(self.scale):
            return False
        shape = [1] * layer.weight.ndim
        shape[outputs] = -1
        bias = self.shift if layer.bias is None else self.shift + layer.bias * self.scale
        layer.weight = nn.Parameter(layer.weight * self.scale.view(shape), requires_grad=False)
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
        return True


class PerMap(nn.Module):
    """What an InstanceNorm layer does, as a group norm with a group for each channel: on a GPU torch makes of the
    former a BatchNorm in train mode, of as many channels as there are maps."""

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.channels, self.eps = norm.num_features, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return F.group_norm(inputs, self.channels, self.weight, self.bias, self.eps)
