"""Crafter and Crafter-z: what leaves the edge is searched for anew for every picture, so that an attacker who inverts it
finds a face of nobody (Wang et al., "Crafter: Facial Feature Crafting against Inversion-based Identity Theft on Deep
Models", NDSS 2024; card crafter.md). No network is retrained, and neither labels nor the cloud's half are needed.

The two forms give the same numbers for 128 images of equal residuals: the original ties the images of a batch together by
norms and means over it. The critic ties a group together in either form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.defenses.amortising import Amortisation
from midefense.defenses.base import Defense
from midefense.defenses.crafting import Critic, FictitiousAttacker, Generator, World, require_form
from midefense.defenses.implicit import Implicit
from midefense.ranges import Count, NotNegative, Positive, Whole
from midefense.types import Progress, Refused

SCALE = 100.0  # of Crafter's loss, as in the original: it is seen through the epsilon of Adam alone
INVERSION_SCALE = 2000.0  # of the squared residual that the search is taken to have minimised


@dataclass
class Crafted:
    """A moment of crafting: the `features` [N, ...] after so many updates, the `latents` [N, *latent] that an attacker
    found before the last, and what was `told` of it: tensors by name, per image [N], per critic step, or scalars."""

    features: Tensor
    latents: Tensor
    told: dict[str, Tensor]


class Crafting(Defense):
    """What Crafter and Crafter-z share: the generator they are given, where a search begins, and a fresh critic.

    Args:
        prior: a partial of the generator (`_partial_: true`), which is learned from public pictures before anything is
            released. Its critic has a part in the search, and a network of the same kind is learned anew per group.
        amortiser: how a network learns to guess the latents of a feature; None: a search begins at latents drawn from
            the generator's own distribution for each image.
        steps: updates; 0 releases the features as they are.
        form: `per_image`, or `coupled`, the original's.
        group: images that one critic is learned for.
        chunk: images that are searched for at once (None: the group); it changes rounding alone.
    """

    owns = ("release",)
    only_releases = True
    asks_of_prior: ClassVar[tuple[str, ...]] = ("realism", "critic")
    neutral: ClassVar[dict[str, int]] = {"steps": 0}

    def __init__(
        self,
        *,
        prior: Callable[..., nn.Module],
        amortiser: Amortisation | None,
        attacker: FictitiousAttacker,
        critic: Critic,
        steps: Whole,
        form: str,
        group: Count,
        chunk: Count | None,
    ) -> None:
        super().__init__()
        if require_form(form) == "coupled" and chunk is not None:
            raise Refused(f"defense.chunk: expected null with form=coupled, which ties a group together, got {chunk}")
        self.amortiser, self.attacker, self.critic = amortiser, attacker, critic
        self.steps, self.form, self.group, self.chunk = steps, form, group, chunk
        self.given: tuple[Generator, nn.Module | None] | None = None

    @property
    def prepares(self) -> bool:
        return self.amortiser is not None

    def preparation(self, recipe: Mapping[str, object]) -> dict[str, object]:
        return {"amortiser": recipe["amortiser"]}

    def prepare(
        self, edge: nn.Module, prior: Generator, rng: torch.Generator, state: dict[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Teach the amortiser of this edge and this generator."""
        return self.amortiser.fit(edge, prior, rng, state)

    def equip(self, edge: nn.Module, prior: Generator, state: dict[str, Tensor]) -> None:
        self.given = prior, self.amortiser.learned(edge, prior, state) if self.amortiser else None

    def release(self, edge: nn.Module, images: Tensor, ids: Tensor, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            original = edge(images)
        if not self.steps:
            return original
        if self.given is None:
            raise Refused(f"{type(self).__name__}: expected equip(edge, prior, state) before release, got none")
        prior, guess = self.given
        nobody, starts = (latents_of(prior, ids, seeds.fork(rng, name)).to(original) for name in ("nobody", "start"))
        world = World(edge, prior, (lambda features: starts) if guess is None else guess, self.form)
        with seeds.isolated(rng.initial_seed(), "critic"):
            network = prior.new_critic().to(original.device)
        moments = self.craft(world, network, original, nobody, seeds.fork(rng, "critic"))
        for last in moments:  # noqa: B007 -- the last one is released
            pass
        return last.features

    def craft(
        self, world: World, network: nn.Module, original: Tensor, nobody: Tensor, rng: torch.Generator
    ) -> Iterator[Crafted]:
        """Craft features for the `original` ones [N, ...] of a group, a moment per update.

        Args:
            network: the critic, fresh; it learns.
            nobody: latents [N, *latent] of the faces that the attacker is to find instead.
            rng: what the critic draws from.
        """
        raise NotImplementedError

    def search(self, world: World, features: Tensor) -> Tensor:
        """What the fictitious attacker finds [N, *latent] for features [N, ...], by chunks."""
        chunk, starts = self.chunk or len(features), world.start(features)
        return torch.cat([self.attacker(world, *part) for part in zip(features.split(chunk), starts.split(chunk))])


class Crafter(Crafting):
    """Features F that minimise 100 L_p + 100 beta L_u: L_p = -mean D(G(z*(F))), how far from faces of nobody the critic D
    sees what the attacker finds, and L_u = mean ||F - F0||^2 / d. D is learned in turn with F, and z* is differentiated
    implicitly (`Implicit`).

    Args:
        beta: weight of utility: more of it, less privacy.
        rate: of Adam on the features.
        saved_every: the original keeps the features after every third update, and uses the last that it kept: of 450
            those after the update of index 447.
        inversion_weight: of the squared residual whose minimum the search is taken to be (2000 / d).
        d: what squared distances of features are divided by (None: by how many numbers a feature has, as the original's
            16384 for 64 px).
        projected: keep features at 0 and above, as those of a ReLU are; else they may be negative, which shows that
            they were crafted.
        implicit: how z* is differentiated.
        prior, amortiser, attacker, critic, steps, form, group, chunk: see `Crafting`.
    """

    revision = 1

    def __init__(
        self,
        *,
        prior: Callable[..., nn.Module],
        amortiser: Amortisation | None,
        attacker: FictitiousAttacker,
        critic: Critic,
        implicit: Implicit,
        beta: NotNegative = 1.0,
        steps: Whole = 450,
        saved_every: Count = 3,
        rate: NotNegative = 0.01,
        inversion_weight: Positive = INVERSION_SCALE,
        d: Positive | None = None,
        projected: bool = False,
        form: str = "per_image",
        group: Count = 128,
        chunk: Count | None = None,
    ) -> None:
        parts = {"prior": prior, "amortiser": amortiser, "attacker": attacker, "critic": critic}
        super().__init__(**parts, steps=steps, form=form, group=group, chunk=chunk)
        self.implicit, self.beta, self.saved_every, self.rate = implicit, beta, saved_every, rate
        self.inversion_weight, self.d, self.projected = inversion_weight, d, projected

    @property
    def last(self) -> int:
        """The index of the last update that is kept."""
        return (self.steps - 1) // self.saved_every * self.saved_every

    def craft(
        self, world: World, network: nn.Module, original: Tensor, nobody: Tensor, rng: torch.Generator
    ) -> Iterator[Crafted]:
        features = original.clone()
        moments = torch.optim.Adam([features], lr=self.rate)
        learning = self.critic.learning(network)
        with torch.no_grad():
            faces = world.images(nobody)
        for _ in range(self.last + 1):
            latents = self.search(world, features)
            with torch.no_grad():
                found = world.images(latents)
            losses = self.critic.learn(network, learning, faces, found, self.critic.draws(len(features), rng))
            features.grad, told = self.slope(world, network, latents, features, original)
            moments.step()
            if self.projected:
                features.clamp_(min=0)
            yield Crafted(features.clone(), latents, {"critic_loss": losses, **told})

    def slope(
        self, world: World, network: nn.Module, latents: Tensor, features: Tensor, original: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of the loss in the features [N, ...], z* moving with them, and what is told of it: the `slope`
        itself, and per image [N] the norm `unsettled` of the residual's gradient where the search ended, which should
        be 0."""
        share, numbers = world.share(len(features)), self.d or original[0].numel()
        chunk = self.chunk or len(features)
        weight, changed = self.inversion_weight / (numbers * share), features - original
        moved, unsettled, score = [], [], original.new_zeros(())
        for piece, wanted in zip(latents.split(chunk), features.split(chunk), strict=True):
            wish, scores = leaving(world, network, piece)
            slope, rest = self.implicit.gradient(world.view, piece, wanted, weight, SCALE * wish / share)
            moved.append(slope)
            unsettled.append(rest)
            score = score + scores.sum()
        useful = SCALE * self.beta * 2 * changed / (numbers * share)
        loss = SCALE * (self.beta * changed.square().sum() / numbers - score) / share
        slope = torch.cat(moved) + useful
        return slope, {"slope": slope, "loss": loss, "unsettled": torch.cat(unsettled)}


class CrafterZ(Crafting):
    """Crafter-z: the latents of the picture's own feature are moved instead, by Adam on -mean D(G(z)) + beta
    mean ||E(G(z)) - F0||^2 / d, and E(G(z)) is released: no implicit gradient, and a feature that is always one of a
    generated picture.

    Args:
        beta, d: as for Crafter. The authors' code divides by 64 x 64 x 64 where a feature has 64 x 16 x 16 numbers (d =
            262144), which makes utility weigh a sixteenth.
        rate: of Adam on the latents; the trade-off moves with it more than with beta.
        prior, amortiser, attacker, critic, steps, form, group, chunk: see `Crafting`.
    """

    revision = 1

    def __init__(
        self,
        *,
        prior: Callable[..., nn.Module],
        amortiser: Amortisation | None,
        attacker: FictitiousAttacker,
        critic: Critic,
        beta: NotNegative = 100.0,
        steps: Whole = 500,
        rate: NotNegative = 5e-3,
        d: Positive | None = None,
        form: str = "per_image",
        group: Count = 128,
        chunk: Count | None = None,
    ) -> None:
        parts = {"prior": prior, "amortiser": amortiser, "attacker": attacker, "critic": critic}
        super().__init__(**parts, steps=steps, form=form, group=group, chunk=chunk)
        self.beta, self.rate, self.d = beta, rate, d

    def craft(
        self, world: World, network: nn.Module, original: Tensor, nobody: Tensor, rng: torch.Generator
    ) -> Iterator[Crafted]:
        latents = self.search(world, original)
        moments = torch.optim.Adam([latents], lr=self.rate)
        learning = self.critic.learning(network)
        with torch.no_grad():
            faces = world.images(nobody)
        for _ in range(self.steps):
            with torch.no_grad():
                found = world.images(latents)
            losses = self.critic.learn(network, learning, faces, found, self.critic.draws(len(latents), rng))
            before = latents.clone()
            latents.grad, loss = self.slope(world, network, latents, original)
            moments.step()
            with torch.no_grad():
                features = torch.cat([world.view(piece) for piece in latents.split(self.chunk or len(latents))])
            yield Crafted(features, before, {"critic_loss": losses, "loss": loss, "moved": latents.clone()})

    def slope(self, world: World, network: nn.Module, latents: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the loss in the latents [N, *latent], and the loss."""
        share, numbers, chunk = world.share(len(latents)), self.d or original[0].numel(), self.chunk or len(latents)
        slopes, total = [], original.new_zeros(())
        for piece, wanted in zip(latents.split(chunk), original.split(chunk), strict=True):
            piece = piece.detach().requires_grad_()
            with torch.enable_grad():
                images = world.images(piece)
                distance = (world.edge(images) - wanted).square().sum() / numbers
                loss = (self.beta * distance - network(images).sum()) / share
                slopes += torch.autograd.grad(loss, piece)
            total = total + loss.detach()
        return torch.cat(slopes), total


def leaving(world: World, network: nn.Module, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in the latents [N, *latent] of -sum D(G(z)), and the scores D(G(z)) [N]."""
    latents = latents.detach().requires_grad_()
    with torch.enable_grad():
        scores = network(world.images(latents))
        (slope,) = torch.autograd.grad(-scores.sum(), latents)
    return slope, scores.detach()


def latents_of(prior: Generator, ids: Tensor, rng: torch.Generator) -> Tensor:
    """Latents [N, *latent] of the generator's own distribution, each drawn for its image alone."""
    return torch.cat([prior.sample(1, own) for own in seeds.by_row(rng, ids)])
