"""How long a store of 1,000 artefacts takes to be listed, and one of it to be found.

    python benchmarks/store.py --write

Artefacts of four kinds, of one small tensor each: what is measured opens no tensors but those of the one that is looked
for. CPU seconds of this process, which another process changes little, and seconds by the clock; a command of its own
also starts Python and imports torch, which is measured beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from midefense.commands.doctor import run as doctor
from midefense.commands.gc import run as gc
from midefense.commands.store import run as command
from midefense.store import artefacts
from midefense.store.artefacts import Artefact, Draft
from midefense.store.lineage import lineage
from midefense.store.store import Store

REPORT = Path(__file__).with_suffix(".md")
CHAINS = 250  # of a target, a prior, what was recovered and its row
ROUNDS = 5


def filled(store: Store, chains: int) -> Artefact:
    """Fill a store; returns one of what was recovered."""
    for number in range(chains):
        target = _made(store, "target", number)
        prior = _made(store, "prior", number, target=target)
        recovered = _made(store, "recovered", number, target=target, prior=prior)
        _made(store, "result", number, recovered=recovered, target=target)
    return recovered


def _made(store: Store, kind: str, number: int, **parents: Artefact) -> Artefact:
    recipe = {"kind": kind, "seed": number}
    draft = Draft(kind=kind, name=f"digits-{kind}-{number}", recipe=recipe, **lineage(parents))
    return store.work(draft).finish({"weight": torch.zeros(8)}, {"accuracy": 0.5}, bill={"queries": 3})


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and seconds of the median of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        cpu, clock = time.process_time(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            work()
        rounds.append((time.process_time() - cpu, time.perf_counter() - clock))
    return tuple(statistics.median(values) for values in zip(*rounds, strict=True))


def started(*words: str) -> float:
    """CPU seconds of a process of its own."""
    before = os.times()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def report(chains: int) -> str:
    """The numbers as markdown."""
    os.fsync = lambda _: None  # a store to throw away
    artefacts._commit = lambda: ""  # a process of git for each artefact
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        one = filled(store, chains)
        place = ["--store", str(store.root)]
        works = {
            "`midefense store list`": lambda: command([*place, "list"]),
            "`midefense store show REF`": lambda: command([*place, "show", one.reference]),
            "a finished artefact, found again by its recipe": lambda: Store(folder).find(
                Draft(kind=one.kind, name=one.name, recipe=one.recipe)
            ),
            "`midefense gc`": lambda: gc(place),
            "`midefense doctor --only store`": lambda: doctor([*place, "--only", "store"]),
        }
        lines = [f"| {what} | {cpu:.2f} s | {clock:.2f} s |" for what, (cpu, clock) in _all(works).items()]
        whole = started("-m", "midefense", "store", *place, "list")
        bare = started("-c", "import midefense.commands.store")
    return "\n".join(
        [
            f"# A store of {4 * chains:,} artefacts",
            "",
            "`python benchmarks/store.py --write`",
            f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), torch {torch.__version__}, load "
            f"average {os.getloadavg()[0]:.1f}: the clock also counts what others compute on this core meanwhile.",
            "",
            "| what | CPU | by the clock |",
            "|---|---|---|",
            *lines,
            "",
            f"As a command of its own `store list` takes {whole:.1f} s of CPU, {bare:.1f} s of it to start Python and "
            "to import torch. Of each artefact one file is read, its provenance (tests/test_store.py counts them).",
            "",
        ]
    )


def _all(works: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    return {what: measured(work) for what, work in works.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name}")
    parser.add_argument("--chains", type=int, default=CHAINS, help="four artefacts each")
    options = parser.parse_args()
    text = report(options.chains)
    print(text)
    if options.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
