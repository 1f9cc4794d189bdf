"""Leakage net of fooling: what an attack recovers beyond what evaluators see where there was nothing to recover.

The same attack, with the same budget, prior and seeds, is run on a placebo: a target trained like the real one that
was never told who is who (`datasets.placebos`). Ours; that evaluators count false positives by the dozen is the finding
of Ho et al. ("Uncovering the limitations of model inversion evaluation", 2025), who had people look.

The floor cannot exceed chance in expectation. Whose number a placebo's output bears is drawn, so that what was
recovered for it is taken for that one of K private identities no more often than for another: 1 / K at most, whatever
habits the evaluator has; less where it sees public people, 1 / N where it guesses among all N that it knows. One that
names the same person whatever it is shown is right for that person alone, on the real target as well. So this is what
the number is worth: an estimate, by the same attack and budget, of what is recognised where the target cannot know,
with its spread over identities. One that lies clearly above 1 / K tells of a mistake (a prior or a start that knows the
identities by their numbers), not of fooling. The labels are dealt once per dataset: other seeds do not deal anew.

What fools stays in the difference: features that the real target and the evaluator share, and no person sees, steer an
attack on the real target alone. Those are what `robust` and `panel` are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from midefense.datasets.placebos import PERMUTED, PLACEBOS
from midefense.metrics.accuracy import recognised
from midefense.metrics.base import Judged, Measured, Metric, Placebo, World, over_classes
from midefense.metrics.features import class_count, evaluator_names, require_names
from midefense.metrics.intervals import SHARE, Span, mean_interval
from midefense.ranges import Count
from midefense.types import refuse_unknown

DIFFERENCE: Span = (-1.0, 1.0)


class NetOfFooling(Metric):
    """`leakage_net_of_fooling/<evaluator>`: top-1 accuracy on the real target less that on the placebo, in [-1, 1], and
    `placebo_accuracy/<evaluator>`, the floor itself, in [0, 1]: an estimate of a number that is 1 / K at most.

    Both attacks ask for the same identities, so that each is its own pair: the interval is that of the mean over
    identities of a difference between -1 and 1 (`intervals`), which holds the truth however identities differ. A
    difference below 0 is reported as it is. A target that was never reached counts as failed on either side.

    Args:
        placebo: what the placebo learns from: `permuted` or `left_out`.
    """

    higher_leaks = True
    wants_placebo = True
    unhashed = ("batch_size",)

    def __init__(self, *, placebo: str = PERMUTED, batch_size: Count = 256) -> None:
        super().__init__()
        if placebo not in PLACEBOS:
            raise refuse_unknown("NetOfFooling.placebo", placebo, PLACEBOS)
        self.placebo = placebo
        self.batch_size = batch_size

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse evaluators whose names stand for other networks."""
        require_names(evaluators)

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {f"hit/{name}": hits for name, hits in recognised(judged, world, self.batch_size).items()}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        return {
            name: number
            for evaluator in evaluator_names(world)
            for name, number in self._numbers(evaluator, rows[f"hit/{evaluator}"], rows["label"], world).items()
        }

    def nothing(self, world: World) -> dict[str, Measured]:
        none = torch.zeros(0, dtype=torch.int64, device=world.device)
        rows = {f"hit/{name}": none.bool() for name in evaluator_names(world)}
        return self.measure({"label": none, **rows}, world)

    def chance(self, world: World) -> dict[str, float]:
        names = evaluator_names(world)
        floors = {f"placebo_accuracy/{name}": 1 / class_count(world, name) for name in names}
        return floors | {f"leakage_net_of_fooling/{name}": 0.0 for name in names}

    def _numbers(self, name: str, hits: Tensor, labels: Tensor, world: World) -> dict[str, Measured]:
        stems = (f"leakage_net_of_fooling/{name}", f"placebo_accuracy/{name}")
        if world.placebo is None:
            reason = "no placebo was attacked"
            return {stem: Measured.undefined(reason, len(labels), higher_leaks=True) for stem in stems}
        floor, floor_labels = self._floor(name, world.placebo, world)
        hits, labels = with_failures(hits, labels, world.unreached, world.each)
        both = paired_difference(hits, labels, floor, floor_labels)
        alone = over_classes(floor, floor_labels, None, SHARE)
        return dict(zip(stems, (both, alone), strict=True))

    def _floor(self, name: str, placebo: Placebo, world: World) -> tuple[Tensor, Tensor]:
        """What an evaluator recognises of the placebo, bool [P], and for which identities it was recovered, int64 [P]:
        asked once per world, whatever it is subtracted from."""
        key = ("placebo", name)
        if key not in world.cache:
            none = torch.zeros(0, dtype=torch.int64, device=world.device)
            hits, labels = {f"hit/{one}": [none.bool()] for one in evaluator_names(world)}, [none]
            for judged in placebo.batches():
                labels.append(judged.labels.to(world.device))
                for one, found in self.rows(judged, world).items():
                    hits[one].append(found)
            for one in evaluator_names(world):
                found = torch.cat(hits[f"hit/{one}"]), torch.cat(labels)
                world.cache["placebo", one] = with_failures(*found, placebo.unreached, placebo.each)
        return world.cache[key]


def with_failures(hits: Tensor, labels: Tensor, unreached: Tensor | None, each: int) -> tuple[Tensor, Tensor]:
    """Hits bool [M] and their labels [M] with `each` failures of every target that was never reached [U]."""
    if unreached is None or not len(unreached):
        return hits, labels
    lost = unreached.to(labels.device).repeat_interleave(each)
    return torch.cat([hits, hits.new_zeros(len(lost))]), torch.cat([labels, lost])


def paired_difference(hits: Tensor, labels: Tensor, floor: Tensor, floor_labels: Tensor) -> Measured:
    """The share of `hits` bool [M] less that of `floor` bool [P], identity by identity (labels int64 [M] and [P]), the
    identities weighed as they are in `hits`; with its interval over them.

    NaN where an identity of `hits` has nothing on the floor.
    """
    classes, owner, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    lacking = sorted(set(classes.tolist()) - set(floor_labels.tolist()))
    if lacking:
        reason = f"nothing was recovered from the placebo for classes {lacking}"
        return Measured.undefined(reason, len(labels), higher_leaks=True)
    sums = np.bincount(owner, weights=hits.double().cpu().numpy())
    place = np.searchsorted(classes, floor_labels.cpu().numpy()).clip(max=len(classes) - 1)
    known = classes[place] == floor_labels.cpu().numpy()  # a split may leave an identity with no real image to test on
    below = np.bincount(place[known], weights=floor.double().cpu().numpy()[known], minlength=len(classes))
    below /= np.bincount(place[known], minlength=len(classes))
    differences = sums / counts - below
    measured = Measured(
        value=float((differences * counts).sum() / counts.sum()),
        n=len(labels),
        per_class={int(label): float(value) for label, value in zip(classes, differences, strict=True)},
        higher_leaks=True,
    )
    return measured.within(mean_interval(differences * counts, counts, DIFFERENCE))
