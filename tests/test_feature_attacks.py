"""Attacks on released features, against known answers: an encoder that rotates 4x4 pixels, and generators that are a
matrix. What is released of an image is known, and so is the image."""

import functools

import pytest
import torch
import yaml
from learned_doubles import Inverse, Quarters
from torch import nn

from midefense import seeds
from midefense.architectures.inverters import Amortiser, ConvDecoder, FlatDecoder
from midefense.attacks import adaptive as adaptive_module
from midefense.attacks.adaptive import AdaptiveGenerator, scaled_distances
from midefense.attacks.base import RUNGS, SearchAttack
from midefense.attacks.decoder import AdaptiveDecoder, Decoder
from midefense.attacks.init import Amortised, Decoded, Random
from midefense.attacks.learning import Learning
from midefense.attacks.matching import FeatureMatch, distances, shares
from midefense.attacks.objectives import Weighted, WeightedSum
from midefense.attacks.part import Part
from midefense.attacks.problem import Look, Problem
from midefense.attacks.purify import Chain, Clamp, OntoManifold, Smooth
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import LowestLoss
from midefense.oracle import Edge, Oracle, SharedBill
from midefense.plan.compose import CONF
from midefense.priors.base import Prior
from midefense.priors.pixels import Pixels
from midefense.types import Access, Answer, DatasetFacts, Evidence, EvidenceFacts, Found, Images, Refused, Setting

