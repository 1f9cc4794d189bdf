"""`midefense doctor`: what it finds, with the command that mends it, and what it never does: unpickle, tell a secret,
ask the network, write."""

import json
import os
import pickle
import shlex
import socket
import urllib.request
from pathlib import Path

import folder_trees
import pytest
import sealing
import torch
from packaging.requirements import Requirement

from midefense.commands.checkup import data, machine, stored
from midefense.commands.checkup.check import FINDING, NOTE, OK, Check
from midefense.commands.doctor import run
from midefense.commands.main import main
from midefense.store import claims
from midefense.store.artefacts import Draft
from midefense.store.lineage import lineage
from midefense.store.store import Store

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def shelf(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def examined(shelf, capsys):
    """`examined(*words)`: the exit code, and the checks of the sections of `--only`."""

    def examine(*words):
        code = run(["--store", str(shelf.root), "--json", *words])
        said = json.loads(capsys.readouterr().out)
        assert said["healthy"] is (code == 0)
        return code, [Check(**check) for check in said["checks"]]

    return examine


def made(shelf, name, parents=None, places=None, content=0.0):
    kind = "prior" if parents else "target"
    known = {"recipe": {"kind": kind, "name": name}, "places": places or {}, **lineage(parents or {})}
    return shelf.work(Draft(kind=kind, name=name, **known)).finish({"weight": torch.full((3,), content)}, {})


def found(checks) -> list[Check]:
    return [check for check in checks if check.state == FINDING]


# ------------------------------------------------------------------------------------------------ the store


def test_a_store_in_order_is_healthy_and_none_is_too(shelf, examined):
    assert examined("--only", "store,disk")[0] == 0 and not shelf.root.exists(), "looking writes nothing"
    made(shelf, "child", {"target": made(shelf, "parent")})
    code, checks = examined("--only", "store,disk")
    assert code == 0 and "2 artefacts" in checks[-1].what


def provenance_broken(shelf):
    (made(shelf, "a").path / "provenance.json").write_text("{}")
    return "midefense store rm target/a@"


def file_missing(shelf):
    (made(shelf, "a").path / "tensors.safetensors").unlink()
    return "midefense store rm target/a@"


def parent_exchanged(shelf):
    parent = made(shelf, "a", content=1.0)
    made(shelf, "b", {"target": parent})
    sealing.zero(parent.path)
    return "midefense store rm prior/b@"


def data_gone(shelf):
    made(shelf, "a", places={"dataset.root": "/no/such/folder", "recipe.file": "/not/needed/again"})
    return "midefense store relocate target/a@"


def half_written(shelf):
    (made(shelf, "a").path.parent / ".writing-b@h0-0").mkdir()
    return f"midefense gc --store {shelf.root}"


def claim_of_the_dead(shelf):
    work = shelf.root / "work" / "target" / "h0"
    work.mkdir(parents=True)
    (work / "all.claim").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**31 - 1, "time": 0.0}))
    return f"rm -r {work / 'all.claim'}"


def state_set_aside(shelf):
    work = shelf.work(Draft(kind="target", name="a", recipe={"kind": "target"}))
    work.save("state", {"weight": torch.zeros(3)})
    (work.folder / "state.safetensors").write_bytes(b"no state")
    assert work.load("state") is None
    return f"rm -r {work.folder}"


@pytest.mark.parametrize(
    "spoil",
    [provenance_broken, file_missing, parent_exchanged, data_gone, half_written, claim_of_the_dead, state_set_aside],
    ids=lambda spoil: spoil.__name__,
)
def test_what_is_wrong_in_a_store_is_found_with_the_command_that_mends_it(spoil, shelf, examined):
    mend = spoil(shelf)
    code, checks = examined("--only", "store")
    (finding,) = found(checks)
    assert code == 1 and finding.mend.startswith(mend)


