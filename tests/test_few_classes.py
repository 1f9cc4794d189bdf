"""Rows of fewer than ten classes say so wherever they are shown."""

import csv
from types import SimpleNamespace

import pytest
from report_rows import document

from midefense.pipeline.telling import FEW_CLASSES, told
from midefense.report import Row, build, table, write_csv
from midefense.store.artefacts import Draft

MARKS = [(1, "1 class only"), (2, "2 classes only"), (9, "9 classes only"), (10, ""), (530, "")]


@pytest.mark.parametrize(("classes", "mark"), MARKS)
def test_table_page_and_csv_mark_them(tmp_path, classes, mark):
    rows = [Row.parse(document(classes=classes))]
    shown = table(rows), build(rows, tmp_path / "page.html").read_text()
    assert [mark in text if mark else "es only" in text for text in shown] == [bool(mark)] * 2
    for file in write_csv(rows, tmp_path / "rows.csv"):
        lines = list(csv.DictReader(file.read_text().splitlines()))
        assert lines and {line["few_classes"] for line in lines} == {mark}


def test_rows_that_do_not_say_how_many_are_read():
    content = document()
    del content["row"]["classes"]
    assert Row.parse(content).few_classes == ""


@pytest.mark.parametrize(("classes", "mark"), MARKS)
def test_runs_of_wandb_mark_them(classes, mark):
    target = {"dataset": {}, "architecture": {}, "defense": {}, "recipe": {}, "train_on": "private", "seed": 0}
    attack = {
        "attack": {"access": "white-box"},
        "prior": {"prior": {}},
        "seed": 0,
        "target": "t",
        "labels": [*range(classes)] * 2,
    }
    parents = {
        "target": SimpleNamespace(recipe=target, provenance={"names": {}}),
        "recovered": SimpleNamespace(recipe=attack),
    }
    draft = Draft(kind="result", name="toy", recipe={"kind": "result", "protocol": {"metrics": {}}})
    said = told(draft, parents, "toy", 32)
    assert (FEW_CLASSES in said.tags) == bool(mark) and said.config["classes"] == classes
