"""Surrogates: what they cost, that they go on to the same bits, and that a search over one never asks the target."""

import functools

import pytest
import torch
from contract.listing import composed, within
from learned_doubles import Agreed, LabelSurrogate, Quarters, Student
from torch import nn

from midefense import seeds
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import BestOfPool, Random
from midefense.attacks.learning import Learning
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.schedules import Cosine
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import Everything, TargetConfidence
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.bind import bind
from midefense.plan.read import read_plan
from midefense.priors.toy import ToyFamily
from midefense.store.store import Work
from midefense.types import Evidence, Images, Refused

COUNT, BATCH = 300, 32  # questions, and how many at once: ten batches, the last ragged
ADAM = functools.partial(torch.optim.Adam, lr=0.02)
PRIOR = ToyFamily(channels=1, size=16).requires_grad_(False)
EVIDENCE = Evidence(torch.tensor([0, 2, 3]), torch.tensor([10, 12, 13]))


def surrogate(count=COUNT, **changes):
    options = {"optimizer": ADAM, "steps": 40, "batch_size": BATCH, "unit": 7, "schedule": Cosine(floor=0.1)}
    network = functools.partial(Student, classes=4, channels=1, size=16)
    return LabelSurrogate(learning=Learning(network=network, **{**options, **changes}), count=count)


def attack_of(**changes):
    parts = {
        "init": Random(candidates=4),
        "objective": CrossEntropy(),
        "select": Everything(),
        "access": "labels",
        "search": Gradient(optimizer=functools.partial(torch.optim.Adam, lr=0.05), steps=15),
        "surrogate": surrogate(),
    }
    return SearchAttack(**{**parts, **changes})


def prepare(attack, target, state=None, stop=None, public=None, seed=0):
    """The state after `stop` yields (None: all), and what it cost."""
    oracle = Oracle(target, attack.access)
    for done, (_, _, give) in enumerate(
        attack.prepare(PRIOR, oracle, public, seeds.generator("prepare", seed), state), start=1
    ):
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    return state, oracle


def recover(attack, state, target):
    oracle, stages = Oracle(target, attack.access, attack.budget, ids=EVIDENCE.ids.tolist()), {}
    for found, _ in run_group(attack, state, PRIOR, oracle, EVIDENCE, seeds.generator("group")):
        stages[found.stage] = found.detached()
    return stages, oracle


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@functools.cache
def whole():
    return prepare(attack_of(), Quarters())[0]


# what it costs ---------------------------------------------------------------------------------------------------


def test_every_image_it_asks_about_is_on_the_shared_bill():
    target = Quarters()
    _, oracle = prepare(attack_of(), target)
    assert oracle.shared_bill == sum(target.seen) == COUNT and oracle.bill == {}


def test_public_images_are_asked_about_once_each():
    public = Images(torch.randint(256, (50, 1, 16, 16), dtype=torch.uint8), torch.zeros(50), torch.arange(50), ["a"])
    _, oracle = prepare(attack_of(surrogate=surrogate(count=0)), Quarters(), public=public)
    assert oracle.shared_bill == 50
    with pytest.raises(Refused, match="learns from public images, got none"):
        prepare(attack_of(surrogate=surrogate(count=0)), Quarters(), public=public.take(torch.arange(0)))


def test_the_search_asks_the_surrogate_and_the_selection_the_target():
    target = Quarters()
    stages, oracle = recover(attack_of(select=Agreed(), budget=4), whole(), target)
    assert oracle.bill == {10: 4, 12: 4, 13: 4} and sum(target.seen) == 12, "four candidates each, once"
    assert (stages["selected"].scores == 1).all(), "the target agrees with its surrogate"
    _, unasked = recover(attack_of(), whole(), target)
    assert unasked.bill == {} and unasked.shared_bill == 0 and sum(target.seen) == 12


class Unreachable(nn.Module):
    def forward(self, images, taps=()):
        raise AssertionError("the target was asked")


