"""Runs keep everything on disk, whatever W&B does; the offline mirror is read back with W&B's own tool."""

import contextlib
import dataclasses
import http.server
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import offline_log
import pytest
import torch
from omegaconf import OmegaConf

from midefense.plan.compose import plain_config
from midefense.store.plain import plain
from midefense.tracking import progress, settings, wandb_mirror
from midefense.tracking.preemption import Preempted
from midefense.tracking.run import Run
from midefense.tracking.settings import Settings
from midefense.types import Refused

FAKE_KEY = "fa4e" * 10


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    wandb_mirror._outage.clear()


def a_run(folder, wandb="disabled", **changes):
    arguments = {"job_type": "train_target", "name": "cnn", "id": "abc123", "config": {"seed": 1}, **changes}
    return Run(Settings(wandb=wandb, folder=folder), **arguments)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def status(run):
    return json.loads((run.folder / "status.json").read_text())


def inspect(folder):
    """All records of an offline W&B run, as text and as dicts."""
    return offline_log.inspected(folder), offline_log.records(folder)


def test_files_of_a_finished_run(tmp_path):
    with a_run(tmp_path, inputs=[{"role": "prior", "id": "p1"}]) as run:
        run.log({"loss": 2.0, "accuracy": torch.tensor(0.5)}, 1, "train")
        run.log({"loss": float("nan")}, 2, "train")
        assert lines(run.folder / "metrics.jsonl")[1]["loss"] == "nan", "flushed before the run ends"
        assert status(run)["state"] == "running"
        run.artefact(tmp_path, kind="target", name="cnn", id="abc123", inputs=["prior/gan@p1"], metadata={"size": 32})
        run.summary({"accuracy": 0.5})
        run.message("done")
    assert run.folder == tmp_path / "train_target" / "cnn@abc123"
    assert json.loads((run.folder / "config.json").read_text()) == {
        "seed": 1,
        "inputs": [{"role": "prior", "id": "p1"}],
    }
    first = lines(run.folder / "metrics.jsonl")[0]
    assert (first["namespace"], first["step"], first["loss"], first["accuracy"]) == ("train", 1, 2.0, 0.5)
    artefact, message = lines(run.folder / "events.jsonl")
    assert artefact["inputs"] == ["prior/gan@p1"] and artefact["metadata"] == {"size": 32}
    assert message["text"] == "done"
    final = status(run)
    assert final["state"] == "finished" and final["summary"] == {"accuracy": 0.5} and final["error"] == ""
    assert final["pid"] == os.getpid() and final["seconds"] >= 0


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("broken latent"), "failed"), (Preempted("SIGTERM"), "preempted"), (KeyboardInterrupt(), "preempted")],
)
def test_an_ending_by_exception_is_kept_and_raised_again(tmp_path, error, state):
    with pytest.raises(type(error)), a_run(tmp_path) as run:
        raise error
    final = status(run)
    assert final["state"] == state
    assert type(error).__name__ in final["error"] and "Traceback" in final["error"]


def test_the_same_run_again_appends_and_counts_the_attempt(tmp_path):
    for step in (1, 2):
        with a_run(tmp_path) as run:
            run.log({"loss": 0.0}, step, "train")
    assert [(line["step"], line["attempt"]) for line in lines(run.folder / "metrics.jsonl")] == [(1, 1), (2, 2)]
    assert status(run)["attempt"] == 2


@pytest.mark.parametrize("left", ["", '{"state": "run', "\0\0\0"])
def test_a_status_lost_in_a_power_cut_is_said_and_does_not_stop_the_next_attempt(tmp_path, left):
    with a_run(tmp_path) as run:
        pass
    (run.folder / "status.json").write_text(left)
    with a_run(tmp_path) as run:
        pass
    assert status(run)["state"] == "finished" and status(run)["attempt"] == 1
    messages = [line["text"] for line in lines(run.folder / "events.jsonl") if line["event"] == "message"]
    assert len(messages) == 1 and "status.json of an earlier attempt cannot be read" in messages[0]


def test_ranks_above_zero_keep_a_folder_of_their_own(tmp_path):
    with a_run(tmp_path, wandb="offline", rank=1) as run:
        run.log({"loss": 0.0}, 1, "train")
    assert run.folder == tmp_path / "train_target" / "cnn@abc123" / "rank1"
    assert not (tmp_path / "wandb").exists()


