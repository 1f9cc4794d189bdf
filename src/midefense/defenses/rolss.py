"""Skip connections removed, or weakened, in the last stages of a network (RoLSS, SSF, TTS; Koh et al., ECCV 2024;
MI-RAD in MIDRE's comparison; card rolss.md): the gradient of an inversion goes around the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from torch import nn

from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense
from midefense.defenses.skips import BRANCHES, Skip, blocks_of, concatenates, is_resnet, narrow, scale
from midefense.ranges import NotNegative, Range, Some
from midefense.types import Images, Origin, Refused, refuse_unknown

FORMS = ("paper", "as_released")
Factors = Annotated[Sequence[NotNegative], Some()]
Part = Annotated[float, Range(0, 0.99)]


class RoLSS(Defense):
    """Multiplies what goes around the layers of a block by a factor: z' = g(z) + factor shortcut(z).

    Of a network whose blocks concatenate (DenseNet), each layer sees the first `factor` share of the channels of every
    output but the last, so that its layers become narrower.

    Args:
        factors: one for each of the last stages that have skip connections; stages in front of these keep theirs. 0
            removes them (RoLSS), a fraction weakens (SSF; the authors' is 0.2, and 0.01 where blocks concatenate).
        branches: of a transformer's layers: `all`, or the skips around `attention` or `mlp` alone.
        full_until: share of the epochs that are trained with all skips first (TTS; the authors' is 0.05). The optimiser
            keeps its state. Weights should then be the last, not the best of an epoch that may have been before.
        form: `as_released` takes the skips of the last fifth of a ResNet's third stage away too, whatever its factor,
            as the authors' code does, to networks without a defense as well.
    """

    revision = 1
    neutral: ClassVar[dict[str, object]] = {"factors": [1.0]}

    def __init__(self, *, factors: Factors, branches: str = "all", full_until: Part = 0.0, form: str = "paper") -> None:
        super().__init__()
        for name, value, choices in (("branches", branches, BRANCHES), ("form", form, FORMS)):
            if value not in choices:
                raise refuse_unknown(f"defense.{name}", value, choices)
        self.factors, self.branches, self.full_until, self.form = tuple(factors), branches, full_until, form
        self.weakened: list[tuple[Skip, float]] = []  # a list, as they are a part of the network and not of the defense

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Change the blocks of the last stages. Raises `Refused` for a network with too few stages of such blocks."""
        if self.form == "paper" and all(factor == 1 for factor in self.factors):
            return model
        stages = {name: found for name, stage in model.stages.items() if (found := blocks_of(stage))}
        if len(stages) < len(self.factors):
            has = f"one with {len(stages)} ({', '.join(stages)})" if stages else "one without"
            raise Refused(
                f"defense.factors: expected a network with {len(self.factors)} or more stages of skip connections "
                f"known here (of ResNets, DenseNets, IR and vision transformers), got {has}; try fewer factors, or "
                "another architecture"
            )
        names = list(stages)[-len(self.factors) :]
        changed = {name: factor for name, factor in zip(names, self.factors, strict=True) if factor != 1}
        if any(concatenates(block) for name in changed for block in stages[name]):
            self._narrow(model, changed, origin)
        else:
            for name, factor in changed.items():
                self._weaken(stages[name], factor)
        if self.form == "as_released":
            self._release(list(stages.values()))
        return model

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        """All skips are whole in the first epochs, if so asked."""
        if not (self.full_until and self.weakened):
            return {}
        whole = epoch < min(round(self.full_until * epochs), epochs - 1)
        for skip, factor in self.weakened:
            skip.factor = 1.0 if whole else factor
        return {"full_skips": float(whole)}

    def seal(self, model: nn.Module, public: Images | None = None) -> nn.Module:
        """The network is deployed with its factors, whenever training ended."""
        for skip, factor in self.weakened:
            skip.factor = factor
        return super().seal(model, public)

    def _weaken(self, blocks: Sequence[nn.Module], factor: float) -> None:
        """Give the skips of blocks a factor. What is whole at first keeps its projections: names of a network's tensors
        are the same from the first epoch to the last."""
        for block in blocks:
            for skip in scale(block, factor, self.branches, keep=bool(self.full_until)):
                self.weakened.append((skip, factor))

    def _release(self, stages: Sequence[Sequence[nn.Module]]) -> None:
        """The authors' code, whose third stage ends without skips."""
        if len(stages) != 4 or not is_resnet(stages[2][0]):
            raise Refused("defense.form: expected a ResNet of four stages for as_released, got another; try form=paper")
        for block in stages[2][max(1, int(0.8 * len(stages[2]))) :]:
            for _ in scale(block, 0.0, self.branches, keep=False):
                pass

    def _narrow(self, model: Classifier, factors: Mapping[str, float], origin: Origin) -> None:
        if max(factors.values()) > 1 or self.full_until or origin is Origin.STARTED:
            raise Refused(
                "defense.factors: expected, of a network that concatenates (DenseNet), factors up to 1, full_until=0 "
                f"and drawn weights, as its layers become narrower; got {list(factors.values())}, "
                f"full_until={self.full_until} and {origin.value} weights; try architecture.pretrained=false"
            )
        narrow(model, factors)
