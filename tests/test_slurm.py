"""A sweep as jobs of Slurm's: what is handed in, and a real Slurm of one node that kills a job and requeues it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import conftest
import pytest
import yaml

from midefense.commands.main import main
from midefense.store.store import Store
from midefense.studies import slurm
from midefense.types import Refused

ARGUMENTS = "${args_no_hyphens}"


def a_sweep(path, epochs, rates):
    words = ["dataset=toy", "architecture=mlp", "architecture.widths=[8]", f"recipe.epochs={epochs}", "tracking=none"]
    command = ["${program}", *words, "compute=slurm", "compute.accelerator=cpu", ARGUMENTS]
    varied = {"recipe.optimizer.lr": {"values": rates}}
    said = {"program": "train_target.py", "method": "grid", "command": command, "parameters": varied}
    path.write_text(yaml.safe_dump(said))
    return path


# ------------------------------------------------------------------------------------------------ what is handed in


@pytest.fixture
def handed_in(monkeypatch):
    """What a double of submitit was given: its folder, the options and the work of each job."""
    given = types.SimpleNamespace(folder=None, options={}, work=[])

    class Executor:
        def __init__(self, folder, cluster):
            assert cluster == "slurm"
            given.folder = folder

        def update_parameters(self, **options):
            if "slurm_nonsense" in options:
                raise NameError("Unexpected argument(s): 'slurm_nonsense'")
            given.options = options

        def submit(self, work):
            given.work.append(work)
            return types.SimpleNamespace(job_id=str(len(given.work)))

    errors = types.SimpleNamespace(utils=types.SimpleNamespace(FailedJobError=RuntimeError))
    monkeypatch.setattr(slurm, "library", lambda: types.SimpleNamespace(AutoExecutor=Executor, core=errors))
    return given


def test_each_job_runs_the_same_command_on_the_same_store(handed_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = a_sweep(tmp_path / "sweep.yaml", 1, [0.01, 0.02])
    words = ["sweep", "sweep.yaml", "seed=3", "--jobs", "2", "--workers", "3", "--job", "timeout_min=60"]
    assert main([*words, "--job", "slurm_partition=gpu", "--store", "store"]) == 0
    assert handed_in.options == {"name": "midefense", "timeout_min": 60, "slurm_partition": "gpu"}
    command = ["sweep", str(path), "seed=3", "--workers", "3", "--seed", "0", "--store", str(tmp_path / "store")]
    assert [work.words for work in handed_in.work] == [command, command]
    assert "handed in 2 jobs: 1, 2; logs in " in capsys.readouterr().out
    assert handed_in.folder.is_absolute() and not list(tmp_path.glob("store/target/*")), "nothing is computed here"


def test_what_slurm_has_not_is_refused(handed_in, tmp_path, capsys):
    path = a_sweep(tmp_path / "sweep.yaml", 1, [0.01, 0.02])
    words = ["sweep", str(path), "--jobs", "1", "--store", str(tmp_path / "store"), "--job"]
    assert main([*words, "slurm_nonsense=1"]) == 1
    assert "refused: --job: expected what submitit and Slurm take" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "nonsense"])
    assert "expected KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "ends"), [(0, True), (1, True), (143, False), (-9, False)])
def test_a_job_is_done_when_its_sweep_went_through_all_points(monkeypatch, code, ends):
    monkeypatch.setattr(subprocess, "run", lambda command: types.SimpleNamespace(returncode=code))
    if ends:
        assert slurm.Worker(["sweep", "x"])() == code
    else:
        with pytest.raises(RuntimeError, match=f"exit code {code}"):
            slurm.Worker(["sweep", "x"])()


def test_without_submitit_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(Refused, match="midefense\\[slurm\\]"):
        slurm.library()


# ------------------------------------------------------------------------------------------------ a real one

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "sacct")
SECONDS = 900  # of a machine that others use too


def require_slurm():
    """Debian's Slurm, installed where it is missing and can be had."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.getuid() or not shutil.which("apt-get"):
        pytest.skip("no Slurm here, and no root who could install it: apt-get install slurm-wlm munge")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
        done = subprocess.run(["apt-get", *words], capture_output=True, text=True, env=environment)
        if done.returncode:
            pytest.skip(f"no Slurm here, and none to be had: apt-get {words[0]} said {done.stderr.strip()[-200:]}")


def a_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def cluster(monkeypatch):
    """A Slurm of one node on this machine, with its files in a folder of its own; it ends with the test."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'midefense[slurm]'")
    require_slurm()
    # a socket's path has at most 107 characters, fewer than a test's folder has
    folder = Path(subprocess.run(["mktemp", "-d", "/tmp/slurm.XXXXXX"], capture_output=True, text=True).stdout.strip())
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, controller=a_port(), node=a_port())
    )
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    places = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    commands = [["munged", "-F", "--force", f"--socket={folder}/munge.socket", *places]]
    commands += [["slurmctld", "-D"], ["slurmd", "-D", "-N", host]]
    started = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.said", "w") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(1)
        wait_for(lambda: "idle" in asked("sinfo", "-h", "-o", "%t"), "a node that is idle", folder)
        yield folder
    finally:
        subprocess.run(["scancel", "--user", "root"], capture_output=True)
        time.sleep(1)
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def asked(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout


def wait_for(condition, what, folder, seconds=SECONDS):
    started = time.monotonic()
    while not condition():
        said = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in folder.glob("*.said"))
        assert time.monotonic() - started < seconds, f"expected {what}\n{said}\n{asked('scontrol', 'show', 'job')}"
        time.sleep(0.5)


def field(job, name):
    """What `scontrol` says of a job."""
    words = asked("scontrol", "show", "job", job).split()
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS)
def test_a_job_that_slurm_kills_goes_on_when_it_is_requeued(cluster, tmp_path, bytecode, monkeypatch):
    path, store = a_sweep(tmp_path / "sweep.yaml", 120, [0.001, 0.002, 0.003]), tmp_path / "store"
    for name, value in conftest.process_environment(bytecode, OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "midefense", "sweep", str(path), "--store", str(store), "--jobs", "1"]
    options = ["--job", "timeout_min=60", "--job", "cpus_per_task=1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "handed in 1 jobs: " in done.stdout, done.stderr
    job = done.stdout.partition("handed in 1 jobs: ")[2].partition(";")[0]
    wait_for(lambda: len(Store(store).list("target")) >= 1, "a target", cluster)
    wait_for(lambda: list(store.glob("work/target/*/state.safetensors")), "a training at work", cluster)
    before = {target.reference: target.path.stat().st_mtime_ns for target in Store(store).list("target")}
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for(lambda: field(job, "JobState") != "RUNNING", "a job that is killed", cluster)
    assert field(job, "Requeue") == "1" and len(Store(store).list("target")) < 3
    wait_for(lambda: field(job, "JobState") == "PENDING", "a job that waits anew", cluster)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait_for(lambda: field(job, "JobState") == "COMPLETED", "a job that is done", cluster)
    assert field(job, "Restarts") == "1" and field(job, "ExitCode") == "0:0"
    targets = {target.reference: target.path.stat().st_mtime_ns for target in Store(store).list("target")}
    assert len(targets) == 3 and {name: targets[name] for name in before} == before, "what was made was not made again"
    last = subprocess.run(command[:-2], capture_output=True, text=True, cwd=tmp_path)
    assert "3 finished (3 were there)" in last.stdout
