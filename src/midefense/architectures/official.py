"""Networks as torchvision builds them, made to fit: input channels, classes, pretrained weights of its own."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from midefense.architectures.checkpoints import official_weights
from midefense.types import Refused

IMAGENET_CLASSES = 1000
# torchvision's DenseNet files hold names from before a dot within a module's name was forbidden.
DOTTED_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")


def official_network(
    name: str,
    build: Callable[..., nn.Module],
    *,
    classes: int,
    channels: int,
    pretrained: bool,
    weights: str | None,
    download: bool,
) -> nn.Module:
    """`build(num_classes=...)`, torchvision's network `name`, with an input of `channels` and a head of `classes`.

    Fresh weights are drawn from torch's global stream. Pretrained ones lie in torch's cache (`official_weights`); grey
    images get the sum of their RGB kernels, which is what three equal channels would see, and the ImageNet head is
    kept if there happen to be 1000 classes, as in the training code of Plug & Play Attacks.
    """
    if pretrained and channels not in (1, 3):
        raise Refused(f"pretrained: expected 1 or 3 channels, got {channels}; try pretrained=false")
    network = build(num_classes=IMAGENET_CLASSES if pretrained else classes)
    if pretrained:
        network.load_state_dict(_current_names(official_weights(weights_of(name), weights, download)))
    head_name, head = last_linear(network)
    if head.out_features != classes:
        network.set_submodule(head_name, nn.Linear(head.in_features, classes))
    convolution_name, convolution = first_convolution(network)
    if convolution.in_channels != channels:
        network.set_submodule(convolution_name, input_convolution(convolution, channels, pretrained))
    return network


def original_names(network: nn.Module, model: nn.Module) -> dict[str, str]:
    """For every tensor of `network` that `model` is built of: its name there and in `model`, as a table for
    `midefense.published`."""
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    originals = network.state_dict(keep_vars=True)
    return {original: names[id(tensor)] for original, tensor in originals.items() if id(tensor) in names}


def weights_of(name: str) -> type[torchvision.models.WeightsEnum]:
    """The weights that torchvision offers for its network `name`."""
    return torchvision.models.get_model_weights(name)


def last_linear(network: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the head: the last linear layer."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the convolution that sees the image: the first one."""
    return next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def input_convolution(convolution: nn.Conv2d, channels: int, pretrained: bool) -> nn.Conv2d:
    """A convolution like this one for `channels` input channels: drawn by the rule of He et al. (ICCV 2015), or, for
    one channel of a pretrained network, the sum of its kernels."""
    other = nn.Conv2d(
        channels,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.padding,
        bias=convolution.bias is not None,
    )
    nn.init.kaiming_normal_(other.weight, mode="fan_out", nonlinearity="relu")
    if pretrained:
        with torch.no_grad():
            other.weight.copy_(convolution.weight.sum(dim=1, keepdim=True))
            if other.bias is not None:
                other.bias.copy_(convolution.bias)
    return other


def _current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {DOTTED_LAYER.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
