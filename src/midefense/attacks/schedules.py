"""How a learning rate moves over the steps of a search, or of a network that the attacker trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch

from midefense.attacks.part import Part
from midefense.ranges import Ascending, NotNegative, Share, Whole
from midefense.types import Refused


class Schedule(Part):
    """A rule, without a memory: work that goes on from a saved step has the rates it would have had."""

    def require(self, steps: int) -> None:
        """Refuse a number of updates that it does not fit."""

    def __call__(self, rate: float, step: int, steps: int) -> float:
        """The learning rate of update `step` (0 to steps - 1), where the optimiser was built with `rate`."""
        raise NotImplementedError


class Milestones(Schedule):
    """The rate is multiplied by `factor` at each of `milestones`, updates counted from 0."""

    def __init__(self, *, milestones: Annotated[Sequence[Whole], Ascending()] = (), factor: NotNegative = 0.1):
        self.milestones, self.factor = frozenset(milestones), factor

    def __call__(self, rate: float, step: int, steps: int) -> float:
        """One product after the other, as an optimiser that is told at each milestone rounds them."""
        for _ in range(sum(milestone <= step for milestone in self.milestones)):
            rate = rate * self.factor
        return rate


class Cosine(Schedule):
    """A linear rise over the first `warmup` of all steps, half a cosine down over the last `decline` (both shares; the
    warm-up may be 0), to `floor` times the rate at the last step. Steps count from 1 as in MIRROR (An et al., NDSS
    2022: .05, .25, 0), so that the first is above 0. A decline of 1 is that of SGDR (Loshchilov, Hutter, ICLR 2017).
    """

    def __init__(self, *, warmup: Share = 0.0, decline: Share = 1.0, floor: Share = 0.0):
        if not (0 <= warmup <= 1 and 0 < decline <= 1 and 0 <= floor <= 1):
            raise Refused(
                f"schedule: expected shares of the steps, warmup from 0 and decline above 0, and floor in [0, 1], "
                f"got {warmup}, {decline}, {floor}"
            )
        self.warmup, self.decline, self.floor = warmup, decline, floor

    def __call__(self, rate: float, step: int, steps: int) -> float:
        """rate * rise * (floor + (1 - floor) * fall)."""
        done = (step + 1) / steps
        rise = min(1.0, done / self.warmup) if self.warmup else 1.0
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / self.decline))
        return rate * rise * (self.floor + (1 - self.floor) * fall)


class WarmedCosine(Schedule):
    """A linear rise over the first `warmup` updates, then half a cosine down to nearly 0 at the last one
    (DeepInversion's `lr_policy`, Yin et al., CVPR 2020). The fall counts from 0, so that the full rate is had twice."""

    def __init__(self, *, warmup: Whole = 100):
        self.warmup = warmup

    def require(self, steps: int) -> None:
        """A rise shorter than the search."""
        if steps <= self.warmup:
            raise Refused(
                f"schedule.warmup: expected fewer updates than the {steps} in all, got {self.warmup}; "
                "try schedule.warmup=0"
            )

    def __call__(self, rate: float, step: int, steps: int) -> float:
        """rate * (step + 1) / warmup, then rate * (1 + cos(pi * share of the fall)) / 2."""
        if step < self.warmup:
            return rate * (step + 1) / self.warmup
        return rate * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (steps - self.warmup)))


def require_schedule(schedule: Schedule | None, steps: int) -> None:
    """Refuse a schedule that does not fit the number of updates; None fits any."""
    if schedule is not None:
        schedule.require(steps)


def paced(optimizer: torch.optim.Optimizer, schedule: Schedule | None, steps: int) -> Callable[[int], None]:
    """A function to call before every update with its step, which sets the optimiser's rates; None leaves them."""
    if schedule is None:
        return lambda step: None
    first = [group["lr"] for group in optimizer.param_groups]

    def pace(step: int) -> None:
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = schedule(rate, step, steps)

    return pace
