"""What stages cost, said before it is spent: device-hours, queries, memory and disk, each and in all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midefense.terminal import duration

if TYPE_CHECKING:
    from midefense.pipeline.agenda import Agenda, Item

UNKNOWN = "unknown until measured"


@dataclass(frozen=True)
class Cost:
    """What a stage costs.

    Args:
        seconds: of one device; with `least` the stage takes at least as long, and nobody can tell how much longer.
        queries: images that the target is asked, as far as they are counted.
        memory: bytes at the peak: of the GPU where there is one, else of the process.
        disk: bytes that stay.
        meanwhile: bytes of saved states, which go when the stage is over.
        steps: that were measured.
    """

    seconds: float
    queries: int = 0
    memory: int = 0
    disk: int = 0
    meanwhile: int = 0
    steps: int = 0
    least: bool = False

    @property
    def text(self) -> str:
        """The numbers, in words."""
        least = "at least " if self.least else ""
        return (
            f"{least}{self.seconds / 3600:.3g} device-hours ({duration(self.seconds)}), {self.queries:,} queries, "
            f"{self.memory / 2**30:.2g} GiB of memory, {_disk(self.disk)} on disk ({_disk(self.meanwhile)} meanwhile); "
            f"measured over {self.steps} steps"
        )


def priced(agenda: Agenda, costs: Mapping[str, Cost]) -> Iterator[str]:
    """An agenda, what each stage costs and the command that makes it, and the sums.

    Args:
        costs: by the id of the artefact; of what cannot be measured before it is made there is none.
    """
    numbered = iter(agenda.missing)
    for line in agenda.lines():
        yield line.removesuffix(f" ({UNKNOWN})")
        if not line.startswith("found"):
            item = next(numbered)
            cost = costs.get(item.artefact.id)
            yield f"     {'cannot be measured before' if cost is None else cost.text}"
            yield f"     make it with: {item.artefact.command}"
    if agenda.missing:
        yield in_all(agenda.missing, costs)


def in_all(items: Iterable[Item], costs: Mapping[str, Cost]) -> str:
    """The sums over distinct artefacts, and what is in none of them."""
    missing = {item.artefact.id: item for item in items}
    known = [costs[one] for one in missing if one in costs]
    seconds, disk = sum(cost.seconds for cost in known), sum(cost.disk for cost in known)
    memory = max((cost.memory for cost in known), default=0)
    meanwhile = max((cost.meanwhile for cost in known), default=0)
    least = "at least " if any(cost.least for cost in known) else ""
    line = (
        f"in all {len(missing)} to make: {least}{seconds / 3600:.3g} device-hours ({duration(seconds)}), "
        f"{sum(cost.queries for cost in known):,} queries, at most {memory / 2**30:.2g} GiB of memory, "
        f"{_disk(disk)} on disk (at most {_disk(meanwhile)} more meanwhile)"
    )
    others: dict[str, int] = {}
    for one, item in missing.items():
        if one not in costs:
            others[item.what] = others.get(item.what, 0) + 1
    beside = ", ".join(what if count == 1 else f"{what} ({count} times)" for what, count in others.items())
    return f"{line}; not in these sums: {beside}" if beside else line


def _disk(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
