"""Runs: a local folder that always holds everything (`run_folder.py`), mirrored to Weights & Biases.

The mirror is a courtesy: without an account it is an offline log, and an outage of the service never stops or
fails a run. This is the only file that imports wandb, and only when a mirror is wanted.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import signal
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar, TypeVar

from torch import Tensor
from tqdm import tqdm

from midefense.run_folder import RunFolder, image_array, plain
from midefense.types import Progress, refuse_unknown

MODES = ("auto", "online", "offline", "disabled")
PROBE_SECONDS = 5  # an unreachable server must cost seconds, not the minutes of W&B's own retries
START_SECONDS = 15
_AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID")

logger = logging.getLogger(__name__)
_outage = threading.Event()  # set for the process by the first failure of W&B
T = TypeVar("T")


class Preempted(BaseException):
    """The process was asked to end (SIGTERM). Not an `Exception`, so that no handler of errors swallows it."""


def install_signal_handlers() -> None:
    """Raise `Preempted` in the main thread at SIGTERM; a second SIGTERM does not disturb the cleaning up.
    Call it in the main thread (Python refuses others with `ValueError`)."""

    def preempt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Preempted(f"{signal.Signals(number).name}: the run was asked to end; the same command continues it")

    signal.signal(signal.SIGTERM, preempt)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where runs are kept and how they are mirrored.

    `wandb`: online, offline, disabled, or auto (online where an API key is configured, else offline); the variable
    WANDB_MODE wins. `media_limit`: most images of one picture table. `finish_seconds`: longest wait for uploads at
    a run's end (what is late stays on disk for `wandb sync`). `folder`: root of all run folders.
    """

    wandb: str = "offline"
    project: str = "midefense"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    media_limit: int = 500
    finish_seconds: int = 120
    folder: Path = Path("runs")

    revision: ClassVar[int] = 1
    places: ClassVar[tuple[str, ...]] = ("folder",)

    def __post_init__(self) -> None:
        if self.wandb not in MODES:
            raise refuse_unknown("tracking.wandb", self.wandb, MODES)
        object.__setattr__(self, "folder", Path(self.folder))  # YAML gives text and lists
        object.__setattr__(self, "tags", tuple(self.tags))


class Run:
    """One tracked run, a context manager. Files lie in `<folder>/<job_type>/<name>@<id>/`.

    `id` is the artefact's; `inputs` are the artefacts it reads, one dict each (role, kind, name, id). `outermost`
    marks the verb the user called: under a sweep agent it alone takes the agent's run id. Ranks above 0 keep a
    folder of their own inside and are not mirrored. Leaving the context writes the final status and re-raises.
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
        outermost: bool = True,
        rank: int = 0,
    ):
        self.settings, self.job_type, self.name, self.id = settings, job_type, name, id
        self.config = plain({**config, "inputs": list(inputs)})
        self.tags = tuple(dict.fromkeys((*settings.tags, *tags)))
        self.outermost, self.rank = outermost, rank
        root = settings.folder / job_type / f"{name}@{id}"
        self.folder = root if rank == 0 else root / f"rank{rank}"

    def __enter__(self) -> Run:
        self._files = RunFolder(self.folder, self.config)
        try:
            self._mirror = None if self.rank else _Mirror.start(self)
        except BaseException as error:
            self._files.close(_ending(error), error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._files.close(_ending(error), error)  # first: the truth must not wait for the mirror
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

    def summary(self, values: Mapping[str, object]) -> None:
        """Keep final numbers: in `status.json`, and as W&B's summary, which sweeps optimise."""
        self._files.summary(values)
        self._mirrored(lambda mirror: mirror.summary(plain(values)))

    def message(self, text: str) -> None:
        """Keep a sentence in `events.jsonl` and say it to the log."""
        self._files.event("message", text=text)
        logger.info("%s", text)

    def _mirrored(self, call: Callable[[_Mirror], None]) -> None:
        """Do the same on W&B; after its first failure the local folder goes on alone."""
        if self._mirror is None:
            return
        try:
            call(self._mirror)
        except _failures() as error:
            _warn_once(error)
            self._mirror = None


