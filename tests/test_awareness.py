"""Which defenses an attack knows, what rows and the report say of it, and the worst case over all attacks tried."""

import csv
import json
import types
from dataclasses import replace

import pytest
from conftest import plan_for
from contract.listing import composed, node, options
from report_rows import document, put

from midefense.defenses.vib import VIB
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.awareness import _knows, aware_attacks, deployed_classes, knew, known_classes
from midefense.report import build, read_rows, table, write_csv
from midefense.report.rows import setups
from midefense.report.worst import worst_cases
from midefense.store.artefacts import content_id
from midefense.types import Refused

# Defenses without an attack that was made for them, and why.
WITHOUT = {
    "none": "there is nothing to know",
    "adversarial_training": "no card names an attack for it",
    "tl_dmi": "no card names an attack for it",
    "mixup": "no card names an attack for it",
    "cutmix": "no card names an attack for it",
    **dict.fromkeys(
        ("cutout", "entire_erasing", "gridmask", "hide_and_seek", "pixel_dropout"),
        "its masks are no rectangles drawn by area, which alone the views of an attack can draw",
    ),
}


def classes_of(*names):
    attack = replace(node("attack", "attack", "attack=gmi"), aside={"knows": names})
    return list(known_classes(attack).values())


# What is known


def test_an_attack_knows_a_defense_by_its_class():
    assert classes_of("random_erasing") == classes_of("random_erasing_strong") == classes_of("torus_erasing")
    assert classes_of("vib") == ["midefense.defenses.vib.VIB"] == classes_of("midefense.defenses.vib.VIB")
    assert classes_of("label_only") == classes_of("output_top_k"), "its file builds on the other"
    assert len(set(classes_of("vib", "rolss"))) == 2 and classes_of() == []


def test_what_is_no_defense_is_refused_before_any_compute(tmp_path):
    words = ("dataset=toy", "architecture=mlp", "prior=toy", "attack=gmi")
    with pytest.raises(Refused, match=r"attack.knows: got 'vibb'; choices: .*vib.* Did you mean 'vib'\?"):
        plan_for("attack", *words, "attack.knows=[vibb]", store=tmp_path)
    with pytest.raises(Refused, match=r"attack.knows: expected a list \(a text each\), got 'vib'"):
        plan_for("attack", *words, "attack.knows=vib", store=tmp_path)
    with pytest.raises(Refused, match="outside the whitelist"):
        plan_for("attack", *words, "attack.knows=[os.system]", store=tmp_path)


def test_who_knows_all_of_a_stack_some_of_it_or_nothing():
    one, two, none = ({"_target_": name} for name in ("a.One", "a.Two", "midefense.defenses.base.NoDefense"))
    stack = {"_target_": "midefense.defenses.base.Stack", "members": {"x": one, "y": none, "z": two}}
    inner = {"_target_": "midefense.defenses.base.Stack", "members": {"x": stack, "y": two}}
    assert deployed_classes(stack) == deployed_classes(inner) == ["a.One", "a.Two"]
    assert deployed_classes(none) == deployed_classes(none, None) == []
    assert deployed_classes(one, two) == ["a.One", "a.Two"], "of the training and of the release"
    assert knew(["a.One", "a.Three"], ["a.One", "a.Two"]) == "partly" and knew(["a.Two"], ["a.Two"]) == "yes"
    assert knew(["a.Three"], ["a.One", "a.Two"]) == knew([], ["a.One"]) == "no"
    assert knew(["a.One"], []) == "", "where nothing is deployed there is nothing to know"


def test_every_defense_is_known_by_an_attack_or_it_is_said_why_not():
    assert {name for name in options("defense") if not aware_attacks(name)} == set(WITHOUT)
    known = {name for attack in options("attack") for name in _knows(attack)}
    assert known <= set(options("defense")), "every name is a defense"


