"""What a person is told on stderr while something takes long: a bar in a terminal; elsewhere a line at the start, about
one a minute, and one at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping

from tqdm import tqdm

PULSE_SECONDS = 60.0
NUMBERS = 3  # of the newest numbers, how many a line shows


def shown(text: object) -> str:
    """A text as a terminal may show it: names of files and of artefacts come from others, and what is not printed in
    them (colours, moves of the cursor, reversed writing, bytes that are no text) stands there by its number."""
    return "".join(mark if mark.isprintable() or mark in "\n\t" else _number(mark) for mark in str(text))


def say(text: object) -> None:
    """Print what is `shown` of a text."""
    print(shown(text), flush=True)


def _number(mark: str) -> str:
    return mark.encode("unicode_escape", "surrogatepass").decode()


class Stage:
    """One stretch of work, a context manager.

    Args:
        title: what is going on ("2/5 training the prior gmi_gan"); "" tells nothing.
        total: steps to its end; None if it cannot be known. May be set later.
        announced: whether there are lines for its start and end; without, only what takes minutes is told.
    """

    def __init__(self, title: str, total: int | None = None, announced: bool = True):
        self.title, self.total, self.announced = title, total, announced
        self.seconds = 0.0  # since it was entered, once it is left
        self._first: tuple[float, int] | None = None  # when the first step was told, and which: the rate counts from it
        self._step, self._logs = 0, {}
        self._stop = threading.Event()
        self._pulse: threading.Thread | None = None

    def __enter__(self) -> Stage:
        self._started = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self.total, desc=shown(self.title), disable=not terminal or not self.title, dynamic_ncols=True
        )
        if self.title and not terminal:
            if self.announced:
                tell(f"{self.title}: begun")
            self._pulse = threading.Thread(target=self._beat, daemon=True, name="progress")
            self._pulse.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.seconds = time.monotonic() - self._started
        self._bar.close()
        self._stop.set()
        if self._pulse is not None:
            self._pulse.join()
        if self._pulse is not None and self.announced:
            tell(f"{self.title}: {'done' if error is None else 'ended early'} after {duration(self.seconds)}")

    def at(self, step: int, logs: Mapping[str, float] | None = None) -> None:
        """Tell that `step` was reached, with the newest numbers."""
        self._step, self._logs = step, logs or self._logs
        if self._first is None:
            self._first = (time.monotonic(), step)
        if self._bar.total != self.total:
            self._bar.total = self.total
        self._bar.update(step - self._bar.n)

    @property
    def rate(self) -> float | None:
        """Steps per second since the first one that was told; None before the second."""
        if self._first is None or self._step <= self._first[1]:
            return None
        return (self._step - self._first[1]) / (time.monotonic() - self._first[0])

    @property
    def pace(self) -> float | None:
        """Seconds per step so far; seconds in all where it is one step, or nobody can tell how many. None where all the
        steps but one may be of a run before."""
        if self.total is None or self.total == 1:
            return time.monotonic() - self._started
        return 1 / self.rate if self.rate else None

    def line(self) -> str:
        """Where it is: step, rate, time left, newest numbers, as far as they are known."""
        of = "" if self.total is None else f" of {self.total}"
        parts = [f"step {self._step}{of}"]
        if rate := self.rate:
            parts.append(f"{rate:.3g} steps/s")
            parts += [] if self.total is None else [f"{duration((self.total - self._step) / rate)} left"]
        parts += [f"{name} {value:.4g}" for name, value in list(self._logs.items())[:NUMBERS]]
        return f"{self.title}: {', '.join(parts)}"

    def _beat(self) -> None:
        while not self._stop.wait(PULSE_SECONDS):
            still = f"{self.title}: working for {duration(time.monotonic() - self._started)}"
            tell(still if self._first is None else self.line())


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def tell(line: str) -> None:
    """Print a line of what goes on, as it is `shown`, where it does not mix with what a command gives."""
    print(shown(line), file=sys.stderr, flush=True)
