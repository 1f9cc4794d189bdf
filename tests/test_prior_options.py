"""Options of a prior in an attack's file: under experiments and the command line, and for that prior alone."""

import conftest
import pytest
import yaml

from midefense.plan.compose import compose
from midefense.store.artefacts import content_id
from midefense.types import Refused

MINE = "defaults: [gmi, override /prior@_global_.prior: gmi_gan_small, _self_]\n"
OPTIONS = {"gmi_gan_small": {"width": 3, "steps": 7}, "toy": {}}


@pytest.fixture
def mine(tmp_path):
    """`mine(options, ...)`: words that choose a user's attack with such `prior_options`, and other files by path."""

    def write(options, **files):
        folder = tmp_path / "conf"
        files = {"attack/mine": MINE + yaml.safe_dump({"prior_options": options}), **files}
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{path}.yaml").write_text(text)
        return [f"hydra.searchpath=[file://{folder}]", "attack=mine"]

    return write


def prior_of(words, verb="attack"):
    config, _ = compose(verb, words)
    assert "prior_options" not in config["attack"], "it is no argument of the attack"
    return config["prior"]


def test_the_prior_an_attack_chooses_has_the_options_of_its_file(mine):
    plain = prior_of(["prior=gmi_gan_small"])
    for verb in ("attack", "evaluate"):
        assert prior_of(mine(OPTIONS), verb) == {**plain, "width": 3, "steps": 7}


def test_they_are_the_same_prior_as_on_the_command_line(mine, store):
    words = ["attack=gmi", "prior=gmi_gan_small", "prior.width=3", "prior.steps=7"]
    by_file, by_hand = (
        conftest.plan_for("attack", *overrides, store=store).prior.given(classes=5, channels=1, size=32).recipe()
        for overrides in (mine(OPTIONS), words)
    )
    assert content_id(by_file) == content_id(by_hand) and by_file["width"] == 3


def test_the_command_line_wins(mine):
    assert prior_of([*mine(OPTIONS), "prior.width=5"])["width"] == 5
    assert prior_of([*mine(OPTIONS), "prior.width=5"])["steps"] == 7
    plain = prior_of(["prior=gmi_gan_small"])["width"]
    assert prior_of([*mine(OPTIONS), f"prior.width={plain}"])["width"] == plain, (
        "also with the value of the prior's file"
    )
    assert "width" not in prior_of([*mine(OPTIONS), "~prior.width"])


def test_an_experiment_wins(mine):
    row = "# @package _global_\ndefaults: [override /attack: mine]\nprior: {width: 5}\n"
    words = [*mine(OPTIONS, **{"experiment/row": row})[:1], "experiment=row"]
    assert (prior_of(words)["width"], prior_of(words)["steps"]) == (5, 7)
    assert prior_of([*words, "prior.width=9"])["width"] == 9


def test_an_experiment_that_repeats_the_value_of_the_priors_file_is_taken_for_silence(mine):
    plain = prior_of(["prior=gmi_gan_small"])["width"]
    row = f"# @package _global_\ndefaults: [override /attack: mine]\nprior: {{width: {plain}}}\n"
    words = [*mine(OPTIONS, **{"experiment/row": row})[:1], "experiment=row"]
    assert prior_of(words)["width"] == 3


def test_another_prior_is_left_as_it_is(mine):
    for other in ("gmi_gan", "toy", "stylegan2_small"):
        assert prior_of([*mine(OPTIONS), f"prior={other}"]) == prior_of([f"prior={other}"])
    row = "# @package _global_\ndefaults: [override /attack: mine, override /prior: gmi_gan]\n"
    words = [*mine(OPTIONS, **{"experiment/row": row})[:1], "experiment=row"]
    assert prior_of(words) == prior_of(["prior=gmi_gan"])
    assert prior_of([*words, "prior=gmi_gan_small"])["width"] == 3, "chosen again, it has them again"


def test_an_attack_that_builds_on_another_keeps_and_changes_its_options(mine):
    child = "defaults: [mine, _self_]\nprior_options: {gmi_gan_small: {width: 4}}\n"
    words = [*mine(OPTIONS, **{"attack/child": child})[:1], "attack=child"]
    assert (prior_of(words)["width"], prior_of(words)["steps"]) == (4, 7)


