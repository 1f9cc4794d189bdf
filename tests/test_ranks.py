"""Processes that train or attack together: who starts them, what BatchNorm sees, one run whatever their number, and
what becomes of the others where one dies."""

import copy
import json
import os
import signal
import time
from pathlib import Path

import pytest
import test_parallel
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import nn

from midefense.compute import Compute, launched_by, local_rank, together, world_size
from midefense.plan.compose import compose
from midefense.store.store import Store
from midefense.tracking.endings import RANK
from midefense.training.batchnorm import over_all_ranks
from midefense.types import RankLost

# ------------------------------------------------------------------------------------------------ who starts them

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
LAUNCHERS += ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID")


@pytest.fixture
def started(monkeypatch):
    """`started(**variables)`: as a process that was started with these."""

    def start(**variables):
        for name in LAUNCHERS:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return type(launched_by()), world_size(), local_rank()

    return start


def test_a_process_knows_who_started_it_and_its_likes(started):
    assert started() == (LightningEnvironment, 1, 0)
    job = {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 4, "SLURM_LOCALID": 0}
    assert started(**job) == (LightningEnvironment, 1, 0), "the script of a job is no rank"
    assert started(**job, SLURM_STEP_NUM_TASKS=1) == (LightningEnvironment, 1, 0), "what submitit starts"
    step = {"SLURM_NTASKS_PER_NODE": 4, "SLURM_STEP_NUM_TASKS": 4}
    assert started(**{**job, **step, "SLURM_LOCALID": 3}) == (SLURMEnvironment, 4, 3)
    elastic = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "LOCAL_RANK": 1}
    assert started(**elastic) == (TorchElasticEnvironment, 2, 1)
    assert started(**elastic, **job, **step) == (TorchElasticEnvironment, 2, 1), "torchrun within a step"


def test_an_installed_srun_that_nobody_uses_is_no_matter(tmp_path, monkeypatch, started, recwarn):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert started(SLURM_NTASKS=4)[0] is LightningEnvironment
    Compute(accelerator="cpu").fabric(ranks=False)
    assert not [warning for warning in recwarn if "srun" in str(warning.message)]


def test_in_a_job_of_slurms_a_verb_takes_what_the_job_was_given(monkeypatch):
    given = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_NODES": "3", "SLURM_CPUS_PER_TASK": "5"}
    for name in given:
        monkeypatch.delenv(name, raising=False)

    def options():
        config, _ = compose("train_target", ["dataset=toy", "compute=slurm"])
        return [config["compute"][name] for name in ("devices", "num_nodes", "threads")]

    assert options() == [1, 1, None]
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert options() == [2, 3, 5]


# ------------------------------------------------------------------------------------------------ BatchNorm


