"""Killed work goes on: by the same command, from the last unit saved, to the same bits."""

import json
import random
import re
import signal
import time

import conftest
import pytest
import safetensors.torch

from midefense.pipeline.pipeline import Pipeline
from midefense.store import store as store_module
from midefense.store.store import Store

SMALL = (
    "dataset=toy",
    "architecture.widths=[8,16]",
    "recipe.batch_size=16",
    "compute.threads=1",
    "prior=gmi_gan",
    "prior.width=8",
    "prior.batch_size=16",
    "attack.group=1",
)
POOL = ("attack=pool", "attack.init.size=40", "attack.init.batch_size=16", "attack.init.candidates=4")
FEW_UNITS = (*SMALL, *POOL, "attack.select.repeats=2", "attack.select.keep=2", "recipe.epochs=3")
FEW_UNITS += ("prior.steps=10", "prior.unit=4", "attack.search.steps=4")
# Long enough that each phase can be struck in its midst.
SECONDS_EACH = (*SMALL, "attack=gmi", "recipe.epochs=20", "prior.steps=60", "prior.unit=10", "attack.search.steps=98")
JOBS = {"target": "train_target", "prior": "train_prior", "recovered": "attack"}
UNIT = {"target": 1, "prior": 10}
YIELDS = 100  # of a group: its start, its steps and its selection
LAST = {"target": 20, "prior": 60, "recovered": 4 * YIELDS}
WAIT_SECONDS = 300


class Killed(BaseException):
    """Ends a verb of this process where a SIGKILL would."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that an uninterrupted `attack SECONDS_EACH` filled."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    conftest.DONE_BY["attack"](Pipeline(conftest.plan_for("attack", *SECONDS_EACH, store=folder)))
    return folder


def require_same(resumed, whole):
    """The same artefacts, bit for bit; what was measured and charged is the same too, times apart."""
    resumed, whole = ({a.reference: a for a in Store(folder).list()} for folder in (resumed, whole))
    assert resumed.keys() == whole.keys()
    for reference, artefact in resumed.items():
        artefact.verify()
        for name in ("tensors.safetensors", "config.yaml", "metrics.json"):
            expected = (whole[reference].path / name).read_bytes()
            assert (artefact.path / name).read_bytes() == expected, f"{reference}: {name}"
        assert bill(artefact) == bill(whole[reference]), reference


def bill(artefact):
    return {name: value for name, value in artefact.provenance["bill"].items() if name != "seconds"}


def only(paths):
    (path,) = paths
    return path


def logged(store, kind):
    """The lines of numbers that the only run of a kind of work wrote."""
    path = only((store / "runs" / JOBS[kind]).glob("*/metrics.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def status(store, kind):
    return json.loads(only((store / "runs" / JOBS[kind]).glob("*/status.json")).read_text())


def saved_units(store, kind):
    """Files that unfinished work of a kind has saved."""
    return [path for path in (store / "work" / kind).glob("*/*.safetensors") if not path.name.startswith(".")]


def wait_for(condition, process):
    """Wait until `condition()` holds while `process` runs."""
    started = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < WAIT_SECONDS
        time.sleep(0.002)


def end(process, how):
    """Send a signal to a process that still works; its exit code and what it wrote to stderr."""
    assert process.poll() is None, "it ended before the signal"
    process.send_signal(how)
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, errors


def finish(process):
    """Wait for the end of a process that must succeed; what it wrote to stderr."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_every_write_of_every_artefact(moment, run_verb, store, tmp_path, monkeypatch):
    write, struck = store_module.write_whole, set()

    def interrupted(path, content):
        """Killed once per file: before it is there, or when it is; a state counts anew as it advances."""
        folder = re.sub("-[0-9a-f]{32}$", "", str(path.parent))  # every process writes in one of its own
        this = (folder, path.name, hash(content) if path.stem == "state" else None)
        strike = this not in struck
        struck.add(this)
        if strike and moment == "before":
            raise Killed
        write(path, content)
        if strike:
            raise Killed

    run_verb("attack", *FEW_UNITS, store=tmp_path / "whole")
    monkeypatch.setattr(store_module, "write_whole", interrupted)
    monkeypatch.setattr(store_module, "clock", lambda: 0.0)  # a state tells how long it took: another each time
    kills = 0
    for _ in range(100):
        try:
            run_verb("attack", *FEW_UNITS)
            break
        except Killed:
            kills += 1
    units = 3 + 3 + 3 + 4  # epochs, units of the prior, batches of the pool, groups
    assert kills == units + 4 * 4  # and four files of each of four artefacts
    require_same(store, tmp_path / "whole")
    epochs = [line["step"] for line in logged(store, "target")]
    assert epochs == ([1, 1, 2, 2, 3, 3] if moment == "before" else [1, 2, 3]), "a kill costs one unit at most"
    assert not list((store / "work").glob("*/*")), "nothing unfinished is left"


