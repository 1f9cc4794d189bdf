"""Search for an attack's options on a shadow: what is read of the command line, what the shadow may hold, the study and
its resumption, and what never looks at private images."""

import math
import multiprocessing
import sys
import types

import pytest
import torch

from midefense.commands.main import main
from midefense.plan.compose import spaces_of
from midefense.plan.spaces import Choice, Interval
from midefense.store.claims import claim
from midefense.store.store import Store
from midefense.studies import tuning as module
from midefense.studies.names import PRIVATE
from midefense.studies.search import suggested
from midefense.studies.shadow import require_apart, shadow_words
from midefense.studies.tuning import Report, Tuning, read_tuning, report_of, tune
from midefense.types import Diverged, Images, Refused

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'midefense[tune]'")

QUICK = (
    "dataset=digits",
    "dataset.size=8",
    "dataset.images_per_class=3",
    "architecture=homogeneous_mlp",
    "architecture.size=8",
    "architecture.widths=[16]",
    "architecture.first_deviation=0.01",
    "recipe=kkt",
    "recipe.epochs=20",
    "attack=kkt_small",
    "attack.steps=4",
    "attack.candidates=4",
    "metrics=matched",
    "metrics.matched.nulls=1",
    "metrics.unexplained.draws=1",
    "evaluators.main.architecture.widths=[4,4]",
    "evaluators.main.architecture.features=4",
    "evaluators.main.recipe.epochs=1",
    "judge_at_chance=true",
    "tracking=none",
    "compute=cpu",
    "compute.threads=1",
)
RANGE = "attack.deviation=tag(log,interval(0.01,0.5))"


# What the command line leaves open


