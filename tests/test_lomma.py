"""LOMMA: the logit loss, the regulariser and what it measures, students beside the target, and what all of it costs."""

import functools

import pytest
import torch
import torch.nn.functional as F
from learned_doubles import Quarters, Student

from midefense import seeds
from midefense.attacks.base import SURROGATE, SearchAttack, run_group
from midefense.attacks.init import BestOfPool, Random
from midefense.attacks.learning import Learning
from midefense.attacks.objectives import (
    Confidence,
    CrossEntropy,
    FeatureRegulariser,
    Logit,
    Poincare,
    Weighted,
    WeightedSum,
)
from midefense.attacks.problem import OBJECTIVE, Look
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import Everything
from midefense.attacks.surrogate import Distilled, distillation
from midefense.oracle import Oracle
from midefense.priors.toy import ToyFamily
from midefense.training_state import under, within
from midefense.types import Answer, Evidence, Images, Refused

PRIOR = ToyFamily(channels=1, size=16).requires_grad_(False)
EVIDENCE = Evidence(torch.tensor([0, 2, 3]), torch.tensor([10, 12, 13]))
DRAWS = torch.Generator().manual_seed(0)
PUBLIC = Images(
    torch.randint(256, (120, 1, 16, 16), dtype=torch.uint8, generator=DRAWS), torch.zeros(120), torch.arange(120), ["a"]
)
LOSSES = (CrossEntropy(), Confidence(), Poincare(), Logit())


def look_of(logits, labels, beside=(), features=None, known=None):
    nothing = torch.zeros(len(labels), 1)
    answer = Answer(logits=logits, features=features, beside=beside)
    return Look(nothing, nothing, nothing, nothing, answer, labels, PRIOR, known or {})


def learning(seed=1, **changes):
    network = functools.partial(Student, classes=4, channels=1, size=16)
    options = {"steps": 12, "batch_size": 32, "unit": 5, "optimizer": functools.partial(torch.optim.SGD, lr=0.05)}
    return Learning(network=network, **{**options, **changes})


def students():
    return Distilled(students={"one": learning(), "two": learning(steps=7)})


def objective(images=70, weight=100.0, **changes):
    regulariser = FeatureRegulariser(images=images, batch_size=20, **changes)
    terms = {"identity": (Logit(), 100.0), "features": (regulariser, weight)}
    return WeightedSum(terms={name: Weighted(loss=loss, weight=value) for name, (loss, value) in terms.items()})


def attack_of(**changes):
    parts = {
        "init": Random(candidates=4),
        "objective": objective(),
        "select": Everything(),
        "search": Gradient(optimizer=functools.partial(torch.optim.Adam, lr=0.05), steps=5),
        "surrogate": students(),
    }
    return SearchAttack(**{**parts, **changes})


def prepare(attack, target, state=None, stop=None):
    """The state after `stop` yields (None: all), what it cost, and how often it yielded."""
    oracle, done, work = Oracle(target, attack.access), 0, seeds.generator("prepare")
    for done, (_, _, give) in enumerate(attack.prepare(PRIOR, oracle, PUBLIC, work, state), start=1):  # noqa: B007
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    return state, oracle.shared_bill, done


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# losses ----------------------------------------------------------------------------------------------------------


def test_the_logit_loss_pulls_as_hard_however_sure_the_target_is():
    logits, labels = torch.tensor([[50.0, 0, 0], [0.0, 1, 2]], requires_grad=True), torch.tensor([0, 1])
    slope = torch.autograd.grad(Logit()(look_of(logits, labels)).mean(), logits)[0]
    assert torch.equal(slope, torch.tensor([[-0.5, 0, 0], [0, -0.5, 0]]))
    vanishing = torch.autograd.grad(CrossEntropy()(look_of(logits, labels)).mean(), logits)[0]
    torch.testing.assert_close(vanishing, (logits.softmax(1) - F.one_hot(labels, 3)).detach() / 2)
    assert vanishing[0].abs().max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES, ids=[type(loss).__name__ for loss in LOSSES])
