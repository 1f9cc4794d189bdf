"""Transfer learning as a defense (TL-DMI; Ho et al., CVPR 2024; card tl_dmi.md): the early layers keep what they
learned from public images, and private ones teach the late layers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense
from midefense.ranges import Share
from midefense.types import Origin, Refused, refuse_unknown

MODES = ("eval", "train")


class TransferLearning(Defense):
    """Freezes the front of a network that begins with the weights of another (`recipe.start`, or published ones that
    the architecture reads). The head, and all that is not frozen, is trained as ever.

    Frozen are the layers, in the order of the stages, up to and including what `upto` names, or the first `ratio` of
    all of them. A layer is a module that has none inside, be it without weights; the head is the last.

    Args:
        upto: a stage, or a module within one (`block4.2`); None goes by `ratio`.
        ratio: share of the layers (MIBench: 0.5); 0 freezes none, and is no defense.
        frozen_bn: whether batch norms in front answer by the statistics they came with (`eval`), or by those of the
            batch, and go on gathering private ones (`train`, the authors' code).
    """

    revision = 1
    neutral: ClassVar[dict[str, object]] = {"upto": None, "ratio": 0.0}

    def __init__(self, *, upto: str | None, ratio: Share | None, frozen_bn: str = "eval") -> None:
        super().__init__()
        if (upto is None) == (ratio is None):
            raise Refused(
                f"defense.upto, defense.ratio: expected one of them, got {upto} and {ratio}; try "
                "defense.upto=STAGE defense.ratio=null"
            )
        if frozen_bn not in MODES:
            raise refuse_unknown("defense.frozen_bn", frozen_bn, MODES)
        self.upto, self.ratio, self.frozen_bn = upto, ratio, frozen_bn
        self.needs_start = bool(upto or ratio)
        self.frozen: list[nn.Module] = []  # a list, as they are a part of the network and not of the defense

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Freeze the front, where training follows. Raises `Refused` for layers that were drawn, or an unknown name."""
        frozen = self.front(model)
        if origin is Origin.LOADED or not self.needs_start:
            return model
        if origin is Origin.DRAWN:
            raise Refused(
                "defense: expected a network that begins with weights worth keeping, got one whose frozen layers would "
                "stay as they were drawn; try recipe.start=TARGET, or published weights of the architecture"
            )
        for module in model.modules():
            if all(layer in frozen for layer in layers_in(module)):  # parameters beside other modules go with these
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
        self.frozen = frozen
        return model

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        """Training mode reached the frozen batch norms too: they are put back."""
        if self.frozen_bn == "eval":
            for layer in self.frozen:
                if isinstance(layer, _BatchNorm):
                    layer.eval()
        return {}

    def front(self, model: Classifier) -> list[nn.Module]:
        """The layers to freeze, in order, never the head. Raises `Refused` if `upto` names no module of the stages."""
        layers = list(layers_in(model.stages))
        if self.upto is None:
            counted = len(layers) + 1  # with the head
            return layers[: math.ceil(self.ratio * counted)]
        modules = dict(model.stages.named_modules())
        if self.upto not in modules or not self.upto:
            raise refuse_unknown("defense.upto", self.upto, model.tap_names, "Or name a module within a stage.")
        last = list(layers_in(modules[self.upto]))[-1]
        return layers[: layers.index(last) + 1]


def layers_in(module: nn.Module) -> Iterator[nn.Module]:
    """The layers within a module, in order: those that have no others inside, itself if it has none."""
    return (inner for inner in module.modules() if not any(True for _ in inner.children()))
