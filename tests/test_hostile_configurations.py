"""Configurations of strangers: nothing of theirs runs, imports, or writes where they say, and one sentence says why."""

import contextlib
import os
import pickle
import sys
from pathlib import Path

import pytest
from hydra._internal import defaults_list
from hydra._internal import hydra as hydra_internals
from hydra._internal.sources_registry import SourcesRegistry

from midefense.plan.compose import compose
from midefense.plan.hydra_node import guarded
from midefense.store.store import Store
from midefense.types import Refused

GLOBAL = "# @package _global_\n"
SMALL = (
    "dataset=toy",
    "architecture=mlp",
    "architecture.widths=[8]",
    "recipe.epochs=1",
    "tracking=none",
    "compute=cpu",
)
# A module of the stranger's, in the working folder: whatever is done with it leaves the sentinel.
EVIL = """
import logging, os, pathlib
def ran(*args, **kwargs):
    pathlib.Path(os.environ["SENTINEL"]).touch()
ran()
class Handler(logging.StreamHandler):
    pass
Callback = Launcher = Sweeper = Handler
stream = None
"""
FORMAT = "formatters: {simple: {format: '%(message)s'}}"
HANDLER = "{version: 1, root: {level: INFO, handlers: [h]}, " + FORMAT + ", handlers: {h: {class: "
# What the files below say by a word: a call, a node of logging.
PIECES = {
    "RUNS": "{_target_: evil_of_a_stranger.ran}",
    "TOUCHES": "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: ['SENTINEL']}]}",
    "LOGS_INTO": HANDLER + "logging.FileHandler, filename: SENTINEL}}}",
    "LOGS_BY": HANDLER + "evil_of_a_stranger.Handler}}}",
}

