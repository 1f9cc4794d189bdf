"""W&B beside a whole `evaluate.py`: what its offline log holds, what an outage does, and what never reaches a file."""

import json

import offline_log
import pytest
import torch

from midefense.store.store import Store
from midefense.types import Refused

FAKE_KEY = "fa4e" * 10
SMALL = (
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
    "attack.search.steps=98",
    "evaluators.main.architecture.widths=[8,16]",
    "evaluators.main.recipe.epochs=2",
)
JOBS = ("train_target", "train_prior", "attack", "evaluate")


def offline_logs(home):
    """The records of every offline run, by run id, as W&B's own tool reads them."""
    return {folder.name.split("-", 3)[-1]: offline_log.records(folder) for folder in home.rglob("offline-run-*")}


def of_kind(records, kind):
    return [record[kind] for record in records if kind in record]


def require_nowhere(secret, folder):
    """No file of a folder holds a secret, nor a name of one."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    holding = [path for path in files if secret.encode() in path.read_bytes() or secret in path.name]
    assert not holding, "a secret was written"


def require_complete(store):
    """Everything is there locally: all artefacts, and a finished run folder of numbers for each."""
    assert sorted(a.kind for a in Store(store).list()) == ["prior", "recovered", "result", "target", "target"]
    paths = list((store / "runs").glob("*/*/status.json"))
    assert sorted(path.parts[-3] for path in paths) == sorted([*JOBS, "train_target"])
    assert {json.loads(path.read_text())["state"] for path in paths} == {"finished"}
    assert all((path.parent / "metrics.jsonl").stat().st_size for path in paths)


def test_offline_log_of_a_whole_evaluation(run_process, store, home):
    done = run_process("evaluate", *SMALL, WANDB_MODE="offline", WANDB_API_KEY=FAKE_KEY)
    assert done.returncode == 0, done.stderr
    require_complete(store)
    logs = offline_logs(home)
    artefacts = {artefact.id: artefact for artefact in Store(store).list()}
    assert {name.split("-")[-1] for name in logs} == set(artefacts), "a run for each artefact"
    for name, records in logs.items():
        artefact = artefacts[name.split("-")[-1]]
        (run,) = of_kind(records, "run")
        assert name == f"{run['job_type']}-{artefact.id}" and run["job_type"] in JOBS
        config = run["config"]["update"]
        assert config["artefact"] == artefact.reference and config["dataset"] == "toy" and "toy" in run["tags"]
        assert config["seed"] == artefact.recipe.get("seed", 0) and run["display_name"].startswith(artefact.name)
        own = artefact.recipe if artefact.kind != "result" else artefact.recipe["protocol"]
        parts = set(own) & set(config["settings"]) - {"evaluators"}
        settings = {part: own[part] for part in parts}
        if artefact.kind == "recovered":
            settings["prior"] = own["prior"]["prior"]
        assert parts and {part: config["settings"][part] for part in parts} == plain_numbers(settings)
        assert [one["artefact"] for one in config["inputs"]] == list(artefact.provenance["parents"].values())
        (logged,) = [one for one in of_kind(records, "artifact") if one["type"] == artefact.kind]
        assert artefact.id in logged["aliases"] and logged["name"] == f"{artefact.kind}-{artefact.name}"
        files = {entry["path"] for entry in logged["manifest"]["contents"]}
        assert files == {path.name for path in artefact.path.iterdir()}
        assert [one["exit_code"] for one in of_kind(records, "exit")] == [0]
    require_history(logs, artefacts)
    require_nowhere(FAKE_KEY, home)


def plain_numbers(recipe):
    """A recipe after a journey through JSON, where 0.0 and 0 are equal."""
    return json.loads(json.dumps(recipe))


def require_history(logs, artefacts):
    """Numbers of every job, and its pictures, are in the logs."""
    history = {job: [] for job in JOBS}
    for name, records in logs.items():
        history[name.rsplit("-", 1)[0]] += [entry["item"] for entry in of_kind(records, "history")]
    assert sorted(item["train/step"] for item in history["train_target"]) == [1, 1, 2, 2]
    assert [item["prior/step"] for item in history["train_prior"] if "prior/step" in item] == [3, 6]
    assert [item["attack/step"] for item in history["attack"]] == list(range(2, 100)), "a point for each step"
    (result,) = [artefact for artefact in artefacts.values() if artefact.kind == "result"]
    value = result.metrics["metrics"]["attack_accuracy_top1/main"]["value"]
    assert history["evaluate"][0]["attack_accuracy_top1/main"] == value
    tables = {"train_prior": ("samples", 16), "evaluate": ("recovered", len(result.tensors()["labels"]))}
    for job, (table, rows) in tables.items():
        (item,) = [item for item in history[job] if f"{table}._type" in item]
        assert item[f"{table}._type"] == "table-file" and item[f"{table}.nrows"] == rows
    (records,) = [records for name, records in logs.items() if name.startswith("evaluate")]
    (table,) = [one for one in of_kind(records, "artifact") if one["type"] == "run_table"]
    pictures = [entry["path"] for entry in table["manifest"]["contents"] if entry["path"].endswith(".png")]
    kept = torch.cat([result.tensors()[name] for name in ("reconstructions", "nearest")])
    assert len(pictures) == len(kept.unique(dim=0)), "every reconstruction and its nearest private image"


@pytest.mark.slow  # of one run, tests/test_tracking.py shows it every time
def test_a_key_without_a_network_warns_once_and_keeps_everything(run_process, store, home):
    unreachable = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": FAKE_KEY, "WANDB_MODE": "online"}
    done = run_process("evaluate", *SMALL, **unreachable)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("everything is kept in the local run folders") == 1, done.stderr
    require_complete(store)
    assert len(offline_logs(home)) == 5, "and the mirror went on offline, for `wandb sync`"
    require_nowhere(FAKE_KEY, home)


def test_a_key_on_the_command_line_is_refused_and_reaches_no_file(call, store, home, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, out, errors = call("evaluate", *SMALL, f"+tracking.api_key={FAKE_KEY}", f"store={store}")
    assert code == 2
    assert "tracking.api_key: expected no secret in what is written to files" in errors
    assert FAKE_KEY not in errors + out
    assert not [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["dataset.hf_token", "attack.init.password", "evaluators.main.recipe.client-secret"])
def test_a_key_at_any_depth_is_refused(run_verb, store, name):
    with pytest.raises(Refused, match=f"{name}: expected no secret") as refusal:
        run_verb("evaluate", *SMALL, f"+{name}={FAKE_KEY}")
    assert FAKE_KEY not in str(refusal.value)
    assert not store.exists(), "refused before anything is written"


def test_a_value_of_the_environment_in_a_recipe_is_refused(run_verb, store, monkeypatch):
    monkeypatch.setenv("MY_PAT", FAKE_KEY)
    with pytest.raises(Refused, match="attack.search.keep: expected a value that may be written") as refusal:
        run_verb("evaluate", *SMALL, "attack.search.keep=${oc.env:MY_PAT}")
    assert FAKE_KEY not in str(refusal.value)
    assert not store.exists(), "refused before anything is written"
