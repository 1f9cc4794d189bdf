"""PLG-MI's prior: a class-conditional GAN of the target's own classes, learned from pseudo-labels and the target's
gradients (Yuan et al., AAAI 2023; card plg_mi.md, section 4)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.compiling import Compiler
from midefense.identity_losses import IDENTITY_LOSSES
from midefense.oracle import Oracle
from midefense.precision import require_precision
from midefense.priors.augmentation import Augmentation
from midefense.priors.conditional import ClassConditional
from midefense.priors.gan import Losses, adam_of, require_side, stepped, training_loop
from midefense.priors.nets.plg import Critic, Generator
from midefense.priors.taught import require_answers, require_mode
from midefense.ranges import Batch, Betas, Classes, Count, NotNegative, Positive, Share, Width
from midefense.types import Access, Images, Progress, refuse_unknown

ASKED_AT_ONCE = 350  # images, as the authors' script


def most_confident(probs: Tensor, rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Per class the `top` images of largest probability, in ascending order: their probabilities and rows [top, K].

    Among equals the later image is kept, as in the authors' queue, where a newcomer replaces the least unless it is
    strictly below it.

    Args:
        probs: [N, K].
        rows: int64 [N, K], the image of each entry; in ascending order among equal probabilities.
    """
    order = probs.argsort(dim=0, stable=True)[-top:]
    return probs.gather(0, order), rows.gather(0, order)


@torch.no_grad()
def pseudo_labelled(
    ask: Callable[[Tensor], Tensor], public: Images, top: int, classes: int, device: torch.device
) -> Tensor:
    """Rows int64 [K, top] of the public images that the target thinks most likely of each class, least sure first.
    `ask` gives the probabilities [B, K] of images; an image may serve several classes."""
    probs = torch.empty(0, classes, device=device)
    rows = torch.empty(0, classes, dtype=torch.int64, device=device)
    for asked in torch.arange(len(public)).split(ASKED_AT_ONCE):
        told = ask(public.floats(asked, device))
        new = asked.to(device)[:, None].expand(-1, classes)
        probs, rows = most_confident(torch.cat([probs, told]), torch.cat([rows, new]), top)
    return rows.T.contiguous().cpu()


def critic_loss(critic: nn.Module, real: Tensor, labels: Tensor, fake: Tensor, wanted: Tensor) -> Tensor:
    """Hinge: mean relu(1 - D(real, labels)) + mean relu(1 + D(fake, wanted)). The fakes are seen first, which
    the spectral norms of the critic remember."""
    on_fake = F.relu(1 + critic(fake, wanted)).mean()
    return F.relu(1 - critic(real, labels)).mean() + on_fake


