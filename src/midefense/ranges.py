"""Ranges of numbers as annotations: `size: Side` says which values a constructor can work with, and the plan refuses
all others before anything is built (`plan.annotations`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `open` leaves both ends out, where they are finite."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def holds(self, value: object) -> bool:
        """Whether a number is one of them. What is no number is for the annotated type to refuse."""
        if not isinstance(value, int | float):
            return True
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low}" if self.open else f"from {self.low}"
        if self.open:
            return f"between {self.low} and {self.high}, neither of them"
        return f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Ascending:
    """`count` numbers (None: any number of them), none below the one before it."""

    count: int | None = None

    def holds(self, value: object) -> bool:
        """Whether a list is so. What is no list of numbers is for the annotated type to refuse."""
        if not isinstance(value, list | tuple) or not all(isinstance(item, int | float) for item in value):
            return True
        return self.count in (None, len(value)) and list(value) == sorted(value)

    def __str__(self) -> str:
        return "in ascending order" if self.count is None else f"with {self.count} values in ascending order"


@dataclass(frozen=True)
class Some:
    """A list that is not empty."""

    def holds(self, value: object) -> bool:
        """Whether there is something in it. What is no list is for the annotated type to refuse."""
        return not isinstance(value, list | tuple) or len(value) > 0

    def __str__(self) -> str:
        return "that is not empty"


MARKERS = (Range, Ascending, Some)

Count = Annotated[int, Range(1)]
Classes = Annotated[int, Range(2)]  # private ones: a network that knows one class knows nothing
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what numpy's RandomState takes
Side = Annotated[int, Range(1, 8192)]  # of an image, in pixels
Depth = Annotated[int, Range(1, 1000)]  # layers, or blocks of them
Width = Annotated[int, Range(1, 65536)]  # channels or units of a layer
Channels = Annotated[int, Range(1, 4096)]  # of what a network takes in
Draws = Annotated[int, Range(1, 10**6)]  # latents that are kept in memory at once, per target or in all
Batch = Annotated[int, Range(2)]  # images of an update: batch norm takes two or more
Share = Annotated[float, Range(0, 1)]
InnerShare = Annotated[float, Range(0, 1, open=True)]
Fading = Annotated[float, Range(0, 0.9999999)]  # what a moving average keeps per step
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Shares = Annotated[Sequence[Share], Ascending(2)]
Betas = tuple[Fading, Fading]
Ratios = Annotated[Sequence[Positive], Ascending(2)]
Widths = Annotated[Sequence[Width], Some()]
Deviation = Positive | Sequence[Positive]  # one for all channels, or one per channel
Colour = Share | Sequence[Share]
