"""Who judges: a guesser is refused, by an exact test on real images, and every row names its evaluators."""

import csv
import math

import pytest
import torch
from scipy.stats import binom

from midefense.pipeline.evaluators import refuse_guessers, stored_judge
from midefense.report import Row, build, read_rows, table, write_csv
from midefense.store.store import Store
from midefense.training.chance import LEVEL, Trial, odds_of
from midefense.types import Images, Refused

TOY = (
    "dataset=toy",
    "dataset.size=16",
    "architecture=mlp",
    "architecture.widths=[8]",
    "recipe.epochs=1",
    "tracking=none",
)
ATTACK = ("prior=toy", "attack=mi_face", "attack.search.steps=2", "evidence.classes=[0,1]", "metrics=privacy")
SMALL = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=3")
GUESSER = (
    "evaluators.main.architecture.widths=[8,16]",
    "evaluators.main.recipe.epochs=1",
    "evaluators.main.recipe.optimizer.lr=1e-9",
)


@pytest.mark.parametrize(("images", "chance"), [(1, 0.5), (20, 0.1), (180, 0.1), (3004, 0.001), (7, 1 / 3)])
def test_the_odds_are_those_of_the_exact_binomial(images, chance):
    for right in {0, 1, images // 3, images // 2, images}:
        assert math.isclose(odds_of(right, images, chance), binom.sf(right - 1, images, chance), rel_tol=1e-9)
    assert odds_of(images, images, 1.0) == 1.0


def test_a_guesser_passes_as_rarely_as_said():
    for images, chance in ((20, 0.1), (60, 0.25), (180, 0.1), (500, 0.01)):
        labels = torch.arange(images) % round(1 / chance)
        passes = [r for r in range(images + 1) if not Trial.of(r / images, labels, round(1 / chance)).guessed]
        assert passes == list(range(passes[0], images + 1)), "more right answers never look worse"
        assert binom.sf(passes[0] - 1, images, chance) <= LEVEL < binom.sf(passes[0] - 2, images, chance)


def test_naming_the_most_frequent_class_is_a_guess():
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 20)
    assert Trial.of(0.6, labels, 3).guessed and Trial.of(0.62, labels, 3).guessed
    assert not Trial.of(0.9, labels, 3).guessed
    assert Trial.of(0.5, labels, 100).guessed, "well above 1 in 100, and worse than one class every time"


def test_few_images_cannot_convict_who_knows_them_all():
    few = Trial.of(1.0, torch.arange(2), 2)
    assert not few.tells and few.odds == 0.25 and not few.guessed
    assert Trial.of(0.5, torch.arange(2), 2).guessed, "no better than chance"
    assert Trial.of(0.0, torch.arange(2), 2).guessed


def test_a_guesser_is_refused_before_the_attack_and_judges_when_forced(run_verb, store):
    with pytest.raises(Refused) as refusal:
        run_verb("evaluate", *TOY, *ATTACK, *GUESSER)
    said = str(refusal.value)
    assert said.startswith("evaluators.main: expected an evaluator that knows the images it judges by, got target/toy-")
    assert "real test images; guessing" in said and "judge_at_chance=true" in said and "\n" not in said
    kept = Store(store)
    assert kept.list("recovered") == [] and kept.list("result") == [], "no attack was spent on it"
    forced = run_verb("evaluate", *TOY, *ATTACK, *GUESSER, "judge_at_chance=true")
    judge = forced.metrics["row"]["evaluators"]["main"]
    assert judge["guessed"] and judge["name"] == "cnn_wide" and judge["images"] == 40
    assert "which is what guessing gives" in table([Row.parse(forced.metrics)])
    assert run_verb("evaluate", *TOY, *ATTACK, *GUESSER).id == forced.id, "a stored row may be read; its id is the same"
    with pytest.raises(Refused, match="evaluators.main: expected an evaluator that knows"):
        run_verb("evaluate", *TOY, *ATTACK, *GUESSER, "seed=1")
    with pytest.raises(Refused, match="judge_at_chance: expected true or false, got 3"):
        run_verb("evaluate", *TOY, *ATTACK, *GUESSER, "judge_at_chance=3")


def test_every_table_names_who_judged_and_on_what(run_verb, store, tmp_path):
    result = run_verb("evaluate", *TOY, *ATTACK, *SMALL)
    row = result.metrics["row"]
    accuracy, machine = row["evaluators"]["main"]["accuracy"], result.provenance["machine"]
    assert not row["evaluators"]["main"]["guessed"] and accuracy > 0.5
    assert accuracy == pytest.approx(result.metrics["anchors"]["real"]["attack_accuracy_top1/main"], abs=0.5)
    assert set(row["made_on"]) == {"target", "attack", "evaluator main", "evaluate"}
    assert set(row["made_on"].values()) == {machine} and machine.startswith("cpu (") and machine.endswith(", 1 thread")
    said = f"main = cnn_wide, {100 * accuracy:.1f}% of 40 real test images"
    rows, broken = read_rows(store)
    assert broken == []
    shown = table(rows)
    page = build(rows, tmp_path / "page.html").read_text()
    for text in (shown, page):
        assert f"evaluators: {said}" in text and f"computed on: {machine}" in text
    flat, wide = write_csv(rows, tmp_path / "rows.csv")
    for line in csv.DictReader(flat.read_text().splitlines()):
        assert (line["evaluators"], line["machines"]) == (said, machine)
    (line,) = csv.DictReader(wide.read_text().splitlines())
    assert float(line["evaluator_accuracy/main"]) == accuracy


def test_rows_of_before_are_shown_as_not_recorded():
    about = dict.fromkeys(("dataset", "public", "architecture", "defense", "prior", "attack", "access"), "x")
    about |= {"protocol": "p", "setup": "s", "seeds": {}, "device": ""}
    old = {"row": about, "metrics": {}}
    assert "evaluators: not recorded" in table([Row.parse(old)])
    about["evaluators"] = {"main": {"name": "x", "accuracy": 0.5}}
    with pytest.raises(Refused, match="evaluator main lacks images, guessed"):
        Row.parse(old)


def test_several_guessers_are_named_together():
    class Stored:
        reference, metrics = "target/x@h1", {"test_accuracy_top1": 0.1, "classes": 10}
        provenance, name = {"names": {"architecture": "cnn_wide (evaluator)"}}, "x"

    labels = torch.arange(100) % 10
    judge = stored_judge(Stored, Images(torch.zeros(100, 1, 1, 1), labels, torch.arange(100), "0123456789"))
    assert judge.plain() == {"name": "cnn_wide", "accuracy": 0.1, "images": 100, "guessed": True}
    with pytest.raises(Refused, match=r"(?s)evaluators.one: .*\nevaluators.two: .*evaluators.two.recipe.epochs"):
        refuse_guessers({"one": judge, "two": judge}, forced=False)
    refuse_guessers({"one": judge}, forced=True)
