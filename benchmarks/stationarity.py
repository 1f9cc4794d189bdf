"""Stationarity of a set of images, with its gradients for images and multipliers: the whole set in one vectorised pass,
cut to chunks, and image by image in a loop. What each costs in CPU time and memory; all give the same numbers.

    python benchmarks/stationarity.py [--images 1000] [--side 28] [--widths 200 200] [--classes 10] --write
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from midefense import seeds
from midefense.architectures.homogeneous import HomogeneousMLP
from midefense.attacks.stationarity import Stationarity, Weights
from midefense.oracle import Oracle

REPORT = Path(__file__).with_suffix(".md")
CHUNKS = {"one pass": None, "chunks of 100": 100, "image by image": 1}
TOLERANCE = 1e-9  # relative, in float64


@dataclass(frozen=True)
class Setup:
    """How many images of which side, of how many classes, and the network's hidden units."""

    images: int
    side: int
    widths: tuple[int, ...]
    classes: int


@dataclass(frozen=True)
class Cost:
    """What one evaluation took: `seconds` of CPU, `megabytes` at the peak beyond what was there before, and its
    results, by which ways are compared: the distance and the norms of its two gradients."""

    seconds: float
    megabytes: float
    results: tuple[float, float, float]


def measure(setup: Setup, chunk: int | None) -> Cost:
    """Evaluate stationarity of all pairs over all parameters once, in float64, in this process."""
    with seeds.isolated("stationarity benchmark"):
        model = HomogeneousMLP(
            classes=setup.classes, channels=1, size=setup.side, widths=setup.widths, first_deviation=None
        )
    oracle, part = Oracle(model.double(), "whitebox"), Stationarity(gate=30.0)
    theta = {name: value.requires_grad_() for name, value in oracle.parameters().items()}
    _evaluation(setup, 2, oracle, part, theta)()  # what is done once per process is not counted
    evaluate = _evaluation(setup, setup.images, oracle, part, theta)
    before, start = _peak(), time.process_time()
    value, by_image, by_multiplier = evaluate(chunk=chunk)
    seconds = time.process_time() - start
    return Cost(seconds, _peak() - before, (float(value), float(by_image.norm()), float(by_multiplier.norm())))


def _evaluation(setup: Setup, count: int, oracle: Oracle, part: Stationarity, theta: Weights) -> Callable:
    """Stationarity of `count` images, ready to be asked for."""
    rng = seeds.generator("stationarity benchmark", "images")
    images = torch.rand(count, 1, setup.side, setup.side, dtype=torch.float64, generator=rng).requires_grad_()
    labels = torch.arange(count) % setup.classes
    multipliers = part.multipliers(count, setup.classes, rng, torch.float64).requires_grad_()

    def ask(rows: slice, weights: Weights) -> torch.Tensor:
        return oracle(images[rows], reads=("logits",), weights=weights, gate=part.gate).logits

    return functools.partial(part, theta, ask, images, labels, multipliers)


def _peak() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def costs(setup: Setup) -> dict[str, Cost]:
    """What every way costs, each in a process of its own, as the peak of memory is a process's."""
    found = {}
    for name, chunk in CHUNKS.items():
        fresh = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
        with fresh as process:
            found[name] = process.submit(measure, setup, chunk).result()
    require_equal(found)
    return found


def require_equal(found: dict[str, Cost]) -> None:
    """Raises `AssertionError` where two ways gave other numbers."""
    first, *others = found.items()
    for name, cost in others:
        for one, other in zip(first[1].results, cost.results, strict=True):
            if abs(one - other) > TOLERANCE * abs(one):
                raise AssertionError(f"{name} gives {other}, {first[0]} {one}")


def report(setup: Setup, found: dict[str, Cost]) -> str:
    """The page."""
    weights = setup.side**2 * setup.widths[0] + setup.widths[0]
    weights += sum(one * other for one, other in zip(setup.widths, (*setup.widths[1:], setup.classes), strict=True))
    loop = found["image by image"].seconds
    lines = [
        "# Stationarity of a set of images",
        "",
        "`python benchmarks/stationarity.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), one thread, torch {torch.__version__}, "
        f"float64, one run each: {setup.images:,} images of {setup.side} px, {setup.classes} classes, a homogeneous "
        f"perceptron of {', '.join(map(str, setup.widths))} units ({weights:,} weights), a multiplier for every image "
        "and other class. One evaluation is the distance of all weights from the sum of gradients, and its gradients "
        "for all pixels and multipliers. Seconds of CPU; memory beyond images and network, at the peak. All ways give "
        "the same numbers, to a part in a thousand million.",
        "",
        "| way | s | times as fast as a loop | MB |",
        "|---|---|---|---|",
    ]
    for name, cost in found.items():
        lines.append(f"| {name} | {cost.seconds:.2f} | {loop / cost.seconds:.1f} | {cost.megabytes:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--widths", type=int, nargs="+", default=(200, 200))
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    setup = Setup(arguments.images, arguments.side, tuple(arguments.widths), arguments.classes)
    page = report(setup, costs(setup))
    if arguments.write:
        REPORT.write_text(page)
    print(page, end="")


if __name__ == "__main__":
    main()
