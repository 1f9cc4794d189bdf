"""The Weights & Biases side of runs. The only file that imports wandb, and only when a mirror is wanted."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import shlex
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from torch import Tensor

from midefense.foreign import MOST_BYTES, read_foreign, yaml_of
from midefense.store.plain import plain
from midefense.tracking.run_folder import image_array
from midefense.tracking.settings import LONGEST_GROUP, Settings

PROBE_SECONDS = 5  # an unreachable server must cost seconds, not the minutes of W&B's own retries
START_SECONDS = 15
LONGEST_WARNING = 400
_AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID")

logger = logging.getLogger(__name__)
_outage = threading.Event()  # set for the process by the first failure of W&B
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """What W&B is told of a run when it opens: see `run.Run` for the fields."""

    settings: Settings
    job_type: str
    name: str
    id: str
    config: Mapping[str, object]
    tags: Sequence[str]
    title: str
    group: str | None
    outermost: bool


def under_sweep_agent() -> bool:
    """Whether a W&B sweep agent started this process."""
    return "WANDB_SWEEP_ID" in os.environ


def agent_parameters() -> dict[str, object]:
    """What a sweep agent varies in this process, by key, as its file has it; {} where no agent started it."""
    file = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not under_sweep_agent() or not file:
        return {}
    content = yaml_of(read_foreign(Path(file), MOST_BYTES, "the parameters of a sweep"), file)
    said = content.items() if isinstance(content, Mapping) else ()
    return {str(key): one["value"] for key, one in said if isinstance(one, Mapping) and "value" in one}


class Mirror:
    """The W&B side of one run. Its methods may raise any of `failures()`; the run then goes on without it."""

    def __init__(self, wandb: ModuleType, run: object, record: Record):
        self._wandb, self._run, self._record = wandb, run, record
        self._namespaces: set[str] = set()

    @classmethod
    def start(cls, run: Record) -> Mirror | None:
        """Open the mirror of `run`, offline where W&B cannot be reached; None if it is disabled or broken: whatever W&B
        and what it stands on raise while it starts (its variables alone are some hundred) is said once, and the run
        goes on."""
        mode = os.environ.get("WANDB_MODE", run.settings.wandb).replace("dryrun", "offline")
        if mode == "disabled":
            return None
        try:
            return cls._start(run, mode)
        except Exception as error:  # of W&B, pydantic, the import: a courtesy stops nothing
            warn_once(error)
            return None

    @classmethod
    def _start(cls, run: Record, mode: str) -> Mirror | None:
        root = run.settings.folder.resolve()
        # Before the import: wandb reads these once, and would stage uploads in the home directory.
        for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            os.environ.setdefault(variable, str(root))
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        online = mode != "offline" and _online_possible(wandb, asked_for=mode == "online")
        try:
            opened = _bounded(lambda: _open(wandb, run, "online" if online else "offline"), START_SECONDS)
        except failures() as error:
            warn_once(error)
            if not online:
                return None
            with contextlib.suppress(TimeoutError):
                _bounded(wandb.teardown, START_SECONDS)  # W&B holds the failed run's id until then
            return cls._start(run, mode)  # offline now, because of the outage noted
        return cls(wandb, opened, run)

    def where(self) -> str:
        """Where the run is to be seen, for the person who waits for it; "" where another line says so."""
        if not self._run.offline:
            return f"W&B: {self._record.title} ({self._record.job_type}): {self._run.url}"
        if not self._record.outermost:
            return ""
        return f"W&B: an offline log; upload it with: wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"

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

    def result(self, values: Mapping[str, float], about: Mapping[str, float]) -> None:
        self._run.log(dict(values))  # W&B draws what was logged, and keeps its last value in the summary
        self._run.summary.update(dict(about))

    def summary(self, values: Mapping[str, object]) -> None:
        self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        _bounded(lambda: self._run.finish(exit_code=exit_code), self._record.settings.finish_seconds)

    def _use(self, inputs: Sequence[str]) -> None:
        for reference in inputs:
            name = reference.replace("/", "-", 1).replace("@", ":")
            try:
                _bounded(partial(self._run.use_artifact, name), START_SECONDS)
            except self._wandb.errors.CommError:  # made offline or elsewhere: no edge to draw, and no outage
                logger.info("W&B does not know the input %s; config.inputs keeps it", reference)


def _open(wandb: ModuleType, run: Record, mode: str) -> object:
    settings = wandb.Settings(
        init_timeout=START_SECONDS - PROBE_SECONDS,
        login_timeout=PROBE_SECONDS,
        finish_timeout=run.settings.finish_seconds,
        # the lines of `terminal.Stage` belong into W&B's Logs; the bars of a terminal, drawn again and again, do not
        console="off" if sys.stderr.isatty() else "wrap",
        silent=True,
    )
    with _agent_environment(wandb, visible=run.outermost) as agent_run_id:
        return wandb.init(
            mode=mode,
            project=run.settings.project,
            entity=run.settings.entity,
            group=_group(run),
            job_type=run.job_type,
            name=run.title,
            id=agent_run_id or f"{run.job_type}-{run.id}",
            config=run.config,
            tags=run.tags,
            dir=str(run.settings.folder.resolve()),
            resume="allow",
            reinit="finish_previous",
            settings=settings,
        )


def _group(run: Record) -> str | None:
    """The group that the user named, in the settings or to W&B, else the run's own."""
    named = run.settings.group or os.environ.get("WANDB_RUN_GROUP") or run.group
    return plain(named)[:LONGEST_GROUP] if named else None


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
    except failures() as error:
        warn_once(error)
        return False
    if not key_configured(server):
        if asked_for:
            warn_once(PermissionError("no API key is configured (wandb login, or WANDB_API_KEY)"))
        return False
    try:
        with urllib.request.urlopen(server, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, whatever it says
    except OSError as error:
        warn_once(error)
        return False


def key_configured(server: str) -> bool:
    """Whether a key for `server` is in a variable, or in the file of logins; it is not looked at."""
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


def failures() -> tuple[type[Exception], ...]:
    """What a broken network or W&B service raises; anything else is a mistake of ours and passes."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError, WandbAttachFailedError
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    service = (WandbApiFailedError, WandbAttachFailedError, WandbServiceConnectionError)
    mailbox = (HandleAbandonedError, MailboxClosedError, ServerResponseError)
    return (wandb.errors.Error, OSError, *service, *mailbox)  # OSError: network, disk, time out, requests


def warn_once(error: BaseException) -> None:
    """Say once per process that the mirror failed; later runs do not try the network again."""
    if not _outage.is_set():
        _outage.set()
        text = "Weights & Biases is not available (%s: %s); everything is kept in the local run folders"
        said = " ".join(plain(str(error)).split())  # pydantic's lines as one
        logger.warning(text, type(error).__name__, said[:LONGEST_WARNING])
