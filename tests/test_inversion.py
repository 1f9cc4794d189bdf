"""Network inversion: what each loss is meant to be and what the authors' code makes of it, how weights of losses move,
generators that are told a label, and learning that is stopped."""

import functools
import math
import signal
import time

import pytest
import torch
from conftest import plan_for
from contract.listing import composed
from torch import nn
from torch.nn import functional as F

from midefense import seeds
from midefense.architectures.homogeneous import HomogeneousMLP
from midefense.architectures.network_inversion import NetworkInversionCNN, NetworkInversionMLP
from midefense.attacks.inversion import Bank, NetworkInversion, Weighing
from midefense.attacks.inversion_terms import (
    Cosine,
    CrossEntropy,
    Divergence,
    GeneratorNorm,
    GradientNorm,
    Orthogonality,
    OutsideRange,
    Perturbation,
    Scene,
    StationaryWeights,
    Term,
    TotalVariation,
    WeightedTerm,
    in_front_of_norms,
)
from midefense.attacks.stationarity import Stationarity
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.read import read_plan
from midefense.priors.nets.network_inversion import (
    Nearest,
    TransposedHotGenerator,
    UpsampledHotGenerator,
    VectorGenerator,
    hot_matrix,
)
from midefense.priors.pixels import Pixels
from midefense.store.store import Store, Work
from midefense.types import (
    Answer,
    ArchitectureFacts,
    DatasetFacts,
    Evidence,
    EvidenceFacts,
    Question,
    Refused,
    Setting,
    Trace,
)

GENERATORS = (TransposedHotGenerator, UpsampledHotGenerator, VectorGenerator)
LABELS = torch.tensor([0, 2, 1, 2])


def scene(images=None, labels=LABELS, logits=None, features=None, **more):
    """What losses see of a target that answers so."""
    wanted = more.pop("wanted", None)
    if wanted is None:
        wanted = F.one_hot(labels, logits.shape[1] if logits is not None else 3).float()
    answer = Answer(logits=logits, features=features)
    return Scene(images, labels, wanted, lambda *_: answer, **more)


# Losses: as they are meant, and as coded


def test_the_divergence_from_a_one_hot_label_is_the_cross_entropy():
    logits = 3 * torch.randn(4, 10, generator=seeds.generator("logits"))
    seen = scene(logits=logits)
    assert float(Divergence()(seen)) == pytest.approx(float(CrossEntropy()(seen)), rel=1e-6)
    soft = torch.full((4, 10), 0.1)
    assert float(Divergence()(scene(logits=torch.zeros(4, 10), wanted=soft))) == pytest.approx(0, abs=1e-6)
    assert float(CrossEntropy(smoothing=0.1)(seen)) > float(CrossEntropy()(seen))


@pytest.mark.parametrize(("sure", "expected"), [(50.0, 1.4612), (-50.0, 2.4612)])
def test_softened_twice_the_divergence_cannot_reach_nothing(sure, expected):
    right, wrong = F.one_hot(LABELS, 10), F.one_hot((LABELS + 1) % 10, 10)
    logits = (abs(sure) * (right if sure > 0 else wrong)).float()
    seen = scene(logits=logits)
    least, most = math.log(1 + 9 / math.e), math.log(9 + math.e)
    assert (least, most) == (pytest.approx(1.4612, abs=1e-4), pytest.approx(2.4612, abs=1e-4))
    assert float(Divergence(form="of_twice_softened")(seen)) == pytest.approx(expected, abs=1e-4)
    assert float(Divergence()(seen)) == pytest.approx(0 if sure > 0 else 50, abs=1e-4)


def test_perturbed_losses_ask_about_perturbed_images():
    asked = []

    def ask(images, weights):
        asked.append(images)
        return Answer(logits=images.flatten(1)[:, :3])

    images = torch.full((4, 1, 2, 2), 0.5)
    signs = torch.ones(4, 1, 2, 2)
    seen = Scene(images, LABELS, F.one_hot(LABELS, 3).float(), ask, signs, Perturbation(strength=0.25))
    for loss in (CrossEntropy(perturbed=True), Divergence(perturbed=True), CrossEntropy()):
        loss(seen)
    assert [float(one.mean()) for one in asked] == [0.75, 0.5], "one forward for all who ask the same"
    assert (CrossEntropy(perturbed=True).role, CrossEntropy().role, Cosine().role) == ("perturbed", "clean", "")


