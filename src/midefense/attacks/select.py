"""Which candidates an attack stands by. Only the target may be asked, never an evaluator."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.attacks.base import Part, Problem
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


def _at_least_one(keep: int) -> int:
    if keep < 1:
        raise Refused(f"attack.select.keep: expected at least 1 candidate per target, got {keep}")
    return keep
