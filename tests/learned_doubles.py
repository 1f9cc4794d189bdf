"""Doubles of parts that learn: a target of known answers, a surrogate of labels, an inverse network, and evidence of
what was observed."""

import torch
import torch.nn.functional as F
from torch import nn

from midefense.attacks.learning import public_images, samples
from midefense.attacks.part import Part
from midefense.attacks.surrogate import Surrogate
from midefense.evidence.base import EvidenceSource
from midefense.types import Evidence, Trace


class Quarters(nn.Module):
    """A target: the brightest quarter of a grey picture is its class. Its features are 4x4 means, rotated. `seen`
    counts the images shown, to its copies too."""

    def __init__(self, side=16):
        super().__init__()
        self.side, self.seen = side, Tally()
        rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
        self.register_buffer("rotation", rotation)

    def forward(self, images, taps=()):
        self.seen.append(len(images))
        small = F.adaptive_avg_pool2d(images, 4)
        return Trace(F.avg_pool2d(small, 2).flatten(1) * 50, small.flatten(1) @ self.rotation)


class Tally(list):
    """A list that copies share."""

    def __deepcopy__(self, memo):
        return self


class Student(nn.Module):
    """A small classifier with dropout, which draws from torch's global stream."""

    revision = 1

    def __init__(self, *, classes, channels, size):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, 16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, classes)

    def forward(self, images, taps=()):
        features = self.body(images)
        return Trace(self.head(features), features)


class LabelSurrogate(Surrogate):
    """Learns the target's labels of `count` samples of the prior, or of all public images (0)."""

    reads = ("labels",)
    needs = ("sample",)

    def __init__(self, *, learning, count: int):
        super().__init__(learning=learning)
        self.count = count

    def questions(self, prior, public, rng):
        return samples(prior, self.count, rng) if self.count else public_images(public, prior.device)

    def loss(self, network, images, answers):
        return F.cross_entropy(network(images).logits, answers, reduction="none")


class Agreed(Part):
    """A selection by the target's label alone."""

    reads = ("labels",)
    keep = 1

    def __call__(self, problem, found):
        labels, ids = problem.evidence.labels[found.evidence], problem.evidence.ids[found.evidence]
        images = problem.images(found, slice(0, len(found)))
        return (problem.oracle(images, ids=ids, reads=("labels",)).labels.cpu() == labels).float()


class Inverse(nn.Module):
    """Features [B, features] to images, linear."""

    revision = 1

    def __init__(self, *, features: int, channels: int, size: int):
        super().__init__()
        self.shape, self.layer = (channels, size, size), nn.Linear(features, channels * size * size)

    def forward(self, features):
        return self.layer(features).view(-1, *self.shape)


class Released(EvidenceSource):
    """Evidence of one feature vector of `width` numbers per class."""

    def __init__(self, *, width: int):
        self.width = width

    def collect(self, splits):
        labels = torch.arange(splits.classes)
        return Evidence(labels, labels.clone(), torch.linspace(0, 1, splits.classes * self.width).view(-1, self.width))
