"""A sweep on this machine: its points as processes of the verbs, a device handed to each worker, nothing done twice.

What a point asks for is in the store or not: finished points are found there, whoever made them, and a killed sweep
goes on. A point that fails stops no other. There is no order to plan: workers take the points in the order of the file,
and where two need the same target, prior or evaluator, the verbs see to it that one waits for the other.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from midefense.foreign import path_of
from midefense.pipeline.agenda import Agenda
from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.telling import numbers_of
from midefense.plan.adaptive import ADAPTIVE, WISHES, with_adaptive
from midefense.plan.compose import compose
from midefense.plan.overrides import laid_over, written
from midefense.plan.read import Plan, read_names, read_plan
from midefense.store.artefacts import Artefact, content_id
from midefense.store.claims import claim
from midefense.store.command import COMMANDS
from midefense.store.folders import folders_of
from midefense.store.sweeps import FAILED, FINISHED, FOLDER, REFUSED, Outcome, keep
from midefense.studies.search import Asked, Search, Trial
from midefense.studies.sweep_file import Sweep
from midefense.terminal import Stage
from midefense.types import Refused, refuse_unknown

POLL_SECONDS = 0.2  # between looks at the processes
PATIENCE_SECONDS = 60.0  # for a process that was asked to end: it writes down how far it came
TAIL_BYTES = 1 << 16  # of a log: where its process says how it ended
PROMPT = "$ "  # before the command, at the head of what each process of a log said
TRACEBACK = "Traceback (most recent call last):"
FRAME = re.compile(r'  File "(.+)", line (\d+), in (.+)')  # of a traceback
# Planning computes nothing, and where work runs is in no id: the GPUs are left to the workers.
WHERE_PLANNED = ("compute=cpu",)


@dataclass(frozen=True)
class Point:
    """One call of the verb: its place in the sweep, and the words that only it has, `KEY=VALUE`."""

    place: int
    words: tuple[str, ...]

    @property
    def label(self) -> str:
        """The words that tell it from the others."""
        return " ".join(self.words)

    @property
    def id(self) -> str:
        """What its files are called."""
        return content_id({"words": sorted(self.words)})


@dataclass(frozen=True)
class Planned:
    """A point whose plan was read: `plan` (None where it was refused, for the `reason`), and what people call its
    parts."""

    point: Point
    names: dict[str, str]
    plan: Plan | None = None
    reason: str = ""


@dataclass
class Working:
    """A point that a worker is at: the worker's number, its process, its log and since when (`time.monotonic`)."""

    planned: Planned
    worker: int
    process: subprocess.Popen
    log: Path
    since: float
    asked: Asked | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    @property
    def said(self) -> str:
        """The last line of its log."""
        return (_tail(self.log).rstrip().splitlines() or [""])[-1]


class Board(Protocol):
    """Who is told what goes on."""

    def begun(self, working: Working) -> None:
        """A worker began a point."""

    def over(self, place: int, outcome: Outcome) -> None:
        """A point is over; nothing was computed for one without `seconds`."""

    def still(self, working: Sequence[Working]) -> None:
        """Some time has passed."""


