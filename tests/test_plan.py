"""What a command line means: the plan, its names, and what is refused when parts do not go together."""

import conftest
import pytest

from midefense.attacks.base import Attack
from midefense.attacks.init import BestOfPool
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.part import Part
from midefense.datasets.toy import Toy
from midefense.pipeline.pipeline import Pipeline
from midefense.plan import references
from midefense.plan.facts import architecture_facts
from midefense.plan.read import name_of, read_names, read_setting, setup_of
from midefense.priors.toy import ToyFamily
from midefense.store.store import Store
from midefense.types import Access, NotYetKnown, Refused

SMALL = ("dataset=toy", "architecture.widths=[8]", "recipe.epochs=1", "dataset.size=16", "architecture.size=16")


@pytest.fixture
def plan(store):
    def read(verb, *overrides):
        return conftest.plan_for(verb, *overrides, store=store)

    return read


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small target trained with random erasing, and its store."""
    store = tmp_path_factory.mktemp("plan") / "store"
    overrides = (*SMALL, "defense=random_erasing", "seed=5")
    return Pipeline(conftest.plan_for("train_target", *overrides, store=store)).target.artefact


def test_a_verb_plans_what_it_needs_and_no_more(plan):
    train, attack, evaluate = (plan(verb) for verb in ("train_target", "attack", "evaluate"))
    assert train.attack is None and train.prior is None and train.metrics == {} and train.evaluators == {}
    assert attack.attack is not None and attack.metrics == {} and attack.evaluators == {}
    assert set(evaluate.evaluators) == {"main"} and {"accuracy", "utility", "cost"} <= set(evaluate.metrics)
    assert train.target == attack.target == evaluate.target


def test_one_seed_leads_all_but_the_prior(plan):
    assert plan("attack", "seed=3").seeds == {"target": 3, "prior": 0, "attack": 3}
    assert plan("attack", "seeds.attack=4").seeds == {"target": 0, "prior": 0, "attack": 4}
    assert plan("train_target", "seed=3").target.seed == 3


def test_an_evaluator_is_an_undefended_target_of_its_own(plan):
    planned = plan("evaluate", "defense=bido_hsic", "architecture=mlp", "seed=9")
    evaluator = planned.evaluators["main"]
    assert evaluator.defense.target.__name__ == "NoDefense" and evaluator.architecture.target.__name__ == "CNN"
    assert (evaluator.train_on, evaluator.seed) == ("all", 1000)
    assert evaluator.dataset == planned.target.dataset
    assert evaluator.names == {"dataset": "digits", "architecture": "cnn_wide (evaluator)", "defense": "none"}
    more = plan("evaluate", "+evaluator@evaluators.second=cnn_wide", "evaluators.second.seed=7")
    assert {name: one.seed for name, one in more.evaluators.items()} == {"main": 1000, "second": 7}


def test_an_attack_chooses_its_prior_and_the_command_line_wins(plan):
    assert plan("attack", "attack=mi_face").names["prior"] == "pixels"
    chosen = plan("attack", "attack=mi_face", "dataset=toy", "prior=toy")
    assert chosen.names["prior"] == "toy" and chosen.prior.target is ToyFamily


def test_names_tell_what_was_changed():
    choices = {
        "dataset": "toy",
        "attack": "gmi",
        "prior": "pixels",
        "prior@_global_.prior": "gmi_gan",
        "defense": "stack",
    }
    overrides = ["attack.search.steps=3", "attack/objective=margin", "seed=1", "attack.group=2"]
    overrides += ["defense@defense.members.second=bido_hsic"]
    names = read_names(choices, overrides)
    assert names == {
        "dataset": "toy",
        "prior": "gmi_gan",
        "defense": "stack(members.second=bido_hsic)",
        "attack": "gmi(group=2, objective=margin, search.steps=3)",
    }
    assert name_of(names, "dataset", "defense", "attack", "public") == "toy-stack-gmi-own"


def test_a_setup_is_the_same_for_all_seeds():
    target = {"kind": "target", "seed": 1, "size": 8}
    prior = {"kind": "prior", "prior": {"epochs": 9}, "public": "d", "seed": 3, "target": "a", "access": "scores"}
    recovered = {"attack": "gmi", "prior": prior, "seed": 2, "target": "a", "prepared": "b"}
    other_prior = {**prior, "seed": 9, "target": "c"}
    others = {**recovered, "prior": other_prior, "seed": 8, "target": "c", "prepared": "e"}
    setup = setup_of(target, recovered)
    assert setup == setup_of({**target, "seed": 7}, others)
    assert setup != setup_of({**target, "size": 16}, recovered)
    assert setup != setup_of(target, {**recovered, "attack": "pool"})
    assert setup != setup_of(target, {**recovered, "prior": {**prior, "prior": {"epochs": 10}}})
    assert setup != setup_of(target, {**recovered, "prior": {**prior, "public": "f"}})


def test_a_target_brings_its_own_parts(trained):
    store = trained.path.parents[1]
    planned = conftest.plan_for("attack", f"target={trained.id}", "prior=toy", store=store)
    assert planned.target.defense.target.__name__ == "RandomErasing" and planned.target.seed == 5
    assert planned.target.names == {**trained.provenance["names"]}
    assert Pipeline(planned).target.artefact.path == trained.path


@pytest.mark.parametrize(
    "beside",
    [
        "defense=none",
        "dataset=toy",
        "dataset.size=32",
        "architecture=mlp",
        "recipe.epochs=2",
        "+recipe.x=1",
        "~defense.p",
        "defense@defense.members.first=bido_coco",
        "train_on=all",
        "seeds.target=1",
    ],
)
def test_what_a_target_brings_may_not_be_named_beside_it(trained, beside, store):
    config = {"target": trained.path, "store": store}
    with pytest.raises(Refused, match=r"target=... brings its own \w+.*; leave out"):
        references.named_artefacts(config, Store(store), [f"target={trained.path}", beside])


@pytest.mark.parametrize("beside", ["attack=gmi", "prior=toy", "public=own", "seed=1", "evidence.classes=[1]"])
def test_what_was_recovered_brings_its_attack(beside):
    with pytest.raises(Refused, match=rf"recovered=... brings its own .*; leave out {beside.split('[')[0]}"):
        references.refuse_beside("recovered", (*references.ATTACK_NODES, "seed", "seeds"), [beside])


def test_what_is_free_may_be_named_beside_a_target(trained):
    store = trained.path.parents[1]
    conftest.plan_for("attack", f"target={trained.id}", "seeds.attack=3", "attack.group=2", "prior=toy", store=store)


def test_a_target_of_another_revision_is_refused(trained, monkeypatch):
    monkeypatch.setattr(Toy, "revision", Toy.revision + 1)
    with pytest.raises(Refused, match="datasets.toy.Toy: expected revision 2, that of the code, got 1 in the artefact"):
        conftest.plan_for("attack", f"target={trained.id}", "prior=toy", store=trained.path.parents[1])


def test_a_weak_attack_is_refused_a_prior_that_asked_for_more(plan, monkeypatch):
    monkeypatch.setattr(ToyFamily, "asks", Access.SCORES)
    plan("attack", "prior=toy", "dataset=toy")
    monkeypatch.setattr(Attack, "check", lambda self, prior: None)
    monkeypatch.setattr(Access, "require", lambda self, reads, who: None)
    with pytest.raises(Refused, match="prior toy learned with access=scores, more than attack.access=labels reveals"):
        plan("attack", "prior=toy", "dataset=toy", "attack.access=labels")


INVERSION = (*SMALL, "attack=gmi", "attack/objective=cross_entropy", "prior=toy", "attack.search.steps=1")


@pytest.fixture
def reads_norms(monkeypatch):
    monkeypatch.setattr(CrossEntropy, "reads", ("logits", "batchnorm", "gradient"))


def test_norms_are_asked_of_a_network_that_has_them_before_an_image_is_read(plan, reads_norms, monkeypatch):
    monkeypatch.setattr(Toy, "read", lambda self, cache: pytest.fail("no image is needed"))
    plan("attack", *INVERSION, "architecture=cnn")
    with pytest.raises(Refused, match="attack.objective reads batchnorm: expected a target with BatchNorm layers"):
        plan("attack", *INVERSION, "architecture=mlp")


def test_a_stored_target_is_described_by_its_own_recipe(trained):
    planned = conftest.plan_for("attack", f"target={trained.id}", "prior=toy", store=trained.path.parents[1])
    known = read_setting(planned).architecture
    stored = [key.removesuffix(".running_mean") for key in trained.tensors() if key.endswith("running_mean")]
    assert sorted(known.batchnorm) == sorted(stored) and len(stored) == 1 and known.classes == 4


def test_a_network_on_paper_is_the_one_that_is_deployed(plan):
    planned = plan("train_target", "dataset=toy", "architecture=resnet18", "defense=bido_hsic").target
    built = planned.architecture.given(classes=4, channels=1, size=32).build()
    known = architecture_facts(planned.architecture, planned.defense, channels=1, size=32, classes=4)
    assert known.batchnorm == tuple(n for n, layer in built.named_modules() if type(layer).__name__ == "BatchNorm2d")
    assert (known.taps, known.classes, known.channels, known.size) == (built.tap_names, 4, 1, built.size)
    on_paper = architecture_facts(planned.architecture, planned.defense, channels=1, size=32)
    assert (on_paper.batchnorm, on_paper.classes) == (known.batchnorm, None)


def test_a_network_for_a_number_of_classes_waits_for_the_images(plan, monkeypatch):
    planned = plan("train_target", "dataset=toy", "architecture=custom").target
    network = f"{planned.architecture.target.__module__}.{planned.architecture.target.__name__}"
    refuse = lambda self, *, classes, **others: _only(classes)  # noqa: E731
    monkeypatch.setattr(f"{network}.__init__", refuse)
    with pytest.raises(NotYetKnown):
        architecture_facts(planned.architecture, planned.defense, channels=1, size=32)
    with pytest.raises(Refused, match="7 classes"):
        architecture_facts(planned.architecture, planned.defense, channels=1, size=32, classes=3)


def _only(classes: int) -> None:
    if classes != 7:
        raise Refused(f"expected 7 classes, got {classes}")


def test_an_attack_sees_what_is_known_twice_before_anything_is_trained(store, monkeypatch):
    seen = []
    monkeypatch.setattr(Part, "check", lambda self, setting: seen.append(setting))
    overrides = (*INVERSION, "evidence.classes=[2,0]", "train_on=all", "dataset.public_classes=5")
    planned = conftest.plan_for("attack", *overrides, store=store)
    early = seen[-1]
    assert early.evidence.kind == "ClassLabels" and early.evidence.labels is None and early.dataset.classes is None
    assert (early.dataset.channels, early.dataset.size, early.architecture.classes) == (1, 16, None)
    assert early.prior is ToyFamily and "features" in early.architecture.taps
    Pipeline(planned).check_images()
    late = seen[-1]
    assert late.evidence.labels == (2, 0) and late.evidence.observed is None
    assert late.dataset.classes == 4 and late.architecture.classes == 4 + 5
    assert Store(store).list("target") == []


def prepared_for(store, classes: str) -> str:
    overrides = (*INVERSION, "attack/init=best_of_pool", "attack.init.size=8", "attack.init.candidates=2")
    planned = conftest.plan_for("attack", *overrides, f"evidence.classes={classes}", "tracking=none", store=store)
    return Pipeline(planned).recovered.recipe["prepared"]


def test_a_preparation_that_asks_is_stored_by_the_question(store, monkeypatch):
    told, plain = [], BestOfPool.prepare
    assert prepared_for(store, "[0,1]") == prepared_for(store, "[3]"), "who does not ask shares one pool"

    def prepare(self, prior, oracle, rng, state, question):
        told.append((question.labels.tolist(), question.classes))
        return plain(self, prior, oracle, rng, state)

    monkeypatch.setattr(BestOfPool, "asks_question", True)
    monkeypatch.setattr(BestOfPool, "prepare", prepare)
    assert prepared_for(store, "[0,1]") != prepared_for(store, "[1,0]")
    assert told == [([0, 1], 4), ([1, 0], 4)]
    prepared_for(store, "[0,1]")
    assert len(told) == 2, "the same question again finds what was made"


def test_values_are_checked_in_every_node(plan):
    with pytest.raises(Refused) as refusal:
        plan("evaluate", "dataset=toy", "dataset.noise=-1", "recipe.factor=-1", "compute.devices=0")
    said = str(refusal.value)
    texts = ("dataset.noise: expected a number from 0", "recipe.factor: expected", "compute.devices: expected a whole")
    assert [text for text in texts if text not in said] == []


def test_planning_writes_nothing(plan, store):
    plan("evaluate", "dataset=toy", "prior=toy")
    assert list(store.iterdir()) == []


def test_where_files_lie_is_no_part_of_a_name(store):
    place = "dataset.root=/data/somebody/att_faces"
    planned = conftest.plan_for("train_target", "dataset=att_faces", place, "dataset.size=32", store=store)
    assert planned.target.names["dataset"] == "att_faces(size=32)"
