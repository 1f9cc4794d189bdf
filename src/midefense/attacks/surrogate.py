"""Surrogates: what the attacker asks in the target's place (LOMMA, Nguyen et al., CVPR 2023; LOKT, Nguyen et al.,
NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import Part, passed_on, within
from midefense.attacks.learning import Learner, Learning, Questions, public_images
from midefense.oracle import Ensemble, Oracle
from midefense.priors.base import Prior
from midefense.ranges import Positive
from midefense.types import Access, Images, Progress, Refused


class Surrogate(Learner, Part):
    """A network of the attacker's own, which learns from what the target answers and is then asked itself, at no cost
    and with gradients. What it `reads` is read of the target, and what it asks is on the shared bill.

    A member says what to ask about (`questions`) and how to learn from it (`loss`).

    Attributes:
        access: what may be read of the surrogate, once it has learned.
        beside_target: it is asked together with the target, and not in its place. What a search reads of the target is
            then among what it `reads`.
    """

    access = Access.WHITEBOX
    beside_target = False

    def __init__(self, *, learning: Learning):
        self.learning = learning

    def questions(self, prior: Prior, public: Images, rng: torch.Generator) -> Questions:
        """What the target is asked about: see `learning.public_images` and `learning.samples`."""
        raise NotImplementedError

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """What is kept of the target's answers [B, ...]; here the one field that is read."""
        return getattr(oracle(images, reads=self.reads), self.reads[0])

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """Loss per image [B]; `network(images)` gives a `Trace`."""
        raise NotImplementedError

    def fit(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn from the target; the last state makes an oracle."""
        return self.learning.fit(
            self.questions(prior, public, seeds.fork(rng, "questions")),
            lambda images: self.ask(oracle, images),
            self.loss,
            rng=rng,
            device=prior.device,
            state=state,
        )

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Oracle | Ensemble:
        """What a search asks. A surrogate that answers together with the target asks `target`, which charges it."""
        return Oracle(self.learning.learned(state, prior.device), self.access)


class Distilled(Surrogate):
    """Students of the target, asked beside it (model augmentation; LOMMA, Nguyen et al., CVPR 2023, section 4.2). The
    target is asked about every public image once; each student learns from its answers, one after the other.

    Args:
        students: by name, each a network and how it learns.
        temperature: of both softmaxes.
    """

    reads = ("logits", "features", "gradient")
    beside_target = True

    def __init__(self, *, students: Mapping[str, Learning], temperature: Positive = 1.0):
        if not students:
            raise Refused("attack.surrogate.students: expected one or more, got none; try ~attack.surrogate")
        self.students, self.temperature = dict(students), temperature

    def questions(self, prior: Prior, public: Images, rng: torch.Generator) -> Questions:
        """All public images."""
        return public_images(public, prior.device)

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """KL(softmax(t / tau) || softmax(s / tau)) / tau^2 per image [B], of the target's logits t and the student's s.
        Distillation usually multiplies by tau^2; the authors' code divides."""
        return distillation(network(images).logits, answers, self.temperature)

    def fit(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Ask about every public image, then let each student learn."""
        questions, saved = self.questions(prior, public, rng), state or {}
        first = next(iter(self.students.values()))
        answers = yield from first.ask(questions, lambda images: self.ask(oracle, images), state)
        done, made = -(-questions.count // first.batch_size), {"asked": answers}
        for name, learning in self.students.items():
            known = within(saved, f"{name}.")
            work = learning.learn(
                questions, answers, self.loss, rng=seeds.fork(rng, name), device=prior.device, state=known or None
            )
            named = ((step, {f"{name}_loss": logs["loss"]}, give) for step, logs, give in work)
            done, made = yield from passed_on(named, f"{name}.", known, done, made)

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Ensemble:
        """The target and its students."""
        networks = [
            learning.learned(within(state, f"{name}."), prior.device) for name, learning in self.students.items()
        ]
        return Ensemble(target, [Oracle(network, self.access) for network in networks])


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The loss of `Distilled` per image [B], for logits [B, classes] of a student and its teacher."""
    told, learned = ((logits.float() / temperature).log_softmax(1) for logits in (teacher, student))
    return F.kl_div(learned, told, reduction="none", log_target=True).sum(1) / temperature**2
