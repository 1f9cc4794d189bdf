"""Runs: a local folder that always holds everything (`run_folder.py`), mirrored to Weights & Biases.

The mirror is a courtesy: without an account it is an offline log, and an outage of the service never stops or
fails a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from midefense.store.plain import plain
from midefense.terminal import Stage
from midefense.tracking.preemption import ending
from midefense.tracking.run_folder import RunFolder
from midefense.tracking.settings import LONGEST_TAG, Settings
from midefense.tracking.wandb_mirror import Mirror, Record, failures, warn_once

logger = logging.getLogger(__name__)


class Run:
    """One tracked run, a context manager. Files lie in `<folder>/<job_type>/<name>@<id>/`.

    `id` is the artefact's; `inputs` are the artefacts it reads, one dict each (role, kind, name, id). `title` is what
    W&B shows (default: the name), `group` what repetitions share there, unless the user named one. `outermost` marks
    the verb the user called: under a sweep agent it alone takes the agent's run id. Ranks above 0 keep a folder of
    their own inside and are not mirrored. Leaving the context writes the final status and re-raises; `error` is what it
    was left with. `stage` is what a person is told of it on stderr (`terminal.Stage`); "": nothing.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        job_type: str,
        name: str,
        id: str,
        config: Mapping[str, object],
        inputs: Sequence[Mapping[str, object]] = (),
        tags: Sequence[str] = (),
        title: str | None = None,
        group: str | None = None,
        outermost: bool = True,
        rank: int = 0,
        stage: str = "",
    ):
        self.settings, self.rank, self.error = settings, rank, None
        self.stage = Stage(stage)
        self.record = Record(
            settings=settings,
            job_type=job_type,
            name=name,
            id=id,
            config=plain({**config, "inputs": list(inputs)}),
            tags=_tags((*settings.tags, *tags)),
            title=plain(title or name),
            group=group,
            outermost=outermost,
        )
        root = settings.folder / job_type / f"{name}@{id}"
        self.folder = root if rank == 0 else root / f"rank{rank}"

    def __enter__(self) -> Run:
        self._files = RunFolder(self.folder, self.record.config)
        try:
            self._mirror = None if self.rank else Mirror.start(self.record)
            if self._mirror is not None and (where := self._mirror.where()):
                self.message(where)
            self.stage.__enter__()
        except BaseException as error:
            self._files.close(ending(error), error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.error = error
        self._files.close(ending(error), error)  # first: the truth must not wait for the mirror
        self.stage.__exit__(kind, error, trace)
        self._mirrored(lambda mirror: mirror.finish(exit_code=int(error is not None)))

    def log(self, values: Mapping[str, float], step: int, namespace: str) -> None:
        """Append numbers at `step` of `namespace` (train, prior, attack, evaluate ...)."""
        values = {name: float(value) for name, value in values.items()}
        self._files.metrics(values, step, namespace)
        self._mirrored(lambda mirror: mirror.log(values, step, namespace))

    def pictures(self, key: str, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
        """Save a table of pictures: per row and column a uint8 image tensor [C, H, W] or a scalar. At most
        `media_limit` images are kept, whole rows from the front; what was left out is said in a message."""
        images = sum(isinstance(value, Tensor) for value in rows[0].values()) if rows else 0
        most = self.settings.media_limit // images if images else len(rows)
        if most < len(rows):
            self.message(f"pictures {key}: kept {most} of {len(rows)} rows (tracking.media_limit)")
        self._files.pictures(key, rows[:most], columns)
        self._mirrored(lambda mirror: mirror.pictures(key, rows[:most], columns))

    def artefact(
        self,
        folder: Path,
        *,
        kind: str,
        name: str,
        id: str,
        inputs: Sequence[str] = (),
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Record that this run made the artefact in `folder` from `inputs` (texts `<kind>/<name>@<id>`)."""
        folder = Path(folder).resolve()
        said = {"kind": kind, "name": name, "id": id, "inputs": list(inputs), "metadata": plain(metadata or {})}
        self._files.event("artefact", folder=folder, **said)
        self._mirrored(lambda mirror: mirror.artefact(folder, **said))

    def result(self, values: Mapping[str, float], about: Mapping[str, float]) -> None:
        """Keep the numbers of a result, which W&B shows under their own names, each once, and what they are to be read
        `about`: intervals, anchors, costs."""
        values, about = ({name: float(value) for name, value in part.items()} for part in (values, about))
        self._files.metrics(values, 0, "evaluate")
        self._files.summary({**values, **about})
        self._mirrored(lambda mirror: mirror.result(values, about))

    def summary(self, values: Mapping[str, object]) -> None:
        """Keep final numbers: in `status.json`, and as W&B's summary, which sweeps optimise."""
        self._files.summary(values)
        self._mirrored(lambda mirror: mirror.summary(plain(values)))

    def message(self, text: str) -> None:
        """Keep a sentence in `events.jsonl` and say it to the log."""
        self._files.event("message", text=text)
        logger.info("%s", text)

    def _mirrored(self, call: Callable[[Mirror], None]) -> None:
        """Do the same on W&B; after its first failure the local folder goes on alone."""
        if self._mirror is None:
            return
        try:
            call(self._mirror)
        except failures() as error:
            warn_once(error)
            self._mirror = None


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags as W&B takes them, each once, without secrets."""
    return tuple(dict.fromkeys(cut for tag in plain(tags) if (cut := tag[:LONGEST_TAG].strip())))
