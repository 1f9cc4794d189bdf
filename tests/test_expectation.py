"""Attackers who know that a target draws for its answers: the expectation over its noise, and its mean path."""

import functools

import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.expectation import Averaged, Expectation
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy, Poincare
from midefense.attacks.problem import Look
from midefense.attacks.scores import Doubt
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.search.numeric import FiniteDifferences
from midefense.attacks.select import Everything
from midefense.defenses.output import OutputNoise
from midefense.defenses.vib import VIB, mean_and_deviation
from midefense.oracle import BudgetExceeded, Oracle
from midefense.priors.toy import ToyFamily
from midefense.training import loop
from midefense.types import Answer, Evidence, Refused, Trace

IMAGES = torch.rand(3, 1, 16, 16, generator=seeds.generator("images"))
LABELS = torch.tensor([0, 1, 2])
PRIOR = ToyFamily(channels=1, size=16).requires_grad_(False)


@functools.cache
def behind(deployed: str) -> nn.Module:
    """A small network with a bottleneck whose noise is large, as deployed."""
    defense = VIB(beta=0.01, deployed=deployed)
    with seeds.isolated("network"):
        model = loop.assemble(CNN(classes=3, channels=1, size=16, widths=[4, 4], features=6), defense, seed=0)
    with torch.no_grad():
        model.stages["bottleneck"].bias[3:] += 6
    return defense.seal(model)


def oracle_of(deployed: str, access: str = "whitebox", **options) -> Oracle:
    return Oracle(behind(deployed), access, key=("key",), **options)


def logits(oracle) -> torch.Tensor:
    return oracle(IMAGES, reads=("logits",)).logits


def look_at(answer: Answer) -> Look:
    return Look(torch.zeros(3, 2), IMAGES, IMAGES, IMAGES, answer, LABELS, PRIOR)


def test_whoever_holds_the_weights_chooses_whether_a_target_draws():
    mean, sampled = oracle_of("mean"), oracle_of("sampled")
    assert torch.equal(logits(mean), logits(mean)) and not torch.equal(logits(sampled), logits(sampled))
    still, drawn = sampled.drawing(False), mean.drawing(True)
    assert torch.equal(logits(still), logits(mean)), "the mean path, bit for bit"
    assert not torch.equal(logits(drawn), logits(drawn)), "though the mean is deployed"
    assert torch.equal(logits(mean), logits(oracle_of("mean"))), "the door itself answers as it did"


def test_draws_are_keyed_and_charged_to_the_same_bill():
    first, again = (oracle_of("mean", budget=2).drawing(True) for _ in range(2))
    with seeds.isolated("elsewhere"):
        told = first(IMAGES, ids=[7, 8, 9], reads=("logits",)).logits
    assert torch.equal(told, again(IMAGES, ids=[7, 8, 9], reads=("logits",)).logits), "whatever was drawn meanwhile"
    oracle = oracle_of("mean", budget=2)
    oracle.drawing(True)(IMAGES, ids=[7, 8, 9])
    oracle.drawing(False)(IMAGES, ids=[7, 8, 9])
    assert oracle.bill == {7: 2, 8: 2, 9: 2}
    with pytest.raises(BudgetExceeded):
        oracle(IMAGES, ids=[7, 8, 9])


@pytest.mark.parametrize("access", ["labels", "scores"])
def test_nobody_without_the_weights_chooses(access):
    with pytest.raises(Refused, match="Oracle.drawing reads weights"):
        oracle_of("sampled", access).drawing(False)


def test_an_attack_without_the_weights_may_average_what_it_is_told_alone():
    search = FiniteDifferences(optimizer=functools.partial(torch.optim.SGD, lr=0.1), steps=2)
    asks_scores = {"access": "scores", "objective": Doubt(), "search": search}
    with pytest.raises(Refused, match=r"attack.surrogate \(Averaged\) reads weights, which access=scores hides"):
        attack_of(Averaged(draws=2), **asks_scores)
    _, oracle = found_by(attack_of(Averaged(draws=2, noise="deployed"), **asks_scores), "sampled", access="scores")
    assert oracle.bill == {0: 2 * 2 * 2 * 5, 1: 2 * 2 * 2 * 5}, (
        "draws, candidates, steps, and five points of two numbers"
    )


