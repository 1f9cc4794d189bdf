"""Every defense of `conf/defense`, on the toy and a small network with batch norm."""

import functools
import itertools

import pytest
import torch
from conftest import plan_for

from contract.listing import class_of, node, options
from midefense import seeds
from midefense.defenses.base import NoDefense, Stack
from midefense.defenses.output import OutputDefense
from midefense.pipeline.classifiers import load_classifier
from midefense.pipeline.pipeline import Pipeline
from midefense.priors.crafter import CrafterGan
from midefense.training import inference, loop
from midefense.types import Batch, Origin, Refused

NAMES = options("defense")
NO_NEUTRAL = {"stack"}  # it has no settings of its own
WORLD = (
    "dataset=toy",
    "dataset.size=16",
    "recipe.epochs=4",
    "recipe.batch_size=32",
    "recipe.optimizer.lr=5e-3",
    "architecture=cnn",
    "architecture.size=16",
    "architecture.widths=[8,16]",
    "architecture.features=16",
    "compute=cpu",
    "tracking=none",
)
FITTED = {
    "bido_coco": ("defense.lambda_y=5.0",),  # the published weight is for 2,000 updates
    "entire_erasing": ("recipe.epochs=8",),  # half of the updates of each are left out
    # their generator makes images of 32 px and more; the network still sees 16
    **dict.fromkeys(("crafter", "crafter_small", "crafter_z"), ("dataset.size=32",)),
}
# It removes skip connections, which `cnn` has not.
TRANSFORMER = ("architecture=vit_tiny", "architecture.size=16", "architecture.patch=4", "architecture.width=16")
NETWORKS = {"rolss": (*TRANSFORMER, "architecture.dropout=0", "recipe.epochs=8")}
# What releases the same however often it is asked.
NOTHING_DRAWN = {"feature_quantisation"}
# A critic ties images together on purpose: it is left out where they are released apart.
CRAFTED = (
    "defense.prior.width=4",
    "defense.prior.latent_size=6",
    "defense.amortiser=null",
    "defense.critic.steps=0",
    "defense.attacker.steps=3",
    "defense.steps=4",
)
# Forwards in eval mode before the one of an update, of what looks at the network first.
LOOKS = {"adversarial_training": 10, "trap_mid": 1}
SHORT = dict.fromkeys(("crafter", "crafter_small", "crafter_z"), CRAFTED)


# What one process alone can train.
ONE_PROCESS = {"dp_sgd", "trap_mid"}


def equipped(defense, edge):
    """A defense with the generator that it asks for, untrained; the edge resizes what that makes."""
    if defense.asks_of_prior:
        with seeds.isolated("prior"):
            prior = CrafterGan(channels=1, size=32, latent_size=6, width=4, steps=1).eval().requires_grad_(False)
        defense.equip(edge, prior, {})
    return defense


def test_the_listing():
    assert {name for name in NAMES if build(name).neutral is None} == NO_NEUTRAL


def build(name, *overrides):
    return node("train_target", "defense", f"defense={name}", *overrides).given(classes=4, channels=1, size=16).build()


def world_of(name):
    """The world that a defense is tried in, with a network that it works on."""
    own = NETWORKS.get(name, ())
    return (*(word for word in WORLD if not (own and word.startswith("architecture"))), *own)


def neutral_of(defense):
    """The overrides that switch a defense off."""
    written = {key: "null" if value is None else value for key, value in defense.neutral.items()}
    return [f"defense.{key}={value}" for key, value in written.items()]


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")

    @functools.cache
    def learnt(name):
        start = (f"recipe.start={learnt('none').target.artefact.id}",) if build(name).needs_start else ()
        words = (*world_of(name), f"defense={name}", *FITTED.get(name, ()), *start)
        return Pipeline(plan_for("train_target", *words, store=store))

    return learnt


@pytest.fixture
def images(learn):
    return learn("none").splits.private_train


def network(name="none"):
    """A fresh network of the architecture that a defense is tried on, the same at every call."""
    architecture = node("train_target", "architecture", *world_of(name)).given(classes=4, channels=1, size=16)
    with seeds.isolated("network"):
        return architecture.build()


def recipe(learn, epochs=1):
    made = learn("none").plan.target.recipe.build()
    made.epochs = epochs
    return made


