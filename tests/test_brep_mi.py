"""BREP-MI: closed forms of its rounds, where they end, what they cost, and what becomes of labels never met."""

import math
from functools import partial

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import seeds
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import Random
from midefense.attacks.inside import InsideTheClass
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.part import Part
from midefense.attacks.scores import WrongLabel
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.search.repulsion import BoundaryRepulsion
from midefense.attacks.select import Everything, LowestLoss
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.types import Evidence, Found, Question, Refused, Trace

SIDE = 4
WIDTH = SIDE**2


class Itself(Prior):
    """Pictures [B, 1, 4, 4] are the sixteen numbers of the noise, of which a clip leaves those of the box."""

    offers = frozenset({"sample", "normal"})
    normal_width = WIDTH

    def __init__(self):
        super().__init__(channels=1, size=SIDE)

    def of_normal(self, noise):
        return noise

    def decode(self, latents):
        return latents.unflatten(1, (1, SIDE, SIDE)) / 100 + 0.5


class Regions(nn.Module):
    """Class k + 1 where region k holds the point (the last that does), class 0 elsewhere."""

    def __init__(self, *regions):
        super().__init__()
        self.regions = regions

    def forward(self, images, taps=()):
        points = 100 * (images.flatten(1) - 0.5)
        told = torch.stack([torch.full((len(points),), 0.5), *(region(points).float() for region in self.regions)], 1)
        return Trace(told + torch.arange(told.shape[1]) * 1e-3 * (told > 0), points)


def ball(points, radius, centre=0.0):
    return (points - centre).norm(dim=1) <= radius


def everywhere(points):
    return torch.ones(len(points), dtype=torch.bool)


class At(Part):
    """Given starts, one per target."""

    gives = ("noise",)

    def __init__(self, noise):
        self.noise = noise

    def __call__(self, problem):
        rows = torch.arange(len(problem.evidence))
        return Found(self.noise[rows], torch.full((len(rows),), torch.nan), rows, "initial", noise=self.noise[rows])


def attack_of(init, select=None, **options):
    search = BoundaryRepulsion(**options)
    return SearchAttack(
        init=init, objective=WrongLabel(), search=search, select=select or Everything(), access="labels"
    )


def attacked(attack, model, targets, label=1, access="labels", budget=None, state=None):
    """The stages, why it stopped, and the bill."""
    oracle = Oracle(model, access, budget)
    evidence = Evidence(torch.full((targets,), label), torch.arange(targets))
    stages, why = {}, ""
    for found, why in run_group(attack, state or {}, Itself(), oracle, evidence, seeds.generator("brep_mi")):  # noqa: B007
        stages[found.stage] = found.detached()
    return stages, why, oracle.bill


def prepared(init, model, labels, state=None, access="labels", classes=4):
    """Every state that the preparation saves, and the shared bill."""
    oracle = Oracle(model, access)
    question = Question(torch.tensor(labels), classes)
    work = init.prepare(Itself(), oracle, seeds.generator("starts"), state, question)
    return [give() for _, _, give in work], oracle.shared_bill


# a round ---------------------------------------------------------------------------------------------------------


def test_a_half_space_repels_along_its_normal_by_the_closed_form():
    """Card, section 8: E[g] = -c n with c = (1 - s^2)^((d - 1) / 2) / ((d - 1) B((d - 1) / 2, 1 / 2)), s = t / R."""
    shift, count = 0.25, 400_000
    normals = torch.randn(1, count, WIDTH, generator=seeds.generator("half space"))
    directions = normals / normals.norm(dim=2, keepdim=True)
    normal = nn.functional.normalize(torch.arange(1.0, WIDTH + 1), dim=0)
    outside = (directions @ normal > shift).float()
    radius = torch.tensor([6.0])
    move = BoundaryRepulsion()._move(directions, outside, radius, radius)[0] / 2  # the step is min(6 / 3, 3)
    half = (WIDTH - 1) / 2
    beta = math.gamma(half) * math.gamma(0.5) / math.gamma(half + 0.5)
    expected = (1 - shift**2) ** half / ((WIDTH - 1) * beta)
    assert expected == pytest.approx(0.06243, abs=1e-5)
    assert float(-move @ normal) == pytest.approx(expected, rel=0.01)
    assert float((move - (move @ normal) * normal).norm()) < 0.003


