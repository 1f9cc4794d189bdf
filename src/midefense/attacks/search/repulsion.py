"""Walk away from the boundary of a class by its labels alone (BREP-MI, Kahla et al., CVPR 2022): points on a sphere
around the candidate that leave the class push it to the other side, and the sphere grows once nearly none leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.ranges import Batch, Count, Positive, Range
from midefense.types import Found, refuse_unknown

Growth = Annotated[float, Range(1)]
MeanOfSigns = Annotated[float, Range(-1, 0.999999)]  # at 1 no sphere would ever grow


class BoundaryRepulsion(Part):
    """Rounds over the normal noise z of a prior, from starts inside the class, all candidates of the group at once.

    A round asks whether z + R u_i is inside the class, for N unit vectors u_i. With Phi_i = 1 inside and -1 outside it
    lets R grow where mean Phi > `grow_above`, and moves z by min(R / 3, 3) / N sum_i w_i u_i, w_i = (Phi_i - 1) / 2
    (equation 4), clamped to the box; a move that leaves the class is taken back, and the round drawn anew. A candidate
    rests `patience` moves behind its last growth. What is found is where it stood right behind the last growth; one
    whose sphere never grew finds nothing, which the authors count as a failure. The loss is minus the radius there.

    Every draw is of the candidate's own generator (its target and place), so that no candidate depends on the others;
    only what views draw, where there are any that do, is of the group, as in every search.

    Args:
        points: N, 32 in the paper.
        radius: R at first, in units of the normal noise.
        growth: by what R grows; 1 never lets it.
        grow_above: mean of Phi above which it does: .75 are 29 of 32 points inside (the authors' code), .5 are 25 (the
            toolbox), .99 are all of them (the paper's text).
        step_share, longest_step: a step is min(`step_share` R, `longest_step`).
        patience: accepted moves without growth behind which a candidate rests; None: only `max_rounds` ends it.
        max_rounds: rounds of a candidate at most, accepted or not. The authors' code has no such end: it never stops in
            a class too small to move in, nor in one too large to leave.
        box: z is clamped to [-box, box] after each move; the sphere is not. None leaves it free.
        repulsion_only: points inside do not push (w = Phi otherwise).
        stays_inside: ask about every move, and take back what leaves the class.
        keep: `growth`, the point behind the last growth, or `last`, where the candidate ends, which finds
            something in any case.
        divide_by_grown: divide R u_i by the radius that has grown already, as the authors' code does: the move of a
            round of growth is then shorter by `growth`.
    """

    asks_decisions = True
    needs = ("normal",)
    wants = ("noise",)
    keeps = ("growth", "last")

    def __init__(
        self,
        *,
        points: Batch = 32,
        radius: Positive = 2.0,
        growth: Growth = 1.3,
        grow_above: MeanOfSigns = 0.75,
        step_share: Positive = 1 / 3,
        longest_step: Positive = 3.0,
        patience: Count | None = 1000,
        max_rounds: Count = 3000,
        box: Positive | None = 1.5,
        repulsion_only: bool = True,
        stays_inside: bool = True,
        keep: str = "growth",
        divide_by_grown: bool = False,
    ):
        if keep not in self.keeps:
            raise refuse_unknown("attack.search.keep", keep, self.keeps)
        self.points, self.radius, self.growth, self.grow_above = points, radius, growth, grow_above
        self.step_share, self.longest_step, self.patience, self.steps = step_share, longest_step, patience, max_rounds
        self.box, self.repulsion_only, self.stays_inside = box, repulsion_only, stays_inside
        self.keep, self.divide_by_grown = keep, divide_by_grown

    def as_published(self) -> BoundaryRepulsion:
        """Moves divided by the radius that has grown."""
        options = {name: value for name, value in vars(self).items() if name not in ("steps", "divide_by_grown")}
        return BoundaryRepulsion(**options, max_rounds=self.steps, divide_by_grown=True)

    @torch.no_grad()
    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields what was found after every round."""
        walk = _Walk.begin(self, problem, found)
        rounds = 0
        while rounds == 0 or (len(walk.awake) and rounds < self.steps):
            if len(walk.awake):
                self._round(problem, walk, walk.awake)
            rounds += 1
            yield walk.found()

    def _round(self, problem: Problem, walk: _Walk, rows: Tensor) -> None:
        """One round of the candidates at `rows` [A]."""
        noise, radius = walk.noise[rows], walk.radius[rows]
        directions = self.directions(walk, rows)
        outside = self._outside(problem, walk, rows, noise[:, None] + radius[:, None, None] * directions)[0]
        walk.inside = 1 - outside.mean()
        grew = (1 - 2 * outside).sum(1) > self.grow_above * self.points
        walk.radius[rows] = torch.where(grew, self.growth * radius, radius)
        moved = noise + self._move(directions, outside, radius, walk.radius[rows])
        moved = moved if self.box is None else moved.clamp(-self.box, self.box)
        left, latents = self._arrived(problem, walk, rows, moved[:, None])
        walk.settle(rows, moved, latents, grew, accepted=left[:, 0] == 0)

    def directions(self, walk: _Walk, rows: Tensor) -> Tensor:
        """Unit vectors [A, points, width] of this round, each candidate's from its own generator."""
        width = walk.noise.shape[1]
        normals = torch.stack([torch.randn(self.points, width, generator=walk.draws[row]) for row in rows.tolist()])
        return normals / normals.norm(dim=2, keepdim=True)

    def _move(self, directions: Tensor, outside: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """How far each candidate goes [A, width]: of the directions [A, points, width], which of them lie outside
        [A, points], and its radius `before` and `after` it grew [A]."""
        weights = -outside if self.repulsion_only else 1 - 2 * outside
        pushed = (weights[..., None] * directions).mean(1)
        if self.divide_by_grown:
            pushed = pushed * (before / after)[:, None]
        return (self.step_share * before).clamp(max=self.longest_step)[:, None] * pushed

    def _arrived(self, problem: Problem, walk: _Walk, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As `_outside`, of candidates that moved; without asking, where nobody is to be taken back."""
        if self.stays_inside:
            return self._outside(problem, walk, rows, noise)
        latents = [problem.prior.of_normal(noise[piece, 0].to(problem.device)) for piece in problem.chunks(len(noise))]
        return torch.zeros(noise.shape[:2]), torch.cat(latents)

    def _outside(self, problem: Problem, walk: _Walk, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Which of `noise` [A, P, width] the target says to lie outside the class of the candidates at `rows`: 0 or 1
        [A, P] on the CPU; and the latents [A * P, ...]."""
        owners = walk.owners[rows].repeat_interleave(noise.shape[1])
        draws = None if problem.views is None else problem.views.draw(len(owners), walk.views)
        flat, told, made = noise.flatten(0, 1), [], []
        for piece in problem.chunks(len(flat)):
            latents = problem.prior.of_normal(flat[piece].to(problem.device))
            shown = None if draws is None else draws[piece].to(problem.device, non_blocking=True)
            told.append(problem.objective(problem.look(latents, owners[piece], problem.views, shown)))
            made.append(latents)
        return torch.cat(told).cpu().view(noise.shape[:2]), torch.cat(made)


@dataclass
class _Walk:
    """Where the candidates [M] stand, on the CPU but for latents: their `noise` [M, width], `radius`, accepted `moves`
    and those at the last growth (`grew_at`); and what is `kept` of each: noise, latents [M, ...] and `depth`, the
    radius there. `lost`: who has found nothing yet; `awake`: rows that go on."""

    rule: BoundaryRepulsion
    noise: Tensor
    latents: Tensor
    owners: Tensor
    draws: list[torch.Generator]
    views: torch.Generator
    inside: Tensor

    def __post_init__(self) -> None:
        count = len(self.noise)
        self.kept, self.kept_latents = self.noise.clone(), self.latents.clone()
        self.radius, self.depth = (torch.full((count,), float(self.rule.radius)) for _ in range(2))
        self.moves, self.grew_at = (torch.zeros(count, dtype=torch.int64) for _ in range(2))
        self.lost = torch.full((count,), self.rule.keep == "growth")
        self.awake = torch.arange(count)

    @classmethod
    def begin(cls, rule: BoundaryRepulsion, problem: Problem, found: Found) -> _Walk:
        """At the starts, with a generator for each."""
        draws = problem.draws_of("search", found.evidence)
        noise = found.noise.cpu().clone()
        latents, views = found.latents.detach(), problem.draw("views")
        return cls(rule, noise, latents, found.evidence, draws, views, torch.tensor(torch.nan))

    def settle(self, rows: Tensor, moved: Tensor, latents: Tensor, grew: Tensor, accepted: Tensor) -> None:
        """The end of a round of the candidates at `rows` [A], which `moved` [A, width] to `latents`, where `accepted`;
        `grew`: whose sphere did in this very round. A growth whose move is taken back counts for the rest alone."""
        self.noise[rows[accepted]] = moved[accepted]
        self.grew_at[rows[grew]] = self.moves[rows[grew]]
        self.moves[rows[accepted & ~grew]] += 1
        behind_growth = accepted & grew
        self.lost[rows[behind_growth]] = False
        keeps = accepted if self.rule.keep == "last" else behind_growth
        kept = rows[keeps]
        self.kept[kept], self.depth[kept] = moved[keeps], self.radius[kept]
        places = kept.to(self.kept_latents.device)
        self.kept_latents[places] = latents[keeps.to(latents.device)]
        if self.rule.patience is not None:
            self.awake = rows[self.moves[rows] - self.grew_at[rows] < self.rule.patience]

    def found(self) -> Found:
        """What is kept, as it would be returned now, of those who have found something."""
        seen = {"loss": -self.depth.mean(), "radius": self.radius.mean(), "share_inside": self.inside}
        rows = (~self.lost).nonzero()[:, 0]
        latents = self.kept_latents[rows.to(self.kept_latents.device)]
        loss = -self.depth[rows].to(latents.device)
        return Found(latents, loss, self.owners[rows], stage="optimised", noise=self.kept[rows], seen=seen)
