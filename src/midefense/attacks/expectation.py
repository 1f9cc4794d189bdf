"""What a target that draws for its answers says on average: the expectation over its randomness (EOT; Athalye, Carlini,
Wagner, ICML 2018), for attackers who know that it draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from midefense.attacks.surrogate import Surrogate
from midefense.oracle import Oracle, Way
from midefense.priors.base import Prior
from midefense.ranges import Count
from midefense.types import Access, Answer, Images, Progress, Refused, refuse_unknown

NOISES = ("deployed", "drawn", "mean")


class Expectation:
    """An oracle that asks `oracle` about each image `draws` times, which charges it each time. Probabilities and
    features are the mean over the draws, and the label that of the largest mean probability, or the most frequent one
    (the first of equals) where no probabilities are read. Logits are those of the first draw, with the others
    `beside`: a loss of logits is then its mean over the draws (`objectives.over_models`), and so is its gradient, where
    the loss of mean logits would be that of one answer without noise.
    """

    def __init__(self, oracle: Oracle, draws: int):
        self._oracle, self._draws = oracle, draws

    @property
    def access(self) -> Access:
        """That to the target."""
        return self._oracle.access

    def __call__(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        reads: Sequence[str] = ("probs",),
        weights: dict[str, Tensor] | None = None,
    ) -> Answer:
        """As `Oracle`."""
        first, *others = (self._oracle(images, ids, reads, weights) for _ in range(self._draws))
        told = {name: _mean(name, first, others) for name in ("probs", "features") if name in reads}
        if "labels" in reads:
            told["labels"] = told["probs"].argmax(1) if "probs" in told else _most_frequent([first, *others])
        beside = tuple(other.logits for other in others) if "logits" in reads else ()
        return replace(first, **told, beside=beside)

    def run_by(self, way: Way) -> Expectation:
        """The same, of an oracle that is run that way."""
        return Expectation(self._oracle.run_by(way), self._draws)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the target's parameters and buffers."""
        return self._oracle.weights()


def _mean(name: str, first: Answer, others: Sequence[Answer]) -> Tensor:
    return torch.stack([getattr(answer, name) for answer in (first, *others)]).mean(0)


def _most_frequent(answers: Sequence[Answer]) -> Tensor:
    return torch.stack([answer.labels for answer in answers]).mode(0).values


class Averaged(Surrogate):
    """The target itself, asked several times about each look, with its noise as the attacker chooses. A network that
    draws nothing answers as it does, `draws` times.

    Args:
        draws: questions about each image and look.
        noise: `deployed`, as the target answers, at any access; or, with its weights: `drawn`, so that a bottleneck
            draws its code for every answer though the mean of it is deployed; `mean`, so that it draws nothing though
            it was deployed to (the mean path), which one draw tells.
    """

    access = None
    beside_target = True
    learns = False

    def __init__(self, *, draws: Count = 8, noise: str = "drawn"):
        if noise not in NOISES:
            raise refuse_unknown("attack.surrogate.noise", noise, NOISES)
        if noise == "mean" and draws > 1:
            raise Refused(
                f"attack.surrogate.draws: expected 1 of a target that draws nothing (noise=mean), got {draws}; "
                "try attack.surrogate.draws=1"
            )
        self.draws, self.noise = draws, noise
        self.reads = ("labels",) if noise == "deployed" else ("weights",)

    def fit(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Nothing is to be learned."""
        return iter(())

    def oracle(self, state: Mapping[str, Tensor], prior: Prior, target: Oracle) -> Expectation:
        """The target's answers over `draws` questions."""
        return Expectation(target if self.noise == "deployed" else target.drawing(self.noise == "drawn"), self.draws)
