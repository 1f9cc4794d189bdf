"""Defense × attack in the report: which setup speaks for a cell, the column of those who knew, pairs without a number,
and what stands in the page."""

import math
import re

import pytest
from report_rows import document, put

from midefense.plan.adaptive import ADAPTIVE
from midefense.report import build, read_rows, read_untried
from midefense.report.heat_map import heat_map, heat_maps
from midefense.report.rows import Row, setups
from midefense.store.sweeps import FAILED, FINISHED, REFUSED, Outcome, keep

WORLD = {"dataset": "digits", "architecture": "cnn"}


def row(defense, attack, accuracy, seed=0, knew="no", utility=0.97, **names):
    names = {"defense": defense, "attack": attack, "knew": "" if defense == "none" else knew, **names}
    said = document(seed=seed, accuracy=0.5, setup=f"h{sorted(names.items())}", **{"classes": 12, **names})
    said["metrics"]["attack_accuracy_top1/main"] |= {"value": accuracy, "reason": "none" if accuracy is None else ""}
    said["metrics"]["utility/test_accuracy_top1"]["value"] = utility
    return said


def outcome(defense, attack, state=REFUSED, reason="these do not go together", **names):
    return Outcome(f"{defense} {attack}", state, {**WORLD, "defense": defense, "attack": attack, **names}, reason)


ROWS = [
    row("none", "gmi", 0.9),
    row("none", "gmi", 0.8, seed=1),
    row("none", "pool", 0.95),
    row("vib", "gmi", 0.1, utility=0.9),
    row("vib", "pool", 0.2, knew="partly", utility=0.9),
    row("vib", "vib_aware", 0.6, knew="yes", utility=0.9),
    row("vib", "vib_mean_aware", None, knew="yes", utility=0.9),
    row("mixup", "gmi", 0.4, utility=0.8),
]
UNTRIED = [outcome("mixup", "pool"), outcome("none", ADAPTIVE), outcome("vib", "gmi", reason="before")]


def found(rows=ROWS):
    return setups([Row.parse(said) for said in rows])


def drawn(rows=ROWS, untried=UNTRIED):
    """The lines of the page's table as lists of texts, and the whole."""
    some = found(rows)
    text = heat_map(some, range(len(some)), untried)
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>(.*?)</tr>", text)]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in line] for line in lines], text


def test_a_row_a_defense_a_column_an_attack_and_the_last_one_those_who_knew():
    lines, text = drawn()
    assert lines == [
        ["defense", "target accuracy", "gmi", "pool", "adaptive"],
        ["none", "97.0%", "85.0%", "95.0%", "refused1"],
        ["mixup", "80.0%", "40.0%", "refused1", "–"],
        ["vib", "90.0%", "10.0%", "20.0%", "60.0%vib_aware"],
    ]
    assert text.count("<li>") == 1 and "<li>these do not go together</li>" in text, "a reason is said once"
    assert "Attack accuracy of digits · cnn: higher leaks" in text


def test_a_cell_says_its_interval_seeds_and_knowledge_and_is_darker_where_more_is_found():
    _, text = drawn()
    assert 'title="none · gmi: 85.0% ±7.1, 95% interval over classes 40.0% to 55.0%, 2 seeds"' in text
    assert (
        "vib · adaptive: 60.0%, 95% interval over classes 40.0% to 55.0%, 1 seed; vib_aware; knew the defense" in text
    )
    shares = {int(share) for share in re.findall(r"--share:(\d+)%", text)}
    assert shares == {85, 95, 40, 10, 20, 60}
    deep = re.findall(r'class="warm deep" style="--share:(\d+)%', text)
    assert sorted(map(int, deep)) == [60, 85, 95], "light writing on what is dark"


def test_the_setup_that_finds_most_speaks_and_what_was_not_measured_does_not():
    rows = [*ROWS, row("vib", "gmi", 0.3, public="other"), row("vib", "gmi", None, public="third")]
    lines, _ = drawn(rows)
    assert lines[3][2] == "30.0%" and lines[3][-1] == "60.0%vib_aware"
    only = [one for one in ROWS if one["row"]["attack"] != "vib_aware"]
    assert drawn(only)[0][3][-1] == "20.0%pool", "an attack that knew part of it, where no other was measured"


