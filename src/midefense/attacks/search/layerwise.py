"""Search a generator from the latents inwards: first the latents, then also what enters each next block (IF-GMI; Qiu et
al., "A closer look at GAN priors", ECCV 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Look, Problem, seen
from midefense.priors.base import Prior
from midefense.ranges import NotNegative, Positive, Side, Some, Whole
from midefense.types import Found, Refused, to_pixels


class Layerwise(Part):
    """Stage i enters the generator at block i and varies the latents (for all blocks from there on) and, from stage 1
    on, the features that block i takes; both stay in L1 balls around where the stage began.

    Every stage is reported (`stage00`, `stage01`, ...), as the images it ended with. `optimised` is, per target, the
    stage of which the attacked target itself is surest on average: the original chose by the evaluator.

    Args:
        steps: updates per stage.
        optimizer: a partial torch optimiser, made anew for every stage.
        feature_radius, latent_radius: L1 balls per stage, per candidate; 0 leaves a stage without.
        keep_skip: carry along the picture of the blocks before the entrance. The original drops it.
        reference_batch: the sum of losses is divided by it.
        picture_size: side of the pictures that are kept beside the images the target sees, for evaluators of another
            size: what they are shown is framed from the generator's own picture too. None keeps the images alone.
    """

    reads = ("probs", "gradient")
    needs = ("blocks",)
    later = {"picture_size": None}

    def __init__(
        self,
        *,
        steps: Annotated[Sequence[Whole], Some()],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        feature_radius: Sequence[NotNegative],
        latent_radius: Sequence[NotNegative],
        keep_skip: bool = False,
        reference_batch: Positive = 1,
        picture_size: Side | None = None,
    ):
        for name, radii in (("feature_radius", feature_radius), ("latent_radius", latent_radius)):
            if len(radii) < len(steps):
                raise Refused(
                    f"attack.search.{name}: expected a radius for each of the {len(steps)} stages, got {list(radii)}; "
                    "try 0 for stages without a bound"
                )
        self.stages, self.optimizer = tuple(steps), optimizer
        self.feature_radius, self.latent_radius = tuple(feature_radius), tuple(latent_radius)
        self.keep_skip, self.reference_batch, self.picture_size = keep_skip, reference_batch, picture_size

    @property
    def steps(self) -> int:
        """What a search yields."""
        return sum(self.stages) + 2 * len(self.stages)

    def check_prior(self, prior: Prior) -> None:
        """Refuse a generator with fewer blocks than stages."""
        if len(self.stages) > prior.blocks:
            raise Refused(
                f"attack.search.steps: expected at most {prior.blocks} stages, the blocks of the generator, "
                f"got {len(self.stages)}; try fewer"
            )

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields `optimised` after every step, and each stage at its end."""
        self.check_prior(problem.prior)
        rng, chosen, sure = problem.draw("search"), None, None
        inner = _Inner(found.latents.detach().clone())
        for stage in range(len(self.stages)):
            for moving in self._descend(problem, inner, found.evidence, stage, rng, pictured=chosen is None):
                yield moving if chosen is None else replace(chosen, seen=moving.seen)
            ended, confidence = self._look_back(problem, inner, found.evidence, stage)
            yield ended
            chosen, sure = (ended, confidence) if chosen is None else surer((ended, confidence), (chosen, sure))
            chosen = replace(chosen, stage="optimised")
            yield chosen
            if stage + 1 < len(self.stages):
                inner = self._lift(problem, inner, stage)

    def _descend(
        self, problem: Problem, inner: _Inner, owners: Tensor, stage: int, rng: torch.Generator, pictured: bool
    ) -> Iterator[Found]:
        """One stage: moves `inner` and yields where it is after every step, with the loss and, if `pictured`, the
        images of before its update."""
        moving = [tensor.requires_grad_() for tensor in (inner.latents, inner.features) if tensor is not None]
        begun = [tensor.detach().clone() for tensor in moving]
        radii = (self.latent_radius[stage], self.feature_radius[stage])
        optimizer, entrance = self.optimizer(moving), problem.prior.at(stage)
        for _ in range(self.stages[stage]):
            optimizer.zero_grad()
            draws = None
            if problem.views is not None:
                draws = problem.views.draw(len(owners), rng).to(problem.device, non_blocking=True)
            losses, kept, sure = [], [], []
            for rows in problem.chunks(len(owners)):
                shown = None if draws is None else draws[rows]
                latents, features, images = inner.take(rows)
                drawn = problem.drawn(latents, features, images, entrance=entrance)
                look = problem.show(drawn, latents, owners[rows], problem.views, shown)
                loss = problem.objective(look)
                (loss.sum() / self.reference_batch).backward()
                losses.append(loss.detach())
                sure.append(look.confidence())
                if pictured:
                    kept.append(self._kept(problem.prior, look.drawn, look.images))
            optimizer.step()
            with torch.no_grad():
                for tensor, start, radius in zip(moving, begun, radii, strict=False):
                    if radius > 0:
                        tensor.copy_(start + project_l1(tensor - start, radius))
            loss = torch.cat(losses)
            yield Found(inner.latents.detach(), loss, owners, "optimised", **_joined(kept), seen=seen(loss, sure))

    @torch.no_grad()
    def _look_back(self, problem: Problem, inner: _Inner, owners: Tensor, stage: int) -> tuple[Found, Tensor]:
        """What a stage ended with, drawn again after its last update, and how sure the target is of it [M]."""
        losses, kept, confidences = [], [], []
        reads = tuple(dict.fromkeys((*problem.reads, "probs")))
        for rows in problem.chunks(len(owners)):
            latents, features, images = inner.take(rows)
            drawn = problem.prior.at(stage).draw(latents, features, images)
            kept.append(self._kept(problem.prior, drawn, problem.prior.frame(drawn)))
            saved = kept[-1]["pixels"].float().div_(255)  # the target is asked about what is kept
            answer = problem.oracle(saved, ids=problem.evidence.ids[owners[rows]], reads=reads)
            labels = problem.evidence.labels[owners[rows]].to(saved.device)
            look = Look(latents, drawn, saved, saved, answer, labels, problem.prior, problem.known)
            losses.append(problem.objective(look))
            confidences.append(answer.probs.gather(1, labels[:, None])[:, 0])
        latents = inner.latents.detach().clone()
        ended = Found(latents, torch.cat(losses), owners, f"stage{stage:02d}", **_joined(kept))
        return ended, torch.cat(confidences)

    def _kept(self, prior: Prior, drawn: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The fields of `Found` that hold images, of pictures as `drawn` and as framed to the target's `images`."""
        kept = {"pixels": to_pixels(images)}
        if self.picture_size is not None:
            kept["pictures"] = to_pixels(prior.frame(drawn, self.picture_size))
        return kept

    @torch.no_grad()
    def _lift(self, problem: Problem, inner: _Inner, stage: int) -> _Inner:
        """What enters the next block."""
        pieces = [problem.prior.at(stage).lift(*inner.take(rows)) for rows in problem.chunks(len(inner.latents))]
        features, images = zip(*pieces, strict=True)
        kept = torch.cat(images) if self.keep_skip and images[0] is not None else None
        return _Inner(inner.latents.detach().clone(), torch.cat(features), kept)


@dataclass
class _Inner:
    """Where a search stands in the generator: latents [M, ...], the features that enter the block and the picture so
    far (None where there is none)."""

    latents: Tensor
    features: Tensor | None = None
    images: Tensor | None = None

    def take(self, rows: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        parts = (self.latents, self.features, self.images)
        return tuple(None if part is None else part[rows] for part in parts)


def surer(new: tuple[Found, Tensor], old: tuple[Found, Tensor]) -> tuple[Found, Tensor]:
    """Per target the one of two stages, given with the target's confidence [M], of which it is surer on average."""
    (found, sure), (before, less_sure) = new, old
    owners = found.evidence.to(sure.device)
    gain = sure.new_zeros(int(found.evidence.max()) + 1).index_add_(0, owners, sure - less_sure)
    better = (gain > 0)[owners]

    def either(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(better.view(-1, *[1] * (first.ndim - 1)), first, second)

    fields = ("latents", "loss", "pixels", *(("pictures",) if found.pictures is not None else ()))
    chosen = {name: either(getattr(found, name), getattr(before, name)) for name in fields}
    return replace(found, **chosen), either(sure, less_sure)


def _joined(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pieces of the same fields one after the other; of no pieces, no fields."""
    return {name: torch.cat([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())}


def running_sum(values: Tensor, block: int = 64) -> Tensor:
    """Sums [B, N] of each row of values [B, N] up to and with every place, by blocks and then over the blocks' sums.

    On a GPU `cumsum` adds in whatever order its threads arrive; these products do not, and round less.
    """
    count = values.shape[1]
    blocks = F.pad(values, (0, -count % block)).unflatten(1, (-1, block))
    upper = torch.ones(block, block, dtype=values.dtype, device=values.device).triu()
    within = blocks @ upper
    if count > block:  # what came before a block is the sum up to the one before it
        within = within + F.pad(running_sum(within[:, :, -1]), (1, -1))[..., None]
    return within.flatten(1)[:, :count]


def project_l1(vectors: Tensor, radius: float) -> Tensor:
    """The nearest point of the L1 ball to each of `vectors` [B, ...] (Duchi et al., ICML 2008, figure 1)."""
    flat = vectors.flatten(1)
    sizes = flat.abs()
    ordered = sizes.sort(1, descending=True).values
    excess = running_sum(ordered) - radius
    ranks = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
    last = (ordered * ranks > excess).sum(1, keepdim=True).clamp(min=1)
    threshold = (excess.gather(1, last - 1) / last).clamp(min=0)
    projected = flat.sign() * (sizes - threshold).clamp(min=0)
    outside = sizes.sum(1, keepdim=True) >= radius
    return torch.where(outside, projected, flat).view_as(vectors)
