"""The store: ids, files that are whole or absent, claims, and the command line that looks after it."""

import builtins
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from midefense.commands.store import run as command
from midefense.store import artefacts, claims
from midefense.store import store as store_module
from midefense.store.artefacts import Artefact, Draft, content_id
from midefense.store.store import Store
from midefense.types import Refused

FILES = ("tensors.safetensors", "config.yaml", "metrics.json", "provenance.json")
TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}


def draft(name="toy", kind="target", parents=None, **recipe) -> Draft:
    return Draft(kind=kind, name=name, recipe={"kind": kind, **recipe}, parents=parents or {}, command="python make.py")


@pytest.fixture
def shelf(tmp_path):
    return Store(tmp_path / "store")


def made(shelf: Store, wanted: Draft) -> Artefact:
    return shelf.work(wanted).finish(TENSORS, {"accuracy": 0.5}, bill={"queries": 3})


def files(shelf: Store) -> list[str]:
    return sorted(str(path.relative_to(shelf.root)) for path in shelf.root.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------ ids


def test_an_id_is_the_hash_of_the_recipe():
    assert content_id({"b": [1, 2], "a": 0.5}) == content_id({"a": 0.5, "b": (1, 2)}) == "he6ed64e48f9"
    assert content_id({"a": 1}) != content_id({"a": 2}) != content_id({"a": "2"})
    assert content_id({"a": True}) != content_id({"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_id({"a": float("nan")})


def test_names_parents_places_and_commands_are_no_part_of_the_id():
    plain = draft(seed=1)
    other = replace(plain, name="x", names={"a": "b"}, parents={"p": "q"}, places={"root": "/data"}, command="make")
    assert other.id == plain.id != draft(seed=2).id


def test_an_artefact_gives_back_what_was_put_in(shelf):
    artefact = made(shelf, draft(seed=1, nested={"b": 1, "a": [1, 2]}))
    found = shelf.find(draft(seed=1, nested={"a": [1, 2], "b": 1}))
    assert (
        found.path == artefact.path
        and found.reference == f"target/toy@{draft(seed=1, nested=found.recipe['nested']).id}"
    )
    assert found.recipe == {"kind": "target", "seed": 1, "nested": {"a": [1, 2], "b": 1}}
    assert found.metrics == {"accuracy": 0.5} and found.provenance["bill"] == {"queries": 3}
    assert all(torch.equal(found.tensors()[name], value) for name, value in TENSORS.items())
    assert sorted(path.name for path in found.path.iterdir()) == sorted(FILES)
    assert shelf.find(draft(seed=2)) is None


def test_the_same_recipe_under_another_name_is_the_same_artefact(shelf):
    artefact = made(shelf, draft("first", seed=1))
    assert shelf.find(draft("second", seed=1)).path == artefact.path


# ------------------------------------------------------------------------------------------------ whole or absent


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_between_two_files_leaves_nothing_to_be_found(shelf, monkeypatch, writes):
    wanted, real, count = draft(seed=1), store_module.write_whole, 0

    def write(path, content):
        nonlocal count
        if count == writes:
            raise Killed
        count += 1
        real(path, content)

    monkeypatch.setattr(store_module, "write_whole", write)
    with pytest.raises(Killed):
        made(shelf, wanted)
    assert shelf.find(wanted) is None and shelf.list() == [] and list(shelf.check()) == []
    monkeypatch.undo()
    assert shelf.find(wanted) is None
    assert made(shelf, wanted).metrics == {"accuracy": 0.5}
    assert len(files(shelf)) == len(FILES)


def test_saved_work_is_whole_and_cleared_at_the_end(shelf, monkeypatch):
    wanted = draft(seed=1)
    work = shelf.work(wanted)
    assert work.load("state") is None and not work.has("state")
    work.save("state", TENSORS, {"step": 3})
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        work.save("state", {"weight": torch.zeros(1)}, {"step": 4})
    monkeypatch.undo()
    assert work.notes("state") == {"step": 3} and torch.equal(work.load("state")["weight"], TENSORS["weight"])
    work.finish({}, {})
    assert not work.has("state") and len(files(shelf)) == len(FILES)


def test_the_seconds_of_all_attempts_are_summed_up_to_what_each_saved_last(shelf, monkeypatch):
    now, wanted = [0.0], draft(seed=1)
    monkeypatch.setattr(store_module, "clock", lambda: now[0])

    def attempt(*saves, read=()):
        """A process that reads what is there, and saves (after so many seconds, name)."""
        work = shelf.work(wanted)
        for name in read:
            assert work.notes(name) == {}
        for seconds, name in saves:
            now[0] += seconds
            work.save(name, TENSORS)
        return work

    attempt((10, "state"), (5, "state"))
    now[0] += 7  # killed, seven seconds behind its last save
    attempt((20, "state"), read=["state"])
    now[0] += 1000  # nobody works
    work = attempt((2, "piece"), read=["state"])
    now[0] += 3
    assert work.finish({}, {}).provenance["seconds"] == 15 + 20 + 2 + 3


SPOILT = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "no header": lambda content: b"\xff" * 64,
    "a pickle": lambda content: b"\x80\x04K\x01.",
    "one bit of a tensor": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "one bit of the notes": lambda content: content.replace(b"step", b"stop", 1),
    "foreign": lambda content: safetensors.torch.save(TENSORS),
}


@pytest.mark.parametrize("spoil", [*SPOILT, "a folder"])
def test_a_spoilt_state_is_set_aside_and_the_work_begins_anew(shelf, capsys, spoil):
    work = shelf.work(draft(seed=1))
    work.save("state", TENSORS, {"step": 3})
    file = work.folder / "state.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.mkdir() if spoil == "a folder" else file.write_bytes(SPOILT[spoil](content))
    assert work.load("state") is None and not work.has("state")
    said = capsys.readouterr().err
    (aside,) = work.folder.glob(".spoilt-state-*")
    assert work.draft.reference in said and str(file) in said and f"set aside as {aside}, begun anew" in said
    work.save("state", TENSORS, {"step": 4})
    assert work.notes("state") == {"step": 4} and torch.equal(work.load("state")["weight"], TENSORS["weight"])


def test_who_finishes_second_gets_what_the_first_made(shelf):
    wanted = draft(seed=1)
    first = shelf.work(wanted).finish(TENSORS, {"by": "first"})
    second = shelf.work(wanted).finish(TENSORS, {"by": "second"})
    assert second.path == first.path and second.metrics == {"by": "first"}
    assert len(files(shelf)) == len(FILES)


# ------------------------------------------------------------------------------------------------ claims


def test_a_claim_is_exclusive_and_given_back(shelf):
    work = shelf.work(draft(seed=1))
    with work.claim("all") as mine, shelf.work(draft(seed=1)).claim("all") as yours, work.claim("other") as other:
        assert (mine, yours, other) == (True, False, True)
    assert files(shelf) == []
    with work.claim("all") as again:
        assert again
    with pytest.raises(Killed), work.claim("all"):
        raise Killed
    assert files(shelf) == []


def claim_of(shelf, host, pid, age):
    """A claim file as another process would have left it."""
    work = shelf.work(draft(seed=1))
    work.folder.mkdir(parents=True)
    path = work.folder / "all.claim"
    path.write_text(json.dumps({"host": host, "pid": pid, "time": time.time() - 200}))
    os.utime(path, (time.time() - age, time.time() - age))
    return work


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("host", "pid", "age", "taken"),
    [
        pytest.param("here", "dead", 0, True, id="its process is dead"),
        pytest.param("here", "alive", 30, False, id="its process lives"),
        pytest.param("here", "alive", 1e6, True, id="silent for long: its number went to another process"),
        pytest.param("elsewhere", "alive", claims.STALE_SECONDS + 5, True, id="another host fell silent"),
        pytest.param("elsewhere", "alive", claims.STALE_SECONDS - 30, False, id="another host was heard lately"),
    ],
)
def test_a_claim_left_behind_is_taken_over(shelf, host, pid, age, taken):
    host = socket.gethostname() if host == "here" else "another-host"
    work = claim_of(shelf, host, dead_pid() if pid == "dead" else os.getpid(), age)
    with work.claim("all") as mine:
        assert mine is taken
    assert (work.folder / "all.claim").exists() is not taken


def test_a_claim_whose_writer_was_killed_does_not_block_for_ever(shelf):
    work = claim_of(shelf, "here", 1, 0)
    path = work.folder / "all.claim"
    path.write_text("")
    with work.claim("all") as mine:
        assert not mine  # it may be being written right now
    os.utime(path, (0, 0))
    with work.claim("all") as mine:
        assert mine


@pytest.mark.parametrize(
    "content",
    [b"[]", b"5", b"null", b'{"host": 1}', b'{"host": "HERE", "pid": "x"}', b'{"host": "HERE", "pid": -1}', b"\xff\xfe"]
    + [b'{"host": "HERE", "pid": 1e99}', b'{"host": "HERE", "pid": 99999999999999999999}', b"[" * 100_000, None],
)
def test_a_malformed_claim_does_not_block_for_ever(shelf, content):
    """None: a folder in its place."""
    work = claim_of(shelf, "here", 1, 0)
    path = work.folder / "all.claim"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content.replace(b"HERE", socket.gethostname().encode()))
    with work.claim("all") as mine:
        assert not mine  # it may be being written right now
    os.utime(path, (0, 0))
    with work.claim("all") as mine:
        assert mine