class Runner:
    """Carries out a sweep.

    Args:
        store: as `store=` names it.
        workers: how many processes at once.
        board: who is told.
    """

    def __init__(self, sweep: Sweep, store: str, workers: int, board: Board):
        self.sweep, self.store, self.workers, self.board = sweep, store, workers, board
        self.folder = path_of(folders_of(store)[0]) / FOLDER / sweep.id
        self.outcomes: list[Outcome] = []
        self.elsewhere = 0  # points that another process works on
        self._working: dict[int, Working] = {}  # by worker
        # What rows call a part, by what its words do: rows leave out where files lie, which a refused plan cannot tell.
        self._called: dict[tuple[str, str], str] = {}
        self._search = Search(self.folder, sweep.id, sweep.space, seed=sweep.seed)

    # ------------------------------------------------------------------------------------------------ before

    def planned(self) -> list[Planned]:
        """Read the plans of all points, of a search of those at its ends, before anything is computed.

        Raises:
            Refused: a word that no configuration can be composed with, and a value of a grid, or of all others every
                point, that is refused wherever it stands: such a value is wrong, and no pair that has no meaning.
        """
        points = list(self.points())
        found = []
        with Stage(f"checking {len(points)} points", len(points), announced=False) as stage:
            for number, point in enumerate(points, start=1):
                found.append(self._plan(point))
                stage.at(number)
        refused = [one for one in found if one.plan is None]
        if self.sweep.method == "grid":
            self._require_values_that_can_be(found)
        elif refused and (len(refused) == len(found) or self.sweep.method == "bayes"):
            raise Refused(f"{refused[0].point.label}: {refused[0].reason}")
        return found

    def points(self) -> Iterator[Point]:
        """The points of a grid or of random draws, one that is drawn again left out; of a search, those at its ends."""
        values = self.sweep.ends() if self.sweep.method == "bayes" else dict.fromkeys(self.sweep.points())
        for place, one in enumerate(values):
            yield Point(place, tuple(f"{key}={value}" for key, value in one))

    def _plan(self, point: Point) -> Planned:
        words = self._words(point)
        try:
            words = with_adaptive(words)
        except Refused as refusal:  # of a defense that no attack knows: a pair without meaning
            return Planned(point, self._names_without(words), reason=str(refusal))
        try:
            config, choices = compose(self.sweep.verb, [*laid_over(WHERE_PLANNED, words), self._store_word])
        except Refused as refusal:
            raise Refused(f"{point.label}: {refusal}") from refusal
        names = read_names(choices, words)
        try:
            plan = read_plan(self.sweep.verb, config, choices, words)
            self._called |= {(part, name): plan.names.get(part, name) for part, name in names.items()}
            return Planned(point, plan.names, plan)
        except Refused as refusal:
            return Planned(point, names, reason=str(refusal))

    def _names_without(self, words: Sequence[str]) -> dict[str, str]:
        """What people call the parts of a point that wishes for an attack that there is not."""
        rest = [word for word in words if word not in WISHES]
        names = read_names(compose(self.sweep.verb, [*laid_over(WHERE_PLANNED, rest), self._store_word])[1], rest)
        return {**names, "attack": ADAPTIVE}

    def _require_values_that_can_be(self, found: Sequence[Planned]) -> None:
        for place, key in enumerate(self.sweep.space):
            for word in dict.fromkeys(one.point.words[place] for one in found):
                having = [one for one in found if one.point.words[place] == word]
                if all(one.plan is None for one in having):
                    raise Refused(
                        f"{word}: expected values of {key} that some point can have, got one that is refused in all "
                        f"{len(having)} points, first {having[0].point.label}: {having[0].reason}"
                    )

    def _words(self, point: Point) -> list[str]:
        return [*self.sweep.words, *point.words]

    @property
    def _store_word(self) -> str:
        folders = folders_of(self.store)
        return f"store={written(folders[0] if len(folders) == 1 else folders)}"

    def command(self, point: Point) -> list[str]:
        """What a person would type for a point."""
        verb = COMMANDS.get(self.sweep.verb, self.sweep.verb)
        return ["midefense", verb, *self._words(point), self._store_word]

    def agenda(self, planned: Planned) -> Agenda:
        """What a point finds and will make; its last item is what it is there for.

        Raises `Refused` for what is wrong with its images.
        """
        return look_ahead(Pipeline(planned.plan))

    # ------------------------------------------------------------------------------------------------ at work

    def run(self, planned: Sequence[Planned]) -> list[Outcome]:
        """Work on all points until each is over; returns how they ended.

        However it is left, no process of it goes on: each is asked to end, and writes down how far it came.
        """
        for one in planned:
            if one.plan is None and self.sweep.method != "bayes":
                self._over(one, Outcome(one.point.label, REFUSED, reason=one.reason))
        begin = self._searched() if self.sweep.method == "bayes" else self._listed(planned)
        try:
            more = True
            while more or self._working:
                while more and len(self._working) < self.workers:
                    more = next(begin, None) is not None
                self._reap()
                self.board.still(list(self._working.values()))
                if self._working:
                    time.sleep(POLL_SECONDS)
        finally:
            self._end_all()
        return self.outcomes

    def _listed(self, planned: Sequence[Planned]) -> Iterator[bool]:
        """Begin the next point at every call; those that another process works on are looked at again at the end."""
        waiting, claimed = deque(one for one in planned if one.plan is not None), 0
        while waiting and claimed < len(waiting):
            one, held = waiting.popleft(), contextlib.ExitStack()
            if held.enter_context(claim(self.folder / "claims" / one.point.id)):
                claimed = 0
                self._begin(one, held)
                yield True
            else:
                waiting.append(one)
                claimed += 1
        self.elsewhere = len(waiting)

    def _searched(self) -> Iterator[bool]:
        """Begin the next trial at every call."""
        self._search.take_over()
        while True:
            held = contextlib.ExitStack()
            asked = held.enter_context(self._search.next(self.sweep.most))
            if asked is None:
                self.elsewhere = self._search.over()[1] - len(self._working)
                return
            point = Point(asked.place, tuple(f"{key}={value}" for key, value in asked.values.items()))
            self._begin(self._plan(point), held, asked)
            yield True

    def _begin(self, planned: Planned, held: contextlib.ExitStack, asked: Asked | None = None) -> None:
        """Start the process of a point, unless it is refused or there already."""
        refused, last = planned.reason, None
        if planned.plan is not None:
            try:
                agenda = self.agenda(planned)
                last = None if agenda.missing else agenda.items[-1]
            except Refused as refusal:
                refused = str(refusal)
        with held:
            if refused:
                self._over(planned, Outcome(planned.point.label, REFUSED, reason=refused), asked)
            elif last is not None:
                found = Outcome(planned.point.label, FINISHED, reference=last.artefact.reference)
                self._over(planned, found, asked, last.artefact)
            else:
                self._start(planned, held.pop_all(), asked)

    def _start(self, planned: Planned, held: contextlib.ExitStack, asked: Asked | None) -> None:
        worker = next(number for number in range(self.workers) if number not in self._working)
        log = self.folder / "logs" / f"{planned.point.id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = self.command(planned.point)
        with open(log, "ab") as file:
            file.write(f"{PROMPT}{shlex.join(words)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **handed_out(worker, self.workers)},
                start_new_session=True,  # Ctrl-C is ours to hear: we ask it to end
            )
        self._working[worker] = Working(planned, worker, process, log, time.monotonic(), asked, held)
        self.board.begun(self._working[worker])

    def _reap(self) -> None:
        """Take note of the processes that ended."""
        for worker, working in list(self._working.items()):
            code = working.process.poll()
            if code is None:
                continue
            del self._working[worker]
            with working.held:
                outcome, made = self._ended(working, code)
                self._over(working.planned, outcome, working.asked, made)

    def _ended(self, working: Working, code: int) -> tuple[Outcome, Artefact | None]:
        """How a process ended, and what it made, which is looked for in the store."""
        outcome = Outcome(working.planned.point.label, FAILED, log=str(working.log), seconds=working.seconds)
        if code:
            return replace(outcome, reason=last_words(_tail(working.log), code)), None
        try:
            last = self.agenda(working.planned).items[-1]
        except Refused as refusal:  # its images are not what they were, and no business of the others
            return replace(outcome, reason=str(refusal)), None
        if not last.found:
            return replace(outcome, reason="its process ended well, and left nothing in the store"), None
        return replace(outcome, state=FINISHED, reference=last.artefact.reference), last.artefact

    def _over(
        self, planned: Planned, outcome: Outcome, asked: Asked | None = None, made: Artefact | None = None
    ) -> None:
        """Write down how a point ended."""
        names = {part: self._called.get((part, name), name) for part, name in planned.names.items()}
        outcome = replace(outcome, names=names, command=shlex.join(self.command(planned.point)))
        keep(self.folder, planned.point.id, outcome)
        self.outcomes.append(outcome)
        if asked is not None:
            self._search.keep(asked, self._trial(asked, outcome, made))
        self.board.over(planned.point.place, outcome)

    def _trial(self, asked: Asked, outcome: Outcome, made: Artefact | None) -> Trial:
        """What a search learns of a point."""
        if made is None:
            return Trial(asked.place, asked.values, refused=outcome.reason)
        numbers = numbers_in(made)
        if self.sweep.metric not in numbers:
            raise refuse_unknown("metric.name", self.sweep.metric, sorted(numbers))
        value = numbers[self.sweep.metric]
        if not math.isfinite(value):
            return Trial(asked.place, asked.values, refused=f"{self.sweep.metric} could not be measured")
        return Trial(asked.place, asked.values, value, value if self.sweep.maximised else -value)

    def _end_all(self) -> None:
        """Ask the processes that are at work to end, and end those that do not."""
        for working in self._working.values():
            working.process.terminate()
        until = time.monotonic() + PATIENCE_SECONDS
        for working in self._working.values():
            try:
                working.process.wait(timeout=max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(working.process.pid, signal.SIGKILL)
                working.process.wait()
            working.held.close()
        self._working.clear()


def handed_out(worker: int, workers: int) -> dict[str, str]:
    """The variables that hand a worker its device: one GPU, in turn where there are fewer than workers, and its share
    of the cores, unless OMP_NUM_THREADS says how many threads a process has."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = map(str, range(torch.cuda.device_count())) if named is None else named.split(",")
    devices = [one.strip() for one in found if one.strip()]
    given = {"CUDA_VISIBLE_DEVICES": devices[worker % len(devices)]} if devices else {}
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        given["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    return given


def numbers_in(made: Artefact) -> dict[str, float]:
    """The numbers of an artefact by the names under which W&B shows them; NaN where one could not be measured."""
    if made.kind != "result":
        return {name: float(value) for name, value in made.metrics.items() if isinstance(value, int | float)}
    missing = {name: math.nan for name in made.metrics["metrics"]}
    values, about = numbers_of(made.metrics, {})
    return {**missing, **values, **about}


def last_words(log: str, code: int) -> str:
    """Why a process failed, by the end of its log: the error with the place it came from, or its last line, and how it
    ended."""
    how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
    lines = _of_the_last_process(log)
    frames = [number for number, line in enumerate(lines) if FRAME.match(line)]
    if frames:
        error = next((line for line in lines[frames[-1] + 1 :] if not line.startswith(" ")), "an error")
        file, line, function = FRAME.match(lines[frames[-1]]).groups()
        return f"{error} ({file}, line {line}, in {function}); {how}"
    return f"{lines[-1]}; {how}" if lines else f"it said nothing; {how}"


def last_traceback(log: str) -> list[str]:
    """The lines of the traceback that the last process of a log ended with, none where it left none: from what was
    raised last, without what that came from."""
    lines = _of_the_last_process(log)
    begins = [number for number, line in enumerate(lines) if line == TRACEBACK]
    frames = [number for number, line in enumerate(lines) if FRAME.match(line)]
    if not begins:
        return []
    ends = next((n for n in range(frames[-1] + 1, len(lines)) if not lines[n].startswith(" ")), len(lines) - 1)
    return lines[begins[-1] : ends + 1]


def traceback_in(log: Path) -> list[str]:
    """The same, of the file of a log."""
    return last_traceback(_tail(log))


def _of_the_last_process(log: str) -> list[str]:
    return [line for line in log.rpartition(f"{PROMPT}midefense ")[2].splitlines()[1:] if line.strip()]


def _tail(log: Path) -> str:
    """The end of a log."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode(errors="replace")
