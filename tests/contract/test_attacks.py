"""Every attack of `conf/attack`, on a toy world whose answers are known."""

import contextlib
import copy
import functools
import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml
from conftest import plan_for
from torch import nn

from contract.listing import composed, options, within
from midefense import seeds
from midefense.attacks.base import run_group
from midefense.defenses.output import Rounding, TopK
from midefense.metrics.base import with_ids
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.read import cut_of, read_plan
from midefense.store.store import Work
from midefense.types import Access, Refused, clip_images

TABLE = yaml.safe_load((Path(__file__).parent / "attack_world.yaml").read_text())
NAMES = [*options("attack"), *TABLE["doubles"]]


@dataclass(frozen=True)
class Fit:
    """How one attack is fitted to the toy world, as `attack_world.yaml` says."""

    prior: str
    network: list[str]
    evidence: list[str]
    bar: float
    skips: dict[str, str]
    options: dict[str, object]

    def overrides(self, name):
        had = {path: value for path, value in self.options.items() if has(name, path)}
        values = [f"{path}={json.dumps(value)}" for path, value in had.items()]
        chosen = (*self.network, *self.evidence, *composition(name))
        return (*TABLE["world"], *chosen, f"prior={self.prior}", *values)


def composition(name):
    """The words that choose an attack, or put a double together."""
    double = TABLE["doubles"].get(name)
    return (f"attack={double['of']}", *double["changes"]) if double else (f"attack={name}",)


def entries(name):
    return [pattern for pattern in TABLE["fits"] if fnmatch(name, pattern)]


def is_sibling(name):
    return any(fnmatch(name, pattern) for pattern in TABLE["siblings"])


def marks(name):
    return [pytest.mark.slow] if is_sibling(name) else []


@functools.cache
def fit(name):
    default = TABLE["default"]
    own = TABLE["fits"][entries(name)[-1]] if entries(name) else {}
    return Fit(**{**default, **own, "options": {**default["options"], **own.get("options", {})}})


def overrides(name):
    return fit(name).overrides(name)


def has(name, path):
    """Whether an attack has an option; what is not the attack's own is taken as it is."""
    node = composed("attack", *composition(name))[0]
    for part in path.split(".") if path.startswith("attack.") else ():
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_the_table_says_nothing_in_vain():
    tests = [value for name, value in globals().items() if name.startswith("test_")]
    assert [pattern for pattern in TABLE["siblings"] if not any(fnmatch(name, pattern) for name in NAMES)] == []
    for pattern, entry in {"*": TABLE["default"], **TABLE["fits"]}.items():
        mine = [name for name in sorted(NAMES, key=is_sibling) if pattern == "*" or entries(name)[-1:] == [pattern]]
        assert mine, f"no attack is called {pattern}"
        assert set(entry) <= set(TABLE["default"]) and all(reason for reason in entry.get("skips", {}).values())
        assert set(entry.get("skips", {})) <= {test.__name__ for test in tests}
        assert [path for path in entry.get("options", {}) if not any(has(name, path) for name in mine)] == []


@dataclass(frozen=True)
class Whole:
    """An attack that nothing disturbed: the stages by name, why it stopped early, the bill by id, and what the bill
    said of each row of the evidence when it yielded [yields, N]."""

    stages: dict
    why: str
    bill: dict[int, int]
    asked: torch.Tensor