def test_secrets_are_removed(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    config = {
        "tracking": {"api_key": "s", "hf_token": "t", "password": None, "nested": [{"Client-Secret": 1}]},
        "num_tokens": 3,
        "monkey": "m",
        "url": f"https://me:{FAKE_KEY}@host",
    }
    assert plain(config) == {
        "tracking": {"api_key": "***", "hf_token": "***", "password": None, "nested": [{"Client-Secret": "***"}]},
        "num_tokens": 3,
        "monkey": "m",
        "url": "https://me:***@host",
    }


def test_tags_are_masked_cut_and_told_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    run = a_run(tmp_path, tags=["digits", f"with {FAKE_KEY}", "t" * 80, " ", "digits"])
    assert run.record.tags == ("digits", "with ***", "t" * 64)


@pytest.mark.parametrize("tag", ["", " ", "t" * 65])
def test_settings_refuse_a_tag_that_wandb_would_not_take(tag):
    with pytest.raises(Refused, match=rf"tracking.tags: expected texts of 1 to 64 .*\({len(tag)} characters\)"):
        Settings(tags=["pilot", tag])


def test_what_a_configuration_takes_from_the_environment_is_masked_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_PAT", "ghp_0123456789")
    monkeypatch.setenv("MY_FOLDER", str(tmp_path))
    monkeypatch.setenv("UNREAD", "not_taken_by_anyone")
    taken = {"a": "${oc.env:MY_PAT}", "b": "${oc.env:MY_FOLDER}/x", "c": "${oc.env:NOWHERE,else}"}
    values = plain_config(OmegaConf.create(taken))
    assert values == {"a": "ghp_0123456789", "b": f"{tmp_path}/x", "c": "else"}
    run = a_run(tmp_path, tags=[values["a"]], config={**values, "d": "not_taken_by_anyone"})
    assert run.record.tags == ("***",)
    with run:
        run.message(f"logged in with {values['a']}")
    config = json.loads((run.folder / "config.json").read_text())
    assert config == {"a": "***", "b": f"{tmp_path}/x", "c": "else", "d": "not_taken_by_anyone", "inputs": []}
    assert not [path for path in run.folder.rglob("*") if path.is_file() and b"ghp_0123456789" in path.read_bytes()]


def test_pictures_are_kept_without_loss_and_limited(tmp_path):
    from PIL import Image

    rng = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (4, 1, 6, 5), dtype=torch.uint8, generator=rng)
    colour = torch.randint(0, 256, (4, 3, 6, 5), dtype=torch.uint8, generator=rng)
    rows = [{"recovered": g, "nearest image": c, "label": n} for n, (g, c) in enumerate(zip(grey, colour, strict=True))]
    run = Run(Settings(wandb="disabled", folder=tmp_path, media_limit=6), job_type="e", name="n", id="i", config={})
    with run:
        run.pictures("reconstructions", rows, ["label", "recovered", "nearest image"])
    table = lines(run.folder / "media" / "reconstructions" / "table.jsonl")
    assert [row["label"] for row in table] == [0, 1, 2], "six images, two a row"
    read = Image.open(run.folder / "media" / "reconstructions" / table[2]["nearest image"])
    assert torch.equal(torch.tensor(list(read.get_flattened_data())).T.reshape(3, 6, 5).byte(), colour[2])
    assert "kept 3 of 4 rows" in (run.folder / "events.jsonl").read_text()


def test_pictures_refuse_floats(tmp_path):
    with (
        pytest.raises(Refused, match=r"expected a uint8 tensor.*got torch.float32 \[3, 4, 4\]"),
        a_run(tmp_path) as run,
    ):
        run.pictures("x", [{"image": torch.rand(3, 4, 4)}], ["image"])


def test_settings_refuse_an_unknown_mode():
    with pytest.raises(Refused, match="got 'ofline'; choices: auto, online, offline, disabled. Did you mean 'offline'"):
        Settings(wandb="ofline")


def test_consume_logs_saves_and_returns_the_last_state(tmp_path):
    def work():
        for step in (10, 20):
            yield step, {"loss": 1 / step}, lambda step=step: {"step": torch.tensor(step)}

    saved = []
    with a_run(tmp_path) as run:
        state = progress.consume(
            work(),
            run,
            total=20,
            namespace="train",
            save=lambda step, state: saved.append((step, int(state()["step"]))),
        )
    assert saved == [(10, 10), (20, 20)] and int(state()["step"]) == 20
    assert [line["step"] for line in lines(run.folder / "metrics.jsonl")] == [10, 20]


