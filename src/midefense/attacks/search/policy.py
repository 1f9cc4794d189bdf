"""Learn where to go by reinforcement (RLB-MI, Han, Choi, Lee and Kim, CVPR 2023): for every target an agent that is
paid for latents the target is sure of, and asked for ever new ones; what it finds best on the way is the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from midefense.attacks.agents import Agents, Memory, distinct
from midefense.attacks.part import Part
from midefense.attacks.problem import Look, Problem
from midefense.ranges import Batch, Count, NotNegative, Share, Width
from midefense.types import Found


class SoftActorCritic(Part):
    """An agent per candidate, all of a group in the same products. A state s is normal noise of the prior; an action a
    in (-1, 1)^width takes it to s' = diversity s + (1 - diversity) a. The reward is minus the objective's loss of
    G(s'), and `action_weight` log p_y of G(a) (equation 3; where diversity is 0 both are one image, asked about once).
    After every episode the agent is tested on a fresh state: the test of highest p_y, among equals the newest, is what
    is found; its loss is 1 - p_y.

    Every draw is of the agent's own generator (its target and place), so that no agent depends on the others; only what
    views draw, where there are any that do, is of the group, as in every search. What an episode costs: `length`
    images, twice as many with diversity, and the test.

    Args:
        episodes: per agent.
        length: steps of an episode. After one (the paper's) nothing is believed of what comes after.
        diversity: the paper's alpha; near 1 the images of an agent differ.
        optimizer: a partial torch optimiser, of actor, critics and temperature, whose every step treats agents alike.
        hidden: units of the agents' two hidden layers.
        batch_size: steps of an update, of those in memory, once there are more.
        memory: steps that are remembered, the newest.
        discount, soft_update, twins: see `agents.Agents`.
        action_weight: of log p_y of the action's own image in the reward.
        least: p_y counts as this at least in that term: an oracle that rounds may say 0.
        tests: find by tests; False finds among what the agent was paid for, at no cost (another selection).
        shared_noise: explore by one number per action, and one for all of a batch, as the authors' code does: the agent
            then moves along one line per state. False draws a number for every entry.
    """

    reads = ("probs",)
    needs = ("normal",)
    begins_anew = True

    def __init__(
        self,
        *,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        episodes: Count = 40_000,
        length: Count = 1,
        diversity: Share = 0.0,
        hidden: Width = 256,
        batch_size: Batch = 256,
        memory: Count = 1_000_000,
        discount: Share = 0.99,
        soft_update: Share = 0.01,
        twins: bool = True,
        action_weight: NotNegative = 2.0,
        least: Share = 1e-7,
        tests: bool = True,
        shared_noise: bool = False,
    ):
        self.optimizer, self.steps, self.length, self.diversity = optimizer, episodes, length, diversity
        self.hidden, self.batch_size, self.memory, self.discount = hidden, batch_size, memory, discount
        self.soft_update, self.twins, self.action_weight, self.least = soft_update, twins, action_weight, least
        self.tests, self.shared_noise = tests, shared_noise

    def as_published(self) -> SoftActorCritic:
        """One number explores for all entries, the twins are one (theirs are drawn from the same seed, and stay equal),
        and a probability of 0 is worth minus infinity."""
        options = {name: value for name, value in vars(self).items() if name != "steps"}
        return SoftActorCritic(
            **{**options, "episodes": self.steps, "shared_noise": True, "twins": False, "least": 0.0}
        )

    @torch.no_grad()
    def __call__(self, problem: Problem, found: Found) -> Iterator[Found]:
        """Yields what was found after every episode. Of the starts only their number counts: an agent for each."""
        school = self.school(problem, found.evidence)
        for _ in range(self.steps):
            paid = school.episode()
            if self.tests:
                school.test()
            yield school.found(paid)

    def school(self, problem: Problem, owners: Tensor) -> _School:
        """The agents of the candidates of these rows of the evidence."""
        draws = problem.draws_of("search", owners)
        width, episodic = problem.prior.normal_width, self.length > 1
        agents = Agents(
            width=width,
            hidden=self.hidden,
            draws=draws,
            optimizer=self.optimizer,
            discount=self.discount,
            soft_update=self.soft_update,
            twins=self.twins,
            episodic=episodic,
            device=problem.device,
        )
        capacity = min(self.memory, self.steps * self.length)
        memory = Memory(len(owners), capacity, width, episodic, problem.device)
        return _School(self, problem, owners, Dice(self, draws, width, problem.device), agents, memory)


@dataclass
class Dice:
    """All that agents draw, each from its own generator of `draws`."""

    rule: SoftActorCritic
    draws: list[torch.Generator]
    width: int
    device: torch.device

    def states(self) -> Tensor:
        """A state of every agent [M, width]."""
        return self._normal(self.width)

    def acting(self) -> Tensor:
        """Noise for an action of every agent [M, 1 or width]."""
        return self._normal(1 if self.rule.shared_noise else self.width)

    def learning(self, among: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """For an update: which of `among` steps in memory it is of, int64 [M, batch]; noise of the actions that come
        after, where something does; and noise of the actions that the actor is judged by."""
        count = self.rule.batch_size
        shape = (1, 1) if self.rule.shared_noise else (count, self.width)
        rows = torch.stack([distinct(count, among, rng) for rng in self.draws]).to(self.device, non_blocking=True)
        next_noise = self._normal(*shape) if self.rule.length > 1 else None
        return rows, next_noise, self._normal(*shape)

    def _normal(self, *shape: int) -> Tensor:
        drawn = torch.stack([torch.randn(shape, generator=rng) for rng in self.draws])
        return drawn.to(self.device, non_blocking=True)


class _School:
    """The agents of a group at work, and the best that each has found: its `latents` [M, ...] and how `sure` the target
    was of them [M]."""

    def __init__(
        self, rule: SoftActorCritic, problem: Problem, owners: Tensor, dice: Dice, agents: Agents, memory: Memory
    ):
        self.rule, self.problem, self.owners = rule, problem, owners
        self.dice, self.agents, self.memory = dice, agents, memory
        self.sure = torch.full((len(owners),), -1.0, device=problem.device)
        self.latents: Tensor | None = None
        self.reads = tuple(dict.fromkeys((*problem.reads, *rule.reads)))  # the objective's, and what it is paid by
        self.questions = 0

    def episode(self) -> Tensor:
        """One of every agent, which learns after each step: what it was paid, on average [M]."""
        states, paid = self.dice.states(), []
        for step in range(self.rule.length):
            actions = self.agents.act(states, self.dice.acting())
            after = self._moved(states, actions)
            paid.append(self._reward(after, actions))
            self.memory.add(states, actions, paid[-1], after, done=step + 1 == self.rule.length)
            if len(self.memory) > self.rule.batch_size:
                rows, *noise = self.dice.learning(len(self.memory))
                self.agents.learn(self.memory.take(rows), *noise)
            states = after
        return torch.stack(paid).mean(0)

    def test(self) -> None:
        """Ask about where every agent takes a fresh state."""
        states = self.dice.states()
        for _ in range(self.rule.length):
            states = self._moved(states, self.agents.act(states, self.dice.acting()))
        latents, _, sure = self._asked(states)
        self._keep(latents, sure)

    def found(self, paid: Tensor) -> Found:
        """The best so far; `paid` goes into the curves."""
        loss = 1 - self.sure
        seen = {"loss": loss.mean(), "confidence": self.sure.mean(), "reward": paid.mean()}
        return Found(self.latents, loss, self.owners, stage="optimised", seen=seen)

    def _moved(self, states: Tensor, actions: Tensor) -> Tensor:
        share = self.rule.diversity
        return actions if share == 0 else share * states + (1 - share) * actions

    def _reward(self, after: Tensor, actions: Tensor) -> Tensor:
        """What a step is worth [M]."""
        latents, loss, sure = self._asked(after)
        if not self.rule.tests:
            self._keep(latents, sure)
        if actions is not after and self.rule.action_weight:
            sure = self._asked(actions)[2]
        return self.rule.action_weight * sure.clamp_min(self.rule.least).log() - loss

    def _asked(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The latents of noise [M, width], the objective's loss of their images [M] and how sure the target is [M]."""
        views = self.problem.views
        draws = None if views is None else views.draw(len(noise), self.problem.draw(f"views {self.questions}"))
        self.questions += 1
        made, losses, sure = [], [], []
        for rows in self.problem.chunks(len(noise)):
            latents = self.problem.prior.of_normal(noise[rows])
            shown = None if draws is None else draws[rows].to(noise.device, non_blocking=True)
            look: Look = self.problem.look(latents, self.owners[rows], views, shown, self.reads)
            made.append(latents)
            losses.append(self.problem.objective(look))
            sure.append(look.confidence())
        return torch.cat(made), torch.cat(losses), torch.cat(sure)

    def _keep(self, latents: Tensor, sure: Tensor) -> None:
        """What is at least as good as the best so far takes its place."""
        if self.latents is None:
            self.latents = latents.clone()
        better = sure >= self.sure
        self.sure = torch.where(better, sure, self.sure)
        self.latents = torch.where(better.view(-1, *[1] * (latents.ndim - 1)), latents, self.latents)
