"""Descend the objective's gradient with any torch optimiser (GMI, PPA, MI-Face and most white-box attacks)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Problem, seen
from midefense.attacks.schedules import Schedule, paced, require_schedule
from midefense.priors.base import Prior
from midefense.ranges import Count, Positive, Whole
from midefense.types import Found, Refused, refuse_unknown

# what a recipe calls `schedules.Milestones`, wherever it lies
BY_MILESTONES = {"_target_": "midefense.attacks.schedules.Milestones", "revision": 1}


class Gradient(Part):
    """Every candidate of a group descends at once; losses are summed, so none depends on the others.

    Args:
        optimizer: a partial torch optimiser (`_partial_: true`).
        steps: updates.
        reference_batch: the sum of losses is divided by it. A published learning rate that went with a batch mean
            is kept by naming that batch here (60 in the low-resolution benchmark); then group size changes nothing.
        box: latents are clamped to [-box, box] after each step; or a pair of bounds; or `pixels`: latents of pixels are
            kept within images in [0, 1]; None leaves them free.
        schedule: how the learning rate moves (`attacks.schedules`); None leaves it as it is.
        keep: `last` (GMI, PPA) or `best`, the point of lowest loss on each candidate's path (MI-Face).
        stop: when a candidate may rest; None runs all steps.
        looks: how often the target is shown a step's images, each time under views of its own; the losses are summed.
    """

    later = {"looks": 1}
    reads = ("gradient",)
    rolls = True
    keeps = ("last", "best")

    def __init__(
        self,
        *,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        steps: Whole,
        reference_batch: Positive = 1,
        box: float | tuple[float, float] | Literal["pixels"] | None = None,
        schedule: Schedule | None = None,
        keep: str = "last",
        stop: Rest | None = None,
        looks: Count = 1,
    ):
        if keep not in self.keeps:
            raise refuse_unknown("attack.search.keep", keep, self.keeps)
        self.bounds = (-box, box) if isinstance(box, int | float) else box
        self.of_pixels = box == "pixels"
        self.needs = ("pixels",) if self.of_pixels else ()
        if not self.of_pixels and self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise Refused(f"attack.search.box: expected a positive bound or an ascending pair, got {box}")
        require_schedule(schedule, steps)
        self.optimizer, self.steps, self.reference_batch = optimizer, steps, reference_batch
        self.separates = stop is not None  # who rests is left out of a look
        self.schedule, self.keep, self.stop, self.looks = schedule, keep, stop, looks

    @classmethod
    def pin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """As recipes were before schedules were parts: milestones stand beside the search's own arguments, and a
        constant rate is no milestones. A schedule of another kind stands under its own name."""
        schedule = arguments["schedule"] or {**BY_MILESTONES, "milestones": [], "factor": 0.1}
        if not BY_MILESTONES.items() <= schedule.items():
            return arguments
        rates = {name: schedule[name] for name in ("milestones", "factor")}
        return {**{name: value for name, value in arguments.items() if name != "schedule"}, **rates}

    @classmethod
    def unpin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments of a stored recipe as the constructor takes them today."""
        if "milestones" not in arguments:
            return arguments
        rates = {name: arguments[name] for name in ("milestones", "factor")}
        kept = {name: value for name, value in arguments.items() if name not in rates}
        return {**kept, "schedule": {"_target_": BY_MILESTONES["_target_"], **rates}}

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields what was found after every step; the loss is that of the step's forward."""
        owners = found.evidence
        latents = found.latents.detach().clone().requires_grad_()
        optimizer = self.optimizer([latents])
        pace = paced(optimizer, self.schedule, self.steps)
        best = self._memory(latents, owners)
        rest = self.stop.watch(len(latents)) if self.stop else None
        rng = problem.draw("search")
        loss = latents.new_full((len(latents),), torch.inf)
        for step in range(self.steps):
            pace(step)
            awake = rest.awake if rest else None
            loss, sure = self._descend(problem, latents, owners, rng, loss, awake)
            if best:
                best.update(latents, loss)
            held = rest.resting(loss) if rest else None
            self._move(latents, optimizer, held, problem.prior)
            if best:
                best.moved(latents)
            kept = best or _Last(latents, loss)
            yield Found(kept.latents.detach(), kept.loss, owners, stage="optimised", seen=seen(loss, sure))
            if rest and rest.all_rest(step):
                return

    def _memory(self, latents: Tensor, owners: Tensor) -> _Best | None:
        """What remembers the best of each path; None where the last point counts."""
        return _Best(latents) if self.keep == "best" else None

    def _descend(
        self,
        problem: Problem,
        latents: Tensor,
        owners: Tensor,
        rng: torch.Generator,
        before: Tensor,
        awake: Tensor | None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Loss per candidate [M], that of the step `before` where a candidate is not `awake` (rows on the CPU; None is
        all), and the confidences in those asked about, in pieces; leaves the gradient on `latents`. Who rests is not
        asked about, and not charged."""
        latents.grad = None
        views, draws = problem.views, [None] * self.looks
        if views is not None:
            drawn = [views.draw(len(latents), rng) for _ in draws]
            draws = [rows.to(latents.device, non_blocking=True) for rows in drawn]
        wanted = problem.objective.columns
        rolled = [problem.objective.draw(len(latents), rng).to(latents.device) if wanted else None for _ in draws]
        loss, sure = before.clone(), []
        pieces = problem.chunks(len(latents) if awake is None else len(awake))
        for rows in pieces if awake is None else (awake[piece] for piece in pieces):
            picture = problem.drawn(latents[rows])
            each = 0.0
            for drawn, dice in zip(draws, rolled, strict=True):
                shown, own = (None if given is None else given[rows] for given in (drawn, dice))
                look = problem.show(picture, latents[rows], owners[rows], views, shown, dice=own)
                each = each + problem.objective(look)
                sure.append(look.confidence())
            (each.sum() / self.reference_batch).backward()
            loss[rows] = each.detach().to(loss.dtype)
        return loss, sure

    def _move(self, latents: Tensor, optimizer: torch.optim.Optimizer, resting: Tensor | None, prior: Prior) -> None:
        """An update, but for candidates that are `resting` [M], and entries of every latent that the prior holds."""
        entries, bounds = prior.held, prior.pixel_range if self.of_pixels else self.bounds
        before = latents.detach().clone() if resting is not None or entries else None
        optimizer.step()
        with torch.no_grad():
            if bounds is not None:
                latents.clamp_(*bounds)
            if resting is not None:
                latents[resting] = before[resting]
            if entries:
                latents[..., -entries:] = before[..., -entries:]


class _Last:
    def __init__(self, latents: Tensor, loss: Tensor):
        self.latents, self.loss = latents, loss


class _Best:
    """The lowest loss of each candidate's path, and where it was."""

    def __init__(self, latents: Tensor):
        self.latents = latents.detach().clone()
        self.loss = torch.full((len(latents),), float("inf"), device=latents.device)

    def update(self, latents: Tensor, loss: Tensor) -> None:
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        mask = better.view(-1, *[1] * (latents.ndim - 1))
        self.latents = torch.where(mask, latents.detach(), self.latents)

    def moved(self, latents: Tensor) -> None:
        """Nothing more to see: the point belongs to the loss before the update."""


class Rest(Part):
    """MI-Face's stop (Fredrikson et al., CCS 2015, algorithm 1): a candidate rests when its cost is low enough, or
    not below the highest of the last `patience` costs.

    Args:
        cost: rest at this loss or below (.01 is a confidence of .99 under the `confidence` objective).
        patience: how many past costs are compared (the paper's beta).
        check_every: steps between two looks at who rests; looking makes the device wait, and until then resting
            candidates are still asked about.
    """

    def __init__(self, *, cost: float = 0.01, patience: Count = 100, check_every: Count = 25):
        self.cost, self.patience, self.check_every = cost, patience, check_every

    def watch(self, candidates: int) -> _Watch:
        """A fresh memory for `candidates` rows."""
        return _Watch(self)


class _Watch:
    """Who rests, and the costs it is judged by. `awake` lists the rows to look at (None: all), brought up to date
    whenever it is checked whether all rest."""

    def __init__(self, rule: Rest):
        self.rule, self.held = rule, None
        self.awake: Tensor | None = None
        self.past: deque[Tensor] = deque(maxlen=rule.patience)

    def resting(self, loss: Tensor) -> Tensor:
        """Which candidates rest from now on [M]."""
        resting = loss <= self.rule.cost
        if len(self.past) == self.rule.patience:
            resting |= loss >= torch.stack(tuple(self.past)).amax(0)
        self.past.append(loss)
        self.held = resting if self.held is None else self.held | resting
        return self.held

    def all_rest(self, step: int) -> bool:
        if (step + 1) % self.rule.check_every:
            return False
        self.awake = (~self.held).nonzero()[:, 0].cpu()
        return len(self.awake) == 0