def test_files_are_hashed_only_where_it_is_asked_for(shelf, examined, monkeypatch):
    artefact = made(shelf, "a")
    (artefact.path / "metrics.json").write_text("{}\n")
    opened = []
    monkeypatch.setattr("midefense.store.artefacts.file_sha256", lambda path: opened.append(path) or "0" * 64)
    assert examined("--only", "store")[0] == 0 and opened == []
    monkeypatch.undo()
    code, checks = examined("--only", "store", "--deep")
    assert code == 1 and "metrics.json: expected sha256" in found(checks)[0].what


def test_the_command_of_a_finding_mends_it(shelf, examined, capsys):
    provenance_broken(shelf)
    (finding,) = found(examined("--only", "store")[1])
    program, store, *words = shlex.split(finding.mend)
    assert program == "midefense" and main([store, "--store", str(shelf.root), *words]) == 0
    assert capsys.readouterr().out.startswith("removed target/a@")
    assert found(examined("--only", "store")[1]) == []


def test_who_works_is_told_and_is_no_finding(shelf, examined):
    with shelf.work(Draft(kind="target", name="a", recipe={"kind": "target"})).claim("all"):
        code, checks = examined("--only", "store")
    assert code == 0 and any(check.what.startswith("at work, or stopped: process") for check in checks)


def test_a_process_that_is_there_is_at_work_however_silent(shelf, examined):
    claim_of_the_dead(shelf)
    (claim,) = shelf.root.rglob("*.claim")
    claim.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": 0.0}))
    os.utime(claim, (0, 0))
    code, checks = examined("--only", "store")
    assert code == 0 and any(check.what.startswith(f"at work, or stopped: process {os.getpid()}") for check in checks)


@pytest.mark.parametrize(("where", "name"), [(claims, "claims_in"), (claims, "_at_work"), (stored, "standing")])
def test_a_claim_that_is_given_back_meanwhile_is_none(where, name, shelf, examined, monkeypatch):
    claim_of_the_dead(shelf)
    (claim,) = shelf.root.rglob("*.claim")
    usual = getattr(where, name)

    def given_back(path):
        answer = usual(path)
        claim.unlink(missing_ok=True)
        return answer

    monkeypatch.setattr(where, name, given_back)
    code, checks = examined("--only", "store")
    assert code == 0 and not any(check.what.startswith(("a stale claim", "at work")) for check in checks)
    assert not claim.exists()


# ------------------------------------------------------------------------------------------------ datasets, weights


