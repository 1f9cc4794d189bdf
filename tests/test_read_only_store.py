"""A store that is only read: what is in it can be looked at and found; and a store of one's own in front of it."""

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

import pytest
from conftest import plan_for

from midefense.commands.main import main
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.session import Session
from midefense.plan.compose import compose, written_folder
from midefense.store.artefacts import Draft
from midefense.store.folders import can_be_written, folders_of
from midefense.store.store import Store
from midefense.types import Refused

RUN = ("dataset=toy", "dataset.size=8", "architecture=cnn", "architecture.widths=[4]", "architecture.size=8")
RUN += ("recipe.epochs=1", "prior=toy", "attack=gmi", "attack/objective=cross_entropy", "attack.search.steps=1")
RUN += ("evidence.classes=[0]", "tracking=none")
JUDGED = ("metrics=utility", "evaluators.main.architecture.widths=[4]", "evaluators.main.recipe.epochs=1")
LINUX_CAPABILITY_VERSION_3, OVERRIDING = 0x20080522, 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextlib.contextmanager
def bound_by_rights():
    """Let folders' rights bind this thread also where it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, data = (
        ctypes.CDLL(None),
        (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0),
        (ctypes.c_uint32 * 6)(),
    )
    assert libc.capget(header, data) == 0
    before, data[0] = data[0], data[0] & ~OVERRIDING
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(header, data) == 0


def tree(root: Path) -> list[tuple[str, int]]:
    """Everything below a folder, with the times of their last change."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with a result and what it was made from."""
    store = tmp_path_factory.mktemp("filled") / "store"
    Pipeline(plan_for("evaluate", *RUN, *JUDGED, store=store)).result  # noqa: B018
    return store


@pytest.fixture
def shared(filled, tmp_path):
    """A copy that nothing may be written into; a test that changes it all the same fails."""
    store = shutil.copytree(filled, tmp_path / "shared")
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    before = tree(store)
    with bound_by_rights():
        with pytest.raises(PermissionError):
            (store / "probe").touch()
        yield store
    assert tree(store) == before
    for folder in folders:
        folder.chmod(0o755)


@pytest.fixture
def both(shared, tmp_path):
    """What `store=` says of a store of one's own before the shared one."""
    return f"[{tmp_path / 'mine'},{shared}]"


def one(store, kind: str, defense: str = "none"):
    (found,) = [a for a in Store(store).list(kind) if "(evaluator)" not in str(a.provenance["names"])]
    return found


def test_it_is_listed_shown_verified_exported_and_reported(shared, tmp_path, capsys):
    target = one(shared, "target")
    store = ["--store", str(shared)]
    assert main(["store", *store, "list"]) == main(["store", *store, "show", target.id]) == 0
    assert main(["store", *store, "verify"]) == 0
    assert "4 checked, 0 broken" in capsys.readouterr().out
    assert main(["export", *store, target.id, str(tmp_path / "weights.pt")]) == 0
    assert main(["report", *store, "--out", str(tmp_path / "page.html"), "--csv", str(tmp_path / "rows.csv")]) == 0
    assert "toy" in (tmp_path / "rows.csv").read_text()


def test_what_is_finished_is_found_in_it(shared, call):
    code, said, err = call("evaluate", *RUN, *JUDGED, f"store={shared}")
    assert code == 0 and one(shared, "result").reference in said, err
    code, said, err = call("evaluate", f"recovered={one(shared, 'recovered').id}", *JUDGED, f"store={shared}")
    assert code == 0 and one(shared, "result").reference in said, err
    code, said, err = call("evaluate", "-m", *RUN, *JUDGED, "seed=0", f"store={shared}")
    assert code == 0 and one(shared, "result").reference in said, err


@pytest.mark.parametrize(
    ("verb", "more", "kind"),
    [
        ("train_target", ("~prior", "seed=1"), "target"),
        ("attack", ("attack.search.steps=2",), "recovered"),
        ("evaluate", ("metrics=cost",), "result"),
    ],
)
def test_what_is_missing_is_refused_before_it_is_made(shared, call, verb, more, kind, monkeypatch):
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("nothing is to be made"))
    words = [word for word in RUN if verb != "train_target" or not word.startswith(("prior", "attack", "evidence"))]
    judged = JUDGED if verb == "evaluate" else ()
    code, _, said = call(verb, *words, *judged, *(word for word in more if word != "~prior"), f"store={shared}")
    assert code == 2 and f"{kind}/toy-" in said and f"cannot write in {shared} (Permission denied)" in said
    assert f"'store=[DIR,{shared}]'" in said


def test_commands_that_write_are_refused(shared, capsys):
    target = one(shared, "target").id
    for words in (["rm", target, "--dependants"], ["relocate", target, f"dataset.root={shared}"]):
        assert main(["store", "--store", str(shared), *words]) == 1
        assert "refused: " in capsys.readouterr().err


