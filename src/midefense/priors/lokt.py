"""LOKT's prior: a class-conditional GAN of the target's own classes, learned from nothing but the labels it gives
(T-ACGAN; Nguyen et al., NeurIPS 2023; card lokt.md, section 4A)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.compiling import Compiler
from midefense.oracle import Oracle
from midefense.precision import require_precision
from midefense.priors.conditional import ClassConditional
from midefense.priors.gan import Losses, adam_of, require_side, stepped, training_loop
from midefense.priors.nets.lokt import ClassGenerator, ClassHead, Discriminator
from midefense.priors.taught import Labels, require_mode
from midefense.ranges import Batch, Betas, Classes, Count, NotNegative, Positive, Whole, Width
from midefense.types import Access, Images, Progress, clip_images


def told_apart(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of logits [B] with all real or all made, the mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


class LoktGan(ClassConditional):
    """A class-conditional generator (`ClassConditional`) that belongs to one target. Its discriminator learns which
    images are real, and which label the target gives each image that the generator made: of real ones nobody asks. The
    generator learns to be taken for real, and for the class it was asked for, by the discriminator: no gradient is
    taken of the target.

    `realism` is log D(x), at most 0. `classifier` is the discriminator's class head.

    Args:
        classes: of the target.
        latent_size: 128 in the paper.
        width: channels of the finest stage; 64 in the paper, fewer for a small machine.
        steps: updates of the discriminator.
        critic_steps: updates of the discriminator to one of the generator, which follows the first of them.
        warmup: the class counts, and the target is asked about a batch, from the update behind this one on: in all
            (steps - warmup - 1) * batch_size questions.
        class_weight: of the class in both losses.
        clip: ask about images cut to [0, 1], which is all that a picture can be; False asks about what the generator
            makes, as the authors' code does.
        target_mode: `eval`, or `train`: labels then come from the statistics of each batch, with dropout.
        unit: steps between two saved states.
        precision: of the networks while they learn: see `midefense.precision`.
        compile: the generator goes through torch.compile while it learns.
    """

    asks = Access.LABELS
    unhashed = ("unit",)
    offers = frozenset({"sample", "realism", "classifier"})

    def __init__(
        self,
        *,
        classes: Classes,
        channels: int,
        size: int,
        latent_size: Width = 128,
        width: Width = 64,
        steps: Count = 105_000,
        batch_size: Batch = 256,
        critic_steps: Count = 5,
        learning_rate: Positive = 2e-4,
        betas: Betas = (0.0, 0.9),
        warmup: Whole = 5000,
        class_weight: NotNegative = 1.5,
        clip: bool = True,
        target_mode: str = "eval",
        unit: Count = 100,
        precision: str = "32-true",
        compile: bool = False,
    ):
        super().__init__(channels=channels, size=size)
        require_side("lokt_gan", size)
        self.target_mode = require_mode(target_mode)
        self.classes, self.latent_size, self.steps, self.batch_size = classes, latent_size, steps, batch_size
        self.critic_steps, self.warmup, self.class_weight = critic_steps, warmup, class_weight
        self.clip, self.unit, self.precision = clip, unit, require_precision("prior.precision", precision)
        self.compiler = Compiler("prior.compile", batch_size) if compile else None
        self.adam = adam_of(learning_rate, betas)
        shape = {"classes": classes, "channels": channels, "size": size, "width": width}
        self.generator = ClassGenerator(latent_size=latent_size, **shape)
        self.critic = Discriminator(**shape)

    def fit_steps(self, public: Images) -> int:
        """Updates of the discriminator in a whole `fit`."""
        return self.steps

    def fit(
        self, public: Images, *, seed: int, oracle: Oracle | None = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """Train generator and discriminator; one unit of progress is `unit` updates of the discriminator, each of
        which, after the warm-up, asks for the labels of `batch_size` images."""
        self.require(public)
        ask = Labels(self, oracle)
        networks = {"generator": self.generator, "critic": self.critic}
        optimizers = {name: self.adam(network.parameters()) for name, network in networks.items()}
        update = functools.partial(self._update, public, ask, optimizers, seed)
        how = {"steps": self.steps, "unit": self.unit, "precision": self.precision, "compiler": self.compiler}
        return ask.watched(training_loop(networks, optimizers, update, state=state, **how))

    def _update(
        self,
        public: Images,
        ask: Callable[[Tensor], Tensor],
        optimizers: dict[str, torch.optim.Optimizer],
        seed: int,
        step: int,
    ) -> Losses:
        """One step, with all that it draws."""
        rng = seeds.generator(seed, "prior", "fit", step)
        rows = torch.randint(len(public), (self.batch_size,), generator=rng)
        latents = torch.randn(2, self.batch_size, self.latent_size, generator=rng).to(self.device)
        wanted = torch.randint(self.classes, (2, self.batch_size), generator=rng).to(self.device)
        with seeds.isolated(seed, "prior", "ask", step):  # a target that draws, draws the same when work goes on
            return self.update(optimizers, ask, step, public.floats(rows, self.device), latents, wanted)

    def update(
        self,
        optimizers: dict[str, torch.optim.Optimizer],
        ask: Callable[[Tensor], Tensor],
        step: int,
        real: Tensor,
        latents: Tensor,
        wanted: Tensor,
    ) -> Losses:
        """The discriminator's update on real images [B, C, size, size], then, every so often, the generator's: each
        has latents [2, B, latent_size] and classes int64 [2, B] of its own."""
        labelled = step > self.warmup
        with torch.no_grad():
            fake = self.generator(latents[0], wanted[0])
        labels = ask(clip_images(fake) if self.clip else fake) if labelled else None
        told = self.discriminator_step(optimizers["critic"], real, fake, labels)
        if labelled:
            told["generator_accuracy"] = (labels == wanted[0]).float().mean()
        if step % self.critic_steps == 0:
            told |= self.generator_step(optimizers["generator"], latents[1], wanted[1], labelled)
        return told

    def discriminator_step(
        self, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, labels: Tensor | None
    ) -> Losses:
        """One update of the discriminator; its loss before, and how often it gives the target's `labels` int64 [B] of
        the images that were made (None: in the warm-up). Those it sees first, which the spectral norms remember."""
        made, logits = self.critic(fake)
        loss, told = told_apart(made, False) + told_apart(self.critic(real)[0], True), {}
        if labels is not None:
            loss = loss + self.class_weight * F.cross_entropy(logits, labels)
            told["agreement"] = (logits.argmax(1) == labels).float().mean()
        return {"critic_loss": stepped(optimizer, loss), **told}

    def generator_step(
        self, optimizer: torch.optim.Optimizer, latents: Tensor, wanted: Tensor, labelled: bool
    ) -> Losses:
        """One update of the generator; its loss before, with a share for the class where it is `labelled`, and that
        share, unweighted."""
        self.critic.requires_grad_(False)  # this step needs no gradients of the discriminator
        made, logits = self.critic(self.generator(latents, wanted))
        loss, told = told_apart(made, True), {}
        if labelled:
            told["class_loss"] = F.cross_entropy(logits, wanted)
            loss = loss + self.class_weight * told["class_loss"]
        told["generator_loss"] = stepped(optimizer, loss)
        self.critic.requires_grad_(True)
        return {name: value.detach() for name, value in told.items()}

    def realism(self, drawn: Tensor) -> Tensor:
        """log D [B], at most 0."""
        return F.logsigmoid(self.critic(drawn)[0])

    def classifier(self) -> nn.Module:
        """What the discriminator says of an image's class, as a classifier: images [B, C, size, size] to a `Trace` of
        logits [B, classes]."""
        return ClassHead(self.critic)