@dataclass
class Scene:
    """One attack before one target."""

    pipeline: Pipeline
    start: dict

    def attack(self, **changes):
        attack = self.pipeline.attack_node(self.pipeline.target.artefact.metrics["classes"]).build()
        for name, value in changes.items():
            setattr(attack, name, value)
        return attack

    @property
    def prior(self):
        return self.pipeline.prior.prior

    @property
    def model(self):
        return self.pipeline.target.model

    @property
    def toy(self):
        return self.pipeline.target.plan.dataset.build()

    @property
    def evidence(self):
        return self.pipeline.evidence

    @functools.cached_property
    def answers(self):
        """What is looked for, per row of the evidence [N, 1, 16, 16]: the image it points at, or that of its class."""
        if self.pipeline.plan.evidence.target.points_at != "image":
            return self.toy.answer(self.evidence.labels)
        splits = self.pipeline.splits
        return with_ids((splits.private_train, splits.private_test), self.evidence.ids).floats()

    @property
    def view(self):
        """The prior as it decodes what answers this evidence: one that completes pictures completes those."""
        return self.prior.given(self.evidence.observed) if self.prior.completes else self.prior

    def oracle(self, attack=None, model=None, budget=None):
        """What an attack asks of the target, or of `model` in its place."""
        attack, model = attack or self.attack(), self.model if model is None else model
        return Oracle(model, attack.access, budget, cut_of(self.pipeline.plan))

    def prepare(self, attack, oracle, seed=0):
        """What the attack makes once for all targets, told the question if it asks."""
        asked = {"question": self.pipeline.question} if attack.asks_question else {}
        asked |= {"edge": self.pipeline.edge} if attack.asks_edge else {}
        rng, public, state = seeds.generator("prepare", seed), self.pipeline.public, {}
        for _, _, give in attack.prepare(self.prior, oracle, public, rng, None, **asked):
            state = give()
        return state

    @functools.cached_property
    def whole(self):
        """The attack as it is, run once for all tests that compare with it or look at its end: not to be changed."""
        oracle, stages, why, asked, ids = self.oracle(), {}, "", [], self.evidence.ids.tolist()
        for found, why in self.steps(oracle=oracle):  # noqa: B007
            stages[found.stage] = found.detached()
            asked.append([oracle.bill.get(i, 0) for i in ids])
        return Whole(stages, why, dict(oracle.bill), torch.tensor(asked))

    def recover(self, attack=None, oracle=None, evidence=None, seed=0, state=None):
        """The stages by name, and why the attack stopped early."""
        stages, why = {}, ""
        for found, why in self.steps(attack, oracle, evidence, seed, state):  # noqa: B007
            stages[found.stage] = found.detached()
        return stages, why

    def steps(self, attack=None, oracle=None, evidence=None, seed=0, state=None):
        """What the attack yields, each with why it stopped there."""
        attack = attack or self.attack()
        oracle = oracle or self.oracle(attack)
        evidence, rng = self.evidence if evidence is None else evidence, seeds.generator("recover", seed)
        return run_group(attack, state or self.start, self.prior, oracle, evidence, rng)

    def images(self, found):
        """What was found, as it would be judged [M, 1, 16, 16]."""
        found = found.pictured()
        if found.pixels is not None:
            return found.pixels.float() / 255
        with torch.no_grad():
            return clip_images(self.view.decode(found.latents))

    def errors(self, images, owners):
        """Mean squared distance of images [M, ...] to what their rows of the evidence look for [M]."""
        return (images - self.answers[owners]).square().mean((1, 2, 3))


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def scenes(shared_store):
    """`scenes(name)`: the scene of an attack; all share one trained target."""

    @functools.cache
    def scene(name):
        made = Scene(Pipeline(plan_for("attack", *overrides(name), store=shared_store)), {})
        attack = made.attack()
        made.start = made.prepare(attack, made.oracle(attack))
        return made

    return scene


@pytest.fixture(scope="module", params=[pytest.param(name, marks=marks(name)) for name in NAMES])
def name(request):
    """An attack; all tests of one run behind each other, in one process."""
    return request.param


@pytest.fixture
def scene(request, name, scenes):
    if reason := fit(name).skips.get(request.function.__name__):
        pytest.skip(f"{name}: {reason}")
    return scenes(name)


def same(left, right):
    return all(torch.equal(left[stage].latents, right[stage].latents) for stage in left)


def test_rows_are_aligned_and_owned(scene):
    stages, why = scene.whole.stages, scene.whole.why
    own = [stage for stage in stages if stage.startswith("stage")]
    assert why == "" and [stage for stage in stages if stage not in own] == ["initial", "optimised", "selected"]
    for found in stages.values():
        assert len(found.latents) == len(found.loss) == len(found.evidence) > 0
        assert found.evidence.dtype == torch.int64 and torch.equal(found.evidence, found.evidence.sort().values)
        counts = found.evidence.bincount()
        assert len(counts) == len(scene.evidence) and (counts == counts[0]).all()
        assert found.latents.isfinite().all() and not found.latents.requires_grad
    selected = stages["selected"]
    assert selected.loss.isfinite().all() and selected.scores.shape == selected.loss.shape
    assert len(selected) <= len(stages["optimised"])
    images = scene.images(selected)
    assert images.shape == (len(selected), 1, 16, 16) and images.min() >= 0 and images.max() <= 1


def test_a_seed_decides(scene):
    first, again, other = scene.whole.stages, scene.recover()[0], scene.recover(seed=1)[0]
    assert same(first, again)
    attack = scene.attack()
    if not attack.prepares:
        if len(first["initial"].latents.unique(dim=0)) > 1:  # else all begin at one point, whatever the seed
            assert not torch.equal(first["initial"].latents, other["initial"].latents)
        assert not torch.equal(first["selected"].latents, other["selected"].latents)
    else:  # what is prepared is drawn once, for all groups
        left, right = (scene.prepare(attack, scene.oracle(attack), seed) for seed in (1, 2))
        assert left and any(not torch.equal(value, right[key]) for key, value in left.items())


