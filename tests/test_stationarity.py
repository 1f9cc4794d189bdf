"""Training images from weights: the conditions that weights fulfil, the search for images, and what refuses it."""

import functools

import pytest
import torch
from contract.listing import composed
from planted import planted
from torch import nn

from midefense import seeds
from midefense.architectures.homogeneous import HomogeneousCNN, HomogeneousMLP
from midefense.architectures.small import CNN
from midefense.attacks.schedules import Cosine
from midefense.attacks.stationarity import (
    Stationarity,
    TrainingSet,
    pair_margins,
    runner_up_margins,
    squared_norm,
)
from midefense.oracle import Oracle
from midefense.plan.bind import bind, bind_recipe
from midefense.plan.read import read_plan
from midefense.priors.pixels import Pixels
from midefense.rectifiers import SlopedGate, with_sloped_gates
from midefense.store.artefacts import content_id
from midefense.types import ArchitectureFacts, DatasetFacts, Evidence, EvidenceFacts, Refused, Setting

STEPS = 800
KINDS = {"32-true": torch.float32, "64-true": torch.float64}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def network(**changes):
    torch.manual_seed(0)
    options = {"classes": 3, "channels": 1, "size": 4, "widths": (8, 6), "first_deviation": None}
    return HomogeneousMLP(**{**options, **changes}).double()


def world(model):
    """The parameters, which take gradients, images that do, and how logits of them are asked for."""
    oracle = Oracle(model, "whitebox")
    theta = {name: value.requires_grad_() for name, value in oracle.parameters().items()}
    images = torch.rand(len(LABELS), 1, 4, 4, dtype=torch.float64, generator=seeds.generator("images")).requires_grad_()

    def ask(rows, weights, gate=None):
        return oracle(images[rows], reads=("logits",), weights=weights, gate=gate).logits

    return theta, images, ask


def distance(coefficients="all_pairs", **changes):
    decay = 0.01 if coefficients == "weight_decay" else None
    return Stationarity(coefficients=coefficients, decay=decay, **changes)


def start(part):
    multipliers = part.multipliers(len(LABELS), 3, seeds.generator("multipliers"), torch.float64)
    return None if multipliers is None else multipliers.requires_grad_()


# The distance and its gradients


@pytest.mark.parametrize("coefficients", ["all_pairs", "runner_up", "weight_decay"])
@pytest.mark.parametrize("mean", [True, False])
def test_gradients_are_those_of_finite_differences(coefficients, mean):
    model = network()
    for stage in model.stages.values():
        stage[2] = nn.Sigmoid()  # a ReLU has no second derivative to speak of
    theta, images, ask = world(model)
    part = distance(coefficients, mean=mean, least=0.5, relative=False)
    multipliers = start(part)
    _, by_image, by_multiplier = part(theta, ask, images, LABELS, multipliers)
    step = 1e-6
    for tensor, gradient in ((images, by_image), (multipliers, by_multiplier)):
        if tensor is None:
            assert gradient is None
            continue
        direction = torch.randn(tensor.shape, dtype=torch.float64, generator=seeds.generator("direction"))
        ends = []
        for way in (1, -1):
            tensor.data.add_(direction, alpha=way * step)
            ends.append(part(theta, ask, images, LABELS, multipliers)[0])
            tensor.data.sub_(direction, alpha=way * step)
        slope = float((ends[0] - ends[1]) / (2 * step))
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("coefficients", ["all_pairs", "runner_up", "weight_decay"])
@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_a_set_cut_to_pieces_is_the_same_set(coefficients, chunk):
    theta, images, ask = world(network())
    part = distance(coefficients, least=0.3)
    multipliers = start(part)
    whole = part(theta, ask, images, LABELS, multipliers)
    pieces = part(theta, ask, images, LABELS, multipliers, chunk=chunk)
    for one, other in zip(whole, pieces, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-12, atol=1e-13)
    alone = [part(theta, ask, images, LABELS, multipliers, chunk=chunk)[1]]
    assert torch.equal(alone[0], pieces[1])


