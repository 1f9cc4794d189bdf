"""Descend within the box of P-space: MIRROR's white-box search (An et al., NDSS 2022; methods card mirror.md)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from midefense.attacks.p_space import PSpace
from midefense.attacks.problem import Problem
from midefense.attacks.schedules import Schedule
from midefense.attacks.search.gradient import Gradient, Rest, _Best
from midefense.ranges import Count, NotNegative, Positive, Whole
from midefense.types import Found

AUTHORS = "authors"
WORST = 1e4  # what the authors' code begins with as the lowest loss


class Bounded(Gradient):
    """As `Gradient`; latents are cut to the box after every step, or held by a penalty.

    Args:
        optimizer, steps, reference_batch, schedule, stop, looks: see `Gradient`.
        deviations: half the side of the box in P-space; null leaves latents free.
        keep: `best`, the point of lowest loss on each candidate's path; `last`; or `authors`: all candidates of a
            target at the step of their lowest mean loss, where they were after the update that follows it.
        distance: weight of ||w - w_0||, of each candidate by itself.
        joint_distance: one norm over all candidates of a target, as in the authors' code.
        energy: weight of (p - mean)^T C^-1 (p - mean) in P-space, C the covariance of the pool (the authors: 1e-4,
            without a box).
    """

    wants = ("pool",)
    keeps = ("last", "best", AUTHORS)

    def __init__(
        self,
        *,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        steps: Whole,
        reference_batch: Positive = 1,
        schedule: Schedule | None = None,
        keep: str = "best",
        stop: Rest | None = None,
        looks: Count = 1,
        deviations: Positive | None = 1.0,
        distance: NotNegative = 0.0,
        joint_distance: bool = False,
        energy: NotNegative = 0.0,
    ):
        super().__init__(
            optimizer=optimizer,
            steps=steps,
            reference_batch=reference_batch,
            schedule=schedule,
            keep=keep,
            stop=stop,
            looks=looks,
        )
        self.deviations, self.distance, self.energy = deviations, distance, energy
        self.joint_distance = joint_distance

    @classmethod
    def pin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments as they are: its recipes never had milestones of their own."""
        return arguments

    @classmethod
    def unpin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments of a stored recipe."""
        return arguments

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields what was found after every step."""
        yield from _Inside(self, problem, found)(problem, found)


class _Inside(Bounded):
    """The search of one problem: it knows its box, where candidates began, and the pool's covariance."""

    def __init__(self, rule: Bounded, problem: Problem, found: Found):
        self.__dict__.update(copy.copy(rule).__dict__)
        self.space, self.held = PSpace.of(problem), problem.prior.held
        self.bounds = None if self.deviations is None else self._box(found.latents.shape[1:])
        self.begun = found.latents.detach().clone()
        self.owners, self.targets = found.evidence.to(problem.device), len(problem.evidence)
        pool = problem.state["pool.latents"]
        self.inverse = self.space.inverse_covariance(pool).to(problem.device) if self.energy else None

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        yield from Gradient.__call__(self, problem, found)

    def _box(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        return tuple(bound.view(shape) for bound in self.space.box(self.deviations))

    def _memory(self, latents: Tensor, owners: Tensor) -> _Best | None:
        return _BestOfTarget(latents, owners) if self.keep == AUTHORS else super()._memory(latents, owners)

    def _descend(
        self,
        problem: Problem,
        latents: Tensor,
        owners: Tensor,
        rng: torch.Generator,
        before: Tensor,
        awake: Tensor | None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        loss, sure = super()._descend(problem, latents, owners, rng, before, awake)
        if not self.distance and not self.energy:
            return loss, sure
        penalty = self._penalty(latents)
        rows = torch.arange(len(latents)) if awake is None else awake
        (penalty[rows].sum() / self.reference_batch).backward()
        loss[rows] = loss[rows] + penalty[rows].detach().to(loss.dtype)
        return loss, sure

    def _penalty(self, latents: Tensor) -> Tensor:
        """What keeps each candidate [M] near where it began, and near the middle of P-space."""
        penalty = latents.new_zeros(len(latents))
        if self.distance:
            squares = (latents - self.begun).flatten(1).square().sum(1)
            if self.joint_distance:
                squares = squares.new_zeros(self.targets).index_add(0, self.owners, squares)[self.owners]
            penalty = penalty + self.distance * _root(squares)
        if self.energy:
            away = self.space.coordinates(latents.flatten(1)) - self.space.mean
            penalty = penalty + self.energy * ((away @ self.inverse) * away).sum(1)
        return penalty


class _BestOfTarget(_Best):
    """The step of lowest mean loss of each target, and where its candidates went from there."""

    def __init__(self, latents: Tensor, owners: Tensor):
        super().__init__(latents)
        self.owners = owners.to(latents.device)
        self.loss = latents.new_full((len(latents),), WORST)
        self.means = latents.new_full((int(owners.max()) + 1,), WORST)
        self.counts = self.owners.bincount(minlength=len(self.means)).clamp(min=1)
        self.better = torch.zeros_like(self.owners, dtype=torch.bool)

    def update(self, latents: Tensor, loss: Tensor) -> None:
        means = torch.zeros_like(self.means).index_add_(0, self.owners, loss.to(self.means.dtype)) / self.counts
        lower = means < self.means
        self.means = torch.where(lower, means, self.means)
        self.better = lower[self.owners]
        self.loss = torch.where(self.better, loss.to(self.loss.dtype), self.loss)

    def moved(self, latents: Tensor) -> None:
        mask = self.better.view(-1, *[1] * (latents.ndim - 1))
        self.latents = torch.where(mask, latents.detach(), self.latents)


def _root(squares: Tensor) -> Tensor:
    """The square root, whose gradient at 0 is 0, as that of torch.norm."""
    return torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt() * (squares > 0)
