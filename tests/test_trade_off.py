"""The trade-off of a defense: its quotient, the interval of it, when there is none, and others at equal utility."""

import math
from dataclasses import replace

import numpy as np
import pytest
from report_rows import document

from midefense.metrics.intervals import mean_interval
from midefense.report import Row, table
from midefense.report.quotient import Drops, quotient, sampling_variance
from midefense.report.rows import setups
from midefense.report.strengths import Curve, curves, without_strength
from midefense.report.tradeoff import trade_offs

REPETITIONS = 200
TARGET, ATTACK = "utility/test_accuracy_top1", "attack_accuracy_top1/main"


def row(seed=0, utility=0.97, classes=(0.9, 0.7), images=None, attack_seed=None, **names):
    """A result with a target accuracy and an attack accuracy per class; `images`: how many test images there were."""
    content = document(seed, float(np.mean(classes)), baseline="b1", **names)
    content["metrics"][TARGET]["value"] = utility
    content["metrics"][ATTACK]["per_class"] = {str(label): value for label, value in enumerate(classes)}
    content["row"]["seeds"]["attack"] = seed if attack_seed is None else attack_seed
    if images:
        judge = {"name": "cnn_wide", "accuracy": 0.98, "images": images, "guessed": False}
        content["row"]["evaluators"] = {"main": judge}
    return Row.parse(content)


def trade_off(plain, defended):
    (found,) = trade_offs(setups([*plain, *defended]))
    return found


def test_it_is_points_of_attack_per_point_of_target_over_seeds():
    drops = (0.018, 0.02, 0.022)
    plain = [row(seed, 0.97, [0.9] * 60) for seed in range(3)]
    defended = [row(seed, 0.97 - drop, [0.6] * 60, defense="nls") for seed, drop in enumerate(drops)]
    found = trade_off(plain, defended)
    assert (found.attack_drop, found.target_drop) == (pytest.approx(0.3), pytest.approx(0.02))
    assert found.delta == pytest.approx(15) and found.reason == ""
    assert found.found.low < 0.3 / 0.0249 and found.found.high > 0.3 / 0.0151 and found.targets == 3
    assert found.text == f"30.0 / 2.0 points = 15 [{found.found.low:.3g}, {found.found.high:.3g}] over 3 seeds"
    assert f"trade-off Δ of nls · gmi on cnn: {found.text}" in table([*plain, *defended])


def test_the_interval_is_fiellers():
    """Each bound is a quotient at which the difference is just its own reach, and what the classes add."""
    rng = np.random.default_rng(0)
    attack, target, classes = rng.normal(0.3, 0.02, 4), rng.normal(0.05, 0.004, 4), rng.normal(0.3, 0.1, 40)
    found = quotient(Drops(attack, target, classes))
    over_classes = mean_interval(classes, np.ones(40), (-1, 1))
    for bound, further in zip((found.low, found.high), over_classes, strict=False):
        rest, further = attack - bound * target, further - classes.mean()
        reach = math.hypot(3.18245 * rest.std(ddof=1) / 2, further)
        assert rest.mean() == pytest.approx(math.copysign(reach, -further), rel=1e-4)
    assert found.low < attack.mean() / target.mean() < found.high


def test_pairs_of_seeds_cancel_what_they_share():
    """A seed that is better for all is no noise of the drop."""
    rng = np.random.default_rng(0)
    own = rng.normal(0, 0.05, 4)
    plain = [row(seed, 0.9 + shift, [0.9] * 50) for seed, shift in enumerate(own)]
    nearly = rng.normal(0.05, 0.001, 4)
    defended = [row(s, 0.9 + own[s] - nearly[s], [0.6] * 50, defense="nls") for s in range(4)]
    assert trade_off(plain, defended).reason == ""
    defended = [row(s, 0.9 + own[3 - s] - nearly[s], [0.6] * 50, defense="nls") for s in range(4)]
    assert "may not drop at all" in trade_off(plain, defended).reason


@pytest.mark.parametrize("classes", [5, 10, 100])
def test_the_interval_holds_the_truth(classes):
    """Over seeds of targets and draws of classes, whatever their shares: classes alike, and of which each is recovered
    or not. One seed has the noise of its test images alone."""
    attack, cost = 0.4, 0.04
    for concentration in (0.02, 500.0):
        for seeds in (1, 3):
            held = [holds(attack, cost, classes, concentration, seeds, number) for number in range(REPETITIONS)]
            told = [one for one in held if one is not None]
            assert len(told) > REPETITIONS / 4, "else there is nothing to see"
            # what is told is held, and by how much more often it is told that nothing can be is no matter
            assert np.mean(told) >= 0.9 and np.mean([one is not False for one in held]) >= 0.9


