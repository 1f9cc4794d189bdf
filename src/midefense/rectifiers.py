"""ReLUs whose gate has a slope, for attacks that differentiate a network's gradient (Haim et al., NeurIPS 2022)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from midefense.types import Refused


class SlopedGate(nn.Module):
    """ReLU, of which only the gradient differs: its gate is sigmoid(`slope` x) instead of a step. The gradient of the
    gradient, which a step has not, is that of the gate."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, values: Tensor) -> Tensor:
        return _Gated.apply(values, self.slope)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.slope = slope
        return values.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        return gradient * torch.sigmoid(ctx.slope * values), None


def with_sloped_gates(model: nn.Module, slope: float) -> nn.Module:
    """A copy of a network in which every `nn.ReLU` has a gate of this slope.

    Raises `Refused` for a network without such layers: its gradient would not change.
    """
    model = copy.deepcopy(model)
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU)
    ]
    if not places:
        raise Refused(
            "gate: expected a network with ReLU layers, got one without; try gate=null, or a network such as "
            "architecture=homogeneous_mlp"
        )
    for parent, name in places:
        setattr(parent, name, SlopedGate(slope))
    return model
