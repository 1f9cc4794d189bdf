"""What a person is told: before work starts what will be done, and while it goes on where it is."""

import io
import queue
import re
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import plan_for

from midefense import terminal
from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.pipeline import Pipeline
from midefense.store.store import Store
from midefense.terminal import Stage, duration

TOY = ("dataset=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=1", "compute.threads=1")
JUDGE = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=1")
GAN = ("prior=gmi_gan", "prior.width=8", "prior.steps=4", "prior.unit=2", "prior.batch_size=8")
SEARCH = ("attack.search.steps=3",)
GMI = ("attack=gmi", *SEARCH)
POOL = ("attack=pool", "attack.init.size=40", "attack.init.batch_size=16", "attack.init.candidates=4", "attack.group=3")
POOL += ("attack.select.repeats=2", "attack.select.keep=2")
REFERENCE = re.compile(r"\w+/[\w.-]+@h\w{11}")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """A clock that moves when it is told to, in place of the machine's, which others keep busy."""

    now = 0.0

    def monotonic(self):
        return self.now


class Pulse:
    """An event that is waited for in vain whenever a minute passes by hand, in place of one of `threading`."""

    def __init__(self):
        self._answers, self._waiting = queue.Queue(), queue.Queue()

    def wait(self, seconds):
        assert seconds == terminal.PULSE_SECONDS
        self._waiting.put(True)
        return self._answers.get(timeout=300)

    def set(self):
        self._answers.put(True)

    def beat(self):
        """A minute passed; back when all was told that then is."""
        self._waiting.get(timeout=300)
        self._answers.put(False)
        self._waiting.put(self._waiting.get(timeout=300))


@pytest.fixture
def clock(monkeypatch):
    """The clock of all stages, whose pulse is `stage._stop.beat()`."""
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    monkeypatch.setattr(terminal, "threading", SimpleNamespace(Event=Pulse, Thread=threading.Thread))
    return clock


def references(text):
    return REFERENCE.findall(text)


# One stage


def test_without_a_terminal_a_line_begins_some_go_on_and_one_ends(capsys, clock):
    with Stage("2/5 training the prior gan", total=1000) as stage:
        for step in range(1, 12):
            stage.at(step * 10, {"loss": 1 / step, "accuracy": 0.5, "rate": 1.0, "fourth": 4.0} if step == 3 else None)
            clock.now += 2
            if step in (1, 6, 11):
                stage._stop.beat()
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first == "2/5 training the prior gan: begun"
    assert last == "2/5 training the prior gan: done after 22 s"
    assert between == [
        "2/5 training the prior gan: step 10 of 1000",
        "2/5 training the prior gan: step 60 of 1000, 4.17 steps/s, 4 min left, loss 0.3333, accuracy 0.5, rate 1",
        "2/5 training the prior gan: step 110 of 1000, 4.55 steps/s, 3 min left, loss 0.3333, accuracy 0.5, rate 1",
    ]


def test_what_counts_no_steps_says_that_it_works(capsys, clock):
    with Stage("5/5 judging") as stage:
        clock.now += 60
        stage._stop.beat()
    assert "5/5 judging: working for 60 s" in capsys.readouterr().err.splitlines()


def test_an_error_ends_a_stage_early(capsys, clock):
    with pytest.raises(ValueError), Stage("1/2 training"):
        raise ValueError
    assert capsys.readouterr().err.splitlines()[-1] == "1/2 training: ended early after 0 s"


def test_what_is_not_announced_is_told_only_when_it_takes_long(capsys, clock):
    with Stage("decoding pictures", 5, announced=False) as stage:
        stage.at(5)
    assert capsys.readouterr().err == ""
    with Stage("decoding pictures", 5, announced=False) as stage:
        stage.at(2)
        stage._stop.beat()
    assert capsys.readouterr().err.startswith("decoding pictures: step 2 of 5")


