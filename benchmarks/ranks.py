"""How much faster two processes on two cores attack than one process of one thread, and whether they find the same
bits.

    python benchmarks/ranks.py --write

A classifier and a GAN are trained once. Then the same attack is run by one process, and by two that torchrun starts,
one thread each, in turn and `--repeats` times: they share out the groups of targets through the store. Time runs from
the first process's beginning of the attack to the last one's end, by what they write into their run folders: the time
that processes take to start is not in it. Wants two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

REPORT = Path(__file__).with_suffix(".md")
SOURCES = Path(__file__).resolve().parents[1] / "src"
WANTED = 1.7  # times the throughput of one process
GROUPS = 24  # of one target each: what two processes share out
CANDIDATES = 20
WORLD = ("dataset=toy", f"dataset.classes={GROUPS}", "dataset.public_classes=32", "architecture=cnn", "recipe.epochs=5")
ATTACK = ("attack=gmi_small", f"attack.init.candidates={CANDIDATES}", "attack.group=1", "prior.steps=100")
HOW = ("compute=cpu", "compute.threads=1", "tracking=none")
LAUNCHERS = {
    1: (sys.executable, "-m"),
    2: (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"),
}


def run(verb: str, processes: int, words: tuple[str, ...], store: Path) -> None:
    """Run a verb by so many processes, one thread each; `CalledProcessError` where it fails."""
    command = [*LAUNCHERS[processes], f"midefense.commands.{verb}", *words, *HOW, f"store={store}"]
    paths = os.pathsep.join([str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths})


def attacked(processes: int, words: tuple[str, ...], trained: Path, store: Path) -> tuple[float, bytes]:
    """Seconds of an attack by so many processes, in a copy of the store `trained`, and the file of what they found."""
    shutil.copytree(trained, store)
    run("attack", processes, words, store)
    said = [json.loads(path.read_text()) for path in store.glob("runs/attack/*/**/status.json")]
    if len(said) != processes:
        raise RuntimeError(f"expected {processes} processes at the attack, got {len(said)}; try a longer one: --steps")
    (recovered,) = store.glob("recovered/*/tensors.safetensors")
    return max(one["updated"] for one in said) - min(one["started"] for one in said), recovered.read_bytes()


def measure(steps: int, repeats: int, folder: Path) -> tuple[dict[int, list[float]], bool]:
    """Seconds by number of processes, and whether all found the same bits."""
    words = (*WORLD, *ATTACK, f"attack.search.steps={steps}")
    trained, found, seconds = folder / "trained", set(), {1: [], 2: []}
    run("attack", 1, (*WORLD, *ATTACK, "attack.search.steps=1"), trained)  # its target and its prior are those of all
    for kind in ("recovered", "runs"):
        shutil.rmtree(trained / kind, ignore_errors=True)
    for repeat in range(repeats):
        for processes in seconds:
            took, bits = attacked(processes, words, trained, folder / f"{repeat}-{processes}")
            seconds[processes].append(took)
            found.add(bits)
            print(f"{processes} processes: {took:.1f} s", flush=True)
    return seconds, len(found) == 1


def report(seconds: dict[int, list[float]], same: bool, steps: int) -> str:
    """The measured times as markdown; throughput is in images that the target was shown a second."""
    images = GROUPS * CANDIDATES * steps
    times = {processes: statistics.median(each) for processes, each in seconds.items()}
    faster = times[1] / times[2]
    lines = [
        "# Ranks",
        "",
        "`python benchmarks/ranks.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}, {os.cpu_count()} cores), one thread a "
        f"process, torch {torch.__version__}; `{' '.join((*WORLD, *ATTACK))} attack.search.steps={steps}`, median of "
        f"{len(seconds[1])}.",
        "",
        f"{GROUPS} groups of one target, attacked by one process and by two of torchrun's, which meet in the store.",
        "",
        "| processes | seconds | from ... to | images/s | times one process |",
        "|---|---|---|---|---|",
    ]
    for processes, each in seconds.items():
        of_all = f"{min(each):.1f} to {max(each):.1f}"
        speed, times_one = images / times[processes], times[1] / times[processes]
        lines.append(f"| {processes} | {times[processes]:.1f} | {of_all} | {speed:,.0f} | {times_one:.2f} |")
    verdict = "reached" if faster >= WANTED else "missed"
    bits = "the same bits in every run" if same else "DIFFERENT bits"
    return "\n".join([*lines, "", f"Recovered: {bits}. Wanted: {WANTED} times, {verdict}."]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of the search (default: 300, minutes in all)")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, same = measure(arguments.steps, arguments.repeats, Path(folder))
    text = report(seconds, same, arguments.steps)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
