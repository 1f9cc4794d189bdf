"""Attack accuracy as the low-resolution benchmark reports it: over restarts or draws, and of the best by the target.

Source: Zhang et al., CVPR 2020 (GMI) keep of five restarts the one that the target is surest of; Chen et al., ICCV 2021
(KED-MI) and those who follow average over five restarts, or five draws, and tell their spread (card
low_res_benchmark.md, section 5). The two are different numbers: the target's choice makes the first larger.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from midefense.metrics.accuracy import recognised
from midefense.metrics.base import Judged, Measured, Metric, World, share_of_hits
from midefense.metrics.features import class_count, evaluator_names, require_names
from midefense.ranges import Count


class RestartAccuracy(Metric):
    """Top-1 of the selected candidates, and of all before the selection (`...@optimised/<evaluator>`), by restart: a
    target's first candidate, its second, and so on, in the order of the attack's starts or draws. Where an attack
    selects, the headline's order is that of the selection: its restarts are then those of `@optimised`.

    - `restart_accuracy/<evaluator>`: the mean over restarts of the accuracy over targets;
    - `restart_accuracy_std/<evaluator>`: the sample deviation (n - 1) of those accuracies, no interval of the mean;
    - `best_of_restarts_accuracy/<evaluator>`: of each target the one candidate that the target is surest of (of equals
      the first). The evaluator has no say in the choice.

    A target is a class, or the private image where the evidence was one. NaN with fewer than two restarts, where
    targets have unequal numbers of them (a budget ran out), and without the target's own confidence.
    """

    higher_leaks = True
    stages = ("optimised",)
    unhashed = ("batch_size",)
    best = {"restart_accuracy": 1.0, "best_of_restarts_accuracy": 1.0}

    def __init__(self, *, batch_size: Count = 256) -> None:
        super().__init__()
        self.batch_size = batch_size

    def check(self, evaluators: list[str]) -> None:
        """Refuse evaluators whose names stand for other networks."""
        require_names(evaluators)

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        unknown = judged.images.new_full((len(judged.labels),), math.nan)
        kept = {
            "owner": judged.labels if judged.ids is None else judged.ids,
            "confidence": unknown if judged.target_confidence is None else judged.target_confidence,
        }
        hits = recognised(judged, world, self.batch_size)
        return kept | {f"hit/{name}": own for name, own in hits.items()}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        measured, confidence = {}, rows["confidence"]
        order = torch.argsort(rows["owner"], stable=True)  # keeps a target's candidates in their order
        counts = rows["owner"].unique(return_counts=True)[1]
        restarts = int(counts[0]) if (counts == counts[0]).all() else 0
        for name in evaluator_names(world):
            hits, labels = rows[f"hit/{name}"][order], rows["label"][order]
            measured |= {
                f"{number}/{name}": value
                for number, value in _over_restarts(hits, labels, counts, restarts, world).items()
            }
            best = _surest(confidence[order], counts)
            measured[f"best_of_restarts_accuracy/{name}"] = (
                share_of_hits(hits[best], labels[best], world, each=1)
                if confidence.isfinite().all()
                else Measured.undefined("the target was not asked how sure it is", len(hits), True)
            )
        return measured

    def chance(self, world: World) -> dict[str, float]:
        return {f"restart_accuracy/{name}": 1 / class_count(world, name) for name in evaluator_names(world)}


def _over_restarts(hits: Tensor, labels: Tensor, counts: Tensor, restarts: int, world: World) -> dict[str, Measured]:
    """Mean and deviation of hits [M], target by target with `counts` candidates each."""
    if restarts < 2:
        reason = f"from {int(counts.min())} to {int(counts.max())} candidates per target: expected two or more of each"
        lost = Measured.undefined(reason, len(hits), higher_leaks=True)
        return {"restart_accuracy": lost, "restart_accuracy_std": Measured.undefined(reason, len(hits))}
    targets = len(counts) + (0 if world.unreached is None else len(world.unreached))
    each = hits.double().view(-1, restarts).sum(0) / targets
    return {
        "restart_accuracy": share_of_hits(hits, labels, world, each=restarts),
        "restart_accuracy_std": Measured(value=float(each.std()), n=restarts),
    }


def _surest(confidence: Tensor, counts: Tensor) -> Tensor:
    """Rows int64 [targets] of the highest confidence [M] of each target, the first among equals."""
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return torch.tensor(
        [start + int(confidence[start:end].argmax()) for start, end in zip(starts, ends, strict=True)],
        device=confidence.device,
    )