def test_the_perturbation_stays_an_image_and_as_coded_does_not():
    images = torch.rand(50, 1, 8, 8, generator=seeds.generator("images"))
    signs = torch.randn(images.shape, generator=seeds.generator("signs")).sign()
    meant = Perturbation()(images, signs)
    assert float(meant.min()) >= 0 and float(meant.max()) <= 1
    assert float((meant - images).abs().max()) == pytest.approx(0.1, abs=1e-6)
    coded = Perturbation(strength=1.2, low=1e-6, high=None)(images, signs)
    assert float((coded == 1e-6).float().mean()) == pytest.approx(0.5, abs=0.03) and float(coded.max()) > 2.1


def test_cosine_and_orthogonality():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    seen = scene(labels=LABELS[:3], features=features)
    assert float(Cosine()(seen)) == pytest.approx(-1 / 3), "the mean of 0, -1 and 0"
    assert float(Cosine(sign="absolute")(seen)) == pytest.approx(1 / 3)
    assert float(Cosine(sign="absolute", pairs="all")(seen)) == pytest.approx(2 / 9)
    upright = scene(labels=LABELS[:2], features=features[:2])
    assert float(Orthogonality()(upright)) == pytest.approx(0)
    assert float(Orthogonality(unit=False)(upright)) == pytest.approx((3**2 + 8**2) / 4)
    assert float(Orthogonality(unit=False, scale="per_number")(upright)) == pytest.approx((3**2 + 8**2) / 16)


def test_features_at_several_stages_are_added_up():
    one, other = torch.eye(2)[:, :, None], torch.ones(2, 1)
    seen = scene(labels=LABELS[:2], features=torch.eye(2))
    seen.__dict__["answer"] = Answer(features=torch.eye(2), taps={"near": one, "far": other})
    assert float(Cosine()(seen)) == 0 and float(Cosine(taps=["near", "far"])(seen)) == 1


def test_total_variation_and_its_growing_weight():
    images = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    assert float(TotalVariation()(scene(images))) == pytest.approx((1 + 0.25 + 0.25) / 2)
    growing, constant = (WeightedTerm(loss=TotalVariation(), weight=2.0, growing=grows) for grows in (True, False))
    assert [growing.at(step) for step in (0, 1, 9999)] == [0, 2, 19998]
    assert [constant.at(step) for step in (0, 1, 9999)] == [2, 2, 2]


def test_the_range_as_coded_is_dead():
    images = torch.tensor([-1.0, -0.5, 0.25, 1.0]).view(2, 1, 1, 2)
    assert float(OutsideRange(low=-1.0, high=1.0, summed=True)(scene(images))) == 0
    assert float(OutsideRange()(scene(images))) == pytest.approx(1.5 / 2)
    assert float(OutsideRange(summed=True)(scene(images + 1))) == pytest.approx(0.25 + 1)


def target(model=None):
    torch.manual_seed(0)
    model = model or HomogeneousMLP(classes=3, channels=1, size=4, widths=(6,), first_deviation=None)
    oracle = Oracle(model, "whitebox")
    return oracle, {name: value.requires_grad_() for name, value in oracle.parameters().items()}


def seen_by(oracle, theta, multipliers=None, gate=None):
    images = torch.rand(4, 1, 4, 4, generator=seeds.generator("images")).requires_grad_()

    def ask(images, weights):
        return oracle(images, None, ("logits", "features"), weights, gate)

    return Scene(
        images,
        LABELS,
        F.one_hot(LABELS, 3).float(),
        ask,
        theta=theta,
        multipliers=multipliers,
        normed=in_front_of_norms(list(theta), [name for name in oracle.weights() if name not in theta]),
    )


def test_the_gradient_norm_is_that_of_all_parameters_and_bears_a_gradient_of_nothing():
    oracle, theta = target()
    seen = seen_by(oracle, theta)
    model = HomogeneousMLP(classes=3, channels=1, size=4, widths=(6,), first_deviation=None)
    model.load_state_dict(oracle.weights())
    F.cross_entropy(model(seen.images.detach()).logits, LABELS).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert float(GradientNorm()(seen).detach()) == pytest.approx(float(norm), rel=1e-5)

    sure, own = target(Sure())
    seen = seen_by(sure, own)
    loss = GradientNorm()(seen)
    loss.backward()
    assert float(loss.detach()) < 1e-15 and bool(seen.images.grad.isfinite().all())


