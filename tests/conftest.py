"""What tests share: one thread, no W&B, a store of their own, verbs called in this process or in another."""

import collections
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import browser
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


DEAR_SECONDS = 30  # of CPU, of all processes of a test, above which it should be smaller, or `-m slow`


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`-n 2` gives each process half of the tests in a row, and the first to end takes half of the other's rest: what a
    module's tests share is made once, and both end together. Any other way is taken where `--dist` names it."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def cpu_seconds() -> float:
    """What this process and the ended ones among its children have computed: unlike a clock, it does not run while
    others are at work."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    before = cpu_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append(("setup", cpu_seconds() - before))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = cpu_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append(("call", cpu_seconds() - before))


def dear(reports) -> list[str]:
    """A line for each test that computed too long for every run."""
    took = {report.nodeid: dict(report.user_properties).get("call", 0) for report in reports}
    slow = {report.nodeid for report in reports if "slow" in report.keywords}
    return [f"{name}: {took[name]:.0f} s" for name in took if took[name] > DEAR_SECONDS and name not in slow]


def dearest_files(reports, count=25) -> list[str]:
    """The files whose tests, with what these share, computed longest."""
    spent = collections.Counter()
    for report in reports:
        spent[report.nodeid.partition("::")[0]] += sum(dict(report.user_properties).values())
    return [f"{seconds:8.1f} s {name}" for name, seconds in spent.most_common(count)]


def pytest_terminal_summary(terminalreporter, config):
    """Tests that are too dear, always; the files that are dearest beside `--durations`."""
    every = [report for reports in terminalreporter.stats.values() for report in reports]
    ran = [report for report in every if getattr(report, "when", "") == "call"]
    if lines := dear(ran):
        terminalreporter.section(f"tests of more than {DEAR_SECONDS} s of CPU: make them smaller, or mark them slow")
        terminalreporter.write_line("\n".join(lines))
    if config.getoption("durations") is not None:
        terminalreporter.section("seconds of CPU by file")
        terminalreporter.write_line("\n".join(dearest_files(ran)))


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


@pytest.fixture(scope="session", autouse=True)
def nobody_waits_for_the_disk():
    """Files are not forced onto the disk, which takes longer than most tests: none is read after a power cut. Processes
    that tests start do as always."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


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
    asked = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
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
    """Where modules are compiled once per session (and process of it): every process but the first starts in half the
    time. None where the libraries came compiled, which such a folder would hide."""
    compiled = Path(importlib.util.cache_from_source(torch.__file__)).exists()
    return None if compiled else tmp_path_factory.mktemp("bytecode")


def process_environment(bytecode, **changes):
    """The variables of a verb's process: this one's, and `changes`. What wandb left in this one (the address of its
    service process, folders) would send the new process to a service that is gone."""
    left = {name for name in os.environ if name.lstrip("_").startswith("WANDB_") and name != "WANDB_MODE"}
    left.add("PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if name not in left}
    return {**inherited, **({"PYTHONPYCACHEPREFIX": str(bytecode)} if bytecode else {}), **changes}


@pytest.fixture
def run_process(store, bytecode):
    """`run_process(verb, *overrides)`: the finished process (`returncode`, `stdout`, `stderr`) of a verb."""

    def run(verb, *overrides, store=store, timeout=300, **environment):
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


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A headless browser with one tab (`browser.Browser`)."""
    program = browser.find()
    if program is None:
        pytest.skip(f"no browser: expected one of {', '.join(browser.NAMES)}, or its path in {browser.VARIABLE}")
    with browser.Browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started