def test_ranges_are_read_as_hydras_sweeps_write_them():
    words = [
        "dataset=digits",
        RANGE,
        "attack.candidates=int(interval(5,20))",
        "attack.stationarity.mean=choice(true,false)",
    ]
    fixed, space = spaces_of("evaluate", [*words, "attack=kkt,kkt_small", "evidence.classes=[0,1]"])
    assert fixed == ["dataset=digits", "evidence.classes=[0,1]"]
    assert space["attack.deviation"] == Interval(0.01, 0.5, log=True)
    assert space["attack.candidates"] == Interval(5, 20) and isinstance(space["attack.candidates"].low, int)
    assert isinstance(space["attack"], Choice) and space["attack"].values == ("kkt", "kkt_small")
    assert len(space["attack.stationarity.mean"].values) == 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("attack.steps=range(1,9)", r"expected interval\(LOW,HIGH\) or choice\(A,B\), got attack.steps=range\(1,9\)"),
        ("attack.deviation=interval(2,1)", "with LOW below HIGH, got 2.0 and 1.0"),
        ("attack.deviation=interval(0,inf)", "with LOW below HIGH"),
        ("attack.deviation=tag(log,interval(0,1))", "above 0 on a logarithmic scale, got from 0.0"),
        ("attack.deviation=choice(1,1)", "two or more different values"),
        ("attack.deviation", "expected KEY=VALUE"),
    ],
)
def test_ranges_that_hold_nothing_are_refused(word, said):
    with pytest.raises(Refused, match=said):
        spaces_of("evaluate", [word])


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        ([], {}, "expected options to search over, got none"),
        (["attack.deviation=interval(-1,0.5)"], {}, r"attack\.deviation"),
        (["attack.deviations=interval(0.1,0.5)"], {}, "no such option"),
        ([RANGE, "seed=3"], {}, "expected them as --seeds and --store"),
        ([RANGE], {"objective": "public"}, "choices: shadow, private_ssim_oracle"),
        (
            [RANGE],
            {"objective": PRIVATE, "shadow": ["dataset=toy"]},
            "expected none for --objective private_ssim_oracle",
        ),
        ([RANGE], {"shadow": ["recipe.epochs=3"]}, "expected words about the data that the attacker owns"),
        ([RANGE], {"shadow": ["dataset.private_classes=[4,5,6]"]}, "share 1 of their identities: '4'"),
        ([RANGE], {"shadow": ["dataset=toy"]}, r"expected images of the target's shape \[1, 8, 8\]"),
        ([RANGE, "target=digits-mlp-none"], {}, r"target|store"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_compute(words, options, said, tmp_path):
    options = {"shadow": [], **options}
    with pytest.raises(Refused, match=said):
        read_tuning([*QUICK, *words], store=str(tmp_path / "store"), **options)
    assert not list((tmp_path / "store").glob("target/*"))


# The shadow


def node(**arguments):
    return types.SimpleNamespace(arguments=arguments, target=dict)


def test_a_shadow_has_the_public_classes_unless_it_is_said_what():
    words = ["dataset=digits", "dataset.size=8", "attack=kkt_small"]
    assert shadow_words(words, [], node(private_classes=[0, 1, 2])) == [*words, "dataset.private_classes=[3,4,5]"]
    assert shadow_words(words, [], node(private_classes=[0, 1, 2, 3, 4, 5, 6])) == [
        *words,
        "dataset.private_classes=[7,8,9]",
    ]
    assert shadow_words(words, ["dataset=mnist", "dataset.root=X"], node()) == [
        "attack=kkt_small",
        "dataset=mnist",
        "dataset.root=X",
    ]
    assert shadow_words(words, ["dataset.size=9"], node()) == ["dataset=digits", "attack=kkt_small", "dataset.size=9"]
    for dataset in (node(private_classes=list(range(9))), node()):
        with pytest.raises(Refused, match="--shadow: expected what data the attacker owns"):
            shadow_words(words, [], dataset)
    with pytest.raises(Refused, match="target=REF: expected the target's parts by name"):
        shadow_words([*words, "target=REF"], [], node(private_classes=[0, 1]))


def splits(first, names=("a", "b"), side=2):
    """Four pictures for training and two for testing, each of one shade, from `first` on."""
    shades = torch.arange(first, first + 6, dtype=torch.uint8)
    pixels = shades[:, None, None, None].expand(6, 1, side, side).clone()
    images = Images(pixels, torch.tensor([0, 0, 1, 1, 0, 1]), torch.arange(6), list(names))
    return types.SimpleNamespace(
        private_train=images.take(torch.arange(4)), private_test=images.take(torch.arange(4, 6))
    )


def test_a_shadow_holds_nothing_private():
    require_apart(splits(0), splits(6), same_source=False)
    require_apart(splits(0), splits(6, names=("c", "d")), same_source=True)
    for private, first in (
        (0, 5),
        (0, 3),
        (6, 2),
    ):  # its training images are private test ones, both, and its test images
        with pytest.raises(Refused, match="expected pictures that are none of the target's, got"):
            require_apart(splits(private), splits(first, names=("c", "d")), same_source=False)
    with pytest.raises(Refused, match="share 1 of their identities: 'B'"):
        require_apart(splits(0), splits(6, names=("c", "B")), same_source=True)
    with pytest.raises(Refused, match="shape"):
        require_apart(splits(0), splits(6, side=3), same_source=False)


# The study, with a bowl in the place of a pipeline


class Bowl:
    """What a pipeline would measure: best at deviation .1, refused above .4, and NaN below .011."""

    asked = []

    def __init__(self, plan):
        deviation = plan["attack.deviation"]
        Bowl.asked.append((deviation, plan["words"], plan["run"]))
        if deviation > 0.4:
            raise Diverged("the search diverged")
        value = math.nan if deviation < 0.011 else -(math.log(deviation / 0.1) ** 2) + plan["run"]
        numbers = {"gain": (value, True), "distance": (-value, False), "neither": (value, None)}
        rows = {name: {"value": v, "higher_leaks": up, "reason": "no interval"} for name, (v, up) in numbers.items()}
        self.result = types.SimpleNamespace(metrics={"metrics": rows})


@pytest.fixture
def bowl(monkeypatch):
    monkeypatch.setattr(module, "Pipeline", Bowl)
    monkeypatch.setattr(Tuning, "plan", planned)
    Bowl.asked = []


def planned(self, words, values, run):
    return {"words": words, "run": run, "attack.deviation": float(values["attack.deviation"])}


def searched(store, metric="gain", runs=(0,), space=None):
    space = {"attack.deviation": Interval(0.01, 0.5, log=True)} if space is None else space
    return Tuning(("a=1",), space, "shadow", ("a=1", "b=2"), metric, runs, str(store))


def test_trials_are_of_the_shadow_and_the_best_is_near_the_best_there_is(bowl, tmp_path):
    tuning = searched(tmp_path)
    report = tune(tuning, 30)
    assert {words for _, words, _ in Bowl.asked} == {("a=1", "b=2")}
    assert len(report.trials) == len(Bowl.asked) == 30
    best = float(report.best.values["attack.deviation"])
    assert 0.07 < best < 0.14 and report.best.value == max(t.value for t in report.trials if not t.refused)
    assert report.command() == f"midefense evaluate a=1 attack.deviation={best!r}"
    assert tune(tuning, 30).trials == report.trials and len(Bowl.asked) == 30, "nothing is done again"
    lower = tune(searched(tmp_path / "lower", "distance"), 30)
    assert 0.07 < float(lower.best.values["attack.deviation"]) < 0.14, "where lower leaks, low is good"


def test_a_mean_over_seeds(bowl, tmp_path):
    report = tune(searched(tmp_path, runs=(0, 1, 2)), 1)
    one = tune(searched(tmp_path / "one"), 1)
    assert [run for _, _, run in Bowl.asked[:3]] == [0, 1, 2]
    same = float(report.trials[0].values["attack.deviation"])
    assert report.trials[0].value == pytest.approx(1 - math.log(same / 0.1) ** 2)
    assert one.trials[0].values != report.trials[0].values, "another study draws others"


def test_trials_that_give_no_number_count_and_say_why(bowl, tmp_path):
    tuning = searched(tmp_path, space={"attack.deviation": Choice(("0.0105", "0.45", "0.2"))})
    report = tune(tuning, 12, sampler="random")
    reasons = {trial.values["attack.deviation"]: trial.refused for trial in report.trials}
    assert reasons == {"0.0105": "no interval", "0.45": "the search diverged", "0.2": ""}
    assert report.best.values == {"attack.deviation": "0.2"} and len(report.trials) == 12
    nothing = tune(searched(tmp_path / "no", space={"attack.deviation": Choice(("0.42", "0.45"))}), 2)
    assert nothing.best is None and len(nothing.trials) == 2


def test_metrics_without_a_direction_or_a_place_in_the_row_are_refused(bowl, tmp_path):
    with pytest.raises(Refused, match="--metric: .*gains.*choices: distance, gain, neither"):
        tune(searched(tmp_path, "gains", space={"attack.deviation": Choice(("0.2", "0.3"))}), 1)
    with pytest.raises(Refused, match="expected a number that says how well an attack does, got neither"):
        tune(searched(tmp_path, "neither", space={"attack.deviation": Choice(("0.2", "0.3"))}), 1)
    with pytest.raises(Refused, match="choices: tpe, random"):
        tune(searched(tmp_path), 1, sampler="grid")


class Ended(BaseException):
    """As a process that is killed."""


@pytest.mark.parametrize("ended_in", [0, 3, 13])
def test_a_study_that_was_ended_goes_on_to_the_same_trials(bowl, tmp_path, monkeypatch, ended_in):
    whole = tune(searched(tmp_path / "whole"), 15)
    tuning = searched(tmp_path / "ended")
    measured = module._measured

    def killed(tuning, place, values):
        if place == ended_in:
            raise Ended
        return measured(tuning, place, values)

    monkeypatch.setattr(module, "_measured", killed)
    with pytest.raises(Ended):
        tune(tuning, 15)
    assert report_of(tuning).at_work == 1
    monkeypatch.setattr(module, "_measured", measured)
    again = tune(tuning, 15)
    assert again.trials == whole.trials and again.at_work == 0


def test_a_trial_that_another_works_on_is_left_to_it(bowl, tmp_path):
    tuning = searched(tmp_path)
    search = tuning.search()
    others = search.study.ask()
    dict(suggested(others, tuning.space))
    with claim(search.claim_of(others.number)) as ours:
        assert ours
        report = tune(tuning, 4)
        assert len(report.trials) == 3 and report.at_work == 1, "it counts as one of the four"
    assert len(tune(tuning, 4).trials) == 4 and report_of(tuning).at_work == 0


def test_another_search_is_another_study(tmp_path):
    one = searched(tmp_path)
    others = [
        searched(tmp_path, metric="distance"),
        searched(tmp_path, runs=(1,)),
        searched(tmp_path, space={"attack.deviation": Interval(0.01, 0.4, log=True)}),
    ]
    assert len({tuning.id for tuning in (one, *others)}) == 4
    assert searched(tmp_path / "elsewhere").id == one.id


def work(store, barrier, results):
    """One of several processes on a study."""
    module.Pipeline, Tuning.plan = Bowl, planned
    barrier.wait()
    told = []
    tune(searched(store), 16, told=told.append)
    results.put([trial.place for trial in told])


def test_several_processes_share_a_study(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=work, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    places = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    report = report_of(searched(tmp_path))
    assert sorted(places[0] + places[1]) == [trial.place for trial in report.trials]
    assert len(report.trials) == 16
    values = [trial.values["attack.deviation"] for trial in report.trials]
    assert len(set(values)) == len(values), "no two draw the same"


def test_without_optuna_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Refused, match=r"pip install 'midefense\[tune\]'"):
        tune(searched(tmp_path), 1)


# The command


def test_the_command_trains_and_attacks_shadows_alone(store, capsys):
    words = ["tune", *QUICK, RANGE, "--store", str(store)]
    assert main([*words, "--trials", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("matched_ssim_gain/train of a shadow") and said[1].startswith("trial 0: 0.")
    assert said[-2].startswith("best of 2 trials: ")
    assert said[-1].startswith("midefense evaluate dataset=digits") and "attack.deviation=0." in said[-1]
    assert RANGE not in said[-1] and "private_classes" not in said[-1], "of the target, not of its shadow"
    kept = Store(store)
    taught = [one for one in kept.list("target") if "homogeneous" in one.name]
    assert [one.recipe["dataset"]["private_classes"] for one in taught] == [[5, 6, 7, 8, 9]]
    assert len(kept.list("recovered")) == 2
    assert main([*words, "--trials", "2"]) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[1:] == said[3:] and len(kept.list("recovered")) == 2, "nothing is done again"


def test_the_originals_way_is_named_for_what_it_is(store, capsys):
    words = ["tune", *QUICK, RANGE, "--store", str(store), "--trials", "1", "--objective", PRIVATE]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "matched_ssim/train of the target" in said
    assert "private_ssim_oracle looked at the private training images: no attacker could find these values" in said
    taught = [one for one in Store(store).list("target") if "homogeneous" in one.name]
    assert [one.recipe["dataset"]["private_classes"] for one in taught] == [[0, 1, 2, 3, 4]]


def test_the_command_says_so_where_others_work_on_all_trials(monkeypatch, capsys, tmp_path):
    tuning = searched(tmp_path)
    monkeypatch.setattr(module, "read_tuning", lambda *given: tuning)
    monkeypatch.setattr(module, "tune", lambda *given: Report(tuning, at_work=1))
    assert main(["tune", RANGE, "--store", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "no trial of 0 gave a number" and said[-2].startswith("1 trials are being worked on elsewhere")


def test_words_that_are_none_are_refused(capsys, tmp_path):
    assert main(["tune", *QUICK, "--store", str(tmp_path / "store")]) == 1
    assert "refused: expected options to search over" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tune", *QUICK, RANGE, "--trials", "0"])
