"""A sweep as jobs of Slurm's: each runs `midefense sweep` on the same store, where they share out the points as workers
of one machine do. submitit writes the jobs and hands them in; one that Slurm requeues goes on with what is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from midefense.types import Refused

if TYPE_CHECKING:
    import submitit

POINT_FAILED = 1  # exit code of a sweep that went through all its points


class Worker:
    """What a job does: a command line of `midefense`, `words`."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    def __call__(self) -> int:
        """Run it; returns its exit code. Raises `RuntimeError` where it did not come to its end."""
        code = subprocess.run([sys.executable, "-m", "midefense", *self.words]).returncode
        if code not in (0, POINT_FAILED):
            raise RuntimeError(f"midefense ended with exit code {code}; its words are in this job's log")
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit hands in anew where the job's time is over: the same, as the store knows how far it came."""
        return library().helpers.DelayedSubmission(self)


def submit(words: Sequence[str], jobs: int, folder: Path, options: Mapping[str, object]) -> list[str]:
    """Hand in so many jobs that run the same command; returns their ids.

    Args:
        folder: of submitit's files and the logs of the jobs; all nodes must see it.
        options: what each job is given, by submitit's names: `timeout_min`, `cpus_per_task`, `slurm_partition` ...
    Raises:
        Refused: no submitit, no Slurm, or options that they have not.
    """
    submitit = library()
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**{"name": "midefense", **options})
        return [executor.submit(Worker(words)).job_id for _ in range(jobs)]
    except (NameError, TypeError, ValueError, submitit.core.utils.FailedJobError) as error:
        raise Refused(f"--job: expected what submitit and Slurm take, got {dict(options)} ({error})") from error


def library():
    """submitit, which only jobs need. Raises `Refused` where it is not installed."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise Refused(
            "--jobs: expected submitit, which hands in the jobs, got no such module; try pip install 'midefense[slurm]'"
        ) from error
    return submitit
