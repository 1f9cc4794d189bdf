"""Any network of timm (Wightman, PyTorch Image Models) by its name, with a linear head of ours."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import timm
from timm.models.resnet import ResNet
from torch import Tensor, nn

from midefense.architectures.backbones import pin_weights
from midefense.architectures.base import Classifier
from midefense.architectures.checkpoints import read_tensors
from midefense.architectures.official import original_names
from midefense.architectures.state_names import require_match, unwrapped
from midefense.ranges import Channels, Count, Deviation, Side
from midefense.types import Refused, refuse_unknown


class Timm(Classifier):
    """timm's network `name`, without its classifier. Its output is the last stage, `features`, and, but for timm's
    ResNet family (ResNeSt too), the only one; the family has `stem` and `layer1` to `layer4` in front of it.

    `size` reaches networks that are built for one size, such as transformers; `options` go to timm as they are, such as
    `drop_path_rate`. timm's pretrained weights are not fetched from its hub: `weights` is a file of them that lies here
    (grey images get the sum of the RGB kernels), None draws fresh ones. The content of the file, not its path, decides
    the target's id.

    `without_weights`: the arguments of a network that stored weights are put into, which needs no others to start from.
    """

    revision = 1
    without_weights = {"weights": None}
    pin = staticmethod(pin_weights)

    def __init__(
        self,
        *,
        name: str,
        classes: Count,
        channels: Channels,
        size: Side = 224,
        weights: str | None = None,
        options: Mapping[str, object] | None = None,
        mean: float | Sequence[float] = 0.5,
        std: Deviation = 0.5,
    ) -> None:
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=5)
            advice = (
                "timm.list_models('*part*') lists them; of timm's hubs nothing is loaded, give weights=FILE instead."
            )
            raise refuse_unknown("name", name, near, advice)
        settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
        fixed = {"img_size": size} if settings.fixed_input_size else {}
        network = _create(name, {"num_classes": 0, "in_chans": channels, **fixed, **(options or {})})
        if weights is not None:
            _load(network, read_tensors(weights), settings, channels)
        head = nn.Linear(network.head_hidden_size, classes)
        stages = _resnet_stages(network) if isinstance(network, ResNet) else {"features": network}
        super().__init__(stages, head, channels=channels, size=size, mean=mean, std=std)
        self.published = {
            **original_names(network, self),
            **dict.fromkeys(_names(settings.classifier)[:1], "classifier"),
        }


def _create(name: str, options: Mapping[str, object]) -> nn.Module:
    """timm's network; what it cannot be built with is refused (with which error depends on the network)."""
    try:
        return timm.create_model(name, pretrained=False, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise Refused(
            f"timm's {name}: expected options it can be built with, got {dict(options)} ({error}); "
            "try another size, or architecture.options={}"
        ) from error


def _resnet_stages(network: ResNet) -> dict[str, nn.Module]:
    stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool)
    layers = {name: getattr(network, name) for name in ("layer1", "layer2", "layer3", "layer4")}
    return {"stem": stem, **layers, "features": network.global_pool}


def _load(network: nn.Module, state: dict[str, Tensor], settings: object, channels: int) -> None:
    """Put a file's tensors into `network`, all of them but those of the classifier that the file brings."""
    expected = network.state_dict()
    state = unwrapped(state, expected)
    classifiers = tuple(f"{name}." for name in _names(settings.classifier))
    state = {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(classifiers)}
    for name in _names(settings.first_conv):
        kernels = state.get(f"{name}.weight")
        if channels == 1 and kernels is not None and kernels.shape[1] == 3:
            state[f"{name}.weight"] = kernels.sum(dim=1, keepdim=True)
    require_match(settings.architecture or type(network).__name__, state, expected)
    network.load_state_dict(state)


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """timm says one name, several, or none."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
