"""Being asked to end: SIGTERM, Ctrl-C and a closed terminal as an exception that no handler of errors swallows, and how
a run ended.

Imports no torch: a command listens from its first moments, and torch takes seconds.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

from midefense.store.command import command_given

HOW = {signal.SIGINT: "interrupted", signal.SIGTERM: "preempted", signal.SIGHUP: "preempted"}


class Preempted(BaseException):
    """The process was asked to end by `signal` (SIGTERM; SIGINT: Ctrl-C; SIGHUP: its terminal closed). Not an
    `Exception`, so that no handler of errors swallows it."""

    def __init__(self, message: str, signal: signal.Signals = signal.SIGTERM):
        super().__init__(message)
        self.signal = signal

    @property
    def code(self) -> int:
        """The exit code, as a shell reports a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for
        SIGHUP."""
        return 128 + self.signal


def install_signal_handlers() -> None:
    """Raise `Preempted` in the main thread at SIGTERM, SIGINT or SIGHUP. While what follows is cleaned up, a further
    SIGTERM or SIGHUP changes nothing and a further SIGINT (Ctrl-C once more) ends the process at once.

    A SIGINT or SIGHUP that whoever started the process had ignored (`nohup`, `&` in a script) stays so. Call it in the
    main thread (Python refuses others with `ValueError`).
    """

    def preempt(number: int, frame: object) -> None:
        for again in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(again, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        which = signal.Signals(number)
        raise Preempted(f"{which.name}: the run was asked to end; the same command continues it", which)

    for number in HOW:
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, preempt)


@contextlib.contextmanager
def ending_when_asked(command: str = "") -> Iterator[None]:
    """Hear SIGTERM and Ctrl-C inside, and exit with one sentence then: it names the command that continues the work
    (default: the one that was given)."""
    former = {number: signal.getsignal(number) for number in HOW}
    install_signal_handlers()
    asked = None
    try:
        yield
    except Preempted as error:
        asked = error
    finally:
        if asked is None:
            for number, handler in former.items():
                signal.signal(number, handler)
    if asked is not None:
        with contextlib.suppress(OSError):  # a terminal that closed takes no words
            print(f"{HOW[asked.signal]}; continue with: {command or command_given()}", file=sys.stderr, flush=True)
        sys.exit(asked.code)


def ending(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    return "preempted" if isinstance(error, Preempted | KeyboardInterrupt) else "failed"
