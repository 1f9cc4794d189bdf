"""Whether a classifier knows anything of the images it was tested on, or only guessed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import bdtrc
from torch import Tensor

LEVEL = 0.01  # how rarely one that knows nothing may pass


@dataclass(frozen=True)
class Trial:
    """`right` answers about `images` real test images, where a guess is right with probability `chance`."""

    right: int
    images: int
    chance: float

    @classmethod
    def of(cls, accuracy: float, labels: Tensor, classes: int) -> Trial:
        """The trial behind an `accuracy` in [0, 1] on images of `labels` int64 [N], by one who tells `classes` apart.

        The best guess is to name the most frequent class every time, which a network that collapsed does.
        """
        most = int(torch.bincount(labels).max())
        return cls(round(accuracy * len(labels)), len(labels), max(1 / classes, most / len(labels)))

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.images

    @property
    def odds(self) -> float:
        """How often guessing gives as many right answers or more: the exact tail of the binomial distribution."""
        return odds_of(self.right, self.images, self.chance)

    @property
    def guessed(self) -> bool:
        """Whether this is what guessing gives. Where so few images cannot tell, only if it is no better than that."""
        return self.accuracy <= self.chance or (self.tells and self.odds > LEVEL)

    @property
    def tells(self) -> bool:
        """Whether there are images enough for one that knows them all to be told from a guesser."""
        return odds_of(self.images, self.images, self.chance) <= LEVEL

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} % of {self.images:,} real test images"


def odds_of(right: int, images: int, chance: float) -> float:
    """P(X >= `right`) for X binomial of `images` trials with probability `chance` in (0, 1]."""
    return 1.0 if right <= 0 or chance >= 1 else float(bdtrc(right - 1, images, chance))
