"""Descend a gradient that is measured, not told: finite differences of the objective (MI-Face's black-box version;
Fredrikson, Jha, Ristenpart, CCS 2015; methods card mi_face.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from midefense.attacks.problem import Problem
from midefense.attacks.schedules import Schedule
from midefense.attacks.search.gradient import Gradient, Rest
from midefense.ranges import Count, Positive, Whole
from midefense.types import refuse_unknown

DIFFERENCES = ("central", "forward")


class FiniteDifferences(Gradient):
    """As `Gradient`, with gradients from probes around each candidate of d numbers: a step asks 2d + 1 images (central
    differences) or d + 1 (forward) per candidate, the candidate itself among them, whose cost decides who rests.

    Args:
        optimizer, steps, reference_batch, box, schedule, keep, stop: see `Gradient`.
        delta: how far a probe lies from the candidate. Against rounded probabilities it must be large: .02 hardly moves
            where they are rounded to .01, .5 does (card, section 8).
        differences: `central` or `forward`.
        directions: probe along so many random directions instead of all d coordinates, m for d in the numbers above;
            null: all coordinates.
    """

    reads = ()
    rolls = False  # probes are looked at without dice

    def __init__(
        self,
        *,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        steps: Whole,
        reference_batch: Positive = 1,
        box: float | tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        keep: str = "best",
        stop: Rest | None = None,
        delta: Positive = 0.02,
        differences: str = "central",
        directions: Count | None = None,
    ):
        super().__init__(
            optimizer=optimizer,
            steps=steps,
            reference_batch=reference_batch,
            box=box,
            schedule=schedule,
            keep=keep,
            stop=stop,
        )
        if differences not in DIFFERENCES:
            raise refuse_unknown("attack.search.differences", differences, DIFFERENCES)
        self.delta, self.differences, self.directions = delta, differences, directions

    @torch.no_grad()
    def _descend(
        self,
        problem: Problem,
        latents: Tensor,
        owners: Tensor,
        rng: torch.Generator,
        before: Tensor,
        awake: Tensor | None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """As `Gradient._descend`; views, where there are any, are the same for all probes of a candidate."""
        rows = torch.arange(len(latents)) if awake is None else awake
        probes = self._probes(latents.detach()[rows.to(latents.device)].flatten(1), latents.shape[1:], rng)
        views, dice = problem.views, None
        if views is not None:
            dice = views.draw(len(latents), rng).to(latents.device)[rows.to(latents.device)]
        losses, sure = [], []
        for piece in problem.chunks(probes.count):
            images, candidates = probes.at(piece)
            shown = None if dice is None else dice[candidates]
            look = problem.look(images, owners[rows[candidates.cpu()]], views, shown)
            losses.append(problem.objective(look))
            own = (torch.arange(piece.start, piece.stop) % probes.each == 0).to(latents.device)
            confidence = look.confidence()
            sure.append(None if confidence is None else confidence[own])
        told = torch.cat(losses).view(len(rows), -1)
        gradient = probes.gradient(told).to(latents.dtype).view(-1, *latents.shape[1:]) / self.reference_batch
        latents.grad = torch.zeros_like(latents)
        latents.grad[rows.to(latents.device)] = gradient
        loss = before.clone()
        loss[rows.to(loss.device)] = told[:, 0].to(loss.dtype)
        return loss, sure

    def _probes(self, flat: Tensor, shape: torch.Size, rng: torch.Generator) -> _Probes:
        directions = None
        if self.directions is not None:
            drawn = torch.randn(len(flat), self.directions, flat.shape[1], generator=rng).to(flat)
            directions = drawn / drawn.norm(dim=2, keepdim=True)
        return _Probes(flat, shape, self.delta, self.differences == "central", directions)


@dataclass(frozen=True)
class _Probes:
    """What is asked about candidates `flat` [M, d] of a `shape`, one after the other: itself, then a point ahead along
    every direction and, where differences are central, one behind. `directions` [M, m, d] of length 1; None: the axes.
    Points are made when they are asked for: all of them are d times as many numbers as the candidates."""

    flat: Tensor
    shape: torch.Size
    delta: float
    central: bool
    directions: Tensor | None

    @property
    def ahead(self) -> int:
        """Along how many directions a candidate is probed."""
        return self.flat.shape[1] if self.directions is None else self.directions.shape[1]

    @property
    def each(self) -> int:
        """Images asked about each candidate."""
        return 1 + self.ahead * (1 + self.central)

    @property
    def count(self) -> int:
        """Of all probes."""
        return len(self.flat) * self.each

    def at(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The points [B, ...] at `rows` of all probes, and the candidates int64 [B] that they are about."""
        places = torch.arange(rows.start, rows.stop, device=self.flat.device)
        candidates, probe = places // self.each, places % self.each - 1
        moved = (probe >= 0).nonzero()[:, 0]
        way = torch.where(probe[moved] < self.ahead, self.delta, -self.delta).to(self.flat.dtype)
        axis = probe[moved] % self.ahead
        points = self.flat[candidates]
        if self.directions is None:
            points[moved, axis] += way
        else:
            points[moved] += way[:, None] * self.directions[candidates[moved], axis]
        return points.view(-1, *self.shape), candidates

    def gradient(self, told: Tensor) -> Tensor:
        """The gradient [M, d] of what was told of each candidate's probes [M, each]. Of random directions it is the
        mean over them of d times the slope along each: on average the gradient."""
        ahead = told[:, 1 : 1 + self.ahead]
        slopes = (ahead - told[:, 1 + self.ahead :]) / 2 if self.central else ahead - told[:, :1]
        slopes = slopes / self.delta
        if self.directions is None:
            return slopes
        return self.flat.shape[1] * (slopes[..., None] * self.directions).mean(1)