def assembled(name, defense):
    """A fresh network as the defense rebuilds it; one that keeps what was learned before takes it as such."""
    return loop.assemble(network(name), defense, 3, Origin.STARTED if defense.needs_start else Origin.DRAWN)


def trained(name, learn, images, defense, epochs=1):
    """The weights of the network for `name` after a short training, and the logs of its last epoch."""
    model, logs = assembled(name, defense), {}
    for _, logs, _ in loop.fit(model, defense, images, recipe(learn, epochs), seed=3):  # noqa: B007
        pass
    return model, logs


@pytest.fixture(scope="module")
def undefended(learn):
    """`undefended(name, epochs)`: the weights of the network for `name` after a training without a defense, made once
    for all names whose network is the same."""

    @functools.cache
    def weights(name, epochs):
        return trained(name, learn, learn("none").splits.private_train, NoDefense(), epochs)[0].state_dict()

    return lambda name, epochs: weights(name if name in NETWORKS else "none", epochs)


@pytest.mark.parametrize("name", NAMES)
def test_trains_to_utility_and_answers_the_same_when_loaded(name, learn):
    target = learn(name).target
    assert target.artefact.metrics["test_accuracy_top1"] >= 0.9
    images = learn(name).splits.private_test
    measured = inference.evaluate(target.model, images)
    assert measured["accuracy"] == target.artefact.metrics["test_accuracy_top1"]
    assert measured["loss"] == pytest.approx(target.artefact.metrics["test_loss"], abs=1e-6)
    again = load_classifier(learn(name).session, target.artefact)
    shown = images.floats()
    first, second = target.model(shown).logits, again(shown).logits
    assert torch.equal(first, second)
    if not build(name).stochastic_when_deployed:
        assert torch.equal(first, target.model(shown).logits)
        assert not any(module.training for module in target.model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_named_and_finite(name, learn, images):
    defense = build(name)
    _, logs = trained(name, learn, images, defense)
    losses = {key: value for key, value in logs.items() if key.startswith("loss/")}
    assert "loss/task" in losses and all(key.removeprefix("loss/") for key in losses)
    assert torch.tensor(list(logs.values())).isfinite().all()
    assert sum(losses.values()) == pytest.approx(logs["loss"], rel=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_NEUTRAL])
