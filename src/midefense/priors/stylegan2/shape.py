"""What a StyleGAN2 file says of its networks: the configuration, read off names, shapes and attributes of its modules.

Channels, layers and widths are those of the tensors, so every format of a file tells them. What no shape tells (a rate,
a bound, the size of a group) stands in the attributes of NVIDIA's pickles. A bare state dict leaves it at the defaults
of `StyleGan2Config`: those of the published files for FFHQ, MetFaces and AFHQ, which IF-GMI's code fixes too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from midefense.architectures.state_names import require_match
from midefense.architectures.strangers import A_STYLEGAN2, named_family
from midefense.priors.stylegan2.critic import Discriminator
from midefense.priors.stylegan2.generator import Generator, StyleGan2Config, resample_filter
from midefense.priors.stylegan2.pickle import StoredModule
from midefense.types import Refused, refuse_unknown

NETWORKS = {"generator": Generator, "critic": Discriminator}
LINEAR = ("affine", "embed", "out", "skip")  # layers without a rectifier
# Where a pickle states what no shape tells: the attribute, and the paths of the modules whose attribute counts.
STATED = {
    "mapping_rate": ("bias_gain", r"mapping\.fc\d+"),
    "conv_clamp": ("conv_clamp", r"(synthesis\.)?b\d+\.(conv\d?|torgb|fromrgb)"),
    "minibatch_group": ("group_size", r"b4\.mbstd"),
}


class Shaped(Protocol):
    """A tensor, or what stands for one."""

    shape: torch.Size


AnyShaped = TypeVar("AnyShaped", bound=Shaped)


def shape_of(generator: Mapping[str, Shaped], critic: Mapping[str, Shaped] | None) -> dict[str, object]:
    """The arguments of `StyleGan2Config` that names and shapes tell.

    `channel_base` and `channel_max` are the smallest that give the channels that there are.
    """
    if family := named_family(generator):
        raise Refused(
            f"generator: expected the names of StyleGAN2-ADA, got those of {family} ({next(iter(generator))}, ...), "
            f"which is not read here; try {A_STYLEGAN2}"
        )
    sides = _numbers(generator, r"synthesis\.b(\d{1,5})\.conv1\.weight")
    if not sides or not {"mapping.w_avg", "mapping.fc0.weight"} <= generator.keys():
        raise Refused(
            "generator: expected the names of StyleGAN2-ADA (mapping.w_avg, synthesis.b4.conv1.weight, ...), got "
            f"{', '.join(list(generator)[:3]) or 'none'}; try NVIDIA's pickle, or the file of G_ema.state_dict()"
        )
    channels = {side: _width(generator, f"synthesis.b{side}.conv1.weight", 0) for side in sides}
    labels = "mapping.embed.weight" in generator
    embedded = _width(generator, "mapping.embed.weight", 0) if labels else 0
    told = {
        "resolution": max(sides),
        "image_channels": _width(generator, f"synthesis.b{max(sides)}.torgb.weight", 0),
        "z_dim": _width(generator, "mapping.fc0.weight", 1) - embedded,
        "w_dim": _width(generator, "mapping.w_avg", 0),
        "label_size": _width(generator, "mapping.embed.weight", 1) if labels else 0,
        "channel_base": max(side * width for side, width in channels.items()),
        "channel_max": max(channels.values()),
        "mapping_layers": len(_numbers(generator, r"mapping\.fc(\d+)\.weight")),
    }
    if critic is not None:
        told["critic_kind"] = "resnet" if any(name.endswith(".skip.weight") for name in critic) else "orig"
        if labels:
            told["label_mapping_layers"] = len(_numbers(critic, r"mapping\.fc(\d+)\.weight"))
    return told


def stated_in(modules: list[tuple[str, StoredModule]], known: Collection[str]) -> dict[str, object]:
    """The arguments of `StyleGan2Config` that attributes of modules, given with their paths, tell; not those `known`.

    Raises `Refused` if modules differ, or have an activation that is not StyleGAN2's.
    """
    for path, module in modules:
        expected = "linear" if path.rpartition(".")[2] in LINEAR else "lrelu"
        if module.state.get("activation", expected) != expected:
            raise Refused(f"{path}: expected the activation {expected}, got another; none but these two are built here")
    told = {}
    for name, (attribute, paths) in STATED.items():
        found = [module.state.get(attribute, "nothing") for path, module in modules if re.fullmatch(paths, path)]
        if not found or name in known:
            continue
        kinds = {type(value) for value in found}
        if not kinds <= {int, float, type(None)} or len(values := set(found)) > 1:
            raise Refused(f"{name}: expected one number in all layers, got others; try --config {name}=NUMBER")
        (told[name],) = values
    return told


def configuration(told: Mapping[str, object]) -> StyleGan2Config:
    """The configuration of these arguments, each of the type of its default; `Refused` for others."""
    defaults = {entry.name: entry.default for entry in fields(StyleGan2Config)}
    arguments = {}
    for name, value in told.items():
        if name not in defaults:
            raise refuse_unknown("--config", name, defaults)
        kind = type(defaults[name])
        if kind is float and type(value) is int:
            value = float(value)
        unbounded = name == "conv_clamp" and value is None
        if not unbounded and (type(value) is not kind or (kind is float and not math.isfinite(value))):
            raise Refused(f"{name}: expected a finite {kind.__name__}, got {value!r}; try --config {name}=VALUE")
        arguments[name] = value
    return StyleGan2Config(**arguments)


def matched(config: StyleGan2Config, states: Mapping[str, Mapping[str, AnyShaped]]) -> dict[str, dict[str, AnyShaped]]:
    """The states of `generator` and `critic` in the order of our networks.

    Raises `Refused` unless names and shapes are exactly those of the networks of this configuration.
    """
    ordered = {}
    for part, state in states.items():
        with torch.device("meta"):  # shapes alone: takes no memory and draws nothing
            expected = NETWORKS[part](config).state_dict()
        require_match(f"StyleGAN2's {part}", state, expected)
        ordered[part] = {name: state[name] for name in expected}
    return ordered


def require_values(state: Mapping[str, Tensor]) -> None:
    """Refuse what are not finite floats, and filters other than that of [1, 3, 3, 1], which is built in."""
    built_in = resample_filter()
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise Refused(f"{name}: expected float32, got {tensor.dtype}; try the file that its authors published")
        if not tensor.isfinite().all():
            raise Refused(f"{name}: expected finite numbers, got others; try downloading the file again")
        if name.endswith("resample_filter") and not torch.allclose(tensor, built_in):
            raise Refused(f"{name}: expected the filter of [1, 3, 3, 1], got another; none but it is built here")


def _numbers(state: Mapping[str, Shaped], pattern: str) -> list[int]:
    return [int(match[1]) for name in state if (match := re.fullmatch(pattern, name))]


def _width(state: Mapping[str, Shaped], name: str, axis: int) -> int:
    shape = list(state[name].shape) if name in state else []
    if len(shape) <= axis:
        raise Refused(f"generator: expected {name} with {axis + 1} axes or more, got {shape}; try another file")
    return shape[axis]