def holds(attack, cost, classes, concentration, seeds, number):
    """Whether the interval of one simulated comparison holds attack / cost; None where there is none."""
    rng = np.random.default_rng([number, seeds])
    plain, rest = 0.9, 0.9 - attack
    chances = [rng.beta(mean * concentration, (1 - mean) * concentration, classes) for mean in (plain, rest)]
    seen = [np.clip(one + rng.normal(0, 0.02, (seeds, 1)), 0, 1) for one in chances]
    drops = (rng.binomial(10, seen[0]) - rng.binomial(10, seen[1])) / 10
    images = 2000
    if seeds == 1:
        right = [rng.binomial(images, accuracy) / images for accuracy in (0.95, 0.95 - cost)]
        target, sampling = [right[0] - right[1]], sampling_variance(right, images)
    else:
        target, sampling = rng.normal(cost, 0.006, seeds), math.nan
    found = quotient(Drops(drops.mean(1), target, drops.mean(0), sampling))
    return None if found.reason else bool(found.low <= attack / cost <= found.high)


@pytest.mark.parametrize(("seeds", "images"), [(1, 500), (2, None), (3, None), (5, None)])
def test_a_defense_that_costs_nothing_has_no_trade_off(seeds, images):
    """Both targets are drawn alike. Without an interval, half of the repetitions would have a quotient."""
    rng = np.random.default_rng(0)
    absent = flattered = 0
    for _ in range(REPETITIONS):
        rows = [[], []]
        for seed in range(seeds):
            for own, defense, attack in zip(rows, ("none", "nls"), (0.8, 0.5), strict=True):
                training = 0 if seeds == 1 else rng.normal(0, 0.01)
                utility = rng.binomial(images or 500, 0.95 + training) / (images or 500)
                own.append(row(seed, utility, rng.binomial(10, attack, 10) / 10, images, defense=defense))
        found = trade_off(*rows)
        absent += math.isnan(found.delta) and found.text.count("n/a, ") == 1
        flattered += found.target_drop > 0
    assert absent >= 0.9 * REPETITIONS and flattered > 0.3 * REPETITIONS


def test_attacks_on_one_target_are_no_seeds_of_it():
    """Three attacks on the same two networks say nothing about how often the target would lose as much again."""
    plain = [row(0, 0.97, [0.9] * 50, attack_seed=seed) for seed in range(3)]
    defended = [row(0, 0.95, [0.6] * 50, attack_seed=seed, defense="nls") for seed in range(3)]
    found = trade_off(plain, defended)
    assert math.isnan(found.delta) and found.reason.startswith("one seed") and found.targets == 1


def test_one_seed_has_the_noise_of_its_test_images():
    said = [
        trade_off([row(0, 0.97, [0.9] * 50, images)], [row(0, 0.93, [0.6] * 50, images, defense="nls")]).text
        for images in (100, 1000)
    ]
    assert "n/a, the target's accuracy may not drop at all (-2.0 to 10.0 points)" in said[0]
    assert said[1].startswith("30.0 / 4.0 points = 7.5 [") and said[1].endswith("] of these two networks: one seed")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "no seed that both have"),
        ({"utility": math.nan}, "an accuracy is n/a"),
        ({"utility": 0.98}, "the target's accuracy does not drop"),
        ({"classes": (0.5,), "images": 9000}, "one class only: no confidence interval over classes"),
    ],
)
def test_where_there_is_none_it_says_why(changes, said):
    found = trade_off([row(images=9000)], [row(**{"utility": 0.9, "defense": "nls", **changes})])
    assert math.isnan(found.delta) and found.reason == said


def test_equal_drops_in_all_seeds_tell_no_error():
    plain = [row(seed, 0.97) for seed in range(2)]
    assert "drops alike in every seed" in trade_off(plain, [row(s, 0.96, defense="nls") for s in range(2)]).reason


# Other defenses at equal target accuracy


def strength(value, utility, attack, defense="vib"):
    return row(0, utility, [attack] * 12, 9000, defense=f"{defense}(beta={value})", setup=f"{defense}{value}")


def test_another_defense_is_read_off_between_its_strengths():
    found = [row(0, 0.97, [0.9] * 12, 9000), row(0, 0.92, [0.6] * 12, 9000, defense="nls")]
    found += [strength(0.1, 0.94, 0.8), strength(0.3, 0.9, 0.4), strength(0.2, 0.91, 0.65)]
    by_name = {one.setup["defense"]: one for one in trade_offs(setups(found))}
    (equal,) = by_name["nls"].equal
    assert equal.defense == "vib" and equal.attack == pytest.approx(0.65 + 0.15 / 3)
    assert by_name["nls"].text.endswith("; attack accuracy at 92.0% target accuracy: vib 70.0%")
    assert not any(by_name[f"vib(beta={beta})"].equal for beta in (0.1, 0.2, 0.3)), "one setting of nls is no curve"