@pytest.mark.parametrize("turned", [False, True])
def test_beside_a_defense_stands_the_accuracy_of_the_targets_that_its_cells_speak_of(turned):
    """Two recipes give a defense two targets of one seed: the number of one beside that of the other is untrue."""
    weak = row("vib", "gmi", 0.7, utility=0.5, deployed="z" if turned else "a")
    strong = row("vib", "gmi", 0.1, utility=0.9, deployed="a" if turned else "z")
    rows = [one for one in ROWS if one["row"]["defense"] != "vib"]
    (line,) = [line for line in drawn([*rows, weak, strong])[0] if line[0] == "vib"]
    assert line[1:3] == ["50.0%", "70.0%"]


def test_an_attack_made_for_a_defense_has_a_column_where_it_met_another():
    lines, _ = drawn([*ROWS, row("none", "vib_aware", 0.5)])
    assert lines[0][2:] == ["gmi", "pool", "vib_aware", "adaptive"] and lines[1][4] == "50.0%"


def test_a_failure_and_what_nobody_tried_are_told_apart():
    lines, text = drawn(untried=[outcome("mixup", "pool", FAILED, "boom"), outcome("mixup", ADAPTIVE)])
    assert lines[2][3:] == ["failed1", "refused2"] and lines[1][-1] == "–"
    assert re.search("<li>boom</li><li>these do not", text)
    assert 'title="none · adaptive: not tried"' in text


def test_one_map_for_each_network_and_none_where_there_is_nothing_to_hold_against():
    rows = [*ROWS, *(row(d, a, 0.5, architecture="mlp") for d in ("none", "vib") for a in ("gmi", "pool"))]
    worlds = [one.world for one in heat_maps(found(rows), UNTRIED)]
    assert sorted(worlds) == [("digits", "cnn"), ("digits", "mlp")]
    (mlp,) = [one for one in heat_maps(found(rows), UNTRIED) if one.world[1] == "mlp"]
    assert mlp.defenses == ["none", "vib"] and mlp.attacks == ["gmi", "pool"], "refusals of another network"
    assert heat_maps(found(ROWS[:3]), []) == [] and heat_maps(found([ROWS[0], ROWS[3]]), []) == []
    assert heat_map(found(ROWS[:3]), range(2), []) is None
    assert math.isnan(heat_maps(found([*ROWS[:3], row("vib", "gmi", None)]), [])[0].cells["vib", "gmi"].found.mean)


def test_the_page_has_the_map_and_names_files_that_tell_of_no_point(store, tmp_path):
    for number, said in enumerate(ROWS):
        put(store, said, f"r{number}")
    for number, one in enumerate([*UNTRIED, outcome("vib", "pool", FINISHED)]):
        keep(store / "sweeps" / "hx", f"p{number}", one)
    for name, text in (("no.json", "{"), ("keys.json", '{"label": "a"}'), ("list.json", "[]")):
        (store / "sweeps" / "hx" / "points" / name).write_text(text)
    for state in ("begun", 3):
        (store / "sweeps" / "hx" / "points" / f"{state}.json").write_text(f'{{"label": "a", "state": "{state}"}}')
    untried, broken = read_untried(store)
    assert untried == UNTRIED and sorted(one.name for one in broken) == [
        "3.json",
        "begun.json",
        "keys.json",
        "list.json",
        "no.json",
    ]
    page = build(read_rows(store)[0], tmp_path / "page.html", broken, untried=untried).read_text()
    assert page.index("<h3>Defense × attack</h3>") < page.index("<h3>Privacy against utility</h3>")
    assert page.count("<li>these do not go together</li>") == 1


@pytest.mark.parametrize("hostile", ["<b>", "&amp;", '"'])
def test_names_and_reasons_of_others_are_texts(hostile):
    _, text = drawn(untried=[outcome("mixup", "pool", reason=f"{hostile}x")])
    assert f"{hostile}x" not in text