class PlgGan(ClassConditional):
    """A class-conditional generator (`ClassConditional`) that belongs to one target.

    Args:
        classes: of the target.
        latent_size: 128 in the paper.
        width: channels of the finest stage; 64 in the paper, fewer for a small machine.
        top: public images that are given each class as a pseudo-label, those the target is surest of.
        steps: updates of the generator.
        critic_steps: updates of the critic after each of the generator.
        identity: what the generator learns of the target by: `margin`, `cross_entropy` or `poincare`.
        identity_weight: of that loss (the paper's alpha); 0 leaves the pseudo-labels alone.
        augmentation: what the target is shown of the generator's images.
        noise: the brightest of the noise, uniform from 0, that is added to real images.
        target_mode: `eval`, or the legacy `train`, in which MIBench's script leaves the target.
        unit: steps between two saved states.
        precision: of the networks while they learn: see `midefense.precision`.
        compile: the generator goes through torch.compile while it learns.
    """

    later = {"precision": "32-true", "compile": False}
    asks = Access.WHITEBOX
    unhashed = ("unit",)

    def __init__(
        self,
        *,
        classes: Classes,
        channels: int,
        size: int,
        augmentation: Augmentation,
        latent_size: Width = 128,
        width: Width = 64,
        top: Count = 30,
        steps: Count = 30000,
        batch_size: Batch = 64,
        critic_steps: Count = 5,
        learning_rate: Positive = 2e-4,
        betas: Betas = (0.0, 0.9),
        identity: str = "margin",
        identity_weight: NotNegative = 0.2,
        noise: Share = 1 / 256,
        target_mode: str = "eval",
        unit: Count = 100,
        precision: str = "32-true",
        compile: bool = False,
    ):
        super().__init__(channels=channels, size=size)
        require_side("plg_gan", size)
        if identity not in IDENTITY_LOSSES:
            raise refuse_unknown("prior.identity", identity, IDENTITY_LOSSES)
        self.target_mode = require_mode(target_mode)
        self.classes, self.latent_size, self.top, self.steps = classes, latent_size, top, steps
        self.batch_size, self.critic_steps, self.noise, self.unit = batch_size, critic_steps, noise, unit
        self.identity, self.identity_weight = IDENTITY_LOSSES[identity], identity_weight
        self.augmentation, self.precision = augmentation, require_precision("prior.precision", precision)
        self.compiler = Compiler("prior.compile", batch_size) if compile else None
        self.adam = adam_of(learning_rate, betas)
        shape = {"classes": classes, "channels": channels, "size": size, "width": width}
        self.generator = Generator(latent_size=latent_size, **shape)
        self.critic = Critic(**shape)

    def fit_steps(self, public: Images) -> int:
        """Updates of the generator in a whole `fit`."""
        return self.steps

    def fit(
        self, public: Images, *, seed: int, oracle: Oracle | None = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """Ask about every public image once, then train generator and critic; one unit of progress is `unit` updates of
        the generator, each of which asks about `batch_size` images, with gradients."""
        self.require(public)
        ask, label = require_answers(self, oracle, "logits"), require_answers(self, oracle, "probs")
        networks = {"generator": self.generator, "critic": self.critic}
        optimizers = {name: self.adam(network.parameters()) for name, network in networks.items()}
        if state:
            chosen = state["chosen"].cpu()
        else:
            with seeds.isolated(seed, "prior", "label"):
                chosen = pseudo_labelled(label, public, min(self.top, len(public)), self.classes, self.device)
        update = functools.partial(self._update, public, chosen, ask, optimizers, seed)
        how = {"steps": self.steps, "unit": self.unit, "precision": self.precision, "compiler": self.compiler}
        return training_loop(networks, optimizers, update, state=state, beside={"chosen": chosen}, **how)

    def _update(
        self,
        public: Images,
        chosen: Tensor,
        ask: Callable[[Tensor], Tensor],
        optimizers: dict[str, torch.optim.Optimizer],
        seed: int,
        step: int,
    ) -> Losses:
        """The generator's update, then the critic's; the losses before them."""
        rng = seeds.generator(seed, "prior", "fit", step)
        shape = (1 + self.critic_steps, self.batch_size)
        latents = torch.randn(*shape, self.latent_size, generator=rng).to(self.device)
        wanted = torch.randint(self.classes, shape, generator=rng).to(self.device)
        entries = torch.randint(chosen.numel(), (self.critic_steps, self.batch_size), generator=rng)
        labels = entries.div(chosen.shape[1], rounding_mode="floor").to(self.device)
        dice = self.augmentation.draw(self.batch_size, rng).to(self.device)
        with seeds.isolated(seed, "prior", "draw", step):  # the noise, and a target that draws
            total, identity = self.generator_step(optimizers["generator"], ask, latents[0], wanted[0], dice)
            losses = []
            for turn in range(self.critic_steps):
                real = public.floats(chosen.flatten()[entries[turn]], self.device)
                real = real + self.noise * torch.rand_like(real)
                made_from = latents[1 + turn], wanted[1 + turn]
                losses.append(self.critic_step(optimizers["critic"], real, labels[turn], *made_from))
        return {"critic_loss": torch.stack(losses).mean(), "generator_loss": total, "identity_loss": identity}

    def generator_step(
        self,
        optimizer: torch.optim.Optimizer,
        ask: Callable[[Tensor], Tensor],
        latents: Tensor,
        wanted: Tensor,
        dice: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One update of the generator; its loss before, and the share of it that the target told, unweighted. Without
        `dice` the target is shown the images themselves."""
        self.critic.requires_grad_(False)  # this step needs no gradients of the critic
        fake = self.generator(latents, wanted)
        shown = fake if dice is None else self.augmentation(fake, dice)
        identity = self.identity(ask(shown), wanted).mean()
        loss = self.identity_weight * identity - self.critic(fake, wanted).mean()
        told = stepped(optimizer, loss)
        self.critic.requires_grad_(True)
        return told, identity.detach()

    def critic_step(
        self, optimizer: torch.optim.Optimizer, real: Tensor, labels: Tensor, latents: Tensor, wanted: Tensor
    ) -> Tensor:
        """One update of the critic; its loss before."""
        with torch.no_grad():
            fake = self.generator(latents, wanted)
        return stepped(optimizer, critic_loss(self.critic, real, labels, fake, wanted))
