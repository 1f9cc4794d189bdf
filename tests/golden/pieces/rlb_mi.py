"""RLB-MI's agents (`rlb_mi.npz`), as conf/attack composes them with the authors' habits (`attack.legacy`): one agent
whose every draw is the recorded one, its updates, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.agents import Actor, Critic, StackedLinear
from midefense.attacks.base import SearchAttack
from midefense.attacks.search.policy import SoftActorCritic
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.base import Prior
from midefense.types import Evidence, Trace

from .recording import Entry, Recording
from .registry import replays

LAYERS = {
    "actor": {"fc1": "first", "fc2": "second", "mu": "mean", "log_std_linear": "log_deviation"},
    "critic": {"fc1": "first", "fc2": "second", "fc3": "value"},
}
LOSSES = ("critic", "critic", "temperature", "actor")  # theirs are twins from one seed, whose losses are equal


class Sigmoid(Prior):
    """Pictures sigmoid(z A) of 3 channels, 2 by 2."""

    offers = frozenset({"sample", "normal"})

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(channels=3, size=2)
        self.matrix, self.normal_width = matrix, len(matrix)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, self.normal_width, generator=rng)

    def of_normal(self, noise: Tensor) -> Tensor:
        return noise

    def decode(self, latents: Tensor) -> Tensor:
        return (latents @ self.matrix).sigmoid().unflatten(1, (3, 2, 2))


class Linear(nn.Module):
    """Logits (x - .5) W^T + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Trace:
        points = images.flatten(1) - 0.5
        return Trace(points @ self.weight.T + self.bias, points)


class RecordedDice:
    """The recorded draws, in the original's order: it draws for what comes after even where nothing does."""

    def __init__(self, recording: Recording, episodic: bool) -> None:
        self._states, self._noise = iter(recording["z"]), iter(recording["e"])
        self._rows, self._episodic = iter(recording["batch_indices"]), episodic

    def states(self) -> Tensor:
        return next(self._states)[None]

    def acting(self) -> Tensor:
        return next(self._noise).view(1, 1)

    def learning(self, among: int) -> tuple[Tensor, Tensor | None, Tensor]:
        after, noise = (next(self._noise).view(1, 1, 1) for _ in range(2))
        return next(self._rows)[None], after if self._episodic else None, noise


