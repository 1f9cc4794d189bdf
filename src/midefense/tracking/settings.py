"""Where runs are kept and how they are mirrored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from midefense.ranges import Whole
from midefense.types import Refused, refuse_unknown

MODES = ("auto", "online", "offline", "disabled")
LONGEST_TAG, LONGEST_GROUP = 64, 128  # of W&B


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where runs are kept and how they are mirrored.

    `wandb`: online, offline, disabled, or auto (online where an API key is configured, else offline); the variable
    WANDB_MODE wins. `group`: null groups the seeds of a setup. `media_limit`: most images of one picture table.
    `finish_seconds`: longest wait for uploads at a run's end (what is late stays on disk for `wandb sync`). `folder`:
    root of all run folders.
    """

    wandb: str = "offline"
    project: str = "midefense"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    media_limit: Whole = 500
    finish_seconds: Whole = 120
    folder: Path = Path("runs")

    revision: ClassVar[int] = 1
    places: ClassVar[tuple[str, ...]] = ("folder",)

    def __post_init__(self) -> None:
        if self.wandb not in MODES:
            raise refuse_unknown("tracking.wandb", self.wandb, MODES)
        object.__setattr__(self, "folder", Path(self.folder))  # YAML gives text and lists
        object.__setattr__(self, "tags", tuple(map(str, self.tags)))
        if wrong := [tag for tag in self.tags if not 0 < len(tag.strip()) <= LONGEST_TAG]:
            raise Refused(
                f"tracking.tags: expected texts of 1 to {LONGEST_TAG} characters, got "
                f"{', '.join(f'{tag[:16]!r} ({len(tag)} characters)' for tag in wrong)}; try tracking.tags=[pilot]"
            )
