"""What a stage costs: device-hours, queries, memory and disk."""

from __future__ import annotations

from dataclasses import dataclass

from midefense.terminal import duration

UNKNOWN = "unknown until measured"


@dataclass(frozen=True)
class Cost:
    """What a stage costs.

    Args:
        seconds: of one device; with `least` the stage takes at least as long, and nobody can tell how much longer.
        queries: images that the target is asked, as far as they are counted.
        memory: bytes at the peak: of the GPU where there is one, else of the process.
        disk: bytes that stay.
        meanwhile: bytes of saved states, which go when the stage is over.
        steps: that were measured.
    """

    seconds: float
    queries: int = 0
    memory: int = 0
    disk: int = 0
    meanwhile: int = 0
    steps: int = 0
    least: bool = False

    @property
    def text(self) -> str:
        """The numbers, in words."""
        least = "at least " if self.least else ""
        return (
            f"{least}{self.seconds / 3600:.3g} device-hours ({duration(self.seconds)}), {self.queries:,} queries, "
            f"{self.memory / 2**30:.2g} GiB of memory, {in_bytes(self.disk)} on disk "
            f"({in_bytes(self.meanwhile)} meanwhile); measured over {self.steps} steps"
        )


def in_bytes(size: int) -> str:
    """A size on disk, in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
