"""What the attack engine costs: GMI's inner loop through `SearchAttack` against the same loop written by hand on the
same networks, and the time per image against the number of rows that descend together.

    python benchmarks/attack_engine.py --write

Both loops end at the same latents, or the run fails. Repeats are interleaved, so that a busy machine slows both;
medians are compared.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy, Realism, Weighted, WeightedSum
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import Everything
from midefense.oracle import Oracle
from midefense.priors.gmi import GmiGan
from midefense.types import Evidence

CLASSES = 10
IDENTITY_WEIGHT, REFERENCE_BATCH, BOX = 100.0, 60, 1.0
SGD = functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True)
REPORT = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class World:
    """Frozen networks of GMI's shapes, narrow enough for a CPU, with random weights: speed does not ask for more."""

    prior: GmiGan
    target: nn.Module
    device: torch.device


def make_world(device: torch.device, width: int = 16) -> World:
    """A 32 px grey world on `device`; the same weights every time."""
    with seeds.isolated("benchmark", "attack_engine"):
        prior = GmiGan(channels=1, size=32, width=width)
        target = CNN(classes=CLASSES, channels=1, size=32, widths=[16, 32])
    return World(*(network.to(device).eval().requires_grad_(False) for network in (prior, target)), device)


def through_the_engine(world: World, rows: int, steps: int) -> Tensor:
    """Final latents [rows, 100] of one group with one candidate per target."""
    terms = {
        "identity": Weighted(loss=CrossEntropy(), weight=IDENTITY_WEIGHT),
        "realism": Weighted(loss=Realism(), weight=1.0),
    }
    attack = SearchAttack(
        init=Random(candidates=1),
        objective=WeightedSum(terms=terms),
        search=Gradient(optimizer=SGD, steps=steps, reference_batch=REFERENCE_BATCH, box=BOX),
        select=Everything(),
    )
    oracle = Oracle(world.target, "whitebox")
    evidence = Evidence(torch.arange(rows) % CLASSES, torch.arange(rows))
    *_, found = attack.recover({}, world.prior, oracle, evidence, seeds.generator("benchmark"))
    return found.latents


def by_hand(world: World, rows: int, steps: int) -> Tensor:
    """The same mathematics as one would write it in a script: no oracle, no counting, no slots."""
    latents = world.prior.sample(rows, seeds.fork(seeds.generator("benchmark"), "init")).to(world.device)
    labels = (torch.arange(rows) % CLASSES).to(world.device)
    latents.requires_grad_()
    optimizer = SGD([latents])
    for _ in range(steps):
        optimizer.zero_grad()
        images = world.prior.generator(latents)
        identity = F.cross_entropy(world.target(images).logits, labels, reduction="sum")
        loss = IDENTITY_WEIGHT * identity - world.prior.critic(images).sum()
        (loss / REFERENCE_BATCH).backward()
        optimizer.step()
        with torch.no_grad():
            latents.clamp_(-BOX, BOX)
    return latents.detach()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def interleaved(works: list[Callable[[], object]], device: torch.device, repeats: int) -> list[list[float]]:
    """Seconds of each work, measured in turns (a, b, a, b, ...) after one call each that warms up."""
    for work in works:
        work()
    turns = [[seconds(work, device) for work in works] for _ in range(repeats)]
    return [list(times) for times in zip(*turns, strict=True)]


def overhead(world: World, rows: int = 25, steps: int = 20, repeats: int = 11) -> dict[str, list[float]]:
    """Milliseconds per step of both loops, one value per repeat.

    Raises:
        AssertionError: the two loops do not end at the same latents (1e-5).
    """
    works = [functools.partial(loop, world, rows, steps) for loop in (through_the_engine, by_hand)]
    torch.testing.assert_close(works[0](), works[1](), atol=1e-5, rtol=0)
    times = interleaved(works, world.device, repeats)
    return {name: [1e3 * t / steps for t in spent] for name, spent in zip(("engine", "by hand"), times, strict=True)}


def batching(
    world: World, rows: tuple[int, ...] = (1, 5, 25, 100), steps: int = 5, repeats: int = 5
) -> dict[int, list[float]]:
    """Milliseconds per image and step by the number of rows that descend together."""
    works = [functools.partial(through_the_engine, world, count, steps) for count in rows]
    times = interleaved(works, world.device, repeats)
    return {count: [1e3 * t / steps / count for t in spent] for count, spent in zip(rows, times, strict=True)}


def report(world: World, repeats: int) -> str:
    """Both measurements as markdown."""
    loops, groups = overhead(world, repeats=repeats), batching(world, repeats=repeats)
    ratio = statistics.median(loops["engine"]) / statistics.median(loops["by hand"])
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine()
    lines = [
        "# Attack engine",
        "",
        "`python benchmarks/attack_engine.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {world.device.type} ({name}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {repeats} interleaved repeats; median (least to most).",
        "",
        "GMI's inner loop, 25 rows, 32 px, generator and critic of width 16; both loops end at the same latents:",
        "",
        "| loop | ms per step |",
        "|---|---|",
        *(f"| {loop} | {_spread(times)} |" for loop, times in loops.items()),
        f"| ratio of medians | {ratio:.3f} |",
        "",
        "The engine by the number of rows that descend together:",
        "",
        "| rows | ms per image and step |",
        "|---|---|",
        *(f"| {rows} | {_spread(times)} |" for rows, times in groups.items()),
    ]
    return "\n".join(lines) + "\n"


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    text = report(make_world(torch.device(arguments.device)), arguments.repeats)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
