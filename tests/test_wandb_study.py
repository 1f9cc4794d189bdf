"""A study through a W&B sweep file, offline: what its runs are filtered, grouped and compared by is in the log."""

import itertools
import json
from pathlib import Path

import offline_log
import pytest
import yaml

from midefense.pipeline.telling import SETTINGS, numbers_of
from midefense.plan.read import KEYS
from midefense.store.store import Store

ROOT = Path(__file__).parents[1]
SWEEP = ROOT / "sweeps" / "two_defenses.yaml"
TINY = (
    "architecture=mlp",
    "architecture.widths=[16]",
    "recipe.epochs=1",
    "attack=mi_face",
    "attack.search.steps=60",
    "evaluators.main.architecture.widths=[4,8]",
    "evaluators.main.recipe.epochs=1",
    "metrics=[privacy,cost]",
    "metrics.accuracy.stages=[]",
    "~metrics.kid",
    "~metrics.fid",
    "~metrics.prdc",
    "compute.threads=1",
)
FLAT = {
    "dataset": "digits",
    "public": "own",
    "architecture": "mlp",
    "prior": "pixels",
    "attack": "mi_face",
    "evaluator": "cnn_wide",
    "access": "whitebox",
    "resolution": 32,
}
OF_WANDB = {"_step", "_runtime", "_timestamp", "_wandb"}


@pytest.fixture
def agent(home, call, monkeypatch):
    """`agent(point)`: what an agent does with one point of a sweep: it tells a process its run's id and, in a file, the
    parameters, and starts the command. Returns the run's id."""
    import wandb
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    monkeypatch.setenv("WANDB_MODE", "offline")
    sweep, numbers = yaml.safe_load(SWEEP.read_text()), itertools.count()

    def run(point, *further):
        arguments = {name: {"value": value} for name, value in point.items()}
        run_id = f"agent{next(numbers)}"
        file = home / f"{run_id}.yaml"
        file.write_text(yaml.safe_dump({"wandb_version": 1, **arguments}))
        variables = {"WANDB_SWEEP_ID": "sweep7", "WANDB_RUN_ID": run_id, "WANDB_SWEEP_PARAM_PATH": str(file)}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        words = [word for word in sweep["command"] if not word.startswith("${")]
        words += create_sweep_command_args({"args": arguments})["args_no_hyphens"]
        code, _, errors = call("evaluate", *words, *further, f"store={home / 'store'}")
        assert code == 0, errors
        return run_id

    yield run
    wandb.teardown()


def points():
    """All points of the sweep's grid."""
    parameters = yaml.safe_load(SWEEP.read_text())["parameters"]
    grid = itertools.product(*(parameter["values"] for parameter in parameters.values()))
    return [dict(zip(parameters, values, strict=True)) for values in grid]


def log_of(home, run_id):
    """The folder of a run's offline log."""
    (folder,) = home.rglob(f"offline-run-*-{run_id}")
    return folder


# W&B leaves the file of an agent's parameters to the garbage collector
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_study_of_two_defenses_and_three_seeds(agent, home):
    grid = points()
    ids = [agent(point, *TINY) for point in grid]
    assert len(grid) == 6
    groups = {}
    rows = {artefact.id: artefact for artefact in Store(home / "store").list("result")}
    for run_id, point in zip(ids, grid, strict=True):
        log = offline_log.records(log_of(home, run_id))
        (run,) = [record["run"] for record in log if "run" in record]
        config = run["config"]["update"]
        assert run["sweep_id"] == "sweep7" and run["job_type"] == "evaluate"
        assert {key: config[key] for key in (*FLAT, *point)} == {**FLAT, **point}
        row = rows[config["artefact"].split("@")[1]]
        require_settings(config, point)
        require_as_without_agent(config, home / "store" / "runs" / "evaluate" / f"{row.name}@{row.id}")
        assert run["display_name"] == f"digits-mlp-{point['defense']}-pixels-mi_face seed {point['seed']}"
        assert {"digits", "mlp", point["defense"], "mi_face", "cnn_wide"} <= set(run["tags"])
        assert run["run_group"].endswith(f"@{row.metrics['row']['setup']}")
        groups.setdefault(run["run_group"], []).append((point["defense"], point["seed"]))
        require_each_number_once(home, run_id, row.metrics)
    assert sorted(groups.values()) == [[(d, s) for s in (0, 1, 2)] for d in ("none", "random_erasing")]
    require_curves(home)


def require_settings(config, point):
    """Every hyperparameter stands below the settings, those of the part that the sweep varies too."""
    settings = config[SETTINGS]
    assert settings["architecture"]["widths"] == [16] and settings["recipe"]["epochs"] == 1
    assert settings["attack"]["search"]["steps"] == 60 and settings["prior"] and settings["metrics"]["accuracy"]
    assert settings["evaluators"]["main"]["architecture"]["widths"] == [4, 8]
    assert (settings["defense"].get("scale") == [0.1, 0.4]) == (point["defense"] == "random_erasing"), settings[
        "defense"
    ]


def require_as_without_agent(config, folder):
    """An agent's configuration is ours, key by key."""
    ours = json.loads((folder / "config.json").read_text())
    assert {key: config[key] for key in ours} == ours
    assert not (set(ours) - set(FLAT) - {"defense", "seed", "seeds"}) & set(KEYS["evaluate"]), "a sweep could lock it"


def require_each_number_once(home, run_id, report):
    """The summary has every number, the bounds of its interval and its anchors, the target's accuracy and the cost."""
    summary = offline_log.summary(log_of(home, run_id))
    values, about = numbers_of(report, {})
    assert {name: summary[name] for name in values | about} == pytest.approx(values | about)
    name = "attack_accuracy_top1/main"
    assert {f"{name}/{what}" for what in ("low", "high", "real", "prior", "chance")} <= set(about)
    further = {"utility/test_accuracy_top1", "evaluator_test_accuracy_top1/main", "utility_minus_attack/main"}
    assert {"cost/seconds", "cost/queries_per_target_mean"} <= set(values) and further <= set(summary)
    assert set(summary) - OF_WANDB - set(about) - set(values) - further == {"recovered"}, "the table of pictures"


def require_curves(home):
    """Attacks are curves of what the target says; nothing there comes from an evaluator."""
    logs = list(home.rglob("offline-run-*-attack-*"))
    assert len(logs) == 6
    items = [record["history"]["item"] for record in offline_log.records(logs[0]) if "history" in record]
    drawn = [item for item in items if "attack/step" in item]
    assert len(drawn) >= 50 and drawn == sorted(drawn, key=lambda item: item["attack/step"])
    assert {name for item in items for name in item} - OF_WANDB == {
        "attack/step",
        "attack/loss",
        "attack/target_confidence",
    }
    assert all(0 <= item["attack/target_confidence"] <= 1 for item in drawn)
