"""Records of drawn numbers: a field says what it is drawn from, a row is drawn from its own key.

A field is keyed by its own name, so that adding one changes no other. Numbers are made by products and sums in
float64, which every machine rounds alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from midefense import seeds

if TYPE_CHECKING:
    from typing_extensions import Self

Colour = tuple[float, float, float]


def spread(low: float, high: float) -> Any:
    """A field uniform in [low, high)."""
    return _drawn(lambda share: low + (high - low) * share)


def around(low: float, high: float) -> Any:
    """A field in [low, high), near the middle more often than at the ends."""
    return _drawn(lambda share: low + (high - low) * (0.5 + (share - 0.5) * (0.5 + 2 * (share - 0.5) * (share - 0.5))))


def chance(probability: float) -> Any:
    """A field that is 1 with this probability, else 0."""
    return _drawn(lambda share: share < probability)


def one_of(colours: Sequence[Colour]) -> Any:
    """A field that is one of `colours`."""
    table = torch.tensor(colours, dtype=torch.float64)
    return _drawn(lambda share: table[(share[:, 0] * len(table)).long()], width=3)


def between(colours: Sequence[Colour]) -> Any:
    """A field on the line through `colours`, in their order."""
    table = torch.tensor(colours, dtype=torch.float64)
    steps = table.diff(dim=0)

    def of(share: Tensor) -> Tensor:
        position = share * len(steps)
        start = position.long()
        return table[start[:, 0]] + (position - start) * steps[start[:, 0]]

    return _drawn(of, width=3)


def _drawn(of: Callable[[Tensor], Tensor], width: int = 1) -> Any:
    """A field made from uniform numbers float64 [N, 1] by `of`, as [N, width]."""
    return field(metadata={"of": of, "width": width})


@dataclass(frozen=True, eq=False)
class Record:
    """Drawn numbers of N pictures, float32 [N, 1, 1, 1], and colours, [N, 3, 1, 1]: all of them columns of `table`."""

    table: Tensor

    @classmethod
    def draw(cls, key: Sequence[object], *counters: Tensor) -> Self:
        """A record whose row i depends on `key` and the i-th of every counter (int64 [N]) alone."""
        drawn = fields(cls)[1:]
        salts = torch.tensor([seeds.derive(each.name) for each in drawn])
        shares = seeds.hashed_uniform(seeds.derive(*key), *(counter[:, None] for counter in counters), salts)
        columns = [each.metadata["of"](share) for each, share in zip(drawn, shares.split(1, dim=1), strict=True)]
        return cls._of(torch.cat(columns, dim=1).float()[:, :, None, None])

    def take(self, rows: Tensor | slice) -> Self:
        """The numbers of the pictures at `rows` (indices)."""
        return self._of(self.table[rows])

    @classmethod
    def _of(cls, table: Tensor) -> Self:
        return cls(table, *table.split([each.metadata["width"] for each in fields(cls)[1:]], dim=1))
