"""What an attacker makes of what was observed before anything else (attack A4 of the ladder, `base.RUNGS`): a defense
at release may leave traces that no picture could have left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.attacks.base import best_of_each
from midefense.attacks.matching import FeatureMatch, nothing_observed, require_observed
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.attacks.slots import require_together
from midefense.ranges import Share
from midefense.types import Refused, Setting


class Clamp(Part):
    """Nothing below `low`: features behind a ReLU have no negative numbers, those of Crafter do (card crafter.md,
    gotcha 13).

    Args:
        low: the lowest number.
    """

    def __init__(self, *, low: float = 0.0):
        self.low = low

    def check(self, setting: Setting) -> None:
        """Refuses evidence of which nothing is observed."""
        require_observed(type(self).__name__, setting)

    def __call__(self, problem: Problem) -> Tensor:
        """What was observed [N, ...]."""
        return _observed(self, problem).clamp(min=self.low)


class Smooth(Part):
    """Every number of a feature map drawn towards the mean of the 3x3 around it: noise that is drawn for each number
    averages out, what neighbours share stays. What is no map is left as it is.

    Args:
        weight: of the mean; 0 changes nothing.
    """

    def __init__(self, *, weight: Share = 0.5):
        self.weight = weight

    def check(self, setting: Setting) -> None:
        """Refuses evidence of which nothing is observed."""
        require_observed(type(self).__name__, setting)

    def __call__(self, problem: Problem) -> Tensor:
        """What was observed [N, ...]."""
        observed = _observed(self, problem)
        if observed.ndim != 4:
            return observed
        means = F.avg_pool2d(observed, 3, stride=1, padding=1, count_include_pad=False)
        return torch.lerp(observed, means, self.weight)


class OntoManifold(Part):
    """The nearest features that an image of the prior has, Enc(G(z)): what no such image could release is left behind.

    Args:
        init, search: parts of an attack, which look for z.
        distance: see `FeatureMatch`.
    """

    reads = ("features", "gradient")

    def __init__(self, *, init: Part, search: Part, distance: str = "l2"):
        if hasattr(init, "prepare"):
            raise Refused(
                f"attack.purify.init: expected one that prepares nothing, got {type(init).__name__}; "
                "try attack/init@attack.purify.init=random"
            )
        self.init, self.search, self.objective = init, search, FeatureMatch(distance=distance)
        slots = {"init": init, "search": search, "objective": self.objective}
        require_together(slots, "attack.purify")
        self.needs = tuple(dict.fromkeys((*init.needs, *search.needs)))
        self.reads = tuple(dict.fromkeys((*type(self).reads, *init.reads, *search.reads)))
        self.separates = search.separates

    def check(self, setting: Setting) -> None:
        """Whatever its parts refuse."""
        for part in (self.init, self.search, self.objective):
            part.check(setting)

    def __call__(self, problem: Problem) -> Tensor:
        """The features [N, ...] of the best image found for each target, whose questions are charged to it."""
        _observed(self, problem)
        rng = problem.draw("purify")
        inner = replace(problem, objective=self.objective, reads=("features",), views=None, rng=rng)
        found = self.init(inner)
        for step in self.search(inner, found):
            found = step
        best = best_of_each(found, -found.loss, keep=1)
        with torch.no_grad():
            looks = [inner.look(best.latents[rows], best.evidence[rows]) for rows in inner.chunks(len(best))]
        return torch.cat([look.answer.features for look in looks])


class Chain(Part):
    """Several, each on what the one before it made.

    Args:
        members: name to part, in order.
    """

    def __init__(self, *, members: Mapping[str, Part]):
        if not members:
            raise Refused("attack.purify.members: expected one or more, got none; try attack.purify=null")
        self.members = dict(members)
        self.needs = tuple(dict.fromkeys(need for part in self.members.values() for need in part.needs))
        self.reads = tuple(dict.fromkeys(read for part in self.members.values() for read in part.reads))
        self.separates = any(part.separates for part in self.members.values())

    def check(self, setting: Setting) -> None:
        """Whatever a member refuses."""
        for part in self.members.values():
            part.check(setting)

    def __call__(self, problem: Problem) -> Tensor:
        """What was observed [N, ...], as the last member leaves it."""
        for part in self.members.values():
            problem = replace(problem, evidence=replace(problem.evidence, observed=part(problem)))
        return _observed(self, problem)


def _observed(part: Part, problem: Problem) -> Tensor:
    if problem.observed is None:
        raise nothing_observed(type(part).__name__)
    return problem.observed
