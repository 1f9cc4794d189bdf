"""What is known of a plan before compute is spent: networks without memory, and the setting shown to an attack."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from midefense import seeds
from midefense.defenses.base import Defense
from midefense.oracle import batchnorm_layers
from midefense.plan.bind import Node
from midefense.priors.base import Prior
from midefense.training.loop import assemble
from midefense.types import ArchitectureFacts, NotYetKnown, Origin, Refused

SOME_CLASSES = 2  # as long as nobody knows how many: no layer's name depends on it


def architecture_facts(
    architecture: Node, defense: Node, *, channels: int, size: int, classes: int | None = None
) -> ArchitectureFacts:
    """What a network will be like as deployed, for images of a dataset's `channels` and `size`.

    Args:
        classes: how many the dataset has; None: not known yet.
    Raises:
        Refused: the network cannot be built for such images.
        NotYetKnown: it cannot be built without knowing the classes.
    """
    classes = architecture.arguments.get("classes") or classes
    node = without_weights(architecture).given(classes=classes or SOME_CLASSES, channels=channels, size=size)
    try:
        model = _without_memory(node, defense)
    except Refused as refusal:
        if classes is None:
            raise NotYetKnown("the network, which is built for a number of classes") from refusal
        raise
    return ArchitectureFacts(
        taps=tuple(getattr(model, "tap_names", ())),
        batchnorm=tuple(batchnorm_layers(model)),
        classes=classes,
        channels=getattr(model, "channels", None),
        size=getattr(model, "size", None),
    )


def drawn(architecture: Node, seed: int) -> nn.Module:
    """A fresh network, the same for the same seed."""
    with seeds.isolated(seed, "train", "init"):
        return architecture.build()


def assembled(model: nn.Module, defense: Node, seed: int, origin: Origin) -> tuple[nn.Module, Defense]:
    """The network as its defense rebuilds it, and the defense; both the same for the same seed."""
    built = defense.build()
    return assemble(model, built, seed, origin), built


def without_weights(architecture: Node) -> Node:
    """The same network without weights to start from (a class names the arguments for it in `without_weights`)."""
    none = getattr(architecture.target, "without_weights", {})
    return replace(architecture, arguments={**architecture.arguments, **none})


def reads_weights(architecture: Node) -> bool:
    """Whether a network begins with published weights that it reads."""
    return architecture.arguments != without_weights(architecture).arguments


def deployed(architecture: Node, defense: Node) -> nn.Module:
    """The network as deployed, with some weights."""
    model, built = assembled(drawn(architecture, 0), defense, 0, Origin.LOADED)
    return built.seal(model, None)


def generators_of(defense: Node) -> list[Node]:
    """The generators among the parts of a defense, at any depth, each as a prior of its own."""
    nodes = (node for node in defense.within() if isinstance(node.target, type) and issubclass(node.target, Prior))
    return [replace(node, partial=False) for node in nodes]


def _without_memory(architecture: Node, defense: Node) -> nn.Module:
    """The network as deployed, in no memory; one that computes while it is built takes what it needs."""
    try:
        with torch.device("meta"):
            return deployed(architecture, defense)
    except RuntimeError:
        return deployed(architecture, defense)
