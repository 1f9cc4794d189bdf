"""What tests share: one thread, no W&B, a store of their own, verbs called in this process or in another."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract.listing import composed, within

from midefense.pipeline import verbs
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.read import Plan, read_plan

ROOT = Path(__file__).resolve().parents[1]
DONE_BY = {"train_target": lambda p: p.target.artefact, "attack": lambda p: p.recovered, "evaluate": lambda p: p.result}

os.environ["WANDB_MODE"] = "disabled"  # a test that wants W&B says so
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def plan_for(verb: str, *overrides: str, store: Path) -> Plan:
    """What a verb plans under command-line overrides, as `verbs.verb` reads it."""
    config, choices = composed(verb, *overrides)
    return read_plan(verb, within(store, config), choices, overrides)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_in_the_checkout():
    """Tests write into temporary folders: what verbs make by default may not appear beside the sources."""
    caches = {".pytest_cache", ".ruff_cache", "__pycache__"}
    before = set(ROOT.iterdir())
    yield
    assert [path.name for path in set(ROOT.iterdir()) - before if path.name not in caches] == []


@pytest.fixture
def store(tmp_path):
    """An empty folder for artefacts."""
    return tmp_path / "store"


@pytest.fixture
def run_verb(store):
    """`run_verb(verb, *overrides)`: the artefact that a verb gives, made in this process."""

    def run(verb, *overrides, store=store):
        return DONE_BY[verb](Pipeline(plan_for(verb, *overrides, store=store)))

    return run


@pytest.fixture
def call(monkeypatch, capsys):
    """`call(verb, *arguments)`: exit code, stdout and stderr of an entry point, called in this process."""
    asked = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    handlers, level = logging.root.handlers[:], logging.root.level
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(verb, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{verb}.py", *arguments])
        code = 0
        try:
            verbs.verb(verb, DONE_BY[verb], lambda artefact: "done")()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    yield run
    for number, handler in asked.items():
        signal.signal(number, handler)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """W&B's own files stay in the test's folder, and no login of this machine counts."""
    for variable in ("WANDB_CONFIG_DIR", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    return tmp_path


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory):
    """Where modules are compiled once per session: every process but the first starts in half the time."""
    return tmp_path_factory.mktemp("bytecode")


def process_environment(bytecode, **changes):
    """The variables of a verb's process: this one's, and `changes`. What wandb left in this one (the address of its
    service process, folders) would send the new process to a service that is gone."""
    left = {name for name in os.environ if name.lstrip("_").startswith("WANDB_") and name != "WANDB_MODE"}
    left.add("PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if name not in left}
    return {**inherited, "PYTHONPYCACHEPREFIX": str(bytecode), **changes}


@pytest.fixture
def run_process(store, bytecode):
    """`run_process(verb, *overrides)`: the finished process (`returncode`, `stdout`, `stderr`) of a verb."""

    def run(verb, *overrides, store=store, timeout=120, **environment):
        command = [sys.executable, str(ROOT / f"{verb}.py"), *overrides, f"store={store}"]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            env=process_environment(bytecode, **environment),
        )

    return run


@pytest.fixture
def start_process(store, bytecode):
    """`start_process(verb, *overrides)`: a verb's process, just started; it does not outlive the test.

    `launcher` stands in front of the script (torchrun and its arguments).
    """
    started = []

    def start(verb, *overrides, store=store, launcher=(sys.executable,), **environment):
        command = [*map(str, launcher), str(ROOT / f"{verb}.py"), *overrides, f"store={store}", "compute.threads=1"]
        process = subprocess.Popen(
            command,
            env=process_environment(bytecode, **environment),
            cwd=store.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
