"""How many images a search looks at in one forward, where it is left to the machine (`attack.chunk: auto`). Chunks
change the memory and not the numbers, beyond the rounding of kernels that are chosen by size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

AUTO = "auto"
ON_A_CPU = 25  # more are done no sooner per image (benchmarks/attack_engine.md), and take more memory
PROBE = 4  # rows that are measured
SHARE = 0.8  # of the device's memory that is filled


class Memory(Protocol):
    """Bytes on a device: what it has in `total`, what is held `now`, and the most that was held since `now` was asked
    last (`peak`). None of them may depend on what other processes do, or a command would not repeat itself."""

    total: int

    def now(self) -> int: ...

    def peak(self) -> int: ...


class CudaMemory:
    """As torch's allocator counts it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.total = torch.cuda.get_device_properties(device).total_memory

    def now(self) -> int:
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)


class Measured:
    """Chunks as large as the memory allows. The first few rows of a group go alone, and tell what one takes; so every
    group measures for itself, and one that is attacked in another process is cut the same."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.width: int | None = None

    def slices(self, count: int) -> Iterator[slice]:
        """Rows 0..count-1 in pieces. What is done with a piece must be over when the next is asked for."""
        start = 0
        if self.width is None and count:
            start = min(PROBE, count)
            before = self._memory.now()
            yield slice(0, start)
            each = max(self._memory.peak() - before, 1) / start
            self.width = max(int((SHARE * self._memory.total - before) / each), start)
        yield from pieces(start, count, self.width)

    def width_of(self, count: int) -> int | None:
        """Rows of a full piece of `count` rows; None while it is not known."""
        return None if self.width is None else min(self.width, count)


class Fixed:
    """Chunks of `width` rows (None: all at once)."""

    def __init__(self, width: int | None) -> None:
        self.width = width

    def slices(self, count: int) -> Iterator[slice]:
        """Rows 0..count-1 in pieces."""
        return pieces(0, count, self.width)

    def width_of(self, count: int) -> int:
        """Rows of a full piece of `count` rows."""
        return min(self.width or count, count)


def pieces(start: int, count: int, width: int | None) -> Iterator[slice]:
    """Rows `start`..count-1 in pieces of `width` (None: in one)."""
    width = width or max(count, 1)
    return (slice(first, min(first + width, count)) for first in range(start, count, width))


def chunks_of(chunk: int | str | None, device: torch.device) -> Fixed | Measured:
    """The chunks of one group, as `attack.chunk` says."""
    if chunk != AUTO:
        return Fixed(chunk)
    return Measured(CudaMemory(device)) if device.type == "cuda" else Fixed(ON_A_CPU)
