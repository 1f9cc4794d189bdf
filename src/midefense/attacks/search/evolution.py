"""Differential evolution of latents by what the target says of their images (C2FMI's fine stage; Ye et al., TDSC 2023;
card c2f_mi.md, section 4). It takes no gradient, and every image asked about is charged."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from midefense.attacks.init import of_the_targets, sampled_as_points
from midefense.attacks.part import Part, Slots
from midefense.attacks.problem import Problem, seen
from midefense.attacks.search.populations import held_back, taken
from midefense.attacks.slots import require_starts
from midefense.priors.base import Prior
from midefense.ranges import Count, Draws, NotNegative, Share, Whole
from midefense.types import Found, Refused, refuse_unknown

FILLERS = ("draws", "noise")
COMPARISONS = ("raw", "shares")
OF_THREE = (0.25, 0.25, 0.5)  # weights of three members in one that fills a population
FRESH = 0.3  # weight of what is fresh in it


class Evolution(Part):
    """A population of each target is bred on its own, all targets at once: a child goes towards the best of its
    population, and by differences of others, in some of its coordinates; it replaces its parent if it is fitter. The
    fitness is minus the objective's loss.

    Per target it asks about every start, (population - keep) images that fill the population, and `population` of each
    generation: what a parent got is remembered, where the authors' code asks about it again.

    Args:
        generations: of children.
        population: members per target.
        keep: starts that become members, the fittest; no more than the init gives. The others are mixed of three of
            them.
        pull: how far a child goes towards the best.
        pairs: differences that are added (1 in the toolbox).
        scale: of their sum.
        taper: generations at the end in which the scale is multiplied by (generations left) / `taper_over`.
        crossover: probability that a coordinate is the child's and not its parent's.
        filler: what is mixed in for a member that is made of three others: the mean of three `draws` of the prior, or
            `noise`, which leaves its images (the toolbox).
        compare: fitnesses as they are, `raw`; or as the `shares` that each takes in a softmax of its own population, as
            the toolbox does: a child may then replace a fitter parent.
    """

    needs = ("sample",)

    def __init__(
        self,
        *,
        generations: Whole = 500,
        population: Draws = 32,
        keep: Draws = 10,
        pull: NotNegative = 0.02,
        pairs: Count = 4,
        scale: NotNegative = 0.1,
        taper: Whole = 30,
        taper_over: Count = 50,
        crossover: Share = 0.5,
        filler: str = "draws",
        compare: str = "raw",
    ):
        if filler not in FILLERS:
            raise refuse_unknown("attack.search.filler", filler, FILLERS)
        if compare not in COMPARISONS:
            raise refuse_unknown("attack.search.compare", compare, COMPARISONS)
        if not len(OF_THREE) <= keep <= population:
            raise Refused(
                f"attack.search.keep: expected from {len(OF_THREE)}, of whom the others are mixed, to the population, "
                f"{population}, got {keep}"
            )
        self.generations, self.population, self.keep, self.pull = generations, population, keep, pull
        self.pairs, self.scale, self.taper, self.taper_over = pairs, scale, taper, taper_over
        self.crossover, self.filler, self.compare = crossover, filler, compare

    def check_slots(self, slots: Slots, where: str = "attack") -> None:
        """Refuse fewer starts than are kept."""
        require_starts(slots["init"], self.keep, where)

    @property
    def steps(self) -> int:
        """Yields: the starts, the population, and every generation."""
        return self.generations + 2

    def scale_at(self, generation: int) -> float:
        """The scale of the differences in a generation, from 0 on."""
        left = self.generations - generation
        return self.scale * left / self.taper_over if left <= self.taper else self.scale

    @torch.no_grad()
    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields what is known of the starts, then the population after every generation, target by target."""
        targets = len(problem.evidence)
        starts = found.latents.detach().unflatten(0, (targets, -1))
        rng = problem.draw("search")
        fitness = self.fitness(problem, starts, rng)
        yield _found(starts, fitness)
        best = fitness.argsort(dim=1, descending=True, stable=True)[:, : self.keep]
        members, fitness = taken(starts, best), fitness.gather(1, best)
        if fillers := self.population - self.keep:
            made = self.filled(problem, members, fillers, rng)
            fitness = torch.cat([fitness, self.fitness(problem, made, rng)], 1)
            members = torch.cat([members, made], 1)
        yield _found(members, fitness)
        for generation in range(self.generations):
            children = self.bred(problem.prior, members, fitness, self.scale_at(generation), rng)
            told = self.fitness(problem, children, rng)
            better = self.better(told, fitness)
            members = torch.where(_wide(better, members), children, members)
            fitness = torch.where(better, told, fitness)
            yield _found(members, fitness)

    def fitness(self, problem: Problem, members: Tensor, rng: torch.Generator) -> Tensor:
        """Minus the loss of latents [N, count, ...] for each target: [N, count]; that of one that is no number is the
        least."""
        latents, owners = members.flatten(0, 1), torch.arange(len(members)).repeat_interleave(members.shape[1])
        views = problem.views
        draws = None if views is None else views.draw(len(latents), rng).to(latents.device)
        pieces = []
        for rows in problem.chunks(len(latents)):
            shown = None if draws is None else draws[rows]
            pieces.append(problem.objective(problem.look(latents[rows], owners[rows], views, shown)))
        return -torch.cat(pieces).nan_to_num(nan=torch.inf).view(members.shape[:2])

    def better(self, children: Tensor, parents: Tensor) -> Tensor:
        """Which children [N, population] replace their parents, by the fitness of both; a tie leaves the parent."""
        if self.compare == "shares":
            children, parents = children.softmax(1), parents.softmax(1)
        return children > parents

    def triples(self, targets: int, count: int, rng: torch.Generator) -> Tensor:
        """Three different members of each population for each to be made, int64 [targets, count, 3]."""
        return torch.rand(targets, count, self.keep, generator=rng).argsort(2)[..., : len(OF_THREE)]

    def fresh(self, problem: Problem, like: Tensor, rng: torch.Generator) -> Tensor:
        """What is mixed into new members, of their shape [N, count, ...]."""
        if self.filler == "noise":
            return torch.randn(like.shape, generator=rng).to(like)
        drawn = sampled_as_points(problem.prior, like.shape[0] * like.shape[1] * len(OF_THREE), rng)
        latents = drawn.unflatten(0, (-1, len(OF_THREE))).mean(1)
        return of_the_targets(problem, latents, like.shape[1]).to(like).view(like.shape)

    def filled(self, problem: Problem, members: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """`count` new members of each population [N, count, ...]."""
        triples = self.triples(len(members), count, rng).to(members.device)
        mixed = sum(weight * taken(members, triples[..., place]) for place, weight in enumerate(OF_THREE))
        made = (1 - FRESH) * mixed + FRESH * self.fresh(problem, mixed, rng)
        return held_back(made, mixed, problem.prior.held)

    def draws(self, members: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The members of the differences, with replacement, int64 [N, population, pairs, 2], and a number in [0, 1) per
        coordinate."""
        shape = (*members.shape[:2], self.pairs, 2)
        pairs = torch.randint(members.shape[1], shape, generator=rng)
        return pairs.to(members.device), torch.rand(members.shape, generator=rng).to(members.device)

    def bred(self, prior: Prior, members: Tensor, fitness: Tensor, scale: float, rng: torch.Generator) -> Tensor:
        """A child of every member [N, population, ...]."""
        pairs, dice = self.draws(members, rng)
        best = taken(members, fitness.argmax(1, keepdim=True))
        differences = sum(
            taken(members, pairs[:, :, pair, 0]) - taken(members, pairs[:, :, pair, 1]) for pair in range(self.pairs)
        )
        children = members + self.pull * (best - members) + scale * differences
        return held_back(torch.where(dice > 1 - self.crossover, children, members), members, prior.held)


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    """Rows [N, M] with dimensions of size 1 behind them, as many as `like` has."""
    return rows.view(*rows.shape, *[1] * (like.ndim - rows.ndim))


def _found(members: Tensor, fitness: Tensor) -> Found:
    """Populations as candidates, target by target."""
    owners = torch.arange(len(members)).repeat_interleave(members.shape[1])
    loss = -fitness.flatten()
    return Found(members.flatten(0, 1), loss, owners, stage="optimised", seen=seen(loss, []))
