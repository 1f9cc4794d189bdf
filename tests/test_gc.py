"""`midefense gc`: what no row needs is listed with its size, and what is named goes, whole or not at all."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
import torch

from midefense.commands.gc import run
from midefense.store import claims, garbage, sweeps
from midefense.store import store as store_module
from midefense.store.artefacts import Artefact, Draft
from midefense.store.garbage import collect, delete
from midefense.store.lineage import lineage
from midefense.store.store import Store
from midefense.training.recipe import Imported
from midefense.types import Refused

DEAD = json.dumps({"host": "elsewhere", "pid": 1, "time": 0.0, "token": "0"})


@pytest.fixture
def shelf(tmp_path):
    return Store(tmp_path / "store")


def draft(kind, name, parents=None, **recipe) -> Draft:
    return Draft(kind=kind, name=name, recipe={"kind": kind, "name": name, **recipe}, **lineage(parents or {}))


def made(shelf, kind, name, parents=None, **recipe) -> Artefact:
    wanted = draft(kind, name, parents, **recipe)
    return shelf.work(wanted).finish({"weight": torch.zeros(3)}, {})


def study(shelf, name="a") -> dict[str, Artefact]:
    """A row, and all that it needs: nothing of it names the prior but what was prepared."""
    target, judge = made(shelf, "target", f"{name}-target"), made(shelf, "target", f"{name}-judge")
    prior = made(shelf, "prior", f"{name}-prior", {"target": target})
    prepared = made(shelf, "prepared", f"{name}-prepared", {"target": target, "prior": prior})
    recovered = made(shelf, "recovered", f"{name}-recovered", {"target": target, "prepared": prepared})
    row = made(shelf, "result", f"{name}-row", {"recovered": recovered, "evaluator.main": judge})
    return {one.name: one for one in (target, judge, prior, prepared, recovered, row)}


def names(found) -> list[str]:
    return [item.name for item in found.items]


def gc(shelf, *words) -> int:
    return run(["--store", str(shelf.root), *words])


def there(shelf) -> set[str]:
    return {artefact.reference for artefact in shelf.list()}


# ------------------------------------------------------------------------------------------------ what is listed


def test_what_a_row_goes_back_to_stays_and_the_rest_is_listed(shelf, capsys):
    needed = study(shelf)
    spare = made(shelf, "target", "spare")
    attacked = made(shelf, "recovered", "unjudged", {"target": spare, "prior": needed["a-prior"]})
    assert names(collect(shelf)) == [attacked.reference, spare.reference], "a child before what it was made from"
    assert gc(shelf) == 0
    said = capsys.readouterr().out
    assert re.search(rf"artefact +0.00 MB  {spare.reference}", said) and "2 that no row needs, 0.00 MB" in said
    assert there(shelf) == {one.reference for one in (*needed.values(), spare, attacked)}, "looking deletes nothing"


def test_without_a_row_nothing_is_needed_but_what_is_kept(shelf):
    target = made(shelf, "target", "kept")
    prior = made(shelf, "prior", "learned", {"target": target})
    assert names(collect(shelf)) == [prior.reference, target.reference]
    assert names(collect(shelf, [prior])) == []


def test_finished_points_of_sweeps_need_what_they_are_there_for(shelf):
    target, other = made(shelf, "target", "of-a-point"), made(shelf, "target", "failed-point")
    for point, one, state in (("a", target, sweeps.FINISHED), ("b", other, sweeps.FAILED)):
        sweeps.keep(shelf.root / "sweeps" / "s", point, sweeps.Outcome("p", state, reference=one.reference))
    assert names(collect(shelf)) == [other.reference]


@pytest.mark.parametrize("recipe", [{"recipe": {"_target_": "midefense.recipe.Imported"}}, {"imported": {"a": "b"}}])
def test_what_was_brought_in_by_hand_stays_with_what_it_needs(shelf, recipe):
    asked = made(shelf, "target", "asked")
    brought = made(shelf, "prior", "brought", {"target": asked}, **recipe)
    found = collect(shelf)
    assert found.items == () and set(found.kept) == {brought.reference, asked.reference}
    assert Imported.__qualname__ == garbage.IMPORTED.removeprefix(".")


def test_rows_of_all_folders_count_and_only_the_first_loses_anything(tmp_path):
    front, behind = Store(tmp_path / "front"), Store(tmp_path / "behind")
    target = made(front, "target", "shared")
    made(behind, "result", "row", {"target": target})
    lonely = made(behind, "target", "lonely")
    both = Store([front.root, behind.root])
    assert names(collect(both)) == [] and list(collect(both).kept) == [lonely.reference]
    assert names(collect(front)) == [target.reference]


def test_an_artefact_of_which_nobody_knows_what_it_needs_stops_all(shelf, capsys):
    row = study(shelf)["a-row"]
    (row.path / "provenance.json").write_text("{}")
    assert gc(shelf) == 1
    assert f"try `midefense store rm {row.reference}`" in capsys.readouterr().err


def test_artefacts_that_were_made_from_each_other_are_refused(shelf, monkeypatch):
    one, other = made(shelf, "target", "one"), made(shelf, "target", "other")
    parents = {one.reference: {(other.kind, other.id)}, other.reference: {(one.kind, one.id)}}
    monkeypatch.setattr(garbage, "_parents", lambda artefact: parents[artefact.reference])
    with pytest.raises(Refused, match="goes back to itself"):
        collect(shelf)


# ------------------------------------------------------------------------------------------------ what is deleted


def test_exactly_the_list_that_was_shown_goes(shelf, capsys):
    needed = study(shelf)
    spare = made(shelf, "target", "spare")
    gc(shelf)
    digest = re.search(r"--delete (\w+)$", capsys.readouterr().out).group(1)
    later = made(shelf, "target", "later")
    assert gc(shelf, "--delete", digest) == 1, "the list is another one by now"
    assert "the store may have changed" in capsys.readouterr().err and len(there(shelf)) == len(needed) + 2
    shelf.remove(later.path)
    assert gc(shelf, "--delete", digest) == 0
    assert f"{spare.reference}\n1 deleted" in capsys.readouterr().out
    assert there(shelf) == {one.reference for one in needed.values()}


def test_names_go_alone_where_nothing_that_stays_needs_them(shelf, capsys):
    study(shelf)
    target, other = made(shelf, "target", "spare"), made(shelf, "target", "other")
    child = made(shelf, "recovered", "child", {"target": target})
    needed = there(shelf) - {target.reference, other.reference, child.reference}
    assert gc(shelf, "--delete", target.reference) == 1
    assert f"got {child.reference}, which was made from it" in capsys.readouterr().err
    assert gc(shelf, "--delete", min(needed)) == 1, "what a row needs is not on the list"
    assert gc(shelf, "--delete", target.reference, child.reference) == 0
    assert there(shelf) == needed | {other.reference}


def test_nothing_goes_while_somebody_works(shelf, capsys):
    spare = made(shelf, "target", "spare")
    with shelf.work(draft("recovered", "begun")).claim("group-00000"):
        assert gc(shelf, "--delete", collect(shelf).digest) == 1
    assert "nobody works, got a claim of process" in capsys.readouterr().err and there(shelf) == {spare.reference}
    claim = shelf.root / "sweeps" / "s" / "claims" / "point"
    claim.parent.mkdir(parents=True)
    claim.write_text(DEAD)
    assert gc(shelf, "--delete", collect(shelf).digest) == 1, "of another host, and fresh"
    store_module.shutil.rmtree(shelf.root / "sweeps")
    assert gc(shelf, "--delete", collect(shelf).digest) == 0 and there(shelf) == set()


def begun(shelf, host, pid, age):
    """Work on an artefact, and its claim, as a process left it that was heard of `age` seconds ago."""
    work = shelf.work(draft("target", "begun"))
    work.save("state", {"weight": torch.zeros(3)})
    claim = work.folder / "all.claim"
    claim.write_text(json.dumps({"host": host, "pid": pid, "time": time.time() - age}))
    os.utime(claim, (time.time() - age, time.time() - age))
    return work, claim


def test_a_stopped_process_keeps_its_work(shelf, capsys):
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            work, claim = begun(shelf, socket.gethostname(), process.pid, 1e6)
            digest = collect(shelf, unfinished=True).digest
            assert gc(shelf, "--unfinished", "--delete", digest) == 1 and work.has("state")
            assert f"got a claim of process {process.pid} on" in (told := capsys.readouterr().err)
            assert "kill -CONT" in told and told.endswith(f"rm -r {claim}\n")
        finally:
            process.kill()
    assert gc(shelf, "--unfinished", "--delete", digest) == 0 and not work.folder.exists(), "it is dead"


@pytest.mark.parametrize("age", [600, -600], ids=["behind", "ahead"])
@pytest.mark.parametrize("beats", [True, False])
def test_another_host_is_listened_to_whatever_its_clock_says(age, beats, shelf, monkeypatch):
    work, claim = begun(shelf, "elsewhere", 1, age)
    made(shelf, "target", "spare")
    looks = []

    def look(seconds):
        looks.append(seconds)
        if beats and len(looks) == 10:  # five seconds later
            os.utime(claim, (time.time() - age, time.time() - age))

    monkeypatch.setattr(claims.time, "sleep", look)
    digest = collect(shelf, unfinished=True).digest
    assert gc(shelf, "--unfinished", "--delete", digest) == int(beats) and work.has("state") is beats
    assert len(looks) == (10 if beats else claims.LOOKS), "once, not for each of what goes"
    assert claims.LOOKS * claims.LOOK_SECONDS > 2 * claims.HEARTBEAT_SECONDS


def test_a_claim_that_is_given_back_meanwhile_stops_nothing(shelf, monkeypatch):
    made(shelf, "target", "spare")
    _, claim = begun(shelf, socket.gethostname(), os.getpid(), 0)
    looks, usual = [], claims._at_work

    def given_back_at_the_second_look(path):
        looks.append(usual(path))
        if len(looks) == 2:
            claim.unlink()
        return looks[-1]

    monkeypatch.setattr(claims, "_at_work", given_back_at_the_second_look)
    assert gc(shelf, "--delete", collect(shelf).digest) == 0 and there(shelf) == set() and looks == [True, True]


def test_a_claim_that_comes_meanwhile_stops_the_rest(shelf):
    for name in "ab":
        made(shelf, "target", name)
    work = shelf.work(draft("recovered", "begun"))
    going = delete(shelf, collect(shelf).items)
    next(going)
    with work.claim("all"), pytest.raises(Refused, match="nobody works"):
        next(going)
    assert len(there(shelf)) == 1


@pytest.mark.parametrize("unfinished", [False, True])
def test_unfinished_work_goes_only_where_it_is_asked_for(shelf, unfinished):
    work = shelf.work(draft("target", "begun"))
    work.save("state", {"weight": torch.zeros(3)})
    done = made(shelf, "target", "done")
    late = shelf.work(draft("target", "done"))
    late.save("state", {"weight": torch.zeros(3)})  # of a process that was slower
    found = collect(shelf, [done], unfinished)
    assert names(found) == [f"work/target/{done.id}", *([f"work/target/{work.draft.id}"] if unfinished else [])]
    list(delete(shelf, found.items))
    assert work.has("state") is not unfinished and not late.has("state") and there(shelf) == {done.reference}


def test_a_crash_leaves_no_half_that_could_be_taken_for_whole(shelf, monkeypatch):
    spare = made(shelf, "target", "spare")

    def interrupted(folder):
        (folder / "tensors.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", interrupted)
        list(delete(shelf, collect(shelf).items))
    assert there(shelf) == set() and shelf.broken() == {} and shelf.find(draft("target", "spare")) is None
    (left,) = collect(shelf).items
    assert left.what == garbage.LEFT and left.path.parent == spare.path.parent
    list(delete(shelf, [left]))
    assert list(spare.path.parent.iterdir()) == []


def test_no_link_is_followed_out_of_the_store(shelf, tmp_path):
    outside = Store(tmp_path / "outside")
    whole = made(outside, "prior", "elsewhere")
    other = made(outside, "target", "elsewhere")
    outside.work(draft("cloud", "begun")).save("state", {"weight": torch.zeros(3)})
    (outside.root / "prior" / ".writing-x@h0-0").mkdir()
    (shelf.root / "target").mkdir(parents=True)
    (shelf.root / "prior").symlink_to(outside.root / "prior")
    (shelf.root / "target" / other.path.name).symlink_to(other.path)
    (shelf.root / "target" / ".removed-y").symlink_to(outside.root)
    (shelf.root / "work").symlink_to(outside.root / "work")
    spare = made(shelf, "recovered", "spare")
    (spare.path / "more").symlink_to(outside.root)
    before = sorted(outside.root.rglob("*"))
    found = collect(shelf, unfinished=True)
    assert names(found) == [spare.reference] and set(found.kept) == {whole.reference, other.reference}
    assert found.size < 10_000
    list(delete(shelf, found.items))
    assert sorted(outside.root.rglob("*")) == before and not spare.path.exists()


def test_what_became_a_link_since_it_was_listed_stays(shelf, tmp_path):
    spare = made(shelf, "target", "spare")
    items = collect(shelf).items
    spare.path.rename(tmp_path / "moved")
    spare.path.symlink_to(tmp_path / "moved")
    with pytest.raises(Refused, match="got a link"):
        list(delete(shelf, items))
    assert (tmp_path / "moved" / "provenance.json").exists()
