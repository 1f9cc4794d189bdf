"""Searches one after the other, each from where the one before it ended, and each showing the target views of its own
(DeepInversion begins with pictures of half the size; Yin et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.part import Part, Slots
from midefense.attacks.problem import Problem
from midefense.priors.base import Prior
from midefense.types import Found, Refused, Setting, refuse_unknown


def all_of(parts: Iterable[Part], what: str) -> tuple[str, ...]:
    """What these parts declare together: `reads`, `needs` or `wants`, each once."""
    return tuple(dict.fromkeys(name for part in parts for name in getattr(part, what)))


class Stage(Part):
    """One search of `Stages`.

    Args:
        search: the search; it yields a `Found` after every step.
        views: what the target is shown in it; None: what the attack's own `views` say.
    """

    def __init__(self, *, search: Part, views: Part | None = None):
        if views is not None and (instead := search.ignores.get("views")):
            raise Refused(
                f"attack.search.stages: expected no views of a stage whose search ({type(search).__name__}) {instead}, "
                f"got {type(views).__name__}; try null"
            )
        self.search, self.views = search, views
        self.parts = [part for part in (search, views) if part is not None]
        self.reads, self.needs = all_of(self.parts, "reads"), all_of(self.parts, "needs")
        self.wants, self.asks_decisions = search.wants, search.asks_decisions
        self.coupled = any(part.coupled for part in self.parts)
        self.separates, self.rolls = any(part.separates for part in self.parts), search.rolls


class Stages(Part):
    """Searches in turn. Each draws under its own name, so that one more stage leaves the draws of the others alone.

    Args:
        stages: by name, in order.
        keep: `last`, where the search ends; or, for losses of a whole batch, the batch after the step whose forward had
            the least mean loss: `best`, of the last stage, or `best_of_all`, as the authors' code, which compares
            losses of pictures of two sizes.
    """

    keeps = ("last", "best", "best_of_all")

    def __init__(self, *, stages: Mapping[str, Stage], keep: str = "last"):
        if not stages:
            raise Refused("attack.search.stages: expected one or more, got none; try attack/search=adam")
        if keep not in self.keeps:
            raise refuse_unknown("attack.search.keep", keep, self.keeps)
        self.stages, self.keep = dict(stages), keep
        members = self.stages.values()
        first, *later = self.stages
        if anew := [name for name in later if self.stages[name].search.begins_anew]:
            raise Refused(
                f"attack.search.stages.{anew[0]}: expected a search that goes on from where the one before it ended, "
                f"got {type(self.stages[anew[0]].search).__name__}, which takes of the starts their number alone; try "
                "it as the first"
            )
        self.begins_anew = self.stages[first].search.begins_anew
        if all(stage.views is not None or "views" in stage.search.ignores for stage in members):
            self.ignores = {"views": "has its own in every stage"}
        self.reads, self.needs = all_of(members, "reads"), all_of(members, "needs")
        self.wants, self.asks_decisions = all_of(members, "wants"), any(stage.asks_decisions for stage in members)
        self.coupled = any(stage.coupled for stage in members)
        self.separates = any(stage.separates for stage in members)
        self.rolls = all(stage.rolls for stage in members)

    def check_slots(self, slots: Slots, where: str = "attack") -> None:
        """Whatever the first search refuses, which has the starts of the init."""
        next(iter(self.stages.values())).search.check_slots(slots, where)

    @property
    def steps(self) -> int:
        """What all of them yield."""
        return sum(stage.search.steps for stage in self.stages.values())

    def check(self, setting: Setting) -> None:
        """Whatever a search, or its views, refuse."""
        for part in self._parts():
            part.check(setting)

    def check_prior(self, prior: Prior) -> None:
        """Whatever a search, or its views, refuse."""
        for part in self._parts():
            part.check_prior(prior)

    def _parts(self) -> Iterator[Part]:
        for stage in self.stages.values():
            yield from stage.parts

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields `optimised` after every step."""
        best = _Best()
        for name, stage in self.stages.items():
            views = problem.views if stage.views is None else stage.views
            own = replace(problem, rng=seeds.fork(problem.rng, f"stage {name}"), views=views)
            if self.keep == "best":
                best = _Best()
            for found in stage.search(own, found):  # noqa: B020 -- the next stage begins where this one ends
                yield found if self.keep == "last" else best.of(found)


class _Best:
    """The batch of least mean loss so far. Nothing waits for the device to compare."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None

    def of(self, found: Found) -> Found:
        """The best of what came before and `found`, with what is seen of `found`."""
        mean = found.loss.mean()
        if self.mean is None:  # clones: the search moves on in place
            self.mean, self.latents, self.loss = mean, found.latents.clone(), found.loss.clone()
        better = mean < self.mean
        self.mean = torch.where(better, mean, self.mean)
        self.latents = torch.where(better, found.latents, self.latents)
        self.loss = torch.where(better, found.loss, self.loss)
        return replace(found, latents=self.latents, loss=self.loss)