def test_margins():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]])
    labels = torch.tensor([1, 2])
    assert torch.equal(pair_margins(logits, labels), torch.tensor([[2.0, 0.0, 1.0], [-1.0, 4.0, 0.0]]))
    assert torch.equal(runner_up_margins(logits, labels), torch.tensor([1.0, -1.0]))


def euler(model):
    """<theta, grad z_1> and z_1 times the number of layers."""
    logit = model(torch.rand(2, 1, 4, 4, dtype=torch.float64)).logits[0, 1]
    parameters = list(model.parameters())
    made = torch.autograd.grad(logit, parameters)
    along = sum((weight * part).sum() for weight, part in zip(parameters, made, strict=True))
    layers = sum(isinstance(part, nn.Linear | nn.Conv2d) for part in model.modules())
    return float(along.detach()), layers * float(logit.detach())


def test_homogeneous_networks_fulfil_eulers_identity_and_others_do_not():
    cnn = HomogeneousCNN(classes=3, channels=1, size=4, widths=(3, 4), features=5, first_deviation=None).double()
    for model in (network(), cnn):
        along, expected = euler(model)
        assert along == pytest.approx(expected, rel=1e-9), "a bias in the first layer is of the same degree"
        model.classifier.bias = nn.Parameter(torch.ones(3, dtype=torch.float64))
        along, expected = euler(model)
        assert along != pytest.approx(expected, rel=1e-3)
    normed = CNN(classes=3, channels=1, size=4, widths=(3,)).double().eval()
    along, expected = euler(normed)
    assert along != pytest.approx(expected, rel=1e-3)


# A planted solution (card network_inversion.md, section 8, 1)


def planted_world():
    model, images, labels, multiplier = planted()
    oracle = Oracle(model, "whitebox")
    theta = {name: value.requires_grad_() for name, value in oracle.parameters().items()}

    def look(images, labels, multipliers, **changes):
        part = distance("runner_up", **changes)
        images, multipliers = images.clone().requires_grad_(), multipliers.clone().requires_grad_()

        def ask(rows, weights):
            return oracle(images[rows], reads=("logits",), weights=weights).logits

        return part(theta, ask, images, labels, multipliers)

    return look, images, labels, torch.full((len(labels),), multiplier, dtype=torch.float64)


def test_at_the_planted_images_the_weights_are_stationary():
    look, images, labels, multipliers = planted_world()
    assert float(look(images, labels, multipliers)[0]) < 1e-25
    assert float(look(images, 1 - labels, multipliers)[0]) == pytest.approx(4, rel=1e-12)
    assert float(look(images, labels, 1.1 * multipliers)[0]) == pytest.approx(0.01, rel=1e-9)
    # the sum divided by the images asks for multipliers as many times as large
    assert float(look(images, labels, 6 * multipliers, mean=True)[0]) < 1e-25
    other = torch.randn(images.shape, dtype=torch.float64, generator=seeds.generator("other")) / 4
    assert float(look(other, labels, multipliers)[0]) > 0.1


def test_multipliers_are_pushed_up_to_the_least_and_start_where_the_sum_is_nearest():
    look, images, labels, multipliers = planted_world()
    value, _, moved = look(images, labels, multipliers, least=1.0, least_weight=5.0)
    short = 1 - multipliers
    assert float(value) == pytest.approx(float(5 * short.square().sum()), rel=1e-9)
    assert torch.allclose(moved, -10 * short, atol=1e-9)
    model = planted()[0]
    oracle = Oracle(model, "whitebox")
    theta = {name: value.requires_grad_() for name, value in oracle.parameters().items()}

    def ask(rows, weights):
        return oracle(images[rows], reads=("logits",), weights=weights).logits

    for chunk in (None, 4):
        unit = distance("runner_up").unit(theta, ask, labels, torch.ones(6, dtype=torch.float64), chunk)
        assert unit == pytest.approx(float(multipliers[0]), rel=1e-9)
        averaged = distance("runner_up", mean=True).unit(theta, ask, labels, torch.ones(6, dtype=torch.float64), chunk)
        assert averaged == pytest.approx(6 * float(multipliers[0]), rel=1e-9)
    assert distance("runner_up", start="uniform").unit(theta, ask, labels, multipliers) == 1
    assert distance("weight_decay").unit(theta, ask, labels, None) == 1