def test_a_claim_from_the_future_is_taken_when_it_does_not_change(shelf, monkeypatch):
    work = claim_of(shelf, "another-host", 1, -1e7)
    path, now = work.folder / "all.claim", time.monotonic()
    for later, beats, taken in ((0, False, False), (50, True, False), (100, False, False), (111, False, True)):
        monkeypatch.setattr(claims.time, "monotonic", lambda later=later: now + later)
        if beats:
            os.utime(path, (time.time() + 2e7, time.time() + 2e7))
        with work.claim("all") as mine:
            assert mine is taken, later


def test_who_waits_is_told_for_whom(shelf, capsys):
    work = claim_of(shelf, "another-host", 17, 0)
    work.say_waiting()
    said, held = capsys.readouterr().err, ", for 3 min now"
    assert said == (
        f"waiting for another process that makes {work.draft.reference}: process 17 on another-host, see "
        f"{work.folder / 'all.claim'}{held}\n"
    )


def test_a_claim_beats_while_it_is_held(shelf, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    work = shelf.work(draft(seed=1))
    with work.claim("all"):
        path = work.folder / "all.claim"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 120
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
    assert not any(thread.name == "claim-heartbeat" for thread in threading.enumerate())


def test_a_takeover_leaves_what_a_faster_process_took(shelf, monkeypatch):
    work = claim_of(shelf, socket.gethostname(), dead_pid(), 0)
    path, stale, fresh = work.folder / "all.claim", claims._stale, json.dumps({"host": "elsewhere", "pid": 1})

    def overtaken(claim):
        """Judges the old claim; before this process can act on it, another one has taken it over."""
        verdict = stale(claim)
        if claim == path and verdict:
            path.write_text(fresh)
        return verdict

    monkeypatch.setattr(claims, "_stale", overtaken)
    with work.claim("all") as mine:
        assert not mine
    assert [file.name for file in work.folder.iterdir()] == ["all.claim"] and path.read_text() == fresh


def test_a_takeover_cut_off_does_not_block_for_ever(shelf):
    work = claim_of(shelf, socket.gethostname(), dead_pid(), 0)
    turn = work.folder / ".all.claim.turn"
    turn.touch()
    with work.claim("all") as mine:
        assert not mine
    os.utime(turn, (0, 0))
    with work.claim("all") as mine:
        assert mine


def test_many_threads_take_a_stale_claim_once(shelf):
    work = claim_of(shelf, socket.gethostname(), dead_pid(), 0)
    together, taken = threading.Barrier(8), []

    def take():
        together.wait()
        with work.claim("all") as mine:
            taken.append(mine)
            together.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
    assert files(shelf) == []


def test_a_lost_claim_is_neither_kept_fresh_nor_given_back(shelf, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    work = shelf.work(draft(seed=1))
    path = work.folder / "all.claim"
    with work.claim("all"):
        path.write_text("of another process")
        os.utime(path, (0, 0))
        time.sleep(0.1)
    assert path.read_text() == "of another process" and path.stat().st_mtime == 0


def test_work_survives_its_folder_being_cleared(shelf, monkeypatch):
    work = shelf.work(draft(seed=1))
    write_whole = store_module.write_whole

    def cleared_first(path, content):
        monkeypatch.undo()
        shutil.rmtree(work.folder)
        write_whole(path, content)

    with work.claim("all") as mine:
        assert mine
        monkeypatch.setattr(store_module, "write_whole", cleared_first)
        work.save("state", TENSORS)
        assert torch.equal(work.load("state")["weight"], TENSORS["weight"])
        shutil.rmtree(work.folder)
        assert work.load("state") is None
        with work.claim("all") as again:
            assert again
    assert files(shelf) == []


def test_seats_are_numbered_from_zero_and_used_again(shelf):
    work = shelf.work(draft(seed=1))
    with work.seat() as first:
        with work.seat() as second:
            assert (first, second) == (0, 1)
        with work.seat() as third:
            assert third == 1


def test_many_threads_make_it_once(shelf, capsys):
    wanted, calls, results = draft(seed=1), [], []

    def make(work):
        calls.append(threading.get_ident())
        time.sleep(0.3)
        return work.finish(TENSORS, {})

    threads = [threading.Thread(target=lambda: results.append(shelf.get_or_make(wanted, make))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and {artefact.path for artefact in results} == {results[0].path} and len(results) == 6
    assert "waiting for another process that makes target/toy@" in capsys.readouterr().err


def test_missing_fail_names_the_command(shelf):
    wanted = draft(seed=1)
    with pytest.raises(Refused, match=f"target/toy@{wanted.id} is not in .*; make it with: python make.py"):
        shelf.get_or_make(wanted, pytest.fail, missing="fail")
    artefact = made(shelf, wanted)
    assert shelf.get_or_make(wanted, pytest.fail, missing="fail").path == artefact.path


# ------------------------------------------------------------------------------------------------ opening


def test_an_artefact_opens_by_every_name(shelf, tmp_path, monkeypatch):
    artefact = made(shelf, draft("toy-cnn", seed=1))
    monkeypatch.chdir(tmp_path)
    for reference in (
        artefact.id,
        "toy-cnn",
        artefact.path.name,
        artefact.reference,
        str(artefact.path),
        "store/" + artefact.reference,
    ):
        assert shelf.open(reference, "target").path == artefact.path


def test_an_unclear_name_is_answered_with_the_choices(shelf):
    first, second = made(shelf, draft(seed=1)), made(shelf, draft(seed=2))
    names = ", ".join(sorted([first.path.name, second.path.name]))
    with pytest.raises(Refused, match=f"target=toy: expected the name of one artefact, got 2; choices: {names}"):
        shelf.open("toy", "target")
    with pytest.raises(Refused, match=r"got 'nothing'; choices: toy@"):
        shelf.open("nothing", "target")


def test_the_kind_tells_equal_names_apart(shelf):
    result, recovered = made(shelf, draft(kind="result")), made(shelf, draft(kind="recovered"))
    assert shelf.open("toy", "result").path == result.path and shelf.open("toy", "recovered").path == recovered.path
    with pytest.raises(Refused, match=f"expected a target, got result/{result.path.name}, which is a result"):
        shelf.open(result.id, "target")
    with pytest.raises(Refused, match="expected a target, got recovered/.*, which is a recovered"):
        shelf.open(str(recovered.path), "target")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("spoil", ["flip", "truncate", "remove"])
def test_every_file_is_verified(shelf, name, spoil):
    wanted = draft(seed=1)
    path = made(shelf, wanted).path / name
    content = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(flipped if spoil == "flip" else content[:-1])
    for look in (lambda: shelf.find(wanted), lambda: shelf.open(wanted.id, "target")):
        with pytest.raises(Refused, match=f"{name}.*remove"):
            look()


def test_every_byte_of_the_provenance_counts(shelf):
    path = made(shelf, draft(seed=1)).path / "provenance.json"
    content = path.read_bytes()
    for place in range(0, len(content), 17):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Refused, match="provenance.json"):
            shelf.open("toy", "target")


def test_a_forged_artefact_with_a_pickle_inside_is_not_loaded(shelf, tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "pickle")
    monkeypatch.setattr("safetensors.torch.save", lambda *_: (tmp_path / "pickle").read_bytes())
    forged = shelf.work(draft(seed=1)).finish({}, {})
    forged.verify()  # its hashes are right
    with pytest.raises(Refused, match="expected safetensors, got another format"):
        forged.tensors()


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def family(shelf):
    """A target, what was recovered from it, its result; and an unrelated target. All made within a second."""
    target = made(shelf, draft(seed=1))
    recovered = made(shelf, draft(kind="recovered", parents={"target": target.reference}))
    result = made(shelf, draft(kind="result", parents={"recovered": recovered.reference}))
    return target, recovered, result, made(shelf, draft("other", seed=2))


def test_dependants_are_found_down_every_line(shelf, family):
    target, recovered, result, other = family
    assert {a.reference for a in shelf.dependants(target.reference)} == {recovered.reference, result.reference}
    assert shelf.dependants(other.reference) == []
    prior = made(shelf, draft("zoo", kind="prior", parents={"target": target.reference}))
    prepared = made(
        shelf, draft("ape", kind="prepared", parents={"prior": prior.reference})
    )  # listed before its parent
    assert prepared.reference in {a.reference for a in shelf.dependants(target.reference)}


def test_list_and_show(shelf, family, capsys):
    assert command(["--store", str(shelf.root), "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[-1] for line in lines) == sorted(artefact.reference for artefact in family)
    assert all("MB" in line for line in lines)
    assert command(["--store", str(shelf.root), "list", "result"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [family[2].reference]
    assert command(["--store", str(shelf.root), "show", family[0].id]) == 0
    shown = capsys.readouterr().out
    assert "seed: 1" in shown and '"accuracy": 0.5' in shown and f'"id": "{family[0].id}"' in shown


def test_verify_names_what_is_broken_and_goes_on(shelf, family, capsys):
    assert command(["--store", str(shelf.root), "verify"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 checked, 0 broken"
    (family[0].path / "metrics.json").write_text("{}")
    (family[3].path / "provenance.json").write_text("{}")
    assert command(["--store", str(shelf.root), "verify"]) == 1
    out = capsys.readouterr().out
    assert out.count("BROKEN") == 2 and out.count("ok  ") == 2 and out.endswith("4 checked, 2 broken\n")
    assert "metrics.json: expected sha256" in out and "provenance.json was changed" in out
    assert command(["--store", str(shelf.root), "verify", family[1].reference]) == 0


def test_rm_names_dependants_and_removes_them_only_when_told(shelf, family, capsys):
    target, recovered, result, other = family
    assert command(["--store", str(shelf.root), "rm", target.reference]) == 1
    out = capsys.readouterr().out
    assert recovered.reference in out and result.reference in out and "nothing was removed; add --dependants" in out
    assert len(shelf.list()) == 4
    assert command(["--store", str(shelf.root), "rm", target.reference, "--dependants"]) == 0
    assert [a.reference for a in shelf.list()] == [other.reference]
    assert len(files(shelf)) == len(FILES)


def test_one_broken_provenance_does_not_hide_the_others(shelf, family, capsys):
    target, recovered, result, other = family
    (other.path / "provenance.json").write_text('{"kind": "tar')
    (recovered.path / "provenance.json").unlink()
    assert command(["--store", str(shelf.root), "list"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[-1] for line in lines if "MB" in line} == {target.reference, result.reference}
    broken = sorted(line for line in lines if line.startswith("BROKEN "))
    assert [str(path) in line for path, line in zip((recovered.path, other.path), broken, strict=True)] == [True, True]
    assert command(["--store", str(shelf.root), "list", "result"]) == 0
    assert command(["--store", str(shelf.root), "rm", recovered.path.name]) == 1, "its result still needs it"
    assert command(["--store", str(shelf.root), "rm", result.reference]) == 0
    assert command(["--store", str(shelf.root), "rm", recovered.path.name]) == 0
    assert command(["--store", str(shelf.root), "rm", f"target/{other.path.name}"]) == 0
    assert [a.reference for a in shelf.list()] == [target.reference] and shelf.broken() == {}


def test_the_command_line_refuses_with_a_sentence(shelf, family, capsys):
    assert command(["--store", str(shelf.root), "show", "nothing"]) == 1
    assert "refused: expected one artefact called nothing, got 0: none; see" in capsys.readouterr().err
    assert command(["--store", str(shelf.root), "rm", "toy"]) == 1
    assert "got 3: " in capsys.readouterr().err


def test_what_was_verified_is_not_read_again_until_it_changes(shelf, monkeypatch):
    artefact, read, hash_of = made(shelf, draft(seed=1)), [], artefacts.file_sha256
    shelf = Store(shelf.root)
    monkeypatch.setattr(artefacts, "file_sha256", lambda path: read.append(path) or hash_of(path))
    for _ in range(2):
        assert shelf.find(draft(seed=1)).id == artefact.id
        assert len(read) == len(artefact.provenance["files"])
    tensors = artefact.path / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(Refused, match="expected sha256"):
        shelf.find(draft(seed=1))


@pytest.mark.parametrize("words", [["list"], ["show", "toy-7"]], ids=lambda words: words[0])
def test_one_file_is_read_of_each_artefact_that_is_listed_and_none_of_others_than_the_one_looked_for(
    words, shelf, monkeypatch, capsys
):
    count = 12
    for number in range(count):
        made(shelf, draft(name=f"toy-{number}", seed=number))
    opened = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *rest, **how: opened.append(file) or real(file, *rest, **how))
    assert command(["--store", str(shelf.root), *words]) == 0
    monkeypatch.undo()
    assert "toy-7" in capsys.readouterr().out
    own = [str(file) for file in opened if shelf.root in Path(str(file)).parents]
    assert len(own) == count if words == ["list"] else {Path(file).parent.name[:6] for file in own} == {"toy-7@"}