class Sure(nn.Module):
    """Says the labels of the four images, so loudly that its loss is 0."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1000.0))

    def forward(self, images, taps=()):
        nothing = images.flatten(1).sum(1, keepdim=True) * 0
        return Trace(self.scale * F.one_hot(LABELS, 3).float() + nothing, images.flatten(1))


@pytest.mark.parametrize("coefficients", ["all_pairs", "runner_up", "weight_decay"])
@pytest.mark.parametrize("relative", [True, False])
def test_stationarity_is_that_of_free_images(coefficients, relative):
    oracle, theta = target()
    decay = 0.01 if coefficients == "weight_decay" else None
    distance = Stationarity(coefficients=coefficients, decay=decay, relative=relative, gate=5.0)
    multipliers = distance.multipliers(4, 3, seeds.generator("multipliers"), torch.float32)
    multipliers = None if multipliers is None else multipliers.requires_grad_()
    seen = seen_by(oracle, theta, multipliers, gate=5.0)
    loss = StationaryWeights(distance=distance)(seen)
    loss.backward()

    def ask(rows, weights):
        return oracle(seen.images[rows], None, ("logits",), dict(weights), 5.0).logits

    value, by_image, by_multiplier = distance(theta, ask, seen.images, LABELS, multipliers)
    assert float(loss.detach()) == pytest.approx(float(value), rel=1e-5)
    torch.testing.assert_close(seen.images.grad, by_image, rtol=1e-4, atol=1e-6)
    if multipliers is not None:
        torch.testing.assert_close(multipliers.grad, by_multiplier, rtol=1e-4, atol=1e-6)


def test_layers_in_front_of_a_norm_are_left_out_unless_as_coded():
    mlp = NetworkInversionMLP(classes=3, channels=1, size=4, widths=(6, 5))
    cnn = NetworkInversionCNN(classes=3, channels=1, size=8, widths=(4,), features=5)

    def left_out(model):
        buffers = [name for name, _ in model.named_buffers()]
        return sorted(in_front_of_norms([name for name, _ in model.named_parameters()], buffers))

    assert left_out(mlp) == [
        f"stages.{stage}.1.{kind}" for stage in ("features", "hidden1") for kind in ("bias", "weight")
    ]
    assert left_out(cnn) == [
        *(f"stages.features.1.{kind}" for kind in ("bias", "weight")),
        *(f"stages.stage1.0.{kind}" for kind in ("bias", "weight")),
    ]
    plain = HomogeneousMLP(classes=3, channels=1, size=4, widths=(6,), first_deviation=None)
    assert left_out(plain) == []
    oracle, theta = target(mlp.eval())
    distance = Stationarity(coefficients="runner_up", relative=False)
    seen = seen_by(oracle, theta, torch.zeros(4))
    squares = {name: float(value.detach().square().sum()) for name, value in theta.items()}
    everything, rest = (StationaryWeights(distance=distance, normed=normed)(seen).detach() for normed in (True, False))
    assert float(everything) == pytest.approx(sum(squares.values()), rel=1e-5)
    assert float(everything - rest) == pytest.approx(sum(squares[name] for name in left_out(mlp)), rel=1e-5)


def test_the_generators_norm():
    generator = nn.Linear(2, 1)
    nn.init.constant_(generator.weight, -2)
    nn.init.constant_(generator.bias, 1)
    assert float(GeneratorNorm()(scene(generator=generator)).detach()) == 5


# How weights of losses move

ROLES = {"divergence": "clean", "perturbed": "perturbed", "smooth": "smoothness", "cosine": ""}


def factors(weighing, right=True, values=(1.0, 1.0, 1.0, 1.0), step=0):
    logits = 5 * F.one_hot(LABELS if right else (LABELS + 1) % 3, 3).float()
    losses = dict(zip(ROLES, map(torch.tensor, values), strict=True))
    return [round(float(one), 4) for one in weighing.factors(ROLES, losses, scene(logits=logits), step)]


def test_weighings():
    assert factors(Weighing()) == [1, 1, 1, 1]
    switch = Weighing(kind="switch", step=400)
    assert factors(switch, step=399) == [1, 0, 1, 1] and factors(switch, step=400) == [0, 1, 1, 1]
    gated = Weighing(kind="gated")
    assert factors(gated, right=False) == [10, 0, 1, 1] and factors(gated, right=True) == [0, 1, 0, 1]
    balanced = Weighing(kind="balanced")
    # the lower of the two middle losses is the median
    assert factors(balanced, values=(2.0, 4.0, 400.0, 0.0)) == [1, 0.5, 0.1, 10]
    assert factors(balanced, values=(2.0, 4.0, 8.0, -1.0)) == [1, 0.5, 0.25, 0.1]


# Generators


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(("classes", "channels", "size"), [(10, 1, 28), (5, 3, 8), (13, 1, 33)])
def test_generators_make_images_of_any_size_and_number_of_classes(kind, classes, channels, size):
    torch.manual_seed(0)
    generator = kind(classes=classes, channels=channels, size=size, latent_size=6, width=4).eval()
    latents, wanted = torch.randn(3, 6), F.one_hot(torch.tensor([0, 1, classes - 1]), classes).float()
    with torch.no_grad():
        images = generator(latents, wanted)
        again = generator(latents, wanted.flip(0))
    assert images.shape == (3, channels, size, size) and float(images.min()) > 0 and float(images.max()) < 1
    assert not torch.equal(images[0], again[0]), "the label is listened to"
    outward = kind(classes=classes, channels=channels, size=size, latent_size=6, width=4, output="tanh").train()
    with torch.no_grad():
        assert float(outward(20 * latents, wanted).min()) < 0
    with pytest.raises(Refused, match="choices: sigmoid, tanh"):
        kind(classes=classes, channels=channels, size=size, output="relu")


def test_the_hot_matrix():
    matrix = hot_matrix(torch.tensor([3]), 10)[0, 0]
    expected = torch.zeros(10, 10)
    expected[3, :] = expected[:, 3] = 1
    assert torch.equal(matrix, expected)
    for classes in (2, 5, 13, 40):
        matrices = hot_matrix(torch.arange(classes), classes).flatten(1)
        assert 0 < float(matrices.max()) <= 1 + 1e-6
        assert len(matrices.unique(dim=0)) == (10 if classes == 40 else classes), "four of forty share a pixel"
        share = (2 * classes - 1) / classes**2
        assert matrices.mean(1) == pytest.approx([share] * classes, rel=1e-4)


def test_the_matrix_shows_the_class_wanted_and_as_coded_another():
    torch.manual_seed(1)
    options = {"classes": 10, "channels": 1, "size": 12, "latent_size": 4, "width": 4, "dropout": 0.0}
    wanted = torch.eye(10)
    meant, coded = (UpsampledHotGenerator(**options, matrix_class=name) for name in ("wanted", "processed"))
    assert torch.equal(meant.class_of_matrix(wanted, meant.process(wanted)), torch.arange(10))
    assert not torch.equal(coded.class_of_matrix(wanted, coded.process(wanted)), torch.arange(10))
    with pytest.raises(Refused, match="choices: wanted, processed"):
        UpsampledHotGenerator(**options, matrix_class="label")


def test_pixels_are_taken_as_torch_takes_the_nearest():
    maps = torch.rand(2, 3, 7, 7)
    for side in (10, 28, 4):
        assert torch.equal(Nearest(side)(maps), F.interpolate(maps, size=(side, side), mode="nearest"))


# Learning

QUESTION = Question(torch.tensor([0, 2]), 3)
PRIOR = Pixels(channels=1, size=6)


class Templates(nn.Module):
    """Three pictures; the logits are how much an image is like each."""

    def __init__(self):
        super().__init__()
        pictures = torch.zeros(3, 36)
        for label in range(3):
            pictures[label, 12 * label : 12 * label + 12] = 1
        self.pictures = nn.Parameter(pictures)
        self.shown = []

    def __deepcopy__(self, memo):
        return self

    def forward(self, images, taps=()):
        self.shown.append(images.detach().clone())
        return Trace((images.flatten(1) - 0.5) @ self.pictures.T, images.flatten(1))


def weighted(**losses: Term):
    return {name: WeightedTerm(loss=loss, weight=1.0) for name, loss in losses.items()}


def attack(**changes):
    options = {
        "generator": functools.partial(
            UpsampledHotGenerator, classes=3, channels=1, size=6, latent_size=4, width=8, dropout=0.1
        ),
        "terms": weighted(clean=CrossEntropy(), perturbed=CrossEntropy(perturbed=True), alike=Cosine()),
        "optimizer": functools.partial(torch.optim.Adam, lr=0.01),
        "multiplier_optimizer": functools.partial(torch.optim.Adam, lr=0.05),
        "weighing": Weighing(),
        "perturbation": Perturbation(),
        "steps": 40,
        "batch_size": 8,
        "candidates": 3,
        "unit": 15,
    }
    return NetworkInversion(**{**options, **changes})


def kkt(**changes):
    distance = Stationarity(coefficients="all_pairs")
    return attack(terms=weighted(stationarity=StationaryWeights(distance=distance)), bank=4, **changes)


KINDS = {
    "fresh": attack,
    "bank": kkt,
    "squares": functools.partial(
        attack,
        terms=weighted(
            stationarity=StationaryWeights(distance=Stationarity(coefficients="runner_up", start="uniform")),
            gradient=GradientNorm(),
        ),
        labels="uniform",
        multipliers="squares",
    ),
    "soft": functools.partial(attack, labels="soft"),
}


def learnt(part, state=None, stop=None, model=None, seed=0):
    """The last state, the logs, and the oracle; `stop`: after how many states."""
    oracle, logs = Oracle(model or Templates(), "whitebox"), []
    work = part.prepare(PRIOR, oracle, None, seeds.generator("prepare", seed), state, QUESTION)
    for number, (_, told, give) in enumerate(work, start=1):
        state = {name: value.clone() for name, value in give().items()}
        logs.append(told)
        if number == stop:
            break
    return state, logs, oracle


def test_it_learns_what_the_target_takes_for_each_class():
    part = attack()
    state, logs, oracle = learnt(part)
    assert set(logs[0]) == {"loss", "clean", "perturbed", "alike", "accuracy"} and len(logs) == 3
    assert logs[-1]["clean"] < logs[0]["clean"] / 3 and logs[-1]["accuracy"] > 0.95
    assert logs[-1]["loss"] == pytest.approx(sum(logs[-1][name] for name in ("clean", "perturbed", "alike")), rel=1e-5)
    assert oracle.shared_bill == 40 * 2 * 8 and oracle.bill == {}
    oracle = Oracle(Templates(), "whitebox", ids=[0, 2])
    evidence = Evidence(QUESTION.labels, QUESTION.labels)
    found = list(part.recover(state, PRIOR, oracle, evidence, seeds.generator("group")))
    assert [one.stage for one in found] == ["initial", "initial", "optimised", "optimised", "selected"]
    first, last = found[1], found[-1]
    assert last.evidence.tolist() == [0, 0, 0, 1, 1, 1] and last.latents.shape == (6, 1, 6, 6)
    assert float(last.loss.max()) < 0.2 < float(first.loss.mean()), "what has learnt nothing is beside it"
    assert oracle.bill == {0: 6, 2: 6} and bool((last.scores.view(2, 3).diff(dim=1) <= 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_state_it_goes_on_to_the_same_bits(kind):
    part = KINDS[kind](steps=7, unit=3)
    whole, _, oracle = learnt(part)
    for stop in (1, 2, 3):
        partly, _, first = learnt(part, stop=stop)
        resumed, _, second = learnt(part, partly)
        assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
        assert first.shared_bill + second.shared_bill == oracle.shared_bill
    other, *_ = learnt(part, seed=1)
    assert not torch.equal(other["generator.paint.5.weight"], whole["generator.paint.5.weight"])


def test_a_bank_is_the_same_in_every_step_and_its_images_are_what_is_found():
    part = kkt(steps=3)
    state, logs, _ = learnt(part)
    assert state["bank.labels"].tolist() == [0] * 4 + [2] * 4 and state["bank.raw"].shape == (8, 3)
    start = learnt(kkt(steps=1, optimizer=functools.partial(torch.optim.SGD, lr=0.0)))[0]
    assert torch.equal(start["bank.latents"], state["bank.latents"])
    assert float(state["bank.unit"]) > 0 and float(state["bank.unit"]) != 1
    generator = part._loaded(state, PRIOR.device)
    with torch.no_grad():
        images = generator(state["bank.latents"], F.one_hot(state["bank.labels"], 3).float())
    evidence = Evidence(torch.tensor([2]), torch.tensor([2]))
    found = list(part.recover(state, PRIOR, Oracle(Templates(), "whitebox"), evidence, seeds.generator(0)))
    assert torch.allclose(found[2].latents, images[4:], atol=1e-6) and len(found[-1]) == 4
    assert logs[0]["loss"] == logs[0]["stationarity"]


def test_labels_of_a_batch():
    def labels(**changes):
        part = attack(**changes)
        apprentice = part.apprentice(Oracle(Templates(), "whitebox"), QUESTION, seeds.generator(0), PRIOR.device)
        return [part._batch(apprentice, QUESTION, seeds.generator(step), PRIOR.device) for step in range(40)]

    balanced, uniform, soft = (labels(labels=name) for name in ("balanced", "uniform", "soft"))
    assert {tuple(one.labels.bincount(minlength=3).tolist()) for one in balanced} == {(4, 0, 4)}
    assert {int((one.labels == 0).sum()) for one in uniform} > {2, 3, 4, 5} and not (uniform[0].labels == 1).any()
    assert all(torch.equal(one.shares.argmax(1), one.labels) for one in soft)
    assert torch.allclose(soft[0].shares.sum(1), torch.ones(8)) and float(soft[0].shares.max()) < 1
    assert not torch.equal(balanced[0].latents, balanced[1].latents)


def test_multipliers_start_as_drawn_and_stay_above_nothing():
    uniform = torch.rand(100, generator=seeds.generator("uniform"))
    for form, expected in (("softplus", uniform), ("squares", uniform + 0.01)):
        bank = Bank(form, Bank.start(form, uniform), None, None)
        torch.testing.assert_close(bank.multipliers().detach(), expected, atol=1.1e-3, rtol=1e-4)
        bank.raw.data.sub_(5)
        assert float(bank.multipliers().detach().min()) >= 0


def test_raw_input_undoes_the_targets_own_normalisation():
    model = Templates()
    part = attack(raw_input=[0.25, 0.5], steps=1, terms=weighted(clean=CrossEntropy()))
    state, *_ = learnt(part, model=model)
    (shown,) = model.shown
    plain = Templates()
    learnt(attack(steps=1, terms=weighted(clean=CrossEntropy())), model=plain)
    assert torch.allclose(shown, plain.shown[0] * 0.5 + 0.25)
    oracle = Oracle(model, "whitebox")
    found = list(part.recover(state, PRIOR, oracle, Evidence(QUESTION.labels, QUESTION.labels), seeds.generator(0)))
    assert torch.allclose(model.shown[-1], found[2].latents * 0.5 + 0.25), "what is found is what was made"


# Refusals


def setting(points_at="training_set", taps=("stage1", "features")):
    facts = ArchitectureFacts(taps=taps, batchnorm=(), classes=3, channels=1, size=6)
    return Setting(Pixels, DatasetFacts(1, 6, 3), EvidenceFacts("Some", points_at, labels=(0, 2)), lambda: facts)


def test_what_it_cannot_work_with_is_refused():
    attack().check(setting())
    attack().check(setting("class"))
    with pytest.raises(Refused, match="expected the weights or class labels, got Some"):
        attack().check(setting("image"))
    with pytest.raises(Refused, match="stage9"):
        attack(terms=weighted(alike=Cosine(taps=["stage9"]))).check(setting())
    with pytest.raises(Refused, match="expected at least one loss"):
        attack(terms={"clean": None})
    with pytest.raises(Refused, match="choices: balanced, uniform, soft"):
        attack(labels="even")
    with pytest.raises(Refused, match="choices: softplus, squares"):
        attack(multipliers="exp")
    with pytest.raises(Refused, match="expected balanced for a fixed bank"):
        kkt(labels="soft")
    twice = {name: StationaryWeights(distance=Stationarity(coefficients="runner_up")) for name in ("one", "two")}
    with pytest.raises(Refused, match="expected one loss of stationarity at most"):
        attack(terms=weighted(**twice))
    for wrong, what in (
        (lambda: Divergence(form="three"), "of_scores, of_twice_softened"),
        (lambda: Cosine(sign="odd"), "signed, absolute"),
        (lambda: Cosine(pairs="some"), "others, all"),
        (lambda: Orthogonality(scale="sum"), "mean, per_number"),
        (lambda: Weighing(kind="fair"), "none, switch, gated, balanced"),
        (lambda: Weighing(kind="balanced", limit=0.5), "expected 1 or more"),
        (lambda: OutsideRange(low=1.0, high=0.0), "expected low below high"),
    ):
        with pytest.raises(Refused, match=what):
            wrong()
    for level in ("scores", "labels", "features"):
        with pytest.raises(Refused, match=f"access={level} hides"):
            attack(access=level)
    other = attack(generator=functools.partial(UpsampledHotGenerator, classes=4, channels=1, size=6))
    with pytest.raises(Refused, match=r"attack\.generator\.classes: expected the target's 3, got 4"):
        learnt(other)


def test_both_columns_of_the_card_stand_in_presets():
    """What the authors' code does where it does something else than it is after, option by option."""
    words = ("dataset=digits", "architecture=network_inversion_mlp", "tracking=none")
    meant, coded = (
        composed("attack", *words, f"attack={name}")[0]["attack"]
        for name in ("network_inversion", "network_inversion_published")
    )
    differ = {
        "terms.divergence.loss.form": ("of_scores", "of_twice_softened"),
        "terms.perturbed_divergence.loss.form": ("of_scores", "of_twice_softened"),
        "terms.orthogonality.loss.scale": ("mean", "per_number"),
        "terms.total_variation.growing": (False, True),
        "terms.outside_range.loss.low": (0.0, -1.0),
        "perturbation.strength": (0.1, 1.2),
        "perturbation.high": (1.0, None),
        "labels": ("balanced", "uniform"),
        "multipliers": ("softplus", "squares"),
        "raw_input": (None, [0.1307, 0.3081]),
        "generator.output": ("sigmoid", "tanh"),
    }
    for path, pair in differ.items():
        got = tuple(functools.reduce(lambda node, part: node[part], path.split("."), node) for node in (meant, coded))
        assert got == pair, path
    assert meant["terms"]["stationarity"] is None and coded["terms"]["stationarity"]["weight"] == 2


