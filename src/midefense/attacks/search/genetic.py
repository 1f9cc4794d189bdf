"""Breed latents from what the target's scores say of them: MIRROR's black-box search (An et al., NDSS 2022; methods
card mirror.md, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.p_space import PSpace, of_scores_alone
from midefense.attacks.part import Part, Slots
from midefense.attacks.problem import Problem, seen
from midefense.attacks.search.populations import held_back, taken
from midefense.attacks.slots import require_starts
from midefense.ranges import Count, NotNegative, Positive, Share, Whole
from midefense.types import Found, Refused, Setting, refuse_unknown


@dataclass(frozen=True)
class Dice:
    """What a generation of T targets draws for its C children of width D: `parents` int64 [T, 2, C], places in the
    sorted population; uniform numbers of the crossover [T, C, D], of who mutates [T, C, D] and of the noise [T, C, D]
    or, one for all children, [T, 1, D]."""

    parents: Tensor
    crossing: Tensor
    mutating: Tensor
    noise: Tensor


class Genetic(Part):
    """The populations of all targets of a group breed at once, each from draws of its own target, so that nothing
    depends on who else is attacked. The fitness is minus the loss; the fittest lives on unchanged and is not asked
    about again.

    A population begins as what the init found, whose losses are asked, unless the objective is one of probabilities
    alone and the init knows them. It is not cut to the box, as in the
    authors' code: nearly every draw has a coordinate outside; its children are.

    Args:
        generations: at most.
        stop: a target rests when the best of it has this confidence, that is a loss of -log stop; null: never.
        mutation: probability that a coordinate of a child is moved.
        strength: of the noise, in deviations of P-space: it moves by strength * U(-deviation, deviation).
        deviations: half the side of the box in P-space (the authors' p_std_ce).
        crossover: which parent a coordinate is copied of: `fitter`, the first with probability p_a / (p_a + p_b);
            `authors`, whose code takes logarithms of probabilities for these, so that the worse is copied more; or
            `even`.
        shared_noise: one vector of noise for all children of a generation, as in the authors' code.
        rescore: ask about the fittest again in each generation, as in the authors' code: a query more each.
        keep: how many of the last population are found; no more than the init gives starts.
    """

    reads = ("probs",)
    wants = ("pool",)
    ignores = MappingProxyType({"views": "shows the target what it breeds as it is"})
    crossovers = ("fitter", "authors", "even")

    def __init__(
        self,
        *,
        generations: Whole = 100,
        stop: Share | None = 0.95,
        mutation: Share = 0.1,
        strength: NotNegative = 0.1,
        deviations: Positive = 1.0,
        crossover: str = "fitter",
        shared_noise: bool = False,
        rescore: bool = False,
        keep: Count = 1,
    ):
        if crossover not in self.crossovers:
            raise refuse_unknown("attack.search.crossover", crossover, self.crossovers)
        if stop == 0:
            raise Refused("attack.search.stop: expected a confidence above 0, or null to breed all generations, got 0")
        self.generations, self.mutation, self.strength, self.deviations = generations, mutation, strength, deviations
        self.enough = 0.0 if stop is None else -math.log(stop)
        self.stops = self.separates = stop is not None
        self.crossover, self.shared_noise, self.rescore, self.keep = crossover, shared_noise, rescore, keep

    @property
    def steps(self) -> int:
        """What a search yields, at most."""
        return self.generations + 1

    def check_slots(self, slots: Slots, where: str = "attack") -> None:
        """Refuse a population of fewer than are kept."""
        require_starts(slots["init"], self.keep, where)

    def check(self, setting: Setting) -> None:
        """Refuse a target of attributes: its outputs are no probabilities of classes."""
        if setting.of_attributes:
            raise Refused(
                "attack.search (Genetic): expected a target of classes, whose probabilities are fitness, got one of "
                "attributes; try dataset.label=identity"
            )

    @torch.no_grad()
    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields the `keep` fittest of every target, target by target, before and after every generation."""
        targets, shape = len(problem.evidence), found.latents.shape[1:]
        space = PSpace.of(problem)
        rngs = seeds.by_row(problem.draw("search"), problem.evidence.ids)
        population = found.latents.detach().flatten(1).view(targets, -1, shape.numel())
        loss = found.loss.detach()
        if not of_scores_alone(problem) or loss.isnan().any():
            loss, _ = self._asked(problem, population.flatten(0, 1).view(-1, *shape), found.evidence)
        loss = loss.view(targets, -1)
        told = None
        for generation in range(self.generations + 1):
            order = torch.argsort(loss, dim=1, stable=True)
            population, loss = taken(population, order), loss.gather(1, order)
            yield self._fittest(population, loss, shape, told)
            awake = (loss[:, 0] > self.enough).nonzero()[:, 0].cpu() if self.stops else torch.arange(targets)
            if generation == self.generations or len(awake) == 0 or population.shape[1] + self.rescore == 1:
                return
            dice = self.draw([rngs[row] for row in awake.tolist()], loss[awake].cpu(), shape.numel())
            bred = self.breed(population[awake], loss[awake], dice, space, problem.prior.held)
            asked = torch.cat([population[awake, :1], bred], 1) if self.rescore else bred
            owners = awake.repeat_interleave(asked.shape[1])
            losses, sure = self._asked(problem, asked.flatten(0, 1).view(-1, *shape), owners)
            population[awake, 1:] = bred
            loss[awake, population.shape[1] - asked.shape[1] :] = losses.view(len(awake), -1).to(loss.dtype)
            told = seen(losses, sure)

    def draw(self, rngs: Sequence[torch.Generator], loss: Tensor, width: int) -> Dice:
        """The draws of a generation on the CPU: parents with replacement, each with a probability in proportion to
        exp(-loss), of populations that are sorted by their `loss` [T, N]."""
        count = loss.shape[1] - 1
        odds = self.odds(loss)
        parents = [torch.multinomial(own, 2 * count, True, generator=rng) for own, rng in zip(odds, rngs, strict=True)]
        rows = (count, count, 1 if self.shared_noise else count)
        rolled = torch.stack([torch.rand(sum(rows), width, generator=rng) for rng in rngs])
        return Dice(torch.stack(parents).view(-1, 2, count), *rolled.split(rows, 1))

    def odds(self, loss: Tensor) -> Tensor:
        """With which probability each of populations with their `loss` [T, N] is drawn as a parent, float64."""
        return (-loss.double()).softmax(1)

    def breed(self, population: Tensor, loss: Tensor, dice: Dice, space: PSpace, held: int = 0) -> Tensor:
        """Children [T, N - 1, D] of sorted populations [T, N, D] with their `loss` [T, N]; the last `held` coordinates
        are those of the first parent."""
        device = population.device
        parents = dice.parents.to(device)
        first, second = (taken(population, own) for own in parents.unbind(1))
        losses = [loss.gather(1, own) for own in parents.unbind(1)]
        of_first = dice.crossing.to(device) < self._share(*losses)[..., None]
        child = space.coordinates(torch.where(of_first, first, second))
        noise = self.strength * (2 * space.deviation * dice.noise.to(device) - space.deviation)
        child = child + (dice.mutating.to(device) < self.mutation) * noise
        low, high = space.box(self.deviations)
        return held_back(space.latents(child).clamp(low, high), first, held)

    def _share(self, first: Tensor, second: Tensor) -> Tensor:
        """With which probability a coordinate is the first parent's, of the losses of both [T, C]."""
        if self.crossover == "fitter":
            return torch.sigmoid(second - first)
        return first / (first + second) if self.crossover == "authors" else torch.full_like(first, 0.5)

    def _asked(self, problem: Problem, latents: Tensor, owners: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The losses [M] of latents, each charged to its target, and the confidences in them, in pieces."""
        looks = (problem.look(latents[rows], owners[rows]) for rows in problem.chunks(len(latents)))
        told = [(problem.objective(look), look.confidence()) for look in looks]
        return torch.cat([loss for loss, _ in told]), [sure for _, sure in told]

    def _fittest(self, population: Tensor, loss: Tensor, shape: torch.Size, told: dict | None) -> Found:
        """The first of sorted populations [T, N, D]."""
        keep = min(self.keep, population.shape[1])
        owners = torch.arange(len(population)).repeat_interleave(keep)
        latents = population[:, :keep].reshape(-1, *shape).clone()
        return Found(latents, loss[:, :keep].flatten().clone(), owners, "optimised", seen=told)