def test_the_target_is_left_untouched(scene):
    with seeds.isolated("norms"):
        model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.5), copy.deepcopy(scene.model))
    model = Tapped(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    list(model.children())[0][1].eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attack = scene.attack()
    oracle = scene.oracle(attack, model)
    inside = oracle.weights() if attack.access is Access.WHITEBOX else {}
    scene.recover(attack, oracle, state=scene.prepare(attack, oracle))
    after = model.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    if inside:
        answered_by = oracle.weights()
        assert [key for key in inside if not torch.equal(inside[key], answered_by[key])] == []


class Tapped(nn.Module):
    """A network that passes `taps` on to its last part."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, images, taps=()):
        return self.body[1](self.body[0](images), taps=taps)


class Counting(nn.Module):
    """The target, and how many images it saw; its copies count into the same list."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, Tally()

    def forward(self, images, taps=()):
        self.seen.append(len(images))
        return self.model(images, taps=taps)


class Tally(list):
    def __deepcopy__(self, memo):
        return self


def test_every_image_is_counted(scene):
    counting = Counting(scene.model)
    attack = scene.attack()
    oracle = scene.oracle(attack, counting)
    state = scene.prepare(attack, oracle)
    assert oracle.bill == {} and sum(counting.seen) == oracle.shared_bill
    scene.recover(attack, oracle, state=state)
    assert sum(counting.seen) == oracle.shared_bill + sum(oracle.bill.values())
    assert set(oracle.bill) == set(scene.evidence.ids.tolist())


def test_the_budget_is_kept_and_what_was_found_stands(scene):
    whole = scene.whole.stages
    budget = max(scene.whole.bill.values()) // 2
    counting = Counting(scene.model)
    oracle = scene.oracle(model=counting, budget=budget)
    stages, why = scene.recover(oracle=oracle)
    assert f"the budget is {budget}" in why
    assert max(oracle.bill.values()) <= budget and sum(counting.seen) <= budget * len(scene.evidence)
    assert same({"initial": stages["initial"]}, whole) and "selected" not in stages
    assert len(stages["optimised"]) == len(whole["optimised"])


def test_an_answer_too_few_is_refused(scene):
    """A budget that does not reach the first step gives the starts or a refusal, never more images than allowed."""
    counting = Counting(scene.model)
    stages, why = scene.recover(oracle=scene.oracle(model=counting, budget=1))
    assert why or max(map(len, stages.values())) == len(scene.evidence)
    assert sum(counting.seen) <= len(scene.evidence)


def test_a_weaker_access_is_refused_before_compute(scene, name, store):
    declared = scene.attack().access
    weaker = [level.value for level in Access if level.reveals < declared.reveals]
    assert weaker or declared in (Access.LABELS, Access.FEATURES)
    config, choices = composed("attack", *overrides(name))
    config = within(store, config)
    for level in weaker:
        with pytest.raises(Refused, match=f"access={level} hides"):
            read_plan("attack", {**config, "attack": {**config["attack"], "access": level}}, choices)


def test_answers_with_zeros_and_ties_are_survived(scene):
    """Targets that round, cut or withhold their scores (defenses/output.py) are attacked to the end. A loss that no one
    knows (of starts that were never scored) is NaN before an undefended target too."""
    if scene.attack().access not in (Access.LABELS, Access.SCORES):
        pytest.skip("it does not go by what a target tells")
    plain = {stage: found.loss.isfinite().all() for stage, found in scene.whole.stages.items()}
    for defense in (TopK(keep=1), Rounding(step=0.9)):
        attack = scene.attack()
        oracle = scene.oracle(attack, defense.seal(copy.deepcopy(scene.model)))
        stages, _ = scene.recover(attack, oracle, state=scene.prepare(attack, oracle))
        assert "selected" in stages
        for stage, found in stages.items():
            assert found.latents.isfinite().all() and found.loss.isfinite().all() >= plain[stage]


def test_an_attack_by_labels_cannot_use_more(scene):
    """Before an oracle that tells probabilities too, every bit of what it finds is the same."""
    if scene.attack().access is not Access.LABELS:
        pytest.skip("it is no attack by labels alone")
    telling = Oracle(scene.model, Access.SCORES)
    attack = scene.attack()
    state = scene.prepare(attack, telling)
    torch.testing.assert_close(state, scene.start, rtol=0, atol=0)
    assert same(scene.whole.stages, scene.recover(attack, telling, state=state)[0])


def test_closer_to_the_answer_than_random_draws(scene, name):
    stages = scene.whole.stages
    owners, rows = stages["selected"].evidence, torch.arange(len(scene.evidence))
    ends = scene.errors(scene.images(stages["selected"]), owners)
    drawn_for = rows.repeat(200)
    with torch.no_grad():
        drawn = scene.view.decode(
            scene.view.of_rows(scene.prior.sample(len(drawn_for), seeds.generator("draws")), drawn_for)
        )
    draws = scene.errors(drawn, drawn_for)
    shares = [float(ends[owners == row].mean() / draws[drawn_for == row].mean()) for row in rows]
    assert max(shares) < 1, f"none may end farther than chance: {shares}"
    assert sum(shares) / len(shares) < fit(name).bar, shares


def test_one_target_alone(scene):
    alone, _ = scene.recover(evidence=scene.evidence.take(slice(2, 3)))
    assert set(alone["selected"].evidence.tolist()) == {0}


def test_chunks_that_do_not_divide(scene, name, store):
    if scene.attack().coupled:
        with pytest.raises(Refused, match="attack.chunk: expected null, because .* is coupled"):
            plan_for("attack", *overrides(name), "attack.chunk=7", store=store)
        pytest.skip(f"{name} is coupled: a group is one batch, so there are no chunks to compare")
    unbroken = scene.attack().chunk is None
    whole = scene.whole.stages if unbroken else scene.recover(scene.attack(chunk=None))[0]
    chunked, _ = scene.recover(scene.attack(chunk=7))
    assert torch.equal(whole["initial"].latents, chunked["initial"].latents)
    difference = (whole["optimised"].latents - chunked["optimised"].latents).abs().flatten(1).amax(1)
    assert difference.median() < 1e-3


# Through the store: groups of two, three targets


class Killed(Exception):
    pass


def die_after_the_second_group(monkeypatch):
    """Another process holds the first group; this one dies when it has saved the second."""
    save, claim = Work.save, Work.claim

    def claim_others(self, name):
        return contextlib.nullcontext(False) if name == "group-00000" else claim(self, name)

    def save_and_die(self, *args):
        save(self, *args)
        raise Killed

    monkeypatch.setattr(Work, "claim", claim_others)
    monkeypatch.setattr(Work, "save", save_and_die)


def test_groups_in_any_order_and_resumed_are_equal(scene, name, shared_store, tmp_path, monkeypatch):
    def pipeline(store):
        return Pipeline(plan_for("attack", *overrides(name), store=store))

    plain = pipeline(shared_store).recovered
    for kind in ("target", "prepared", "released"):
        if (shared_store / kind).exists():
            shutil.copytree(shared_store / kind, tmp_path / kind)
    with monkeypatch.context() as patch:
        die_after_the_second_group(patch)
        with pytest.raises(Killed):
            assert pipeline(tmp_path).recovered
    saved = [path.name for path in tmp_path.glob("work/recovered/*/*.safetensors")]
    assert saved == ["group-00001.safetensors"]
    resumed = pipeline(tmp_path).recovered
    assert resumed.id == plain.id
    attack = scene.attack()
    assert plain.provenance["bill"].get("shared_releases") == (attack.images if attack.asks_edge else None)
    left, right = plain.tensors(), resumed.tensors()
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    assert left["evidence.ids"].tolist() == scene.evidence.ids.tolist() != [0, 1, 2]
    assert left["selected.evidence"].unique().tolist() == [0, 1, 2]
    asks = bool(scene.whole.bill)
    assert resumed.metrics["stopped"] == [] and (left["queries"] > 0).tolist() == [asks] * 3


def test_a_spent_budget_is_marked_in_the_store(scene, name, shared_store):
    """The budget is what two fifths of the attack cost; where all steps cost the same, every image of it is spent, and
    else no more is left than a step takes."""
    asked = scene.whole.asked[:-1]
    steps, middle = asked.diff(dim=0), 2 * len(asked) // 5
    budget, most = int(asked[middle].max()), int(steps.max())
    config, choices = composed("attack", *overrides(name))
    config = within(shared_store, {**config, "attack": {**config["attack"], "budget": budget}})
    artefact = Pipeline(read_plan("attack", config, choices)).recovered
    assert f"the budget is {budget}" in artefact.metrics["stopped"][0]
    tensors = artefact.tensors()
    queries = tensors["queries"]
    assert budget - most < queries.max() <= budget
    if (steps[: middle + 1] == most).all():
        assert (queries == budget).all()
    assert tensors["selected.scores"].isnan().all()
    assert torch.equal(tensors["selected.evidence"], tensors["optimised.evidence"])
