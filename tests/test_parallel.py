"""Several processes, one store: the same bits as one, and the work done once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import conftest
import pytest

from midefense.pipeline.classifiers import job_of
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.session import Session
from midefense.store.artefacts import Draft
from midefense.store.store import Store

TORCHRUN = (Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", "2")
SMALL = (
    "dataset=toy",
    "architecture.widths=[8,16]",
    "recipe.batch_size=16",
    "recipe.epochs=8",
    "compute=cpu",
    "compute.threads=1",
    "attack=gmi",
    "prior=gmi_gan",
    "prior.width=8",
    "prior.batch_size=16",
    "prior.steps=30",
    "prior.unit=10",
    "attack.group=1",
    "attack.search.steps=98",
)
TARGET = ("dataset=toy", "architecture.widths=[8,16]", "recipe.batch_size=16", "recipe.epochs=6")


def finish(*processes):
    """Wait for processes that must succeed; what each wrote to stdout."""
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        outputs.append(output)
    return outputs


def steps(store, job_type):
    """Steps logged for the one artefact of a job type, per seat that worked on it."""
    paths = sorted((store / "runs" / job_type).glob("*/**/metrics.jsonl"))
    return [[json.loads(line)["step"] for line in path.read_text().splitlines()] for path in paths]


def require_same_tensors(store, other):
    files = [sorted(folder.glob("*/*/tensors.safetensors")) for folder in (store, other)]
    names = [[path.relative_to(folder) for path in paths] for paths, folder in zip(files, (store, other), strict=True)]
    assert names[0] == names[1] and len(names[0]) == 3
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes(), one


def require_done_once(store):
    """Every epoch, step of the prior and point of a group was logged by one process, once."""
    assert sorted(sum(steps(store, "train_target"), [])) == list(range(1, 9))
    assert sorted(sum(steps(store, "train_prior"), [])) == [10, 20, 30]
    points = [point + 100 * group for group in range(4) for point in range(2, 100)]
    assert sorted(sum(steps(store, "attack"), [])) == points


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The store of one process that did it all."""
    folder = tmp_path_factory.mktemp("alone") / "store"
    conftest.DONE_BY["attack"](Pipeline(conftest.plan_for("attack", *SMALL, store=folder)))
    require_done_once(folder)
    return folder


def test_two_ranks_recover_the_same_bits_as_one(start_process, store, alone):
    finish(start_process("attack", *SMALL, launcher=TORCHRUN))
    require_same_tensors(store, alone)
    require_done_once(store)
    shares = steps(store, "attack")
    assert len(shares) == 2 and all(shares), "both ranks attacked, each in its own seat"
    states = [json.loads(path.read_text())["state"] for path in (store / "runs" / "attack").glob("*/**/status.json")]
    assert states == ["finished", "finished"]


def test_two_processes_on_one_store_do_the_work_once(start_process, store, alone):
    outputs = finish(start_process("attack", *SMALL), start_process("attack", *SMALL))
    assert outputs[0] == outputs[1] and "recovered/toy-cnn-none-gmi_gan-gmi@" in outputs[0]
    require_same_tensors(store, alone)
    require_done_once(store)
    assert not list((store / "work").glob("*/*")), "claims and seats are given back"


def snapshot(store):
    return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


@pytest.mark.slow  # that ranks agree, test_train.py shows on every run; that processes share a store, the tests above
def test_two_ranks_train_one_target(start_process, run_verb, store):
    first = finish(start_process("train_target", *TARGET, "compute=cpu", "compute.strategy=ddp", launcher=TORCHRUN))
    (artefact,) = Store(store).list()
    artefact.verify()
    assert artefact.metrics["test_accuracy_top1"] > 0.9
    assert [len(share) for share in steps(store, "train_target")] == [6, 6]
    assert artefact.reference in first[0]
    before = snapshot(store)
    assert run_verb("train_target", *TARGET).id == artefact.id, "for one process it is the same target"
    assert snapshot(store) == before, "the second call is a no-op"


@pytest.mark.slow
@pytest.mark.parametrize("finished_elsewhere", [False, True])
def test_ranks_wait_for_another_process_that_trains_their_target(
    start_process, run_verb, store, tmp_path, finished_elsewhere
):
    overrides = (*TARGET, "compute=cpu", "compute.strategy=ddp")
    session = Session(conftest.plan_for("train_target", *overrides, store=store))
    work = Store(store).work(job_of(session, session.plan.target).draft)
    claim = work.folder / "all.claim"
    with work.claim("all"):
        process = start_process("train_target", *overrides, launcher=TORCHRUN)
        assert any("waiting for another process that makes target/toy" in line for line in process.stderr)
        assert not list(store.glob("runs/*/*")), "nobody trains meanwhile"
        if finished_elsewhere:
            same = run_verb("train_target", *TARGET, store=tmp_path / "elsewhere")
            work.finish(same.tensors(), same.metrics)
    while not finished_elsewhere and not claim.exists() and process.poll() is None:
        time.sleep(0.01)
    while not finished_elsewhere and not (text := claim.read_text()):
        time.sleep(0.05)  # the file is there a moment before its content
    assert finished_elsewhere or json.loads(text)["pid"] not in (os.getpid(), process.pid)
    (output,) = finish(process)
    assert work.draft.reference in output
    assert [len(share) for share in steps(store, "train_target")] == ([] if finished_elsewhere else [6, 6])
    assert not claim.exists()


def a_claim(store):
    work = Store(store).work(Draft(kind="target", name="a", recipe={"a": 1}))
    work.folder.mkdir(parents=True)
    return work, work.folder / "all.claim"


def test_a_claim_of_a_dead_process_is_taken_at_once(store):
    work, path = a_claim(store)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path.write_text(json.dumps({"host": os.uname().nodename, "pid": dead.pid, "time": time.time()}))
    with work.claim("all") as mine:  # which does not wait: a claim that fell silent would be taken after a minute
        assert mine
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(("age", "taken"), [(0, False), (30, False), (120, True)])
def test_a_claim_from_elsewhere_is_taken_when_it_falls_silent(store, age, taken):
    work, path = a_claim(store)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))
    os.utime(path, (time.time() - age,) * 2)
    with work.claim("all") as mine:
        assert mine is taken
    assert path.exists() is not taken, "a claim that is not ours stays"


def test_a_claim_of_a_living_process_is_respected(store):
    work, path = a_claim(store)
    with work.claim("all") as mine, work.claim("all") as again:
        assert mine and not again
    assert not path.exists()