def attack(**changes):
    options = {
        "stationarity": distance("runner_up"),
        "optimizer": functools.partial(torch.optim.Adam, lr=0.02),
        "multiplier_optimizer": functools.partial(torch.optim.Adam, lr=0.02),
        "schedule": Cosine(),
        "steps": STEPS,
        "candidates": 6,
        "deviation": 0.3,
        "around": 0.0,
        "range_weight": 0.0,
    }
    return TrainingSet(**{**options, **changes})


def recovered(part, seed=0):
    evidence = Evidence(torch.tensor([0, 1]), torch.tensor([0, 1]))
    oracle = Oracle(planted()[0], "whitebox", ids=[0, 1])
    prior = Pixels(channels=1, size=4)
    found = list(part.recover({}, prior, oracle, evidence, seeds.generator(seed)))
    return found, oracle


@pytest.mark.parametrize("chunk", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_planted_images_are_found_from_noise(chunk):
    found, oracle = recovered(attack(chunk=chunk))
    images, labels = planted()[1:3]
    last = found[-1]
    assert last.stage == "selected" and len(last) == 12 and last.latents.dtype == torch.float32
    units = nn.functional.normalize(last.latents.flatten(1), dim=1)
    cosines = units @ images.flatten(1).float().T
    best = torch.stack([cosines[last.evidence == label][:, labels == label].amax(0) for label in (0, 1)])
    assert float(best.min()) > 0.9, best
    assert float(found[-2].loss.sum()) < 1e-3
    start = nn.functional.normalize(found[0].latents.flatten(1), dim=1) @ images.flatten(1).float().T
    assert float(start.amax(0).median()) < 0.75
    shown = 2 if chunk else 1
    assert sum(oracle.bill.values()) == 1 + 12 * (STEPS * shown + 1)
    assert bool((last.scores[:-1] >= last.scores[1:])[torch.arange(11) != 5].all()), "ranked by their multipliers"


def test_what_is_found_repeats_under_a_seed_and_differs_under_another():
    one, again, other = (recovered(attack(steps=3), seed)[0][-1].latents for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize(("precision", "kind"), KINDS.items())
def test_the_start_is_kept_as_it_was(precision, kind):
    """The pipeline holds the last of each stage until the group ends: later steps must not move it."""
    found, _ = recovered(attack(steps=3, precision=precision))
    start = 0.3 * torch.randn(12, 1, 4, 4, dtype=kind, generator=seeds.generator(0))
    assert found[0].stage == "initial" and torch.equal(found[0].latents, start.float())
    assert not torch.equal(found[0].latents, found[-1].latents)


@pytest.mark.parametrize("precision", KINDS)
def test_a_target_of_float32_is_searched_in_either_precision(precision):
    torch.manual_seed(0)
    model = HomogeneousMLP(classes=2, channels=1, size=4, widths=(6,), first_deviation=None)
    evidence = Evidence(torch.tensor([0, 1]), torch.tensor([0, 1]))
    part = attack(steps=2, precision=precision, stationarity=distance(gate=30.0))
    found = list(part.recover({}, Pixels(channels=1, size=4), Oracle(model, "whitebox"), evidence, seeds.generator(0)))
    assert found[-1].stage == "selected" and found[-1].latents.isfinite().all()


# Gates


def test_a_sloped_gate_changes_the_gradient_and_nothing_else():
    values = torch.tensor([-2.0, -0.01, 0.01, 2.0], dtype=torch.float64, requires_grad=True)
    gate = SlopedGate(30.0)
    assert torch.equal(gate(values), values.clamp(min=0))
    (slope,) = torch.autograd.grad(gate(values).sum(), values, create_graph=True)
    assert torch.allclose(slope, torch.sigmoid(30 * values))
    (second,) = torch.autograd.grad(slope.sum(), values)
    assert torch.allclose(second, 30 * torch.sigmoid(30 * values) * torch.sigmoid(-30 * values))
    model = network()
    softened = with_sloped_gates(model, 30.0)
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(model(images).logits, softened(images).logits)
    assert not any(isinstance(part, nn.ReLU) for part in softened.modules())
    assert sum(isinstance(part, nn.ReLU) for part in model.modules()) == 2, "the target itself is left alone"
    with pytest.raises(Refused, match="expected a network with ReLU layers"):
        with_sloped_gates(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 30.0)


def test_the_gate_reaches_the_search_and_only_a_white_box_has_one():
    theta, images, ask = world(network())
    multipliers = start(distance())
    gradients = [
        distance()(theta, functools.partial(ask, gate=gate), images, LABELS, multipliers)[1] for gate in (None, 5.0)
    ]
    assert not torch.allclose(*gradients)
    for access in ("scores", "labels", "features"):
        with pytest.raises(Refused, match="hides"):
            Oracle(network(), access)(images.detach(), reads=("labels",), gate=5.0)
        with pytest.raises(Refused, match="hides"):
            Oracle(network(), access).parameters()


# Refusals


def setting(points_at="training_set", labels=(0, 1), batchnorm=()):
    facts = ArchitectureFacts(taps=("features",), batchnorm=batchnorm, classes=2, channels=1, size=4)
    evidence = EvidenceFacts("Weights", points_at, None, labels=labels)
    return Setting(Pixels, DatasetFacts(1, 4, 2), evidence, lambda: facts)


def test_what_it_cannot_work_with_is_refused():
    attack().check(setting())
    with pytest.raises(Refused, match="try evidence=weights"):
        attack().check(setting(points_at="class"))
    with pytest.raises(Refused, match=r"attack\.group: expected room for all 2 classes"):
        attack(group=1).check(setting())
    with pytest.raises(Refused, match="without BatchNorm"):
        attack().check(setting(batchnorm=("stage1.1",)))
    with pytest.raises(Refused, match="expected the target's weight decay"):
        Stationarity(coefficients="weight_decay")
    with pytest.raises(Refused, match="expected the target's weight decay"):
        Stationarity(coefficients="all_pairs", decay=0.1)
    with pytest.raises(Refused, match="choices: all_pairs, runner_up, weight_decay"):
        Stationarity(coefficients="pairs")
    with pytest.raises(Refused, match="choices: projected, uniform"):
        Stationarity(start="zero")
    with pytest.raises(Refused, match="choices: 64-true, 32-true"):
        attack(precision="half")


@pytest.mark.parametrize(("former", "name"), [("float64", "64-true"), ("float32", "32-true")])
def test_former_names_of_precisions_are_refused_with_the_new_and_kept_in_recipes(former, name):
    with pytest.raises(Refused, match=rf"attack\.precision: expected .* got {former}; try {name}"):
        attack(precision=former)
    arguments = {"precision": name, "steps": 3}
    assert TrainingSet.pin(arguments) == {**arguments, "precision": former}
    assert TrainingSet.unpin(TrainingSet.pin(arguments)) == arguments


# What commit aaa73b7 gave them, when precisions were called float64 and float32.
@pytest.mark.parametrize(
    ("name", "recorded"),
    [("kkt", "he4f3f15fa75"), ("kkt_small", "hfff25a70a27"), ("kkt_buzaglo", "h9195d96fb82")],
)
def test_stored_reconstructions_keep_their_ids(name, recorded):
    node = bind(composed("attack", f"attack={name}")[0]["attack"], "attack")
    assert content_id(node.recipe()) == recorded
    again = bind_recipe(node.recipe(), {})
    assert again.arguments["precision"] == node.arguments["precision"]
    assert content_id(again.recipe()) == recorded


def test_the_norm_of_the_weights_is_summed_up_once(monkeypatch):
    calls = []

    def counted(theta):
        calls.append(len(theta))
        return squared_norm(theta)

    monkeypatch.setattr("midefense.attacks.stationarity.squared_norm", counted)
    recovered(attack(steps=5))
    assert len(calls) == 1


def test_metrics_that_know_classes_alone_are_refused_for_weights():
    words = ("dataset=digits", "architecture=homogeneous_mlp", "attack=kkt_small", "tracking=none")
    read_plan("evaluate", *composed("evaluate", *words, "metrics=matched"))
    with pytest.raises(Refused, match="try metrics=matched"):
        read_plan("evaluate", *composed("evaluate", *words))