PIXELS = Pixels(channels=1, size=4, start="noise").requires_grad_(False)
PUBLIC = Images(
    torch.randint(256, (200, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.zeros(200, dtype=torch.int64),
    torch.arange(200),
    ["anyone"],
)
HEAVY_BALL = functools.partial(torch.optim.SGD, lr=0.005, momentum=0.9)


class Plane(Prior):
    """Pictures of two numbers: .5 + z M, as 4x4 pixels; the matrix is its one weight."""

    offers = frozenset({"sample"})

    def __init__(self, seed=0):
        super().__init__(channels=1, size=4)
        self.matrix = nn.Parameter(0.2 * torch.randn(2, 16, generator=torch.Generator().manual_seed(seed)))

    def sample(self, count, rng):
        return torch.randn(count, 2, generator=rng)

    def decode(self, latents):
        return (0.5 + latents @ self.matrix).view(-1, 1, 4, 4)


class Given(Part):
    """Starts that are given."""

    def __init__(self, latents):
        self.latents = latents

    def __call__(self, problem):
        owners = torch.arange(len(problem.evidence))
        return Found(self.latents[problem.evidence.ids], torch.full((len(owners),), torch.nan), owners, stage="initial")


def features(images):
    return Quarters()(images).features


def evidence_of(observed):
    rows = torch.arange(len(observed))
    return Evidence(rows, rows, observed)


def private(count=8):
    return torch.rand(count, 1, 4, 4, generator=seeds.generator("private"))


def search(init, *, distance="l2", coupled=False, weight=100 / 128**0.5, steps=60, optimizer=HEAVY_BALL, **options):
    match = Weighted(loss=FeatureMatch(distance=distance, coupled=coupled), weight=weight)
    slots = {"init": init, "objective": WeightedSum(terms={"match": match}), "select": LowestLoss()}
    return SearchAttack(search=Gradient(optimizer=optimizer, steps=steps), **slots, **options)


def stages(attack, prior, evidence, oracle=None, state=None, seed=0):
    oracle = oracle or Oracle(Quarters(), attack.access)
    found = attack.recover(state or {}, prior, oracle, evidence, seeds.generator("group", seed))
    return {step.stage: step.detached().pictured() for step in found}


def learning(network, **changes):
    options = {"optimizer": functools.partial(torch.optim.Adam, lr=0.02), "steps": 400, "batch_size": 64, "unit": 70}
    return Learning(network=network, **{**options, **changes})


def inverse(**changes):
    return learning(functools.partial(Inverse, features=16, channels=1, size=4), **changes)


def prepared(attack, prior=PIXELS, state=None, stop=None, **more):
    """The last state of a preparation, and who was asked."""
    oracle = Oracle(Quarters(), attack.access)
    work = attack.prepare(prior, oracle, PUBLIC, seeds.generator("prepare"), state, **more)
    for done, (_, _, give) in enumerate(work, start=1):
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    return state, oracle


def error(images, truth):
    return float((images - truth).square().mean())


def pixels_of(found):
    return found.pixels.float() / 255


# The objective and the search


def test_a_rotation_is_inverted_by_its_weights():
    truth = private()
    plain = functools.partial(torch.optim.SGD, lr=0.25)
    attack = search(Random(candidates=1), distance="squared", weight=1.0, optimizer=plain)
    found = stages(attack, PIXELS, evidence_of(features(truth)))["selected"]
    assert (found.latents - truth).abs().max() < 1e-4
    assert (found.latents - truth.roll(1, 0)).abs().max() > 0.3, "each is the image whose feature it was"


def test_nothing_released_leaves_the_prior():
    """What is zero for every image tells nothing: all ends are as far from their image as from any other."""
    truth = private(60)
    attack = search(Random(candidates=1), distance="squared", weight=1.0, steps=30)
    found = stages(attack, PIXELS, evidence_of(torch.zeros(60, 16)))["selected"]
    own, other = error(found.latents, truth), error(found.latents, truth.roll(1, 0))
    assert abs(own - other) < 0.02 * other and own > error(torch.full_like(truth, 0.5), truth)


def test_the_search_is_the_heavy_ball_of_the_card():
    observed = features(private(3))
    start = torch.randn(3, 2, generator=seeds.generator("start"))
    prior, target = Plane(), Quarters()
    latents, velocity = start.clone(), torch.zeros(3, 2)
    for _ in range(5):
        point = latents.clone().requires_grad_()
        gap = target(prior.decode(point)).features - observed
        loss = 100 / 128**0.5 * gap.norm(dim=1).sum()
        (slope,) = torch.autograd.grad(loss, point)
        velocity = 0.9 * velocity + slope
        latents = latents - 0.005 * velocity
    found = stages(search(Given(start), steps=5), prior.requires_grad_(False), evidence_of(observed))["optimised"]
    assert (found.latents - latents).abs().max() < 1e-6 < 1e-3 < (latents - start).abs().max()


@pytest.mark.parametrize(("coupled", "alike"), [(False, True), (True, False)])
def test_eight_together_or_one_by_one(coupled, alike):
    observed = evidence_of(features(private()))
    start = torch.randn(8, 2, generator=seeds.generator("start"))
    attack, prior = search(Given(start), coupled=coupled, steps=50), Plane().requires_grad_(False)
    together = stages(attack, prior, observed)["optimised"].latents
    rows = [observed.take(slice(row, row + 1)) for row in range(8)]
    alone = torch.cat([stages(attack, prior, row)["optimised"].latents for row in rows])
    assert (float((together - alone).abs().max()) < 1e-6) == alike


def look(observed, found):
    empty = torch.zeros(len(found), 1, 4, 4)
    rows = torch.arange(len(found))
    return Look(empty, empty, empty, empty, Answer(features=found), rows, PIXELS, observed=observed)


def test_distances_have_closed_forms():
    observed, found = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert FeatureMatch()(look(observed, found)).tolist() == pytest.approx([5, 5**0.5])
    assert FeatureMatch(distance="squared")(look(observed, found)).tolist() == pytest.approx([25, 5])
    assert FeatureMatch(distance="cosine")(look(observed, found))[1].item() == pytest.approx(1)
    assert FeatureMatch(distance="cosine")(look(observed, 7 * observed)).abs().max() < 1e-6
    shared = FeatureMatch(coupled=True)(look(observed, found))
    assert shared.sum().item() == pytest.approx(30**0.5) and (shared[0] / shared[1]).item() == pytest.approx(5)
    still = observed.clone().requires_grad_()
    for distance in ("l2", "squared"):
        (slope,) = torch.autograd.grad(distances(still, observed, distance).sum(), still)
        assert torch.equal(slope, torch.zeros(2, 2)), "at the end of its way an image does not move"
    assert shares(torch.zeros(3)).tolist() == [0, 0, 0]


def test_the_weight_of_a_batch_of_128_is_that_of_one_image():
    """For equal residuals 100 times the norm of the batch moves each image as 100 / sqrt(128) times its own does."""
    gaps = torch.nn.functional.normalize(torch.randn(128, 16, generator=seeds.generator("gaps"), dtype=torch.double))
    slopes = []
    for weight, loss in ((100, lambda norms: shares(norms).sum()), (8.838834764831844, torch.sum)):
        points = gaps.clone().requires_grad_()
        (slope,) = torch.autograd.grad(weight * loss(distances(points, torch.zeros_like(gaps), "l2")), points)
        slopes.append(slope)
    assert (slopes[0] - slopes[1]).abs().max() < 1e-12


def setting(**evidence):
    return Setting(Pixels, DatasetFacts(1, 4), EvidenceFacts("Some", **evidence), describe=None)


def test_what_cannot_be_matched_is_refused():
    alone = setting(labels=(0, 1))
    for part in (FeatureMatch(), Clamp(), Smooth(), Amortised(learning=inverse()), Decoded(learning=inverse())):
        with pytest.raises(Refused, match="got evidence of classes alone; try evidence=released_features"):
            part.check(alone)
        part.check(setting())
        part.check(setting(labels=(0, 1), releases=True))
    with pytest.raises(Refused, match="Decoder compares with what was observed"):
        Decoder(learning=inverse()).check(alone)
    with pytest.raises(Refused, match=r"expected features \[3\] of each image.*got \[16\]; try the evidence.cut"):
        FeatureMatch()(look(torch.zeros(2, 3), torch.zeros(2, 16)))
    with pytest.raises(Refused, match="attack.objective.distance: got 'l1'; choices: l2, squared, cosine"):
        FeatureMatch(distance="l1")
    with pytest.raises(Refused, match="attack.objective.coupled: expected false for distance=squared"):
        FeatureMatch(distance="squared", coupled=True)
    with pytest.raises(Refused, match="attack.rung: got 'A9'; choices: A0, A1, A2, A3, A4, A5"):
        Decoder(learning=inverse(), rung="A9")
    with pytest.raises(Refused, match="attack.chunk: expected null, because attack.objective is coupled"):
        search(Random(), coupled=True, chunk=2)


def test_a_generator_that_is_told_classes_is_refused():
    """Its latents hold the class, which evidence of an image has for the judge alone."""
    told = Plane()
    told.held = 1
    attack = search(Random())
    attack.check_prior(Plane())
    with pytest.raises(Refused, match="expected a prior that is told no classes.*got Plane"):
        attack.check_prior(told)


def test_who_may_not_differentiate_is_refused_and_every_image_is_counted():
    with pytest.raises(Refused, match="reads gradient, which access=features hides"):
        search(Random(), access="features")
    with pytest.raises(Refused, match="expected images without gradients at access=features"):
        Oracle(Quarters(), Access.FEATURES)(private().requires_grad_(), reads=("features",))
    target = Quarters()
    oracle = Oracle(target, "whitebox")
    stages(search(Random(candidates=3), steps=7), PIXELS, evidence_of(features(private())), oracle)
    assert oracle.bill == dict.fromkeys(range(8), 21) and sum(target.seen) == 8 * 21
    shared = Oracle(Quarters(), "whitebox")
    SharedBill(shared)(private(), ids=torch.arange(8), reads=("features",))
    assert shared.bill == {} and shared.shared_bill == 8


# Starts


def amortised(**changes):
    network = functools.partial(Amortiser, widths=(8,), hidden=32)
    return Amortised(learning=learning(network, **{"steps": 120, "unit": 40, **changes}))


def taught(init, state=None, stop=None):
    oracle, prior = Oracle(Quarters(), "whitebox"), Plane().requires_grad_(False)
    for done, (_, _, give) in enumerate(init.prepare(prior, oracle, seeds.generator("prepare"), state), start=1):
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    return state, oracle


def test_an_amortised_start_is_nearer_than_a_random_one():
    init, prior = amortised(), Plane().requires_grad_(False)
    state, oracle = taught(init)
    assert oracle.shared_bill == 1 + 120 * 2 * 64 and oracle.bill == {}
    truth = prior.decode(prior.sample(8, seeds.generator("truth")))
    evidence = evidence_of(features(truth))
    ends = {}
    for name, start in (("amortised", init), ("random", Random(candidates=1))):
        attack = search(start, steps=3)
        found = stages(attack, prior, evidence, state=state)
        ends[name] = [error(prior.decode(found[stage].latents), truth) for stage in ("initial", "selected")]
    assert max(ends["amortised"]) < 0.2 * min(ends["random"]), ends


@pytest.mark.parametrize("stop", [2])
def test_an_amortiser_goes_on_to_the_same_bits(stop):
    partly, _ = taught(amortised(), stop=stop)
    (resumed, _), (whole, _) = taught(amortised(), partly), taught(amortised())
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_hybrid_starts_from_the_decoder_and_goes_on():
    init = Decoded(learning=inverse(steps=40), distance="l2")
    attack = search(init, steps=150)
    state, oracle = prepared(attack)
    assert oracle.shared_bill == len(PUBLIC)
    truth = private()
    evidence = evidence_of(features(truth))
    found = stages(attack, PIXELS, evidence, state=state)
    decoder = Decoder(learning=inverse(steps=40), distance="l2")
    (decoded,) = decoder.recover(state, PIXELS, Oracle(Quarters(), "features"), evidence, seeds.generator("group"))
    assert (found["initial"].latents.clamp(0, 1) - pixels_of(decoded)).abs().max() <= 0.5 / 255 + 1e-6
    assert error(found["selected"].latents, truth) < 0.1 * error(found["initial"].latents, truth)


# The ladder


def test_a_decoder_explains_all_of_an_invertible_encoder():
    truth = private(40)
    attack = Decoder(learning=inverse())
    state, _ = prepared(attack)
    found = stages(attack, PIXELS, evidence_of(features(truth)), state=state)["selected"]
    assert 1 - error(pixels_of(found), truth) / error(truth.mean(0), truth) > 0.95


def turned(observed):
    """A defense that permutes and flips the numbers of a feature, the same for all: nothing is lost."""
    return -observed.roll(3, 1)


def edge_of(change):
    return Edge(lambda images: change(features(images.floats())))


def test_a1_the_decoder_learns_what_the_defense_does():
    truth = private(40)
    evidence, floor = evidence_of(turned(features(truth))), error(truth.mean(0), truth)
    unaware, aware = (
        Decoder(learning=inverse(steps=200)),
        AdaptiveDecoder(learning=inverse(steps=200), further=400, images=150),
    )
    before, _ = prepared(unaware)
    edge = edge_of(turned)
    after, oracle = prepared(aware, edge=edge)
    assert edge.bill == 150 and oracle.shared_bill == len(PUBLIC) and aware.rung == "A1"
    ends = [
        error(pixels_of(stages(attack, PIXELS, evidence, state=state)["selected"]), truth)
        for attack, state in ((unaware, before), (aware, after))
    ]
    assert ends[0] > floor and ends[1] < 0.1 * floor, (ends, floor)


def test_a1_learns_the_mean_where_nothing_is_released():
    aware = AdaptiveDecoder(learning=inverse(steps=100), further=400)
    state, _ = prepared(aware, edge=edge_of(torch.zeros_like))
    truth = private(60)
    found = stages(aware, PIXELS, evidence_of(torch.zeros(60, 16)), state=state)["selected"]
    assert error(pixels_of(found), PUBLIC.floats().mean(0).expand_as(truth)) < 0.005
    assert error(pixels_of(found), truth) > 0.95 * error(truth.mean(0), truth), "no nearer than the best constant"


@pytest.mark.parametrize("stop", [3, 7])
def test_a1_goes_on_to_the_same_bits(stop):
    def attack():
        return AdaptiveDecoder(learning=inverse(steps=140), further=140, images=100)

    partly, _ = prepared(attack(), stop=stop, edge=edge_of(turned))
    edge = edge_of(turned)
    (resumed, _), (whole, _) = prepared(attack(), state=partly, edge=edge), prepared(attack(), edge=edge_of(turned))
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert edge.bill == 100, "the same images are asked about again, and count once"


def adaptive(**changes):
    attack = search(Random(candidates=1), steps=30)
    optimizer = functools.partial(torch.optim.RMSprop, lr=0.01)
    options = {"images": 64, "epochs": 6, "batch_size": 32, "optimizer": optimizer}
    slots = {slot: attack.parts[slot] for slot in ("init", "objective", "search", "select")}
    return AdaptiveGenerator(**slots, **{**options, **changes})


def test_a1_the_generator_moves_to_what_the_defense_releases():
    """Behind a defense that turns features, the latents found are those of another picture: the adapted generator makes
    of them the one that was meant, as far as two numbers can."""
    plane = Plane(1)
    public = Images(
        (plane.decode(plane.sample(64, seeds.generator("public"))).detach().clamp(0, 1) * 255).round().to(torch.uint8),
        torch.zeros(64, dtype=torch.int64),
        torch.arange(64),
        ["anyone"],
    )
    prior, attack, edge = Plane(1).requires_grad_(False), adaptive(), edge_of(turned)
    stored = prior.matrix.clone()
    state, losses = {}, []
    oracle = Oracle(Quarters(), "whitebox")
    for _, logs, give in attack.prepare(prior, oracle, public, seeds.generator("prepare"), None, edge=edge):
        state = give()
        losses.append(logs["loss"])
    assert torch.equal(prior.matrix, stored) and not torch.equal(state["adapted.prior.matrix"], stored)
    assert edge.bill == 64 and oracle.bill == {} and oracle.shared_bill == 6 * 2 * 30 * 32
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2]), losses
    truth = plane.decode(plane.sample(20, seeds.generator("truth"))).detach()
    evidence = evidence_of(turned(features(truth)))
    plain = stages(search(Random(candidates=1), steps=30), prior, evidence)["selected"]
    aware = stages(attack, prior, evidence, state=state)
    assert set(aware) == {"initial", "optimised", "selected"}
    assert all(found.pixels is not None for found in aware.values())
    assert error(pixels_of(aware["selected"]), truth) < 0.8 * error(prior.decode(plain.latents).clamp(0, 1), truth)


