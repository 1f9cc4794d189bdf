"""Long work driven to its end: told, logged, and its states saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from midefense.tracking.run import Run
from midefense.types import Diverged, Progress

LEARNING = ("train", "prior", "prepare")  # an attack may lose candidates, a network that learns is lost for good


def consume(
    progress: Iterable[Progress],
    run: Run,
    *,
    total: int | None,
    namespace: str,
    save: Callable[[int, Callable[[], dict[str, Tensor]]], None] | None = None,
) -> Callable[[], dict[str, Tensor]] | None:
    """Drive long work to its end: tell its stage, log what it yields, and offer every state to `save(step, state)`.
    Returns the last state function, None if nothing was left to do.

    Raises `Diverged`, before the state is saved, where something learns and its loss is no number.
    """
    state = None
    run.stage.total = total
    for step, logs, state in progress:
        run.stage.at(step, logs)
        if logs:
            run.log(logs, step, namespace)
            if namespace in LEARNING:
                _require_finite(logs, step, namespace)
        if save is not None:
            save(step, state)
    return state


def _require_finite(logs: Mapping[str, float], step: int, namespace: str) -> None:
    lost = {name: value for name, value in logs.items() if "loss" in name and not math.isfinite(value)}
    if lost:
        raise Diverged(f"{namespace} diverged at step {step}: {lost}; try a lower learning rate")
