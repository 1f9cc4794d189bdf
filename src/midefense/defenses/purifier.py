"""Purification of scores: a network that the defender trained on public images rewrites what is told (Yang, Shao, Xuan,
Chang, Zhang, arXiv 2005.03915; card output_perturbation.md, section 3). It makes scores of one label alike, so that
they tell less of the image; the weights of the classifier are those of no defense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.defenses.output import FLOOR, Change, OutputDefense
from midefense.ranges import Batch, NotNegative, Positive, Whole, Width
from midefense.training_state import load_training, training_state
from midefense.types import Images, Progress, Refused, refuse_unknown

KINDS = ("autoencoder", "conditional")
ASKED_AT_ONCE = 256


class Purifier(OutputDefense):
    """G rewrites the log-probabilities u [B, classes] of an image with the label l (the largest of them). On the
    answers to public images it learns to minimise, with Adam,

        label CE(G(u), l) + distance D(G(u), u),

    where G is an `autoencoder` of probabilities, D the sum of squares of what they differ by (the paper's); or
    `conditional`, G(u) = u + W2 ReLU(W1 [u, embedding of l]), D the mean square over classes of what logits differ by
    (MIBench's). In a stack it stands before all other changes of the answers, as it learned from unchanged ones.

    Args:
        kind: see above.
        hidden: units of the hidden layer.
        embedding: numbers that stand for a label; of `conditional`.
        label, distance: weights of the two terms.
        keep_label: the likeliest class changes places with the one that G made the largest.
        epochs: over the public images; 0 is no defense.
        batch_size, learning_rate: of Adam.
        white_box: see `OutputDefense`.
    """

    revision = 1
    neutral: ClassVar[dict[str, int]] = {"epochs": 0}

    def __init__(
        self,
        *,
        kind: str = "conditional",
        hidden: Width = 256,
        embedding: Width = 512,
        label: NotNegative = 1.0,
        distance: NotNegative = 0.1,
        keep_label: bool = True,
        epochs: Whole = 20,
        batch_size: Batch = 64,
        learning_rate: Positive = 1e-3,
        white_box: str = "removed",
    ) -> None:
        super().__init__(white_box=white_box)
        if kind not in KINDS:
            raise refuse_unknown("defense.kind", kind, KINDS)
        self.kind, self.hidden, self.embedding, self.keep_label = kind, hidden, embedding, keep_label
        self.label, self.distance = label, distance
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.learns_answers = bool(epochs)
        self.network: nn.Module | None = None

    def learn_answers(
        self, model: Classifier, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Ask the trained network about every public image once, then learn from its answers, epoch by epoch."""
        seed = rng.initial_seed()
        told = _told(model, public, seed)
        network = self._fresh(model.classes, seed).to(told.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        trained = {"networks": {"network": network}, "optimizers": {"network": optimizer}}
        for epoch in range(load_training(state, **trained), self.epochs):
            total = torch.zeros((), device=told.device)
            order = torch.randperm(len(told), generator=seeds.generator(seed, "purifier epoch", epoch))
            for rows in order.to(told.device).split(self.batch_size):
                loss = self.loss(network, told[rows])
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
                total += loss.detach().sum()
            yield epoch + 1, {"purifier_loss": float(total) / len(told)}, training_state(**trained, done=epoch + 1)
        self.network = network

    def loss(self, network: nn.Module, told: Tensor) -> Tensor:
        """Per answer [B], of log-probabilities [B, classes]."""
        labels = told.argmax(1)
        rewritten = network(told, labels)
        if self.kind == "autoencoder":
            far = (rewritten.softmax(1) - told.exp()).square().sum(1)
        else:
            far = (rewritten - told).square().mean(1)
        return self.label * F.cross_entropy(rewritten, labels, reduction="none") + self.distance * far

    def seal(self, model: Classifier, public: Images | None = None) -> Classifier:
        """Put what was learned behind the network, or, where weights are about to be loaded, its shape."""
        if not self.epochs:
            return super().seal(model, public)
        if model.output is not None:
            raise Refused(
                "members: expected the purifier before all others that change the answers, as it learned from "
                "unchanged ones, got one behind them; try it as the first member"
            )
        if self.network is None:
            self.network = self._fresh(model.classes, 0).to(model.classifier.weight.device)
        return super().seal(model, public)

    def change(self) -> Change | None:
        return None if self.network is None else Purified(self.network, self.keep_label)

    def _fresh(self, classes: int, seed: int) -> nn.Module:
        with seeds.isolated(seed, "purifier"):
            if self.kind == "autoencoder":
                return Autoencoder(classes, self.hidden)
            return Conditional(classes, self.hidden, self.embedding)


class Purified(Change):
    """See `Purifier`."""

    def __init__(self, network: nn.Module, keeps_label: bool) -> None:
        super().__init__()
        self.network, self.keeps_label = network, keeps_label

    def forward(self, told: Tensor, images: Tensor) -> Tensor:
        weights = next(self.network.parameters())
        rewritten = self.network(told.clamp_min(FLOOR).to(weights.dtype), told.argmax(1))
        return rewritten.to(told.dtype).log_softmax(1)


class Autoencoder(nn.Module):
    """Probabilities through a hidden layer back to logits; it is told log-probabilities [B, classes]."""

    def __init__(self, classes: int, hidden: int) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(classes, hidden), nn.Linear(hidden, classes)

    def forward(self, told: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, classes]; the `labels` [B] are not looked at."""
        return self.decode(F.relu(self.encode(told.exp())))


class Conditional(nn.Module):
    """What is added to logits [B, classes], by them and their label."""

    def __init__(self, classes: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, embedding)
        self.encode, self.decode = nn.Linear(classes + embedding, hidden), nn.Linear(hidden, classes)

    def forward(self, told: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, classes]; `labels` int64 [B]."""
        return told + self.decode(F.relu(self.encode(torch.cat([told, self.label(labels)], 1))))


@torch.no_grad()
def _told(model: Classifier, public: Images, seed: int) -> Tensor:
    """Log-probabilities float32 [N, classes] of public images, on the network's device, in evaluation mode."""
    model.eval()
    device = model.classifier.weight.device
    with seeds.isolated(seed, "purifier answers"):
        parts = [
            model(public.floats(rows, device)).logits.double().log_softmax(1).clamp_min(FLOOR).float()
            for rows in torch.arange(len(public)).split(ASKED_AT_ONCE)
        ]
    return torch.cat(parts)