def test_the_attacks_of_a_defense_are_looked_up():
    assert {"pool_masked", "ppa_masked"} <= set(aware_attacks("random_erasing"))
    assert (
        aware_attacks("random_erasing")
        == aware_attacks("random_erasing_strong")
        == sorted(aware_attacks("random_erasing"))
    )
    assert set(aware_attacks("random_erasing")) | set(aware_attacks("negative_label_smoothing")) == set(
        aware_attacks("stack")
    )
    assert {"vib_aware", "vib_aware_small", "vib_mean_aware"} <= set(aware_attacks("vib"))
    assert aware_attacks("label_only") == aware_attacks("output_top_k"), "one class"
    assert aware_attacks("none") == []
    with pytest.raises(Refused, match="defense: got 'vibb'"):
        aware_attacks("vibb")


def test_what_an_attack_knows_decides_no_number():
    told = node("attack", "attack", "attack=pool_masked")
    assert told.aside["knows"] == ["random_erasing"] and "knows" not in json.dumps(told.recipe())


# What rows say


WORLD = (
    "dataset=toy",
    "dataset.size=8",
    "architecture=mlp",
    "architecture.widths=[8]",
    "architecture.size=8",
    "recipe.epochs=1",
    "defense=vib",
    "prior=toy",
    "attack=gmi",
    "attack.init.candidates=1",
    "attack.search.steps=1",
    "evaluators.main.architecture.widths=[4,4]",
    "evaluators.main.recipe.epochs=1",
    "judge_at_chance=true",
    "metrics=cost",
    "tracking=none",
)


def judged(store, *words):
    return Pipeline(plan_for("evaluate", *WORLD, *words, store=store))


def test_a_row_says_whether_its_attack_knew_the_defense(store):
    knowing = judged(store, "attack.knows=[vib,rolss]")
    row = knowing.result.metrics["row"]
    assert (row["knows"], row["knew"]) == (["rolss", "vib"], "yes")
    assert knowing.recovered.metrics["knows"]["vib"] == f"{VIB.__module__}.VIB"
    plain = judged(store)
    assert plain.recovered.id == knowing.recovered.id and plain.result.id == knowing.result.id, "it moves no artefact"
    other = judged(store, "seeds.attack=1", "attack.knows=[rolss]").result.metrics["row"]
    assert (other["knows"], other["knew"]) == (["rolss"], "no")
    blind = judged(store, "seeds.attack=2")
    assert blind.recovered.metrics["knows"] == {} and blind.result.metrics["row"]["knew"] == "no"


def test_of_what_was_recovered_before_attacks_said_what_they_know_the_words_say_it_or_nobody_does():
    vib = {"_target_": f"{VIB.__module__}.VIB"}
    attack = replace(node("attack", "attack", "attack=gmi"), aside={"knows": ["vib"]})

    def said(metrics, **plan):
        plan = types.SimpleNamespace(**{"recovered": None, "attack": attack, "allow": (), **plan})
        target = types.SimpleNamespace(artefact=types.SimpleNamespace(recipe={"defense": vib}))
        recovered = types.SimpleNamespace(metrics=metrics, recipe={})
        return Pipeline._awareness(types.SimpleNamespace(plan=plan, target=target), recovered).get("knew", "")

    assert said({}) == "yes", "the attack of the words"
    assert said({}, recovered="recovered/x", attack=None) == "", "not no: it may have known"
    assert said({"knows": {}}) == "no" and said({"knows": {"vib": vib["_target_"]}}, attack=None) == "yes"


@pytest.mark.slow
def test_no_preset_that_knows_a_defense_is_another_preset():
    """Else whichever ran first would name the row."""
    listed = options("attack")
    chosen = {name: composed("attack", f"attack={name}")[1]["prior"] for name in listed}
    recipes = {name: content_id(node("attack", "attack", f"attack={name}").recipe()) for name in listed}
    for name in {aware for defense in options("defense") for aware in aware_attacks(defense)}:
        twins = [other for other in listed if (recipes[other], chosen[other]) == (recipes[name], chosen[name])]
        assert twins == [name]


# What the report makes of them