def under_sweep_agent() -> bool:
    """Whether a W&B sweep agent started this process."""
    return "WANDB_SWEEP_ID" in os.environ


def bar(iterable: Iterable[T] | None = None, *, total: int | None = None, description: str = "") -> tqdm:
    """A progress bar on stderr, silent where stderr is no terminal."""
    return tqdm(iterable, total=total, desc=description, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def consume(
    progress: Iterable[Progress],
    run: Run,
    *,
    total: int | None,
    description: str,
    namespace: str,
    save: Callable[[int, Callable[[], dict[str, Tensor]]], None] | None = None,
) -> Callable[[], dict[str, Tensor]] | None:
    """Drive long work to its end: draw the bar, log what it yields, and offer every state to `save(step, state)`.
    Returns the last state function, None if nothing was left to do."""
    state = None
    with bar(total=total, description=description) as shown:
        for step, logs, state in progress:
            shown.update(step - shown.n)
            if logs:
                run.log(logs, step, namespace)
            if save is not None:
                save(step, state)
    return state


class _Mirror:
    """The W&B side of one run. Its methods may raise any of `_failures()`; `Run` then goes on without it."""

    def __init__(self, wandb: ModuleType, run: object, finish_seconds: float):
        self._wandb, self._run, self._finish_seconds = wandb, run, finish_seconds
        self._namespaces: set[str] = set()

    @classmethod
    def start(cls, run: Run) -> _Mirror | None:
        """Open the mirror of `run`, offline where W&B cannot be reached; None if it is disabled or broken."""
        mode = os.environ.get("WANDB_MODE", run.settings.wandb).replace("dryrun", "offline")
        if mode == "disabled":
            return None
        root = run.settings.folder.resolve()
        # Before the import: wandb reads these once, and would stage uploads in the home directory.
        for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            os.environ.setdefault(variable, str(root))
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        online = mode != "offline" and _online_possible(wandb, asked_for=mode == "online")
        try:
            opened = _bounded(lambda: _open(wandb, run, "online" if online else "offline"), START_SECONDS)
        except _failures() as error:
            _warn_once(error)
            if not online:
                return None
            with contextlib.suppress(TimeoutError):
                _bounded(wandb.teardown, START_SECONDS)  # W&B holds the failed run's id until then
            return cls.start(run)  # offline now, because of the outage noted
        return cls(wandb, opened, run.settings.finish_seconds)

    def log(self, values: Mapping[str, float], step: int, namespace: str) -> None:
        counter = f"{namespace}/step"
        if namespace not in self._namespaces:
            self._namespaces.add(namespace)
            self._run.define_metric(counter)
            self._run.define_metric(f"{namespace}/*", step_metric=counter)
        self._run.log({counter: step, **{f"{namespace}/{name}": value for name, value in values.items()}})

    def pictures(self, key: str, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
        table = self._wandb.Table(columns=list(columns))
        for row in rows:
            values = (row[column] for column in columns)
            table.add_data(*(self._wandb.Image(image_array(v)) if isinstance(v, Tensor) else v for v in values))
        self._run.log({key: table})

    def artefact(
        self, folder: Path, *, kind: str, name: str, id: str, inputs: Sequence[str], metadata: Mapping[str, object]
    ) -> None:
        if not self._run.offline:  # offline, W&B refuses input edges: config["inputs"] holds them
            self._use(inputs)
        artifact = self._wandb.Artifact(f"{kind}-{name}", type=kind, metadata={**metadata, "inputs": list(inputs)})
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            # Immutable: referred to where it lies, not copied (a store of GANs would double).
            artifact.add_file(str(path), name=path.relative_to(folder).as_posix(), policy="immutable")
        self._run.log_artifact(artifact, aliases=["latest", id])

    def summary(self, values: Mapping[str, object]) -> None:
        self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        _bounded(lambda: self._run.finish(exit_code=exit_code), self._finish_seconds)

    def _use(self, inputs: Sequence[str]) -> None:
        for reference in inputs:
            name = reference.replace("/", "-", 1).replace("@", ":")
            try:
                _bounded(partial(self._run.use_artifact, name), START_SECONDS)
            except self._wandb.errors.CommError:  # made offline or elsewhere: no edge to draw, and no outage
                logger.info("W&B does not know the input %s; config.inputs keeps it", reference)


def _open(wandb: ModuleType, run: Run, mode: str) -> object:
    settings = wandb.Settings(
        init_timeout=START_SECONDS - PROBE_SECONDS,
        login_timeout=PROBE_SECONDS,
        finish_timeout=run.settings.finish_seconds,
        console="off",
        silent=True,
        x_disable_stats=True,
    )
    with _agent_environment(wandb, visible=run.outermost) as agent_run_id:
        return wandb.init(
            mode=mode,
            project=run.settings.project,
            entity=run.settings.entity,
            group=run.settings.group,
            job_type=run.job_type,
            name=run.name,
            id=agent_run_id or f"{run.job_type}-{run.id}",
            config=run.config,
            tags=run.tags,
            dir=str(run.settings.folder.resolve()),
            resume="allow",
            reinit="finish_previous",
            settings=settings,
        )


@contextlib.contextmanager
def _agent_environment(wandb: ModuleType, visible: bool) -> Iterator[str | None]:
    """Show a sweep agent's variables to the outermost run and hide them from the runs upstream of it. Yields
    the agent's run id if it is to be taken. wandb reads the variables once per process, hence the teardown."""
    held = {name: os.environ.pop(name) for name in _AGENT_VARIABLES if name in os.environ}
    if held:
        wandb.teardown()
    try:
        if visible:
            os.environ.update(held)
        yield held.get("WANDB_RUN_ID") if visible else None
    finally:
        os.environ.update(held)


def _online_possible(wandb: ModuleType, asked_for: bool) -> bool:
    """Whether a key is configured and the server answers; W&B itself would prompt, or wait for minutes."""
    if _outage.is_set():
        return False
    try:
        server = wandb.setup().settings.base_url  # starts W&B's own service process
    except _failures() as error:
        _warn_once(error)
        return False
    if not _key_configured(server):
        if asked_for:
            _warn_once(PermissionError("no API key is configured (wandb login, or WANDB_API_KEY)"))
        return False
    try:
        with urllib.request.urlopen(server, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, whatever it says
    except OSError as error:
        _warn_once(error)
        return False


def _key_configured(server: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urllib.parse.urlsplit(server).hostname or "") is not None


def _bounded(call: Callable[[], T], seconds: float) -> T:
    """The result of `call`, or `TimeoutError` if it is not there within `seconds` (it is left behind)."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # handed to the caller, who raises it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="wandb-call").start()
    try:
        return future.result(timeout=seconds)
    except FutureTimeout:
        raise TimeoutError(f"Weights & Biases did not answer within {seconds:g} s") from None


def _failures() -> tuple[type[Exception], ...]:
    """What a broken network or W&B service raises; anything else is a mistake of ours and passes."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError, WandbAttachFailedError
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    service = (WandbApiFailedError, WandbAttachFailedError, WandbServiceConnectionError)
    mailbox = (HandleAbandonedError, MailboxClosedError, ServerResponseError)
    return (wandb.errors.Error, OSError, *service, *mailbox)  # OSError: network, disk, time out, requests


def _warn_once(error: BaseException) -> None:
    """Say once per process that the mirror failed; later runs do not try the network again."""
    if not _outage.is_set():
        _outage.set()
        text = "Weights & Biases is not available (%s: %s); everything is kept in the local run folders"
        logger.warning(text, type(error).__name__, plain(str(error)))


def _ending(error: BaseException | None) -> str:
    if error is None:
        return "finished"
    return "preempted" if isinstance(error, Preempted | KeyboardInterrupt) else "failed"
