"""Starting from another network: its body, a head of one's own, an id that says so, and a defense that is told."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import plan_for
from torch import nn

from midefense.architectures.small import MLP
from midefense.defenses.base import Defense, Stack
from midefense.pipeline import classifiers
from midefense.pipeline.classifiers import beginning, job_of, load_classifier, rebuild_classifier
from midefense.pipeline.pipeline import Pipeline
from midefense.store.store import Store
from midefense.training.loop import assemble
from midefense.types import Origin, Refused

MINE = "allow=[test_start]"
OTHER = ("dataset=toy", "dataset.classes=5", "dataset.size=16", "architecture=mlp", "architecture.widths=[8,6]")
OTHER += ("architecture.size=16", "recipe.epochs=1", "compute.threads=1")
NEXT = (*OTHER[:1], "dataset.classes=3", *OTHER[2:])
FREEZE = ("defense._target_=test_start.FrozenPrefix", MINE)
HEAD = ("classifier.weight", "classifier.bias")
FIRST = "stages.hidden1.1.weight"
TOLD: list[tuple[str, Origin]] = []


class FrozenPrefix(Defense):
    """Keeps the first stage as it was trained before; a stage that was drawn is worth nothing, and is trained."""

    revision = 1

    def rebuild(self, model, origin=Origin.DRAWN):
        TOLD.append((type(self).__name__, origin))
        if origin is Origin.STARTED:
            next(iter(model.stages.values())).requires_grad_(False)
        return model


class Widened(Defense):
    """Leaves a network that has one more part."""

    revision = 1

    def rebuild(self, model, origin=Origin.DRAWN):
        model.stages["features"] = nn.Sequential(model.stages["features"], nn.Linear(6, 6))
        return model


class Published(MLP):
    """Begins with weights of its own, if it is asked to."""

    revision = 1
    without_weights = {"known": False}

    def __init__(self, *, known: bool, classes: int, channels: int, size: int, widths: list[int]):
        super().__init__(classes=classes, channels=channels, size=size, widths=widths)
        if known:
            nn.init.constant_(next(iter(self.parameters())), 0.5)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A target of five classes, and its store."""
    store = tmp_path_factory.mktemp("start") / "store"
    return Pipeline(plan_for("train_target", *OTHER, store=store)).target.artefact


@pytest.fixture
def store(known):
    return known.path.parents[1]


def planned(store, *overrides, verb="train_target"):
    return Pipeline(plan_for(verb, *overrides, store=store))


def draft(pipeline):
    return job_of(pipeline.session, pipeline.plan.target).draft


def begun(pipeline):
    """The state dict that training begins with."""
    job = job_of(pipeline.session, pipeline.plan.target)
    return beginning(pipeline.store, job.architecture, job.plan)[0].state_dict()


def test_training_begins_with_the_body_and_a_head_of_its_own(known, store):
    drawn, started = (begun(planned(store, *NEXT, f"recipe.start={start}")) for start in ("null", known.id))
    body = known.tensors()
    assert all(started[name].equal(tensor) for name, tensor in body.items() if name not in HEAD)
    assert not any(started[name].equal(drawn[name]) for name in body if name not in HEAD and "weight" in name)
    assert all(started[name].equal(drawn[name]) for name in HEAD), "drawn under the seed of the target"
    same_classes = begun(planned(store, *OTHER, "seed=3", f"recipe.start={known.id}"))
    assert not same_classes[HEAD[0]].equal(body[HEAD[0]]), "a head is never taken over, whatever its classes"


def test_a_start_stands_in_the_recipe_the_id_and_the_lineage(known, store):
    plain, *named = (
        draft(planned(store, *NEXT, *start))
        for start in ([], *([f"recipe.start={name}"] for name in (known.id, known.reference, known.path)))
    )
    assert "start" not in plain.recipe["recipe"] and plain.parents == {}
    assert {one.id for one in named} != {plain.id} and len({one.id for one in named}) == 1
    assert all(one.parents == {"start": known.reference} for one in named)
    start = named[0].recipe["recipe"]["start"]
    assert start == {"_target_": "midefense.training.start.FromTarget", "revision": 1, "id": known.id}
    assert named[0].names["recipe"] == f"quick(epochs=1, start={known.id})"


def test_a_target_that_started_is_stored_opened_and_named_like_any_other(known, store):
    made = planned(store, *NEXT, f"recipe.start={known.reference}").target.artefact
    assert made.provenance["parents"] == {"start": known.reference}
    assert made.parent_contents == {"start": known.content}
    assert made in Store(store).dependants(known.reference)
    again = planned(store, f"target={made.id}", "prior=toy", verb="attack")
    assert again.target.artefact.id == made.id and draft(again).id == made.id
    assert again.target.plan.recipe.build().start.reference == known.reference