@pytest.mark.parametrize("objective", [CrossEntropy(), Poincare()])
def test_the_loss_is_the_mean_over_draws_and_so_is_its_gradient(objective):
    """That of the mean logits would be the loss of no noise at all: a head is linear in its code."""
    images = IMAGES.clone().requires_grad_()

    def gradient(oracle) -> tuple[torch.Tensor, torch.Tensor]:
        loss = objective(look_at(oracle(images, reads=("logits",))))
        return loss.detach(), torch.autograd.grad(loss.sum(), images)[0]

    draws, one = 5, oracle_of("mean").drawing(True)
    told, told_gradient = gradient(Expectation(oracle_of("mean").drawing(True), draws))
    each = [gradient(one) for _ in range(draws)]
    assert torch.allclose(told, torch.stack([loss for loss, _ in each]).mean(0), atol=1e-6)
    assert torch.allclose(told_gradient, torch.stack([slope for _, slope in each]).mean(0), atol=1e-6)
    assert not torch.allclose(told, gradient(oracle_of("mean"))[0], atol=1e-2)


def test_it_converges_on_the_expectation_over_codes():
    model = behind("mean")
    trace = model(IMAGES, taps=("bottleneck",))
    mean, deviation = mean_and_deviation(trace.taps["bottleneck"])
    noise = torch.randn(20_000, *mean.shape, generator=seeds.generator("codes"))
    known = model.classifier(mean + deviation * noise).softmax(2).mean(0)
    many = Expectation(oracle_of("mean").drawing(True), 4)(IMAGES.repeat(500, 1, 1, 1), reads=("probs",)).probs
    told = many.view(500, 3, 3).mean(0)
    assert torch.allclose(told, known, atol=0.02) and not torch.allclose(trace.logits.softmax(1), known, atol=0.02)


class Scripted(nn.Module):
    """Says in turn what it was told to, whatever it is asked."""

    def __init__(self, *labels: int):
        super().__init__()
        self.labels, self.asked = labels, 0

    def forward(self, images, taps=()):
        label = self.labels[self.asked % len(self.labels)]
        self.asked += 1
        logits = torch.nn.functional.one_hot(torch.full((len(images),), label), 3).float()
        return Trace(logits, logits)


def test_labels_are_those_most_often_told():
    assert Expectation(Oracle(Scripted(2, 0, 2), "labels"), 3)(IMAGES, reads=("labels",)).labels.tolist() == [2, 2, 2]
    told = Expectation(Oracle(Scripted(1, 0, 1), "scores"), 3)(IMAGES, reads=("labels", "probs"))
    assert told.labels.tolist() == [1, 1, 1] and told.probs.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_scores_that_are_drawn_for_every_answer_average_out():
    noise = OutputNoise(scale=0.05, drawn_per="answer", keep_label=False)
    model = noise.seal(loop.assemble(CNN(**SMALL), noise, 0))
    clean = Oracle(model, "whitebox")(IMAGES).probs
    noisy = Oracle(model, "scores", key=("key",))
    far = (noisy(IMAGES).probs - clean).abs().mean()
    near = (Averaged(draws=50, noise="deployed").oracle({}, PRIOR, noisy)(IMAGES).probs - clean).abs().mean()
    assert near < far / 2


SMALL = {"classes": 3, "channels": 1, "size": 16, "widths": [4, 4], "features": 6}


def attack_of(surrogate, access="whitebox", **changes):
    parts = {"init": Random(candidates=2), "objective": CrossEntropy(), "select": Everything(), "surrogate": surrogate}
    search = Gradient(optimizer=functools.partial(torch.optim.SGD, lr=0.1), steps=3)
    return SearchAttack(**{**parts, "search": search, "access": access, **changes})


def found_by(attack, deployed, **options):
    oracle = oracle_of(deployed, ids=[0, 1], **options)
    evidence = Evidence(torch.tensor([0, 2]), torch.tensor([0, 1]))
    stages = list(run_group(attack, {}, PRIOR, oracle, evidence, seeds.generator("group")))
    return stages[-1][0].latents, oracle


def test_the_mean_path_is_the_search_of_a_target_without_noise():
    plain, oracle = found_by(attack_of(None), "mean")
    quiet, asked = found_by(attack_of(Averaged(draws=1, noise="mean")), "sampled")
    assert torch.equal(plain, quiet) and asked.bill == oracle.bill
    noisy, _ = found_by(attack_of(None), "sampled")
    assert not torch.equal(plain, noisy)


def test_every_draw_is_charged_and_a_group_is_found_again():
    attack = attack_of(Averaged(draws=4))
    first, oracle = found_by(attack, "mean")
    again, _ = found_by(attack, "mean")
    assert torch.equal(first, again) and oracle.bill == {0: 4 * 2 * 3, 1: 4 * 2 * 3}
    assert not attack.prepares, "there is nothing to learn"


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(Refused, match="attack.surrogate.noise: got 'loud'; choices: deployed, drawn, mean"):
        Averaged(noise="loud")
    with pytest.raises(Refused, match=r"attack.surrogate.draws: expected 1 of a target that draws nothing .*, got 4"):
        Averaged(draws=4, noise="mean")
