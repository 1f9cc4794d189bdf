"""KED-MI's prior: a GAN whose discriminator learns the target's soft labels beside what is real (Chen et al., ICCV
2021; card ked_mi.md, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.compiling import Compiler
from midefense.oracle import Oracle
from midefense.precision import require_precision
from midefense.priors.base import Prior
from midefense.priors.gan import Losses, adam_of, require_side, stepped, training_loop
from midefense.priors.nets.gmi import Generator
from midefense.priors.nets.ked import Discriminator
from midefense.priors.taught import require_answers, require_mode
from midefense.ranges import Batch, Betas, Classes, Count, NotNegative, Positive, Width
from midefense.types import Access, Images, Progress


def realness(logits: Tensor) -> Tensor:
    """log D(x) for logits [B, K]; [B], at most 0. The logit of "fake" is fixed at 0, so that D = e^S / (1 + e^S) with
    S = logsumexp of the logits; in float32 at least. Minus it is the originals' softplus(S) - S."""
    return F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(1))


def soft_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """Cross-entropy of logits [B, K] with soft labels [B, K], the mean over the batch."""
    return -(soft * logits.log_softmax(1)).sum(1).mean()


def discriminator_loss(critic: nn.Module, taught: Tensor, soft: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy with the target's `soft` labels [B, K] of the images `taught`, and half of what telling `real` from
    `fake` costs: mean -log D(real) + mean -log(1 - D(fake)). A scalar to minimise; each set is a batch of its own,
    since minibatch discrimination couples its images."""
    labelled = soft_cross_entropy(critic(taught)[1], soft)
    sure = critic(fake)[1].logsumexp(1)
    return labelled + 0.5 * (F.softplus(sure).mean() - realness(critic(real)[1]).mean())


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of logits [B, K], summed over the batch as in the originals."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum()


def generator_loss(critic: nn.Module, real: Tensor, fake: Tensor, entropy_weight: float) -> Tensor:
    """How far the mean features of `fake` are from those of `real` (mean absolute difference), and the entropy of what
    the discriminator says of the fakes, which should look like one class each. A scalar to minimise."""
    with torch.no_grad():
        wanted = critic(real)[0].mean(0)
    features, logits = critic(fake)
    return (features.mean(0) - wanted).abs().mean() + entropy_weight * entropy(logits)


class KedGan(Prior):
    """Latents [B, latent_size], normal when sampled; images through a sigmoid, so in [0, 1]. It belongs to one target.

    `realism` is log D(x): an image's depends on the others of its batch, through minibatch discrimination.

    Args:
        classes: of the target.
        latent_size: 100 in the paper.
        width: channels of the finest stage; 64 in the paper, fewer for a small machine.
        epochs: passes of the discriminator over the public images (120 in the paper, of 30,000 images).
        steps: discriminator steps, instead of epochs; None counts them by epochs.
        critic_steps: discriminator steps to one generator step.
        entropy_weight: of the generator's second term. It is a sum over the batch: of another batch, another weight.
        target_mode: `eval`, or `train` as the authors' script leaves the target: its soft labels then come from the
            statistics of each batch, with dropout.
        unit: steps between two saved states.
        precision: of the networks while they learn: see `midefense.precision`.
        compile: the generator goes through torch.compile while it learns.
    """

    later = {"precision": "32-true", "compile": False}
    asks = Access.SCORES
    learns = True
    unhashed = ("unit",)
    offers = frozenset({"sample", "realism", "normal"})
    coupled = True

    def __init__(
        self,
        *,
        classes: Classes,
        channels: int,
        size: int,
        latent_size: Width = 100,
        width: Width = 64,
        epochs: Count = 120,
        steps: Count | None = None,
        batch_size: Batch = 64,
        critic_steps: Count = 5,
        learning_rate: Positive = 2e-4,
        betas: Betas = (0.5, 0.999),
        entropy_weight: NotNegative = 1e-4,
        target_mode: str = "eval",
        unit: Count = 100,
        precision: str = "32-true",
        compile: bool = False,
    ):
        super().__init__(channels=channels, size=size)
        require_side("ked_gan", size)
        self.target_mode = require_mode(target_mode)
        self.classes, self.latent_size, self.epochs, self.steps = classes, latent_size, epochs, steps
        self.batch_size, self.critic_steps, self.unit = batch_size, critic_steps, unit
        self.adam = adam_of(learning_rate, betas)
        self.entropy_weight, self.precision = entropy_weight, require_precision("prior.precision", precision)
        self.compiler = Compiler("prior.compile", batch_size) if compile else None
        self.generator = Generator(latent_size=latent_size, channels=channels, size=size, width=width)
        self.critic = Discriminator(classes=classes, channels=channels, size=size, width=width)

    def fit_steps(self, public: Images) -> int:
        """Discriminator steps of a whole `fit` on these images."""
        return self.steps or self.epochs * math.ceil(len(public) / self.batch_size)

    def fit(
        self, public: Images, *, seed: int, oracle: Oracle | None = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """Train generator and discriminator on public images and what the target says of them; one unit of progress is
        `unit` discriminator steps, each of which asks about `batch_size` images."""
        self.require(public)
        ask = require_answers(self, oracle)
        networks = {"generator": self.generator, "critic": self.critic}
        optimizers = {name: self.adam(network.parameters()) for name, network in networks.items()}

        def update(step: int) -> Losses:
            rng = seeds.generator(seed, "prior", "fit", step)
            rows = torch.randint(len(public), (3, self.batch_size), generator=rng)
            latents, again = torch.randn(2, self.batch_size, self.latent_size, generator=rng).to(self.device)
            taught, real = public.floats(rows[:2].flatten(), self.device).split(self.batch_size)
            with seeds.isolated(seed, "prior", "ask", step):  # a target that draws, draws the same when work goes on
                soft = ask(taught)
            told = {"critic_loss": self.discriminator_step(optimizers["critic"], taught, soft, real, latents)}
            if (step + 1) % self.critic_steps == 0:
                matched = public.floats(rows[2], self.device)
                told["generator_loss"] = self.generator_step(optimizers["generator"], matched, again)
            return told

        steps = self.fit_steps(public)
        how = {"unit": self.unit, "precision": self.precision, "compiler": self.compiler}
        return training_loop(networks, optimizers, update, steps=steps, state=state, **how)

    def discriminator_step(
        self, optimizer: torch.optim.Optimizer, taught: Tensor, soft: Tensor, real: Tensor, latents: Tensor
    ) -> Tensor:
        """One update of the discriminator; its loss before."""
        with torch.no_grad():
            fake = self.generator(latents)
        loss = discriminator_loss(self.critic, taught, soft, real, fake)
        return stepped(optimizer, loss)

    def generator_step(self, optimizer: torch.optim.Optimizer, real: Tensor, latents: Tensor) -> Tensor:
        """One update of the generator; its loss before."""
        self.critic.requires_grad_(False)  # this step needs no gradients of the discriminator
        loss = stepped(optimizer, generator_loss(self.critic, real, self.generator(latents), self.entropy_weight))
        self.critic.requires_grad_(True)
        return loss

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Latents [count, latent_size] ~ N(0, I)."""
        return torch.randn(count, self.latent_size, generator=rng)

    @property
    def normal_width(self) -> int:
        """The latents are normal themselves: the generator learns from N(0, I)."""
        return self.latent_size

    def of_normal(self, noise: Tensor) -> Tensor:
        """The noise [..., latent_size] as it is."""
        return noise

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, size, size] in [0, 1]. In eval mode rows do not depend on each other."""
        return self.generator(latents)

    def realism(self, images: Tensor) -> Tensor:
        """log D [B], at most 0, of images that are a batch together."""
        return realness(self.critic(images)[1])