def test_the_adapted_generator_decodes_what_is_kept_and_no_step_before(monkeypatch):
    made, to_pixels = [], adaptive_module.to_pixels
    monkeypatch.setattr(adaptive_module, "to_pixels", lambda images: made.append(len(images)) or to_pixels(images))
    moved = Plane(1)
    moved.matrix.data.mul_(0.5)
    state = {f"adapted.prior.{name}": value for name, value in moved.state_dict().items()}
    given = Plane(1).requires_grad_(False), Oracle(Quarters(), "whitebox"), evidence_of(features(private(3)))
    steps = list(adaptive().recover(state, *given, seeds.generator("group")))
    assert len(steps) == 32 and not made and all(found.pixels is None for found in steps)
    last = steps[-1].pictured()
    assert made == [3] and torch.equal(last.pixels, to_pixels(moved.decode(last.latents).detach()))
    assert last.pictured() is last and last.take(torch.tensor([1])).pixels.shape[0] == 1


@pytest.mark.parametrize("stop", [3])
def test_the_generator_goes_on_to_the_same_bits(stop):
    def run(state=None, stop=None):
        attack = adaptive(epochs=2)
        return prepared(attack, Plane(1).requires_grad_(False), state, stop, edge=edge_of(turned))[0]

    resumed, whole = run(run(stop=stop)), run()
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_generator_without_weights_is_refused():
    with pytest.raises(Refused, match="moves the weights of a generator, got Pixels, which has none"):
        adaptive().check_prior(PIXELS)