@pytest.mark.parametrize("momentum", [0.1, None])
def test_of_all_rows_batchnorm_makes_what_torch_makes(monkeypatch, momentum):
    """On one rank that has them all: outputs, gradients and running statistics; in eval mode, and outside, it is
    torch's own."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: None)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 4, 4, generator=rng, dtype=torch.float64) * 3 + 1
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum), nn.Flatten(), nn.BatchNorm1d(48, affine=False)).double()
    nn.init.normal_(model[0].weight, generator=rng)
    ours = copy.deepcopy(model)

    def made(net):
        for _ in range(2):
            shown = images.clone().requires_grad_()
            found = net(shown)
            found.pow(3).sum().backward()
        return found, shown.grad, net[0].weight.grad, net[0].bias.grad

    with over_all_ranks(ours, 2):
        for one, two in zip(made(ours), made(model), strict=True):
            torch.testing.assert_close(one, two)
        torch.testing.assert_close(ours.state_dict(), model.state_dict())
        ours.load_state_dict(model.state_dict())
        ours.eval(), model.eval()
        assert ours(images).equal(model(images))
    assert all("forward" not in vars(layer) for layer in ours.modules())


# ------------------------------------------------------------------------------------------------ one that dies


def test_a_lost_connection_is_said_in_one_sentence_and_other_errors_stay():
    for text in ("[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:7", "Connection reset by peer"):
        with (
            pytest.raises(RankLost, match="another of the 1 processes .* has ended .*the same command goes on"),
            together(),
        ):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="^shape mismatch$"), together():
        raise RuntimeError("shape mismatch")


LONG = ("dataset=toy", "architecture.widths=[4,8]", "recipe.batch_size=16", "recipe.epochs=60", "compute=cpu")
HOW = {  # the launcher, and the words that say how many train together
    "torchrun": (test_parallel.TORCHRUN, ("compute.strategy=ddp",)),
    "by itself": (None, ("compute.strategy=ddp", "compute.devices=2")),
}


def told(folder):
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.is_file() and path.read_text() else {}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_rank_dies_the_others_end_and_the_same_command_goes_on(start_process, store, how, rank):
    launcher, words = HOW[how]
    options = {} if launcher is None else {"launcher": launcher}
    process = start_process("train_target", *LONG, *words, **options)
    while not list(store.glob("work/target/*/state.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (folder,) = store.glob("runs/train_target/*")
    pids = [told(folder)["pid"], told(folder / "rank1")["pid"]]
    os.kill(pids[rank], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    started = time.monotonic()
    while alive(pids[1 - rank]):
        assert time.monotonic() - started < 60, "the other goes on alone"
        time.sleep(0.1)
    own = told(folder if rank else folder / "rank1")
    assert own["state"] in ("failed", "preempted") and not list(Store(store).list("target"))
    if own["state"] == "failed":
        assert errors.count("stopped: another of the 2 processes") == 1
        assert process.returncode in (RANK, 1, -9), "torchrun ends with 1; -9 where the one killed was asked for"
    test_parallel.finish(start_process("train_target", *LONG, *words, **options))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert sorted(set(steps)) == list(range(1, 61)) and len(steps) <= 61, "at most one epoch was done twice"
    assert {line["attempt"] for line in lines} == {1, 2}


def alive(pid):
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


# ------------------------------------------------------------------------------------------------ one run


WHOLE = (*test_parallel.SMALL, "evaluators.main.architecture.widths=[4,8]", "evaluators.main.recipe.epochs=4")
WHOLE += ("metrics=privacy", "metrics.accuracy.stages=[]", "~metrics.kid", "~metrics.fid", "~metrics.prdc")


@pytest.mark.slow
def test_two_ranks_judge_the_same_bits_as_one_and_are_one_run_each(start_process, store, tmp_path, monkeypatch):
    """Of targets, priors, attacks and rows alike: one folder, one run of W&B."""
    (tmp_path / "wandb").mkdir()
    folders = {f"WANDB_{name}": str(tmp_path / "wandb") for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR")}
    offline = {"WANDB_MODE": "offline", "NETRC": str(tmp_path / "no-netrc"), **folders}
    test_parallel.finish(
        start_process("evaluate", *WHOLE, launcher=test_parallel.TORCHRUN, **offline),
    )
    alone = tmp_path / "alone"
    test_parallel.finish(start_process("evaluate", *WHOLE, store=alone))
    both = [{a.reference: a for a in Store(folder).list()} for folder in (store, alone)]
    assert both[0].keys() == both[1].keys() and {a.kind for a in both[0].values()} >= {"target", "recovered", "result"}
    for reference, artefact in both[0].items():
        for name in ("tensors.safetensors", "config.yaml"):
            files = [found[reference].path / name for found in both]
            assert [path.exists() for path in files] in ([True, True], [False, False]), reference
            assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes(), f"{reference}: {name}"
        if artefact.kind == "result":
            assert artefact.metrics["metrics"] == both[1][reference].metrics["metrics"]
    runs = [path.parent.name for path in store.glob("runs/*/*/config.json")]
    assert len(runs) == len(set(runs)) == len(both[0]), "one folder for each piece of work"
    logs = [path.name.split("-", 4)[-1] for path in tmp_path.rglob("offline-run-*") if path.is_dir()]
    assert len(logs) == len(set(logs)) == len(both[0]), "one tracked run for each piece of work"
