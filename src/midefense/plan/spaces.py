"""What a search over options may try: `attack.deviation=tag(log,interval(0.01,0.5))`, read by `plan.compose`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from midefense.types import Refused


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both of them too; `log`: alike on a logarithmic scale. Whole ones if both are."""

    low: float | int
    high: float | int
    log: bool = False

    def require_sound(self, key: str) -> None:
        """Refuses an interval that holds nothing, or of which there is no logarithm."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise Refused(f"{key}: expected interval(LOW,HIGH) with LOW below HIGH, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise Refused(
                f"{key}: expected numbers above 0 on a logarithmic scale, got from {self.low}; try interval without log"
            )

    @property
    def ends(self) -> tuple[float | int, float | int]:
        """The values that are checked before any is tried."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of several values, as a command line writes them."""

    values: tuple[str, ...]

    def require_sound(self, key: str) -> None:
        """Refuses a choice among fewer than two."""
        if len(set(self.values)) < 2:
            raise Refused(f"{key}: expected two or more different values to choose from, got {list(self.values)}")

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are checked before any is tried."""
        return self.values


Space = dict[str, Interval | Choice]
