"""How a network of the attacker's own learns: the target is asked once about a set of images, then the network learns
from its answers, in one loop that stops and goes on to the same bits. Surrogates and decoders share it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.part import Part
from midefense.attacks.schedules import Schedule, paced, require_schedule
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Count
from midefense.training_state import load_training, training_state, within
from midefense.types import Images, Progress, Refused, clip_images

OPEN = (None, inspect.Parameter.empty)  # defaults of what a configuration left open
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (network, images [B, C, H, W], answers [B, ...]) -> loss [B]


@dataclass
class Questions:
    """The `count` images that the target is asked about: `images(rows)` gives those at `rows` (int64 [B] on the CPU),
    [B, C, H, W] in [0, 1], the same ones whenever it is called."""

    count: int
    images: Callable[[Tensor], Tensor]


def public_images(public: Images, device: torch.device) -> Questions:
    """All public images."""
    if not len(public):
        raise Refused("this attack learns from public images, got none; try public=... (see --help)")
    return Questions(len(public), lambda rows: public.floats(rows, device))


def samples(prior: Prior, count: int, rng: torch.Generator) -> Questions:
    """What the prior makes of `count` latents drawn from `rng`; the latents are kept, not the images."""
    return decoded(prior, prior.sample(count, rng))


def decoded(prior: Prior, latents: Tensor) -> Questions:
    """What the prior makes of latents [count, ...]; they are kept, not the images."""

    @torch.no_grad()
    def images(rows: Tensor) -> Tensor:
        return clip_images(prior.decode(latents[rows].to(prior.device)))

    return Questions(len(latents), images)


def samples_of_classes(prior: Prior, classes: int, each: int, rng: torch.Generator) -> Questions:
    """What the prior makes of `each` latents per class of the target, class by class, drawn from `rng`; a prior that
    knows no classes makes as many of any."""
    labels = torch.arange(classes).repeat_interleave(each)
    return decoded(prior, prior.of_classes(prior.sample(len(labels), rng), labels))


class Learner:
    """Who teaches a network of its own: `learning` says how, `ask` and `loss` from what."""

    learning: Learning

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """What is kept of the target's answers [B, ...] about images [B, C, H, W]."""
        raise NotImplementedError

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """Loss per image [B]."""
        raise NotImplementedError

    def shown(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """What the network is shown of a batch it learns from [B, C, H, W]; here the images themselves."""
        return images

    def rehearse(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """One number per image [B] from a network that learned nothing yet, to see before any compute that it fits what
        the target answers about images; here the loss."""
        return self.loss(network, images, answers)


class Learning(Part):
    """One network and how it is trained.

    Args:
        network: a partial of the network (`_partial_: true`); an architecture of ours is told the target's classes and
            the images' channels and size, where the configuration leaves them open. One that reads what was observed of
            a target is told its shape, as `observed`, one that gives latents theirs, as `latents`, and one that gives
            what another network makes of an image that shape, as `embedded`.
        optimizer: a partial torch optimiser.
        steps: updates.
        batch_size: images per update, drawn with replacement; the target is asked about as many at once.
        unit: batches between two saved states.
        schedule: how the learning rate moves; None leaves it as it is.
    """

    unhashed = ("unit",)

    def __init__(
        self,
        *,
        network: Callable[[], nn.Module],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        steps: Count,
        batch_size: Count = 64,
        unit: Count = 100,
        schedule: Schedule | None = None,
    ):
        require_schedule(schedule, steps)
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.steps, self.batch_size, self.unit = steps, batch_size, unit

    def fit(
        self,
        questions: Questions,
        ask: Callable[[Tensor], Tensor],
        loss: Loss,
        *,
        rng: torch.Generator,
        device: torch.device,
        state: Mapping[str, Tensor] | None,
        **shapes: Sequence[int],
    ) -> Iterator[Progress]:
        """Put every question to `ask` (images [B, C, H, W] -> answers [B, ...]), then learn. The answers are part of
        the state, so that work that goes on asks about no image twice. Steps count batches: asked, then learned.
        `shapes`: what the network may be told beside that of an answer (`build`)."""
        answers = yield from self.ask(questions, ask, state)
        asked, before = -(-questions.count // self.batch_size), state if state and "step" in state else None
        work = self.learn(questions, answers, loss, rng=rng, device=device, state=before, **shapes)
        for step, logs, give in work:
            yield asked + step, logs, lambda give=give: {**give(), "asked": answers}

    def ask(
        self, questions: Questions, ask: Callable[[Tensor], Tensor], state: Mapping[str, Tensor] | None
    ) -> Generator[Progress, None, Tensor]:
        """Put every question. Yields every `unit` batches and at the end, with the answers so far (`asked`), nothing
        where all were given; returns the answers [count, ...]."""
        answers = [state["asked"]] if state else []
        batches = torch.arange(questions.count).split(self.batch_size)
        for number in range(-(-sum(map(len, answers)) // self.batch_size), len(batches)):
            answers.append(ask(questions.images(batches[number])).detach().cpu())
            if (number + 1) % self.unit == 0 or number + 1 == len(batches):
                known = torch.cat(answers)
                answers = [known]
                yield number + 1, {}, lambda known=known: {"asked": known}
        return answers[0]

    def learn(
        self,
        questions: Questions,
        answers: Tensor,
        loss: Loss,
        *,
        rng: torch.Generator,
        device: torch.device,
        state: Mapping[str, Tensor] | None,
        network: nn.Module | None = None,
        shown: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        **shapes: Sequence[int],
    ) -> Iterator[Progress]:
        """Learn from `answers` [count, ...] that are known; `state` is that of an earlier step, `network` who learns
        (None: a fresh one), `shown` what it is shown of a batch (None: the images themselves)."""

        def batch_loss(network: nn.Module, draws: torch.Generator) -> Tensor:
            rows = torch.randint(questions.count, (self.batch_size,), generator=draws)
            images = questions.images(rows)
            images = images if shown is None else shown(images, seeds.fork(draws, "shown"))
            return loss(network, images, answers[rows].to(device, non_blocking=True)).mean()

        if network is None:
            network = self.build(rng, observed=answers.shape[1:], **shapes)
        return self.teach(network.to(device), batch_loss, rng, state)

    def build(self, rng: torch.Generator, **shapes: Sequence[int]) -> nn.Module:
        """A fresh network, on the CPU, whose weights `rng` decides. `shapes`: what it may be told, of one target."""
        takes = inspect.signature(self.network).parameters
        told = {name: tuple(shapes[name]) for name in shapes if name in takes and takes[name].default in OPEN}
        with seeds.isolated(rng.initial_seed(), "network"):
            return self.network(**told)

    def learned(self, state: Mapping[str, Tensor], device: torch.device, **shapes: Sequence[int]) -> nn.Module:
        """The network of a saved state, in eval mode; it takes no gradients."""
        network = self.build(seeds.generator("learned"), **shapes)  # any weights: they are replaced
        network.load_state_dict(within(state, "network."))
        return network.to(device).eval().requires_grad_(False)

    @property
    def classes(self) -> int | None:
        """How many classes the network was told to tell apart; None where it takes no such number, or knows none."""
        takes = inspect.signature(self.network).parameters.get("classes")
        return None if takes is None or takes.default in OPEN else takes.default

    def telling(self, **told: object) -> Learning:
        """The same for a network that is told so, whatever the configuration says."""
        other = copy.copy(self)
        other.network = functools.partial(self.network, **told)
        return other

    def lasting(self, steps: int) -> Learning:
        """The same for another number of steps."""
        other = copy.copy(self)
        other.steps = steps
        return other

    def teach(
        self,
        network: nn.Module,
        loss: Callable[[nn.Module, torch.Generator], Tensor],
        rng: torch.Generator,
        state: Mapping[str, Tensor] | None,
    ) -> Iterator[Progress]:
        """The loop, for a network on its device and a `loss(network, draws)` without dimensions. Step s draws
        everything under a key of s, so that a run that goes on from a saved state draws what the uninterrupted one did.
        Yields every `unit` steps and at the end; in between nothing waits for the device."""
        optimizers = {"network": self.optimizer(list(network.parameters()))}
        pace = paced(optimizers["network"], self.schedule, self.steps)
        done, seed = load_training(state, {"network": network}, optimizers), rng.initial_seed()
        network.train()
        losses: list[Tensor] = []
        for step in range(done, self.steps):
            pace(step)
            with seeds.isolated(seed, "learn", step):
                each = loss(network, seeds.generator(seed, "batch", step))
                optimizers["network"].zero_grad()
                each.backward()
            optimizers["network"].step()
            losses.append(each.detach())
            if (step + 1) % self.unit == 0 or step + 1 == self.steps:
                logs = {"loss": float(torch.stack(losses).mean())}
                losses.clear()
                yield step + 1, logs, training_state({"network": network}, optimizers, step + 1)