def test_the_neutral_setting_is_bit_equal_to_none(name, learn, images, undefended):
    neutral, _ = trained(name, learn, images, build(name, *neutral_of(build(name))), epochs=2)
    left, right = neutral.state_dict(), undefended(name, 2)
    assert left.keys() == right.keys() and [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_it_does_something(name, learn, images, undefended):
    """The counterpart of the neutral setting: as configured, the weights are others; of what acts at release alone they
    are the same, and what is released is another; so they are where the deployed answers alone are changed."""
    defense = build(name)
    defended, _ = trained(name, learn, images, defense, epochs=4)
    weight = "classifier.weight"
    same = torch.equal(defended.state_dict()[weight], undefended(name, 4)[weight])
    assert same == (defense.only_releases or isinstance(defense, OutputDefense))


@pytest.mark.parametrize("name", [name for name in NAMES if "release" in class_of("defense", name).owns])
def test_what_is_released_depends_on_the_image_and_the_repeat_alone(name, learn, images):
    """Images together or apart, in any order; a second repeat differs unless nothing is drawn; switched off, it is the
    output of the edge bit for bit; no image is handed on as it was."""
    edge = network().eval().requires_grad_(False).split("stage1")[0]
    shown, ids = images.floats(torch.arange(6)), images.ids[:6] + 100

    def released(rows, repeat=0, *settings):
        defense = equipped(build(name, *SHORT.get(name, ()), *settings), edge)
        return defense.release(edge, shown[rows], ids[rows], seeds.generator("release", repeat)).detach()

    whole, order = released(torch.arange(6)), torch.tensor([4, 0, 5, 1, 3, 2])
    parts = torch.cat([released(rows) for rows in order.split([4, 2])])
    torch.testing.assert_close(parts, whole[order], rtol=0, atol=1e-5)
    plain = edge(shown)
    assert whole.shape == plain.shape and whole.isfinite().all()
    assert all(not torch.equal(one, other) for one, other in zip(whole, plain, strict=True))
    assert torch.equal(whole, released(torch.arange(6), 1)) == (name in NOTHING_DRAWN)
    assert torch.equal(released(torch.arange(6), 0, *neutral_of(build(name))), plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_costs_one_forward_per_update(name, learn, images):
    stack = Stack(members={"first": build(name), "second": NoDefense()})
    calls = []
    model = assembled(name, stack)
    model.register_forward_hook(lambda module, *_: calls.append(module.training))
    assert len(list(loop.fit(model, stack, images, recipe(learn), seed=3))) == 1
    assert calls == ([False] * LOOKS.get(name, 0) + [True]) * round(stack.epoch_share * -(-len(images) // 32))


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(NAMES, 2)))
def test_pairs_stack_unless_both_own_a_slot(first, second):
    members = {"first": build_once(first), "second": build_once(second)}
    shared = set(members["first"].owns) & set(members["second"].owns)
    adds, ties = ({name for name, member in members.items() if getattr(member, fact)} for fact in FACTS)
    apart = any(member.coupled or member.mixes for member in members.values())
    if shared:
        with pytest.raises(Refused, match=f"one owner of slot '{min(shared)}'|one owner of slot"):
            Stack(members=members)
    elif adds and ties:
        with pytest.raises(Refused, match="whose loss ties them together, got those that '.*' adds; try leaving"):
            Stack(members=members)
    elif apart and any(member.private for member in members.values()):
        with pytest.raises(Refused, match="expected images apart from each other beside"):
            Stack(members=members)
    else:
        assert set(Stack(members=members).owns) == {*members["first"].owns, *members["second"].owns}


FACTS = ("adds_images", "coupled")
build_once = functools.lru_cache(maxsize=None)(build)


@pytest.mark.slow
@pytest.mark.parametrize("first", NAMES)
def test_a_pair_that_stacks_trains_or_is_refused_with_the_reason(first, learn, images):
    """With the test above: every pair of defenses composes and trains, or is refused (the table of the card
    `defense_matrix`, computed). Two updates each, on the network of the one that needs its own."""
    few = images.take(torch.arange(0, len(images), len(images) // 64)[:64])
    for second in NAMES[NAMES.index(first) + 1 :]:
        try:
            stack = Stack(members={"first": build(first), "second": build(second)})
            own = next((name for name in (first, second) if name in NETWORKS), "none")
            if set(stack.taps) - set(network(own).tap_names):
                continue  # stages that this network has not, which a plan refuses
            model = assembled(own, stack)
            ((_, logs, _),) = loop.fit(model, stack, few, recipe(learn), seed=3)
        except Refused as refusal:
            assert "expected" in str(refusal), (second, refusal)
            continue
        assert "loss/task" in logs and torch.tensor(list(logs.values())).isfinite().all(), second


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient(name, learn, images):
    defense = build(name)
    model = assembled(name, defense)
    learner = loop.Learner(model, defense, recipe(learn)).train()
    defense.begin_epoch(model, 3, 4)
    rows = torch.arange(0, len(images), 5)
    labels, ids = images.labels[rows], images.ids[rows]
    batch = Batch(images.floats(rows), labels, ids, torch.ones(len(rows)), seeds.generator("batch"))
    _, terms = learner(defense.transform(batch))
    sum(term.sum() for term in terms.values()).backward()
    beside = "defense." if "step" in defense.owns else None  # what its own step trains; see the tests of that
    trainable = {key: p for key, p in learner.named_parameters() if p.requires_grad}
    trainable = {key: p for key, p in trainable.items() if beside is None or not key.startswith(beside)}
    assert trainable and [key for key, p in trainable.items() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in trainable.values())


def test_what_one_process_alone_trains_is_listed():
    assert {name for name in NAMES if build(name).one_process} == ONE_PROCESS


@pytest.mark.parametrize("words", [[f"defense={name}"] for name in sorted(ONE_PROCESS)] + [["stack"]])
def test_several_processes_are_refused_before_anything_is_read(words, tmp_path):
    stacked = ("defense=stack", "defense@defense.members.second=trap_mid")
    words = ("dataset=toy", *(stacked if words == ["stack"] else words), "compute=cpu", "compute.devices=2")
    with pytest.raises(Refused, match="compute: expected one process, as what .* learns is not shared .*, got 2; try"):
        plan_for("train_target", *words, store=tmp_path / "store")
    plan_for("attack", *words, store=tmp_path / "store")  # where one process trains it, whatever their number
