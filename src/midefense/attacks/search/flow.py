"""Learn a distribution of latents per target instead of a point (variational model inversion; Wang et al., NeurIPS
2021): accurate samples that are still spread as the prior is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from midefense.attacks.miners import Family, Miner
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem, seen
from midefense.priors.base import Prior
from midefense.ranges import Count, NotNegative, Whole
from midefense.types import Found, Refused, refuse_unknown

DTYPES = ("float64", "float32")


@functools.lru_cache(maxsize=8)
def _chosen(rows: tuple[int, ...], layers: int, device: torch.device) -> Tensor:
    """Which of the layers are among `rows`, bool [layers, 1]; made once, as a copy to the device makes it wait."""
    return torch.tensor([[layer in rows] for layer in range(layers)]).to(device)


class Variational(Part):
    """Minimise E_q[loss(decode(z))] + penalty * KL(q || N(0, I)) over a distribution q per target (equation 6), all
    targets of the group in the same products. What is `optimised` after every step are the step's samples; at the end
    as many fresh ones per target as the init gave starts (which are draws of the prior, where q begins).

    Args:
        family: the kind of distribution (`attacks.miners`).
        optimizer: a partial torch optimiser, whose every step treats the targets alike.
        steps: updates.
        batch_size: samples per target and step, over which the loss is a mean. As many others estimate the divergence.
        penalty: weight of the divergence; 0 gives accuracy alone, a large one the prior.
        layered: a distribution for every row of styles of a StyleGAN2; otherwise one, for all rows.
        rows: the rows that come from q; all others are those of one draw of the prior. None is all. The divergence of
            rows that do not count is counted, as in the authors' code.
        over_rows: the divergence is the `mean` over rows (theirs, for flows), or the `sum` (for normals).
        dtype: of q; the generator keeps its own.
    """

    reads = ("gradient",)
    begins_anew = True
    means = ("mean", "sum")

    def __init__(
        self,
        *,
        family: Family,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        steps: Whole,
        batch_size: Count = 64,
        penalty: NotNegative = 1e-3,
        layered: bool = False,
        rows: Sequence[Whole] | None = None,
        over_rows: str = "mean",
        dtype: str = "float64",
    ):
        if over_rows not in self.means:
            raise refuse_unknown("attack.search.over_rows", over_rows, self.means)
        if dtype not in DTYPES:
            raise refuse_unknown("attack.search.dtype", dtype, DTYPES)
        if rows is not None and (not layered or not rows):
            raise Refused(f"attack.search.rows: expected rows of a layered search or null, got {list(rows)}; try null")
        self.family, self.optimizer, self.updates, self.batch_size = family, optimizer, steps, batch_size
        self.penalty, self.layered, self.rows, self.over_rows = penalty, layered, rows, over_rows
        self.dtype = getattr(torch, dtype)
        self.needs = ("normal", "styles") if layered else ("normal",)
        self.reshapes = layered

    @property
    def steps(self) -> int:
        """What a search yields."""
        return self.updates + 1

    def check_prior(self, prior: Prior) -> None:
        """Refuse rows that the generator has not, and what the family cannot be a distribution of."""
        self.family.check_width(prior.normal_width)
        if self.rows is not None and max(self.rows) >= prior.rows:
            raise Refused(f"attack.search.rows: expected rows below {prior.rows}, got {list(self.rows)}; try null")

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields `optimised` after every step and at the end."""
        targets, rng = len(problem.evidence), problem.draw("search")
        miner = self.miner(problem, targets)
        optimizer = self.optimizer(list(miner.parameters()))
        owners = torch.arange(targets).repeat_interleave(self.batch_size)
        for _ in range(self.updates):
            optimizer.zero_grad()
            latents, loss, sure = self._descend(problem, miner, owners, rng)
            optimizer.step()
            yield Found(latents, loss, owners, stage="optimised", seen=seen(loss, sure))
        yield self._drawn(problem, miner, len(found) // targets)

    def miner(self, problem: Problem, targets: int) -> Miner:
        """A distribution for every target, and every row where it is layered."""
        prior = problem.prior
        layers = prior.rows if self.layered else 1
        miner = self.family.miner(targets, layers, prior.normal_width, problem.draw("miner"))
        return miner.to(problem.device, self.dtype)

    def latents(self, prior: Prior, miner: Miner, samples: Tensor, rng: torch.Generator) -> Tensor:
        """Latents [targets * B, ...] of samples [G, B, width], target by target."""
        device = samples.device
        samples = samples.unflatten(0, (miner.targets, miner.layers)).transpose(1, 2).flatten(0, 1).float()
        if not self.layered:
            return prior.of_normal(samples[:, 0])
        mapped = prior.of_normal(samples)
        if self.rows is None:
            return mapped
        others = prior.of_normal(self.others(len(samples), miner.width, rng).to(device))
        return torch.where(_chosen(tuple(self.rows), miner.layers, device), mapped, others[:, None])

    def others(self, count: int, width: int, rng: torch.Generator) -> Tensor:
        """Normal noise [count, width] of the rows that do not come from q."""
        return torch.randn(count, width, generator=rng)

    def divergence(self, miner: Miner, rng: torch.Generator) -> Tensor:
        """KL(q || N(0, I)) per target [targets]."""
        each = miner.divergence(self.batch_size, rng).unflatten(0, (miner.targets, miner.layers))
        return each.mean(1) if self.over_rows == "mean" else each.sum(1)

    def _descend(
        self, problem: Problem, miner: Miner, owners: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Samples as latents, the loss of each [targets * B] and the confidences in them; leaves the gradients on the
        parameters. Images are looked at in chunks: their gradient is gathered at the latents and goes on from there."""
        samples = miner.sample(miner.noise(self.batch_size, rng, shared=True))
        latents = self.latents(problem.prior, miner, samples, rng)
        leaves = latents.detach().requires_grad_()
        loss, sure = self._look(problem, leaves, owners, rng, backward=True)
        (latents * leaves.grad).sum().div(self.batch_size).backward()
        if self.penalty:
            (self.penalty * self.divergence(miner, rng).sum()).backward()
        return leaves.detach(), loss, sure

    def _look(
        self, problem: Problem, latents: Tensor, owners: Tensor, rng: torch.Generator, backward: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        loss, sure, draws = latents.new_zeros(len(latents)), [], None
        if problem.views is not None:
            draws = problem.views.draw(len(latents), rng).to(latents.device, non_blocking=True)
        for rows in problem.chunks(len(latents)):
            look = problem.look(latents[rows], owners[rows], problem.views, None if draws is None else draws[rows])
            each = problem.objective(look)
            if backward:
                each.sum().backward()
            loss[rows] = each.detach().to(loss.dtype)
            sure.append(look.confidence())
        return loss, sure

    @torch.no_grad()
    def _drawn(self, problem: Problem, miner: Miner, count: int) -> Found:
        """What is found: `count` samples per target, whose loss the target is asked for."""
        rng = problem.draw("samples")
        samples = miner.sample(miner.noise(count, rng, shared=True))
        latents = self.latents(problem.prior, miner, samples, rng)
        owners = torch.arange(miner.targets).repeat_interleave(count)
        loss, sure = self._look(problem, latents, owners, rng, backward=False)
        return Found(latents, loss, owners, stage="optimised", seen=seen(loss, sure))
