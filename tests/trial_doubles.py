"""Classes of a user's own that cannot be built, or do not fit: what the plan must find before anything is trained."""

import torch
from torch import nn

from midefense.attacks.part import Part
from midefense.priors.base import Prior
from midefense.types import Trace


class Forgetful(Part):
    """Its constructor has a mistake."""

    keep = 1

    def __init__(self, *, count: int = 3):
        self.count = count + "1"


class OtherShape(Prior):
    """Makes images of half the side."""

    def sample(self, count, rng):
        return torch.rand(count, self.channels, self.size // 2, self.size // 2, generator=rng)

    def decode(self, latents):
        return latents


class SevenClasses(nn.Module):
    """A student of `side` pixels a side, and of so many classes whatever it is told."""

    revision = 1

    def __init__(self, *, side: int = 16, classes: int = 7):
        super().__init__()
        self.head = nn.Linear(side * side, classes)

    def forward(self, images, taps=()):
        features = images.flatten(1)
        return Trace(self.head(features), features)


class KeepsMore(nn.Module):
    """A network whose state is more than tensors."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(256, 7)

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass

    def forward(self, images):
        return self.head(images.flatten(1))


class LooksAtNumbers(nn.Module):
    """Its constructor computes, which cannot be done with shapes alone."""

    def __init__(self):
        super().__init__()
        self.scale = float(torch.ones(3).sum())
        self.head = nn.Linear(256, 7)

    def forward(self, images):
        return self.head(images.flatten(1))
