"""How fast synthetic faces are drawn, from their numbers to uint8 pixels: by size, with one thread and with two.

    python benchmarks/synthetic_faces.py --write

Besides pictures per second by the clock, the processor time of a picture is given: other work on the machine slows
the former, and hardly the latter. Every repeat draws the same bytes, or the run fails.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from midefense.datasets.synthetic_faces.dataset import SyntheticFaces

REPORT = Path(__file__).with_suffix(".md")
PICTURES = {32: 4000, 64: 2000, 128: 500, 256: 120}  # per repeat, by size


@dataclass(frozen=True)
class Speed:
    """Pictures per second and processor microseconds per picture, one number per repeat."""

    per_second: list[float]
    microseconds: list[float]


def measure(size: int, threads: int, repeats: int) -> Speed:
    """Draw the same private pictures `repeats` times, after one drawing that warms up.

    Raises:
        AssertionError: two repeats drew different bytes.
    """
    torch.set_num_threads(threads)
    faces = SyntheticFaces(identities=PICTURES[size] // 40, images_per_identity=40, size=size)
    drawn, per_second, microseconds = set(), [], []
    for repeat in range(repeats + 1):
        wall, processor = time.perf_counter(), time.process_time()
        images = faces.private_train()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        drawn.add(hashlib.sha256(images.pixels.numpy()).hexdigest())
        if repeat:
            per_second.append(len(images) / wall)
            microseconds.append(1e6 * processor / len(images))
    assert len(drawn) == 1, "expected the same bytes in every repeat"
    return Speed(per_second, microseconds)


def report(repeats: int) -> str:
    """All sizes as markdown."""
    rows = [
        f"| {size} | {threads} | {_spread(speed.per_second)} | {_spread(speed.microseconds)} |"
        for size in PICTURES
        for threads in (1, 2)
        for speed in [measure(size, threads, repeats)]
    ]
    load = os.getloadavg()[0]
    lines = [
        "# Synthetic faces",
        "",
        "`python benchmarks/synthetic_faces.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}, {os.cpu_count()} cores, load average "
        f"{load:.1f} at the end), torch {torch.__version__}, {repeats} repeats; median (least to most).",
        "",
        "Identity and conditions drawn, rendered, rounded to uint8:",
        "",
        "| pixels | threads | pictures per second | processor µs per picture |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _spread(numbers: list[float]) -> str:
    return f"{statistics.median(numbers):.0f} ({min(numbers):.0f} to {max(numbers):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    text = report(arguments.repeats)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
