"""Which function replays which piece, and which pieces wait for their method.

A later method is added by one function, in a module that `pieces/__init__.py` imports:

    @replays("kedmi_*")
    def search_over_gaussians(recording: Recording) -> Iterator[Entry]:
        yield recording.compare("mu1", ...)

It goes before the line of `NOT_THERE_YET` that names the piece, which may then be deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from .recording import Entry, Recording
from .rules import NotThereYet

Replay = Callable[[Recording], Iterator[Entry]]
REPLAYS: dict[str, Replay] = {}

# Method to the pieces (patterns) that record it.
NOT_THERE_YET: dict[str, tuple[str, ...]] = {}


def replays(*patterns: str) -> Callable[[Replay], Replay]:
    """Register a function for the pieces whose names fit one of the patterns."""

    def register(replay: Replay) -> Replay:
        REPLAYS.update(dict.fromkeys(patterns, replay))
        return replay

    return register


def replay_of(name: str) -> Replay | None:
    """The function that replays the piece `name`; None if no one knows it.

    Raises:
        NotThereYet: the piece is known, its method is not implemented.
    """
    for pattern, replay in REPLAYS.items():
        if fnmatchcase(name, pattern):
            return replay
    for method, patterns in NOT_THERE_YET.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            raise NotThereYet(method)
    return None
