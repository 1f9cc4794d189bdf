"""`midefense sweep sweeps/digits_grid.yaml --workers 2`: a W&B sweep's file, without W&B, on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from midefense.commands.parsing import add_store, count, is_override, refusing
from midefense.store.sweeps import FAILED, FINISHED, REFUSED, Outcome
from midefense.terminal import duration, say, shown

if TYPE_CHECKING:
    from midefense.pipeline.agenda import Item
    from midefense.pipeline.costs import Cost
    from midefense.studies.sweep import Planned, Runner, Working


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: a point failed, or the file is refused)."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if strange := [word for word in rest if not is_override(word)]:
        parser.error(f"expected KEY=VALUE, got {' '.join(strange)}")
    return refusing(lambda: _sweep(options, rest))


def _sweep(options: argparse.Namespace, words: Sequence[str]) -> int:
    from midefense.studies.sweep import Runner
    from midefense.studies.sweep_file import read_sweep

    sweep = read_sweep(options.file, words, options.points, options.seed)
    runner = Runner(sweep, options.store, options.workers, Lines(0))
    planned = runner.planned()
    points = sweep.most if sweep.method == "bayes" else len(planned)
    runner.board = board = (Table if sys.stderr.isatty() else Lines)(points)
    say(f"sweep {sweep.name} ({sweep.id}): {points} points, {options.workers} at once; logs in {runner.folder}")
    if options.plan or options.measure:
        return _tell_plan(runner, planned, options.measure)
    if options.jobs:
        return _submit(options, words, runner.folder)
    try:
        outcomes = runner.run(planned)
    finally:
        board.close()
    if runner.elsewhere:
        say(f"{runner.elsewhere} points are being worked on by other processes; the same command goes on with them")
    for line in summary(outcomes, options.store):
        say(line)
    return 1 if any(outcome.state == FAILED for outcome in outcomes) else 0


def _submit(options: argparse.Namespace, words: Sequence[str], folder: Path) -> int:
    """Hand the sweep to Slurm, whose jobs each run this command without `--jobs`."""
    from midefense.foreign import path_of
    from midefense.plan.overrides import written
    from midefense.store.folders import folders_of
    from midefense.studies.slurm import submit

    given = dict(word.split("=", 1) for word in options.job)
    whole = {key: int(value) if value.isdigit() else value for key, value in given.items()}
    kept = {"--workers": options.workers, "--seed": options.seed, "--points": options.points}
    folders = [str(path_of(one).resolve()) for one in folders_of(options.store)]  # a job may start elsewhere
    kept["--store"] = folders[0] if len(folders) == 1 else written(folders)
    named = [word for name, value in kept.items() if value is not None for word in (name, str(value))]
    command = ["sweep", str(options.file.resolve()), *words, *named]
    ids = submit(command, options.jobs, (folder / "jobs").resolve(), whole)
    say(f"handed in {len(ids)} jobs: {', '.join(ids)}; logs in {folder / 'jobs'}; --plan says how far they are")
    return 0


def _tell_plan(runner: Runner, planned: Sequence[Planned], measure: bool) -> int:
    """Say of every point whether it is there, what is missing, or why it is refused; make nothing. `measure`: also what
    all points together cost, what several need counted once."""
    from midefense.pipeline.prices import in_all

    wanted: dict[str, Item] = {}
    costs: dict[str, Cost] = {}
    alike: dict[tuple[str, int], Cost | None] = {}
    for one in planned:
        if one.plan is None:
            say(f"refused  {one.point.label}: {one.reason}")
            continue
        agenda = runner.agenda(one)
        missing = agenda.missing
        wanted |= {item.artefact.id: replace(item, measure=None) for item in missing}  # which would hold its images
        costs |= agenda.measured(alike) if measure else {}
        what = "; ".join(dict.fromkeys(item.what for item in missing))
        say(f"missing  {one.point.label}: {what}" if missing else f"found    {one.point.label}")
    if measure:
        say(in_all(wanted.values(), costs))
    return 0


def summary(outcomes: Sequence[Outcome], store: str) -> list[str]:
    """What became of a sweep, line by line: each failure with its reason, its traceback (where nobody foresaw it), its
    log and the command that does it again, each point without meaning with its reason, and how many there are of each.
    """
    from midefense.studies.sweep import traceback_in

    by_state = {state: [one for one in outcomes if one.state == state] for state in (FINISHED, REFUSED, FAILED)}
    lines = [f"refused  {one.label}: {one.reason}" for one in by_state[REFUSED]]
    for one in by_state[FAILED]:
        lines += [f"failed   {one.label}: {one.reason}", *(f"         {line}" for line in traceback_in(Path(one.log)))]
        lines += [f"         log: {one.log}", f"         again: {one.command}"]
    found = sum(not one.seconds for one in by_state[FINISHED])
    counts = [f"{len(by_state[FINISHED])} finished ({found} were there)"]
    counts += [f"{len(by_state[state])} {state}" for state in (REFUSED, FAILED) if by_state[state]]
    return [*lines, f"{', '.join(counts)}; see them: midefense report --store {store}"]


class Lines:
    """Tells of a sweep in lines, on stdout. `points`: how many there are."""

    def __init__(self, points: int):
        self.points, self._over = points, 0

    def begun(self, working: Working) -> None:
        self._say(f"begun    {working.planned.point.label} (worker {working.worker + 1})")

    def over(self, place: int, outcome: Outcome) -> None:
        self._over += 1
        took = f" after {duration(outcome.seconds)}" if outcome.seconds else ""
        why = f": {outcome.reason}" if outcome.reason else ""
        self._say(f"{outcome.state:<8} {outcome.label}{took}{why} [{self._over}/{self.points}]")

    def still(self, working: Sequence[Working]) -> None:
        pass

    def close(self) -> None:
        pass

    def _say(self, line: str) -> None:
        say(line)


class Table(Lines):
    """Tells of a sweep on a terminal: below the lines of what is over a table, a line for each worker with what its
    process said last, and how much is done."""

    def __init__(self, points: int):
        super().__init__(points)
        self._done = tqdm(total=points, desc="points", dynamic_ncols=True, position=0)
        self._workers: dict[int, tqdm] = {}

    def begun(self, working: Working) -> None:
        place = working.worker + 1
        if working.worker not in self._workers:
            self._workers[working.worker] = tqdm(
                total=0, bar_format="{desc}", dynamic_ncols=True, position=place, leave=False
            )

    def over(self, place: int, outcome: Outcome) -> None:
        super().over(place, outcome)
        self._done.update(1)

    def still(self, working: Sequence[Working]) -> None:
        at_work = {one.worker: one for one in working}
        for number, line in self._workers.items():
            one = at_work.get(number)
            label = f"{one.planned.point.label} · {duration(one.seconds)} · {one.said}" if one else "-"
            line.set_description_str(shown(f"{number + 1}: {label}"))

    def close(self) -> None:
        for line in (*self._workers.values(), self._done):
            line.close()

    def _say(self, line: str) -> None:
        self._done.write(shown(line))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midefense sweep",
        usage="midefense sweep FILE [KEY=VALUE ...] [options]",
        description="Run the points of a W&B sweep's file (grid, random, bayes) as processes of this machine, without "
        "a server. What is in the store already is not done again; the same command goes on after Ctrl-C or a kill, "
        "and tries again what failed (not a trial of bayes). KEY=VALUE words are laid over those that the file gives "
        "every point.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="such as sweeps/digits_grid.yaml")
    workers = "processes at once, a GPU each where there are any, else a share of the cores (default: 1)"
    parser.add_argument("--workers", type=count, default=1, help=workers)
    parser.add_argument("--points", type=count, help="how many points (default: the file's run_cap; a grid's: all)")
    parser.add_argument("--seed", type=int, default=0, help="of values that are drawn or searched (default: 0)")
    parser.add_argument("--plan", action="store_true", help="only say of every point what is there and what is missing")
    parser.add_argument(
        "--measure", action="store_true", help="as --plan, and measure over a few steps what all of it costs"
    )
    jobs = "hand the sweep to Slurm as so many jobs, each with its --workers (pip install 'midefense[slurm]')"
    parser.add_argument("--jobs", type=count, metavar="N", help=jobs)
    one = "what each job is given, by submitit's names: timeout_min=60, cpus_per_task=4, slurm_partition=gpu"
    parser.add_argument("--job", action="append", default=[], type=_option, metavar="KEY=VALUE", help=one)
    add_store(parser)
    return parser


def _option(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, such as timeout_min=60, got {text!r}")
    return text
