"""Surrogates: what the attacker asks in the target's place (LOMMA, Nguyen et al., CVPR 2023; LOKT, Nguyen et al.,
NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import Part
from midefense.attacks.learning import Learning, Questions
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.types import Access, Images, Progress


class Surrogate(Part):
    """A network of the attacker's own, which learns from what the target answers and is then asked itself, at no cost
    and with gradients. What it `reads` is read of the target, and what it asks is on the shared bill.

    A member says what to ask about (`questions`) and how to learn from it (`loss`).

    Attributes:
        access: what may be read of the surrogate, once it has learned.
    """

    access = Access.WHITEBOX

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

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Oracle:
        """What a search asks. A surrogate that answers together with the target asks `target`, which charges it."""
        return Oracle(self.learning.learned(state, prior.device), self.access)