def test_a_surrogate_cannot_reach_the_target():
    stages, _ = recover(attack_of(), whole(), Unreachable())
    assert len(stages["selected"]) == 12
    surrogate_oracle = attack_of().surrogate.oracle(
        {name.removeprefix("surrogate."): value for name, value in whole().items()}, PRIOR, None
    )
    assert isinstance(surrogate_oracle, Oracle) and "gradient" in surrogate_oracle.access.reveals


def test_it_learns_what_the_target_says():
    latents = PRIOR.sample(500, seeds.generator("held out"))
    images = PRIOR.decode(latents)
    network = attack_of().surrogate.learning.learned(
        {name.removeprefix("surrogate."): value for name, value in whole().items()}, torch.device("cpu")
    )
    agreement = (network(images).logits.argmax(1) == Quarters()(images).logits.argmax(1)).float().mean()
    assert agreement > 0.85


# access ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"surrogate": None}, "attack.objective .* reads .*, which access=labels hides"),
        ({"surrogate": None, "objective": Agreed()}, r"attack.search \(Gradient\) reads gradient, which access=labels"),
        ({"select": TargetConfidence()}, r"attack.select \(TargetConfidence\) reads probs, which access=labels hides"),
        ({"access": "features"}, r"attack.surrogate \(LabelSurrogate\) reads labels, which access=features hides"),
    ],
)
def test_what_is_read_of_the_target_needs_its_access(changes, words):
    attack_of()
    with pytest.raises(Refused, match=words):
        attack_of(**changes)


def test_what_is_read_of_the_surrogate_needs_the_access_it_grants(monkeypatch):
    monkeypatch.setattr(LabelSurrogate, "access", Oracle(Quarters(), "scores").access)
    with pytest.raises(Refused, match="attack.objective .* reads gradient, logits, which access=scores hides"):
        attack_of(access="whitebox")


# going on --------------------------------------------------------------------------------------------------------


YIELDS = 2 + 6  # ten batches asked and forty steps, in units of seven


@pytest.mark.parametrize("stop", range(1, YIELDS + 1))
def test_killed_and_resumed_it_is_the_same_to_the_bit(stop):
    partly, first = prepare(attack_of(), Quarters(), stop=stop)
    resumed, second = prepare(attack_of(), Quarters(), partly)
    assert equal(resumed, whole()) and first.shared_bill + second.shared_bill == COUNT
    if stop == YIELDS:
        assert second.shared_bill == 0 and equal(partly, resumed)


def test_an_optimiser_that_begins_anew_would_show():
    partly, _ = prepare(attack_of(), Quarters(), stop=4)
    forgotten = {name: value for name, value in partly.items() if ".optimizer." not in name}
    assert len(forgotten) < len(partly)
    assert not equal(prepare(attack_of(), Quarters(), forgotten)[0], whole())


def test_a_stream_that_steps_share_would_show(monkeypatch):
    def run(state=None, stop=None):
        stream = torch.Generator().manual_seed(0)
        monkeypatch.setattr(seeds, "generator", lambda *key: stream)
        return prepare(attack_of(), Quarters(), state, stop)[0]

    assert equal(run(), run()) and not equal(run(run(stop=4)), run())


def test_the_seed_decides_and_nothing_else_does():
    before = torch.get_rng_state()
    again, _ = prepare(attack_of(), Quarters())
    assert torch.equal(torch.get_rng_state(), before), "the global stream is left alone"
    torch.manual_seed(5)
    other_units, _ = prepare(attack_of(surrogate=surrogate(unit=3)), Quarters())
    other_rates, _ = prepare(attack_of(surrogate=surrogate(schedule=None)), Quarters())
    assert not equal(other_rates, whole())
    other_seed, _ = prepare(attack_of(), Quarters(), seed=1)
    assert equal(again, whole()) and equal(other_units, whole()) and not equal(other_seed, whole())


