"""`midefense sweep`: values as words and back, what is read of a W&B file, and the points carried out by processes,
with a program of a few lines in the place of the verbs; the real ones at the end."""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from midefense.commands.main import main
from midefense.commands.sweep import Lines, Table, summary
from midefense.plan.compose import compose
from midefense.plan.overrides import as_swept, written
from midefense.plan.spaces import Choice
from midefense.plan.verb_options import CONF, groups_of
from midefense.store.claims import claim
from midefense.store.store import Store
from midefense.store.sweeps import FAILED, FINISHED, REFUSED, Outcome, files, read
from midefense.studies.sweep import Planned, Point, Runner, handed_out, last_traceback, last_words, numbers_in
from midefense.studies.sweep_file import read_sweep
from midefense.tracking.preemption import HOW
from midefense.types import Refused

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "sweeps").rglob("*.yaml"))
SEARCHES = [path for path in FILES if path.parent.name == "search"]
GRIDS = [path for path in FILES if path not in SEARCHES]


def called(path):
    """A shipped file as a test's name says it."""
    return path.relative_to(ROOT / "sweeps").with_suffix("").as_posix()


COMMAND = ["${env}", "${interpreter}", "${program}", "dataset=toy", "${args_no_hyphens}"]
PARSER = OverridesParser.create()

# ------------------------------------------------------------------------------------------------ values as words

HOSTILE = [
    "a,b",
    "[1]",
    "{a:1}",
    "it's",
    '"x"',
    "a b",
    " a ",
    "",
    "a=b",
    "f(x)",
    "a#b",
    "a\\b",
    "a\\",
    "a\\'",
    "ü",
    "a\nb",
]
PLAIN = [
    None,
    True,
    False,
    0,
    -3,
    1e-05,
    float("inf"),
    "gmi_small",
    "a/b-1.5",
    "50%",
    [],
    [1, [2.5, None]],
    {"k": "a,b"},
]


def read_back(text):
    override = PARSER.parse_override(f"key={text}")
    assert not override.is_sweep_override()
    return override.value()


@pytest.mark.parametrize(
    "value", [*PLAIN, *HOSTILE, HOSTILE, dict(zip("abcdefghijklmnop", HOSTILE, strict=True))], ids=repr
)
def test_hydra_reads_the_value_that_was_written(value):
    assert read_back(written(value)) == value


@pytest.mark.parametrize("wrong", [str, lambda value: "'{}'".format(value.replace("\\", "\\\\").replace("'", "\\'"))])
def test_as_python_prints_it_or_with_every_backslash_twice_it_would_be_another(wrong):
    def survives(value):
        try:
            return read_back(wrong(value)) == value
        except (
            Exception
        ):  # Hydra's parser, its lexer and OmegaConf refuse in ways of their own: all are "did not survive"
            return False

    assert not all(map(survives, HOSTILE))


def test_text_that_reads_as_a_number_is_one_and_what_no_command_line_can_say_is_refused():
    assert read_back(written(yaml.safe_load("1e-3"))) == 0.001  # a text to YAML 1.1
    for value, said in (({1: 2}, "names as keys, got 1"), ({"a b": 2}, "got 'a b'"), (object(), "object")):
        with pytest.raises(Refused, match=said):
            written(value)


def test_under_an_agent_a_value_is_what_the_file_says_too():
    varied = {"a": None, "b": "x,y", "c": [1, "it's"], "d": {"e": "f g", "h": {"i": False}}, "k": 1e-05, "l": "gmi"}
    told = ["dataset=toy", *agents_words(varied)]
    read = {o.key_or_group: o.value() for o in PARSER.parse_overrides(as_swept(told, varied))}
    flat = {"a": None, "b": "x,y", "c": [1, "it's"], "d.e": "f g", "d.h.i": False, "k": 1e-05, "l": "gmi"}
    assert read == {"dataset": "toy", **flat}
    assert as_swept(told, {}) == told, "no agent"


def test_a_configuration_holds_what_a_file_says_both_ways(file):
    """From the file to the configuration that the verb is given, here and under an agent."""
    varied = {"tracking.tags": HOSTILE, "tracking.project": "a,b [c] 'd'"}
    sweep = read_sweep(file(parameters={key: {"values": [value, 1]} for key, value in varied.items()}))
    ours = [f"{key}={value}" for key, value in next(sweep.points())]
    for words in (ours, as_swept(agents_words(varied), varied)):
        config, _ = compose("train_target", ["dataset=toy", *words])
        assert (config["tracking"]["tags"], config["tracking"]["project"]) == tuple(varied.values())


def test_a_verb_that_an_agent_started_takes_null_for_null(call, store, tmp_path, monkeypatch):
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, "recipe.clip_norm": {"value": None}}))
    words = [
        "dataset=toy",
        "architecture=mlp",
        "tracking=none",
        "missing=plan",
        f"store={store}",
        "recipe.clip_norm=None",
    ]
    assert call("train_target", *words)[0] == 2, "a text"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(parameters))
    code, said, errors = call("train_target", *words)
    assert code == 0 and "training the target" in said, errors


