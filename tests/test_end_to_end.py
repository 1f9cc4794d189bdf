"""The verbs from an empty store: everything upstream is made once, each in a run of its own, and nothing twice."""

import json
import shlex

import pytest

from midefense.commands.report import run as report
from midefense.store.store import Store
from midefense.types import Refused

DIGITS = (
    "dataset=digits",
    "architecture=mlp",
    "architecture.widths=[32]",
    "recipe.epochs=2",
    "compute.threads=1",
    "attack=gmi",
    "prior=gmi_gan",
    "prior.width=8",
    "prior.steps=20",
    "prior.unit=10",
    "attack.search.steps=10",
    "evaluators.main.architecture.widths=[8,16]",
    "evaluators.main.recipe.epochs=1",
)
TOY = (
    "dataset=toy",
    "architecture=mlp",
    "architecture.widths=[16]",
    "recipe.epochs=2",
    "compute.threads=1",
    "attack=gmi",
    "prior=gmi_gan",
    "prior.width=8",
    "prior.steps=6",
    "prior.unit=3",
    "prior.batch_size=8",
    "attack.search.steps=10",
    "evaluators.main.architecture.widths=[8,16]",
    "evaluators.main.recipe.epochs=2",
)
CLOSED_FORM = ("dataset=toy", "prior=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=2")


def snapshot(store):
    return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


def kinds(store):
    return sorted(artefact.kind for artefact in Store(store).list())


def states(store):
    """The status of every run, by job type."""
    found = {}
    for path in sorted((store / "runs").glob("*/*/status.json")):
        found.setdefault(path.parts[-3], []).append(json.loads(path.read_text())["state"])
    return found


def test_evaluate_from_an_empty_store_makes_everything_once(run_process, store):
    first = run_process("evaluate", *DIGITS)
    assert first.returncode == 0, first.stderr
    assert kinds(store) == ["prior", "recovered", "result", "target", "target"]
    one = ["finished"]
    assert states(store) == {"attack": one, "evaluate": one, "train_prior": one, "train_target": one * 2}
    (result,) = Store(store).list("result")
    assert first.stdout.splitlines()[-2:] == [result.reference, str(result.path)]
    assert "Real private images (ceiling)" in first.stdout and "Chance" in first.stdout
    before = snapshot(store)
    again = run_process("evaluate", *DIGITS)
    assert again.returncode == 0, again.stderr
    assert snapshot(store) == before, "the second call writes nothing"
    assert again.stdout == first.stdout, "and says where the result lies"
    assert all(checked.problem == "" for checked in Store(store).check())


def test_a_sweep_over_defenses_trains_the_prior_and_the_evaluator_once(run_process, store):
    swept = run_process("evaluate", "-m", *TOY, "defense=none,random_erasing")
    assert swept.returncode == 0, swept.stderr
    assert kinds(store) == ["prior", "recovered", "recovered", "result", "result", "target", "target", "target"]
    rows = [artefact.metrics["row"] for artefact in Store(store).list("result")]
    assert {row["defense"] for row in rows} == {"none", "random_erasing"}
    assert len({row["protocol"] for row in rows}) == 1, "rows of one protocol may be ranked"
    assert len({row["baseline"] for row in rows}) == 1 and len({row["setup"] for row in rows}) == 2
    assert states(store)["train_prior"] == ["finished"]


def test_an_earlier_artefact_is_named_instead_of_made(run_verb, store):
    target = run_verb("train_target", *CLOSED_FORM[:1], *CLOSED_FORM[2:], "defense=negative_label_smoothing")
    attack = ("attack=gmi", "prior=toy", "attack.search.steps=10")
    recovered = run_verb("attack", f"target={target.reference}", *attack)
    assert recovered.provenance["parents"]["target"] == target.reference
    assert recovered.provenance["names"]["defense"] == "negative_label_smoothing"
    evaluator = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=2")
    result = run_verb("evaluate", f"recovered={recovered.id}", *evaluator)
    assert result.metrics["row"]["ids"]["recovered"] == recovered.id
    assert result.metrics["row"]["defense"] == "negative_label_smoothing"
    spelled = (*CLOSED_FORM, "attack=gmi", "attack.search.steps=10", "defense=negative_label_smoothing", *evaluator)
    assert run_verb("evaluate", *spelled).id == result.id, "spelled out it is the same result"
    assert kinds(store) == ["recovered", "result", "target", "target"]


@pytest.mark.parametrize("beside", ["defense=none", "recipe.epochs=3", "dataset=digits", "seeds.target=1"])
def test_what_a_named_target_brings_may_not_be_named_beside_it(run_verb, store, beside):
    target = run_verb("train_target", *CLOSED_FORM[:1], *CLOSED_FORM[2:])
    with pytest.raises(Refused, match="target=... brings its own"):
        run_verb("attack", f"target={target.id}", beside)


def test_missing_fail_names_commands_that_make_what_is_missing(run_verb, store):
    asked = (*TOY, "attack/objective=cross_entropy", "seed=3", "missing=fail", f"store={store}")
    made = []
    for _ in range(8):
        try:
            run_verb("evaluate", *asked)
            break
        except Refused as refusal:
            said = str(refusal).split("make it with: ")[1]
            python, script, *overrides = shlex.split(said)
            assert python == "python"
            run_verb(script.removesuffix(".py"), *overrides)
            made.append(script)
    assert made == ["train_target.py", "attack.py", "evaluate.py"]
    assert kinds(store) == ["prior", "recovered", "result", "target", "target"]


def test_a_budget_spent_mid_run_keeps_what_was_found_and_says_so(run_verb, store, tmp_path, capsys):
    budget = ("attack.init.candidates=5", "attack.search.steps=50", "attack.budget=23")
    small = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=2")
    recovered = run_verb("attack", *CLOSED_FORM, "attack=gmi", *budget)
    (why,) = recovered.metrics["stopped"]
    assert "the budget is 23 per target" in why
    tensors = recovered.tensors()
    assert tensors["queries"].tolist() == [20] * 4, "the step that would pass the budget was not asked"
    assert len(tensors["selected.latents"]) == 20
    assert tensors["selected.latents"].equal(tensors["optimised.latents"])
    assert tensors["selected.scores"].isnan().all(), "nothing was selected"
    assert not tensors["optimised.latents"].equal(tensors["initial.latents"])
    result = run_verb("evaluate", *CLOSED_FORM, "attack=gmi", *budget, *small)
    assert result.metrics["row"]["stopped"] == [why]
    capsys.readouterr()
    page, table = tmp_path / "report.html", tmp_path / "results.csv"
    assert report(["--store", str(store), "--out", str(page), "--csv", str(table)]) == 0
    assert "stopped early" in capsys.readouterr().out
    assert why in page.read_text() and why in table.read_text()