class Watched(SoftActorCritic):
    """The search with recorded draws and weights; what it does is kept."""

    @classmethod
    def of(cls, search: SoftActorCritic, recording: Recording) -> Watched:
        watched = cls.__new__(cls)
        vars(watched).update(vars(search), recording=recording, told=[], believed=[], sure=[], added=[], best=[])
        return watched

    def school(self, problem, owners):
        school = super().school(problem, owners)
        school.dice = RecordedDice(self.recording, self.length > 1)
        load(school.agents.actor, self.recording, "init/actor")
        for critic in (*school.agents.critics, *school.agents.targets):
            load(critic, self.recording, "init/critic")
        self.agents = school.agents
        learn, ask, add, test = school.agents.learn, school._asked, school.memory.add, school.test

        def learning(*given):
            self.told.append(learn(*given))
            self.believed.append([float(school.agents.log_temperature), float(school.agents.believed)])
            return self.told[-1]

        def asking(noise):
            answer = ask(noise)
            self.sure.append(float(answer[2]))
            return answer

        def adding(*given, done):
            self.added.append((*(value[0].clone() for value in given), done))
            if self.diversity == 0:
                self.sure.append(self.sure[-1])  # the original asks about the same image again
            add(*given, done=done)

        def testing():
            test()
            if self.sure[-1] == float(school.sure):
                self.best.append(len(self.added) // self.length)

        school.agents.learn, school._asked, school.memory.add, school.test = learning, asking, adding, testing
        return school


@torch.no_grad()
def load(network: Actor | Critic, recording: Recording, key: str) -> None:
    """Put recorded weights into a network of one agent."""
    for name, tensor in published(network, key.split("/")[-1]).items():
        tensor.copy_(recording[f"{key}/{name}"])


def published(network: Actor | Critic, kind: str) -> dict[str, Tensor]:
    """The weights of a network of one agent by the original's names, in its shapes."""
    found = {}
    for name, ours in LAYERS[kind].items():
        layer: StackedLinear = getattr(network, ours)
        found |= {f"{name}.weight": layer.weight[0].T, f"{name}.bias": layer.bias[0, 0]}
    return found


def attack_of(recording: Recording) -> SearchAttack:
    """The preset as published, with the recorded numbers."""
    hidden = len(recording["init/actor/fc1.bias"])
    changes = {
        "search.episodes": len(recording["z"]) // 2,
        "search.length": int(recording["max_step"]),
        "search.diversity": float(recording["alpha"]),
        "search.hidden": hidden,
        "search.batch_size": recording["batch_indices"].shape[1],
        "search.optimizer.lr": float(recording["lr"]),
    }
    overrides = ["attack=rlb_mi", "attack.legacy=true", *(f"attack.{name}={value}" for name, value in changes.items())]
    return bind(compose("attack", overrides)[0]["attack"], "attack").build()


@replays("rlb_mi/main", "rlb_mi/alpha*", "rlb_mi/len[0-9]*", "rlb_mi/hot*")
def agent(recording: Recording) -> Iterator[Entry]:
    """Every step, update and question of one agent, and its weights at the end."""
    attack = attack_of(recording)
    attack.search = watched = Watched.of(attack.search, recording)
    prior = Sigmoid(recording.elsewhere("G/A"))
    oracle = Oracle(Linear(recording.elsewhere("T/W"), recording.elsewhere("T/b")), attack.access)
    label = recording["label"].view(1)
    *_, found = attack.recover({}, prior, oracle, Evidence(label, label), seeds.generator("golden"))
    states, actions, rewards, after, done = zip(*watched.added, strict=True)
    yield recording.compare("state", torch.stack(states))
    yield recording.compare("action", torch.stack(actions))
    yield recording.compare("reward", torch.stack(rewards))
    yield recording.compare("next_state", torch.stack(after))
    yield recording.compare_exactly("done", torch.tensor(done))
    losses = [[float(told[name]) for name in LOSSES] for told in watched.told]
    yield recording.compare("losses", torch.tensor(losses))
    yield recording.compare("log_alpha_after_and_alpha_used_in_actor_loss", torch.tensor(watched.believed))
    yield recording.compare("p_y_per_query", torch.tensor(watched.sure))
    yield recording.compare_exactly("best_episode", torch.tensor(watched.best))
    yield recording.compare("best_image", prior.decode(found.latents))
    yield from weights(recording, watched)


def weights(recording: Recording, watched: Watched) -> Iterator[Entry]:
    """Those of the actor, the critic and its target at the end."""
    agents = watched.agents
    if not agents.targets:
        recording.leave_out(
            "final/critic_target/*", "where an episode is a step nothing reads a target, and none is made"
        )
    networks = {"actor": agents.actor, "critic": agents.critics[0]}
    networks |= {"critic_target": agents.targets[0]} if agents.targets else {}
    for name, network in networks.items():
        for key, tensor in published(network, name.split("_")[0]).items():
            yield recording.compare(f"final/{name}/{key}", tensor)


@replays("rlb_mi/G", "rlb_mi/T")
def world(recording: Recording) -> Iterator[Entry]:
    """The generator and target, which the agents' pieces read: that they fit each other."""
    sides = [recording[key].shape[-1] for key in recording.arrays if key != "b"]
    yield Entry("shape", float(set(sides) != {12}), 0.0, "numbers of a picture")
    if "b" in recording:
        yield Entry("b", float(len(recording["b"]) != len(recording["W"])), 0.0, "classes")
