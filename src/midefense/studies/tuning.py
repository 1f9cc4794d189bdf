"""Search for the options of an attack, loss weights above all, on an objective that an attacker can see.

The attacker trains a shadow (`studies.shadow`) on data of their own, attacks it under trial values and measures how
much of its training set comes back. The values that do best are then used once on the target. What the original of
network inversion did, to search for the values at which the *private* images come back best, is there under a name that
says so.

Trials stand in a journal (`studies.search`), and each is a row of the store too. The same command goes on where it
ended, and several may share a study.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midefense.foreign import path_of
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose, spaces_of
from midefense.plan.overrides import parsed
from midefense.plan.read import Plan, read_plan
from midefense.plan.spaces import Choice, Interval
from midefense.store.artefacts import content_id
from midefense.store.folders import folders_of
from midefense.studies.names import METRICS, PRIVATE, SAMPLERS, SHADOW
from midefense.studies.search import Search, Trial, rounded
from midefense.studies.shadow import require_apart, shadow_words
from midefense.types import Diverged, Refused, refuse_unknown

VERB = "evaluate"
FOLDER = "studies"  # in the store


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

    def search(self, sampler: str = SAMPLERS[0], seed: int = 0) -> Search:
        """The study that its trials stand in."""
        return Search(self.folder, self.id, self.space, sampler, seed)

    def plan(self, words: Sequence[str], values: Mapping[str, str], run: int) -> Plan:
        """The plan of one row, checked whole."""
        given = [*words, *(f"{key}={value}" for key, value in values.items()), f"seed={run}", f"store={self.store}"]
        return read_plan(VERB, *compose(VERB, given), given)


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
    start = {key: rounded(one.ends[0]) for key, one in space.items()}
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
    first = {key: rounded(space.ends[0]) for key, space in tuning.space.items()}
    for key, space in tuning.space.items():
        for end in space.ends:
            tuning.plan(words, {**first, key: rounded(end)}, tuning.runs[0])


def tune(
    tuning: Tuning, trials: int, sampler: str = "tpe", seed: int = 0, told: Callable[[Trial], None] | None = None
) -> Report:
    """Work on the study until it has this many trials, with others that do so too; what ended half done is done first.

    A trial that is refused (what it trains or searches diverged, its metric is NaN) counts, and keeps its reason.
    """
    search = tuning.search(sampler, seed)
    search.take_over()
    while True:
        with search.next(trials) as asked:
            if asked is None:
                return report_of(tuning)
            over = _measured(tuning, asked.place, asked.values)
            search.keep(asked, over)
        if told is not None:
            told(over)


def report_of(tuning: Tuning) -> Report:
    """What the study of a search has found so far."""
    trials, at_work = tuning.search().over()
    measured = [trial for trial in trials if not trial.refused]
    return Report(tuning, trials, max(measured, key=lambda trial: trial.merit, default=None), at_work)


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
