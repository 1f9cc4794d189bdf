"""What stages cost, said before it is spent: each and in all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from midefense.pipeline.agenda import Agenda, Item
from midefense.pipeline.costs import UNKNOWN, Cost, in_bytes
from midefense.terminal import duration


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
        f"{in_bytes(disk)} on disk (at most {in_bytes(meanwhile)} more meanwhile)"
    )
    others: dict[str, int] = {}
    for one, item in missing.items():
        if one not in costs:
            others[item.what] = others.get(item.what, 0) + 1
    beside = ", ".join(what if count == 1 else f"{what} ({count} times)" for what, count in others.items())
    return f"{line}; not in these sums: {beside}" if beside else line
