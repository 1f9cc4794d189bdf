"""Long work driven to its end: a bar, logs, and states to save."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from midefense.tracking.run import Run
from midefense.types import Diverged, Progress

T = TypeVar("T")
LEARNING = ("train", "prior", "prepare")  # an attack may lose candidates, a network that learns is lost for good


def bar(iterable: Iterable[T] | None = None, *, total: int | None = None, description: str = "") -> tqdm:
    """A progress bar on stderr, silent where stderr is no terminal."""
    return tqdm(iterable, total=total, desc=description, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def consume(
    progress: Iterable[Progress],
    run: Run,
    *,
    total: int | None,
    description: str,
    namespace: str,
    save: Callable[[int, Callable[[], dict[str, Tensor]]], None] | None = None,
) -> Callable[[], dict[str, Tensor]] | None:
    """Drive long work to its end: draw the bar, log what it yields, and offer every state to `save(step, state)`.
    Returns the last state function, None if nothing was left to do.

    Raises `Diverged`, before the state is saved, where something learns and its loss is no number."""
    state = None
    with bar(total=total, description=description) as shown:
        for step, logs, state in progress:
            shown.update(step - shown.n)
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
