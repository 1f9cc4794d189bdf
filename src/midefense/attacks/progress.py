"""Long work of several who work in turn, as one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

from torch import Tensor

from midefense.training_state import under
from midefense.types import Progress


def passed_on(
    work: Iterator[Progress], prefix: str, known: Mapping[str, Tensor], done: int, made: Mapping[str, Tensor]
) -> Generator[Progress, None, tuple[int, dict[str, Tensor]]]:
    """The progress of one of several who work in turn, as that of all: its steps count on from `done`, and its state
    stands under `prefix` beside what those before it `made`. Returns the steps done and the state of all; `known` is
    that of who finds that nothing is left to do."""
    step, last = 0, None
    for step, logs, give in work:  # noqa: B007
        last = lambda give=give: {**made, **under(give(), prefix)}  # noqa: E731
        yield done + step, logs, last
    return done + step, last() if last else {**made, **under(known, prefix)}