def test_a_stage_without_a_title_is_silent(monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Stage("", 3) as stage:
            stage.at(1)
            assert stage._pulse is None, "no minute passes for it"
        assert stream.getvalue() == ""


def test_a_bar_in_a_terminal_names_the_stage_and_there_are_no_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Stage("2/5 training the prior gan") as stage:
        stage.total = 20
        for step in (5, 20):
            stage.at(step)
            time.sleep(0.12)  # tqdm draws every tenth of a second at most
            assert stage._pulse is None
    shown = sys.stderr.getvalue()
    assert "2/5 training the prior gan: 100%" in shown and "20/20" in shown
    assert "begun" not in shown and "done" not in shown and "left" not in shown


def test_the_rate_counts_from_where_work_went_on(clock):
    with Stage("", 100) as stage:
        assert stage.rate is None
        stage.at(90)
        assert stage.rate is stage.pace is None, "how long the first 90 took is not known: they may be of a run before"
        clock.now += 0.05
        stage.at(91)
        assert stage.rate == pytest.approx(20) and stage.pace == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (12000, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# What is ahead


def test_what_will_be_made_is_said_first_then_each_stage_and_nothing_where_all_is_found(call, store):
    words = (*TOY, *GAN, *GMI, *JUDGE, f"store={store}")
    code, out, said = call("evaluate", *words)
    assert code == 0 and "1/5" not in out
    lines = said.splitlines()
    what = ["training the target", "training the evaluator main", "training the prior", "attacking", "judging"]
    for number, doing in enumerate(what, start=1):
        ahead = lines[number - 1]
        assert ahead.startswith(f"{number}/5  {doing}: ") and ahead.endswith("(unknown until measured)")
        begun, done = lines[5 + 2 * (number - 1) : 7 + 2 * (number - 1)]
        assert begun.startswith(f"{number}/5 {doing} ") and begun.endswith(": begun")
        assert done.startswith(f"{number}/5 {doing} ") and ": done after" in done
    assert len(lines) == 15
    assert {artefact.reference for artefact in Store(store).list()} == set(references("\n".join(lines[:5])))
    assert call("evaluate", *words)[::2] == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        (*TOY, *GAN, *GMI, *JUDGE),
        (*TOY, "prior=toy", *GMI, *JUDGE),
        (*TOY, "prior=toy", *POOL, "attack.search.steps=2", *JUDGE),
    ],
    ids=["a prior that learns", "one that does not", "an attack that prepares"],
)
def test_a_plan_names_what_will_be_made_and_makes_nothing(call, store, words):
    words = (*words, f"store={store}")
    code, planned, said = call("evaluate", *words, "missing=plan")
    assert (code, said) == (0, "")
    assert Store(store).list() == [] and not (store / "runs").exists() and not (store / "work").exists()
    assert call("evaluate", *words)[0] == 0
    made = [artefact.reference for artefact in Store(store).list()]
    assert sorted(references(planned)) == sorted(made)
    _, planned, _ = call("evaluate", *words, "missing=plan")
    assert sorted(planned.splitlines()) == sorted(f"found  {reference}" for reference in made)
    _, planned, _ = call("evaluate", *words, "missing=plan", "seed=1")
    ahead = [line for line in planned.splitlines() if not line.startswith("found")]
    assert len(ahead) == 3 + ("attack=pool" in words), "target, (preparation,) attack and row: the rest is shared"
    assert all("(about " in line for line in ahead), "measured with another seed"


def test_a_plan_from_named_artefacts(call, run_verb, store):
    target = run_verb("train_target", *TOY)
    _, planned, _ = call("attack", f"target={target.id}", *GAN, *GMI, f"store={store}", "missing=plan")
    assert planned.splitlines()[0] == f"found  {target.reference}" and len(references(planned)) == 3
    recovered = run_verb("attack", f"target={target.id}", *GAN, *GMI)
    assert recovered.reference in references(planned)
    _, planned, _ = call("evaluate", f"recovered={recovered.id}", *JUDGE, f"store={store}", "missing=plan")
    assert planned.splitlines()[:2] == [f"found  {target.reference}", f"found  {recovered.reference}"]
    assert [line.split(":")[0] for line in planned.splitlines()[2:]] == [
        "1/2  training the evaluator main",
        "2/2  judging",
    ]
    prior = Store(store).list("prior")[0]
    words = (f"target={target.id}", f"prior_artefact={prior.id}", *GMI, "seeds.attack=1")
    _, planned, _ = call("attack", *words, f"store={store}", "missing=plan")
    assert f"found  {prior.reference}" in planned.splitlines()
    assert run_verb("attack", *words).reference in references(planned)