def test_images_are_compared_in_the_scale_of_their_colours():
    left, right = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    expected = (16 * sum((0.5 / std) ** 2 for std in (0.1, 0.2, 0.4))) ** 0.5
    assert scaled_distances(left, right, (0.1, 0.2, 0.4)).tolist() == pytest.approx([expected] * 2)
    grey = scaled_distances(left[:, :1], right[:, :1], (0.1, 0.2, 0.3))
    assert grey.tolist() == pytest.approx([10.0] * 2)


def problem(observed, prior=PIXELS):
    oracle = Oracle(Quarters(), "whitebox")
    return Problem.plain(prior, oracle, evidence_of(observed), seeds.generator("purify"))


def test_a4_purifies():
    maps = torch.randn(2, 3, 5, 5, generator=seeds.generator("maps"))
    assert torch.equal(Clamp()(problem(maps)), maps.clamp(min=0))
    assert torch.equal(Smooth(weight=0)(problem(maps)), maps)
    whole = Smooth(weight=1)(problem(maps))
    assert torch.allclose(whole[:, :, 2, 2], maps[:, :, 1:4, 1:4].mean((2, 3)))
    assert torch.allclose(whole[:, :, 0, 0], maps[:, :, :2, :2].mean((2, 3))), "of those that are there"
    assert torch.equal(Smooth()(problem(maps.flatten(1))), maps.flatten(1))
    both = Chain(members={"clamp": Clamp(), "smooth": Smooth(weight=1)})(problem(maps))
    assert torch.equal(both, Smooth(weight=1)(problem(maps.clamp(min=0))))
    with pytest.raises(Refused, match="attack.purify.members: expected one or more"):
        Chain(members={})


