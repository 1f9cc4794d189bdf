"""Soft actor-critics (Haarnoja et al., ICML 2018), as many as there are targets, in the same products: every parameter
has a leading dimension for the agents, and no agent's numbers depend on the others'."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVIATIONS = (-20.0, 2.0)  # bounds of the logarithm of the policy's deviation
OUTPUT = 3e-3  # bound of a critic's last weights at first


class StackedLinear(nn.Module):
    """A linear layer for each of M agents: inputs [M, B, inputs] to [M, B, outputs].

    Args:
        inputs, outputs: of one agent.
        draws: a generator for each agent, which draws its weights as torch does: uniform up to 1 / sqrt(inputs).
        bound: of the weights, instead of that; biases keep it.
    """

    def __init__(self, inputs: int, outputs: int, draws: Sequence[torch.Generator], bound: float | None = None):
        super().__init__()
        usual = 1 / math.sqrt(inputs)
        weights, biases = [], []
        for rng in draws:
            weights.append(_uniform((inputs, outputs), usual if bound is None else bound, rng))
            biases.append(_uniform((1, outputs), usual, rng))
        self.weight, self.bias = nn.Parameter(torch.stack(weights)), nn.Parameter(torch.stack(biases))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, inputs, self.weight)


def _uniform(shape: tuple[int, ...], bound: float, rng: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=rng) - 1) * bound


class Actor(nn.Module):
    """A squashed normal policy: states [M, B, width] to the mean and the logarithm of the deviation of what becomes, by
    tanh, an action."""

    def __init__(self, width: int, hidden: int, draws: Sequence[torch.Generator]):
        super().__init__()
        self.first, self.second = StackedLinear(width, hidden, draws), StackedLinear(hidden, hidden, draws)
        self.mean, self.log_deviation = (StackedLinear(hidden, width, draws) for _ in range(2))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.second(F.relu(self.first(states))))
        return self.mean(hidden), self.log_deviation(hidden).clamp(*DEVIATIONS)

    def act(self, states: Tensor, noise: Tensor) -> Tensor:
        """Actions [M, B, width] in (-1, 1), of normal noise that broadcasts to them."""
        mean, log_deviation = self(states)
        return torch.tanh(mean + noise * log_deviation.exp())

    def act_with_density(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions, and their log-density [M, B], which is a mean over the dimensions (the authors' code; a sum would
        make another algorithm of it: see `Agents`)."""
        mean, log_deviation = self(states)
        actions = torch.tanh(mean + noise * log_deviation.exp())
        normal = -noise.square() / 2 - log_deviation - math.log(2 * math.pi) / 2
        return actions, (normal - (1 - actions.square() + 1e-6).log()).mean(2)


class Critic(nn.Module):
    """The value [M, B] of states and actions [M, B, width]; hidden weights at first up to 1 / sqrt(outputs), as the
    authors' code has it."""

    def __init__(self, width: int, hidden: int, draws: Sequence[torch.Generator]):
        super().__init__()
        bound = 1 / math.sqrt(hidden)
        self.first = StackedLinear(2 * width, hidden, draws, bound)
        self.second = StackedLinear(hidden, hidden, draws, bound)
        self.value = StackedLinear(hidden, 1, draws, OUTPUT)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        hidden = F.relu(self.second(F.relu(self.first(torch.cat([states, actions], 2)))))
        return self.value(hidden)[..., 0]