def reached(store, kind):
    """The last step that the run of a kind of work logged, 0 if it has not yet."""
    begun = any((store / "runs" / JOBS[kind]).glob("*/metrics.jsonl"))
    steps = [line["step"] for line in logged(store, kind)] if begun else []
    return steps[-1] if steps else 0


def strike(process, store, kind, moments):
    """SIGKILL a process at a random moment of a kind of work; checks what the kill cost, and gives the unit to redo."""
    wait_for_a_moment(process, store, kind, moments)
    code, _ = end(process, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert list((store / "work" / kind).glob("*/*.claim")), "a killed process cannot give its claims back"
    assert status(store, kind)["state"] == "running"
    saved = saved_units(store, kind)
    if kind == "recovered":
        return len(saved)  # groups; the next one is numbered so
    states = [safetensors.torch.load_file(path) for path in saved]
    done = int(states[0]["epoch" if kind == "target" else "step"]) if states else 0
    assert reached(store, kind) - done in (0, UNIT[kind])
    return done + UNIT[kind]


def wait_for_a_moment(process, store, kind, moments):
    moment = moments.uniform(0.01, 0.8) * LAST[kind]
    wait_for(lambda: reached(store, kind) >= moment, process)
    time.sleep(moments.uniform(0, 0.05))


def preempt(process, store, kind, moments):
    """SIGTERM a process at a random moment of a kind of work, which it may end in order."""
    wait_for_a_moment(process, store, kind, moments)
    code, errors = end(process, signal.SIGTERM)
    assert code == 143
    last = errors.splitlines()[-1]
    assert last.startswith("preempted; continue with: python ") and "prior.steps=60" in last
    assert "Traceback" not in errors
    assert status(store, kind)["state"] == "preempted"
    assert not list((store / "work").rglob("*.claim")), "claims are given back"


def require_continued(store, kind, attempt, expected):
    """The `attempt`-th run of a kind of work began at `expected`, as `strike` gave it."""
    first = next(line["step"] for line in logged(store, kind) if line["attempt"] == attempt)
    if kind == "recovered":
        first //= YIELDS
    assert first == expected


def test_ended_once_in_every_phase(start_process, store, whole):
    """Killed while the target trains and while it is attacked, preempted in between."""
    moments, began = random.Random(4), {}
    began["target"] = strike(start_process("attack", *SECONDS_EACH), store, "target", moments)
    preempt(start_process("attack", *SECONDS_EACH), store, "prior", moments)
    assert status(store, "target")["state"] == "finished"
    began["recovered"] = strike(start_process("attack", *SECONDS_EACH), store, "recovered", moments)
    errors = finish(start_process("attack", *SECONDS_EACH))
    assert "waiting" not in errors, "claims of the dead are taken over at once"
    assert status(store, "prior")["state"] == "finished"
    require_same(store, whole)
    for kind, expected in began.items():
        require_continued(store, kind, 2, expected)


@pytest.mark.slow
def test_killed_at_ten_random_moments(start_process, whole, tmp_path):
    moments = random.Random(10)
    for number in range(10):
        kind = list(JOBS)[number % 3]
        place = tmp_path / f"killed-{number}"
        process = start_process("attack", *SECONDS_EACH, store=place)
        expected = strike(process, place, kind, moments)
        finish(start_process("attack", *SECONDS_EACH, store=place))
        require_same(place, whole)
        require_continued(place, kind, 2, expected)