@pytest.mark.parametrize(("radius", "length"), [(3.0, 1.0), (30.0, 3.0)])
def test_a_step_is_a_third_of_the_radius_but_never_more_than_three(radius, length):
    direction = torch.eye(WIDTH)[:1, None].expand(1, 32, WIDTH)
    before = torch.tensor([radius])
    move = BoundaryRepulsion()._move(direction, torch.ones(1, 32), before, 1.3 * before)
    torch.testing.assert_close(move[0, 0], torch.tensor(-length))


def test_the_published_code_divides_by_the_radius_that_has_grown():
    direction, before = torch.eye(WIDTH)[:1, None].expand(1, 32, WIDTH), torch.tensor([3.0])
    plain = BoundaryRepulsion(radius=3.0, points=8)
    published = plain.as_published()
    assert {**vars(plain), "divide_by_grown": True} == vars(published)
    moves = [rule._move(direction, torch.ones(1, 32), before, 1.3 * before)[0, 0] for rule in (plain, published)]
    assert float(moves[1] / moves[0]) == pytest.approx(1 / 1.3)
    attack = SearchAttack(
        init=At(torch.zeros(1, WIDTH)), objective=WrongLabel(), search=plain, select=Everything(), access="labels",
        legacy=True,
    )  # fmt: skip
    assert attack.search.divide_by_grown and not plain.divide_by_grown


@pytest.mark.parametrize(("grow_above", "enough"), [(0.75, 29), (0.5, 25), (0.99, 32)])
def test_how_many_of_32_points_let_the_sphere_grow(grow_above, enough):
    """The signed mean of the code, that of the toolbox, and the paper's words."""
    search = BoundaryRepulsion(grow_above=grow_above, patience=1, max_rounds=1)
    units = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    for inside in (enough - 1, enough):
        search.directions = lambda walk, rows: units[None]
        told = iter([(torch.arange(32) >= inside).float()[None], torch.zeros(1, 1)])
        search._outside = lambda problem, walk, rows, noise, told=told: (next(told), noise.flatten(0, 1))
        attack = attack_of(At(torch.zeros(1, WIDTH)))
        attack.search = search
        stages, _, _ = attacked(attack, Regions(everywhere), 1)
        assert len(stages["selected"]) == (inside >= enough)


# where it ends ---------------------------------------------------------------------------------------------------


def test_the_ball_of_the_card():
    """Radius 3, start 2.5 off the centre: R ends at 2 * 1.3^2, the point .87 to .89 off on average, 33,8xx queries."""
    starts = nn.functional.normalize(torch.randn(10, WIDTH, generator=seeds.generator("ball")), dim=1) * 2.5
    starts = starts.clamp(-1.5, 1.5)
    attack = attack_of(At(starts))
    stages, why, bill = attacked(attack, Regions(partial(ball, radius=3.0)), 10)
    found = stages["selected"]
    assert why == "" and len(found) == 10
    torch.testing.assert_close(-found.loss, torch.full((10,), 2 * 1.3**2))
    assert 0.8 < float(found.latents.norm(dim=1).mean()) < 0.96
    assert all(asked % 33 == 0 and 33_700 <= asked <= 34_000 for asked in bill.values())
    assert float(found.latents.abs().max()) <= 1.5


def test_the_last_point_is_another_estimate_than_that_behind_the_last_growth():
    starts = torch.zeros(20, WIDTH)
    starts[:, 0], starts[:, 1] = 1.5, 1.5
    model = Regions(partial(ball, radius=3.0))
    ends = {
        keep: attacked(attack_of(At(starts), keep=keep, patience=150), model, 20)[0]["selected"].latents.norm(dim=1)
        for keep in ("growth", "last")
    }
    assert float(ends["growth"].mean()) < float(ends["last"].mean()), "card: .87 to .89 against 1.2 to 1.4"


def test_a_class_that_is_everything_ends_at_the_cap():
    stages, _, bill = attacked(attack_of(At(torch.ones(1, WIDTH)), max_rounds=50), Regions(everywhere), 1)
    found = stages["selected"]
    assert bill == {0: 50 * 33} and torch.equal(found.latents, torch.ones(1, WIDTH))
    assert float(-found.loss) == pytest.approx(2 * 1.3**50, rel=1e-5)


