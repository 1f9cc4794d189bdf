"""A network that guesses the latents of a feature, so that a search begins near its end (Wang et al., Crafter, NDSS
2024, appendix M; card crafter.md, 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.ranges import Batch, Count, Positive, Whole
from midefense.training_state import load_training, moments, put_moments, training_state, under, within
from midefense.types import Progress

if TYPE_CHECKING:
    from midefense.defenses.crafting import Generator

Edge = Callable[[Tensor], Tensor]


class Amortisation:
    """A network A learns to minimise mean ||E(G(A(f))) - f||^2 over f = E(G(z)), z drawn: what it guesses looks the
    same from behind the edge. Draws are a pool of batches that is gone through `passes` times before it is drawn anew.

    Args:
        network: a partial of the network, told the shapes `observed` and `latents`; called with features [B, ...].
        steps: updates.
        batch_size: latents per update.
        rate: of Adam.
        pool: batches in the pool.
        passes: how often each is shown.
        unit: updates between two saved states.
    """

    revision = 1
    unhashed = ("unit",)

    def __init__(
        self,
        *,
        network: Callable[..., nn.Module],
        steps: Whole = 50_000,
        batch_size: Batch = 64,
        rate: Positive = 1e-2,
        pool: Count = 100,
        passes: Count = 50,
        unit: Count = 500,
    ) -> None:
        self.network, self.steps, self.batch_size, self.rate = network, steps, batch_size, rate
        self.pool, self.passes, self.unit = pool, passes, unit

    def latents(self, prior: Generator, rng: torch.Generator, step: int) -> Tensor:
        """The latents [B, *latent] of one update."""
        drawn, batch = step // (self.pool * self.passes), step % self.pool
        return prior.sample(self.batch_size, seeds.generator(rng.initial_seed(), "pool", drawn, batch))

    def fit(
        self, edge: Edge, prior: Generator, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn, from the step of a saved `state` on; yields every `unit` steps and at the end."""
        device = prior.device
        with seeds.isolated(rng.initial_seed(), "network"):
            network = self.build(edge, prior).to(device).train()
        optimizer = torch.optim.Adam(network.parameters(), lr=self.rate)
        done, losses = _load(state, network, optimizer), []
        for step in range(done, self.steps):
            loss = self.loss(network, edge, prior, self.latents(prior, rng, step).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if (step + 1) % self.unit == 0 or step + 1 == self.steps:
                logs = {"amortiser_loss": float(torch.stack(losses).mean())}
                losses.clear()
                yield step + 1, logs, lambda step=step: _state(step + 1, network, optimizer)

    def loss(self, network: nn.Module, edge: Edge, prior: Generator, latents: Tensor) -> Tensor:
        """mean ||E(G(A(f))) - f||^2 for the features f of `latents` [B, *latent]."""

        def view(latents: Tensor) -> Tensor:
            return edge(prior.frame(prior.draw(latents)))

        with torch.no_grad():
            features = view(latents)
        return squared_distance(view(network(features)), features).mean()

    def build(self, edge: Edge, prior: Generator) -> nn.Module:
        """A fresh network for this generator and this edge, drawn from torch's global stream."""
        latents = prior.sample(1, seeds.generator("shapes"))
        with torch.no_grad():
            features = edge(prior.frame(prior.draw(latents.to(prior.device))))
        return self.network(observed=list(features.shape[1:]), latents=list(latents.shape[1:]))

    def learned(self, edge: Edge, prior: Generator, state: Mapping[str, Tensor]) -> nn.Module:
        """The network of a saved state, in eval mode; it takes no gradients."""
        with seeds.isolated("learned"):
            network = self.build(edge, prior)
        network.load_state_dict(within(state, "network."))
        return network.to(prior.device).eval().requires_grad_(False)


def squared_distance(left: Tensor, right: Tensor) -> Tensor:
    """||left - right||^2 per row [B]."""
    return (left - right).square().flatten(1).sum(1)


def _state(done: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {**training_state({"network": network}, {}, done)(), **under(moments(optimizer), "optimizer.")}


def _load(state: Mapping[str, Tensor] | None, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved state back; gives the steps done."""
    done = load_training(state, {"network": network}, {})
    if state:
        put_moments(optimizer, within(state, "optimizer."))
    return done