def test_a_store_before_it_holds_what_is_new(shared, both, call, tmp_path, capsys):
    code, said, err = call("evaluate", *RUN, *JUDGED, f"store={both}")
    assert code == 0 and str(shared) in said, "what is finished is found behind"
    assert Store(tmp_path / "mine").list() == []
    code, said, err = call("evaluate", *RUN, *JUDGED, "attack.search.steps=2", f"store={both}")
    assert code == 0, err
    mine = Store(tmp_path / "mine")
    assert [a.kind for a in mine.list()] == ["recovered", "result"], "the target and the evaluator are those behind"
    assert (tmp_path / "mine" / "runs").is_dir()
    assert main(["store", "--store", both, "verify"]) == 0 and "6 checked, 0 broken" in capsys.readouterr().out
    assert main(["report", "--store", both, "--out", str(tmp_path / "page.html")]) == 0
    assert "2" in capsys.readouterr().out


def test_decoded_pictures_are_lent_too(shared, both, tmp_path):
    plan = plan_for("train_target", *RUN[:6], "tracking=none", store=tmp_path / "mine")
    plan.store = Store(both)
    assert Session(plan).cache == Store(both).caches == [tmp_path / "mine/cache", shared / "cache"]


def test_what_lies_behind_is_moved_in_front_and_never_removed(shared, both, tmp_path, capsys):
    target = one(shared, "target")
    assert main(["store", "--store", both, "rm", target.id, "--dependants"]) == 1
    assert "which is only read" in capsys.readouterr().err
    store = Store(both)
    fake = store.moved(target, {"dataset.root": "/x"})
    assert fake.places["dataset.root"] == "/x" and store.open(target.id, "target").places["dataset.root"] == "/x"
    assert "dataset.root" not in Store(both).open(target.id, "target").places


def test_what_stands_in_both_is_one_and_the_first_counts(shared, tmp_path):
    target = one(shared, "target")
    shutil.copytree(target.path, tmp_path / "mine" / "target" / target.path.name)
    (tmp_path / "mine" / "target" / target.path.name).chmod(0o755)
    store = Store([tmp_path / "mine", shared])
    assert store.open(target.id, "target").path.is_relative_to(tmp_path / "mine")
    assert len(store.list("target")) == len(Store(shared).list("target")) == 2
    store.remove(store.open(target.id, "target").path)
    assert store.open(target.id, "target").path == target.path


@pytest.mark.parametrize("store", ["", "[]", "[a,]x", "[a, 5]", "['']", "[a", 5, None, [], {"a": "b"}, ["a", None]])
def test_what_names_no_folders_is_refused(store):
    if store in ("[a,]x", "[a"):
        assert folders_of(store) == [store], "brackets may stand in a name"
    else:
        with pytest.raises(Refused, match="store: expected a folder, or a list of folders, got .*; try store=DIR"):
            folders_of(store)


def test_a_store_is_named_the_same_everywhere(tmp_path, monkeypatch):
    mine, behind = tmp_path / "mine", tmp_path / "behind"
    behind.mkdir()
    text = f"[{mine}, '{behind}']"
    for named in (text, [str(mine), behind]):
        assert Store(named).roots == [mine, behind]
    monkeypatch.setenv("MIDEFENSE_STORE", text)
    for words in ((), (f"store=[{mine},{behind}]",)):
        config = compose("train_target", words)[0]
        assert Store(config["store"]).roots == [mine, behind] and config["tracking"]["folder"] == f"{mine}/runs"
    draft = Draft(kind="target", name="a", recipe={}, command="python x.py")
    with pytest.raises(Refused, match=rf"make it with: python x.py store='\[{mine},{behind}\]'"):
        Store(text).require_may_make(draft, "fail")


def test_a_folder_to_be_read_must_be_there(tmp_path, capsys):
    (tmp_path / "file").touch()
    for store in (f"[{tmp_path}/mine,{tmp_path}/nowhere]", f"[{tmp_path}/mine,{tmp_path}/file]", f"{tmp_path}/file"):
        for words in (["store", "--store", store, "list"], ["report", "--store", store, "--out", f"{tmp_path}/r.html"]):
            assert main(words) == 1 and "store: expected a folder" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists() and not (tmp_path / "mine").exists()


def test_what_sweeps_leave_goes_where_it_can(shared, tmp_path):
    assert written_folder(str(tmp_path / "mine"), "hydra") == f"{tmp_path}/mine/hydra"
    assert written_folder([str(tmp_path / "mine"), str(shared)], "hydra") == f"{tmp_path}/mine/hydra"
    assert not Path(written_folder(str(shared), "hydra")).is_relative_to(shared)
    assert can_be_written(tmp_path / "a" / "b") and not can_be_written(shared / "a" / "b")


def test_looking_at_a_store_makes_none(tmp_path, capsys):
    assert main(["store", "--store", str(tmp_path / "store"), "list"]) == 0
    assert list(tmp_path.iterdir()) == []
