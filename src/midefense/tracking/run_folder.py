"""One run's folder on disk: the truth about what happened, complete without any tracking service.

config.json     resolved configuration, secrets removed
metrics.jsonl   one line per logged step, flushed as it is written
events.jsonl    messages, artefacts with their lineage, picture tables
status.json     running | finished | failed | preempted, error text, times, host, process, attempt
media/          pictures as PNG, one folder and one table.jsonl per key
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from midefense.foreign import MOST_JSON, json_of, read_foreign
from midefense.store.plain import plain
from midefense.store.space import reserve
from midefense.types import Refused

ROOM, ROOM_BYTES = ".room", 1 << 16  # kept for the final status, which must be written on a full disk too


class RunFolder:
    """The files of one run under `folder`; opening the same folder again appends and counts an attempt."""

    def __init__(self, folder: Path, config: Mapping[str, object]):
        """Create `folder` if needed and write `config.json`; `OSError` if the place cannot be written."""
        self.path = folder
        (folder / "media").mkdir(parents=True, exist_ok=True)
        previous, problem = _previous_attempt(folder / "status.json")
        self.attempt = previous + 1
        self._started = time.time()
        self._summary: dict[str, object] = {}
        self._write_whole("config.json", config)
        reserve(folder / ROOM, ROOM_BYTES)
        # Line buffering: what was logged before a SIGKILL is on disk.
        self._metrics = open(folder / "metrics.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._events = open(folder / "events.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        if problem:
            self.event("message", text=problem)
        self.status("running")

    def metrics(self, values: Mapping[str, float], step: int, namespace: str) -> None:
        """Append one line of numbers; infinite and undefined ones are kept as the texts "inf", "-inf", "nan"."""
        line = {"namespace": namespace, "step": step, "attempt": self.attempt, "time": time.time(), **values}
        self._metrics.write(_json(line) + "\n")

    def event(self, kind: str, /, **values: object) -> None:
        """Append one line to `events.jsonl`."""
        line = {"event": kind, "attempt": self.attempt, "time": time.time(), **values}
        self._events.write(_json(line) + "\n")

    def summary(self, values: Mapping[str, object]) -> None:
        """Merge final numbers into `status.json`."""
        self._summary.update(values)
        self.status("running")

    def status(self, state: str, error: BaseException | None = None) -> None:
        """Replace `status.json`; an `error` is kept with its traceback."""
        now = time.time()
        self._write_whole(
            "status.json",
            {
                "state": state,
                "attempt": self.attempt,
                "started": self._started,
                "updated": now,
                "seconds": now - self._started,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "error": "" if error is None else "".join(traceback.format_exception(error)),
                "summary": self._summary,
            },
        )

    def pictures(self, key: str, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
        """Save `rows` (uint8 images [C, H, W] and scalars by column name) under `media/<key>/`."""
        folder = self.path / "media" / key
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, row in enumerate(rows):
            line: dict[str, object] = {}
            for column in columns:
                value = row[column]
                if isinstance(value, Tensor):
                    name = f"{number:04d}-{re.sub(r'[^A-Za-z0-9]+', '_', column)}.png"
                    save_png(value, folder / name)
                    value = name
                line[column] = value
            lines.append(_json(line))
        (folder / "table.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        self.event("pictures", table=key, rows=len(rows), columns=list(columns))

    def close(self, state: str, error: BaseException | None = None) -> None:
        """Write the final status and close the files."""
        (self.path / ROOM).unlink(missing_ok=True)
        try:
            self.status(state, error)
        finally:
            self._metrics.close()
            self._events.close()

    def _write_whole(self, name: str, value: object) -> None:
        temporary = self.path / f".{name}.{os.getpid()}"
        try:
            temporary.write_text(_json(value) + "\n", encoding="utf-8")
            os.replace(temporary, self.path / name)
        finally:
            temporary.unlink(missing_ok=True)


def _json(value: object) -> str:
    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False)


def image_array(image: Tensor):
    """A uint8 image [C, H, W], C 1 (grey) or 3 (RGB), as a NumPy array [H, W] or [H, W, 3] for Pillow and W&B."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise Refused(
            f"picture: expected a uint8 tensor [1 or 3, H, W], got {image.dtype} {list(image.shape)}; "
            "try (clip_images(image) * 255).round().byte()"
        )
    array = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    return array[:, :, 0] if array.shape[2] == 1 else array


def save_png(image: Tensor, path: Path) -> None:
    """Write a uint8 image [C, H, W] as PNG, without loss."""
    from PIL import Image

    Image.fromarray(image_array(image)).save(path, format="PNG")


def _previous_attempt(status: Path) -> tuple[int, str]:
    """The attempt number of an earlier start in the same folder, 0 if there was none, and what is wrong with its file:
    a power loss may leave it empty or half written."""
    try:
        said = json_of(read_foreign(status, MOST_JSON, "a file of JSON"), status.name)
        attempt = said.get("attempt") if isinstance(said, Mapping) else None
        return (attempt if type(attempt) is int else 0), ""
    except FileNotFoundError:
        return 0, ""
    except Refused as error:
        return 0, f"{status.name} of an earlier attempt cannot be read ({error}); attempts are counted from 1 again"
