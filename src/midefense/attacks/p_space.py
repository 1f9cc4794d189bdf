"""P-space: where MIRROR keeps its latents (An et al., MIRROR: Model Inversion for Deep Learning Network with High
Fidelity, NDSS 2022; methods card mirror.md, section 4).

The styles of a StyleGAN come out of a leaky ReLU. Before it, in P-space, each coordinate is nearly normal, so that a
box of a few deviations around the mean holds what the generator knows. Other generators take normal latents, and their
P-space is the space of latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from midefense.attacks.init import BestOfPool, sampled_as_points
from midefense.attacks.problem import Look, Problem
from midefense.priors.base import Prior
from midefense.ranges import Count, Draws
from midefense.types import Answer, Found


@dataclass(frozen=True)
class PSpace:
    """The coordinates of a P-space: their `mean` and `deviation` (biased) [width] over a pool of latents, and the
    `slope` of the leaky ReLU between it and latents."""

    mean: Tensor
    deviation: Tensor
    slope: float

    @classmethod
    def of_pool(cls, latents: Tensor, slope: float) -> PSpace:
        """Of latents [M, ...], which count as flat."""
        coordinates = leaky_relu(latents.flatten(1), 1 / slope)
        return cls(coordinates.mean(0), coordinates.std(0, unbiased=False), slope)

    @classmethod
    def of(cls, problem: Problem) -> PSpace:
        """Of the pool that the init drew, on the problem's device."""
        space = cls.of_pool(problem.state["pool.latents"], problem.prior.slope)
        return cls(space.mean.to(problem.device), space.deviation.to(problem.device), space.slope)

    def coordinates(self, latents: Tensor) -> Tensor:
        """Latents [..., width] in P-space."""
        return leaky_relu(latents, 1 / self.slope)

    def latents(self, coordinates: Tensor) -> Tensor:
        """Back from P-space."""
        return leaky_relu(coordinates, self.slope)

    def box(self, deviations: float) -> tuple[Tensor, Tensor]:
        """The least and the largest latents [width] of the box of so many deviations around the mean."""
        reach = deviations * self.deviation
        return self.latents(self.mean - reach), self.latents(self.mean + reach)

    def inverse_covariance(self, latents: Tensor) -> Tensor:
        """The inverse of the covariance (unbiased) [width, width] of the pool's coordinates, in float64 until it is
        inverted."""
        coordinates = self.coordinates(latents.flatten(1)).double()
        return torch.linalg.inv(torch.cov(coordinates.T)).to(self.mean)


class MirrorPool(BestOfPool):
    """The most confident of one pool of latents as the prior draws them, untruncated; of a StyleGAN one style for all
    layers.

    What the target said of the pool is known: a search whose objective reads probabilities alone begins without a
    query.

    Args:
        size: latents in the pool (the authors: 100,000).
        candidates: kept per target (white-box: 8, genetic: the population of 1,000).
        batch_size: images per forward while scoring.
    """

    gives = ("pool",)

    def __init__(self, *, size: Draws = 100_000, candidates: Draws = 8, batch_size: Count = 256):
        super().__init__(size=size, candidates=candidates, flip=False, batch_size=batch_size)

    def draw(self, prior: Prior, rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Latents [count, ...] to score, which a search starts from."""
        latents = sampled_as_points(prior, count, rng).clone()
        return latents, latents

    def __call__(self, problem: Problem) -> Found:
        """The `candidates` best of the pool for each target's label, best first. Their loss is that of the objective,
        where it is known from probabilities, else 1 - p."""
        labels, scores = problem.evidence.labels, problem.state["pool.scores"]
        best = scores[:, labels].T.contiguous().topk(self.candidates, dim=1)
        rows, owners = best.indices.flatten(), torch.arange(len(labels)).repeat_interleave(self.candidates)
        loss = 1 - best.values.flatten().to(problem.device)
        if of_scores_alone(problem):
            wanted = labels[owners].to(problem.device)
            loss = problem.objective(answered(scores[rows].to(problem.device), wanted, problem))
        return Found(problem.state["pool.latents"][rows].to(problem.device), loss, owners, stage="initial")


def of_scores_alone(problem: Problem) -> bool:
    """Whether the objective needs nothing but probabilities, so that a scored pool tells its losses."""
    return set(problem.objective.reads) <= {"probs"}


def answered(probs: Tensor, labels: Tensor, problem: Problem) -> Look:
    """A look of which the answer alone is known: `probs` [B, classes] about the `labels` [B] wanted."""
    nothing = probs.new_zeros(len(probs), 0)
    return Look(nothing, nothing, nothing, nothing, Answer(probs=probs), labels, problem.prior, problem.known)
