"""What an artefact was computed from: recorded, followed by `store verify`; children of another are not served."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DONE_BY, plan_for
from sealing import write_sealed, zero

from midefense.commands.store import run as command
from midefense.pipeline.pipeline import Pipeline
from midefense.report import read_rows
from midefense.store.artefacts import Draft
from midefense.store.lineage import OtherParents, lineage
from midefense.store.store import Store
from midefense.types import Refused

TARGET = ("dataset=toy", "dataset.size=32", "architecture=mlp", "architecture.widths=[8]", "architecture.size=8")
TARGET += ("recipe.epochs=1", "compute.threads=1", "tracking=none")
ATTACK = ("prior=gmi_gan_small", "prior.width=1", "prior.latent_size=4", "prior.steps=2", "prior.batch_size=8")
ATTACK += ("attack=pool_small", "attack.init.size=8", "attack.init.candidates=2", "attack.search.steps=1")
ATTACK += ("attack.select.keep=1", "attack.select.repeats=1", "evidence.classes=[0,1]", "attack.group=1")
JUDGE = ("metrics=utility", "evaluators.main.architecture.widths=[4]", "evaluators.main.recipe.epochs=2")
JUDGE += ("judge_at_chance=true",)
RUN = (*TARGET, *ATTACK, *JUDGE)
PARENTS = {
    "target": {"target"},
    "prior": {"target", "prior"},
    "prepared": {"target", "prior"},
    "recovered": {"target", "prior", "prepared"},
    "result": {"target", "recovered", "evaluator.main"},
}
OLD = Path(__file__).parent / "data" / "store_c187d75"  # of before parents' contents were recorded


def run(store, verb="evaluate", words=RUN):
    """What a verb gives; `store` may be the text of several folders."""
    return DONE_BY[verb](Pipeline(plan_for(verb, *words, store=store)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a result and all that it goes back to."""
    store = tmp_path_factory.mktemp("made") / "store"
    run(store)
    return store


@pytest.fixture
def store(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "store")


def only(store, kind, role=""):
    """The artefact of a kind; of targets that in a `role` of the result."""
    if kind != "target":
        (found,) = Store(store).list(kind)
        return found
    return Store(store).parent(only(store, "result").provenance["parents"][role or "target"])


def verify(store, capsys, *words):
    """Exit code and lines of `store verify`."""
    code = command(["--store", str(store), "verify", *map(str, words)])
    return code, capsys.readouterr().out.splitlines()


# ------------------------------------------------------------------------------------------------ recorded


def test_every_artefact_records_what_each_of_its_parents_held(made):
    shelf, seen = Store(made), set()
    for artefact in shelf.list():
        parents = artefact.provenance["parents"]
        assert artefact.parent_contents == {role: shelf.parent(one).content for role, one in parents.items()}
        seen |= {(artefact.kind, role) for role in parents}
    roles = {(kind, role) for kind in ("prepared", "recovered", "result") for role in PARENTS[kind]}
    assert seen == roles, "GMI's prior asks no target, and these targets start from none"


def test_the_same_bits_are_the_same_content_whenever_they_were_made(made, store):
    recovered = only(store, "recovered")
    for path in (recovered.path, only(store, "result").path):
        shutil.rmtree(path)
    again = run(store, "attack", (*TARGET, *ATTACK))
    assert again.content == recovered.content
    assert again.provenance["digest"] != recovered.provenance["digest"], "it was made at another time"
    changed = dict(again.provenance, bill={**again.provenance["bill"], "shared_queries": 1})
    write_sealed(again.path, changed)
    assert Store(store).read(again.path).content != recovered.content, "what it cost stands in rows"


# ------------------------------------------------------------------------------------------------ exchanged

EXCHANGED = {
    "target": ("target", "target"),
    "evaluator": ("target", "evaluator.main"),
    "prior": ("prior", ""),
    "prepared": ("prepared", ""),
    "recovered": ("recovered", ""),
}


@pytest.mark.parametrize("which", EXCHANGED)
def test_what_was_computed_from_another_parent_is_not_served(store, which, capsys):
    """Zeroed weights, sealed anew, deceive every check of their own files."""
    exchanged = only(store, *EXCHANGED[which])
    zero(exchanged.path)
    Store(store).read(exchanged.path).verify()
    problem = f"{exchanged.reference} was exchanged since"
    for verb, words in (("evaluate", RUN), ("evaluate", (f"recovered={only(store, 'recovered').id}", *JUDGE))):
        with pytest.raises(Refused, match=problem):
            run(store, verb, words)
    code, lines = verify(store, capsys)
    broken = [line for line in lines if line.startswith("BROKEN")]
    assert code == 1 and all(problem in line for line in broken)
    assert any(f"BROKEN   {only(store, 'result').reference}" in line or "recovered/" in line for line in broken)
    rows, skipped = read_rows(store)
    assert rows == [] and problem in skipped[0].reason


def test_all_that_goes_back_to_an_exchanged_prior_is_broken_and_nothing_else(store, capsys):
    zero(only(store, "prior").path)
    _, lines = verify(store, capsys)
    assert lines[-1] == "6 checked, 3 broken"
    assert {line.split()[1].split("/")[0] for line in lines[:-1] if line.startswith("ok")} == {"target", "prior"}


