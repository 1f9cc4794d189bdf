"""Which candidates an attack stands by. Only the target may be asked, never an evaluator."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.ranges import Count
from midefense.types import Found, Refused, Setting


class Everything(Part):
    """No selection: every candidate counts, in the order of the starts (the low-resolution benchmark's GMI)."""

    keep = None

    def __call__(self, problem: Problem, found: Found) -> Tensor:
        """The same score for all [M]."""
        return torch.zeros(len(found))


class LowestLoss(Part):
    """The candidates whose loss was lowest when the search last looked.

    Args:
        keep: candidates per target.
    """

    def __init__(self, *, keep: Count = 1):
        self.keep = _at_least_one(keep)

    def __call__(self, problem: Problem, found: Found) -> Tensor:
        """Minus the loss [M]."""
        return -found.loss


class TargetConfidence(Part):
    """The candidates the target is surest of, on average over views (PPA, section 4.3; GMI's best of five).

    Args:
        keep: candidates per target.
        views: what the target is shown; None shows the image itself.
        repeats: views per candidate (PPA: 100); without views one is enough.
        clip: ask about images cut to [0, 1], as they are saved; False asks about what the prior makes, as PPA's code
            does: a candidate may then owe its place to values that no picture has (scores move by up to .09). What is
            saved and judged is cut either way.
    """

    reads = ("probs",)
    later = {"clip": True}

    def __init__(self, *, keep: Count = 1, views: Part | None = None, repeats: Count = 1, clip: bool = True):
        self.keep = _at_least_one(keep)
        if repeats < 1 or (views is None and repeats > 1):
            raise Refused(
                f"attack.select.repeats: expected 1 without views and at least 1 with them, got {repeats}; "
                "set attack.select.views"
            )
        self.views, self.repeats, self.clip = views, repeats, clip
        if views is not None:
            self.reads = tuple(dict.fromkeys((*self.reads, *views.reads)))
            self.needs, self.coupled = views.needs, views.coupled

    def as_published(self) -> TargetConfidence:
        """The views as published, of images that are not cut; itself without views: only PPA asks so."""
        if self.views is None:
            return self
        return TargetConfidence(keep=self.keep, views=self.views.as_published(), repeats=self.repeats, clip=False)

    def check(self, setting: Setting) -> None:
        """Whatever the views refuse."""
        if self.views is not None:
            self.views.check(setting)

    @torch.no_grad()
    def __call__(self, problem: Problem, found: Found) -> Tensor:
        """Mean target confidence [M] in [0, 1]; asks `repeats` images per candidate."""
        labels = problem.evidence.labels[found.evidence]
        rng = problem.draw("select")
        # drawn for all candidates first, so that images need not be held for more of them than are shown at once
        draws = [None if self.views is None else self.views.draw(len(found), rng) for _ in range(self.repeats)]
        scores = torch.zeros(len(found))
        for rows in problem.chunks(len(found)):
            images = problem.images(found, rows, self.clip)
            ids, wanted = problem.evidence.ids[found.evidence[rows]], labels[rows, None].to(images.device)
            total = images.new_zeros(len(images))
            for drawn in draws:
                shown = images if self.views is None else self.views(images, drawn[rows].to(images.device))
                total += problem.oracle(shown, ids=ids, reads=("probs",)).probs.gather(1, wanted)[:, 0]
            scores[rows] = total.cpu()
        return scores / self.repeats


class MostAlike(Part):
    """The candidate whose runner-up labels most others share, and of these the one of the largest logit (MIRROR's final
    pick; An et al., NDSS 2022, by the authors' code).

    Of the candidates of a target whose first label is the one wanted (of all, where there is none), the largest set of
    two or more that have `shared` of the labels from the second to the fifth place in common; else with one label
    less, and at last everyone. Of several sets equally large, the one that holds the largest logit.

    Args:
        places: how many labels behind the first are compared.
        shared: labels in common.
    """

    reads = ("logits",)
    keep = 1

    def __init__(self, *, places: Count = 4, shared: Count = 2):
        if shared > places:
            raise Refused(f"attack.select.shared: expected at most the {places} places compared, got {shared}")
        self.places, self.shared = places, shared

    @torch.no_grad()
    def __call__(self, problem: Problem, found: Found) -> Tensor:
        """1 for the candidate chosen of each target, 0 for others [M]; asks about every candidate once."""
        labels, logits = problem.evidence.labels[found.evidence], []
        for rows in problem.chunks(len(found)):
            ids = problem.evidence.ids[found.evidence[rows]]
            logits.append(problem.oracle(problem.images(found, rows), ids=ids, reads=("logits",)).logits.cpu())
        told, scores = torch.cat(logits), torch.zeros(len(found))
        for target in found.evidence.unique():
            own = (found.evidence == target).nonzero()[:, 0]
            scores[own[self.choose(told[own], int(labels[own[0]]))]] = 1
        return scores

    def choose(self, logits: Tensor, label: int) -> int:
        """Which of the candidates [C, classes] of one target."""
        ranked = logits.argsort(dim=1, descending=True, stable=True)[:, : 1 + self.places].tolist()
        right = [row for row, labels in enumerate(ranked) if labels[0] == label]
        sure = logits[:, label].tolist()
        behind = {row: set(ranked[row][1:]) for row in right}
        for shared in range(self.shared, 0, -1):
            together: dict[tuple[int, ...], list[int]] = {}
            for row, labels in behind.items():
                for common in itertools.combinations(sorted(labels), shared):
                    together.setdefault(common, []).append(row)
            sets = [rows for rows in together.values() if len(rows) > 1]
            if sets:
                largest = max(map(len, sets))
                right = [row for rows in sets if len(rows) == largest for row in rows]
                break
        return max(right or range(len(sure)), key=sure.__getitem__)


def _at_least_one(keep: int) -> int:
    if keep < 1:
        raise Refused(f"attack.select.keep: expected at least 1 candidate per target, got {keep}")
    return keep