def test_a4_leaves_what_no_picture_of_the_prior_releases():
    prior = Plane().requires_grad_(False)
    clean = features(prior.decode(prior.sample(8, seeds.generator("truth"))))
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=seeds.generator("noise"))
    plain = Gradient(optimizer=functools.partial(torch.optim.SGD, lr=0.5), steps=100)
    part = OntoManifold(init=Random(candidates=2), search=plain, distance="squared")
    asked = problem(noisy, prior)
    projected = part(asked)
    basis = torch.linalg.qr(features((prior.matrix + 0.0).view(-1, 1, 4, 4)).T).Q
    middle = features(torch.full((1, 1, 4, 4), 0.5))
    exact = middle + (noisy - middle) @ basis @ basis.T
    assert (projected - exact).abs().max() < 1e-3
    assert (projected - clean).square().sum() < 0.3 * (noisy - clean).square().sum()
    assert set(asked.oracle.bill.values()) == {2 * 100 + 1}
    with pytest.raises(Refused, match="attack.purify.init: expected one that prepares nothing, got Amortised"):
        OntoManifold(init=amortised(), search=plain)


def test_what_is_purified_is_what_is_attacked():
    truth = private()
    plain = {"distance": "squared", "weight": 1.0, "optimizer": functools.partial(torch.optim.SGD, lr=0.25)}
    broken = features(truth).clamp(min=0)
    left = stages(search(Random(candidates=1), purify=Clamp(), **plain), PIXELS, evidence_of(features(truth)))
    right = stages(search(Random(candidates=1), **plain), PIXELS, evidence_of(broken))
    assert torch.equal(left["selected"].latents, right["selected"].latents)
    attack = Decoder(learning=inverse(steps=100), purify=Clamp())
    state, _ = prepared(attack)
    one = stages(attack, PIXELS, evidence_of(features(truth)), state=state)["selected"].pixels
    two = stages(Decoder(learning=inverse(steps=100)), PIXELS, evidence_of(broken), state=state)["selected"].pixels
    assert torch.equal(one, two)
    with pytest.raises(Refused, match=r"attack \(Decoder\) reads gradient, which access=features hides"):
        Decoder(learning=inverse(), purify=OntoManifold(init=Random(), search=Gradient(optimizer=HEAVY_BALL, steps=1)))


