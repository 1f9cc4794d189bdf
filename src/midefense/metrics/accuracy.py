"""Attack accuracy: does an independent evaluator see the target class in the recovered images?

Sources: Zhang et al., CVPR 2020 (GMI) and Struppek et al., ICML 2022 (PPA): share of images whose top-k evaluator
classes hold the target class, and the evaluator's mean softmax probability of it, over all images and over those that
it classifies correctly. Papers report selected candidates, PPA's code all of them too, IF-GMI (Qiu et al., ECCV 2024)
every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from midefense.metrics.base import Judged, Measured, Metric, World, over_classes, share_of_hits
from midefense.metrics.features import class_count, evaluator_names, judged_trace, require_names
from midefense.metrics.intervals import SHARE
from midefense.ranges import Count, Some
from midefense.types import Refused

NONE = -1  # the class that an evaluator saw where several tie


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """At which place, from 1, the class `labels` [M] stands among the `logits` [M, classes]. Classes that tie with it
    count as ahead of it: a constant evaluator recognises nothing."""
    return (logits >= logits.gather(1, labels[:, None])).sum(1)


def recognised(judged: Judged, world: World, batch_size: int) -> dict[str, Tensor]:
    """By evaluator, of which images [B] the class stands first, bool [B]; a tie counts against the attack."""
    labels = judged.labels.to(world.device)
    for name in evaluator_names(world):
        class_count(world, name)
    return {
        name: ranks(judged_trace(judged, world, name, batch_size).logits, labels) == 1
        for name in evaluator_names(world)
    }


def answers(logits: Tensor) -> Tensor:
    """The one class [M] that stands first among `logits` [M, classes]; `NONE` where several tie."""
    first = logits.argmax(1)
    tied = (logits >= logits.gather(1, first[:, None])).sum(1) > 1
    return first.masked_fill(tied, NONE)


class AttackAccuracy(Metric):
    """`attack_accuracy_top<k>/<evaluator>`, `target_class_confidence/<evaluator>` and
    `correct_class_confidence/<evaluator>` (of images whose top-1 is the target class), each in [0, 1].

    All classes of the evaluator compete, also those that are not private: what looks like a public digit is no leak.
    `target_class_confidence/target` is the attacked target's own confidence, where it was recorded: high there and low
    with the evaluators means that the attack fooled the target without recovering the class.

    A target that was never reached counts as failed in the accuracy; nobody's confidence in it is known.

    `stages`: patterns of the attack's other stages to measure too, as `attack_accuracy_top1@optimised/<evaluator>` and
    so on: `initial` (before the search), `optimised` (all candidates, before the selection), `stage*` (the stages of a
    staged search). A stage that the attack does not have is left out; the selected candidates bear no mark.

    What each evaluator saw in every image is kept beside the numbers (`drawings`), for a test of whether it is more
    than luck.
    """

    revision = 2
    higher_leaks = True
    unhashed = ("batch_size",)
    best = {"attack_accuracy_top1": 1.0, "attack_accuracy_top5": 1.0}

    def __init__(
        self,
        *,
        top: Annotated[Sequence[Count], Some()] = (1, 5),
        stages: Sequence[str] = ("initial", "optimised", "stage*"),
        batch_size: Count = 256,
    ) -> None:
        super().__init__()
        self.top = tuple(top)
        self.stages = tuple(stages)
        self.batch_size = batch_size
        if len(set(self.top)) < len(self.top):
            raise Refused(f"AttackAccuracy.top: expected distinct counts, got {list(top)}; try [1, 5]")

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        kept = {}
        labels = judged.labels.to(world.device)[:, None]
        for name in evaluator_names(world):
            class_count(world, name)
            logits = judged_trace(judged, world, name, self.batch_size).logits
            kept[f"rank/{name}"] = ranks(logits, labels[:, 0])
            kept[f"confidence/{name}"] = logits.softmax(1).gather(1, labels)[:, 0]
            kept[f"answer/{name}"] = answers(logits)
        unknown = judged.images.new_full((len(labels),), float("nan"))
        kept["confidence"] = unknown if judged.target_confidence is None else judged.target_confidence
        return kept

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse evaluators whose names stand for other networks."""
        require_names(evaluators)

    def reset(self) -> None:
        super().reset()
        self._answers: dict[str, Tensor] = {}

    def drawings(self) -> dict[str, Tensor]:
        """`answered` int64 [M], the class that each image was recovered for, and `answers.<evaluator>` int64 [M], the
        one class that the evaluator saw in it; `NONE` where several tie."""
        return self._answers

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        self._answers = {"answered": rows["label"].cpu()}
        self._answers |= {f"answers.{name}": rows[f"answer/{name}"].cpu() for name in evaluator_names(world)}
        measured = {}
        for name in evaluator_names(world):
            for top in self.top:
                measured[f"attack_accuracy_top{top}/{name}"] = self._accuracy(rows, world, name, top)
            confidence = rows[f"confidence/{name}"]
            measured[f"target_class_confidence/{name}"] = over_classes(confidence, rows["label"], True, SHARE)
            measured[f"correct_class_confidence/{name}"] = self._correct_confidence(rows, name)
        asked = rows["confidence"].isfinite()
        if asked.all():
            measured["target_class_confidence/target"] = over_classes(rows["confidence"], rows["label"], True, SHARE)
        elif asked.any():
            reason = f"the target was asked about {int(asked.sum())} of {len(asked)} images only"
            measured["target_class_confidence/target"] = Measured.undefined(reason, len(asked), higher_leaks=True)
        return measured

    def nothing(self, world: World) -> dict[str, Measured]:
        none = torch.zeros(0, dtype=torch.int64, device=world.device)
        rows = {"label": none, **{f"rank/{name}": none for name in evaluator_names(world)}}
        return {
            f"attack_accuracy_top{top}/{name}": self._accuracy(rows, world, name, top)
            for name in evaluator_names(world)
            for top in self.top
        }

    def chance(self, world: World) -> dict[str, float]:
        counts = {name: class_count(world, name) for name in evaluator_names(world)}
        return {
            f"attack_accuracy_top{top}/{name}": top / classes
            for name, classes in counts.items()
            for top in self.top
            if top < classes
        }

    def _accuracy(self, rows: dict[str, Tensor], world: World, name: str, top: int) -> Measured:
        classes = class_count(world, name)
        if top >= classes:
            reason = f"top-{top} of the {classes} classes of evaluator {name!r} is always right"
            return Measured.undefined(reason, len(rows["label"]), higher_leaks=True)
        return share_of_hits(rows[f"rank/{name}"] <= top, rows["label"], world)

    def _correct_confidence(self, rows: dict[str, Tensor], name: str) -> Measured:
        correct = rows[f"rank/{name}"] == 1
        if not correct.any():
            reason = f"evaluator {name!r} recognises none of the {len(correct)} images"
            return Measured.undefined(reason, len(correct), higher_leaks=True)
        return over_classes(rows[f"confidence/{name}"][correct], rows["label"][correct], True, SHARE)
