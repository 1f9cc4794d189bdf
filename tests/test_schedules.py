"""Schedules: rates of known answers, a search that follows one, and the ids of recipes from before they were parts."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from midefense.attacks.part import Part
from midefense.attacks.problem import Look
from midefense.attacks.schedules import Cosine, Milestones, Schedule, paced
from midefense.attacks.search.gradient import Gradient
from midefense.plan.bind import bind, bind_recipe
from midefense.plan.compose import compose
from midefense.types import Answer, Evidence, Found, Refused

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.7}
SEARCH = {"_target_": "midefense.attacks.search.gradient.Gradient", "optimizer": SGD, "steps": 4}
BY_MILESTONES = {"_target_": "midefense.attacks.schedules.Milestones", "milestones": [1, 3], "factor": 0.3}
COSINE = {"_target_": "midefense.attacks.schedules.Cosine", "warmup": 0.25}


def rates(schedule, steps=4, rate=0.7):
    """The rates an optimiser has at each update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    pace, seen = paced(optimizer, schedule, steps), []
    for step in range(steps):
        pace(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_milestones_round_as_one_product_after_the_other():
    told, expected = 0.7, []
    for step in range(8):
        if step in (1, 3, 4):
            told *= 0.3
        expected.append(told)
    assert rates(Milestones(milestones=[4, 1, 3], factor=0.3), 8) == expected
    assert expected[-1] != 0.7 * 0.3**3, "the powers round otherwise: this case sees the difference"


def test_no_schedule_is_a_constant_rate():
    assert rates(None) == rates(Milestones()) == [0.7] * 4


def test_the_cosine_of_mirror():
    """Card: u = t/T with t from 1; r = (.5 - .5 cos(pi min(1, (1-u)/.25))) min(1, u/.05); the last rate is 0."""
    seen = rates(Cosine(warmup=0.05, decline=0.25), 100, rate=1.0)
    assert seen[0] == pytest.approx(0.2) and seen[4:75] == [1.0] * 71
    assert seen[86] == pytest.approx(0.5 - 0.5 * math.cos(math.pi * 0.13 / 0.25)) and seen[-1] == 0
    assert rates(Cosine(floor=0.1), 10, rate=1.0)[-1] == pytest.approx(0.1)
    assert rates(Cosine(), 4, rate=2.0)[1] == pytest.approx(1.0), "half way down"


def test_a_rate_depends_on_its_step_alone():
    """A run that goes on from a saved step has the rates of one that was never interrupted."""
    for schedule in (Milestones(milestones=[1, 3], factor=0.3), Cosine(warmup=0.25)):
        assert [schedule(0.7, step, 4) for step in (3, 0, 2, 1)] == [rates(schedule)[step] for step in (3, 0, 2, 1)]


class Falling(Part):
    """Minus the first entry of a latent."""

    def __call__(self, look):
        return -look.latents[:, 0]


class Slope(nn.Module):
    """A problem whose loss falls by one per unit of the latent, so that a step is as long as the rate."""

    views, device, evidence = None, torch.device("cpu"), Evidence(torch.zeros(1), torch.zeros(1))
    prior = SimpleNamespace(held=0)

    def draw(self, purpose):
        return torch.Generator()

    def chunks(self, count):
        return [slice(0, count)]

    def drawn(self, latents):
        return None

    def show(self, picture, latents, *_, dice):
        return Look(latents, *[None] * 3, Answer(), None, None)

    objective = Falling()


class Doubling(Schedule):
    """A double of a schedule that comes later."""

    def __call__(self, rate, step, steps):
        return rate * 2**step


def test_a_search_follows_its_schedule():
    search = Gradient(optimizer=lambda tensors: torch.optim.SGD(tensors, lr=0.5), steps=4, schedule=Doubling())
    start = Found(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, dtype=torch.int64), "initial")
    assert [float(found.latents) for found in map(Found.detached, search(Slope(), start))] == [0.5, 1.5, 3.5, 7.5]


def test_recipes_are_those_of_before_and_come_back():
    recipe = bind({**SEARCH, "schedule": BY_MILESTONES}, "search").recipe()
    assert recipe["milestones"] == [1, 3] and recipe["factor"] == 0.3 and "schedule" not in recipe
    again = bind_recipe(recipe, {})
    assert (
        again.recipe() == recipe
        and again.build().schedule(0.7, 3, 4) == rates(Milestones(milestones=[1, 3], factor=0.3))[3]
    )
    constant = bind(SEARCH, "search").recipe()
    assert (
        constant == bind({**SEARCH, "schedule": {**BY_MILESTONES, "milestones": [], "factor": 0.1}}, "search").recipe()
    )
    assert bind_recipe(constant, {}).recipe() == constant


def test_another_schedule_stands_under_its_own_name():
    recipe = bind({**SEARCH, "schedule": COSINE}, "search").recipe()
    assert recipe["schedule"]["warmup"] == 0.25 and "milestones" not in recipe and "factor" not in recipe
    assert bind_recipe(recipe, {}).recipe() == recipe


def test_milestones_of_another_revision_are_another_recipe(monkeypatch):
    node = {**SEARCH, "schedule": BY_MILESTONES}
    before = bind(node, "search").recipe()
    monkeypatch.setattr(Milestones, "revision", 2)
    assert bind(node, "search").recipe() != before


@pytest.mark.parametrize(
    ("overrides", "built"),
    [
        (("attack=gmi",), None),
        (("attack=gmi", "attack/schedule@attack.search.schedule=cosine"), Cosine),
        (("attack=ppa_default",), Milestones),
        (("attack=ppa", "attack/schedule@attack.search.schedule=cosine"), Cosine),
        (("attack=ppa", "attack.search.schedule.milestones=[30]"), Milestones),
    ],
)
def test_a_schedule_is_data(overrides, built):
    schedule = bind(compose("attack", overrides)[0]["attack"], "attack").build().search.schedule
    assert type(schedule) is (built or type(None))
    if "attack=ppa_default" in overrides:
        assert schedule.milestones == {30, 40}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Cosine(warmup=1.5),
        lambda: Cosine(decline=0.0),
        lambda: Cosine(floor=-0.1),
    ],
)
def test_shares_and_steps_that_cannot_be_are_refused(wrong):
    with pytest.raises(Refused, match="schedule: expected"):
        wrong()
