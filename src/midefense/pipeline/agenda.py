"""What a verb will do, said before it does it: what is there, what will be made, in which order, and how long each took
on this machine the last time, step for step."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from midefense.pipeline.costs import UNKNOWN, Cost
from midefense.store.artefacts import Artefact, Draft, content_id, write_whole
from midefense.store.store import Store
from midefense.terminal import Stage, duration, tell

# What a recipe holds that does not change how long one step takes.
UNTIMED = ("seed", "epochs", "steps", "target", "prepared", "labels", "ids", "question", "recovered", "evaluators")


@dataclass(frozen=True)
class Item:
    """One artefact of an agenda.

    `what` says what is done to have it. `units`: the steps that takes, one if nobody can tell. `on`: the recipe of the
    target it works on, whose network decides how long a step takes. `found`: whether the store has it already.
    `measure`: measures what it will cost; None, and what gives None, cannot be measured before.
    """

    what: str
    artefact: Artefact | Draft
    units: int = 1
    on: Mapping[str, object] | None = None
    found: bool = False
    measure: Callable[[], Cost | None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Agenda:
    """All artefacts that a verb needs, in the order in which they are found or made."""

    items: tuple[Item, ...]
    store: Store
    device: torch.device

    @property
    def missing(self) -> list[Item]:
        """What will be made."""
        return [item for item in self.items if not item.found]

    def title(self, draft: Draft) -> str:
        """What is going on while a draft is made: which stage of how many, what is done, and its name; "" for none."""
        for number, item in enumerate(self.missing, start=1):
            if item.artefact.id == draft.id:
                return f"{number}/{len(self.missing)} {item.what} {draft.name}"
        return ""

    def lines(self) -> Iterator[str]:
        """The agenda, a line for each artefact."""
        for item in self.items:
            if item.found:
                yield f"found  {item.artefact.reference}"
        for number, item in enumerate(self.missing, start=1):
            pace = self._pace(item)
            took = UNKNOWN if pace is None else f"about {duration(pace * item.units)}"
            yield f"{number}/{len(self.missing)}  {item.what}: {item.artefact.reference} ({took})"

    def measured(self, known: dict[tuple[str, int], Cost | None] | None = None) -> dict[str, Cost]:
        """What will be made costs, by the id of the artefact, as a few steps of each show; nothing is made.

        Args:
            known: what like it was measured to cost before, for other agendas; added to.
        """
        known = {} if known is None else known
        costs = {}
        for item in self.missing:
            like = self._path(item).stem, item.units
            if like not in known:
                tell(f"measuring: {item.what} {item.artefact.name}")
                known[like] = item.measure() if item.measure else None
            if known[like] is not None:
                costs[item.artefact.id] = known[like]
        return costs

    def keep_pace(self, artefact: Artefact, stage: Stage) -> None:
        """Remember how long a step of what was just made took, for the next time."""
        for item in self.missing:
            if item.artefact.id == artefact.id and stage.pace is not None:
                path = self._path(item)
                path.parent.mkdir(exist_ok=True)
                write_whole(path, json.dumps({"what": item.what, "seconds": stage.pace}).encode())

    def _pace(self, item: Item) -> float | None:
        """Seconds per step of what is like it, on this machine; None if nothing was."""
        try:
            return json.loads(self._path(item).read_bytes())["seconds"]
        except FileNotFoundError:
            return None

    def _path(self, item: Item) -> Path:
        machine = {"host": socket.gethostname(), "device": self.device.type, "threads": torch.get_num_threads()}
        key = {"of": _timed(item.artefact.recipe), "on": _timed(item.on or {}), **machine, "cores": os.cpu_count()}
        return self.store.root / "paces" / f"{content_id(key)}.json"


def _timed(value: object) -> object:
    """What of a recipe decides how long a step takes."""
    if isinstance(value, Mapping):
        return {key: _timed(inner) for key, inner in value.items() if key not in UNTIMED}
    if isinstance(value, list | tuple):
        return [_timed(inner) for inner in value]
    return value