def test_the_advice_of_a_refusal_helps(store):
    exchanged = only(store, "prepared")
    zero(exchanged.path)
    with pytest.raises(OtherParents) as refused:
        run(store)
    child = str(refused.value).split(": its")[0]
    assert f"`midefense store rm {child} --dependants`" in str(refused.value)
    assert command(["--store", str(store), "rm", child, "--dependants"]) == 0
    assert run(store).parent_contents["recovered"] == only(store, "recovered").content
    assert only(store, "recovered").parent_contents["prepared"] == Store(store).read(exchanged.path).content


def test_a_parent_outside_the_store_counts_too(tmp_path):
    """A training may start from a target of another folder, which the store cannot look up."""
    mine, other = Store(tmp_path / "mine"), Store(tmp_path / "other")

    def child():
        known = other.read(parent.path)
        return Draft("target", "child", {"kind": "target", "start": known.id}, **lineage({"start": known}))

    parent = other.work(Draft("target", "parent", {"kind": "target"})).finish({"x": torch.ones(1)}, {})
    made = mine.work(child()).finish({}, {})
    assert mine.find(child()).path == made.path and mine.parent(parent.reference) is None
    zero(parent.path)
    with pytest.raises(OtherParents, match="its start target/parent@.* was exchanged since"):
        mine.find(child())


def test_what_was_half_computed_from_another_parent_begins_anew(store, capsys):
    target = only(store, "target")
    draft = Draft(kind="recovered", name="half", recipe={}, **lineage({"target": target}))
    Store(store).work(draft).save("group-00000", {"x": torch.ones(1)}, {"queries": 3})
    assert Store(store).work(draft).saved("group-00000")[1] == {"queries": 3}
    zero(target.path)
    draft = Draft(kind="recovered", name="half", recipe={}, **lineage({"target": Store(store).read(target.path)}))
    assert Store(store).work(draft).saved("group-00000") is None
    said = capsys.readouterr().err
    assert f"expected a state computed from {target.reference} of content" in said and "begun anew" in said


# ---------------------------------------------------------------------------------------- not here, not recorded


def test_a_row_outlives_its_parents(store, capsys):
    """Who removed them by hand keeps the rows; nobody can tell any more what they were computed from."""
    target = only(store, "target")
    shutil.rmtree(target.path)
    assert read_rows(store)[1] == []
    code, lines = verify(store, capsys)
    assert code == 0 and lines[-1] == "5 checked, 0 broken"
    assert sum(f"(its target {target.reference} is not here" in line for line in lines) == 3
    code, lines = verify(store, capsys, "--deep")
    assert code == 1 and lines[-1] == "5 checked, 3 broken"
    assert run(store).id == only(store, "result").id, "made anew to the same bits it is the same target"


def test_a_parent_that_was_made_anew_to_other_bits_is_another(store):
    target = only(store, "target")
    draft = Draft(target.kind, target.name, target.recipe)
    tensors = {name: value + 1 for name, value in target.tensors().items()}
    shutil.rmtree(target.path)
    Store(store).work(draft).finish(tensors, {})
    with pytest.raises(OtherParents):
        Store(store).verified(only(store, "result").path)


@pytest.mark.parametrize("content", ["", '{"kind": "tar', None])
def test_children_of_a_spoilt_parent_are_not_served(store, capsys, content):
    recovered, prior = only(store, "recovered"), only(store, "prior")
    place = prior.path / "provenance.json"
    place.unlink() if content is None else place.write_text(content)
    with pytest.raises(Refused, match=f"{recovered.reference}: its prior cannot be looked at: .*provenance.json"):
        Store(store).open(recovered.id, "recovered")
    code, lines = verify(store, capsys)
    assert code == 1 and lines[-1] == "6 checked, 4 broken"


def test_artefacts_of_before_are_served_and_said_to_be_unrecorded(capsys):
    shelf = Store(OLD)
    result = shelf.list("result")[0]
    assert shelf.open(result.id, "result").parent_contents == {}
    code, lines = verify(OLD, capsys)
    assert code == 0 and lines[-1] == "6 checked, 0 broken"
    said = [line for line in lines if line.startswith(f"ok       {result.reference}")]
    assert "what its recovered recovered/" in said[0] and said[0].count("is not recorded") == 3
    code, lines = verify(OLD, capsys, "--deep")
    assert code == 1 and lines[-1] == "6 checked, 3 broken"


def test_what_lies_in_the_folder_of_another_is_not_taken_for_it(store, capsys):
    target, evaluator = only(store, "target"), only(store, "target", "evaluator.main")
    shutil.rmtree(target.path)
    shutil.copytree(evaluator.path, target.path)
    with pytest.raises(Refused, match=f"expected the artefact of that kind and id, got {evaluator.reference}"):
        run(store, "train_target", TARGET)
    assert verify(store, capsys)[0] == 1