@pytest.fixture
def tried(store):
    """No defense under one attack; VIB under three, one of which was made for it; RoLSS under one that was not."""
    for defense, attack, accuracy, said in (
        ("none", "gmi", 0.8, ""),
        ("vib", "gmi", 0.3, "no"),
        ("vib", "ppa", 0.7, "no"),
        ("vib", "vib_aware", 0.5, "yes"),
        ("rolss", "gmi", 0.2, "no"),
    ):
        about = {"attack": attack, "setup": f"{defense}{attack}", "deployed": defense, "knew": said}
        put(store, document(defense=defense, accuracy=accuracy, **about), f"{defense}-{attack}")
    return store


def cases(store):
    return {case.defense: case for case in worst_cases(setups(read_rows(store)[0]))}


def test_the_headline_is_the_worst_attack_made_for_the_defense_or_not(tried):
    found = cases(tried)
    assert {name: case.worst["attack"] for name, case in found.items()} == {"none": "gmi", "vib": "ppa", "rolss": "gmi"}
    assert found["vib"].text == (
        "ppa (whitebox) finds 70.0% [60.0%, 75.0%] attack accuracy, the most of 3 attacks; of those that knew it "
        "vib_aware (whitebox, knew the defense) finds most, 50.0% [40.0%, 55.0%]; 80.0% without a defense"
    )
    assert "the only attack; no attack that knew the defense was tried" in found["rolss"].text
    assert found["none"].text == "gmi (whitebox) finds 80.0% [70.0%, 85.0%] attack accuracy, the only attack"


def test_an_attack_that_knew_the_defense_may_be_the_worst(tried):
    more = {"attack": "vib_mean_aware", "setup": "more", "deployed": "vib", "knew": "yes"}
    put(tried, document(defense="vib", accuracy=0.9, **more), "vib-more")
    text = cases(tried)["vib"].text
    assert text.startswith("vib_mean_aware (whitebox, knew the defense) finds 90.0% [80.0%, 95.0%] attack accuracy")
    assert "of those that knew it" not in text and "no attack that knew" not in text


def test_the_headline_holds_within_a_protocol_alone(tried):
    stranger = {"attack": "lomma", "setup": "else", "deployed": "vib", "knew": "no", "protocol": "other"}
    put(tried, document(defense="vib", accuracy=0.95, **stranger), "vib-else")
    first, second = table(read_rows(tried)[0]).split("\n\n")
    assert "worst case of vib: ppa (whitebox) finds 70.0%" in first + second
    assert sum("worst case of vib: lomma (whitebox) finds 95.0%" in text for text in (first, second)) == 1
    assert not any("ppa" in text and "lomma" in text for text in (first, second))


def test_rows_of_before_say_nothing_of_who_knew(store):
    put(store, document(defense="vib", attack="gmi"), "one")
    (case,) = worst_cases(setups(read_rows(store)[0]))
    assert "knew" not in case.text


def test_seeds_that_do_not_agree_did_not_know(store):
    for seed, said in enumerate(("yes", "no")):
        put(store, document(seed, defense="vib", knew=said), f"seed-{seed}")
    (setup,) = setups(read_rows(store)[0])
    assert setup.awareness == ""


def test_table_page_and_spreadsheet_mark_who_knew(tried, tmp_path):
    rows = read_rows(tried)[0]
    lines = table(rows).splitlines()
    assert [line for line in lines if "vib_aware, knew the defense" in line]
    assert not [line for line in lines if line.startswith("digits") and " ppa, knew" in line]
    page = build(rows, tmp_path / "report.html").read_text()
    assert page.index("Worst case over attacks") < page.index("<table"), "the headline comes first"
    assert page.count("<b>knew the defense</b>") == 1
    flat, _ = write_csv(rows, tmp_path / "rows.csv")
    with flat.open(newline="") as file:
        told = {(line["defense"], line["attack"]): line["knew_defense"] for line in csv.DictReader(file)}
    assert told["vib", "vib_aware"] == "yes" and told["vib", "ppa"] == "no" and told["none", "gmi"] == ""
