"""Training a StyleGAN2: the non-saturating logistic loss with a lazy penalty on the gradient at real images (R1), and a
moving average of the generator (Karras et al., "Analyzing and improving the image quality of StyleGAN", CVPR 2020)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.capturing import Captured
from midefense.compiling import Compiler
from midefense.priors.gan import load_training, running, training_state
from midefense.priors.stylegan2.critic import Discriminator
from midefense.priors.stylegan2.generator import Generator
from midefense.resampling import resized
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
    device = next(critic.parameters()).device
    adam = functools.partial(torch.optim.Adam, capturable=device.type == "cuda")  # else it must not be
    # the critic's penalty comes every `r1_every` steps: its optimiser is slowed as if there were that many more
    lazy = training.r1_every / (training.r1_every + 1)
    optimizers = {
        "generator": adam(generator.parameters(), lr=training.learning_rate, betas=training.betas),
        "critic": adam(
            critic.parameters(), lr=training.learning_rate * lazy, betas=tuple(beta**lazy for beta in training.betas)
        ),
    }
    networks = {"generator": generator, "critic": critic, "average": average}
    drawing = {"generator": generator.synthesis, "critic": critic}  # styles are mapped in float32
    done = load_training(state, networks, optimizers)
    generator.train()
    critic.train()
    average.eval()
    rounds = _Rounds(generator, critic, optimizers, training, device)
    sums = torch.zeros(3, device=device)
    for step in range(done, training.steps):
        with seeds.isolated(seed, "prior", "noise", step), running(drawing, precision, compiler):
            sums += rounds.improve(public, seeds.generator(seed, "prior", "fit", step), step)
        _follow(average, generator, training, step)
        if (step + 1) % training.unit == 0 or step + 1 == training.steps:
            count = training.unit if (step + 1) % training.unit == 0 else training.steps % training.unit
            means = (sums / count).tolist()
            sums.zero_()
            logs = dict(zip(("generator_loss", "critic_loss", "r1_penalty"), means, strict=True))
            yield step + 1, logs, training_state(networks, optimizers, step + 1)


class _Rounds:
    """Updates of each network. What is drawn is drawn first, so that the updates themselves can be replayed."""

    def __init__(
        self,
        generator: Generator,
        critic: Discriminator,
        optimizers: Mapping[str, torch.optim.Optimizer],
        training: Training,
        device: torch.device,
    ):
        self.generator, self.critic, self.optimizers = generator, critic, optimizers
        self.training, self.device = training, device
        self._improve_generator = Captured(self.improve_generator, device)
        self._improve_critic = Captured(self.improve_critic, device)
        self._improve_penalised = Captured(functools.partial(self.improve_critic, penalised=True), device)

    def improve(self, public: Images, rng: torch.Generator, step: int) -> Tensor:
        """Both, the generator first; its loss, the critic's and the penalty [3]."""
        fake, other = self.drawn(rng), self.drawn(rng)
        real = self.real(public, rng)
        penalised = self.training.r1 > 0 and step % self.training.r1_every == 0
        improve_critic = self._improve_penalised if penalised else self._improve_critic
        return torch.cat([self._improve_generator(*fake), improve_critic(real, *other)])

    def improve_generator(self, *drawn: Tensor) -> Tensor:
        """softplus(-D(G(z))), averaged over the batch [1]."""
        optimizer = self.optimizers["generator"]
        self.critic.requires_grad_(False)  # this step needs no gradients of the critic
        loss = F.softplus(-self.critic(self.pictures(*drawn))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.critic.requires_grad_(True)
        return loss.detach()[None]

    def improve_critic(self, real: Tensor, *drawn: Tensor, penalised: bool = False) -> Tensor:
        """softplus(D(G(z))) + softplus(-D(x)), averaged, and now and then the penalty; [loss, penalty]."""
        optimizer = self.optimizers["critic"]
        with torch.no_grad():
            fake = self.pictures(*drawn)
        loss = (F.softplus(self.critic(fake)) + F.softplus(-self.critic(real))).mean()
        penalty = loss.new_zeros(())
        optimizer.zero_grad()
        loss.backward()
        if penalised:
            real = real.detach().requires_grad_()
            slope = torch.autograd.grad(self.critic(real).sum(), real, create_graph=True)[0]
            penalty = slope.square().sum((1, 2, 3)).mean()
            (penalty * (self.training.r1 / 2 * self.training.r1_every)).backward()
        optimizer.step()
        return torch.stack([loss.detach(), penalty.detach() * self.training.r1_every])

    def drawn(self, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Latents of a batch of pictures [B, z]; with mixing, others, and which rows of styles are theirs."""
        config, batch = self.generator.config, self.training.batch_size
        latents, others = torch.randn(2, batch, config.z_dim, generator=rng).to(self.device)
        if not self.training.mixing:
            return (latents,)
        mixed = torch.rand(batch, 1, 1, generator=rng) < self.training.mixing
        first = torch.randint(1, config.num_ws, (batch, 1, 1), generator=rng)
        rows = torch.arange(config.num_ws).view(1, -1, 1)
        return latents, others, (mixed & (rows >= first)).to(self.device)

    def pictures(self, latents: Tensor, others: Tensor | None = None, swapped: Tensor | None = None) -> Tensor:
        """Pictures [B, C, r, r] in [-1, 1]; some mix the styles of two."""
        ws = self.generator.styles(latents)
        if swapped is not None:
            ws = torch.where(swapped, self.generator.styles(others), ws)
        return self.generator.synthesis(ws, noise="random")[1]

    def real(self, public: Images, rng: torch.Generator) -> Tensor:
        """Public images [B, C, r, r] in [-1, 1]."""
        rows = torch.randint(len(public), (self.training.batch_size,), generator=rng)
        images = public.floats(rows, self.device)
        images = resized(images, self.generator.config.resolution)
        if self.training.mirror:
            turned = (torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5).to(self.device)
            images = torch.where(turned, images.flip(3), images)
        return images * 2 - 1


@torch.no_grad()
def _follow(average: Generator, generator: Generator, training: Training, step: int) -> None:
    """Move the average towards the generator's weights; what is no weight is copied."""
    half_life = min(training.average_images, (step + 1) * training.batch_size * RAMP)
    keep = 0.5 ** (training.batch_size / max(half_life, 1e-8))
    torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), weight=1 - keep)
    torch._foreach_copy_(list(average.buffers()), list(generator.buffers()))
