"""Being asked to end: SIGTERM as an exception that no handler of errors swallows, and how a run ended."""

from __future__ import annotations

import signal


class Preempted(BaseException):
    """The process was asked to end (SIGTERM). Not an `Exception`, so that no handler of errors swallows it."""


def install_signal_handlers() -> None:
    """Raise `Preempted` in the main thread at SIGTERM; a second SIGTERM does not disturb the cleaning up.
    Call it in the main thread (Python refuses others with `ValueError`)."""

    def preempt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Preempted(f"{signal.Signals(number).name}: the run was asked to end; the same command continues it")

    signal.signal(signal.SIGTERM, preempt)


def ending(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    return "preempted" if isinstance(error, Preempted | KeyboardInterrupt) else "failed"