def test_every_rung_has_presets():
    presets = [yaml.safe_load(file.read_text()) for file in (CONF / "attack").glob("feature_*.yaml")]
    assert {preset["rung"] for preset in presets if "rung" in preset} == set(RUNGS)


# Networks


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_decoders_make_images_of_the_dataset(size):
    maps = torch.rand(2, 3, 4, 4)
    for network in (FlatDecoder, ConvDecoder):
        made = network(observed=(3, 4, 4), channels=1, size=size, width=4).eval()(maps)
        assert made.shape == (2, 1, size, size) and made.min() >= 0 and made.max() <= 1
    assert FlatDecoder(observed=(48,), channels=3, size=size, width=4)(maps.flatten(1)).shape == (2, 3, size, size)


def test_the_decoder_of_the_card_has_its_weights():
    with torch.device("meta"):
        network = FlatDecoder(observed=(64, 16, 16), channels=3, size=64)
    assert network.project[1].weight.shape == (8192, 16384)


def test_networks_refuse_shapes_they_cannot_take():
    with pytest.raises(Refused, match="FlatDecoder makes images of 8, 16, 32, 64 or 128 px, got 24"):
        FlatDecoder(observed=(8,), channels=1, size=24)
    with pytest.raises(Refused, match=r"ConvDecoder: expected maps whose side goes into 32 px.*got \[3, 12, 12\]"):
        ConvDecoder(observed=(3, 12, 12), channels=1, size=32)
    with pytest.raises(Refused, match=r"ConvDecoder: expected square maps .* got \[7\]; try FlatDecoder"):
        ConvDecoder(observed=(7,), channels=1, size=32)
    assert Amortiser(observed=(7,), latents=(3, 2))(torch.zeros(2, 7)).shape == (2, 3, 2)
    assert Amortiser(observed=(64, 16, 16), latents=(500,))(torch.zeros(2, 64, 16, 16)).shape == (2, 500)
