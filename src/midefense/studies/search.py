"""A search that goes on: Optuna suggests values (Akiba et al., KDD 2019), and trials stand in a journal in the store.

Whoever opens the same search shares it: what was ended half done is done first, by whoever comes, with the values it
had; what another process works on is left to it. Values are keyed by a trial's place in line, so that they depend
neither on where a search was ended nor on who asks, as long as those before it are known.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from midefense import seeds
from midefense.plan.overrides import written
from midefense.plan.spaces import Choice, Space
from midefense.store.claims import claim
from midefense.studies.names import SAMPLERS
from midefense.types import Refused, refuse_unknown

if TYPE_CHECKING:
    import optuna

DIGITS = 4  # significant ones of a number that is tried
PATIENCE = 0.05  # seconds between looks at whose turn it is
REFUSED = "refused"  # what a trial that gave no number says of it


@dataclass(frozen=True)
class Trial:
    """One trial that is over: its place in the study, the values as a command line writes them, and the metric (NaN:
    none was measured, for the reason `refused`). `merit`: what the study makes large, the metric or, where lower is
    wanted, minus it."""

    place: int
    values: Mapping[str, str]
    value: float = math.nan
    merit: float = math.nan
    refused: str = ""


@dataclass(frozen=True)
class Asked:
    """A trial that is ours to do: its place in line, and its values as a command line writes them."""

    place: int
    values: Mapping[str, str]
    trial: optuna.Trial


@dataclass(frozen=True)
class Search:
    """The study called `name` in `folder`, over `space`.

    Args:
        sampler: `tpe` or `random`.
        seed: of the values.
    """

    folder: Path
    name: str
    space: Space
    sampler: str = SAMPLERS[0]
    seed: int = 0

    @functools.cached_property
    def study(self) -> optuna.Study:
        """With whatever trials it has."""
        optuna = library()
        self.folder.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(self.folder / "journal"))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(study_name=self.name, storage=storage, direction="maximize", load_if_exists=True)

    def take_over(self) -> None:
        """Put trials that nobody works on any more in line again, with their values."""
        states = library().trial.TrialState
        with self._alone():
            for trial in self.study.get_trials(states=(states.RUNNING,)):
                with claim(self.claim_of(trial.number)) as ours:
                    if ours:
                        self.study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
                        if len(trial.params) == len(self.space):
                            self.study.enqueue_trial(trial.params)

    @contextlib.contextmanager
    def next(self, most: int) -> Iterator[Asked | None]:
        """The next trial, ours until the end of the block; None where there are `most` already, those that others work
        on counted too."""
        with contextlib.ExitStack() as held:
            with self._alone():  # nobody may see a trial that is begun and not yet claimed
                enough = sum(map(_counts, self.study.get_trials(deepcopy=False))) >= most
                trial = None if enough else self.study.ask()
                if trial is not None:
                    held.enter_context(claim(self.claim_of(trial.number)))
            if trial is None:
                yield None
                return
            place = self._place(trial.number)
            self.study.sampler = _sampler(self.sampler, seeds.derive(self.seed, self.name, place) % 2**32)
            yield Asked(place, dict(suggested(trial, self.space)), trial)

    def keep(self, asked: Asked, over: Trial) -> None:
        """Write down what came of a trial, for whoever works on the study."""
        asked.trial.set_user_attr("values", dict(over.values))
        if over.refused:
            asked.trial.set_user_attr(REFUSED, over.refused)
            self.study.tell(asked.trial, state=library().trial.TrialState.FAIL, skip_if_finished=True)
        else:
            asked.trial.set_user_attr("value", over.value)
            self.study.tell(asked.trial, over.merit, skip_if_finished=True)

    def over(self) -> tuple[list[Trial], int]:
        """All trials that are over, by place, and how many others somebody works on, or did until it was ended."""
        trials, at_work = [], 0
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                at_work += 1
            elif _counts(trial):
                kept = trial.user_attrs
                merit = math.nan if REFUSED in kept else trial.value
                place, refused = self._place(trial.number), kept.get(REFUSED, "")
                trials.append(Trial(place, kept["values"], kept.get("value", math.nan), merit, refused))
        return trials, at_work

    def claim_of(self, number: int) -> Path:
        """The file that says who works on a trial."""
        return self.folder / "claims" / f"trial-{number}"

    def _place(self, number: int) -> int:
        """How many trials were begun before this one, those that were ended and put in line again not counted twice."""
        before = self.study.get_trials(deepcopy=False)[:number]
        return sum(trial.state.name != "FAIL" or REFUSED in trial.user_attrs for trial in before)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within, no other process takes a trial of this study; it is waited for."""
        while True:
            with claim(self.folder / "claims" / "turn") as ours:
                if ours:
                    yield
                    return
            time.sleep(PATIENCE)


def library():
    """Optuna, which only searches need; it says nothing of its own.

    Raises `Refused` where it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise Refused(
            "expected optuna, which suggests the values, got no such module; try pip install 'midefense[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def rounded(value: object) -> str:
    """A value as a command line writes it; numbers at the precision at which they are tried."""
    return written(float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value)


def suggested(trial: optuna.Trial, space: Space) -> Iterator[tuple[str, str]]:
    """The values of a trial as a command line writes them; those of a choice are written already."""
    for key, one in space.items():
        if isinstance(one, Choice):
            yield key, trial.suggest_categorical(key, one.values)
        elif isinstance(one.low, int):
            yield key, rounded(trial.suggest_int(key, one.low, one.high, log=one.log))
        else:
            yield key, rounded(trial.suggest_float(key, one.low, one.high, log=one.log))


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name not in SAMPLERS:
        raise refuse_unknown("--sampler", name, SAMPLERS)
    samplers = library().samplers
    return samplers.RandomSampler(seed=seed) if name == "random" else samplers.TPESampler(seed=seed, multivariate=False)


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial is one of those wanted: not one that was ended, which another has taken the place of."""
    return trial.state.name in ("COMPLETE", "RUNNING") or REFUSED in trial.user_attrs
