"""Ids do not move with code: what commit c187d75 stored is found, opened and ranked by the code of today.

`data/store_c187d75` is a store that commit wrote, `data/recipe_ids.json` the id it gave every option of `conf/`:

    python evaluate.py <OVERRIDES> store=data/store_c187d75
"""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import plan_for
from contract.listing import CONF

from midefense import metrics
from midefense.metrics.feature_space import FeatureSpace
from midefense.metrics.knowledge import KnowledgeExtraction
from midefense.pipeline.pipeline import Pipeline
from midefense.plan import stored_names
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.plan.whitelist import resolve
from midefense.report import read_rows, table
from midefense.report.rows import TOO_NARROW
from midefense.store.artefacts import content_id
from midefense.store.store import Store

DATA = Path(__file__).parent / "data"
GROUPS = ("dataset", "architecture", "defense", "recipe", "public", "prior", "evidence", "attack")
RECORDED = json.loads((DATA / "recipe_ids.json").read_text())
IDS = {
    "target": {"h33b73b989cf", "h39b46e3110e"},  # the target and its evaluator
    "prior": {"h99cba7bb6aa"},
    "prepared": {"hb997b02d9f7"},
    "recovered": {"h1164af5c2b4"},
    "result": {"h74d1f4a46bc"},
}
# Metrics whose intervals are others since; all else of their recipes is as it was.
REVISED = {
    "accuracy": metrics.AttackAccuracy,
    "feature_distance": metrics.FeatureDistance,
    "kid": metrics.KernelDistance,
    "prdc": metrics.PRDC,
    "knowledge": KnowledgeExtraction,
    "feature_space": FeatureSpace,
}
OVERRIDES = (
    "dataset=toy",
    "dataset.size=32",
    "architecture=mlp",
    "architecture.widths=[8]",
    "architecture.size=8",
    "recipe.epochs=2",
    "attack=pool_small",
    "prior.width=1",
    "prior.latent_size=4",
    "prior.steps=4",
    "prior.unit=2",
    "prior.batch_size=8",
    "attack.init.size=20",
    "attack.init.candidates=2",
    "attack.search.steps=3",
    "attack.select.keep=1",
    "attack.select.repeats=2",
    "evaluators.main.architecture.widths=[4,4]",
    "evaluators.main.architecture.features=4",
    "evaluators.main.recipe.epochs=1",
    "tracking=none",
)


@pytest.fixture
def former(tmp_path):
    """A copy of the recorded store."""
    return shutil.copytree(DATA / "store_c187d75", tmp_path / "store")


def test_every_stage_finds_what_was_stored(former):
    stored = Store(former)
    assert {kind: {artefact.id for artefact in stored.list(kind)} for kind in IDS} == IDS
    assert all(checked.problem == "" for checked in stored.check())
    pipeline = Pipeline(plan_for("evaluate", *OVERRIDES, "missing=fail", store=former))
    assert pipeline.recovered.id in IDS["recovered"]
    assert pipeline.target.artefact.id in IDS["target"] and pipeline.prior.artefact.id in IDS["prior"]


def test_what_was_stored_is_rebuilt_judged_and_reported(former, monkeypatch):
    rows, broken = read_rows(former)
    assert broken == [] and "gmi_gan_small" in table(rows)
    recovered = next(iter(IDS["recovered"]))
    judges = [word for word in OVERRIDES if word.startswith(("evaluators.", "tracking"))]
    named = f"recovered={recovered}", "judge_at_chance=true"  # its evaluator, of one epoch, only guesses
    again = Pipeline(plan_for("evaluate", *named, *judges, store=former)).result
    assert again.id not in IDS["result"], "its intervals are others"
    Store(former).remove(Store(former).open(next(iter(IDS["result"])), "result").path)
    for metric in REVISED.values():
        monkeypatch.setattr(metric, "revision", 1)
    again = Pipeline(plan_for("evaluate", *named, *judges, store=former)).result
    assert again.id in IDS["result"], "judged anew with the stored prior, target and evaluator"


def test_former_intervals_over_few_classes_are_marked(former):
    """A percentile bootstrap over three classes: still shown, and said to be too narrow."""
    ((row,), _) = read_rows(former)
    bounded = [value for value in row.metrics.values() if np.isfinite(value.low)]
    assert bounded and all(TOO_NARROW in value.reason for value in bounded)
    assert all(TOO_NARROW not in value.reason for value in row.metrics.values() if not np.isfinite(value.low))


def test_every_option_that_had_an_id_is_there():
    """Their ids are compared where every option is bound: `test_build`; those of metrics here."""
    options = {f"{group}/{path.stem}" for group in GROUPS for path in (CONF / group).glob("*.yaml")}
    assert {name for name in RECORDED if not name.startswith("metrics/")} <= options


@pytest.mark.parametrize("option", sorted({name.split("/")[1] for name in RECORDED if name.startswith("metrics/")}))
def test_metrics_have_the_ids_they_had(option):
    nodes = compose("evaluate", [f"metrics={option}"])[0]["metrics"]
    for name, node in nodes.items():
        judged = {**node, "features": "main"} if node.get("features") == "auto" else node  # else this machine decides
        recipe = bind(judged, name).recipe()
        if name in REVISED:
            assert recipe.pop("revision") == REVISED[name].revision == 2, "it brought other intervals"
            recipe["revision"] = 1
        assert content_id(recipe) == RECORDED[f"metrics/{option}/{name}"]


def test_a_former_name_is_the_class_where_it_lies_now():
    former = "midefense.recipe.Recipe"
    assert stored_names.stored_name(resolve(former)) == former
    assert resolve(former) is resolve("midefense.training.recipe.Recipe")


def test_every_line_of_the_table_names_a_module_or_a_class_of_today():
    source = CONF.parent / "src"

    def is_module(name):
        return (source / f"{name.replace('.', '/')}.py").exists()

    for present, former in stored_names.FORMER.items():
        if is_module(present):
            assert not is_module(former), f"{former} is still there"
            continue
        assert stored_names.stored_name(resolve(former)) == former and resolve(former) is resolve(present), former
        module, _, name = former.rpartition(".")
        assert not hasattr(importlib.import_module(module), name), f"{former} is still there"