def test_a_class_too_small_to_move_in_ends_at_the_cap_and_finds_nothing():
    model = Regions(partial(ball, radius=0.01))
    stages, why, bill = attacked(attack_of(At(torch.zeros(2, WIDTH)), max_rounds=40), model, 2)
    assert why == "" and bill == {0: 40 * 33, 1: 40 * 33} and len(stages["selected"]) == 0


def test_a_class_smaller_than_the_first_sphere_is_a_failure_behind_the_patience():
    """Card: a ball of radius 1.9 takes exactly as many rounds as the patience has, 33 queries each."""
    model = Regions(partial(ball, radius=1.9))
    stages, _, bill = attacked(attack_of(At(torch.zeros(1, WIDTH)), patience=100), model, 1)
    assert bill == {0: 3_300} and len(stages["selected"]) == 0
    ends, _, _ = attacked(attack_of(At(torch.zeros(1, WIDTH)), patience=20, keep="last"), model, 1)
    assert len(ends["selected"]) == 1 and float(ends["selected"].latents.norm()) <= 1.9


def test_a_growth_whose_move_is_taken_back_is_kept_but_not_its_point():
    """The mark of a growth lives for one round; the radius and the patience keep it."""
    search = BoundaryRepulsion(points=2, patience=2, max_rounds=20)
    attack = attack_of(At(torch.zeros(1, WIDTH)))
    attack.search = search
    inside, outside = torch.zeros(1, 2), torch.ones(1, 2)
    left, stays = torch.ones(1, 1), torch.zeros(1, 1)
    # stays; grows, taken back; stays; stays: two moves behind the growth
    told = iter([outside, stays, inside, left, outside, stays, outside, stays])
    radii = []

    def asked(problem, walk, rows, noise):
        radii.append(float(walk.radius[0]))
        return next(told), noise.flatten(0, 1)

    search._outside = asked
    stages, _, _ = attacked(attack, Regions(everywhere), 1)
    assert len(stages["selected"]) == 0 and next(told, None) is None
    assert radii == pytest.approx([2, 2, 2, 2.6, 2.6, 2.6, 2.6, 2.6])


def test_moves_that_nobody_asks_about_cost_nothing():
    """The toolbox: 32 images a round, 1,000 rounds whatever happens."""
    options = {"stays_inside": False, "patience": None, "max_rounds": 30, "keep": "last", "repulsion_only": False}
    stages, _, bill = attacked(attack_of(At(torch.zeros(1, WIDTH)), **options), Regions(partial(ball, radius=1)), 1)
    assert bill == {0: 30 * 32} and len(stages["selected"]) == 1


# independence ----------------------------------------------------------------------------------------------------


def test_a_target_finds_alone_what_it_finds_among_others_and_pays_the_same():
    starts = torch.randn(5, WIDTH, generator=seeds.generator("five")).clamp(-1.5, 1.5) / 2
    model = Regions(partial(ball, radius=3.0))
    stages, _, bill = attacked(attack_of(At(starts), patience=60), model, 5)
    assert len(set(bill.values())) > 1, "those that rest are not asked about"
    for row in range(5):
        oracle = Oracle(model, "labels")
        evidence = Evidence(torch.tensor([1]), torch.tensor([row]))
        attack = attack_of(At(starts[row : row + 1]), patience=60)
        *_, (alone, _) = run_group(attack, {}, Itself(), oracle, evidence, seeds.generator("brep_mi"))
        torch.testing.assert_close(alone.latents[0], stages["selected"].latents[row], rtol=0, atol=0)
        assert oracle.bill == {row: bill[row]}


def test_a_spent_budget_ends_it_with_what_was_found():
    model = Regions(partial(ball, radius=3.0))
    attack = attack_of(At(torch.zeros(2, WIDTH)))
    stages, why, bill = attacked(attack, model, 2, budget=33 * 10)
    assert "the budget is 330" in why and bill == {0: 330, 1: 330}
    assert len(stages["optimised"]) == 2 and "selected" not in stages


# starts ----------------------------------------------------------------------------------------------------------