@pytest.mark.parametrize("utility", [0.899, 0.941])
def test_nothing_is_said_beyond_its_strengths(utility):
    found = [row(0, 0.97, [0.9] * 12, 9000), row(0, utility, [0.6] * 12, 9000, defense="nls")]
    found += [strength(0.1, 0.94, 0.8), strength(0.3, 0.9, 0.4)]
    (nls,) = (one for one in trade_offs(setups(found)) if one.setup["defense"] == "nls")
    assert math.isnan(nls.equal[0].attack) and nls.text.endswith("vib n/a (known from 90.0% to 94.0%)")


def test_the_ends_and_equal_target_accuracies_of_a_curve():
    found = setups([strength(0.1, 0.94, 0.8), strength(0.2, 0.94, 0.6), strength(0.3, 0.9, 0.4)])
    curve = curves(found, TARGET, ATTACK)["vib"]
    assert curve == Curve("vib", [0.9, 0.94], [pytest.approx(0.4), pytest.approx(0.7)])
    assert [curve.at(one).attack for one in (0.9, 0.94)] == [pytest.approx(0.4), pytest.approx(0.7)]
    assert curves(found[:2], TARGET, ATTACK) == {}, "one target accuracy is no curve"


def test_what_was_recovered_from_another_attack_is_on_no_curve():
    found = [row(0, 0.97, [0.9] * 12, 9000), row(0, 0.92, [0.6] * 12, 9000, defense="nls")]
    others = [strength(0.1, 0.94, 0.8), strength(0.3, 0.9, 0.4)]
    found += [replace(one, about={**one.about, "baseline": "b2"}) for one in others]
    assert [one.equal for one in trade_offs(setups(found))] == [[]]


@pytest.mark.parametrize(
    ("defense", "name"),
    [
        ("vib", "vib"),
        ("vib(beta=0.1)", "vib"),
        ("vib(beta=1e-3, kept=-2)", "vib"),
        ("random_erasing(scale=[0.1,0.4])", "random_erasing"),
        ("random_erasing(fill=mean, scale=[0.1, 0.4])", "random_erasing(fill=mean)"),
        ("stack(members.second=bido_hsic)", "stack(members.second=bido_hsic)"),
    ],
)
def test_numbers_are_strengths_and_nothing_else_is(defense, name):
    assert without_strength(defense) == name


def paired(seed=0, utility=0.9, leak=0.6, spread=0.01, setup=None, **names):
    """A result of split inference: identity accuracy per person, and the released utility with its interval. The
    accuracy of the target itself, which no defense at release changes, stands beside them."""
    content = document(seed, 0.9, baseline="b2", matched="image", images=60, **names)
    people = {str(person): leak for person in range(40)}
    content["metrics"] = {
        TARGET: {"value": 0.97, "n": 1, "kind": "utility"},
        "released_auc": {"value": utility, "low": utility - spread, "high": utility + spread, "n": 60},
        "paired_accuracy_top1/main": {"value": leak, "low": leak - 0.1, "high": leak + 0.1, "n": 60} | PAIRED,
    }
    content["metrics"]["paired_accuracy_top1/main"]["per_class"] = people
    content["anchors"] = {}
    return Row.parse(content)


PAIRED = {"higher_leaks": True, "kind": "privacy"}


def test_released_utility_is_what_a_defense_at_release_pays():
    found = trade_off([paired()], [paired(utility=0.85, leak=0.2, defense="crafter")])
    assert (found.attack_drop, found.target_drop) == (pytest.approx(0.4), pytest.approx(0.05))
    assert found.delta == pytest.approx(8) and found.targets == 1
    assert (found.won, found.paid) == ("identity accuracy", "released utility")
    error = math.hypot(0.01, 0.01)  # half the interval of the difference: both utilities have one of +-1 point
    people = mean_interval([0.4] * 40, np.ones(40), (-1, 1))
    for bound, over_people in zip((found.found.low, found.found.high), people, strict=False):
        assert abs(0.4 - bound * 0.05) == pytest.approx(math.hypot(bound * error, over_people - 0.4), rel=1e-4)
    lost = trade_off([paired()], [paired(utility=0.89, leak=0.2, defense="crafter")])
    assert lost.reason.startswith("the released utility may not drop at all")


def test_others_at_equal_released_utility():
    noise = [
        paired(utility=utility, leak=leak, defense=f"feature_noise(scale={scale})")
        for scale, utility, leak in ((0.5, 0.88, 0.5), (1.0, 0.80, 0.1))
    ]
    found = trade_offs(setups([paired(), *noise, paired(utility=0.84, leak=0.2, defense="crafter")]))
    (crafter,) = (one for one in found if one.setup["defense"] == "crafter")
    assert [one.text for one in crafter.equal] == ["feature_noise 30.0%"]
    assert "identity accuracy at 84.0% released utility: feature_noise 30.0%" in crafter.text
