"""Parts of an attack that do not work together, or would stand there without effect, are refused when it is built."""

import importlib
import pkgutil
from functools import partial

import pytest
import torch

from midefense.attacks import search
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import BestOfPool, Random
from midefense.attacks.miners import Gaussian
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.p_space import MirrorPool
from midefense.attacks.part import Part
from midefense.attacks.purify import OntoManifold
from midefense.attacks.scores import LogConfidence
from midefense.attacks.search.evolution import Evolution
from midefense.attacks.search.flow import Variational
from midefense.attacks.search.genetic import Genetic
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.search.policy import SoftActorCritic
from midefense.attacks.search.stages import Stage, Stages
from midefense.attacks.search.voting import Voted
from midefense.attacks.select import Everything
from midefense.attacks.views import Clip
from midefense.types import Refused

SGD = partial(torch.optim.SGD, lr=0.1)
DESCENT = Gradient(optimizer=SGD, steps=1)
FLOW = Variational(family=Gaussian(), optimizer=SGD, steps=1)
AGENTS = SoftActorCritic(optimizer=SGD, episodes=1)
POOL = BestOfPool(size=4, candidates=2)
DREAM = Stages(stages={"a": Stage(search=DESCENT, views=Clip()), "b": Stage(search=DESCENT, views=Clip())})


def attack_of(looking, init=None, views=None, objective=None):
    return SearchAttack(
        init=init or Random(candidates=2), objective=objective or CrossEntropy(), search=looking, select=Everything(),
        views=views,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("search", "init"),
    [
        (Voted(descent=DESCENT), None),
        (Genetic(), MirrorPool(size=4, candidates=2)),
        (DREAM, None),
        (Stages(stages={"a": Stage(search=Genetic())}), MirrorPool(size=4, candidates=2)),
    ],
)
def test_views_that_a_search_shows_nobody_are_refused(search, init):
    attack_of(search, init)
    with pytest.raises(Refused, match=r"attack.views: expected null, because attack.search \(.*\) .*, got Clip; try"):
        attack_of(search, init, views=Clip())


def test_views_of_a_stage_that_its_search_shows_nobody_are_refused():
    with pytest.raises(Refused, match=r"attack.search.stages: expected no views of a stage whose search \(Genetic\)"):
        Stage(search=Genetic(), views=Clip())
    mixed = Stages(stages={"a": Stage(search=DESCENT, views=Clip()), "b": Stage(search=DESCENT)})
    attack_of(mixed, views=Clip())


@pytest.mark.parametrize("search", [FLOW, AGENTS, Stages(stages={"a": Stage(search=FLOW)})])
def test_starts_that_were_asked_about_in_vain_are_refused(search):
    attack_of(search)
    with pytest.raises(Refused, match=r"attack.init: expected one that asks nothing, .*, got BestOfPool; try"):
        attack_of(search, POOL)


def test_what_came_before_a_search_that_begins_anew_is_not_thrown_away():
    with pytest.raises(Refused, match=r"stages.b: expected a search that goes on from where the one before it ended"):
        Stages(stages={"a": Stage(search=DESCENT), "b": Stage(search=FLOW)})
    with pytest.raises(Refused, match=r"search.descent: expected a search that goes on from what was voted, got Soft"):
        attack_of(Voted(descent=AGENTS))


def test_votes_without_a_descent_would_ask_the_objective_nothing():
    with pytest.raises(Refused, match=r"attack.search.descent: expected a search, without which nothing asks"):
        attack_of(Voted())


@pytest.mark.parametrize(
    ("search", "init"),
    [
        (Evolution(keep=3, population=4), Random(candidates=2)),
        (Stages(stages={"a": Stage(search=Evolution(keep=3, population=4))}), Random(candidates=2)),
        (Voted(descent=Evolution(keep=3, population=4)), Random(candidates=2)),
        (Genetic(keep=3), MirrorPool(size=4, candidates=2)),
    ],
)
def test_fewer_starts_than_are_kept_are_refused(search, init):
    with pytest.raises(Refused, match=r"attack.search.keep: expected at most the starts of a target, 2 \(.*\), got 3"):
        attack_of(search, init, objective=LogConfidence())
    init.candidates += 1
    attack_of(search, init, objective=LogConfidence())


def test_parts_within_a_part_are_held_to_the_same():
    with pytest.raises(Refused, match=r"attack.purify.search \(Genetic\) goes on from what the init knows \(pool\)"):
        OntoManifold(init=Random(), search=Genetic())


def test_every_search_says_what_it_ignores():
    """One that shows the target other views than the attack's, or has no use for the starts, is listed here."""
    modules = [
        importlib.import_module(f"{search.__name__}.{one.name}") for one in pkgutil.iter_modules(search.__path__)
    ]
    parts = [part for module in modules for part in vars(module).values() if isinstance(part, type)]
    parts = [part for part in parts if issubclass(part, Part)]
    assert {part.__name__ for part in parts if part.ignores} == {"Genetic", "Voted"}
    assert {part.__name__ for part in parts if part.begins_anew} == {"SoftActorCritic", "Variational"}