# By name: the files of a stranger's folder (SENTINEL stands for a path that may not appear, and
# `PIECES` for what is longer), and further words.
HOSTILE = {
    "callback of their own": ("hydra: {callbacks: {x: RUNS}}", ()),
    "callback of Python's own": ("hydra: {callbacks: {x: TOUCHES}}", ()),
    "callback that is evaluated": ("hydra: {callbacks: {x: {_target_: builtins.eval, _args_: ['1']}}}", ()),
    "callback of Hydra's own": (
        "hydra: {callbacks: {x: {_target_: hydra.experimental.callbacks.PickleJobInfoCallback}}}",
        (),
    ),
    "launcher": ("hydra: {launcher: RUNS}", ("-m",)),
    "launcher of one run": ("hydra: {launcher: RUNS}", ()),
    "part of the launcher": ("hydra: {launcher: {x: RUNS}}", ("-m",)),
    "sweeper": ("hydra: {sweeper: RUNS}", ("-m",)),
    "part of the sweeper": ("hydra: {sweeper: {params: {seed: '0,1'}}}", ("-m",)),
    "log file": ("hydra: {job_logging: LOGS_INTO}", ()),
    "log file of Hydra's": ("hydra: {hydra_logging: LOGS_INTO}", ()),
    "log handler": ("hydra: {job_logging: LOGS_BY}", ()),
    "log stream": ("hydra: {job_logging: {handlers: {console: {stream: ext://evil_of_a_stranger.stream}}}}", ()),
    "log formatter": ("hydra: {job_logging: {formatters: {simple: {(): evil_of_a_stranger.ran}}}}", ()),
    "log filter": ("hydra: {job_logging: {filters: {x: {(): evil_of_a_stranger.ran}}}}", ()),
    "folder of the run": ("hydra: {run: {dir: SENTINEL}}", ()),
    "folder of the sweep": ("hydra: {sweep: {dir: SENTINEL}}", ("-m",)),
    "folder below": ("hydra: {output_subdir: SENTINEL}", ()),
    "another working folder": ("hydra: {job: {chdir: true}, run: {dir: SENTINEL}}", ()),
    "environment": ("hydra: {job: {env_set: {PYTHONPATH: SENTINEL, LD_PRELOAD: SENTINEL}}}", ()),
    "search path": ("hydra: {searchpath: ['pkg://evil_of_a_stranger']}", ()),
    "verbose": ("hydra: {verbose: true}", ()),
    "allow": ("allow: [evil_of_a_stranger]\ndefense: {_target_: evil_of_a_stranger.Callback}", ()),
    "allow of the environment": ("allow: ['${oc.env:EVIL}']", ()),
    "allow twice": ("allow: [evil_of_a_stranger]", ("seed=1",)),
    "Hydra's own option": ("defaults: [override /hydra/job_logging: default]", ()),
    "their own option of Hydra's": (
        {
            "experiment/x": GLOBAL + "defaults: [override /hydra/hydra_logging: evil]",
            "hydra/hydra_logging/evil": "# @package hydra.hydra_logging\n" + "LOGS_INTO",
        },
        (),
    ),
    "mounted": (
        {
            "experiment/x": GLOBAL + "defaults: [/defense@hydra.callbacks.x: evil]",
            "defense/evil": "_target_: evil_of_a_stranger.ran",
        },
        (),
    ),
    "mounted by hand": ({"defense/evil": "_target_: evil_of_a_stranger.ran"}, ("+defense@hydra.callbacks.x=evil",)),
    "package of Hydra's": ({"experiment/x": "# @package hydra.callbacks\nx: RUNS"}, ()),
    "preset": ({"debug/x": f"{GLOBAL}hydra: {{callbacks: {{x: RUNS}}}}"}, ("debug=x",)),
    "never named": ({"local/default": f"{GLOBAL}hydra: {{callbacks: {{x: RUNS}}}}"}, ()),
    "never named, allows": ({"local/default": f"{GLOBAL}allow: [evil_of_a_stranger]"}, ()),
    "within an option": ({"defense/x": f"{GLOBAL}hydra: {{callbacks: {{x: RUNS}}}}"}, ("defense=x",)),
    "second point of a sweep": (
        {"experiment/a": f"{GLOBAL}seed: 1", "experiment/x": f"{GLOBAL}hydra: {{job_logging: LOGS_INTO}}"},
        ("-m", "experiment=a,x"),
    ),
    "primary": ({"x": "hydra: {callbacks: {x: RUNS}}"}, ("--config-name", "x", "hydra.job.name=x")),
    "primary, short": ({"x": "hydra: {callbacks: {x: RUNS}}"}, ("-cn=x",)),
    "primary, begun": ({"x": "hydra: {callbacks: {x: RUNS}}"}, ("--config-n", "x")),
    "place of the primary": ({"train_target": "hydra: {callbacks: {x: RUNS}}"}, ("--config-path", "FOLDER")),
    "pickle": ({}, ("--experimental-rerun", "FOLDER/x.pickle")),
    "target": ("defense: {_target_: evil_of_a_stranger.ran}", ()),
    "target behind ours": ("defense: {_target_: midefense.defenses.base.nn.modules.module.functools.partial}", ()),
    "target by its path": ("defense: {_target_: ../../evil_of_a_stranger.ran}", ()),
    "target with a NUL": ('defense: {_target_: "midefense.defenses\\0.base.NoDefense"}', ()),
    "references that grow": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40)),
        (),
    ),
    "a deep file": ("a: " + "[" * 10**5, ()),
    "a long number": ("seed: 1" + ":1" * 10**5, ()),
    "a large file": ("a: " + "x " * (3 << 20), ()),
    "help": ("hydra: {callbacks: {x: RUNS}, help: {template: SENTINEL}}", ("--help",)),
    "configuration shown": ("hydra: {callbacks: {x: RUNS}}", ("--cfg", "hydra")),
    "Hydra's help": ("hydra: {hydra_logging: LOGS_INTO}", ("--info", "config")),
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """`stranger(files)`: a folder with files of theirs; the module is in the working folder, which Python searches."""
    sentinel, folder = tmp_path / "sentinel", tmp_path / "theirs"
    (tmp_path / "evil_of_a_stranger.py").write_text(EVIL)
    monkeypatch.setenv("SENTINEL", str(sentinel))
    monkeypatch.setenv("EVIL", "evil_of_a_stranger")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(files):
        files = {"experiment/x": GLOBAL + files} if isinstance(files, str) else files
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            for word, piece in (*PIECES.items(), ("SENTINEL", str(sentinel))):
                text = text.replace(word, piece)
            (folder / f"{name}.yaml").write_text(text)
        return folder

    yield write
    sys.modules.pop("evil_of_a_stranger", None)