def test_sigterm_ends_as_preempted(tmp_path):
    script = f"""
        import time
        from midefense.tracking.preemption import install_signal_handlers
        from midefense.tracking.run import Run
        from midefense.tracking.settings import Settings
        install_signal_handlers()
        settings = Settings(wandb="disabled", folder={str(tmp_path)!r})
        with Run(settings, job_type="attack", name="n", id="i", config={{}}) as run:
            run.log({{"loss": 1.0}}, 1, "attack")
            print("ready", flush=True)
            time.sleep(600)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=-1, stderr=-1, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=300)
    assert child.returncode != 0 and "Preempted: SIGTERM" in errors
    assert json.loads((tmp_path / "attack" / "n@i" / "status.json").read_text())["state"] == "preempted"
    assert len(lines(tmp_path / "attack" / "n@i" / "metrics.jsonl")) == 1


def test_the_offline_mirror_is_complete_and_two_runs_in_one_process_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    stored = tmp_path / "store"
    stored.mkdir()
    (stored / "tensors.safetensors").write_bytes(b"weights")
    with a_run(tmp_path, "offline", tags=["digits"], inputs=[{"role": "prior", "id": "p1"}]) as run:
        run.log({"loss": 0.25}, 40, "train")
        run.log({"loss": 0.5}, 3, "attack")  # a smaller step of another namespace is not dropped
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        run.pictures("pairs", [{"label": 1, "recovered": image, "nearest": image}], ["label", "recovered", "nearest"])
        run.artefact(stored, kind="target", name="cnn", id="abc123", inputs=["prior/gan@p1"])
        run.summary({"accuracy": 0.75})
    with a_run(tmp_path, "offline", id="second", config={"seed": 2, "api_key": FAKE_KEY}):
        pass
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"), key=lambda path: path.name.endswith("second"))
    text, records = inspect(first)
    run_record = next(record["run"] for record in records if "run" in record)
    assert run_record["config"]["update"]["seed"] == 1
    assert run_record["config"]["update"]["inputs"] == [{"role": "prior", "id": "p1"}]
    assert run_record["run_id"] == "train_target-abc123" and run_record["job_type"] == "train_target"
    assert run_record["tags"] == ["digits"]
    history = [record["history"]["item"] for record in records if "history" in record]
    assert any(item.get("train/loss") == 0.25 and item["train/step"] == 40 for item in history)
    assert any(item.get("attack/loss") == 0.5 and item["attack/step"] == 3 for item in history)
    assert any("pairs._type" in item or "pairs" in item for item in history)
    artefact = next(r["artifact"] for r in records if r.get("artifact", {}).get("name") == "target-cnn")
    assert "tensors.safetensors" in json.dumps(artefact) and str(stored) in json.dumps(artefact)
    assert "abc123" in artefact["aliases"] and "prior/gan@p1" in artefact["metadata"]
    assert any(record["exit"]["exit_code"] == 0 for record in records if "exit" in record) or '"exit"' in text
    _, records = inspect(second)
    assert next(record["run"] for record in records if "run" in record)["config"]["update"]["seed"] == 2
    assert not leaks(tmp_path)


CONSOLE = """
    import sys, time
    from pathlib import Path
    from midefense import terminal
    from midefense.tracking.run import Run
    from midefense.tracking.settings import Settings
    terminal.PULSE_SECONDS = 0.3
    if sys.argv[2] == "terminal":
        sys.stderr.isatty = lambda: True
    options = {"job_type": "train_target", "name": "cnn", "config": {}}
    for number in range(2):
        title = f"{number + 1}/2 training"
        run = Run(Settings(wandb="offline", folder=Path(sys.argv[1])), id=f"r{number}", stage=title, **options)
        with run:
            run.stage.total = 9
            for step in range(1, 5):
                run.stage.at(step, {"loss": 0.5})
                time.sleep(0.25)
    print("after all runs", file=sys.stderr)
"""


def logged(folder, run):
    """What W&B's Logs tab shows of a run."""
    (log,) = (folder / "wandb").glob(f"offline-run-*{run}")
    records = offline_log.records(log)
    return "".join(record["output_raw"]["line"] for record in records if "output_raw" in record)