HALVES = Regions(lambda points: points[:, 0] > 0, lambda points: points[:, 1] > 1, lambda points: points[:, 2] > 9)


def test_starts_are_the_first_draws_that_the_target_gives_the_label():
    init = InsideTheClass(candidates=3, batch_size=10, draws=1000)
    states, shared = prepared(init, HALVES, [2, 1])
    made = states[-1]
    draws = torch.cat([init.draw(WIDTH, seeds.generator("starts"), batch) for batch in range(len(states))])
    told = Oracle(HALVES, "labels")(Itself().decode(draws), reads=("labels",)).labels
    for row, label in enumerate([1, 2]):
        first = (told == label).nonzero()[:3, 0]
        assert made["inside.hits"][row].tolist() == first.tolist()
        assert torch.equal(made["inside.noise"][row], draws[first])
    assert shared == len(draws) == int(made["inside.drawn"]) and draws.abs().max() == 1.5


def test_it_stops_at_every_state_and_goes_on_to_the_same_bits():
    init = InsideTheClass(candidates=4, batch_size=6)
    whole, shared = prepared(init, HALVES, [0, 1, 2])
    assert len(whole) > 3
    for done, state in enumerate(whole[:-1], start=1):
        rest, asked = prepared(init, HALVES, [0, 1, 2], state={k: v.clone() for k, v in state.items()})
        torch.testing.assert_close(rest[-1], whole[-1], rtol=0, atol=0)
        assert asked == shared - 6 * done, "nothing is asked again"
    assert prepared(init, HALVES, [0, 1, 2], state=whole[-1])[0] == []


def test_a_label_that_is_never_met_has_no_start_and_costs_its_target_nothing():
    init = InsideTheClass(batch_size=16, draws=100)
    states, shared = prepared(init, HALVES, [1, 3])
    assert shared == 112, "whole batches"
    attack = attack_of(init, patience=3, max_rounds=5)
    evidence = Evidence(torch.tensor([3, 1]), torch.tensor([3, 1]))
    oracle = Oracle(HALVES, "labels")
    *_, (found, _) = run_group(attack, states[-1], Itself(), oracle, evidence, seeds.generator("brep_mi"))
    assert set(found.evidence.tolist()) <= {1} and set(oracle.bill) == {1}
    assert attack.chosen(states[-1], evidence) is None, "it is a target, and so a failure"
    alone = Evidence(torch.tensor([3]), torch.tensor([3]))
    *_, (nothing, why) = run_group(attack, states[-1], Itself(), oracle, alone, seeds.generator("brep_mi"))
    assert len(nothing) == 0 and nothing.stage == "selected" and why == ""


def test_a_label_that_is_met_too_seldom_starts_from_its_hits_again():
    init = InsideTheClass(candidates=5, batch_size=4, draws=4)
    states, _ = prepared(init, HALVES, [0, 1])
    assert (states[-1]["inside.hits"] < 0).any()
    attack = attack_of(init, max_rounds=1, keep="last")
    evidence = Evidence(torch.tensor([1]), torch.tensor([1]))
    stages = {}
    for found, _ in run_group(attack, states[-1], Itself(), Oracle(HALVES, "labels"), evidence, seeds.generator("b")):
        stages[found.stage] = found.detached()
    starts = stages["initial"].latents
    assert 1 <= len(starts.unique(dim=0)) < len(starts) == 5
    ways = [len(stages[stage].latents.unique(dim=0)) for stage in ("initial", "selected")]
    assert ways[1] > ways[0], "each goes its own way"


def test_untargeted_takes_the_labels_that_are_met_first_and_no_others(store):
    init = InsideTheClass(batch_size=8, distinct=2)
    states, shared = prepared(init, HALVES, [0, 1, 2, 3])
    made = states[-1]
    told = Oracle(HALVES, "labels")(
        Itself().decode(init.draw(WIDTH, seeds.generator("starts"), 0)), reads=("labels",)
    ).labels.tolist()
    first = sorted(set(told), key=told.index)[:2]
    assert sorted(made["inside.labels"][made["inside.hits"][:, 0] >= 0].tolist()) == sorted(first) and shared == 8
    attack = attack_of(init)
    evidence = Evidence(torch.arange(4), torch.arange(4))
    assert attack.chosen(made, evidence).nonzero()[:, 0].tolist() == sorted(first)
    with pytest.raises(Refused, match="distinct"):
        plan_for("attack", "attack=brep_mi_untargeted", "attack.init.distinct=0", store=store)