def test_a_dataset_is_absent_there_or_spoilt(tmp_path, examined, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "private"
    for number in range(12):
        folder_trees.picture(root / "ab"[number % 2] / f"{number}.png", seed=number, size=(8, 8))
    code, checks = examined("--only", "datasets", f"image_folder={root}")
    said = {check.what.partition(":")[0]: check for check in checks}
    assert code == 0 and f"12 pictures at {root}" in said["image_folder"].what
    assert said["digits"].state == OK and not said["digits"].mend
    assert f"expected at {tmp_path / 'data' / 'celeba'}" in said["celeba"].what and said["celeba"].state == NOTE
    assert said["mnist"].mend.endswith("dataset.download=true")
    (root / "a").rename(root.parent / "a")
    code, checks = examined("--only", "datasets", f"image_folder={root}")
    (finding,) = found(checks)
    assert code == 1 and finding.mend == f"midefense datasets check image_folder --root {root}"


@pytest.mark.parametrize(
    "words, told",
    [
        (["celebb=/"], "expected one of"),
        (["celeba"], "expected DATASET=DIR, got 'celeba'"),
        (["digits=/"], "digits reads no files"),
    ],
)
def test_other_words_are_refused_in_one_sentence(words, told, shelf, capsys):
    assert run(["--store", str(shelf.root), "--only", "datasets", *words]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("refused: ") and said.err.count("\n") == 1
    assert told in said.err or told == "expected one of"


def test_disk_that_is_too_small_for_what_will_be_decoded(shelf):
    assert data.disk(shelf, 0).state == OK
    assert data.disk(shelf, 1 << 60).state == FINDING


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_no_pickle_is_read(shelf, examined, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    bomb = pickle.dumps(Bomb(tmp_path / "burst"))
    artefact = made(shelf, "a")
    files = [tmp_path / "hub" / "checkpoints" / Path(address).name for address in data._addresses().values()]
    files += [shelf.root / "stylegan2" / "ffhq.safetensors", artefact.path / "tensors.safetensors"]
    files += [tmp_path / "data" / "cifar-10-batches-py" / f"data_batch_{number}" for number in range(1, 6)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bomb)
    examined("--only", "datasets,weights,store")
    code, checks = examined("--only", "datasets,weights,store", "--deep")
    assert code == 1 and not (tmp_path / "burst").exists()
    told = [check for check in found(checks) if check.section == "weights"]
    assert len(told) == len(set(data._addresses().values())) and told[0].mend.startswith("rm ")
    pickle.loads(bomb)
    assert (tmp_path / "burst").exists(), "it would have been seen"


# ------------------------------------------------------------------------------------------------ the machine


def test_secrets_are_not_told_and_nobody_is_asked(examined, home, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("nobody is asked")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(urllib.request, "urlopen", asked)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "https://me:hunter22@wandb.example")
    assert "no login" in examined("--only", "W&B")[1][0].what
    (home / "netrc").write_text(f"machine wandb.example login user password {KEY}\n")
    (home / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    code, checks = examined("--only", "W&B,variables")
    assert code == 0 and any("a login for https://***@wandb.example is there" in check.what for check in checks)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ENTITY", f"team-{KEY}")
    told = str(examined("--only", "W&B,variables"))
    assert KEY not in told and "hunter22" not in told and "WANDB_API_KEY is set" in told


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:p@ssw0rd@host/api", "https://***@host/api"),
        ("https://user:p@ss:w@rd@host", "https://***@host"),
        ("https://user@host/a@b", "https://***@host/a@b"),
        ("http://host/a and http://u:p@other", "http://host/a and http://***@other"),
        ("me@host", "me@host"),
    ],
)
def test_addresses_are_told_without_who_logs_in(text, shown):
    assert machine.without_logins(text) == shown


@pytest.mark.parametrize("word", ["OMP_NUM_THREADS=many", "MIDEFENSE_STORE= ", "WANDB_MODE=of", "WORLD_SIZE=2"])
def test_variables_that_cannot_be_meant_are_found(word, examined, monkeypatch):
    name, _, value = word.partition("=")
    assert found(examined("--only", "variables")[1]) == []
    monkeypatch.setenv(name, value)
    code, checks = examined("--only", "variables")
    assert code == 1 and [check.mend for check in found(checks)] == [f"unset {name}"]


def test_versions_against_what_is_needed_and_what_is_pinned(tmp_path):
    pins = tmp_path / "requirements.txt"
    pins.write_text('torch==1.0.0\n    # via midefense\nnumpy==0.1 ; python_full_version < "3"\npytest==0.0.1\n')
    checks = list(machine.versions(pins))
    said = {check.what.split()[0]: check for check in checks}
    assert found(checks) == [] and said["torch"].state == NOTE and said["torch"].what.endswith("pinned 1.0.0")
    assert said["numpy"].state == OK and "pytest" in said["other"].what
    assert said["torch"].mend == f"pip install -r {pins}"
    for text in ("torch>=99", "no-such-package>=1"):
        assert machine._version(Requirement(text), None, pins).mend == f"pip install '{text}'"


def test_a_finding_without_a_command_cannot_be_made():
    with pytest.raises(ValueError, match="carries the command"):
        Check("store", "something", FINDING)


def test_devices_are_told(examined, capsys):
    code, checks = examined("--only", "devices")
    assert code == 0 and "GiB of memory" in checks[0].what
    assert main(["doctor", "--only", "devices"]) == 0 and capsys.readouterr().out.endswith("nothing found\n")