def agents_words(varied):
    """What W&B's agent puts in the place of `${args_no_hyphens}`; `test_every_point_of_a_sweep_of_ours_composes` asks
    W&B itself."""
    return [f"{key}={value}" for key, value in varied.items()]


# ------------------------------------------------------------------------------------------------ the file


@pytest.fixture
def file(tmp_path):
    """`file(**keys)`: the path of a sweep's file that says them, None leaves one out."""

    def make(**keys):
        said = {"program": "train_target.py", "method": "grid", "command": COMMAND}
        said |= {"parameters": {"defense": {"values": ["none", "mixup"]}}, **keys}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in said.items() if value is not None}))
        return path

    return make


def test_a_grid_has_every_combination_and_constants_are_words_of_all(file):
    parameters = {
        "defense": {"values": ["none", "mixup"]},
        "recipe": {"parameters": {"epochs": {"min": 1, "max": 3}, "optimizer": {"value": {"lr": 0.1}}}},
        "evidence.classes": {"value": [0, 1]},
    }
    sweep = read_sweep(file(parameters=parameters, project="p q", run_cap=5), ["dataset=digits", "seed=3"])
    assert sweep.verb == "train_target" and sweep.name == "sweep"
    assert set(sweep.words) == {
        "tracking.project='p q'",
        "recipe.optimizer.lr=0.1",
        "evidence.classes=[0,1]",
        "dataset=digits",
        "seed=3",
    }, "the user's own words replace the file's"
    grid = [dict(point) for point in read_sweep(file(parameters=parameters)).points()]
    assert grid == [{"defense": d, "recipe.epochs": str(n)} for d, n in itertools.product(("none", "mixup"), (1, 2, 3))]
    assert [dict(point) for point in sweep.points()] == grid[:5]


def test_random_points_depend_on_the_seed_and_not_on_how_many_there_are(file):
    parameters = {
        "a": {"min": 1, "max": 4},
        "b": {"min": 0.5, "max": 2.0},
        "c": {"min": 1e-4, "max": 1, "distribution": "log_uniform_values"},
        "d": {"values": ["x", "y,z"]},
    }
    path = file(method="random", parameters=parameters, run_cap=400)
    drawn = [dict(point) for point in read_sweep(path).points()]
    assert len(drawn) == 400 and [dict(point) for point in read_sweep(path, most=7).points()] == drawn[:7]
    assert [dict(point) for point in read_sweep(path, seed=1).points()] != drawn
    assert {point["a"] for point in drawn} == {"1", "2", "3", "4"} and {p["d"] for p in drawn} == {"x", "'y,z'"}
    numbers = {key: [float(point[key]) for point in drawn] for key in "bc"}
    assert 0.5 <= min(numbers["b"]) < 0.55 and 1.95 < max(numbers["b"]) <= 2
    assert 0.4 < sum(number < 1e-2 for number in numbers["c"]) / 400 < 0.6, "half of them in the lower two decades"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("train_target.py", COMMAND),
        ("./train_target.py", COMMAND),
        (None, ["midefense", "train", COMMAND[-1]]),
        (None, ["${env}", "python", "-m", "midefense", "train", COMMAND[-1]]),
        (None, ["${env}", "${interpreter}", "-m", "midefense.commands.train_target", COMMAND[-1]]),
    ],
)
def test_the_verb_is_named_as_it_is_started(file, program, command):
    assert read_sweep(file(program=program, command=command)).verb == "train_target"