def test_an_evaluator_starts_from_another_dataset(known, store):
    words = [word.replace("architecture", "evaluators.main.architecture") for word in OTHER if "architecture" in word]
    words[0] = "architecture@evaluators.main.architecture=mlp"
    words += [
        "dataset=toy",
        "prior=toy",
        "dataset.size=16",
        "evaluators.main.recipe.epochs=0",
        "evaluators.main.recipe.head=centroids",
    ]
    pipeline = planned(store, *words, f"evaluators.main.recipe.start={known.id}", verb="evaluate")
    evaluator = classifiers.get_classifier(pipeline.session, pipeline.plan.evaluators["main"])
    assert evaluator.provenance["parents"] == {"start": known.reference}
    assert all(evaluator.tensors()[name].equal(tensor) for name, tensor in known.tensors().items() if name not in HEAD)
    assert evaluator.tensors()[HEAD[0]].shape != known.tensors()[HEAD[0]].shape


@pytest.mark.parametrize("named", ["target", "file"])
def test_a_killed_training_that_started_goes_on_with_the_same_bits(known, store, tmp_path, monkeypatch, named):
    start = known.id if named == "target" else saved(known, tmp_path / "known.safetensors")
    words = (*NEXT, "recipe.epochs=3", f"recipe.start={start}", *FREEZE)
    whole = planned(tmp_path / "other", *words, f"recipe.start={known.path if named == 'target' else start}").target
    consume = classifiers.consume

    def killed(progress, *rest, **named):
        def first_two():
            for step, logs, state in progress:
                yield step, logs, state
                if step == 2:
                    raise KeyboardInterrupt

        return consume(first_two(), *rest, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(classifiers, "consume", killed)
        _ = planned(store, *words).target
    job = draft(planned(store, *words))
    assert int(Store(store).work(job).load("state")["epoch"]) >= 1
    resumed = planned(store, *words).target
    assert resumed.artefact.id == whole.artefact.id
    pairs = resumed.artefact.tensors(), whole.artefact.tensors()
    assert [name for name in pairs[0] if not pairs[0][name].equal(pairs[1][name])] == []
    assert pairs[0][FIRST].equal(known.tensors()[FIRST]), "frozen before and after"


# ------------------------------------------------------------------------------------------------ files


def saved(artefact, file: Path, **changes) -> Path:
    """The weights of a target as a file."""
    safetensors.torch.save_file({**artefact.tensors(), **changes}, file)
    return file


def test_a_file_is_named_by_its_content(known, store, tmp_path):
    first, second = (saved(known, tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    other = saved(known, tmp_path / "c.safetensors", **{"classifier.bias": torch.ones(5)})
    drafts = [draft(planned(store, *NEXT, f"recipe.start={file}")) for file in (first, second, other)]
    assert drafts[0].id == drafts[1].id != drafts[2].id
    assert set(drafts[0].recipe["recipe"]["start"]) == {"_target_", "revision", "sha256"}
    assert drafts[0].places["recipe.start.file"] == str(first) and drafts[0].parents == {}
    state = begun(planned(store, *NEXT, f"recipe.start={first}"))
    assert all(state[name].equal(tensor) for name, tensor in known.tensors().items() if name not in HEAD)


def test_a_file_may_be_a_body_alone_and_bear_a_wrappers_prefix(known, store, tmp_path):
    body = {f"module.{name}": tensor for name, tensor in known.tensors().items() if name not in HEAD}
    safetensors.torch.save_file(body, tmp_path / "body.safetensors")
    state = begun(planned(store, *NEXT, f"recipe.start={tmp_path / 'body.safetensors'}"))
    assert all(state[name].equal(tensor) for name, tensor in known.tensors().items() if name not in HEAD)


def test_a_file_that_changed_after_it_was_named_is_refused(known, store, tmp_path):
    file = saved(known, tmp_path / "a.safetensors")
    pipeline = planned(store, *NEXT, f"recipe.start={file}")
    saved(known, file, **{"classifier.bias": torch.ones(5)})
    with pytest.raises(Refused, match="recipe.start: expected .*a.safetensors with SHA-256 .*, got .*; try"):
        begun(pipeline)


def test_no_code_of_a_file_is_run(store, tmp_path):
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "whole.pt")
    pipeline = planned(store, *NEXT, f"recipe.start={tmp_path / 'whole.pt'}")
    with pytest.raises(Refused, match="whole.pt, which holds a pickle that asks for torch.nn"):
        begun(pipeline)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("start", ["nowhere", "/nowhere/at/all.pt", "12"])
def test_what_is_neither_a_target_nor_a_file_is_refused(store, start):
    with pytest.raises(
        Refused, match=f"recipe.start={start}: expected a target of the store or a file of weights, got"
    ):
        planned(store, *NEXT, f"recipe.start={start}")
    with pytest.raises(
        Refused, match=f"evaluators.main.recipe.start={start}: expected a target of the store or a file"
    ):
        planned(store, *NEXT, f"evaluators.main.recipe.start={start}", verb="evaluate")


def test_another_network_is_refused_in_a_sentence_before_a_run_opens(known, store, tmp_path):
    wider, file = [*NEXT, "architecture.widths=[9,6]"], saved(known, tmp_path / "a.safetensors")
    differs = "expected the 4 names and shapes of the body of MLP, got 3 of another shape .*instead of"
    for start in (known.id, file):
        pipeline = planned(store, *wider, f"recipe.start={start}")
        with pytest.raises(Refused, match=rf"recipe.start=\S+.*: state: {differs}"):
            _ = pipeline.target
        assert not list(store.glob("runs/*/*" + draft(pipeline).id + "*"))


def test_a_network_that_a_defense_left_with_other_parts_is_refused(store):
    widened = planned(store, *OTHER, "defense._target_=test_start.Widened", MINE).target.artefact
    pipeline = planned(store, *NEXT, f"recipe.start={widened.id}")
    with pytest.raises(
        Refused, match=r"defense=none\(_target_=test_start.Widened\)\): .* 2 unexpected .*; a defense that"
    ):
        _ = pipeline.target


def test_an_evaluator_that_cannot_start_is_refused_before_anything_is_trained(known, store, tmp_path):
    words = ("dataset=toy", "dataset.size=16", "prior=toy", f"evaluators.main.recipe.start={known.path}")
    with pytest.raises(Refused, match="of the body of CNN"):
        _ = planned(tmp_path / "empty", *words, verb="evaluate").result
    assert Store(tmp_path / "empty").list() == []


# ------------------------------------------------------------------------------------------------ the defense is told


def test_a_defense_knows_whether_weights_are_drawn_started_or_loaded(known, store):
    TOLD.clear()
    drawn = planned(store, *NEXT, *FREEZE).target
    assert [origin for _, origin in TOLD] == [Origin.DRAWN, Origin.LOADED]
    TOLD.clear()
    started = planned(store, *NEXT, *FREEZE, f"recipe.start={known.id}").target
    assert [origin for _, origin in TOLD] == [Origin.STARTED, Origin.LOADED]
    assert started.artefact.tensors()[FIRST].equal(known.tensors()[FIRST]), "the prefix is frozen"
    unfrozen = planned(store, *NEXT, f"recipe.start={known.id}").target.artefact.tensors()
    assert not unfrozen[FIRST].equal(known.tensors()[FIRST]), "without the defense it moves"
    fresh = begun(planned(store, *NEXT, *FREEZE))
    assert not drawn.artefact.tensors()[FIRST].equal(fresh[FIRST]), "what was drawn is trained"


def test_published_weights_of_the_architecture_are_a_start(store):
    words = (*NEXT[:3], "architecture=mlp", "architecture._target_=test_start.Published", "architecture.widths=[4]")
    words += ("~architecture.mean", "~architecture.std", "~architecture.dropout", "architecture.size=8", MINE)
    words += ("+architecture.classes=3", "+architecture.channels=1")
    for known, origin in ((True, Origin.STARTED), (False, Origin.DRAWN)):
        pipeline = planned(store, *words, f"+architecture.known={known}")
        job = job_of(pipeline.session, pipeline.plan.target)
        assert beginning(pipeline.store, job.architecture, job.plan)[1] is origin


def test_a_stack_tells_its_members():
    TOLD.clear()
    model = MLP(classes=2, channels=1, size=4, widths=[3])
    assemble(model, Stack(members={"a": FrozenPrefix(), "b": FrozenPrefix()}), 0, Origin.STARTED)
    assert [origin for _, origin in TOLD] == [Origin.STARTED] * 2


def test_a_start_that_is_gone_is_not_needed_to_deploy(known, store, tmp_path):
    made = planned(tmp_path / "mine", *NEXT, f"recipe.start={known.path}").target.artefact
    alone = Store(tmp_path / "mine").open(made.id, "target")
    assert rebuild_classifier(alone).state_dict().keys() == known.tensors().keys()
    session = planned(tmp_path / "mine", *NEXT, f"recipe.start={known.path}").session
    assert load_classifier(session, alone).classes == 3
