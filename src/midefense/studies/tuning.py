"""Search for the options of an attack, loss weights above all, on an objective that an attacker can see.

The attacker trains a shadow (`studies.shadow`) on data of their own, attacks it under trial values and measures how
much of its training set comes back. The values that do best are then used once on the target. What the original of
network inversion did, to search for the values at which the *private* images come back best, is there under a name that
says so.

Optuna suggests values (Akiba et al., KDD 2019); trials stand in a journal in the store, each is a row of the store too.
The same command goes on where it ended, and several may share a study.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from midefense import seeds
from midefense.foreign import path_of
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose, spaces_of
from midefense.plan.overrides import parsed
from midefense.plan.read import Plan, read_plan
from midefense.plan.spaces import Choice, Interval, Space
from midefense.store.artefacts import content_id
from midefense.store.claims import claim
from midefense.store.folders import folders_of
from midefense.studies.names import METRICS, PRIVATE, SAMPLERS, SHADOW
from midefense.studies.shadow import require_apart, shadow_words
from midefense.types import Diverged, Refused, refuse_unknown

if TYPE_CHECKING:
    import optuna

VERB = "evaluate"
FOLDER = "studies"  # in the store
DIGITS = 4  # significant ones of a number that is tried
PATIENCE = 0.05  # seconds between looks at whose turn it is
REFUSED = "refused"  # what a trial that gave no number says of it


@dataclass(frozen=True)
class Tuning:
    """What is searched for, and by what.

    Args:
        words: the command-line words of `evaluate` that say one value.
        space: what the others leave open.
        objective: `shadow`, or `private_ssim_oracle`, which no attacker could know.
        measured: the words under which a trial is measured: the shadow's, or those of the target itself.
        metric: the number that is made as large (or, where lower leaks, as small) as possible, a mean over `runs`.
        runs: seeds of the target and the attack that every trial is measured with.
        store: as `store=` names it.
    """

    words: tuple[str, ...]
    space: Mapping[str, Interval | Choice]
    objective: str
    measured: tuple[str, ...]
    metric: str
    runs: tuple[int, ...]
    store: str

    @property
    def id(self) -> str:
        """The same for the same search, however many trials it has."""
        spaces = {key: str(space) for key, space in self.space.items()}
        shown = {"objective": self.objective, "metric": self.metric, "runs": list(self.runs)}
        return content_id({"words": sorted(self.words), "measured": sorted(self.measured), "space": spaces, **shown})

    @property
    def folder(self) -> Path:
        """Where its journal and its claims lie."""
        return path_of(folders_of(self.store)[0]) / FOLDER / self.id

    def plan(self, words: Sequence[str], values: Mapping[str, str], run: int) -> Plan:
        """The plan of one row, checked whole."""
        given = [*words, *(f"{key}={value}" for key, value in values.items()), f"seed={run}", f"store={self.store}"]
        return read_plan(VERB, *compose(VERB, given), given)


@dataclass(frozen=True)
class Trial:
    """One trial that is over: its place in the study, the values as a command line writes them, and the metric (NaN:
    none was measured, for the reason `refused`). `merit`: what the study makes large, the metric or, where lower leaks,
    minus it."""

    place: int
    values: Mapping[str, str]
    value: float = math.nan
    merit: float = math.nan
    refused: str = ""


@dataclass
class Report:
    """All trials of a study that are over, by place; the best one; how many others are still at work on."""

    tuning: Tuning
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    at_work: int = 0

    def command(self) -> str:
        """The command that attacks the target with the best values."""
        values = {} if self.best is None else self.best.values
        return shlex.join(["midefense", VERB, *self.tuning.words, *(f"{key}={value}" for key, value in values.items())])


def read_tuning(
    words: Sequence[str],
    shadow: Sequence[str],
    objective: str = SHADOW,
    metric: str | None = None,
    runs: Sequence[int] = (0,),
    store: str = "store",
) -> Tuning:
    """Read and check a search before any compute: the words at both ends of every range, for the target and its shadow,
    and that the shadow holds nothing private.

    Raises `Refused` for whatever is wrong with them.
    """
    if objective not in METRICS:
        raise refuse_unknown("--objective", objective, METRICS)
    metric = metric or METRICS[objective]
    if any(word.startswith(("seed=", "store=")) for word in words):
        raise Refused(
            "seed, store: expected them as --seeds and --store, as a trial is run with each; got them as words"
        )
    fixed, space = spaces_of(VERB, words)
    fixed = [word.text for word in parsed(fixed) if word.key not in space]  # a range stands for the value before it
    if not space:
        raise Refused(
            "expected options to search over, got none; try 'attack.deviation=tag(log,interval(0.01,0.5))', "
            "'attack.candidates=int(interval(5,20))' or 'attack.stationarity.mean=choice(true,false)'"
        )
    if objective == PRIVATE and shadow:
        raise Refused(
            f"--shadow: expected none for --objective {PRIVATE}, which looks at the private images themselves"
        )
    start = {key: _written(one.ends[0]) for key, one in space.items()}
    plain = Tuning(tuple(fixed), space, objective, tuple(fixed), metric, tuple(runs), store)
    target = plain.plan(fixed, start, plain.runs[0])
    if objective == PRIVATE:
        _check_ends(plain, fixed)
        return plain
    measured = shadow_words(fixed, shadow, target.target.dataset)
    tuning = Tuning(tuple(fixed), space, objective, tuple(measured), metric, tuple(runs), store)
    _check_ends(tuning, fixed)  # those of the shadow's data are then checked at one point
    shadowed = tuning.plan(measured, start, tuning.runs[0])
    same = shadowed.target.dataset.target is target.target.dataset.target
    require_apart(Pipeline(target).splits, Pipeline(shadowed).splits, same)
    return tuning


def _check_ends(tuning: Tuning, words: Sequence[str]) -> None:
    """Plan the words with every option at each of its ends in turn, the others at their first."""
    first = {key: _written(space.ends[0]) for key, space in tuning.space.items()}
    for key, space in tuning.space.items():
        for end in space.ends:
            tuning.plan(words, {**first, key: _written(end)}, tuning.runs[0])


def _written(value: object) -> str:
    """A value as a command line writes it; numbers at the precision at which they are tried."""
    return repr(float(f"{value:.{DIGITS}g}")) if isinstance(value, float) else str(value)


def tune(
    tuning: Tuning, trials: int, sampler: str = "tpe", seed: int = 0, told: Callable[[Trial], None] | None = None
) -> Report:
    """Work on the study until it has this many trials, with others that do so too; what ended half done is done first.

    A trial that is refused (what it trains or searches diverged, its metric is NaN) counts, and keeps its reason.
    """
    study = open_study(tuning)
    with _alone(tuning):
        _take_over(study, tuning)
    while True:
        with contextlib.ExitStack() as held:
            with _alone(tuning):  # nobody may see a trial that is begun and not yet claimed
                if sum(map(_counts, study.get_trials(deepcopy=False))) >= trials:
                    break
                asked = study.ask()
                held.enter_context(claim(_claim_of(tuning, asked.number)))
            place = _place(study, asked.number)
            # keyed by the place: values do not depend on where a study was ended, or on who asks
            study.sampler = _sampler(sampler, seeds.derive(seed, tuning.id, place) % 2**32)
            values = dict(_suggested(asked, tuning.space))
            over = _measured(tuning, place, values)
            _keep(study, asked, over)
        if told is not None:
            told(over)
    return report_of(tuning)


def open_study(tuning: Tuning) -> optuna.Study:
    """The study of this search, with whatever trials it has."""
    optuna = _optuna()
    tuning.folder.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(tuning.folder / "journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.create_study(study_name=tuning.id, storage=storage, direction="maximize", load_if_exists=True)


def report_of(tuning: Tuning) -> Report:
    """What the study of a search has found so far."""
    report = Report(tuning)
    study = open_study(tuning)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "RUNNING":
            report.at_work += 1
        elif _counts(trial):
            kept = trial.user_attrs
            merit = math.nan if REFUSED in kept else trial.value
            place, refused = _place(study, trial.number), kept.get(REFUSED, "")
            report.trials.append(Trial(place, kept["values"], kept.get("value", math.nan), merit, refused))
    measured = [trial for trial in report.trials if not trial.refused]
    report.best = max(measured, key=lambda trial: trial.merit, default=None)
    return report


def _optuna():
    """The library, which only this needs; it says nothing of its own."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise Refused(
            "expected optuna, which suggests the values, got no such module; try pip install 'midefense[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name not in SAMPLERS:
        raise refuse_unknown("--sampler", name, SAMPLERS)
    samplers = _optuna().samplers
    return samplers.RandomSampler(seed=seed) if name == "random" else samplers.TPESampler(seed=seed, multivariate=False)


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial is one of those wanted: not one that was ended, which another has taken the place of."""
    return trial.state.name in ("COMPLETE", "RUNNING") or REFUSED in trial.user_attrs


def _place(study: optuna.Study, number: int) -> int:
    """How many trials were begun before this one, those that were ended and put in line again not counted twice."""
    before = study.get_trials(deepcopy=False)[:number]
    return sum(trial.state.name != "FAIL" or REFUSED in trial.user_attrs for trial in before)


def _claim_of(tuning: Tuning, number: int) -> Path:
    return tuning.folder / "claims" / f"trial-{number}"


@contextlib.contextmanager
def _alone(tuning: Tuning) -> Iterator[None]:
    """Within, no other process takes a trial of this study; it is waited for."""
    while True:
        with claim(tuning.folder / "claims" / "turn") as ours:
            if ours:
                yield
                return
        time.sleep(PATIENCE)


def _take_over(study: optuna.Study, tuning: Tuning) -> None:
    """Trials that nobody works on any more are put in line again, with their values."""
    states = _optuna().trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        with claim(_claim_of(tuning, trial.number)) as ours:
            if ours:
                study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
                if len(trial.params) == len(tuning.space):
                    study.enqueue_trial(trial.params)


def _suggested(trial: optuna.Trial, space: Space) -> Iterator[tuple[str, str]]:
    """The values of a trial as a command line writes them."""
    for key, one in space.items():
        if isinstance(one, Choice):
            value = trial.suggest_categorical(key, one.values)
        elif isinstance(one.low, int):
            value = trial.suggest_int(key, one.low, one.high, log=one.log)
        else:
            value = trial.suggest_float(key, one.low, one.high, log=one.log)
        yield key, _written(value)


def _measured(tuning: Tuning, place: int, values: Mapping[str, str]) -> Trial:
    """The metric under these values, a mean over the seeds; refused ones, and those that diverge, keep the sentence."""
    found = []
    for run in tuning.runs:
        try:
            row = Pipeline(tuning.plan(tuning.measured, values, run)).result.metrics["metrics"]
        except (Refused, Diverged) as refusal:  # of these values alone: both ends of each option were planned before
            return Trial(place, values, refused=str(refusal))
        if tuning.metric not in row:
            raise refuse_unknown("--metric", tuning.metric, sorted(row))
        found_here = row[tuning.metric]
        if not math.isfinite(found_here["value"]):
            return Trial(place, values, refused=found_here["reason"] or f"{tuning.metric} is not a number")
        found.append(found_here)
    if found[0]["higher_leaks"] is None:
        raise Refused(
            f"--metric: expected a number that says how well an attack does, got {tuning.metric}, which says neither; "
            f"try {METRICS[SHADOW]}"
        )
    value = sum(one["value"] for one in found) / len(found)
    return Trial(place, values, value, value if found[0]["higher_leaks"] else -value)


def _keep(study: optuna.Study, asked: optuna.Trial, over: Trial) -> None:
    """Write down what came of a trial, for whoever works on the study."""
    asked.set_user_attr("values", dict(over.values))
    if over.refused:
        asked.set_user_attr(REFUSED, over.refused)
        study.tell(asked, state=_optuna().trial.TrialState.FAIL, skip_if_finished=True)
    else:
        asked.set_user_attr("value", over.value)
        study.tell(asked, over.merit, skip_if_finished=True)