def test_the_deepest_of_several_starts_can_be_told_by_labels():
    starts = torch.zeros(2, WIDTH)
    starts[0, 0] = 1.5

    class Both(Part):
        gives = ("noise",)

        def __call__(self, problem):
            return Found(starts, torch.full((2,), torch.nan), torch.tensor([0, 0]), "initial", noise=starts)

    attack = attack_of(Both(), select=LowestLoss(keep=1), patience=20)
    stages, _, _ = attacked(attack, Regions(partial(ball, radius=3.0)), 1)
    assert len(stages["selected"]) == 1
    assert float(stages["selected"].loss) == float(stages["optimised"].loss.min())


# what does not fit -----------------------------------------------------------------------------------------------


def test_it_walks_by_decisions_alone():
    with pytest.raises(Refused, match="says yes or no.*CrossEntropy.*wrong_label"):
        SearchAttack(init=InsideTheClass(), objective=CrossEntropy(), search=BoundaryRepulsion(), select=Everything())


TOY = (
    "dataset=toy",
    "prior=toy",
    "architecture=mlp",
    "architecture.widths=[16]",
    "recipe.epochs=2",
    "compute.threads=1",
    "attack=brep_mi_untargeted",
    "attack.search.patience=5",
)
JUDGE = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=4")


def test_what_untargeted_does_not_choose_is_in_no_mean(run_verb):
    options = ("attack.init.distinct=2", "attack.init.batch_size=4", "attack.group=1", "attack.search.radius=0.1")
    asked = (*TOY, *options)
    kept = run_verb("attack", *asked)
    tensors = kept.tensors()
    chosen = tensors["evidence.chosen"]
    assert int(chosen.sum()) == 2 and ((tensors["queries"] > 0) == chosen).all()
    spent = tensors["queries"][chosen].double()
    assert kept.provenance["bill"]["queries_per_target_mean"] == spent.mean()
    row = run_verb("evaluate", *asked, *JUDGE)
    accuracy = row.metrics["metrics"]["attack_accuracy_top1/main"]
    assert sorted(map(int, accuracy["per_class"])) == chosen.nonzero()[:, 0].tolist()
    assert "unreached" not in row.metrics["row"] and accuracy["n"] == 2
    drawn = row.tensors()
    assert drawn["curve.main.accuracy"][-1] == accuracy["value"]
    assert drawn["curve.main.queries"][-1] == spent.max() + kept.provenance["bill"]["shared_queries"] / 2


def test_a_sphere_that_never_grew_is_a_failure_in_the_mean_and_the_curve(run_verb):
    asked = ("attack.init.distinct=4", "attack.search.radius=5", "attack.search.max_rounds=4", "attack.group=2")
    row = run_verb("evaluate", *TOY, *asked, *JUDGE)
    accuracy = row.metrics["metrics"]["attack_accuracy_top1/main"]
    assert accuracy["value"] == 0 and row.metrics["row"]["unreached"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("prior", "reason"),
    [("pixels", "needs a prior that offers normal"), ("ked_gan", "learned with access=scores, more than")],
)
def test_priors_that_do_not_fit_are_refused_when_it_is_composed(prior, reason, store):
    with pytest.raises(Refused, match=reason):
        plan_for("attack", "dataset=digits", "architecture=cnn", "attack=brep_mi_small", f"prior={prior}", store=store)


def test_starts_that_do_not_tell_their_noise_are_refused():
    with pytest.raises(
        Refused, match="goes on from what the init knows .noise.*Random.*try attack/init=inside_the_class"
    ):
        attack_of(Random())


def test_labels_are_all_it_reads():
    attack = attack_of(InsideTheClass())
    reads = {read for part in attack.parts.values() for read in part.reads}
    assert reads == {"labels"}
    gradient = Gradient(optimizer=partial(torch.optim.SGD, lr=1), steps=1)
    with pytest.raises(Refused, match="access=labels hides"):
        SearchAttack(
            init=InsideTheClass(), objective=WrongLabel(), search=gradient, select=Everything(), access="labels"
        )
