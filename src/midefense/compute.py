"""Where work runs. Classifier training uses Lightning Fabric; in the other verbs ranks are plain processes that take
groups of work and meet in the store."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch

from midefense.ranges import Range
from midefense.types import RankLost, Refused, refuse_unknown

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import ClusterEnvironment

CGROUP = Path("/sys/fs/cgroup/memory.max")
ACCELERATORS = ("auto", "cpu", "cuda")  # not mps: losses and metrics need float64
STRATEGIES = ("auto", "ddp")
# What torch says where the process at the other end of a connection has ended; its own class is none but RuntimeError.
CONNECTION_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


class Compute:
    """The machine, as Fabric's arguments. Nothing here may change a number, so nothing here is in a recipe.

    Args:
        accelerator: `auto`, `cpu`, `cuda`.
        devices: processes per node in `train_target.py`; under torchrun and srun their world size counts.
        strategy: `auto` or `ddp`.
        num_nodes: machines.
        threads: CPU threads per process; None leaves torch's choice.
    """

    revision = 1

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: Annotated[int, Range(1, 1024)] = 1,
        strategy: str = "auto",
        num_nodes: Annotated[int, Range(1, 1024)] = 1,
        threads: Annotated[int, Range(1, 1024)] | None = None,
    ):
        if accelerator not in ACCELERATORS:
            raise refuse_unknown("compute.accelerator", accelerator, ACCELERATORS)
        if strategy not in STRATEGIES:
            raise refuse_unknown("compute.strategy", strategy, STRATEGIES)
        self.accelerator, self.devices, self.strategy = accelerator, devices, strategy
        self.num_nodes, self.threads = num_nodes, threads

    def prepare(self) -> None:
        """Set this process's threads, and on a GPU the kernels that give the same numbers twice."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.device().type == "cuda":
            repeat_exactly()

    def device(self) -> torch.device:
        """The device of this process: its own GPU where there is one."""
        kind = self.accelerator
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind == "cuda":
            if not torch.cuda.is_available():
                raise Refused("compute.accelerator: expected a CUDA device, found none; choose compute=cpu")
            return torch.device("cuda", local_rank() % torch.cuda.device_count())
        return torch.device(kind)

    def ranks(self) -> int:
        """Processes that train one model together."""
        return max(world_size(), self.devices * self.num_nodes)

    def fabric(self, ranks: bool) -> Fabric:
        """A launched Fabric; with `ranks` all processes train one model together, else each is alone."""
        # seconds to import: a verb that finds everything in the store, or refuses, need not wait for it
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import SingleDeviceStrategy

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its advice on precision: that is the recipe's
        if ranks:
            devices = int(os.environ.get("LOCAL_WORLD_SIZE", self.devices))
            fabric = Fabric(
                accelerator=self.device().type,
                devices=devices,
                strategy=self.strategy,
                num_nodes=self.num_nodes,
                plugins=[launched_by()],
            )
        else:
            strategy = SingleDeviceStrategy(device=self.device())
            fabric = Fabric(accelerator=self.device().type, strategy=strategy, plugins=[launched_by()])
        fabric.launch()
        if ranks:
            atexit.register(leave_group)
        return fabric


def launched_by() -> ClusterEnvironment:
    """Who starts the processes that train together: torchrun, a step of Slurm's (srun) of several tasks, or Fabric.

    Left to itself Fabric takes every job of Slurm's for a step, and warns wherever srun is installed.
    """
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment() if step_tasks() > 1 else LightningEnvironment()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within, processes work together: where one of them ended, the others end as `RankLost`, in one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and not any(s in str(error) for s in CONNECTION_LOST):
            raise
        first = str(error).strip().splitlines()[0].partition(". ")[0]
        raise RankLost(
            f"another of the {world_size()} processes that train together has ended ({first}); its own words say why, "
            "and the same command goes on from the last epoch"
        ) from error


def repeat_exactly() -> None:
    """From here on this process takes only kernels that add in a fixed order, so that a command gives the same bits
    twice. What has no such kernel (perhaps a network of the user's own) warns and is not refused.

    Before the first use of a GPU: cuBLAS reads its workspace when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # costs a pass over memory, and nothing of ours reads it
    )
    torch.backends.cudnn.benchmark = False  # the fastest kernel of the moment need not be the same tomorrow


def leave_group() -> None:
    """Close the connections between processes: gloo's, left to the interpreter's end, now and then abort a rank that
    had done all its work (seen on a busy machine with torch 2.15)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def machine_of(device: torch.device | str) -> str:
    """What numbers depend on beside the recipe, in words: the kind of a GPU, or of a CPU and how many threads share a
    sum."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}), {threads} thread{'' if threads == 1 else 's'}"


def require_memory(needed: float, what: str) -> None:
    """Refuse what needs more bytes than this machine has in all.

    Args:
        what: the option that decides it, and what is needed, for the message.
    """
    there = memory_bytes()
    if needed > there:
        expected, got = f"{there / 2**30:,.0f} GiB, the memory of this machine", f"{needed / 2**30:,.0f} GiB"
        raise Refused(f"{what}: expected at most {expected}, got {got}; try smaller sizes or numbers")


def memory_bytes() -> int:
    """Bytes of memory of this machine, or as many of them as it grants this process."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_granted()])


def _granted() -> list[int]:
    """How many bytes the container or the batch system grants this process, where it says so."""
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return [int(limit)] if limit.isdigit() else []


def local_rank() -> int:
    """This process's number on its machine, as torchrun, Fabric or srun set it."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0) if step_tasks() > 1 else 0))


def world_size() -> int:
    """Processes started together, by torchrun, Fabric or srun."""
    return int(os.environ.get("WORLD_SIZE", step_tasks()))


def step_tasks() -> int:
    """Tasks of the step of Slurm's (srun) that this process belongs to; 1 outside of any."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