@pytest.mark.parametrize("where", ["file", "terminal"])
def test_the_lines_of_a_run_without_a_terminal_are_in_wandbs_logs(where, tmp_path):
    script = textwrap.dedent(CONSOLE)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), where], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "after all runs" in done.stderr
    for number, run in enumerate(("r0", "r1"), 1):
        told = logged(tmp_path, run)
        if where == "terminal":
            assert told == "", "bars, drawn again and again, are no log"
            continue
        assert told.splitlines()[0] == f"{number}/2 training: begun"
        assert re.search(rf"{number}/2 training: step \d of 9, .* steps/s, .* left, loss 0.5", told)
        assert f"{number}/2 training: done after" in told.splitlines()[-1]
        assert [line for line in told.splitlines() if line not in done.stderr] == [], "as it stood on stderr"


def test_a_key_without_network_warns_once_and_keeps_everything(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    fresh_wandb()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="midefense.tracking.wandb_mirror"):
        for number in (1, 2):
            with a_run(tmp_path, "online", id=f"run{number}") as run:
                run.log({"loss": 1.0}, 1, "train")
            assert status(run)["state"] == "finished" and len(lines(run.folder / "metrics.jsonl")) == 1
    assert time.monotonic() - started < 120, "wandb alone would try for many minutes"
    (warning,) = ours(caplog)
    assert warning.startswith("Weights & Biases is not available (URLError") and FAKE_KEY not in warning
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
    assert not leaks(tmp_path)
    fresh_wandb()


def test_a_server_that_refuses_the_key_leaves_an_offline_mirror(tmp_path, monkeypatch, caplog):
    with refusing_server() as address:
        monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        monkeypatch.setenv("WANDB_BASE_URL", address)
        fresh_wandb()
        with a_run(tmp_path, "online") as run:
            run.log({"loss": 1.0}, 1, "train")
    assert status(run)["state"] == "finished" and len(ours(caplog)) == 1
    (mirror,) = (tmp_path / "wandb").glob("offline-run-*")
    assert '"train/loss":1' in inspect(mirror)[0]
    assert not leaks(tmp_path)
    monkeypatch.delenv("WANDB_BASE_URL")
    fresh_wandb()


def test_a_service_that_does_not_start_fails_no_run(tmp_path, monkeypatch, caplog):
    import wandb
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError

    def broken(*_, **__):
        raise WandbServiceConnectionError("Failed to connect to service on socket /tmp/gone")

    monkeypatch.setattr(wandb, "setup", broken)
    monkeypatch.setattr(wandb, "init", broken)
    with a_run(tmp_path, "online") as run:
        run.log({"loss": 1.0}, 1, "train")
    assert status(run)["state"] == "finished" and len(ours(caplog)) == 1
    assert lines(run.folder / "metrics.jsonl")[0]["loss"] == 1.0


NOT_OF_WANDB = {  # a variable that W&B refuses, by its value
    "WANDB_MODE": ["", "OFFLINE"],
    "WANDB_BASE_URL": ["wandb.example.org"],
    "WANDB_INIT_TIMEOUT": ["5m"],
    "WANDB_SILENT": ["maybe"],
    "WANDB_TAGS": ["t" * 80, ","],
    "WANDB__SERVICE_WAIT": ["soon"],
    "WANDB_SERVICE": ["3-1234-unix-/tmp/gone"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NOT_OF_WANDB.items() for value in values]
)
@pytest.mark.parametrize("wandb_mode", ["offline", "auto"])
def test_a_variable_that_wandb_refuses_warns_once_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog, wandb_mode, name, value
):
    fresh_wandb()
    monkeypatch.setenv(name, value)
    for number in (1, 2):
        with a_run(tmp_path, wandb_mode, id=f"run{number}") as run:
            run.log({"loss": 1.0}, 1, "train")
        assert status(run)["state"] == "finished" and len(lines(run.folder / "metrics.jsonl")) == 1
    mirrors = len(list((tmp_path / "wandb").glob("offline-run-*")))
    assert len(ours(caplog)) <= 1 and (ours(caplog) or mirrors == 2), "a mirror that is not there was warned of, once"
    assert "\n" not in "".join(ours(caplog))
    monkeypatch.delenv(name)
    fresh_wandb()


def test_a_wandb_that_cannot_be_imported_fails_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with a_run(tmp_path, "offline") as run:
        run.log({"loss": 1.0}, 1, "train")
    assert status(run)["state"] == "finished" and len(ours(caplog)) == 1


def test_where_a_run_is_to_be_seen_is_said(tmp_path):
    with a_run(tmp_path, "offline") as run:
        pass
    (event,) = lines(run.folder / "events.jsonl")
    (mirror,) = (tmp_path / "wandb").glob("offline-run-*")
    assert event["text"] == f"W&B: an offline log; upload it with: wandb sync {mirror}"
    online = types.SimpleNamespace(offline=False, url="https://wandb.ai/me/midefense/runs/1")
    assert "https://wandb.ai/me/midefense/runs/1" in wandb_mirror.Mirror(None, online, run.record).where()