def test_whatever_is_no_sweep_of_ours_is_refused_by_name(file, tmp_path):
    def refused(said, **keys):
        with pytest.raises(Refused, match=said):
            read_sweep(file(**keys))

    def parameter(said, **keys):
        refused(rf"parameters\.lr.*{said}", parameters={"lr": keys})

    refused("early_terminate: expected none, as .* no run could be stopped", early_terminate={"type": "hyperband"})
    refused("job: .* name a program", job="x")
    refused("kind: no such key.*choices: ", kind="sweep")
    refused("method: .*choices: grid, random, bayes", method="hyperband")
    refused("program: .*choices: train_target.py, attack.py, evaluate.py", program="train.sh")
    refused("command: expected a list of texts, as W&B's default gives --KEY", command=None)
    refused(r"command: expected \$\{args_no_hyphens\} once", command=["${program}", "${args}"])
    refused("command: expected KEY=VALUE.* got '-m'", command=["${program}", "-m", "${args_no_hyphens}"])
    refused("command: expected KEY=VALUE.* got '.{envvar:X}'", command=["${program}", "${envvar:X}", COMMAND[-1]])
    refused("store: expected it as --store", command=["${program}", "store=x", COMMAND[-1]])
    refused("store: expected it as --store", parameters={"store": {"values": ["x", "y"]}})
    refused("store: expected it as --store", parameters={"store": {"value": "x"}, "seed": {"values": [0]}})
    with pytest.raises(Refused, match="store: expected it as --store"):
        read_sweep(file(), ["++store=x"])
    refused("metric: expected the number that bayes", method="bayes", run_cap=3)
    refused("metric.target: ", metric={"name": "loss", "target": 0.1})
    refused("metric.goal: .*choices: minimize, maximize", metric={"name": "loss", "goal": "less"})
    refused("run_cap: expected how many points", method="random")
    refused("run_cap: expected a whole number of at least 1, got 0", run_cap=0)
    refused("parameters: expected what is varied", parameters={})
    refused("parameters: expected one or more that are varied", parameters={"a": {"value": 1}})
    parameter("q: no such key", distribution="q_uniform", min=0, max=1, q=0.1)
    parameter("probabilities: no such key", values=[1, 2], probabilities=[0.1, 0.9])
    parameter("distribution: .*choices: constant, categorical, uniform", distribution="normal")
    parameter("expected value, values, or numbers as min and max", min=1)
    parameter("LOW below HIGH", min=2, max=1)
    parameter("above 0 on a logarithmic scale", min=0, max=1, distribution="log_uniform_values")
    parameter("in a grid, got all numbers from 0.1 to 0.5", min=0.1, max=0.5)
    parameter("each value once", values=[1, 1])
    parameter("at most 10,000 of them in a grid, got all whole numbers from 1 to 10001", min=1, max=10001)
    parameter("expected value alone, got values beside it", value=1, values=[1, 2])
    parameter("expected parameters alone, got max, min beside it", parameters={"a": {"value": 1}}, min=1, max=2)
    parameter("names as keys", values=[{1: 2}])
    with pytest.raises(Refused, match=r"defense=none: .* got one that it varies"):
        read_sweep(file(), ["defense=none"])
    assert "defense.p=0.5" in read_sweep(file(), ["defense.p=0.5"]).words, "within what is varied"
    for name, text in (("no.yaml", None), ("list.yaml", "[1]"), ("broken.yaml", "a: [")):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(Refused, match=name):
            read_sweep(path)


# ------------------------------------------------------------------------------------------------ those that we ship


@pytest.mark.parametrize("path", FILES, ids=called)
def test_a_sweep_of_ours_is_read_and_names_what_there_is(path):
    sweep = read_sweep(path)
    assert sweep.words and sweep.space
    for key, one in sweep.space.items():
        if isinstance(one, Choice) and key in groups_of(sweep.verb):
            assert {value for value in one.values if not (CONF / key / f"{value}.yaml").is_file()} <= PSEUDO
    assert f"midefense sweep sweeps/{called(path)}.yaml" in path.read_text(), "its header says how it is run"


def varied_values(path):
    """Key and value of everything that a shipped file names, as YAML reads it."""
    said = yaml.safe_load(path.read_text())["parameters"]
    return [(key, value) for key, one in said.items() for value in one.get("values", ())]


@pytest.mark.parametrize("path", FILES, ids=called)
def test_the_values_of_a_sweep_of_ours_survive_both_ways(path):
    """As a word that we write, and as the word that an agent writes and the verb then reads."""
    for key, value in varied_values(path):
        (agents,) = as_swept(agents_words({key: value}), {key: value})
        assert read_back(written(value)) == value and agents == f"{key}={written(value)}"


# Their setups are composed by tests/test_experiments.py on every run.
PUBLISHED = ("midre_grid_224", "midre_grid_64", "midre_grid_64_erased", "bido_lambdas", "bido_coco_mnist")