@dataclass
class Experience:
    """Steps of M agents: states and actions [M, B, width], rewards [M, B]; where episodes are longer than a step also
    the next states [M, B, width] and whether the episode was done [M, B] (None: it always was)."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor | None = None
    done: Tensor | None = None


class Memory:
    """The steps of M agents, in a ring of at most `capacity`.

    Args:
        agents, capacity, width: the shape.
        episodic: whether what comes after a step is to be kept, too.
        device: where.
    """

    def __init__(self, agents: int, capacity: int, width: int, episodic: bool, device: torch.device):
        def empty(*shape: int) -> Tensor:
            return torch.empty(agents, capacity, *shape, device=device)

        self.capacity, self.added = capacity, 0
        self._states, self._actions, self._rewards = empty(width), empty(width), empty()
        self._next, self._done = (empty(width), empty()) if episodic else (None, None)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, states: Tensor, actions: Tensor, rewards: Tensor, next_states: Tensor, done: bool) -> None:
        """One step of every agent: states, actions and next states [M, width], rewards [M]."""
        place = self.added % self.capacity
        self._states[:, place], self._actions[:, place], self._rewards[:, place] = states, actions, rewards
        if self._next is not None:
            self._next[:, place], self._done[:, place] = next_states, float(done)
        self.added += 1

    def take(self, rows: Tensor) -> Experience:
        """The steps at `rows` int64 [M, B]."""

        def of(kept: Tensor | None) -> Tensor | None:
            if kept is None or kept.ndim == 2:
                return None if kept is None else kept.gather(1, rows)
            return kept.gather(1, rows[..., None].expand(-1, -1, kept.shape[2]))

        return Experience(*map(of, (self._states, self._actions, self._rewards, self._next, self._done)))


class Agents:
    """M soft actor-critics and how they learn, as RLB-MI's code has them (Han et al., CVPR 2023).

    As log-densities are means over the dimensions and the entropy wanted is -width, the temperature hardly sees them:
    it falls by about the learning rate at every update, whatever the policy does.

    Args:
        width: of states and actions.
        hidden: units of both hidden layers.
        draws: a generator for each agent.
        optimizer: makes an optimiser of parameters; every step treats the agents alike.
        discount: of what comes after.
        soft_update: share of a critic that its target takes over.
        twins: two critics of each agent, of which the lower is believed; else one. Without effect where episodes end
            after a step, since nothing is believed of what comes after.
        episodic: whether episodes may go on after a step. Where none does, there are no twins and no targets.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: int,
        draws: Sequence[torch.Generator],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        discount: float,
        soft_update: float,
        twins: bool,
        episodic: bool,
        device: torch.device,
    ):
        self.actor = Actor(width, hidden, draws).to(device)
        self.critics = [Critic(width, hidden, draws).to(device) for _ in range(1 + (twins and episodic))]
        self.log_temperature = torch.zeros(len(draws), device=device, requires_grad=True)
        self.believed = torch.ones(len(draws), device=device)  # the temperature of the last loss of the actor
        self.discount, self.soft_update, self.entropy = discount, soft_update, -float(width)
        self.targets = [copy.deepcopy(critic).requires_grad_(False) for critic in self.critics] if episodic else []
        self._actor_step = optimizer(list(self.actor.parameters()))
        self._critic_step = optimizer([weight for critic in self.critics for weight in critic.parameters()])
        self._temperature_step = optimizer([self.log_temperature])

    @torch.no_grad()
    def act(self, states: Tensor, noise: Tensor) -> Tensor:
        """An action of every agent [M, width], of its state [M, width] and normal noise [M, 1 or width]."""
        return self.actor.act(states[:, None], noise[:, None])[:, 0]

    @torch.enable_grad()
    def learn(self, seen: Experience, next_noise: Tensor | None, noise: Tensor) -> dict[str, Tensor]:
        """An update of critics, temperature, actor and targets, in this order: the losses by name, each [M].

        Args:
            seen: a batch of each agent.
            next_noise: of the actions that would come after; None where episodes end after a step.
            noise: of the actions that the actor is judged by. Both broadcast to [M, B, width].
        """
        worth = self._worth(seen, next_noise)
        losses = [0.5 * (critic(seen.states, seen.actions) - worth).square().mean(1) for critic in self.critics]
        _step(self._critic_step, sum(losses))
        actions, density = self.actor.act_with_density(seen.states, noise)
        self.believed = self.log_temperature.detach().exp()
        cooling = -(self.log_temperature[:, None] * (density.detach() + self.entropy)).mean(1)
        _step(self._temperature_step, cooling)
        self._freeze(True)  # its own step does not need the critics' gradients
        acting = (self.believed[:, None] * density - self.critics[0](seen.states, actions)).mean(1)
        _step(self._actor_step, acting)
        self._freeze(False)
        self._take_over()
        told = {"critic": losses[0], "temperature": cooling, "actor": acting}
        return {name: loss.detach() for name, loss in told.items()}

    def _freeze(self, frozen: bool) -> None:
        for critic in self.critics:
            critic.requires_grad_(not frozen)

    @torch.no_grad()
    def _worth(self, seen: Experience, next_noise: Tensor | None) -> Tensor:
        """What the critics should say [M, B]: the reward, and where an episode goes on what is believed of the rest."""
        if seen.next_states is None:
            return seen.rewards
        actions, density = self.actor.act_with_density(seen.next_states, next_noise)
        lowest = torch.stack([target(seen.next_states, actions) for target in self.targets]).amin(0)
        rest = lowest - self.believed[:, None] * density
        return seen.rewards + self.discount * (1 - seen.done) * rest

    @torch.no_grad()
    def _take_over(self) -> None:
        """The targets move towards their critics."""
        for target, critic in zip(self.targets, self.critics, strict=bool(self.targets)):
            for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                old.mul_(1 - self.soft_update).add_(new, alpha=self.soft_update)


def _step(optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    """One step on the sum of the agents' losses [M], each of which knows its own parameters alone."""
    optimizer.zero_grad()
    losses.sum().backward()
    optimizer.step()


def distinct(count: int, among: int, rng: torch.Generator) -> Tensor:
    """`count` different numbers below `among`, every set of them equally likely, int64 [count]."""
    drawn = torch.randint(among, (count + count // 4,), generator=rng).numpy()
    first = np.sort(np.unique(drawn, return_index=True)[1])[:count]  # the first of each that was drawn again
    if len(first) < count:  # where there are few to draw from
        return torch.randperm(among, generator=rng)[:count]
    return torch.from_numpy(drawn[first])
