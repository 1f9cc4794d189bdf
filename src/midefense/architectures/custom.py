"""Bring your own network: any module that ends in a linear layer becomes a `Classifier`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.ranges import Channels, Count, Deviation, Side
from midefense.types import Refused, refuse_unknown


class Custom(Classifier):
    """A network of your own, that takes normalised images [B, channels, size, size] and gives logits [B, classes].

    `feature_layer` names its last linear layer (as in `network.named_modules()`; None: the last one there). The layer
    is taken out of the network and becomes the head; what flowed into it are the features, the only tap. `fresh_head`
    replaces the layer by a new one for `classes` (a network that comes with 1000 outputs); otherwise its width must
    already be right. Weights come in and go out under the names of the network's own state dict.

    Raises `Refused` if there is no such linear layer, if its width is not `classes`, or if the network does more
    with its output than return it.
    """

    revision = 1

    def __init__(
        self,
        *,
        network: nn.Module,
        feature_layer: str | None = None,
        classes: Count,
        channels: Channels,
        size: Side = 32,
        fresh_head: bool = False,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        linear_layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        if feature_layer is None:
            feature_layer = next(reversed(linear_layers), None)
        if feature_layer not in linear_layers:
            raise refuse_unknown("feature_layer", feature_layer, linear_layers, "Name the network's last linear layer.")
        head = linear_layers[feature_layer]
        if not fresh_head and head.out_features != classes:
            raise Refused(
                f"network: expected {classes} outputs of {feature_layer!r}, got {head.out_features}; "
                "try a network with this many outputs, or fresh_head=true"
            )
        has_bias = head.bias is not None
        probe = torch.zeros(2, channels, size, size)
        logits = _quiet_forward(network, probe)
        network.set_submodule(feature_layer, nn.Identity())
        body = nn.Sequential(network, nn.Flatten())
        _require_last(feature_layer, head, _quiet_forward(body, probe), logits)
        if fresh_head:
            head = nn.Linear(head.in_features, classes)
        own = list(network.state_dict())  # the head is no longer among them
        super().__init__({"features": body}, head, channels=channels, size=size, mean=mean, std=std)
        self.published = {**{name: f"stages.features.0.{name}" for name in own}, feature_layer: "classifier"}
        self.zero_if_absent = () if has_bias else ("classifier.bias",)  # a fresh head has one whatever it replaces


def _quiet_forward(network: nn.Module, images: Tensor) -> Tensor:
    """One forward in evaluation mode, without gradients; the modes of all modules are put back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with torch.no_grad():
        output = network(images)
    for module, training in modes.items():
        module.training = training
    return output


def _require_last(name: str, head: nn.Linear, features: Tensor, logits: Tensor) -> None:
    """Refuse a head that is not the last thing the network does."""
    with torch.no_grad():
        same = features.shape[1] == head.in_features and torch.equal(head(features), logits)
    if not same:
        raise Refused(
            f"feature_layer: expected the last operation of the network, got {name!r}, whose output is changed before "
            "it is returned; try a network that returns its logits (no softmax)"
        )