def test_without_them_nothing_is_composed_otherwise(mine):
    ours, theirs = compose("attack", mine({})), compose("attack", ["attack=gmi", "prior=gmi_gan_small"])
    assert ours[0] == theirs[0]


DEEP = "defaults: [gmi, override /prior@_global_.prior: deep, _self_]\n"
PARTS = "width: ${seeds.prior}\npart: {a: 1, inner: {b: 2, c: 3}}\nempty: null\n"
INSIDE = {"deep": {"width": "${seeds.attack}", "part": {"inner": {"b": 8}}, "empty": {"new": 1}}}


@pytest.fixture
def deep(mine):
    """Words that choose an attack with `INSIDE` for a prior that has parts, and an experiment beside them."""
    row = "# @package _global_\nprior: {part: {inner: {b: 6}}}\n"
    attack = DEEP + yaml.safe_dump({"prior_options": INSIDE})
    return mine({}, **{"attack/mine": attack, "prior/deep": PARTS, "experiment/row": row})


def test_options_lie_at_every_depth_and_refer_to_others(deep):
    words = [*deep, "seeds.prior=5", "seeds.attack=6"]
    given = {"width": 6, "part": {"a": 1, "inner": {"b": 8, "c": 3}}, "empty": {"new": 1}}
    assert prior_of(words) == given


@pytest.mark.parametrize(
    ("word", "inner"),
    [
        ("experiment=row", {"b": 6, "c": 3}),
        ("prior.part.inner.b=2", {"b": 2, "c": 3}),
        ("prior.part.inner.c=4", {"b": 8, "c": 4}),
        ("prior.part.a=4", {"b": 8, "c": 3}),
        ("prior.part={inner: {b: 2}}", {"b": 2, "c": 3}),
        ("~prior.part.inner.b", {"c": 3}),
        ("~prior.part", None),
    ],
)
def test_what_was_set_inside_a_part_stays(deep, word, inner):
    assert prior_of([*deep, word]).get("part", {}).get("inner") == inner


def test_artefacts_that_are_named_need_no_prior(mine, run_verb):
    chosen = MINE.replace("gmi_gan_small", "toy") + yaml.safe_dump({"prior_options": OPTIONS})
    words = [*mine({}, **{"attack/mine": chosen}), "attack.search.steps=2"]
    small = ("dataset=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=1")
    target = run_verb("train_target", *small)
    recovered = run_verb("attack", f"target={target.reference}", *words)
    judge = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=1")
    result = run_verb("evaluate", f"recovered={recovered.id}", *judge)
    assert result.provenance["parents"]["recovered"] == recovered.reference


def test_the_verbs_lay_them_over_the_prior(mine, call, store):
    folder = mine({"gmi_gan_small": {"width": "broad"}})[0].removeprefix("hydra.searchpath=[file://")[:-1]
    code, _, said = call("attack", "--config-dir", folder, "attack=mine", f"store={store}")
    assert code == 2 and "prior.width: expected a whole number from 1 to 65536, got 'broad'" in said


def test_the_verbs_refuse_what_a_prior_has_not(mine, call, store):
    code, _, said = call("attack", *mine({"gmi_gan_small": {"widht": 3}}), f"store={store}")
    assert code == 2 and "Did you mean 'width'" in said


def test_hydras_own_print_shows_them_as_written(mine, call):
    code, shown, _ = call("attack", "--cfg", "job", *mine(OPTIONS))
    assert code == 0
    config = yaml.safe_load(shown)
    assert config["attack"]["prior_options"] == OPTIONS
    assert config["prior"] == prior_of(["prior=gmi_gan_small"])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"gmi_gan_small": {"widht": 3}},
            r"attack=mine: prior_options.gmi_gan_small.widht: no such option: got 'widht'; choices: .*width.*"
            "Did you mean 'width'",
        ),
        (
            {"gmi_gan_smal": {"width": 3}},
            "attack=mine: prior_options.gmi_gan_smal: no such prior: .*Did you mean 'gmi_gan_s",
        ),
        ({"gmi_gan_small": 3}, "attack=mine: prior_options.gmi_gan_small: expected options by .*got 3"),
        ([3], r"attack=mine: prior_options: expected options by prior, got \[3\]; try"),
    ],
)
def test_what_a_prior_has_not_is_refused_by_the_attacks_name(mine, options, complaint):
    with pytest.raises(Refused, match=complaint):
        prior_of(mine(options))
