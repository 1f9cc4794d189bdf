"""What stages cost, measured over a few steps before they are made: queries and bytes are those of what comes then."""

import re

import pytest
import torch
import yaml
from conftest import plan_for

from midefense.commands import plan
from midefense.commands.main import main
from midefense.pipeline import measuring
from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.costs import Cost
from midefense.pipeline.measuring import Pace
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.prices import in_all
from midefense.store.store import Store

TOY = ("dataset=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=3", "compute=cpu")
TOY += ("compute.threads=1", "tracking=none")
GAN = ("prior=gmi_gan", "prior.width=8", "prior.steps=12", "prior.unit=2", "prior.batch_size=8")
GMI = ("attack=gmi", "attack.search.steps=9", "attack.group=2")
POOL = ("attack=pool", "attack.init.size=40", "attack.init.batch_size=20", "attack.init.candidates=4", "attack.group=2")
POOL += ("attack.select.repeats=2", "attack.select.keep=2", "attack.search.steps=9")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Three steps are enough."""
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    monkeypatch.setattr(measuring, "LEAST", 3)


def by_kind(store, verb, *words):
    """The costs of what is missing, by kind, and how many there are."""
    agenda = look_ahead(Pipeline(plan_for(verb, *words, store=store)))
    costs = agenda.measured()
    return {item.artefact.kind: costs.get(item.artefact.id) for item in agenda.missing}


@pytest.mark.parametrize("attack", [(*GAN, *GMI), ("prior=toy", *POOL)], ids=["a prior that learns", "a pool"])
def test_queries_and_bytes_are_those_of_what_is_then_made(attack, store, run_verb):
    costs = by_kind(store, "attack", *TOY, *attack)
    assert Store(store).list() == [] and not (store / "work").exists()
    recovered = run_verb("attack", *TOY, *attack)
    found = {artefact.kind: artefact for artefact in Store(store).list()}
    assert set(found) == set(costs) and len(costs) == 3
    bill, targets = recovered.provenance["bill"], len(recovered.tensors()["evidence.labels"])
    own = bill["shared_queries"] - sum(one.provenance["bill"].get("shared_queries", 0) for one in _upstream(found))
    assert costs["recovered"].queries == bill["queries_per_target_mean"] * targets + own > 0
    assert costs["recovered"].steps < 9, "not all of it was done"
    for kind, artefact in found.items():
        assert costs[kind].queries == artefact.provenance["bill"].get("shared_queries", 0) or kind == "recovered"
        size = sum(value.numel() * value.element_size() for value in artefact.tensors().values())
        assert costs[kind].disk == pytest.approx(size, rel=0.05 if kind != "recovered" else 0.5), kind
        assert costs[kind].memory > 0 and costs[kind].seconds > 0 and not costs[kind].least


def _upstream(found):
    return [found[kind] for kind in ("prior", "prepared") if kind in found]


def test_what_takes_too_long_to_prepare_is_said_and_not_guessed(store):
    costs = by_kind(store, "attack", *TOY, "prior=toy", *POOL, "attack.init.batch_size=1")
    assert costs["prepared"].least and costs["prepared"].text.startswith("at least ")
    assert costs["recovered"] is None and costs["target"] is not None


def test_the_first_step_counts_once_and_the_others_at_their_pace():
    pace = Pace(torch.device("cpu"))
    pace.marks = [(10, 5.0, 40), (20, 6.0, 50), (30, 7.0, 60)]
    assert pace.seconds(1000) == pytest.approx(5 + 99) and pace.queries(1000) == 40 + 990
    pace.marks = pace.marks[:1]
    assert pace.seconds(20) == 10


def test_a_plan_tells_costs_commands_and_sums(call, store):
    words = (*TOY, "prior=toy", *POOL, f"store={store}")
    assert call("train_target", *TOY, f"store={store}")[0] == 0
    code, said, _ = call("attack", *words, "missing=measure")
    found, *lines, sums = said.splitlines()
    assert code == 0 and found.startswith("found  target/") and len(lines) == 6
    for stage, cost, command in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        assert re.match(r"\d/2  ", stage) and re.match(r" +[\d.e-]+ device-hours \(.*measured over \d+ steps$", cost)
        assert "make it with: " in command and "attack.py" in command
    assert sums.startswith("in all 2 to make: ") and "not in these sums" not in sums


def test_sums_count_what_several_need_once_and_name_what_is_in_none():
    from types import SimpleNamespace as Thing

    items = [Thing(what=what, artefact=Thing(id=id)) for what, id in (("a", "1"), ("b", "2"), ("a", "1"), ("c", "3"))]
    costs = {"1": Cost(3600, 5, 2**30, 10**6, 2 * 10**6), "2": Cost(7200, 6, 2**31, 10**6, 10**6, least=True)}
    said = in_all(items, costs)
    assert said.startswith("in all 3 to make: at least 3 device-hours (3 h 0 min), 11 queries, at most 2 GiB of memory")
    assert said.endswith("2.0 MB on disk (at most 2.0 MB more meanwhile); not in these sums: c")


def test_a_sweep_is_measured_once_for_points_alike(tmp_path, store, capsys):
    sweep = {"program": "train_target.py", "method": "grid", "parameters": {"seed": {"values": [0, 1]}}}
    sweep["command"] = ["${env}", "${interpreter}", "${program}", *TOY, "${args_no_hyphens}"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--measure", "--store", str(store)]) == 0
    said = capsys.readouterr()
    assert said.err.count("measuring: ") == 1 and "\nin all 2 to make: " in said.out and not (store / "work").exists()


def test_other_verbs_and_words_are_refused(capsys):
    assert main(["plan", "atack", "dataset=toy"]) == 1 and main(["plan", "attack", "missing=make"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "atack" in first and "leave it out" in second


def test_the_command_is_the_verb_that_measures(monkeypatch):
    given = []
    monkeypatch.setattr(plan, "run_verb", lambda command, words: given.append((command.module, words)) or 0)
    assert main(["plan", "train", "dataset=toy", "-m", "seed=0,1"]) == 0
    assert given == [("train_target", ["dataset=toy", "-m", "seed=0,1", "missing=measure"])]
