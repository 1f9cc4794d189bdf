"""GMI's prior for an auxiliary image: a GAN that completes what an attacker was shown of a picture (Zhang et al., CVPR
2020; card gmi.md, section 4C)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.obscuring import Obscuring, completed
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.priors.gan import Losses, adam_of, critic_loss, require_side, stepped, training_loop
from midefense.priors.nets.gmi import Critic
from midefense.priors.nets.inpainting import InpaintingGenerator
from midefense.priors.taught import require_mode
from midefense.ranges import Batch, Betas, Count, NotNegative, Positive, Width
from midefense.types import Access, Images, Progress, Refused, refuse_unknown

JUDGED = ("both", "first")
Sight = Callable[[Tensor], Tensor]  # images [B, C, S, S] to features [B, ...] by which completions differ
EXAMPLES = 64  # public pictures, obscured, that are kept for samples without a target


def part_of(images: Tensor, corner: Tensor | None = None) -> Tensor:
    """A square [B, C, S/2, S/2] of images [B, C, S, S], the same of all: at the `corner` (top, left), or the middle."""
    side = images.shape[-1] // 2
    top, left = (side // 2, side // 2) if corner is None else corner.tolist()
    return images[..., top : top + side, left : left + side]


def parts_of(images: Tensor, places: Tensor) -> Tensor:
    """A square [B, C, S/2, S/2] of each of images [B, C, S, S], at its own place: `places` [B, 2] in [0, 1), down and
    across, of the corners where it fits."""
    count, channels, size, _ = images.shape
    side = size // 2
    corners = (places * (size - side + 1)).long().clamp(max=size - side)
    down, across = (corners[:, axis, None] + torch.arange(side, device=images.device) for axis in (0, 1))
    rows = images.gather(2, down[:, None, :, None].expand(count, channels, side, size))
    return rows.gather(3, across[:, None, None].expand(count, channels, side, side))


@dataclass
class Beforehand:
    """What learns in the first `steps` updates of a prior's loop, before its own networks do: `lesson(step)` is one
    update of `networks` and gives the losses before it."""

    steps: int
    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    lesson: Callable[[int], Losses]

    def update(self, then: Callable[[int], Losses], step: int) -> Losses:
        """One update of the loop: a lesson, or what comes `then`, counted from 0, with networks that learn no more."""
        learning = step < self.steps
        for network in self.networks.values():
            network.train(learning).requires_grad_(learning)
        return self.lesson(step) if learning else then(step - self.steps)


def diversity(first: Tensor, second: Tensor, latents: Tensor, others: Tensor) -> Tensor:
    """How much further apart the target's features [B, F] of two completions are than their latents [B, Z]: the ratio
    of mean absolute differences, a number."""
    return (first - second).abs().mean() / (latents - others).abs().mean()


class InpaintingGan(Prior):
    """Latents [B, latent_size + 1]: normal numbers when sampled, and last the row of what was observed (`given`) that
    is completed, which no search moves. Without evidence, samples complete pictures that it learned from. Images are in
    [0, 1]; where the attacker knows a pixel it is that pixel. It belongs to one target.

    `realism` is the sum of two critics, of the whole image and of its middle.

    Args:
        obscuring: what hides a part of every picture; evidence must be hidden the same way.
        latent_size: 100 in the paper.
        width: channels of the finest stage; 64 in the paper, fewer for a small machine.
        epochs: passes over the public images.
        steps: updates of each network, instead of epochs; None counts them by epochs.
        penalty: weight of both critics' gradient penalty.
        diversity_weight: of `diversity`, which the generator raises: by it the completions of one picture differ.
        agreement_weight: of the squared distance between a completion, obscured again, and what was seen. It is 0 for
            masks in any case; a blurred picture is held by nothing else (ours).
        target_mode: `eval`, or `train`, in which the authors' script leaves the target.
        judged: `both` completions of a picture by the critics, in the mean; or `first`, one of them (SecretGen's code).
        unit: steps between two saved states.
    """

    asks = Access.WHITEBOX
    learns = True
    unhashed = ("unit",)
    later = {"judged": "both"}
    offers = frozenset({"sample", "realism", "places"})
    held = 1
    completes = True

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        obscuring: Obscuring,
        latent_size: Width = 100,
        width: Width = 64,
        epochs: Count = 100,
        steps: Count | None = None,
        batch_size: Batch = 64,
        learning_rate: Positive = 4e-3,
        betas: Betas = (0.5, 0.999),
        penalty: NotNegative = 10.0,
        diversity_weight: NotNegative = 0.5,
        agreement_weight: NotNegative = 0.0,
        target_mode: str = "eval",
        judged: str = "both",
        unit: Count = 100,
    ):
        super().__init__(channels=channels, size=size)
        require_side("inpainting_gan", size)
        if judged not in JUDGED:
            raise refuse_unknown("prior.judged", judged, JUDGED)
        self.target_mode, self.judged = require_mode(target_mode), judged
        self.obscuring, self.latent_size, self.epochs, self.steps = obscuring, latent_size, epochs, steps
        self.batch_size, self.penalty, self.unit = batch_size, penalty, unit
        self.diversity_weight, self.agreement_weight = diversity_weight, agreement_weight
        self.adam = adam_of(learning_rate, betas)
        shape = {"channels": channels, "width": width}
        self.generator = InpaintingGenerator(latent_size=latent_size, size=size, **shape)
        self.critic, self.part_critic = Critic(size=size, **shape), Critic(size=size // 2, **shape)
        self.register_buffer("examples", torch.ones(EXAMPLES, channels + 1, size, size))
        self._observed: Tensor | None = None

    def fit_steps(self, public: Images) -> int:
        """Updates of each network in a whole `fit` on these images."""
        return self.steps or self.epochs * math.ceil(len(public) / self.batch_size)

    def fit(
        self, public: Images, *, seed: int, oracle: Oracle | None = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """Train the critics and the generator in turn, on public images that are obscured; one unit of progress is
        `unit` updates of each, in which the target is asked about twice `batch_size` images, with gradients."""
        self.require(public)
        if oracle is None:
            who = type(self).__name__
            raise Refused(
                f"{who}: expected a target to learn from, got none; it is trained by attack.py and evaluate.py"
            )
        return self.learn(public, lambda images: oracle(images, reads=("features",)).features, seed, state)

    def learn(
        self,
        public: Images,
        sight: Sight,
        seed: int,
        state: dict[str, Tensor] | None,
        beforehand: Beforehand | None = None,
    ) -> Iterator[Progress]:
        """The loop of `fit`: completions are to differ by their `sight`; who gives it may learn `beforehand`."""
        rng = seeds.generator(seed, "prior", "examples")
        shown = public.floats(torch.randint(len(public), (EXAMPLES,), generator=rng), self.device)
        self.examples.copy_(self.obscuring(shown, self.obscuring.draw(EXAMPLES, rng).to(self.device)))
        networks = {"generator": self.generator, "critic": self.critic, "part_critic": self.part_critic}
        optimizers = {name: self.adam(network.parameters()) for name, network in networks.items()}
        update = functools.partial(self._update, public, sight, optimizers, seed)
        if beforehand is not None:
            networks, optimizers = {**networks, **beforehand.networks}, {**optimizers, **beforehand.optimizers}
            update = functools.partial(beforehand.update, update)
        return training_loop(networks, optimizers, update, steps=self.fit_steps(public), unit=self.unit, state=state)

    def _update(
        self,
        public: Images,
        sight: Sight,
        optimizers: dict[str, torch.optim.Optimizer],
        seed: int,
        step: int,
    ) -> Losses:
        """One update of the part's critic, of the image's, and of the generator; the losses before them."""
        rng = seeds.generator(seed, "prior", "fit", step)
        count = self.batch_size
        rows = torch.randint(len(public), (count,), generator=rng)
        latents = torch.randn(4, count, self.latent_size, generator=rng).to(self.device)
        mix = torch.rand(2, count, generator=rng).to(self.device)
        corners = torch.randint(self.size // 2 + 1, (2, 2), generator=rng)
        dice = self.obscuring.draw(count, rng).to(self.device)
        real = public.floats(rows, self.device)
        seen = self.obscuring(real, dice)
        parts = functools.partial(part_of, corner=corners[0])
        on_part = self.critic_step(
            self.part_critic, optimizers["part_critic"], parts(real), parts(self._imagined(seen, latents[0])), mix[0]
        )
        whole = self._imagined(seen, latents[1])
        on_whole = self.critic_step(self.critic, optimizers["critic"], real, whole, mix[1])
        with seeds.isolated(seed, "prior", "ask", step):  # a target that draws, draws the same when work goes on
            told = self.generator_step(optimizers["generator"], sight, seen, latents[2:], dice, corners[1])
        return {"critic_loss": on_whole, "part_critic_loss": on_part, **told}

    def critic_step(
        self, critic: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, mix: Tensor
    ) -> Tensor:
        """One update of a critic; its loss before."""
        return stepped(optimizer, critic_loss(critic, real, fake, mix, self.penalty))

    def generator_step(
        self,
        optimizer: torch.optim.Optimizer,
        sight: Sight,
        seen: Tensor,
        latents: Tensor,
        dice: Tensor,
        corner: Tensor,
    ) -> Losses:
        """One update of the generator by two completions of each picture `seen`, of `latents` [2, B, Z]; its loss
        before, and the diversity."""
        for critic in (self.critic, self.part_critic):
            critic.requires_grad_(False)  # this step needs no gradients of the critics
        made = [completed(seen, self.generator(seen, each)) for each in latents]
        judged = made if self.judged == "both" else made[:1]
        unreal = [-(self.critic(x).mean() + self.part_critic(part_of(x, corner)).mean()) / 2 for x in judged]
        first, second = (sight(x).flatten(1) for x in made)
        spread = diversity(first, second, *latents)
        loss = torch.stack(unreal).mean() - self.diversity_weight * spread
        if self.agreement_weight:
            again = torch.stack([self.obscuring(x, dice)[:, :-1] for x in made])
            loss = loss + self.agreement_weight * (again - seen[:, :-1]).square().mean()
        told = {"generator_loss": stepped(optimizer, loss), "diversity": spread.detach()}
        for critic in (self.critic, self.part_critic):
            critic.requires_grad_(True)
        return told

    @torch.no_grad()
    def _imagined(self, seen: Tensor, latents: Tensor) -> Tensor:
        return completed(seen, self.generator(seen, latents))

    def given(self, observed: Tensor | None) -> InpaintingGan:
        """This prior, completing what was `observed` [N, C + 1, S, S]; weights are shared."""
        wanted = (self.channels + 1, self.size, self.size)
        if observed is None or tuple(observed.shape[1:]) != wanted:
            got = "nothing observed" if observed is None else f"{list(observed.shape)}"
            raise Refused(
                f"{type(self).__name__} completes pictures, expected evidence of obscured images [N, C + 1, S, S] with "
                f"(C + 1, S, S) = {wanted}, got {got}; try evidence=masked_images"
            )
        view = copy.copy(self)
        view._observed = observed.to(self.device)
        return view

    def of_rows(self, latents: Tensor, rows: Tensor) -> Tensor:
        """The latents [B, latent_size + 1] that complete these `rows` int64 [B] of what was observed."""
        return torch.cat([latents[:, :-1], rows[:, None].to(latents)], 1)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Latents [count, latent_size + 1]: N(0, I), and any of the rows of its examples."""
        latents = torch.randn(count, self.latent_size, generator=rng)
        return torch.cat([latents, torch.randint(EXAMPLES, (count, 1), generator=rng).float()], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, size, size] in [0, 1]. In eval mode rows do not depend on each other."""
        shown = self.examples if self._observed is None else self._observed
        seen = shown[latents[:, -1].detach().round().long().clamp(0, len(shown) - 1)]
        return completed(seen, self.generator(seen, latents[:, :-1]))

    def realism(self, images: Tensor) -> Tensor:
        """What the critics of the whole and of the middle say together [B]."""
        return self.critic(images) + self.part_critic(part_of(images))

    def realism_at(self, images: Tensor, places: Tensor) -> Tensor:
        """As `realism`, of a part of each image at `places` [B, 2] instead of the middle."""
        return self.critic(images) + self.part_critic(parts_of(images, places))