# One of each kind; the others take a composition of a second each too.
EVERY_TIME = (
    "callback of their own",
    "part of the launcher",
    "sweeper",
    "log file",
    "log stream",
    "folder of the run",
    "environment",
    "search path",
    "allow",
    "mounted",
    "never named",
    "second point of a sweep",
    "primary, begun",
    "references that grow",
    "a deep file",
    "pickle",
    "help",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.slow) for name in HOSTILE]
)
def test_nothing_of_a_stranger_runs(call, stranger, tmp_path, name):
    files, words = HOSTILE[name]
    folder = stranger(files)
    if name == "pickle":
        (folder / "x.pickle").write_bytes(pickle.dumps(Touch(tmp_path / "sentinel")))
    words = [word.replace("FOLDER", str(folder)) for word in words]
    if (folder / "experiment").exists() and not any("experiment" in word for word in words):
        words.append("experiment=x")
    before, there = dict(os.environ), files_in(tmp_path)
    code, out, said = call("train_target", "--config-dir", str(folder), *words, *SMALL, f"store={tmp_path / 'store'}")
    assert "evil_of_a_stranger" not in sys.modules and not (tmp_path / "sentinel").exists()
    assert code == 2 and said.startswith("refused: ") and said.count("\n") == 1, said
    assert "Traceback" not in said and dict(os.environ) == before
    assert files_in(tmp_path) == there


def files_in(folder):
    """All files but the one that says what a sweep was asked for."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "multirun.yaml"]


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.slow
def test_the_command_line_itself_may_not_give_hydra_code(call, stranger, tmp_path):
    for word in (
        "+hydra.callbacks.x._target_=evil_of_a_stranger.ran",
        "hydra.job_logging.handlers.console.class=evil_of_a_stranger.Handler",
        "+hydra.job.env_set.PYTHONPATH=/",
        "hydra.searchpath=[pkg://evil_of_a_stranger]",
        "hydra.launcher._target_=evil_of_a_stranger.ran",
    ):
        code, _, said = call("train_target", word, *SMALL, f"store={tmp_path / 'store'}", "-m")
        assert code == 2 and said.startswith("refused: "), said
        assert "evil_of_a_stranger" not in sys.modules and not (tmp_path / "sentinel").exists()


@pytest.mark.filterwarnings("ignore:Callback NoneType")
def test_the_bombs_are_live(call, stranger, tmp_path, monkeypatch):
    """Without the guard, Hydra runs such files."""
    monkeypatch.setattr("midefense.pipeline.verbs.guarded", contextlib.nullcontext)
    folder = stranger(HOSTILE["callback of their own"][0])
    code, _, _ = call(
        "train_target", "--config-dir", str(folder), "experiment=x", *SMALL, f"store={tmp_path}", "seed=x"
    )
    assert code == 2 and (tmp_path / "sentinel").exists()


def test_what_ordinary_files_and_command_lines_say_is_taken(call, stranger, tmp_path, monkeypatch):
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setattr("midefense.plan.whitelist.look_here_too", lambda: None)
    folder = stranger(
        {
            "experiment/x": f"{GLOBAL}defaults: [override /dataset: toy]\nseed: ${{oc.decode:${{oc.env:SEED}}}}",
            "defense/mine/x": "_target_: evil_of_a_stranger_s_good_brother.Mine",
        }
    )
    (tmp_path / "evil_of_a_stranger_s_good_brother.py").write_text(
        "from midefense.defenses.base import NoDefense\nclass Mine(NoDefense):\n    pass\n"
    )
    by_hand = ("hydra.verbose=false", "hydra/launcher=basic", f"hydra.run.dir={tmp_path}/run")
    by_hand += ("allow=[evil_of_a_stranger_s_good_brother]", "defense=mine/x", "experiment=x", *SMALL[1:])
    for _ in range(2):  # the second time it is found
        code, _, said = call("train_target", "--config-dir", str(folder), *by_hand, f"store={tmp_path / 'store'}")
        assert code == 0, said
    (target,) = Store(tmp_path / "store").list("target")
    assert target.recipe["seed"] == 7 and target.name == "toy-mlp-mine_x"


def test_hydra_is_as_it_was_afterwards():
    def parts():
        sources = SourcesRegistry.instance().types
        return (
            hydra_internals.ConfigLoaderImpl,
            defaults_list._create_interpolation_map,
            sources["file"],
            sources["pkg"],
        )

    before = parts()
    with guarded():
        assert not set(parts()) & set(before)
    assert parts() == before
    with pytest.raises(Refused, match="hydra.callbacks.x: expected nothing of Hydra's own"):
        compose("attack", ["+hydra.callbacks={x: {_target_: os.getcwd}}"])


def test_the_hydra_that_is_relied_on_is_the_oldest_that_is_taken():
    floor = next(
        line for line in (Path(__file__).parents[1] / "pyproject.toml").read_text().splitlines() if "hydra-core" in line
    )
    assert "hydra-core>=1.3.8,<1.4" in floor