@pytest.mark.parametrize(
    ("settings", "variable", "own", "group"),
    [
        (None, None, "cnn@h1", "cnn@h1"),
        (None, "mine", "cnn@h1", "mine"),
        ("ours", "mine", "cnn@h1", "ours"),
        (None, None, "n" * 200, "n" * 128),
        (None, None, None, None),
    ],
)
def test_a_group_that_the_user_names_comes_first(tmp_path, monkeypatch, settings, variable, own, group):
    if variable:
        monkeypatch.setenv("WANDB_RUN_GROUP", variable)
    run = Run(
        Settings(wandb="disabled", folder=tmp_path, group=settings),
        job_type="t",
        name="n",
        id="i",
        config={},
        group=own,
    )
    assert wandb_mirror._group(run.record) == group


def test_no_account_is_offline_without_a_prompt(tmp_path, caplog):
    with a_run(tmp_path, "auto"):
        pass
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1 and not ours(caplog)
    with a_run(tmp_path, "online", id="asked"):
        pass
    assert "no API key is configured" in caplog.text


def test_the_environment_can_switch_the_mirror_off(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with a_run(tmp_path, "offline") as run:
        run.log({"loss": 1.0}, 1, "train")
    assert not (tmp_path / "wandb").exists()


def test_a_failure_of_the_mirror_stops_only_the_mirror(tmp_path, caplog):
    with a_run(tmp_path) as run:
        run._mirror = BrokenMirror()
        run.log({"loss": 1.0}, 1, "train")
        run.log({"loss": 2.0}, 2, "train")
    assert status(run)["state"] == "finished" and len(lines(run.folder / "metrics.jsonl")) == 2
    (warning,) = ours(caplog)
    assert "ConnectionResetError: network is gone" in warning


def test_a_mistake_of_ours_in_the_mirror_is_not_swallowed(tmp_path):
    with pytest.raises(AttributeError), a_run(tmp_path) as run:
        run._mirror = object()
        run.log({"loss": 1.0}, 1, "train")


def test_a_hanging_call_is_left_behind():
    with pytest.raises(TimeoutError, match="did not answer within 0.05 s"):
        wandb_mirror._bounded(lambda: time.sleep(1), 0.05)
    assert wandb_mirror._bounded(lambda: 3, 60) == 3
    with pytest.raises(KeyError):
        wandb_mirror._bounded(lambda: {}["x"], 60)


def test_only_the_outermost_run_takes_the_sweep_agents_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "agent7")
    with a_run(tmp_path, "offline", outermost=False):
        pass
    with a_run(tmp_path, "offline", id="outer"):
        pass
    assert os.environ["WANDB_RUN_ID"] == "agent7", "the environment is left as it was"
    names = sorted(path.name.split("-", 3)[-1] for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert names == ["agent7", "train_target-abc123"]
    for path in (tmp_path / "wandb").glob("offline-run-*"):
        assert ("sweep7" in inspect(path)[0]) == path.name.endswith("agent7")
    monkeypatch.delenv("WANDB_SWEEP_ID")
    monkeypatch.delenv("WANDB_RUN_ID")
    fresh_wandb()


@pytest.mark.parametrize("name", ["offline", "online", "none"])
def test_shipped_settings_are_complete(name):
    import yaml

    path = Path(__file__).parents[1] / "conf" / "tracking" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())
    assert values.pop("_target_") == "midefense.tracking.settings.Settings"
    assert set(values) == {field.name for field in dataclasses.fields(Settings)}
    assert Settings(**values).wandb in settings.MODES


class BrokenMirror:
    def log(self, *arguments):
        raise ConnectionResetError("network is gone")


@contextlib.contextmanager
def refusing_server():
    """A server that is there and answers everything with "bad request"."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(400)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ours(caplog):
    """The warnings of our own logger (W&B's are in the log too)."""
    return [record.getMessage() for record in caplog.records if record.name == "midefense.tracking.wandb_mirror"]


def fresh_wandb():
    """Let W&B read the environment again: it does so once per process."""
    import wandb

    wandb.teardown()


def leaks(folder):
    return [path for path in folder.rglob("*") if path.is_file() and FAKE_KEY.encode() in path.read_bytes()]
