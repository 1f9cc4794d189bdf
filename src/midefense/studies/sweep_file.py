"""A file of a sweep in Weights & Biases' format, read without W&B: which verb, which words every run has, and what is
varied. What the file asks for and a local sweep has not is refused by name, before anything is computed.

A value means what YAML says: it becomes a word of the command line by `plan.overrides.written`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from midefense import seeds
from midefense.foreign import MOST_BYTES, read_foreign, yaml_of
from midefense.plan.overrides import laid_over, parsed, words_of, written
from midefense.plan.spaces import Choice, Interval, Space
from midefense.plan.verb_options import VERBS
from midefense.store.artefacts import content_id
from midefense.store.command import COMMANDS
from midefense.studies.search import rounded
from midefense.types import Refused, refuse_unknown

T = TypeVar("T")
METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")  # the first is W&B's default
KEYS = ("program", "command", "method", "metric", "parameters", "run_cap", "name", "description", "project", "entity")
OF_A_PARAMETER = ("value", "values", "min", "max", "distribution", "parameters")
MOST_LISTED = 10_000  # values of one parameter of a grid: all its points are read before anything is computed
DISTRIBUTIONS = ("constant", "categorical", "uniform", "int_uniform", "log_uniform_values")
ARGUMENTS = "${args_no_hyphens}"  # where W&B puts KEY=VALUE words
INTERPRETER = ("${env}", "${interpreter}", "python", "-m", "midefense")  # what may stand before the verb
VERB_OF = {subcommand: verb for verb, subcommand in COMMANDS.items()}
# Why a key of W&B's is refused.
REASONS = {
    "early_terminate": (
        "expected none, as a run's numbers are measured once, when it is over, and an evaluator never looks during a "
        "search: no run could be stopped by them; leave it out"
    ),
    "controller": "expected none, as there is no server whose sweep could be controlled; leave it out",
    "imageuri": "expected none, as runs are processes of this machine and no jobs of W&B Launch; leave it out",
    "job": "expected none, as runs are processes of this machine and no jobs of W&B Launch; name a program",
}


@dataclass(frozen=True)
class Sweep:
    """What a file asks for.

    Args:
        name: for people; that of the file where it names none.
        verb: what every point is a call of: `train_target`, `attack`, `evaluate`.
        words: the words that all points share.
        space: what is varied, by the key of its word.
        method: `grid` (every combination, the last parameter fastest), `random`, `bayes`.
        metric: the number that `bayes` makes small or, if `maximised`, large; "" where none is named.
        most: how many points; None: all of a grid.
        seed: of the values that are drawn or searched.
    """

    name: str
    verb: str
    words: tuple[str, ...]
    space: Space
    method: str
    metric: str = ""
    maximised: bool = False
    most: int | None = None
    seed: int = 0

    @property
    def id(self) -> str:
        """The same for the same points, whatever the file is called and however many of them are wanted."""
        searched = [self.metric, self.maximised] if self.method == "bayes" else []
        drawn = [self.method, self.seed] if self.method != "grid" else [self.method]
        spaces = {key: str(one) for key, one in self.space.items()}
        points = {"verb": self.verb, "words": sorted(self.words), "space": spaces}
        return content_id({**points, "drawn": drawn, "searched": searched})

    def points(self) -> Iterator[tuple[tuple[str, str], ...]]:
        """Keys and values, as a command line writes them, of every point of a grid, or of `most` that are drawn: each
        from a generator of its own, so that a point does not depend on how many there are. A grid's are all different.
        """
        if self.method == "grid":
            values = (_listed(key, one) for key, one in self.space.items())
            grid = (tuple(zip(self.space, chosen, strict=True)) for chosen in itertools.product(*values))
            yield from itertools.islice(grid, self.most)
        else:
            for place in range(self.most or 0):
                generator = seeds.generator("sweep", self.seed, self.id, place)
                yield tuple((key, _drawn(one, generator)) for key, one in self.space.items())

    def ends(self) -> Iterator[tuple[tuple[str, str], ...]]:
        """Points with each parameter at each of its ends in turn, the others at their first: what is checked before a
        search begins."""
        first = {key: _ends(one)[0] for key, one in self.space.items()}
        for key, one in self.space.items():
            for end in _ends(one):
                yield tuple({**first, key: end}.items())


def read_sweep(file: Path, further: Sequence[str] = (), most: int | None = None, seed: int = 0) -> Sweep:
    """Read the file of a sweep.

    Args:
        further: words that are laid over those of the file, replacing those of the same key.
        most: how many points, in the place of the file's `run_cap`.
        seed: of drawn values.
    Raises:
        Refused: a file that is none, and whatever in it a local sweep has not.
    """
    try:
        content = yaml_of(read_foreign(file, MOST_BYTES, "a file of a sweep"), file)
    except FileNotFoundError as error:
        raise Refused(
            f"{file}: expected a file of a sweep, got no file; those of this project are in sweeps/"
        ) from error
    try:
        return _read(content, Path(file).stem, further, most, seed)
    except Refused as refusal:
        raise Refused(f"{file}: {refusal}") from refusal


def _read(content: object, name: str, further: Sequence[str], most: int | None, seed: int) -> Sweep:
    if not isinstance(content, Mapping):
        raise Refused(f"expected the keys of a sweep, got {type(content).__name__}; try program, method and parameters")
    for key in content:
        if key not in KEYS:
            reason = REASONS.get(key)
            raise Refused(f"{key}: {reason}") if reason else refuse_unknown(f"{key}: no such key", str(key), KEYS)
    method = content.get("method")
    if method not in METHODS:
        raise refuse_unknown("method", str(method), METHODS)
    verb, words = _command(content)
    constants, space = _parameters(content.get("parameters"))
    _refuse_store([*words, *constants, *further, *space])
    if taken := [word.text for word in parsed(further) if word.key in space]:
        raise Refused(f"{taken[0]}: expected a word for what the file leaves as it is, got one that it varies")
    words = laid_over(further, [*words, *constants])
    metric, maximised = _metric(content.get("metric"), method)
    cap = most if most is not None else _cap(content.get("run_cap"))
    if cap is None and method != "grid":
        raise Refused(f"run_cap: expected how many points, as method: {method} ends nowhere; try run_cap: 20")
    named = str(content.get("name") or name)
    sweep = Sweep(named, verb, tuple(words), space, method, metric, maximised, cap, seed)
    if method == "grid":
        for key, one in space.items():
            _listed(key, one)
    return sweep


def _refuse_store(words: Iterable[str]) -> None:
    """Refuse words, or keys of them, that name a store: every point would be given the one of `--store` behind it, in
    which the sweep keeps its books."""
    if named := [word.text for word in parsed(words) if word.sets("store")]:
        raise Refused(f"store: expected it as --store, for all points alike, got {named[0]}; leave it out")


def _command(content: Mapping) -> tuple[str, list[str]]:
    """The verb, and the words that all runs share."""
    program = content.get("program")
    command = content.get("command")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise Refused(
            "command: expected a list of texts, as W&B's default gives --KEY=VALUE, which the verbs do not take; try "
            f"command: [${{env}}, ${{interpreter}}, ${{program}}, {ARGUMENTS}]"
        )
    if command.count(ARGUMENTS) != 1:
        raise Refused(f"command: expected {ARGUMENTS} once, in the place of the words that are varied, got {command}")
    rest = [word for word in itertools.dropwhile(INTERPRETER.__contains__, command) if word != ARGUMENTS]
    asked, *words = rest or [""]
    verb = _verb(str(program) if asked == "${program}" else asked)
    for word in words:
        if word.startswith(("-", "${")) or not ("=" in word or word.startswith("~")):
            raise Refused(
                f"command: expected KEY=VALUE, +KEY=VALUE or ~KEY behind the verb, got {word!r}; leave it out"
            )
    named = {"project": content.get("project"), "entity": content.get("entity")}
    kept = [f"tracking.{key}={written(str(value))}" for key, value in named.items() if value is not None]
    return verb, laid_over(words, kept)


def _verb(program: str) -> str:
    """The verb that a program is: `evaluate.py`, `evaluate`, `midefense.commands.evaluate`."""
    stem = program.removesuffix(".py").split("/")[-1].split(".")[-1]
    verb = VERB_OF.get(stem, stem)
    if verb not in VERBS:
        raise refuse_unknown("program", program, [f"{verb}.py" for verb in VERBS])
    return verb


def _metric(said: object, method: str) -> tuple[str, bool]:
    """The name of the metric, and whether it is to be large."""
    if said is None:
        if method == "bayes":
            raise Refused(
                "metric: expected the number that bayes is to make small or large, got none; try metric: "
                "{name: attack_accuracy_top1/main, goal: minimize}"
            )
        return "", False
    if not isinstance(said, Mapping) or not isinstance(said.get("name"), str):
        raise Refused(f"metric: expected a name and a goal, got {said}")
    if strange := [key for key in said if key not in ("name", "goal")]:
        raise Refused(f"metric.{strange[0]}: expected name and goal alone, got a key that a local sweep has not")
    goal = said.get("goal", GOALS[0])
    if goal not in GOALS:
        raise refuse_unknown("metric.goal", str(goal), GOALS)
    return said["name"], goal == "maximize"


def _cap(said: object) -> int | None:
    if said is None:
        return None
    if type(said) is not int or said < 1:
        raise Refused(f"run_cap: expected a whole number of at least 1, got {said!r}")
    return said


def _parameters(said: object, within: str = "") -> tuple[list[str], Space]:
    """The words of parameters that have one value, and the space of the others; those that are nested (`parameters`
    within a parameter) by their dotted keys."""
    if not isinstance(said, Mapping) or not said:
        raise Refused(f"{within}parameters: expected what is varied, by the key of its word, got {said!r}")
    constants, space = [], {}
    for name, one in said.items():
        key = f"{within}{name}"
        if not isinstance(one, Mapping):
            raise Refused(f"parameters.{key}: expected value, values, or min and max, got {one!r}")
        if strange := [part for part in one if part not in OF_A_PARAMETER]:
            raise refuse_unknown(f"parameters.{key}.{strange[0]}: no such key here", strange[0], OF_A_PARAMETER)
        _require_alone(key, one)
        if "parameters" in one:
            inner, spaces = _parameters(one["parameters"], f"{key}.")
            constants += inner
            space |= spaces
        elif "value" in one:
            constants += _said(key, lambda key=key, value=one["value"]: list(words_of(key, value)))
        else:
            space[key] = _space(key, one)
    if not within and not space:
        raise Refused("parameters: expected one or more that are varied, got single values alone; try values: [A, B]")
    return constants, space


def _require_alone(key: str, said: Mapping) -> None:
    """Refuse what says in two ways what a parameter is: one of them would be without effect."""
    for name in ("value", "parameters"):
        if name in said and (beside := sorted(set(said) - {name, "distribution"})):
            raise Refused(f"parameters.{key}: expected {name} alone, got {', '.join(beside)} beside it")


def _space(key: str, said: Mapping) -> Interval | Choice:
    where = f"parameters.{key}"
    kind = said.get("distribution")
    if kind is not None and kind not in DISTRIBUTIONS:
        raise refuse_unknown(f"{where}.distribution", str(kind), DISTRIBUTIONS)
    if "values" in said:
        values = said["values"]
        if not isinstance(values, list) or not values or {"min", "max"} & set(said):
            raise Refused(f"{where}: expected values: [A, B], or min and max, got {dict(said)}")
        if kind not in (None, "categorical"):
            raise Refused(f"{where}.distribution: expected categorical beside values, got {kind}")
        texts = _said(key, lambda: tuple(map(written, values)))
        if len(set(texts)) < len(texts):
            raise Refused(f"{where}.values: expected each value once, got {', '.join(texts)}")
        return Choice(texts)
    low, high = said.get("min"), said.get("max")
    if any(type(end) not in (int, float) or not math.isfinite(end) for end in (low, high)):
        raise Refused(f"{where}: expected value, values, or numbers as min and max, got {dict(said)}")
    whole = kind == "int_uniform" or (kind is None and type(low) is type(high) is int)
    if whole and not (type(low) is type(high) is int):
        raise Refused(f"{where}: expected whole numbers as min and max of {kind}, got {low} and {high}")
    ends = (low, high) if whole else (float(low), float(high))
    interval = Interval(*ends, log=kind == "log_uniform_values")
    interval.require_sound(where)
    return interval


def _said(key: str, words: Callable[[], T]) -> T:
    try:
        return words()
    except Refused as refusal:
        raise Refused(f"parameters.{key}: {refusal}") from refusal


def _listed(key: str, one: Interval | Choice) -> Sequence[str]:
    """All values of a grid's parameter."""
    if isinstance(one, Choice):
        return one.values
    if isinstance(one.low, float):
        raise Refused(
            f"parameters.{key}: expected values: [A, B] in a grid, got all numbers from {one.low} to {one.high}"
        )
    if one.high - one.low >= MOST_LISTED:
        raise Refused(
            f"parameters.{key}: expected at most {MOST_LISTED:,} of them in a grid, got all whole numbers from "
            f"{one.low} to {one.high}; try values: [A, B], or method: random"
        )
    return [written(number) for number in range(one.low, one.high + 1)]


def _ends(one: Interval | Choice) -> Sequence[str]:
    return one.values if isinstance(one, Choice) else [rounded(end) for end in one.ends]


def _drawn(one: Interval | Choice, generator: torch.Generator) -> str:
    """A value, each alike; of an interval of numbers, on its scale."""
    if isinstance(one, Choice):
        return one.values[int(torch.randint(len(one.values), (), generator=generator))]
    if isinstance(one.low, int) and not one.log:
        return written(int(torch.randint(one.low, one.high + 1, (), generator=generator)))
    low, high = (math.log(one.low), math.log(one.high)) if one.log else (one.low, one.high)
    value = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
    return rounded(min(max(math.exp(value) if one.log else value, one.low), one.high))
