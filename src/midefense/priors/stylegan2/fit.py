"""Training a StyleGAN2: the non-saturating logistic loss with a lazy penalty on the gradient at real images (R1), and a
moving average of the generator (Karras et al., "Analyzing and improving the image quality of StyleGAN", CVPR 2020)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.compiling import Compiler
from midefense.priors.gan import running
from midefense.priors.stylegan2.critic import Discriminator
from midefense.priors.stylegan2.generator import Generator
from midefense.resampling import resized
from midefense.training_state import load_training, training_state
from midefense.types import Images, Progress, Refused

RAMP = 0.05  # the half-life of the average is at most this share of the images shown so far


@dataclass(frozen=True)
class Training:
    """How a StyleGAN2 is trained; see `StyleGan2Trained`."""

    steps: int
    batch_size: int
    learning_rate: float
    betas: tuple[float, float]
    r1: float
    r1_every: int
    average_images: float
    mixing: float
    mirror: bool
    unit: int

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.r1_every, self.unit) < 1 or self.learning_rate <= 0:
            raise Refused(f"prior: expected steps, batch_size, r1_every, unit from 1 and a positive rate, got {self}")
        if self.r1 < 0 or self.average_images < 0 or not 0 <= self.mixing <= 1:
            raise Refused(f"prior: expected r1, average_images from 0 and mixing in [0, 1], got {self}")


def fit_styles(
    average: Generator,
    critic: Discriminator,
    public: Images,
    training: Training,
    *,
    seed: int,
    state: dict[str, Tensor] | None,
    precision: str = "32-true",
    compiler: Compiler | None = None,
) -> Iterator[Progress]:
    """Train a copy of `average` against `critic`; `average` follows it. Yields every `unit` steps and at the end.

    Step s draws everything from generators keyed by (seed, s), so that a run that goes on from a saved state draws what
    the uninterrupted one did.
    """
    generator = copy.deepcopy(average).requires_grad_(True)
    # the critic's penalty comes every `r1_every` steps: its optimiser is slowed as if there were that many more
    lazy = training.r1_every / (training.r1_every + 1)
    optimizers = {
        "generator": torch.optim.Adam(generator.parameters(), lr=training.learning_rate, betas=training.betas),
        "critic": torch.optim.Adam(
            critic.parameters(), lr=training.learning_rate * lazy, betas=tuple(beta**lazy for beta in training.betas)
        ),
    }
    networks = {"generator": generator, "critic": critic, "average": average}
    drawing = {"generator": generator.synthesis, "critic": critic}  # styles are mapped in float32
    done = load_training(state, networks, optimizers)
    generator.train()
    critic.train()
    average.eval()
    sums = torch.zeros(3, device=next(critic.parameters()).device)
    for step in range(done, training.steps):
        round_ = _Round(generator, critic, training, seed, step)
        with seeds.isolated(seed, "prior", "noise", step), running(drawing, precision, compiler):
            sums[0] += round_.improve_generator(optimizers["generator"])
            sums[1:] += round_.improve_critic(optimizers["critic"], public)
        _follow(average, generator, training, step)
        if (step + 1) % training.unit == 0 or step + 1 == training.steps:
            count = training.unit if (step + 1) % training.unit == 0 else training.steps % training.unit
            means = (sums / count).tolist()
            sums.zero_()
            logs = dict(zip(("generator_loss", "critic_loss", "r1_penalty"), means, strict=True))
            yield step + 1, logs, training_state(networks, optimizers, step + 1)


class _Round:
    """One update of each network, its draws keyed by (seed, step)."""

    def __init__(self, generator: Generator, critic: Discriminator, training: Training, seed: int, step: int):
        self.generator, self.critic, self.training, self.step = generator, critic, training, step
        self.rng = seeds.generator(seed, "prior", "fit", step)
        self.device = next(critic.parameters()).device

    def improve_generator(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """softplus(-D(G(z))), averaged over the batch."""
        self.critic.requires_grad_(False)  # this step needs no gradients of the critic
        loss = F.softplus(-self.critic(self.pictures())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.critic.requires_grad_(True)
        return loss.detach()

    def improve_critic(self, optimizer: torch.optim.Optimizer, public: Images) -> Tensor:
        """softplus(D(G(z))) + softplus(-D(x)), averaged, and now and then the penalty; [loss, penalty]."""
        with torch.no_grad():
            fake = self.pictures()
        real = self.real(public)
        penalised = self.training.r1 > 0 and self.step % self.training.r1_every == 0
        loss = (F.softplus(self.critic(fake)) + F.softplus(-self.critic(real))).mean()
        penalty = loss.new_zeros(())
        optimizer.zero_grad()
        loss.backward()
        if penalised:
            real.requires_grad_()
            slope = torch.autograd.grad(self.critic(real).sum(), real, create_graph=True)[0]
            penalty = slope.square().sum((1, 2, 3)).mean()
            (penalty * (self.training.r1 / 2 * self.training.r1_every)).backward()
        optimizer.step()
        return torch.stack([loss.detach(), penalty.detach() * self.training.r1_every])

    def pictures(self) -> Tensor:
        """Pictures [B, C, r, r] of fresh latents, in [-1, 1]; some mix the styles of two."""
        config, batch = self.generator.config, self.training.batch_size
        latents, others = torch.randn(2, batch, config.z_dim, generator=self.rng).to(self.device)
        ws = self.generator.styles(latents)
        if self.training.mixing:
            mixed = torch.rand(batch, 1, 1, generator=self.rng) < self.training.mixing
            first = torch.randint(1, config.num_ws, (batch, 1, 1), generator=self.rng)
            rows = torch.arange(config.num_ws).view(1, -1, 1)
            swapped = (mixed & (rows >= first)).to(self.device)
            ws = torch.where(swapped, self.generator.styles(others), ws)
        return self.generator.synthesis(ws, noise="random")[1]

    def real(self, public: Images) -> Tensor:
        """Public images [B, C, r, r] in [-1, 1]."""
        rows = torch.randint(len(public), (self.training.batch_size,), generator=self.rng)
        images = public.floats(rows, self.device)
        images = resized(images, self.generator.config.resolution)
        if self.training.mirror:
            turned = (torch.rand(len(images), 1, 1, 1, generator=self.rng) < 0.5).to(self.device)
            images = torch.where(turned, images.flip(3), images)
        return images * 2 - 1


@torch.no_grad()
def _follow(average: Generator, generator: Generator, training: Training, step: int) -> None:
    """Move the average towards the generator's weights; what is no weight is copied."""
    half_life = min(training.average_images, (step + 1) * training.batch_size * RAMP)
    keep = 0.5 ** (training.batch_size / max(half_life, 1e-8))
    for own, other in zip(average.parameters(), generator.parameters(), strict=True):
        own.lerp_(other, 1 - keep)
    for own, other in zip(average.buffers(), generator.buffers(), strict=True):
        own.copy_(other)