def test_a_loss_is_its_mean_over_who_is_asked(loss):
    several, labels = torch.randn(3, 5, 4, generator=DRAWS), torch.tensor([0, 1, 2, 3, 0])
    alone = torch.stack([loss(look_of(logits, labels)) for logits in several])
    together = loss(look_of(several[0], labels, tuple(several[1:])))
    torch.testing.assert_close(together, alone.mean(0))
    assert not torch.allclose(together, alone[0]), "the students count"
    torch.testing.assert_close(loss(look_of(several[0], labels, (several[0],) * 3)), alone[0])


@pytest.mark.parametrize(("rows", "width"), [(1, 7), (5, 512)])
def test_the_regulariser_is_a_mean_over_dimensions(rows, width):
    mean = torch.randn(width, generator=DRAWS)
    sign = torch.randn(rows, width, generator=DRAWS).sign()
    for shift, expected in ((0.0, 0.0), (1.0, 1.0), (2.0, 4.0)):
        look = look_of(None, torch.zeros(rows), features=mean + shift * sign, known={"mean": mean, "drawn": mean + 1})
        torch.testing.assert_close(FeatureRegulariser()(look), torch.full((rows,), expected))
    away = look_of(None, torch.zeros(1), features=mean[None], known={"mean": mean, "drawn": mean + 1})
    torch.testing.assert_close(FeatureRegulariser(reference="drawn")(away), torch.ones(1))


def test_distillation_compares_probabilities():
    teacher, student = torch.randn(2, 6, 4, generator=DRAWS, dtype=torch.float64).unbind()
    torch.testing.assert_close(distillation(teacher + 3, teacher), torch.zeros(6), atol=1e-6, rtol=0)
    told = (teacher / 2).softmax(1)
    written_out = (told * (told.log() - (student / 2).log_softmax(1))).sum(1) / 4
    torch.testing.assert_close(distillation(student, teacher, 2.0), written_out.float())


# what is prepared ------------------------------------------------------------------------------------------------


def test_features_of_so_many_public_images_are_measured():
    state, bill, yields = prepare(attack_of(surrogate=None, objective=objective(images=70)), Quarters())
    assert (bill, yields) == (70, 4) and set(state) == {f"objective.features.{n}" for n in ("mean", "std", "drawn")}
    features = Quarters()(PUBLIC.floats()).features
    state, bill, _ = prepare(attack_of(surrogate=None, objective=objective(images=5050)), Quarters())
    assert bill == len(PUBLIC), "all there are"
    torch.testing.assert_close(state["objective.features.mean"], features.mean(0))
    torch.testing.assert_close(state["objective.features.std"], features.std(0))
    drawn = (state["objective.features.drawn"] - features.mean(0)) / features.std(0)
    assert 0.5 < drawn.std() < 2 and drawn.abs().max() < 4


def test_too_few_public_images_are_refused():
    few = PUBLIC.take(torch.arange(1))
    work = attack_of(surrogate=None).prepare(PRIOR, Oracle(Quarters(), "whitebox"), few, seeds.generator("x"), None)
    with pytest.raises(Refused, match="expected 2 or more public images to measure features of, got 1"):
        next(work)


@functools.cache
def whole():
    return prepare(attack_of(init=BestOfPool(size=60, candidates=4, batch_size=20)), Quarters())


def test_the_target_is_asked_once_about_every_public_image_for_all_students():
    state, bill, _ = whole()
    assert bill == len(PUBLIC) + 70 + 2 * 60, "for the students, the statistics and the pool with mirror images"
    assert state["surrogate.asked"].shape == (len(PUBLIC), 4)
    weights = [state[f"surrogate.{name}.network.head.weight"] for name in ("one", "two")]
    assert not torch.equal(*weights), "each student has draws of its own"
    steps = [int(state[f"surrogate.{name}.step"]) for name in ("one", "two")]
    assert steps == [12, 7]


