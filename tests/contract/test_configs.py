"""Every file of `conf/`: it composes with its verb, all it names binds, its header says what a reader needs, and the
command in the header is accepted."""

import inspect
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from contract.listing import CONF, composed, files, within
from midefense.metrics import pairwise
from midefense.plan import bind as binding
from midefense.plan.read import read_plan
from midefense.plan.whitelist import resolve

FILES = files()
COUNTS = {
    ".": 4,
    "architecture": 38,
    "attack": 159,
    "attack/engine": 3,
    "attack/init": 12,
    "attack/objective": 23,
    "attack/purify": 3,
    "attack/schedule": 3,
    "attack/search": 17,
    "attack/search/family": 2,
    "attack/select": 7,
    "attack/surrogate": 10,
    "attack/views": 12,
    "compute": 5,
    "dataset": 14,
    "defense": 39,
    "evaluator": 9,
    "evidence": 7,
    "metrics": 17,
    "obscuring": 5,
    "prior": 29,
    "public": 17,
    "recipe": 17,
    "tracking": 4,
}
FREE = ("experiment", "debug")  # groups of deltas, not members: any number of them
VERBS = ("train_target", "attack", "evaluate")
METHODS = ("attack", "defense", "prior", "dataset", "architecture")  # what has numbers of its own, in its header
TABLES = ROOT / "docs" / "tables.py"
READ_HEADER = runpy.run_path(str(TABLES))["header"]
EMPTY = r"published: none\b.* · measured: (none|with its attack|see )|see README"  # says nothing


def test_the_listing():
    counts = {}
    for file in FILES:
        counts[file.parent.as_posix()] = counts.get(file.parent.as_posix(), 0) + 1
    counted = {group: count for group, count in counts.items() if group.split("/")[0] not in FREE}
    assert counted == COUNTS, "a new file: see that every test of its contract knows it, then raise the count"


def header(file: Path) -> list[str]:
    """The comment lines before the first other line, without their marks and Hydra's `@package`."""
    lines = (CONF / file).read_text().removeprefix("# @package _global_\n").splitlines()
    rest = next(i for i, line in enumerate([*lines, "end"]) if not line.startswith("#"))
    return [line[1:].strip() for line in lines[:rest]]


def commands(file: Path) -> list[tuple[str, list[str]]]:
    """The commands in a header, as (verb, overrides); of a sweep, its first member."""
    pieces = [piece for line in header(file) for piece in line.split(" · ")]
    words = [shlex.split(piece) for piece in pieces if re.match(r"(python|torchrun) ", piece)]
    scripts = [next(i for i, word in enumerate(line) if word.endswith(".py")) for line in words]
    return [
        (line[at].removesuffix(".py"), [first_of(word) for word in line[at + 1 :] if word != "-m"])
        for line, at in zip(words, scripts, strict=True)
    ]


def first_of(override: str) -> str:
    return override if "[" in override else override.split(",")[0]


def nodes(config: object, path: str = "") -> dict[str, dict]:
    """The outermost nodes with a `_target_`, by path."""
    if not isinstance(config, dict):
        return {}
    if "_target_" in config:
        return {path: config}
    found = [nodes(value, f"{path}.{key}".strip(".")) for key, value in config.items()]
    return {key: node for inner in found for key, node in inner.items()}


def identity(file: Path) -> str:
    return file.as_posix()


def bound(file: Path) -> object:
    """On slow runs: the published setups, which tests/test_experiments.py composes and dry-runs in any case."""
    rows = file.parts[0] == "experiment" and len(file.parts) > 2 and file.parts[1] != "base"
    return pytest.param(file, id=identity(file), marks=[pytest.mark.slow] if rows else [])


@pytest.mark.parametrize("file", [bound(file) for file in FILES])
def test_commands_of_the_header_use_the_file_all_of_which_binds_and_is_written_out(file, store, monkeypatch):
    monkeypatch.setattr(pairwise, "require_perceptual", lambda: None)  # as if the weights of LPIPS were at hand
    for number, (verb, overrides) in enumerate(commands(file)):
        assert verb in VERBS
        config, choices = composed(verb, *overrides)
        read_plan(verb, within(store, config), choices, overrides)
        assert uses(file, verb, choices), f"{verb} {overrides} does not use {file}"
        if number == 0:
            outermost = nodes(config)
            assert len(outermost) >= 6
            binding.bind_all({path: (node, True) for path, node in outermost.items()})
            assert [name for path, node in outermost.items() for name in unwritten(node, path)] == []


@pytest.mark.parametrize("file", FILES, ids=identity)
def test_header_says_what_it_is_and_how_to_run_it(file):
    lines = header(file)
    assert re.match(r"\S.* · .*\S", lines[0]), f"expected 'name · source', got {lines[0]!r}"
    assert commands(file), "expected a line '# python <verb>.py ...'"
    assert all(len(line) <= 200 for line in lines)
    empty = re.search(EMPTY, "\n".join(lines))
    assert not empty, f"expected numbers or no such line, got {empty and empty[0]!r}"


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.as_posix() in METHODS], ids=identity)
def test_the_header_of_a_method_says_what_was_published_and_measured(file):
    read = READ_HEADER(CONF / file)
    assert {"published", "measured"} <= set(read), "expected lines '# published: ...' and '# measured: ...'"


def uses(file: Path, verb: str, choices: dict[str, str]) -> bool:
    if file.parent.as_posix() == ".":
        return file.stem in (verb, "shared")
    chosen = {f"{key.split('@')[0].lstrip('/')}/{choice}" for key, choice in choices.items()}
    return file.with_suffix("").as_posix() in chosen


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.as_posix() != "."], ids=identity)
def test_an_option_stands_alone(file):
    """What a file says of a dataset's shape would be wrong beside another dataset; `build` passes it on instead."""
    assert "${dataset" not in (CONF / file).read_text()


def unwritten(node: object, path: str) -> list[str]:
    """Arguments of our classes that a configuration leaves to the code's defaults, at every depth. What a partial has
    no default for is given by who calls it."""
    if isinstance(node, list):
        return [name for i, item in enumerate(node) for name in unwritten(item, f"{path}[{i}]")]
    if not isinstance(node, dict):
        return []
    missing = [name for key, value in node.items() for name in unwritten(value, f"{path}.{key}")]
    if str(node.get("_target_", "")).startswith("midefense."):
        parameters = inspect.signature(resolve(node["_target_"])).parameters
        named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        asked = [name for name, p in named.items() if not (node.get("_partial_") and p.default is p.empty)]
        missing += [f"{path}.{name}" for name in asked if name not in {*node, "classes", "channels", "size"}]
    return missing


@pytest.mark.parametrize("file", FILES, ids=identity)
def test_named_classes_carry_a_revision(file):
    targets = re.findall(r"_target_: ([\w.]+)", (CONF / file).read_text())
    for target in [target for target in targets if target.startswith("midefense.")]:
        assert isinstance(resolve(target).revision, int)


def test_the_tables_of_the_pages_are_current():
    compared = subprocess.run([sys.executable, str(TABLES)], capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    pages = "\n".join(page.read_text() for page in TABLES.parent.glob("*.md"))
    shown = set(re.findall(r"^<!-- table: conf/(\S+) -->$", pages, re.M))
    groups = {file.parent.as_posix() for file in FILES} - {".", "debug", "experiment/base"}
    assert shown == groups, "every group of conf/ has a table on a page of docs/"
