"""What Crafter plays against at the edge: an attacker who inverts features with a generator, and a critic that learns how
its answers differ from faces of nobody (Wang et al., NDSS 2024; card crafter.md, 4.4 and 4.5).

Sums over images are divided by `Shares.of`, the original's batch of 128, or by how many images there are (the original's
form, in which an image's path depends on how many stand beside it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from midefense.ranges import Count, Fading, NotNegative, Positive, Whole
from midefense.types import refuse_unknown

FORMS = ("per_image", "coupled")
REFERENCE_BATCH = 128  # images that the original crafts together, for which its constants are


class Generator(Protocol):
    """What a defense asks of a generator (`midefense.priors.base.Prior`)."""

    def sample(self, count: int, rng: torch.Generator) -> Tensor: ...

    def draw(self, latents: Tensor) -> Tensor: ...

    def frame(self, drawn: Tensor) -> Tensor: ...

    def realism(self, drawn: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class World:
    """What stands still while features are crafted: the `edge`, the `prior` with its own critic, where a search begins
    (`start`: features [N, ...] -> latents [N, *latent]), and the `form` of sums over images."""

    edge: Callable[[Tensor], Tensor]
    prior: Generator
    start: Callable[[Tensor], Tensor]
    form: str = "per_image"

    def view(self, latents: Tensor) -> Tensor:
        """What the edge makes of the pictures of latents."""
        return self.edge(self.prior.frame(self.prior.draw(latents)))

    def images(self, latents: Tensor) -> Tensor:
        """The pictures themselves, as a critic sees them."""
        return self.prior.frame(self.prior.draw(latents))

    def share(self, count: int) -> int:
        """In how many parts a sum over `count` images is divided."""
        return REFERENCE_BATCH if self.form == "per_image" else count


class FictitiousAttacker:
    """Gradient descent with heavy-ball momentum on 100 ||E(z) - F|| - 100 mean D(G(z)), D the critic that came with the
    generator: v := momentum v + g, z := z - rate v.

    Per image the norm has the coefficient 100 / sqrt(128), which gives the gradient of the original's norm over a batch
    of 128 for equal residuals; the coupled form is that norm over all images at once.

    Args:
        steps: of one search.
        rate: of a step.
        momentum: share of the last step that is kept.
        feature_weight, prior_weight: the two factors 100.
    """

    revision = 1

    def __init__(
        self,
        *,
        steps: Whole = 80,
        rate: Positive = 0.005,
        momentum: Fading = 0.9,
        feature_weight: NotNegative = 100.0,
        prior_weight: NotNegative = 100.0,
    ) -> None:
        self.steps, self.rate, self.momentum = steps, rate, momentum
        self.feature_weight, self.prior_weight = feature_weight, prior_weight

    def __call__(self, world: World, features: Tensor, latents: Tensor) -> Tensor:
        """Latents [N, *latent] for features [N, ...], from those it begins with; detached."""
        latents = latents.detach()
        velocity = torch.zeros_like(latents)
        for _ in range(self.steps):
            latents.requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.loss(world, latents, features), latents)
            velocity = self.momentum * velocity + slope
            latents = (latents - self.rate * velocity).detach()
        return latents

    def loss(self, world: World, latents: Tensor, features: Tensor) -> Tensor:
        """What is minimised, a scalar: a sum over images, or, coupled, the norm over all of them."""
        drawn = world.prior.draw(latents)
        residual = (world.edge(world.prior.frame(drawn)) - features).flatten(1)
        share = world.share(len(latents))
        coupled = world.form == "coupled"
        norm = residual.norm() if coupled else residual.norm(dim=1).sum() / share**0.5
        if not self.prior_weight:
            return self.feature_weight * norm
        return self.feature_weight * norm - self.prior_weight * world.prior.realism(drawn).sum() / share


class Critic:
    """A critic that tells what the attacker finds from generated faces of nobody, learned while features are crafted: a
    Wasserstein critic whose gradient penalty weighs twice while it is above 1.

    Args:
        steps: of the critic to one of the features.
        rows: images in a minibatch, drawn with replacement from those that are crafted together.
        rate: of Adam.
        penalty: weight of the gradient penalty; twice that while the current penalty is above 1.
    """

    revision = 1

    def __init__(self, *, steps: Whole = 10, rows: Count = 32, rate: Positive = 5e-4, penalty: NotNegative = 20.0):
        self.steps, self.rows, self.rate, self.penalty = steps, rows, rate, penalty

    def learning(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a fresh critic."""
        return torch.optim.Adam(network.parameters(), lr=self.rate)

    def draws(self, count: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Per step: rows of the real and of the fake minibatch int64 [rows], and where between them the slope is taken
        [rows]."""
        for _ in range(self.steps):
            real, fake = torch.randint(count, (2, self.rows), generator=rng)
            yield real, fake, torch.rand(self.rows, generator=rng)

    def learn(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        real: Tensor,
        fake: Tensor,
        draws: Iterator[tuple[Tensor, Tensor, Tensor]],
    ) -> list[Tensor]:
        """Take the steps that `draws` names, on pictures of nobody (`real`) and of what the attacker found (`fake`), both
        [N, C, H, W]. Gives the loss of each."""
        losses = []
        network.requires_grad_(True)
        for first, second, mix in draws:
            with torch.enable_grad():
                some, others = real[first.to(real.device)], fake[second.to(fake.device)]
                loss = self.loss(network, some, others, mix.to(real))
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        network.requires_grad_(False)
        return losses

    def loss(self, network: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
        """mean D(fake) - mean D(real) + w penalty, w the doubled weight while the penalty is above 1."""
        penalty = slope_penalty(network, real, fake, mix).mean()
        weight = torch.where(penalty.detach() > 1, 2 * self.penalty, self.penalty)
        return network(fake).mean() - network(real).mean() + weight * penalty


def slope_penalty(network: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """(||grad D(x)|| - 1)^2 per image [B] at x = real + mix (fake - real), `mix` [B] in [0, 1]."""
    share = mix.view(-1, *[1] * (real.dim() - 1))
    between = (real + share * (fake - real)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(network(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square()


def require_form(form: str) -> str:
    """Refuse a form that sums over images cannot have."""
    if form not in FORMS:
        raise refuse_unknown("defense.form", form, FORMS)
    return form
