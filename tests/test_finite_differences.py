"""MI-Face by numeric gradients: the gradient is that of autograd, the step pays what its probes cost, and rounding is
overcome by a wider step (methods card mi_face.md, sections 5 and 8)."""

import functools

import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import Random
from midefense.attacks.objectives import Confidence
from midefense.attacks.problem import Problem
from midefense.attacks.scores import Doubt, LogConfidence
from midefense.attacks.search.gradient import Rest
from midefense.attacks.search.numeric import FiniteDifferences
from midefense.attacks.select import LowestLoss
from midefense.oracle import Oracle
from midefense.priors.pixels import Pixels
from midefense.types import Evidence, Refused, Trace

SIZE, CLASSES = 5, 3
WIDTH = SIZE**2
PRIOR = Pixels(channels=1, size=SIZE, start="zeros").requires_grad_(False)
EVIDENCE = Evidence(torch.tensor([0, 2]), torch.tensor([7, 9]))


class Softmax(nn.Module):
    """Softmax regression; probabilities are rounded to `rounding`, as an output that is defended so tells them."""

    def __init__(self, rounding=0.0):
        super().__init__()
        with seeds.isolated("softmax"):
            self.head = nn.Linear(WIDTH, CLASSES)
        self.rounding = rounding

    def forward(self, images, taps=()):
        logits = self.head(images.flatten(1))
        if self.rounding:
            logits = (logits.softmax(1) / self.rounding).round().mul(self.rounding).log()
        return Trace(logits, images.flatten(1))


def attack_of(objective=None, stop=None, candidates=1, budget=None, chunk=None, **options):
    search = {"optimizer": functools.partial(torch.optim.SGD, lr=1.0), "steps": 30, "stop": stop, **options}
    return SearchAttack(
        init=Random(candidates=candidates),
        objective=objective or Doubt(),
        search=FiniteDifferences(**search),
        select=LowestLoss(),
        access="scores",
        budget=budget,
        chunk=chunk,
    )


def recovered(attack, target=None, evidence=EVIDENCE):
    oracle = Oracle(target or Softmax(), attack.access, attack.budget)
    found = None
    for found, _ in run_group(attack, {}, PRIOR, oracle, evidence, seeds.generator("recover")):  # noqa: B007
        pass
    return found, [oracle.bill.get(one, 0) for one in evidence.ids.tolist()]


def gradients(latents, **options):
    """The measured gradient and that of autograd, of 1 - p."""
    target = Softmax().double()
    search = attack_of(**options).search
    problem = Problem.plain(PRIOR, Oracle(target, "scores"), EVIDENCE, seeds.generator("g"))
    problem.objective, problem.reads = Doubt(), ("probs",)
    measured = latents.clone().requires_grad_()
    loss, _ = search._descend(problem, measured, torch.tensor([0, 1]), problem.draw("s"), torch.zeros(2).double(), None)
    exact = latents.clone().requires_grad_()
    told = 1 - target(exact).logits.softmax(1)[torch.arange(2), EVIDENCE.labels]
    told.sum().backward()
    torch.testing.assert_close(loss.float(), told.detach().float(), atol=1e-6, rtol=1e-6)
    return measured.grad, exact.grad


def points(seed=0):
    return torch.rand(2, 1, SIZE, SIZE, generator=seeds.generator(seed), dtype=torch.float64)


@pytest.mark.parametrize(("differences", "nearest"), [("central", 1e-4), ("forward", 1e-3)])
def test_the_measured_gradient_is_that_of_autograd(differences, nearest):
    measured, exact = gradients(points(), differences=differences)
    assert exact.abs().max() > 0.01
    assert (measured - exact).abs().max() < nearest


def test_random_directions_are_right_on_average():
    measured, exact = gradients(points(), directions=4000)
    assert nn.functional.cosine_similarity(measured.flatten(1), exact.flatten(1)).min() > 0.98
    assert (measured.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1) - 1).abs().max() < 0.1


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_probes_that_are_asked_in_pieces_give_the_same(chunk):
    whole, cost = recovered(attack_of(candidates=2, steps=4))
    pieces, paid = recovered(attack_of(candidates=2, steps=4, chunk=chunk))
    torch.testing.assert_close(pieces.latents, whole.latents, atol=1e-5, rtol=1e-4)
    assert paid == cost == [2 * 4 * (2 * WIDTH + 1)] * 2


def test_who_rests_is_not_asked_about():
    """Both end sure; the one that is sure first pays less, and each pays for whole steps."""
    attack = attack_of(stop=Rest(cost=0.3, patience=100, check_every=1), steps=200, optimizer=fast())
    found, bill = recovered(attack)
    assert (found.loss <= 0.3).all() and bill[0] != bill[1]
    assert all(asked % (2 * WIDTH + 1) == 0 for asked in bill)
    assert max(bill) < 200 * (2 * WIDTH + 1)


def fast():
    return functools.partial(torch.optim.SGD, lr=5.0)


def test_it_finds_what_the_gradient_would():
    found, _ = recovered(attack_of(optimizer=fast(), steps=60))
    assert (found.loss < 0.1).all()
    found, _ = recovered(attack_of(objective=LogConfidence(), optimizer=fast(), steps=60))
    assert (found.loss < 0.1).all()


def test_rounding_is_overcome_by_a_wider_step():
    """A defence test that uses the small step alone reports a false win."""
    target = Softmax(rounding=0.1)
    start = Softmax()(torch.zeros(1, 1, SIZE, SIZE)).logits.softmax(1)[0, 0].detach()
    ends = {}
    for delta in (0.02, 1.0):
        found, _ = recovered(attack_of(optimizer=fast(), steps=40, delta=delta), target)
        ends[delta] = Softmax()(found.latents).logits.softmax(1)[torch.arange(2), EVIDENCE.labels]
    assert ends[0.02].min() < start + 0.3 and ends[1.0].min() > 0.7


def test_an_objective_that_draws_is_refused_as_probes_are_looked_at_without_dice():
    class Drawn(Doubt):
        columns = 2

    with pytest.raises(Refused, match="expected a search that hands it its dice, got FiniteDifferences"):
        attack_of(Drawn())


def test_no_more_than_scores_is_read_and_other_differences_are_refused():
    with pytest.raises(Refused, match="reads gradient, logits"):
        attack_of(objective=Confidence())
    with pytest.raises(Refused, match="attack.search.differences: got 'backward'"):
        attack_of(differences="backward")