@pytest.mark.parametrize("stop", range(1, 13))
def test_killed_and_resumed_it_is_the_same_to_the_bit(stop):
    attack = attack_of(init=BestOfPool(size=60, candidates=4, batch_size=20))
    state, bill, yields = whole()
    assert yields == 13, "asked; 3 and 2 of the students; 4 of the features; 3 of the pool"
    partly, first, _ = prepare(attack, Quarters(), stop=stop)
    resumed, second, _ = prepare(attack, Quarters(), partly)
    assert equal(resumed, state) and first + second == bill


def test_attacks_that_measure_the_same_share_it():
    recipe = {
        "init": {"i": 1},
        "surrogate": {"s": 1},
        "objective": {
            "terms": {
                name: {"loss": {"l": name, "reference": "mean"}, "weight": 3} for name in ("identity", "features")
            }
        },
    }
    with_students, alone = attack_of(), attack_of(surrogate=None)
    measured = {"features": {"l": "features"}}
    assert with_students.preparation(recipe) == {"objective": measured, "surrogate": {"s": 1}}
    assert alone.preparation(recipe) == {"objective": measured}
    pooled = attack_of(init=BestOfPool(size=60, candidates=4), surrogate=None)
    assert pooled.preparation(recipe) == {"init": {"i": 1}, "objective": measured}


# the search ------------------------------------------------------------------------------------------------------


def recover(attack, state, target):
    oracle, stages = Oracle(target, attack.access, attack.budget, ids=EVIDENCE.ids.tolist()), {}
    for found, _ in run_group(attack, state, PRIOR, oracle, EVIDENCE, seeds.generator("group")):
        stages[found.stage] = found.detached()
    return stages, oracle


def test_the_target_is_charged_for_every_look_and_its_students_for_none():
    target = Quarters()
    _, oracle = recover(attack_of(), whole()[0], target)
    assert oracle.bill == {10: 20, 12: 20, 13: 20} and oracle.shared_bill == 0 and sum(target.seen) == 60


def test_students_change_where_a_search_ends_and_only_the_target_is_regularised():
    state, _, _ = whole()
    alone = recover(attack_of(surrogate=None), state, Quarters())[0]["optimised"]
    beside = recover(attack_of(), state, Quarters())[0]["optimised"]
    assert not torch.allclose(alone.latents, beside.latents, atol=1e-3)
    copies = attack_of(surrogate=Copies(students={"one": learning()}))
    torch.testing.assert_close(recover(copies, state, Quarters())[0]["optimised"].latents, alone.latents)


class Copies(Distilled):
    """Students that say what the target does."""

    def oracle(self, state, prior, target):
        ensemble = super().oracle(under(within(whole()[0], SURROGATE), ""), prior, target)
        ensemble._others = (Oracle(Quarters(), "whitebox"),) * 3
        return ensemble


def test_the_regulariser_holds_the_features_back():
    def drift(weight):
        attack = attack_of(
            surrogate=None,
            objective=objective(weight=weight),
            search=Gradient(optimizer=functools.partial(torch.optim.Adam, lr=0.05), steps=40),
        )
        state, _, _ = prepare(attack, Quarters())
        found = recover(attack, state, Quarters())[0]["optimised"]
        features = Quarters()(PRIOR.decode(found.latents)).features
        return (features - within(state, OBJECTIVE)["features.mean"]).square().mean()

    assert drift(1e5) < drift(0.0) < drift(-1e5)


def test_what_students_and_regulariser_read_needs_its_access():
    with pytest.raises(Refused, match=r"attack.objective .* reads features, gradient, logits, which access=scores"):
        attack_of(surrogate=None, access="scores")
    with pytest.raises(Refused, match=r"attack.surrogate \(Distilled\) reads features, gradient, logits"):
        attack_of(access="scores")
    with pytest.raises(Refused, match="expected one or more, got none"):
        Distilled(students={})
    with pytest.raises(Refused, match="attack.objective.reference: got 'median'"):
        FeatureRegulariser(reference="median")
