"""How a command ends: with what it made, or with one sentence and an exit code that says what kind of end it was. A
traceback is left to what nobody foresaw. (Being asked to end: `preemption.py`, 128 + the signal's number.)"""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import torch

from midefense.terminal import shown
from midefense.types import Diverged, RankLost, Refused

UNFORESEEN = 1
REFUSED = 2
DISK = 3
MEMORY = 4
DIVERGED = 5
RANK = 6

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would exceed the file-size limit (ulimit -f) or what the disk can hold",
}
FAULTS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED")  # what torch says, by library
# What needs less memory where it is smaller, by the work that was going on.
SMALLER = {
    "train_target": "recipe.batch_size (of an evaluator: evaluators.NAME.recipe.batch_size)",
    "train_prior": "prior.batch_size",
    "prepare": "batch_size of the attack's parts (--cfg job shows them)",
    "attack": "attack.chunk (images at once) or attack.group (targets at once)",
    "evaluate": "number of candidates (attack.select.keep)",
}


class Ending(NamedTuple):
    """The exit code and the sentence of an end."""

    code: int
    sentence: str


def foreseen(error: BaseException, work: str = "") -> Ending | None:
    """How to end at `error` in one sentence; None if nobody foresaw it.

    Args:
        work: what was going on: the job type of the run that was open, "" if none was.
    """
    if isinstance(error, Refused):
        return Ending(REFUSED, f"refused: {error}")
    if isinstance(error, Diverged):
        return Ending(DIVERGED, f"stopped: {error}")
    if isinstance(error, RankLost):
        return Ending(RANK, f"stopped: {error}")
    if _no_memory(error):
        smaller = SMALLER.get(work, "dataset.size, or a machine with more memory")
        during = f" during {work}" if work else ""
        return Ending(MEMORY, f"stopped: out of memory{during} ({_first_line(error)}); try a smaller {smaller}")
    if isinstance(error, OSError) and error.errno in FULL:
        why = f"{FULL[error.errno]} ({_first_line(error)})"
        return Ending(DISK, f"stopped: {why}; make room, and the same command goes on, or choose another store=DIR")
    if isinstance(error, OSError) and error.errno in FAULTS:
        return Ending(DISK, f"stopped: the system refused a file ({_first_line(error)}); the same command goes on")
    return None


def tell(error: Exception, work: str = "", folder: Path | None = None) -> int:
    """Say on stderr how the command ends at `error`; returns the exit code.

    Args:
        work: see `foreseen`.
        folder: of the run that was open.
    """
    ending = foreseen(error, work)
    if ending is None:
        print(shown("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        where = f"the run's folder: {folder}" if folder else "no run was open"
        ending = Ending(UNFORESEEN, f"failed: nobody foresaw this, please report what stands above; {where}")
    print(shown(ending.sentence), file=sys.stderr, flush=True)
    return ending.code


def _no_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
