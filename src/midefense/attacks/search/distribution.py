"""Search for a Gaussian over latents per candidate instead of a point, and draw from it at the end (KED-MI's
distributional recovery; Chen et al., ICCV 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Problem, seen
from midefense.attacks.schedules import Schedule, paced, require_schedule
from midefense.ranges import Draws, Positive, Whole
from midefense.types import Found


class Distribution(Part):
    """Mean and log variance of every start descend at once, each step on one draw z = mean + exp(log_variance / 2) eps.
    Losses are summed, so that no Gaussian depends on its mates, unless the objective couples them.

    A start becomes the mean; what is found are `draws` from its Gaussian, always the same noise, which the target is
    not asked about. Their loss is that of the Gaussian's last step, not their own.

    Args:
        optimizer: a partial torch optimiser (`_partial_: true`) for means and log variances.
        steps: updates.
        reference_batch: the sum of losses is divided by it, as in `gradient.Gradient`.
        log_variance: where it starts (1 in KED-MI, a deviation of 1.65; 0 in the BiDO repository).
        draws: candidates per Gaussian.
        box: latents are clamped to [-box, box] before they are decoded, in the search and at the end; beyond it they
            get no gradient. None leaves them free.
        schedule: how the learning rate moves (`attacks.schedules`); None leaves it as it is.
    """

    reads = ("gradient",)

    def __init__(
        self,
        *,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        steps: Whole,
        reference_batch: Positive = 1,
        log_variance: float = 1.0,
        draws: Draws = 5,
        box: Positive | None = None,
        schedule: Schedule | None = None,
    ):
        require_schedule(schedule, steps)
        self.optimizer, self.steps, self.reference_batch = optimizer, steps, reference_batch
        self.log_variance, self.draws, self.box, self.schedule = log_variance, draws, box, schedule

    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields the draws [M * draws, ...] of the Gaussians after every step, start by start."""
        owners = found.evidence
        mean = found.latents.detach().clone().requires_grad_()
        log_variance = torch.full_like(mean, self.log_variance, requires_grad=True)
        optimizer = self.optimizer([mean, log_variance])
        pace = paced(optimizer, self.schedule, self.steps)
        rng, last = problem.draw("search"), self.noise(problem, mean, self.draws, problem.draw("last draws"))
        for step in range(self.steps):
            pace(step)
            optimizer.zero_grad()
            loss, sure = self._descend(problem, mean, log_variance, owners, rng)
            optimizer.step()
            with torch.no_grad():
                if problem.prior.held:
                    mean[..., -problem.prior.held :] = found.latents[..., -problem.prior.held :]
                latents = self._latents(problem, mean[:, None], log_variance[:, None], last).flatten(0, 1)
            each = loss.repeat_interleave(self.draws)
            rows = owners.repeat_interleave(self.draws)
            yield Found(latents, each, rows, stage="optimised", seen=seen(loss, sure))

    def _descend(
        self, problem: Problem, mean: Tensor, log_variance: Tensor, owners: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Loss per Gaussian [M] of one draw each, and the confidences in them, in pieces; leaves the gradients."""
        noise, views = self.noise(problem, mean, 1, rng)[:, 0], problem.views
        dice = None if views is None else views.draw(len(mean), rng).to(mean.device, non_blocking=True)
        loss, sure = mean.new_empty(len(mean)), []
        for rows in problem.chunks(len(mean)):
            latents = self._latents(problem, mean[rows], log_variance[rows], noise[rows])
            look = problem.look(latents, owners[rows], views, None if dice is None else dice[rows])
            each = problem.objective(look)
            (each.sum() / self.reference_batch).backward()
            loss[rows] = each.detach().to(loss.dtype)
            sure.append(look.confidence())
        return loss, sure

    def noise(self, problem: Problem, mean: Tensor, draws: int, rng: torch.Generator) -> Tensor:
        """Standard normal noise [M, draws, ...] on the device of `mean` [M, ...], drawn on the CPU; 0 for the entries
        of a latent that no search moves."""
        noise = torch.randn(len(mean), draws, *mean.shape[1:], generator=rng)
        if problem.prior.held:
            noise[..., -problem.prior.held :] = 0
        return noise.to(mean.device, mean.dtype, non_blocking=True)

    def _latents(self, problem: Problem, mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
        """Draws of Gaussians, clamped to the box but for the entries that no search moves."""
        drawn = mean + (log_variance / 2).exp() * noise
        if self.box is None:
            return drawn
        free, held = drawn.tensor_split([drawn.shape[-1] - problem.prior.held], dim=-1)
        return torch.cat([free.clamp(-self.box, self.box), held], -1)
