"""DeepInversion: known answers of its terms, its jitter and rates, a search in stages, and what it refuses."""

import functools
import math

import conftest
import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.attacks.base import run_group
from midefense.attacks.naturalness import Agreement, BatchNormStatistics, ColourNorm, NeighbourMean, NeighbourNorm
from midefense.attacks.objectives import CrossEntropy, Weighted, WeightedSum
from midefense.attacks.problem import Look, Problem
from midefense.attacks.schedules import WarmedCosine
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.search.stages import Stage, Stages
from midefense.attacks.views import Pool, Shift
from midefense.oracle import Oracle
from midefense.priors.pixels import Pixels
from midefense.types import Answer, Evidence, Found, Refused, Trace

ADAM = functools.partial(torch.optim.Adam, lr=0.1)


def images_of(count, channels=3, size=8, name="images"):
    return torch.rand(count, channels, size, size, generator=seeds.generator(name))


class Norms(nn.Module):
    """A target of one BatchNorm of maps and, behind it, one of numbers; its classes are the channels' means."""

    def __init__(self, channels=3, second=True):
        super().__init__()
        self.maps, self.numbers = nn.BatchNorm2d(channels), nn.BatchNorm1d(channels)
        self.second = second

    def remember(self, images, biased=False):
        """Statistics of these images, as training with momentum 1 leaves them."""
        flat = images.transpose(0, 1).flatten(1)
        self.maps.running_mean.copy_(flat.mean(1))
        self.maps.running_var.copy_(flat.var(1, unbiased=not biased))
        return self

    def forward(self, images, taps=()):
        means = self.maps(images).mean((2, 3))
        return Trace(10 * (self.numbers(means) if self.second else means), means)


def look_of(images, target=None, prior=None, **answer):
    target = Norms() if target is None else target
    told = Oracle(target.double(), "whitebox")(images, reads=("logits", "batchnorm"))
    prior = prior or Pixels(channels=images.shape[1], size=images.shape[-1])
    for name, value in answer.items():
        setattr(told, name, value)
    return Look(images, images, images, images, told, torch.zeros(len(images), dtype=torch.int64), prior)


# Terms


def test_statistics_of_the_very_batch_differ_by_the_bias_of_the_variance_alone():
    images = images_of(4).double()
    statistics = BatchNormStatistics(first_weight=1.0)
    count = images.numel() // images.shape[1]
    expected = images.transpose(0, 1).flatten(1).var(1, unbiased=False).norm() / (count - 1)
    unbiased, biased, other = (
        statistics(look_of(shown, Norms().double().remember(images, biased=kind)))
        for shown, kind in ((images, False), (images, True), (images_of(4, name="other").double(), True))
    )
    torch.testing.assert_close(unbiased, expected.expand(4), rtol=1e-10, atol=1e-14)
    assert biased.abs().max() < 1e-14 < 0.01 < other.min()


def test_statistics_are_those_of_the_batch_and_not_of_a_part():
    images, target = images_of(64).double(), Norms().double().remember(images_of(300, name="many").double())
    whole, one = (BatchNormStatistics()(look_of(x, target))[0] for x in (images, images[:1]))
    assert one > 2 * whole
    assert BatchNormStatistics.coupled and NeighbourNorm.coupled and not NeighbourMean.coupled


def test_only_maps_count_and_the_first_layer_more():
    images = images_of(4).double()
    every, maps = (BatchNormStatistics(first_weight=1.0, maps_alone=alone)(look_of(images)) for alone in (False, True))
    assert (every > maps + 0.1).all()
    torch.testing.assert_close(BatchNormStatistics(first_weight=10.0)(look_of(images)), 10 * maps)


def test_a_target_that_remembers_nothing_is_refused():
    forgetful = Norms()
    forgetful.maps = nn.BatchNorm2d(3, track_running_stats=False)
    for part, target in ((BatchNormStatistics(), forgetful), (BatchNormStatistics(), Numbers())):
        with pytest.raises(Refused, match="expected a target with BatchNorm layers that take in maps and remember"):
            part(look_of(images_of(4).double(), target))