@pytest.mark.parametrize("path", [path for path in GRIDS if path.stem not in PUBLISHED], ids=called)
def test_a_point_of_a_grid_of_ours_composes(path, tmp_path):
    """One of each file, from its midst; all of them on slow runs."""
    sweep = read_sweep(path)
    points = list(sweep.points())
    middle = Point(len(points) // 2, tuple(f"{key}={value}" for key, value in points[len(points) // 2]))
    planned = Runner(sweep, str(tmp_path / "store"), 1, Lines(0))._plan(middle)
    assert planned.plan is not None, planned.reason


@pytest.mark.parametrize("path", SEARCHES, ids=called)
def test_a_search_varies_options_of_its_defense_alone(path):
    sweep, said = read_sweep(path), yaml.safe_load((CONF / "defense" / f"{path.stem}.yaml").read_text())
    assert f"defense={path.stem}" in sweep.words and (sweep.method, sweep.most) == ("bayes", 30)
    assert {key.removeprefix("defense.") for key in sweep.space} <= set(said) | {"keep", "rest"}
    assert (sweep.metric, sweep.maximised) == ("utility_minus_attack/main", True)


def test_the_grids_of_midre_are_the_commands_of_its_setups():
    """44 setups, undefended and at two erased areas: what their headers run, places of files apart."""
    asked = set()
    for file in sorted((CONF / "experiment" / "midre").glob("*.yaml")):
        lines = [line[2:] for line in file.read_text().splitlines() if line.startswith("# python evaluate.py ")]
        assert len(lines) == 3, file
        for line in lines:
            words = [word for word in shlex.split(line)[2:] if "root=" not in word]
            asked.add(frozenset(words if len(words) > 1 else [*words, "defense=none"]))
    strong = {
        "defense=random_erasing_strong": "defense.scale=[0.1,0.8]",
        "defense=random_erasing": "defense.scale=[0.1,0.4]",
    }
    there = []
    for name in ("midre_grid_224", "midre_grid_64", "midre_grid_64_erased"):
        sweep = read_sweep(ROOT / "sweeps" / f"{name}.yaml")
        for point in sweep.points():
            words = {*sweep.words, *(f"{key}={value}" for key, value in point)} - {"tracking=auto"}
            (defense,) = words & {"defense=none", *strong}
            if not any(word.startswith("defense.scale=") for word in words) and defense in strong:
                words = words - {defense} | {"defense=random_erasing", strong[defense]}
            there.append(frozenset(words))
    assert len(there) == len(set(there)) == 132 and set(there) == asked
    reduced = read_sweep(ROOT / "sweeps" / "midre_grid_reduced.yaml").space
    assert len(reduced["architecture"].values) * len(reduced["attack"].values) >= 37


# Defenses that are not in the matrix, and why.
AT_RELEASE = "acts on released features, which attacks on classes never see"
RELEASING = [
    "adversarial_learning",
    "crafter",
    "crafter_small",
    "crafter_z",
    "disco",
    "feature_laplace",
    "feature_noise",
]
RELEASING += ["feature_pruning", "feature_quantisation"]
LEFT_OUT = {
    **dict.fromkeys(RELEASING, AT_RELEASE),
    "rolss": "removes skip connections, which `cnn` has not",
    "tl_dmi": "wants a network to start from",
    "stack": "is no defense by itself",
}


@pytest.mark.parametrize("dataset", ["digits", "synthetic_faces"])
def test_the_matrix_has_every_defense_or_says_why_not(dataset):
    files = [path for path in FILES if path.stem.startswith(f"defense_matrix_{dataset}")]
    listed = [one.values for path in files for key, one in read_sweep(path).space.items() if key == "defense"]
    alone = [word for path in files for word in read_sweep(path).words if word.startswith("defense=")]
    there = [*itertools.chain(*listed), *(word.removeprefix("defense=") for word in alone)]
    assert sorted([*there, *LEFT_OUT]) == sorted(path.stem for path in (CONF / "defense").glob("*.yaml"))


# Defenses without a search of their own beside those that the matrix leaves out, and why.
ERASES = "is random_erasing with another `location` or `scale`, which its search varies"
NOT_SEARCHED = {
    **dict.fromkeys(["random_erasing_strong", "torus_erasing", "fixed_erasing", "boundary_erasing"], ERASES),
    "none": "has no option",
    "label_only": "has no option: it is output_top_k of one",
}


def test_every_defense_has_a_search_or_says_why_not():
    left_out = {*LEFT_OUT, *NOT_SEARCHED} - {"rolss"}  # its search takes a network that has skip connections
    there = [path.stem for path in SEARCHES]
    assert sorted([*there, *left_out]) == sorted(path.stem for path in (CONF / "defense").glob("*.yaml"))


PSEUDO = {"adaptive", "adaptive_small"}  # what `plan.adaptive` puts as an attack's name


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=called)
def test_every_point_of_a_sweep_of_ours_composes(path, tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = read_sweep(path)
    for key, value in varied_values(path):
        words = create_sweep_command_args({"args": {key: {"value": value}}})
        assert words["args_no_hyphens"] == agents_words({key: value})
    runner = Runner(sweep, str(tmp_path / "store"), 1, Lines(0))
    planned = runner.planned()  # raises where a point does not compose
    assert len(planned) == len(list(sweep.ends() if sweep.method == "bayes" else sweep.points()))
    refused = {one.reason for one in planned if one.plan is None}
    assert not [reason for reason in refused if "no such option" in reason]


# ------------------------------------------------------------------------------------------------ carried out

PROGRAM = '''"""What a point's process does, by its word `act`; what it leaves is its artefact."""
import os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[2:])
place = pathlib.Path(words["store"]) / "made" / "-".join(f"{k}={v}" for k, v in words.items() if k != "store")
with open(pathlib.Path(words["store"]) / "started", "a") as file:
    file.write(f"{place.name} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
def asked(*_):
    (pathlib.Path(words["store"]) / f"asked {place.name}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, asked)
print("working", flush=True)
if words["act"] == "slow":
    time.sleep(60)
if words["act"] == "raise":
    raise RuntimeError("boom")
if words["act"] == "die":
    os.kill(os.getpid(), 9)
if words["act"] == "tell":
    print("refused: lr: too large", file=sys.stderr)
    sys.exit(2)
if words["act"] != "forget":
    place.parent.mkdir(exist_ok=True)
    place.touch()
'''


class Doubled(Runner):
    """A runner whose plans and store are files."""

    def _plan(self, point):
        words = dict(word.split("=", 1) for word in point.words)
        if words["act"] == "refuse" or words.get("n") == "never":
            return Planned(point, {"defense": "x"}, reason="these two do not go together")
        return Planned(point, {"defense": "x"}, types.SimpleNamespace())

    def agenda(self, planned):
        words = "-".join((*self.sweep.words, *planned.point.words))
        found = (self.folder.parents[1] / "made" / words).exists()
        item = types.SimpleNamespace(artefact=self.artefact(planned), found=found)
        return types.SimpleNamespace(items=[item], missing=[] if found else [item])

    def artefact(self, planned):
        return types.SimpleNamespace(reference=f"target/{planned.point.label}", kind="target", metrics={"loss": 1.0})


@pytest.fixture
def doubled(tmp_path, file, monkeypatch):
    """`doubled(workers, **parameters)`: a runner over a grid of them."""
    (tmp_path / "stub" / "midefense").mkdir(parents=True)
    (tmp_path / "stub" / "midefense" / "__main__.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    monkeypatch.setattr("midefense.studies.sweep.POLL_SECONDS", 0.02)
    (tmp_path / "store").mkdir()

    def make(workers=2, kind=Doubled, **parameters):
        varied = {key: {"values": values} for key, values in parameters.items()}
        return kind(read_sweep(file(parameters=varied)), str(tmp_path / "store"), workers, Lines(0))

    return make


def started(tmp_path):
    return [
        line.split()[0].removeprefix("dataset=toy-")
        for line in (tmp_path / "store" / "started").read_text().splitlines()
    ]


def test_a_sweep_goes_through_its_points_whatever_becomes_of_one(doubled, tmp_path, capsys):
    runner = doubled(act=["ok", "raise", "die", "tell", "forget", "refuse"], n=[1, 2])
    ended = run(runner, refuse=True)
    assert [ended[f"act={act} n=1"].state for act in ("ok", "raise", "die", "tell", "forget", "refuse")] == [
        FINISHED,
        *[FAILED] * 4,
        REFUSED,
    ]
    assert len(ended) == 12 and sorted(started(tmp_path)) == sorted(
        f"act={act}-n={n}" for act in ("ok", "raise", "die", "tell", "forget") for n in (1, 2)
    )
    reasons = {act: ended[f"act={act} n=2"].reason for act in ("raise", "die", "tell", "forget", "refuse")}
    assert "RuntimeError: boom (" in reasons["raise"] and "__main__.py, line 15, in <module>)" in reasons["raise"]
    assert reasons["die"] == "working; ended by SIGKILL" and "left nothing in the store" in reasons["forget"]
    assert reasons["tell"] == "refused: lr: too large; exit code 2"
    assert reasons["refuse"] == "these two do not go together"
    lines = summary(runner.outcomes, "S")
    assert lines[-1].startswith("2 finished (0 were there), 2 refused, 8 failed; see them: midefense report --store S")
    again = f"         again: midefense train dataset=toy act=raise n=1 store={tmp_path / 'store'}"
    boom = lines[lines.index(f"failed   act=raise n=1: {ended['act=raise n=1'].reason}") :]
    assert (
        boom[1].strip() == "Traceback (most recent call last):" and "RuntimeError: boom" in boom[boom.index(again) - 2]
    )
    assert again in lines and Path(ended["act=raise n=1"].log).read_text().startswith("$ midefense train dataset=toy")
    assert {read(path).label for path in files(tmp_path / "store")} == set(ended), "all are written down"
    assert "begun    act=ok n=1 (worker 1)" in capsys.readouterr().out


def run(runner, refuse=False):
    """Carry out a sweep; the outcomes by label."""
    planned = [runner._plan(point) for point in runner.points()] if refuse else runner.planned()
    return {outcome.label: outcome for outcome in runner.run(planned)}


def test_what_is_there_is_not_done_again_and_what_failed_is(doubled, tmp_path):
    run(doubled(act=["ok", "raise"], n=[1, 2]))
    once = started(tmp_path)
    ended = run(doubled(act=["ok", "raise"], n=[1, 2]))
    assert sorted(started(tmp_path)[len(once) :]) == ["act=raise-n=1", "act=raise-n=2"]
    assert ended["act=ok n=1"].seconds == 0 and ended["act=ok n=1"].state == FINISHED
    log = Path(ended["act=raise n=1"].log).read_text()
    assert log.count("$ midefense") == 2


def test_a_sweep_that_is_left_ends_its_processes_and_goes_on(doubled, tmp_path):
    class Ended(BaseException):
        """As Ctrl-C."""

    class Left(Lines):
        def still(self, working):
            if len(working) == 2 and all(one.said == "working" for one in working):
                self.pids = [one.process.pid for one in working]
                raise Ended

    runner = doubled(act=["slow"], n=[1, 2, 3])
    runner.board = Left(3)
    with pytest.raises(Ended):
        run(runner)
    for pid in runner.board.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert runner.outcomes == [] and not list(runner.folder.glob("claims/*"))
    assert len(list((tmp_path / "store").glob("asked *"))) == 2, "each wrote down how far it came"
    for n in (1, 2, 3):
        (tmp_path / "store" / "made").mkdir(exist_ok=True)
        (tmp_path / "store" / "made" / f"dataset=toy-act=slow-n={n}").touch()
    assert {one.state for one in run(doubled(act=["slow"], n=[1, 2, 3])).values()} == {FINISHED}


def test_outcomes_call_parts_as_rows_do(doubled, tmp_path):
    runner = doubled(act=["ok", "refuse"])
    runner._called = {("defense", "x"): "as rows say"}
    ended = run(runner, refuse=True)
    assert {one.names["defense"] for one in ended.values()} == {"as rows say"}


def test_a_point_that_another_process_works_on_is_left_to_it(doubled, tmp_path):
    runner = doubled(act=["ok"], n=[1, 2])
    with claim(runner.folder / "claims" / Point(0, ("act=ok", "n=1")).id) as ours:
        assert ours
        assert set(run(runner)) == {"act=ok n=2"} and runner.elsewhere == 1


def test_a_point_that_is_drawn_twice_is_one_point(doubled, tmp_path, file):
    doubled(n=[1])
    drawn = {"act": {"values": ["ok"]}, "n": {"values": [1, 2]}}
    sweep = read_sweep(file(method="random", parameters=drawn, run_cap=12))
    runner = Doubled(sweep, str(tmp_path / "store"), 2, Lines(0))
    assert set(run(runner)) == {"act=ok n=1", "act=ok n=2"} and len(runner.outcomes) == 2
    assert runner.elsewhere == 0, "nobody else is at work"


def test_a_point_whose_images_went_away_meanwhile_stops_no_other(doubled):
    looked = []

    class Lost(Doubled):
        def agenda(self, planned):
            looked.append(planned.point.label)
            if looked == ["act=ok n=1"] * 2:  # the look at what its process left
                raise Refused("no such folder")
            return super().agenda(planned)

    ended = run(doubled(workers=1, kind=Lost, act=["ok"], n=[1, 2]))
    assert (ended["act=ok n=1"].state, ended["act=ok n=1"].reason) == (FAILED, "no such folder")
    assert ended["act=ok n=2"].state == FINISHED


def test_each_worker_has_a_device_of_its_own(doubled, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert [handed_out(worker, 3)["CUDA_VISIBLE_DEVICES"] for worker in range(3)] == ["5", "7", "5"]
    run(doubled(act=["ok"], n=[1, 2, 3, 4]))
    given = [line.split()[1] for line in (tmp_path / "store" / "started").read_text().splitlines()]
    assert {"5", "7"} == set(given) and given[0] != given[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert set(handed_out(0, 2)) == {"OMP_NUM_THREADS"} and handed_out(0, 1) == {}


def test_a_value_that_no_point_can_have_is_refused_before_anything_runs(doubled, tmp_path):
    with pytest.raises(Refused, match=r"n=never: .* refused in all 2 points, first act=ok n=never: these two"):
        run(doubled(act=["ok", "raise"], n=[1, "never"]))
    assert not (tmp_path / "store" / "started").exists()


def test_a_search_learns_of_each_trial_and_shares_its_study(doubled, tmp_path, file):
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'midefense[tune]'")

    class Bowl(Doubled):
        def artefact(self, planned):
            lr = float(dict(word.split("=") for word in planned.point.words)["lr"])
            metrics = {"loss": (lr - 3) ** 2, "best": True}
            return types.SimpleNamespace(reference="target/x", kind="target", metrics=metrics)

    space = {"lr": {"min": 1, "max": 9}, "act": {"values": ["ok", "raise"]}}
    keys = {"method": "bayes", "parameters": space, "metric": {"name": "loss"}, "run_cap": 6}
    doubled(n=[1])

    def search(most=None, **changes):
        sweep = read_sweep(file(**{**keys, **changes}), most=most)
        runner = Bowl(sweep, str(tmp_path / "store"), 2, Lines(0))
        return runner, run(runner)

    runner, _ = search(4)
    trials, at_work = runner._search.over()
    assert (
        len(trials) == 4 and at_work == 0 and all(trial.refused for trial in trials if trial.values["act"] == "raise")
    )
    measured = [trial for trial in trials if not trial.refused]
    assert measured and all(trial.value == (float(trial.values["lr"]) - 3) ** 2 == -trial.merit for trial in measured)
    runner, _ = search()
    assert len(runner._search.over()[0]) == 6 and len(runner.outcomes) == 2, "it goes on where it ended"
    with pytest.raises(Refused, match="metric.name: .*choices: best, loss"):
        search(metric={"name": "los"})


def test_numbers_of_a_result_have_the_names_that_wandb_shows():
    metrics = {"a/main": {"value": 0.5, "low": 0.4, "high": None}, "b": {"value": None, "low": None, "high": None}}
    made = types.SimpleNamespace(kind="result", metrics={"metrics": metrics, "anchors": {"real": {"a/main": 0.9}}})
    numbers = numbers_in(made)
    assert {key: numbers[key] for key in ("a/main", "a/main/low", "a/main/real")} == {
        "a/main": 0.5,
        "a/main/low": 0.4,
        "a/main/real": 0.9,
    }
    assert numbers["b"] != numbers["b"] and not [name for name in numbers if name.startswith("utility_minus")]


def test_a_search_can_ask_for_what_is_kept_beyond_the_attack():
    def number(value):
        return {"value": value, "low": None, "high": None}

    measured = {"utility/test_accuracy_top1": 0.9, "attack_accuracy_top1/main": 0.6, "attack_accuracy_top1/face": 0.95}
    metrics = {name: number(value) for name, value in measured.items()}
    made = types.SimpleNamespace(kind="result", metrics={"metrics": metrics, "anchors": {}})
    told = {name: value for name, value in numbers_in(made).items() if name.startswith("utility_minus_attack")}
    assert told == pytest.approx({"utility_minus_attack/main": 0.3, "utility_minus_attack/face": -0.05})


def test_last_words_are_those_of_the_last_process():
    old = '$ midefense train a=1\nTraceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: old\n'
    assert last_words(f"{old}$ midefense train a=1\nstopped: now\n", 5) == "stopped: now; exit code 5"
    assert last_words(old, 1) == "ValueError: old (x.py, line 1, in f); exit code 1"
    assert last_words("$ midefense train a=1\n", -15) == "it said nothing; ended by SIGTERM"
    assert last_traceback(f"{old}$ midefense train a=1\nstopped: now\n") == []
    cause = (
        'Traceback (most recent call last):\n  File "y.py", line 2, in g\nKeyError: 1\n\nThe above exception ...:\n\n'
    )
    assert last_traceback(f"$ midefense train\n{cause}{old.partition(chr(10))[2]}failed: nobody\n") == [
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in f',
        "ValueError: old",
    ]


# ------------------------------------------------------------------------------------------------ the command


def test_on_a_terminal_a_line_for_each_worker_stays_below_what_is_over(capsys):
    table, point = Table(2), Point(0, ("act=ok", "n=\x1b[2J"))
    working = types.SimpleNamespace(
        worker=1, planned=Planned(point, {}), seconds=61.0, said="2/3 training the target: step 5 of 9"
    )
    table.begun(working)
    table.still([working])
    table.over(0, Outcome(point.label, FINISHED, seconds=70.0))
    table.still([])
    table.close()
    out, errors = capsys.readouterr()
    assert out == "finished act=ok n=\\x1b[2J after 70 s [1/2]\n", "what others wrote moves no cursor"
    assert "2: act=ok n=\\x1b[2J · 61 s · 2/3 training the target: step 5 of 9" in errors and "1/2" in errors


def test_a_terminal_that_closes_ends_the_processes_too(doubled, tmp_path, monkeypatch, capsys):
    """They are in sessions of their own, which hear nothing of it."""
    doubled(act=["slow"], n=[1])
    monkeypatch.setattr("midefense.studies.sweep.Runner", Doubled)
    closed = []
    # in the place of the end that a signal nobody hears would be for the tests themselves
    before = {number: signal.getsignal(number) for number in HOW}
    signal.signal(signal.SIGHUP, lambda *_: closed.append("unheard"))

    def still(self, working):
        assert not closed, "nobody hears SIGHUP"
        if "working" in working[0].said:
            os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(Lines, "still", still)
    try:
        with pytest.raises(SystemExit) as end:
            main(["sweep", str(tmp_path / "sweep.yaml"), "--store", str(tmp_path / "store")])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == 129 and "preempted; continue with" in capsys.readouterr().err
    assert len(list((tmp_path / "store").glob("asked *"))) == 1


@pytest.fixture
def heard():
    """Ctrl-C is heard, also where whoever started the tests had it ignored (`&` in a script)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_command_and_the_same_command_goes_on(doubled, tmp_path, monkeypatch, capsys, heard):
    doubled(act=["slow"], n=[1, 2])  # writes the file
    monkeypatch.setattr("midefense.studies.sweep.Runner", Doubled)
    asked = []

    def still(self, working):
        if len(working) == 2 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    monkeypatch.setattr(Lines, "still", still)
    words = ["sweep", str(tmp_path / "sweep.yaml"), "--workers", "2", "--store", str(tmp_path / "store")]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 130
    assert capsys.readouterr().err.strip() == f"interrupted; continue with: midefense {' '.join(words)}"
    (tmp_path / "store" / "made").mkdir()
    for n in (1, 2):
        (tmp_path / "store" / "made" / f"dataset=toy-act=slow-n={n}").touch()
    assert main(words) == 0 and "2 finished (2 were there)" in capsys.readouterr().out


def test_the_command_plans_and_refuses(file, store, capsys):
    command = [*COMMAND[:3], "dataset=toy", "architecture=mlp", "tracking=none", COMMAND[-1]]
    path = file(command=command, run_cap=9)
    assert main(["sweep", str(path), "--plan", "--store", str(store)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        said[0].startswith("sweep sweep (h")
        and ": 2 points, " in said[0]
        and said[1:]
        == [
            "missing  defense=none: training the target",
            "missing  defense=mixup: training the target",
        ]
    )
    assert main(["sweep", str(path), "dataset=tory", "--store", str(store)]) == 1
    assert "refused: defense=none: dataset/tory: no such option" in capsys.readouterr().err
    assert not list(store.glob("target/*"))


REAL = [
    "dataset=toy",
    "architecture=mlp",
    "architecture.widths=[16]",
    "recipe.epochs=1",
    "tracking=none",
    "compute=cpu",
]


def attempts(store):
    """How often each finished target was begun."""
    said = [yaml.safe_load(path.read_text()) for path in store.glob("runs/train_target/*/status.json")]
    return [one["attempt"] for one in said if one["state"] == "finished"]


@pytest.mark.slow
def test_a_real_sweep_ended_by_ctrl_c_and_killed_finishes_without_doing_anything_twice(file, store, tmp_path, heard):
    parameters = {"recipe.optimizer.lr": {"values": [0.01, 0.02, 1e30, 0.03]}}
    path = file(command=[*COMMAND[:3], *REAL, COMMAND[-1]], parameters=parameters)
    command = [sys.executable, "-m", "midefense", "sweep", str(path), "--store", str(store), "--workers", "2"]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)

    def until_finished(process):
        return next(line for line in process.stdout if line.startswith("finished") and " after " in line)

    asked = start()
    until_finished(asked)
    asked.send_signal(signal.SIGINT)
    _, errors = asked.communicate(timeout=120)
    assert asked.returncode == 130 and f"interrupted; continue with: midefense sweep {path}" in errors
    killed = start()
    until_finished(killed)
    killed.kill()
    killed.communicate()
    last = start()
    said, errors = last.communicate(timeout=400)
    assert last.returncode == 1, errors
    assert "3 finished (" in said and ", 1 failed; see them: midefense report" in said
    assert said.count("training diverged") == 2 and said.count("         again: midefense train ") == 1
    assert attempts(store).count(1) >= 2 and len(attempts(store)) == 3, "what was finished was not done again"


# ------------------------------------------------------------------------------------------------ thirty-seven points

FAULTY = (5, 17, 29)  # thousandths of a learning rate
PLANTED = f"""
import torch
class Adam(torch.optim.Adam):
    steps = 0
    def step(self, closure=None):
        self.steps += 1  # planning tries one
        if self.steps > 1 and round(1000 * self.defaults["lr"]) in {FAULTY}:
            raise RuntimeError(f"planted at {{self.defaults['lr']}}")
        return super().step(closure)
"""
TINY = ["architecture.widths=[4]", "dataset.size=8", "dataset.images_per_class=4", "dataset.test_images_per_class=2"]
TINY += ["recipe.batch_size=8"]


def made(store):
    """When each file of each target was written."""
    targets = Store(store).list("target")
    return {path: path.stat().st_mtime_ns for target in targets for path in target.path.iterdir()}


@pytest.mark.slow
def test_a_sweep_of_37_points_killed_twice_finishes_and_three_that_fail_stop_none(file, store, tmp_path, monkeypatch):
    (tmp_path / "planted_optimizer.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    words = [*REAL, *TINY, "allow=[planted_optimizer]", "recipe.optimizer._target_=planted_optimizer.Adam"]
    rates = [number / 1000 for number in range(1, 38)]
    path = file(command=[*COMMAND[:3], *words, COMMAND[-1]], parameters={"recipe.optimizer.lr": {"values": rates}})
    command = [sys.executable, "-m", "midefense", "sweep", str(path), "--store", str(store), "--workers", "2"]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)

    kept = {}
    for finished in (6, 14):  # behind the first failure, and before the last
        process = start()
        said = (line for line in process.stdout if line.startswith("finished"))
        list(itertools.islice(said, finished))
        process.kill()
        process.communicate()
        kept |= made(store)
        assert len({path.parent for path in kept}) >= finished
    said, errors = start().communicate(timeout=580)
    assert ", 3 failed; see them: midefense report" in said and "34 finished (" in said, errors
    assert kept == {path: when for path, when in made(store).items() if path in kept}, "nothing was made again"
    ends = said[said.rindex("failed   recipe.optimizer.lr=0.005") :]
    for number in FAULTY:
        one = ends[ends.index(f"failed   recipe.optimizer.lr={number / 1000}: ") :]
        assert f"RuntimeError: planted at {number / 1000} (" in one.splitlines()[0]
        trace, _, rest = one.partition("         log: ")
        assert "Traceback (most recent call last):" in trace and "planted_optimizer.py" in trace
        assert f"again: midefense train {' '.join(words[:1])}" in rest
    once = [tries for tries in attempts(store) if tries == 1]
    assert len(attempts(store)) == 34 and len(once) >= 30, "each kill costs the two that were at work, at most"
