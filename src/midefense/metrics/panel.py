"""A panel: several evaluators of other families, trainings and preprocessings, of whom the strictest counts.

An evaluator that shares habits with the target is fooled together with it, and nothing in its own number says so.
Others that share less recognise less, and where they disagree, at least one of them is wrong. Ours; that results hang
on which evaluator is asked is shown by Ho et al. ("Uncovering the limitations of model inversion evaluation", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from midefense.metrics.accuracy import recognised
from midefense.metrics.agreement import fleiss_kappa
from midefense.metrics.base import Judged, Measured, Metric, World, over_classes, share_of_hits
from midefense.metrics.features import class_count, evaluator_names, require_names
from midefense.metrics.intervals import SHARE, TAIL, jackknife_interval, mean_interval
from midefense.metrics.net_of_fooling import with_failures
from midefense.ranges import Count
from midefense.types import Refused

PANEL = "panel"  # behind the slash of its numbers, where the name of an evaluator stands otherwise


class Panel(Metric):
    """What all evaluators of a row say together; two of them at least. Recognised is an image whose top-1 is right.

    - `panel_accuracy_strictest/panel`: the accuracy of the evaluator that recognises least, in [0, 1]. Its interval
      allows for the choice among them: below the least of their lower bounds (each 2.5 %) the truth lies no more often,
      above the least of their upper bounds, of 2.5 % / evaluators each, no more often either (Bonferroni);
    - `panel_accuracy_every/panel` and `panel_accuracy_any/panel`: the share of images that every one of them, and that
      at least one of them, recognises;
    - `panel_agreement/panel`: the share of images about which all say the same, and `panel_kappa/panel`, Fleiss' kappa:
      how far they agree beyond what their shares of recognised images would give; 1 at most, NaN where all recognise
      everything or nothing.
    """

    higher_leaks = True
    unhashed = ("batch_size",)

    def __init__(self, *, batch_size: Count = 256) -> None:
        super().__init__()
        self.batch_size = batch_size

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse a panel of one, and an evaluator that is called as the panel is."""
        require_names(evaluators)
        if PANEL in evaluators:
            raise Refused(f"evaluators: expected names other than {PANEL}, which is all of them, got it; try main")
        if len(evaluators) < 2:
            raise Refused(
                f"metrics.panel: expected two evaluators or more, got {', '.join(evaluators) or 'none'}; try "
                "metrics=panel, which brings two more, or +evaluator@evaluators.second=resnet18"
            )

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {f"hit/{name}": hits for name, hits in recognised(judged, world, self.batch_size).items()}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        hits = {name: rows[f"hit/{name}"] for name in evaluator_names(world)}
        together, labels = torch.stack(list(hits.values()), 1), rows["label"]
        alike = together.all(1) | ~together.any(1)
        return {
            f"panel_accuracy_strictest/{PANEL}": strictest(hits, labels, world),
            f"panel_accuracy_every/{PANEL}": share_of_hits(together.all(1), labels, world),
            f"panel_accuracy_any/{PANEL}": share_of_hits(together.any(1), labels, world),
            f"panel_agreement/{PANEL}": over_classes(alike, labels, None, SHARE),
            f"panel_kappa/{PANEL}": kappa(together, labels),
        }

    def nothing(self, world: World) -> dict[str, Measured]:
        none = torch.zeros(0, dtype=torch.int64, device=world.device)
        hits = {name: none.bool() for name in evaluator_names(world)}
        return {
            f"panel_accuracy_strictest/{PANEL}": strictest(hits, none, world),
            f"panel_accuracy_every/{PANEL}": share_of_hits(none.bool(), none, world),
            f"panel_accuracy_any/{PANEL}": share_of_hits(none.bool(), none, world),
        }

    def chance(self, world: World) -> dict[str, float]:
        """The strictest of guessers; guessers who guess apart from each other say nothing of the other shares."""
        return {
            f"panel_accuracy_strictest/{PANEL}": min(1 / class_count(world, name) for name in evaluator_names(world))
        }


def strictest(hits: Mapping[str, Tensor], labels: Tensor, world: World) -> Measured:
    """The least share of hits bool [M] by evaluator, of images of classes int64 [M]; says whose it is."""
    found, sums = {}, {}
    for name, own in hits.items():
        found[name] = share_of_hits(own, labels, world)
        sums[name] = _per_class(*with_failures(own, labels, world.unreached, world.each))
    name = min(found, key=lambda one: found[one].value)
    least = found[name]
    lows = [number.low for number in found.values() if number.low is not None]
    highs = [mean_interval(*counted, SHARE, TAIL / len(hits)).high for counted in sums.values()]
    if lows:
        least.low, least.high = min(lows), min(high for high in highs if high is not None)
    least.reason = "; ".join(filter(None, (f"the strictest is {name}", least.reason)))
    return least


def kappa(together: Tensor, labels: Tensor) -> Measured:
    """Fleiss' kappa of evaluators who recognise or do not, bool [M, evaluators], with its interval over classes."""
    named = together.sum(1).cpu().numpy()
    counts = np.stack([named, together.shape[1] - named], 1)
    value = fleiss_kappa(counts)
    if math.isnan(value):
        said = "everything" if named.all() else "nothing"
        return Measured.undefined(f"all evaluators recognise {said}: nothing to agree about", len(counts))
    owner = labels.cpu().numpy()
    without = np.array([fleiss_kappa(counts[owner != label]) for label in np.unique(owner)])
    return Measured(value=value, n=len(counts)).within(jackknife_interval(value, without))


def _per_class(hits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How many images of every class are hits, and how many there are, [C] each."""
    _, owner, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    return np.bincount(owner, weights=hits.double().cpu().numpy(), minlength=len(counts)), counts