def test_losses_of_classes_alone_are_refused_a_stage_that_the_target_has_not():
    words = ("dataset=digits", "architecture=network_inversion_mlp", "attack=network_inversion_vector", "tracking=none")
    with pytest.raises(Refused, match="stage2"):
        read_plan("attack", *composed("attack", *words))


# A process that is killed

WORDS = (
    "dataset=toy",
    "dataset.size=16",
    "architecture=mlp",
    "architecture.widths=[16]",
    "architecture.size=16",
    "recipe.epochs=1",
    "attack=network_inversion_small",
    "attack.generator.width=8",
    "attack.batch_size=12",
    "attack.candidates=2",
    "compute=cpu",
    "tracking=none",
)


def require_same_recovered(one, other):
    for kind in ("prepared", "recovered"):
        left, right = (Store(root).list(kind)[0] for root in (one, other))
        assert left.id == right.id
        torch.testing.assert_close(left.tensors(), right.tensors(), rtol=0, atol=0, equal_nan=True)
        bills = [{**artefact.provenance["bill"], "seconds": 0} for artefact in (left, right)]
        assert bills[0] == bills[1], "what was asked before the kill is charged too"


class Killed(BaseException):
    """Ends a verb of this process where a SIGKILL would."""


def test_dying_after_every_save_it_goes_on_to_the_same_bits(store, tmp_path, monkeypatch):
    words = (*WORDS, "attack.steps=5", "attack.unit=2")

    def attacked(root):
        return Pipeline(plan_for("attack", *words, store=root)).recovered

    def save_and_die(self, *arguments):
        save(self, *arguments)
        raise Killed

    attacked(store)
    killed, save, kills = tmp_path / "killed", Work.save, 0
    Pipeline(plan_for("attack", *words, store=killed)).target  # noqa: B018
    with monkeypatch.context() as patch:
        patch.setattr(Work, "save", save_and_die)
        while kills < 10:
            try:
                attacked(killed)
                break
            except Killed:
                kills += 1
    assert kills >= 4, "three states of learning and a group are saved"
    require_same_recovered(store, killed)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(store, tmp_path, run_verb, start_process):
    killed, words = tmp_path / "killed", (*WORDS, "attack.steps=40", "attack.unit=2")
    process = start_process("attack", *words, store=killed)
    while not list(killed.glob("work/prepared/*/state.safetensors")):
        assert process.poll() is None, f"it ended before it could be killed: {process.stderr.read()}"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_verb("attack", *words)
    Pipeline(plan_for("attack", *words, store=killed)).recovered  # noqa: B018
    require_same_recovered(store, killed)