def test_a_pool_is_drawn_behind_it_and_scored_by_it():
    attack = attack_of(init=BestOfPool(size=60, candidates=4, batch_size=20))
    complete, oracle = prepare(attack, Quarters())
    assert oracle.shared_bill == COUNT, "the pool cost nothing"
    drawn = PRIOR.sample(60, seeds.generator("prepare", 0))
    assert torch.equal(complete["pool.latents"], drawn), "as without a surrogate, which moves no other draw"
    partly, _ = prepare(attack, Quarters(), stop=YIELDS + 1)
    assert len(partly["pool.scores"]) == 20 and equal(prepare(attack, Quarters(), partly)[0], complete)
    assert len(recover(attack, complete, Unreachable())[0]["selected"]) == 12


# through the pipeline --------------------------------------------------------------------------------------------

NODE = {
    "_target_": "learned_doubles.LabelSurrogate",
    "count": 200,
    "learning": {
        "_target_": "midefense.attacks.learning.Learning",
        "network": {"_target_": "midefense.architectures.small.MLP", "_partial_": True, "widths": [16], "dropout": 0.1},
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "steps": 30,
        "batch_size": 32,
        "unit": 10,
        "schedule": None,
    },
}
WORLD = (
    "dataset=toy",
    "dataset.jitter=0.1",
    "dataset.size=16",
    "dataset.public_classes=4",
    "train_on=all",
    "compute=cpu",
    "architecture=mlp",
    "architecture.widths=[16]",
    "architecture.size=16",
    "recipe.epochs=2",
    "tracking=none",
    "attack=gmi",
    "prior=toy",
    "attack/objective=cross_entropy",
    "attack/search=adam",
    "attack.search.steps=5",
    "attack.init.candidates=3",
    "attack.access=labels",
    "allow=[learned_doubles]",
)


def pipeline(store, node=NODE):
    config, choices = composed("attack", *WORLD)
    config = within(store, config)
    config["attack"]["surrogate"] = node
    return Pipeline(read_plan("attack", config, choices, WORLD))


class Killed(Exception):
    pass


def test_a_label_only_attack_runs_end_to_end(tmp_path, monkeypatch):
    with pytest.raises(Refused, match="access=labels hides"):
        pipeline(tmp_path / "none", None)
    done = pipeline(tmp_path / "plain")
    plain = done.recovered
    assert plain.provenance["bill"]["shared_queries"] == 200 and plain.provenance["bill"]["queries_per_target_max"] == 0
    network = plain.recipe["attack"]["surrogate"]["learning"]["network"]
    classes = done.target.artefact.metrics["classes"]
    assert (network["classes"], network["channels"]) == (classes, 1) and classes > done.splits.classes
    assert "unit" not in plain.recipe["attack"]["surrogate"]["learning"]

    save = Work.save
    with monkeypatch.context() as patch:

        def save_twice(self, name, *args):
            save(self, name, *args)
            if name == "state" and self.draft.kind == "prepared" and self.load(name)["surrogate.asked"].shape[0] == 200:
                raise Killed

        patch.setattr(Work, "save", save_twice)
        with pytest.raises(Killed):
            assert pipeline(tmp_path / "killed").recovered
    resumed = pipeline(tmp_path / "killed").recovered
    assert resumed.id == plain.id and resumed.provenance["bill"]["shared_queries"] == 200
    torch.testing.assert_close(resumed.tensors(), plain.tensors(), rtol=0, atol=0, equal_nan=True)


def test_an_attack_without_one_has_the_recipe_it_had():
    node = composed("attack", "attack=gmi")[0]["attack"]
    assert node["surrogate"] is None and "surrogate" not in bind(node, "attack").recipe()
    recipe = {"init": 1, "surrogate": 2}
    assert attack_of(surrogate=None, access="whitebox").preparation(recipe) == 1
    assert attack_of().preparation(recipe) == {"surrogate": 2}
    assert attack_of(init=BestOfPool(size=60, candidates=4)).preparation(recipe) == recipe