class Numbers(Norms):
    """As Norms, without the first."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Identity()


def test_variation_counts_four_directions_and_grows_with_the_root_of_the_batch():
    dot = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    dot[..., 2, 2] = 3.0
    prior = Pixels(channels=1, size=5)
    look = Look(dot, dot, dot, dot, Answer(), torch.zeros(1, dtype=torch.int64), prior)
    torch.testing.assert_close(NeighbourNorm()(look), torch.tensor([4 * 3 * math.sqrt(2)], dtype=torch.float64))
    torch.testing.assert_close(NeighbourMean()(look), torch.tensor([2 * 6 / 20 + 2 * 6 / 16], dtype=torch.float64))
    noise = torch.randn(4, 3, 16, 16, generator=seeds.generator("noise")).repeat(4, 1, 1, 1)
    terms = [NeighbourNorm()(look_of(x.double()))[0] / math.sqrt(len(x)) for x in (noise[:4], noise)]
    torch.testing.assert_close(*terms)


def test_a_picture_of_one_colour_has_no_variation_and_a_gradient_that_is_a_number():
    flat = torch.full((2, 3, 6, 6), 0.3, dtype=torch.float64, requires_grad=True)
    for part in (NeighbourNorm(), NeighbourMean()):
        loss = part(look_of(flat))
        assert loss.abs().max() == 0
        assert torch.autograd.grad(loss.mean(), flat)[0].isfinite().all()


def test_terms_stand_in_the_prior_s_scale_of_colours():
    images, scale = images_of(3).double(), {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}
    prior = Pixels(channels=3, size=8, **scale)
    as_latents = look_of(prior.normalised(images))
    for part in (NeighbourNorm(), NeighbourMean(), ColourNorm(), ColourNorm(over="batch")):
        torch.testing.assert_close(part(look_of(images, prior=prior)), part(as_latents))
        assert not torch.allclose(part(look_of(images)), part(as_latents))


def test_gradients_of_the_terms_are_right():
    def both(images):
        look = look_of(images)
        return torch.stack([BatchNormStatistics()(look).mean(), NeighbourNorm()(look).mean()])

    assert torch.autograd.gradcheck(both, images_of(3, size=4).double().requires_grad_())


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_agreement_is_one_for_equals_and_zero_for_strangers_not_as_jensen_and_shannon_have_it(classes):
    sure = torch.full((4, classes), -60.0).index_fill(1, torch.tensor([0]), 60.0)
    strange = sure.flip(1)
    equal, apart = (
        Agreement()(look_of(images_of(4).double(), logits=sure, beside=(other,))) for other in (sure, strange)
    )
    assert (equal == 1).all() and (apart == 0).all()
    assert Agreement().divergence(strange, sure) > 1, "log 2 at most, were it theirs"


def test_agreement_takes_the_mean_over_students():
    logits = torch.randn(3, 5, 4, generator=seeds.generator("logits"))
    look = functools.partial(look_of, images_of(5).double(), logits=logits[0])
    one, two, both = (Agreement()(look(beside=who)) for who in ((logits[1],), (logits[2],), tuple(logits[1:])))
    torch.testing.assert_close(both, (one + two) / 2)


def test_the_target_alone_is_asked_for_the_identity():
    look = look_of(images_of(2).double(), logits=torch.tensor([[5.0, 0], [5, 0]]), beside=(torch.zeros(2, 2),))
    assert CrossEntropy(beside=False)(look).max() < 0.01 < 0.3 < CrossEntropy()(look).min()


# Pixels, rates, jitter


def test_latents_of_pixels_are_normalised_images():
    prior = Pixels(channels=3, size=4, start="normal", mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.5])
    start = prior.sample(500, seeds.generator("draw"))
    assert abs(start.mean()) < 0.02 and abs(start.std() - 1) < 0.02
    torch.testing.assert_close(prior.normalised(prior.decode(start)), start)
    low, high = prior.pixel_range
    assert torch.equal(prior.decode(low), torch.zeros(1, 3, 1, 1))
    torch.testing.assert_close(prior.decode(high), torch.ones(1, 3, 1, 1))
    grey = Pixels(channels=1, size=4, mean=[0.5, 0.4, 0.3], start="grey")
    assert grey.decode(grey.sample(1, seeds.generator("draw"))).unique().item() == pytest.approx(0.5)
    with pytest.raises(Refused, match="prior.mean: expected 1 or 3 values for 3 channels, got 2"):
        Pixels(channels=3, size=4, mean=[0.5, 0.4])


def test_a_plain_pixel_is_what_it_was():
    prior, images = Pixels(channels=1, size=4), images_of(2, channels=1, size=4)
    assert torch.equal(prior.decode(images), images) and torch.equal(prior.normalised(images), images)


def test_the_rate_rises_over_the_first_updates_and_falls_to_nothing():
    rate = functools.partial(WarmedCosine(warmup=100), 0.2, steps=2000)
    assert [rate(step) for step in (0, 49, 99, 100)] == pytest.approx([0.002, 0.1, 0.2, 0.2])
    assert rate(1050) == pytest.approx(0.1) and rate(1999) < 1e-6
    assert WarmedCosine(warmup=0)(0.2, 0, 5) == 0.2
    with pytest.raises(Refused, match="schedule.warmup: expected fewer updates than the 100 in all, got 100"):
        Gradient(optimizer=ADAM, steps=100, schedule=WarmedCosine(warmup=100))


def test_a_shift_rolls_as_torch_does_and_back():
    images, draws = images_of(3, size=6), torch.tensor([[2.0, -1.0, 0.1], [0, 4, 0.9], [-2, 1, 0.6]])
    shown = Shift(pixels=4, flip=0.5)(images, draws)
    for image, seen, (down, across, dice) in zip(images, shown, draws.tolist(), strict=True):
        rolled = image.roll((int(down), int(across)), (1, 2))
        assert torch.equal(seen, rolled.flip(2) if dice > 0.5 else rolled)
    unmirrored = Shift(pixels=4, flip=0.0)
    there = unmirrored(images, draws)
    back = unmirrored(there, draws * torch.tensor([-1, -1, 1]))
    assert torch.equal(back, images) and not torch.equal(there, images)


def test_a_batch_shares_its_shift_unless_it_is_told_not_to():
    shared, own = (Shift(pixels=3, shared=kind).draw(200, seeds.generator("draw")) for kind in (True, False))
    assert len(shared.unique(dim=0)) == 1 and len(own.unique(dim=0)) == 200
    assert own[:, :2].unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert Shift(pixels=0, flip=0)(images_of(2), torch.zeros(2, 3)).equal(images_of(2))


def test_a_pool_takes_means():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert Pool(factor=2)(images, torch.empty(1, 0)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


# The search in stages


class Walk(Gradient):
    """A search whose losses are given; every step adds 1 to the latents."""

    def __init__(self, losses):
        self.losses, self.steps = losses, len(losses)

    def __call__(self, problem, found):
        latents = found.latents.clone()
        for loss in self.losses:
            latents += 1
            yield Found(latents, torch.full((len(latents),), loss), found.evidence, stage="optimised")


def walked(keep):
    search = Stages(
        stages={"a": Stage(search=Walk([3.0, 0.5, 2.0])), "b": Stage(search=Walk([4.0, 1.0, 2.0]))}, keep=keep
    )
    start = Found(torch.zeros(2, 1), torch.zeros(2), torch.arange(2), stage="initial")
    evidence = Evidence(torch.zeros(2, dtype=torch.int64), torch.arange(2))
    oracle = Oracle(Norms(), "whitebox")
    problem = Problem.plain(Pixels(channels=3, size=4), oracle, evidence, seeds.generator("walk"))
    steps = [found.detached() for found in search(problem, start)]
    assert len(steps) == search.steps == 6
    return [(found.latents[0].item(), found.loss[0].item()) for found in steps]


def test_a_stage_goes_on_where_the_one_before_it_ended():
    assert walked("last") == [(1, 3.0), (2, 0.5), (3, 2.0), (4, 4.0), (5, 1.0), (6, 2.0)]


def test_the_best_is_forgotten_with_its_stage_or_kept_as_the_authors_do():
    assert walked("best") == [(1, 3.0), (2, 0.5), (2, 0.5), (4, 4.0), (5, 1.0), (5, 1.0)]
    assert walked("best_of_all") == [(1, 3.0), (2, 0.5), (2, 0.5), (2, 0.5), (2, 0.5), (2, 0.5)]
    with pytest.raises(Refused, match="attack.search.keep: got 'first'; choices: last, best, best_of_all"):
        Stages(stages={"a": Stage(search=Walk([1.0]))}, keep="first")


# The attack


def attack_of(*words, architecture="cnn"):
    world = ("dataset=toy", "dataset.size=16", f"architecture={architecture}", "architecture.size=16")
    return conftest.plan_for("attack", *world, "attack=deep_inversion_small", *words, store="/nowhere").attack.build()


class Shapes(nn.Module):
    """Two layers of convolution, BatchNorm and ReLU on means of 3x3, drawn as they are; classes are coloured shapes."""

    def __init__(self):
        super().__init__()
        with seeds.isolated("shapes"):
            layers = [
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            ]  # fmt: skip
            self.body, self.head = nn.Sequential(*layers), nn.Linear(8, 4)

    def forward(self, images, taps=()):
        features = self.body(images).mean((2, 3))
        return Trace(self.head(features), features)


def shapes(count, rng):
    """Squares of four colours at any place [count, 3, 16, 16] and their colours."""
    labels = torch.randint(4, (count,), generator=rng)
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.1]])
    images = 0.4 + 0.1 * torch.rand(count, 3, 16, 16, generator=rng)
    for image, label, (top, left) in zip(
        images, labels, torch.randint(9, (count, 2), generator=rng).tolist(), strict=True
    ):
        image[:, top : top + 7, left : left + 7] = colours[label, :, None, None]
    return images, labels


@functools.cache
def trained():
    network, rng = Shapes(), seeds.generator("training")
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(120):
        images, labels = shapes(64, rng)
        loss = nn.functional.cross_entropy(network(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    return network.eval()


def dreamt(weight):
    """Images of 64 labels, with the statistics' weight, and how far their statistics are from those remembered."""
    terms = {
        "identity": Weighted(loss=CrossEntropy(), weight=1.0),
        "statistics": Weighted(loss=BatchNormStatistics(first_weight=1.0), weight=weight),
    }
    evidence = Evidence(torch.arange(64) % 4, torch.arange(64))
    prior = Pixels(channels=3, size=16, start="normal", mean=0.5, std=0.25)
    objective, oracle = WeightedSum(terms=terms), Oracle(trained(), "whitebox")
    reads = ("logits", "batchnorm")
    problem = Problem(
        prior, oracle, evidence, {}, seeds.generator("dream"), objective, None, reads, None, torch.device("cpu")
    )
    start = prior.sample(64, seeds.generator("start"))
    search = Gradient(optimizer=ADAM, steps=150, reference_batch=64, box="pixels")
    begun = Found(start, torch.zeros(64), torch.arange(64), stage="initial")
    *_, ended = search(problem, begun)
    looks = [problem.look(latents.detach(), torch.arange(64)) for latents in (start, ended.latents)]
    before, after = (BatchNormStatistics(first_weight=1.0)(look)[0] for look in looks)
    identity = CrossEntropy()(looks[1]).mean()
    return ended.latents, float(identity), float(before / after)


