"""Robust recognition: is the person still seen when the picture is changed a little?

A reconstruction that shows the person is recognised in a crop, out of focus and under noise, as a photograph is; what
only fools the evaluator is not (Ho et al., "Uncovering the limitations of model inversion evaluation", 2025, find that
much of what evaluators count is of that kind). Real private images under the same changes, which every row has as its
anchor, say how much of the loss the changes themselves cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from midefense import seeds
from midefense.metrics.accuracy import ranks, recognised
from midefense.metrics.base import Judged, Measured, Metric, World, over_classes, share_of_hits
from midefense.metrics.disturbing import CHANGES, EVERYWHERE, Draws
from midefense.metrics.features import (
    ask,
    batch_rows,
    class_count,
    evaluator_names,
    network,
    require_names,
    shown_to,
)
from midefense.metrics.intervals import SHARE
from midefense.ranges import Count, Some
from midefense.types import Refused, refuse_unknown

AS_IT_IS = "as it is"


class RobustAccuracy(Metric):
    """Top-1 recognition of the target class under small changes (`disturbing.CHANGES`), per evaluator, in [0, 1]:

    - `robust_accuracy/<evaluator>`: the mean over images and changes, all changes alike in weight;
    - `robust_accuracy_<change>/<evaluator>`: under one of them;
    - `robust_accuracy_always/<evaluator>`: the share of images recognised as they are and under every change and draw;
    - `recognition_lost/<evaluator>`: of the images recognised as they are, the share of recognitions that a change
      takes away; lower leaks more, NaN where none is recognised.

    A drawn change is looked at under `draws` draws, each a function of the change, the class, the candidate and the
    number of the draw. A tie of logits counts against the attack.
    """

    higher_leaks = True
    unhashed = ("batch_size",)

    def __init__(
        self,
        *,
        changes: Annotated[Sequence[str], Some()] = EVERYWHERE,
        draws: Count = 4,
        batch_size: Count = 256,
    ) -> None:
        super().__init__()
        for name in changes:
            if name not in CHANGES:
                raise refuse_unknown("RobustAccuracy.changes", name, CHANGES)
        if len(set(changes)) < len(changes):
            raise Refused(f"RobustAccuracy.changes: expected distinct names, got {list(changes)}")
        self.changes = tuple(changes)
        self.draws = draws
        self.batch_size = batch_size

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse evaluators whose names stand for other networks."""
        require_names(evaluators)

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        kept = {}
        for name, hits in recognised(judged, world, self.batch_size).items():
            kept[f"{AS_IT_IS}/{name}"] = hits
            for change in self.changes:
                kept[f"{change}/{name}"] = self._hits(judged, world, name, change)
        return kept

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        measured = {}
        for name in evaluator_names(world):
            hits = {change: rows[f"{change}/{name}"] for change in self.changes}
            measured |= self._numbers(name, rows[f"{AS_IT_IS}/{name}"], hits, rows["label"], world)
        return measured

    def nothing(self, world: World) -> dict[str, Measured]:
        none = torch.zeros(0, dtype=torch.int64, device=world.device)
        numbers = {}
        for name in evaluator_names(world):
            numbers |= self._numbers(name, none.bool(), dict.fromkeys(self.changes, none.bool()[:, None]), none, world)
        return numbers

    def chance(self, world: World) -> dict[str, float]:
        stems = ("robust_accuracy", *(f"robust_accuracy_{change}" for change in self.changes))
        return {f"{stem}/{name}": 1 / class_count(world, name) for name in evaluator_names(world) for stem in stems}

    def _hits(self, judged: Judged, world: World, name: str, change: str) -> Tensor:
        """Whether evaluator `name` recognises every image under every draw of a change, bool [M, draws]."""
        module, images = network(world, name), shown_to(judged, world, name)
        labels, candidates = judged.labels.to(world.device), judged.candidates.to(world.device)
        rows = batch_rows(self.batch_size, images.shape[-1], module)
        looks = []
        for draw in range(self.draws if CHANGES[change].drawn else 1):
            seed = seeds.derive("evaluate", "robust recognition", change, draw)
            batches = (
                CHANGES[change](images[part].to(world.device).float(), Draws(seed, (labels[part], candidates[part])))
                for part in torch.arange(len(labels), device=images.device).split(rows)
            )
            looks.append(ranks(ask(module, batches, name).logits, labels) == 1)
        return torch.stack(looks, 1)

    def _numbers(
        self, name: str, plain: Tensor, hits: dict[str, Tensor], labels: Tensor, world: World
    ) -> dict[str, Measured]:
        """All numbers of one evaluator, from what it recognises as it is, bool [M], and under every change."""
        shares = {change: found.double().mean(1) for change, found in hits.items()}
        mean = torch.stack(list(shares.values()), 1).mean(1)
        always = torch.cat([plain[:, None], *hits.values()], 1).all(1)
        numbers = {
            f"robust_accuracy/{name}": share_of_hits(mean, labels, world),
            **{f"robust_accuracy_{change}/{name}": share_of_hits(s, labels, world) for change, s in shares.items()},
            f"robust_accuracy_always/{name}": share_of_hits(always, labels, world),
        }
        lost = f"recognition_lost/{name}"
        if plain.any():
            numbers[lost] = over_classes(1 - mean[plain], labels[plain], False, SHARE)
        else:
            reason = f"evaluator {name!r} recognises none of the {len(plain)} images"
            numbers[lost] = Measured.undefined(reason, len(plain), higher_leaks=False)
        return numbers