def test_images_are_refused_before_anything_is_said(call, store, tmp_path):
    words = ("dataset=image_folder", f"dataset.private_root={tmp_path / 'nowhere'}", f"store={store}")
    code, out, said = call("evaluate", *words, f"dataset.public_root={tmp_path}", "missing=plan")
    assert code == 2 and out == "" and said.startswith("refused: ")


def test_ranks_that_train_with_the_first_one_are_silent(store):
    pipeline = Pipeline(plan_for("train_target", *TOY, store=store))
    (item,) = look_ahead(pipeline).missing
    titles = [
        pipeline.session.run(item.artefact, job, rank=rank).stage.title
        for job in ("train_target", "attack")
        for rank in (0, 1)
    ]
    title = "1/1 training the target toy-mlp-none"
    assert titles == [title, "", title, f"{title} (process 2)"]
    other = replace(item.artefact, recipe={**item.artefact.recipe, "seed": 9})
    assert pipeline.session.run(other, "train_target").stage.title == "", "not ahead"


CUT = ("dataset=toy", "dataset.size=32", "architecture=cnn", "architecture.widths=[4,8]", "architecture.cut=stage1")
CUT += ("recipe.epochs=1", "compute.threads=1")
SPLIT = (*CUT, "evidence=released_features", "evidence.images=4", "evidence.part=train")
CRAFTED = (
    "defense=crafter_small",
    "defense.prior.steps=4",
    "defense.steps=1",
    "defense.amortiser.steps=2",
    "defense.attacker.steps=1",
)


DECODER = ("attack=feature_decoder_adaptive_small", "attack.learning.steps=2", "attack.further=2", "attack.images=4")


@pytest.mark.parametrize(
    ("defense", "attack"),
    [
        pytest.param(("defense=feature_noise",), DECODER, id="released alone"),
        pytest.param(CRAFTED, DECODER, id="a defense that prepares", marks=pytest.mark.slow),
        pytest.param(
            CRAFTED,
            ("attack=feature_gan_adaptive_small", "prior.steps=4", "attack.images=4", "attack.epochs=1"),
            id="a generator that both share",
        ),
    ],
)
def test_a_plan_names_what_is_released(call, store, defense, attack):
    words = (*SPLIT, *defense, *attack, f"store={store}")
    code, planned, said = call("attack", *words, "missing=plan")
    assert (code, said) == (0, "")
    assert Store(store).list() == []
    assert call("attack", *words)[0] == 0
    made = [artefact.reference for artefact in Store(store).list()]
    assert sorted(references(planned)) == sorted(made)
    assert sum("released/" in reference for reference in made) == 1 + ("adaptive" in attack[0])
    _, planned, _ = call("attack", *words, "missing=plan")
    assert sorted(planned.splitlines()) == sorted(f"found  {reference}" for reference in made)


@pytest.mark.parametrize(
    "defense",
    [
        pytest.param(("defense=feature_noise",), id="noise"),
        pytest.param(CRAFTED, id="crafter", marks=pytest.mark.slow),
    ],
)
def test_a_plan_names_the_cloud_and_what_it_learns_from(call, store, defense):
    words = (*CUT, "recipe@cloud=split_training", "cloud.epochs=1", *defense)
    code, planned, said = call("train_target", *words, f"store={store}", "missing=plan")
    assert (code, said) == (0, "") and Store(store).list() == []
    assert Pipeline(plan_for("train_target", *words, store=store)).cloud.kind == "cloud"
    made = [artefact.reference for artefact in Store(store).list()]
    assert sorted(references(planned)) == sorted(made)
    assert sum("released/" in reference for reference in made) == 2
