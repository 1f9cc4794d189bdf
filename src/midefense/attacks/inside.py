"""Starts inside the class: draws to which the target already gives the label wanted (BREP-MI, Kahla et al., CVPR 2022,
section 4.1). One pool serves all targets, at the expense of the shared bill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Count, Draws, Positive
from midefense.types import Found, Progress, Question, clip_images

UNMET = -1  # the draw of a hit that there was none of


class InsideTheClass(Part):
    """Draw batches of normal noise until every label wanted was given `candidates` times; a label starts from its first
    hits. One that was given less often starts from those again; one that was never given, within `draws`, has no start,
    and counts as a failure.

    Args:
        candidates: starts per target (the paper's 1; more are restarts).
        box: noise is clamped to [-box, box]; None leaves it as it is drawn.
        batch_size: draws between two looks at what is still wanted.
        draws: after how many to give up (a multiple of the batch is reached). The authors' code never does, so that a
            rare label keeps it for ever.
        distinct: how many labels are targets: the first of those wanted that are given (the paper's untargeted attack,
            whose accuracy is optimistic: the generator hits easy labels first). All others are none (`chosen`).
            None: every label wanted is a target.
    """

    reads = ("labels",)
    needs = ("sample", "normal")
    gives = ("noise",)
    asks_question = True

    def __init__(
        self,
        *,
        candidates: Draws = 1,
        box: Positive | None = 1.5,
        batch_size: Count = 256,
        draws: Count = 100_000,
        distinct: Count | None = None,
    ):
        self.candidates, self.box, self.batch_size = candidates, box, batch_size
        self.draws, self.distinct = draws, distinct

    def draw(self, width: int, rng: torch.Generator, batch: int) -> Tensor:
        """The noise [batch_size, width] of one batch, the same whatever was drawn before."""
        noise = torch.randn(self.batch_size, width, generator=seeds.fork(rng, f"batch {batch}"))
        return noise if self.box is None else noise.clamp(-self.box, self.box)

    @torch.no_grad()
    def prepare(
        self,
        prior: Prior,
        oracle: Oracle,
        rng: torch.Generator,
        state: Mapping[str, Tensor] | None,
        question: Question,
    ) -> Iterator[Progress]:
        """Draw and ask, a batch a step. State: `inside.labels` [L], the `inside.noise` [L, candidates, width] of the
        hits of each, which draws `inside.hits` [L, candidates] they were (-1: none), and how many were
        `inside.drawn`."""
        hits = _Hits(question.labels.unique(), self.candidates, self.distinct, prior.normal_width, state)
        while not hits.complete and hits.drawn < self.draws:
            noise = self.draw(prior.normal_width, rng, hits.drawn // self.batch_size)
            images = clip_images(prior.decode(prior.of_normal(noise.to(prior.device))))
            hits.add(noise, oracle(images, reads=("labels",)).labels.tolist())
            yield hits.drawn // self.batch_size, {"labels_met": float(hits.targets.sum())}, hits.state()

    def __call__(self, problem: Problem) -> Found:
        """Starts [N * candidates, ...] on the problem's device, target by target, with their noise."""
        labels, noise, hits = (problem.state[f"inside.{name}"] for name in ("labels", "noise", "hits"))
        rows = torch.searchsorted(labels, problem.evidence.labels)
        met = (hits[rows] != UNMET).sum(1)
        owners = met.nonzero()[:, 0]
        turns = torch.arange(self.candidates) % met[owners, None]
        starts = noise[rows[owners, None], turns].flatten(0, 1)
        latents = problem.prior.of_normal(starts.to(problem.device)).detach()
        unmeasured = torch.full((len(starts),), torch.nan, device=latents.device)
        owners = owners.repeat_interleave(self.candidates)
        return Found(latents, unmeasured, owners, stage="initial", noise=starts)

    def chosen(self, state: Mapping[str, Tensor], labels: Tensor) -> Tensor | None:
        """Which of the targets, of these `labels` int64 [N], it takes up, bool [N]; None: all."""
        if self.distinct is None:
            return None
        met = state["inside.hits"][:, 0] != UNMET
        return met[torch.searchsorted(state["inside.labels"], labels)]


class _Hits:
    """The first `candidates` hits of each of `labels` [L], in the order of the draws; with `distinct`, of the first so
    many labels that are given, which alone are targets."""

    def __init__(
        self, labels: Tensor, candidates: int, distinct: int | None, width: int, state: Mapping[str, Tensor] | None
    ):
        self._labels, self._distinct = labels, len(labels) if distinct is None else distinct
        self._rows = {label: row for row, label in enumerate(labels.tolist())}
        kept = state or {}
        self._noise = kept.get("inside.noise", torch.zeros(len(labels), candidates, width)).clone()
        self._hits = kept.get("inside.hits", torch.full((len(labels), candidates), UNMET)).clone()
        self.drawn = int(kept.get("inside.drawn", 0))

    @property
    def targets(self) -> Tensor:
        """Which labels were given at least once, bool [L]."""
        return self._hits[:, 0] != UNMET

    @property
    def complete(self) -> bool:
        """Whether every label that is a target has all its hits."""
        met = self.targets
        return int(met.sum()) >= min(self._distinct, len(met)) and not (self._hits[met] == UNMET).any()

    def add(self, noise: Tensor, told: list[int]) -> None:
        """A batch of draws [B, width] and what the target said of each. Once all hits are there, the rest is not looked
        at, though it was asked about."""
        for place, label in enumerate(told):
            if self.complete:
                break
            if (row := self._rows.get(label)) is not None:
                self._keep(row, noise[place], self.drawn + place)
        self.drawn += len(told)

    def _keep(self, row: int, noise: Tensor, draw: int) -> None:
        met = self._hits[row] != UNMET
        late = not met.any() and int(self.targets.sum()) >= self._distinct
        if met.all() or late:
            return
        place = int(met.sum())
        self._noise[row, place], self._hits[row, place] = noise, draw

    def state(self):
        """A function that gives all of it as tensors."""
        made = {
            "inside.labels": self._labels,
            "inside.noise": self._noise.clone(),
            "inside.hits": self._hits.clone(),
            "inside.drawn": torch.tensor(self.drawn),
        }
        return lambda: made