def test_images_come_to_have_the_statistics_that_the_target_remembers_only_if_they_are_asked_to():
    latents, identity, nearer = dreamt(weight=1.0)
    _, free_identity, free_nearer = dreamt(weight=0.0)
    assert identity < 0.1 and free_identity < 0.1, "either is what the target takes for the class"
    assert nearer > 5 and nearer > 3 * free_nearer
    images = Pixels(channels=3, size=16, mean=0.5, std=0.25).decode(latents)
    assert images.min() >= -1e-6 and images.max() <= 1 + 1e-6, "within the box of pixels"


def test_no_hook_is_left_behind():
    model = Shapes().eval()
    oracle, images = Oracle(model, "whitebox"), images_of(2, size=16)
    first, second = (oracle(images, reads=("batchnorm",)).batchnorm for _ in range(2))
    assert len(first) == len(second) == 2
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_the_small_attack_runs_both_stages_and_adapts():
    evidence, rng = Evidence(torch.zeros(3, dtype=torch.int64), torch.arange(3)), seeds.generator("group")
    attack = attack_of("attack.search.stages.half.search.steps=12", "attack.search.stages.full.search.steps=12")
    assert list(attack.search.stages) == ["half", "full"] and attack.steps == 26 and attack.coupled
    target = Oracle(Norms(channels=1).eval(), "whitebox")
    prior = Pixels(channels=1, size=16, start="normal", mean=0.5, std=0.5)
    shown = []
    objective = attack.objective

    def watched(look):
        shown.append(tuple(look.shown.shape[2:]))
        return WeightedSum.__call__(objective, look)

    attack.objective = type("Watched", (WeightedSum,), {"__call__": lambda self, look: watched(look)})(
        terms={name: term for name, term in zip(objective.names, objective.terms, strict=True)}
    )
    found = [found for found, _ in run_group(attack, {}, prior, target, evidence, rng)]
    assert shown == [(8, 8)] * 12 + [(16, 16)] * 12
    assert found[-1].stage == "selected" and target.bill == {0: 24 * 16, 1: 24 * 16, 2: 24 * 16}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("architecture=mlp",), "attack.objective reads batchnorm: expected a target with BatchNorm layers"),
        (("attack.access=scores",), "access=scores hides"),
        (("attack.chunk=5",), "attack.chunk: expected null, because attack.objective is coupled"),
        (("prior=toy",), "this attack needs a prior that offers pixels, ToyFamily offers"),
        (("attack/objective=deep_inversion_adaptive",), "compares the target with a network asked beside it"),
        (("attack.search.stages.half.views.members.pool.factor=64",), "views.factor: expected at most 16"),
        (("attack.search.stages.half.search.schedule.warmup=100",), "schedule.warmup: expected fewer updates than"),
        (("attack.search.stages.full.search.stop={_target_: midefense.attacks.search.gradient.Rest}",), "coupled"),
    ],
)
def test_what_it_cannot_work_with_is_refused_by_the_plan(words, complaint):
    architecture = "mlp" if words == ("architecture=mlp",) else "cnn"
    with pytest.raises(Refused, match=complaint):
        attack_of(*[word for word in words if not word.startswith("architecture")], architecture=architecture)