def test_a_circle_of_parents_ends(tmp_path):
    """Only a forger can write one."""
    shelf = Store(tmp_path / "store")
    first, second = (shelf.work(Draft("target", name, {"kind": "target", "of": name})).finish({}, {}) for name in "ab")
    for one, other in ((first, second), (second, first)):
        write_sealed(one.path, dict(one.provenance, parents={"start": other.reference}))
    assert len(list(shelf.ancestry(shelf.read(first.path)))) == 2


# ------------------------------------------------------------------------------------------------ a store behind


def test_what_lies_behind_and_was_computed_from_another_parent_is_made_anew_in_front(store, tmp_path, capsys):
    mine, both = tmp_path / "mine", f"[{tmp_path / 'mine'},{store}]"
    before = only(store, "recovered")
    assert run(both, "attack", (*TARGET, *ATTACK)).path == before.path, "parents are found behind, too"
    target = only(store, "target")
    shutil.copytree(target.path, mine / "target" / target.path.name)
    zero(mine / "target" / target.path.name)
    made = run(both, "attack", (*TARGET, *ATTACK))
    assert made.path.is_relative_to(mine) and made.reference == before.reference and made.content != before.content
    said = capsys.readouterr().err
    assert said.count(f"{before.reference}: its target {target.reference} was exchanged since") == 1
    assert f"it stays in {store}, and does not count here" in said
    assert Store(store).open(before.id, "recovered").content == before.content


# ------------------------------------------------------------------------------------------------ remembered


def test_what_was_remembered_tells_a_whole_family_that_was_sealed_anew(store, tmp_path, capsys):
    """Who also seals the children anew leaves a store that agrees with itself."""
    file = tmp_path / "digests"
    assert verify(store, capsys, "--remember", file)[0] == 0
    assert verify(store, capsys, "--deep", "--against", file) == verify(store, capsys)
    target = only(store, "target")
    zero(target.path)
    children = [only(store, kind) for kind in ("prepared", "recovered", "result")]
    for child in children:
        parents = {role: Store(store).parent(one).content for role, one in child.provenance["parents"].items()}
        write_sealed(child.path, dict(child.provenance, parent_contents=parents))
    assert verify(store, capsys, "--deep")[0] == 0, "no check within the store can see it"
    code, lines = verify(store, capsys, "--against", file)
    assert code == 1 and lines[-1] == "6 checked, 4 broken"
    for artefact in (target, *children):
        assert any(f"{artefact.reference}: expected digest" in line for line in lines)
    code, lines = verify(store, capsys, only(store, "result").reference, "--deep", "--against", file)
    assert code == 1 and len(lines) == 7, "the row, and all that it goes back to"
    assert verify(store, capsys, only(store, "prior").reference, "--deep", "--against", file)[0] == 0


def test_what_is_new_and_what_is_gone_is_said(store, tmp_path, capsys):
    file, shelf = tmp_path / "digests", Store(store)
    verify(store, capsys, "--remember", file)
    new = shelf.work(Draft("target", "new", {"kind": "target", "new": 1})).finish({}, {})
    code, lines = verify(store, capsys, "--against", file)
    assert code == 0 and f"ok       {new.reference}  (not remembered)" in lines
    code, lines = verify(store, capsys, "--deep", "--against", file)
    assert code == 1 and f"BROKEN   {new.reference}: not remembered" in lines
    gone = only(store, "result")
    shelf.remove(gone.path)
    code, lines = verify(store, capsys, "--against", file)
    assert code == 1 and f"BROKEN   {gone.reference}: remembered in {file}, not here" in lines


def test_where_digests_are_not_remembered(store, tmp_path, capsys):
    file = tmp_path / "digests"
    file.write_text("kept")
    for place, problem in (
        (store / "digests", f"outside the store, got one in {store}"),
        (store / "runs" / ".." / "x", "outside the store"),
        (file, "expected a new file, got one that is there; compare with it by --against"),
        (tmp_path / "no" / "digests", "got no folder"),
    ):
        assert command(["--store", str(store), "verify", "--remember", str(place)]) == 1
        assert problem in capsys.readouterr().err
    assert file.read_text() == "kept" and not (store / "digests").exists()
    (only(store, "target").path / "metrics.json").write_text("{}")
    assert command(["--store", str(store), "verify", "--remember", str(tmp_path / "new")]) == 1
    assert "nothing was written, as 1 are broken" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"x", b"\n", b"0" * 64 + b" one/space", b"g" * 64 + b"  a/b@c", (b"0" * 64 + b"  a/b@c\n") * 2, None],
)
def test_what_is_no_list_of_digests_is_refused(store, tmp_path, capsys, content):
    file = tmp_path / "digests"
    if content is not None:
        file.write_bytes(content)
    assert command(["--store", str(store), "verify", "--against", str(file)]) == 1
    assert f"refused: --against {file}: expected " in capsys.readouterr().err


def test_an_artefact_says_what_it_was_computed_from(made, capsys):
    assert command(["--store", str(made), "show", only(made, "result").id]) == 0
    shown = capsys.readouterr().out
    assert json.dumps(only(made, "recovered").content) in shown
