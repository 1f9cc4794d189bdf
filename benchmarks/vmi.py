"""What learning many targets at once saves: the flows of 20 identities in one computation, and one identity after the
other, through the whole search and by the flows alone.

    python benchmarks/vmi.py --write

Both ways take the same steps with the same numbers of samples. Repeats are interleaved, so that a busy machine slows
both; medians are compared.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.miners import Glow, Miner
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.search.flow import Variational
from midefense.attacks.select import Everything
from midefense.oracle import Oracle
from midefense.priors.gmi import GmiGan
from midefense.types import Evidence

IDENTITIES, WIDTH = 20, 100
SGD = functools.partial(torch.optim.SGD, lr=1e-4, momentum=0.9)
REPORT = Path(__file__).with_suffix(".md")


def make_world(device: torch.device) -> tuple[GmiGan, nn.Module]:
    """A generator and a target of 32 px with random weights: speed does not ask for more."""
    with seeds.isolated("benchmark", "vmi"):
        prior = GmiGan(channels=1, size=32, width=8, latent_size=WIDTH)
        target = CNN(classes=IDENTITIES, channels=1, size=32, widths=[8, 16])
    return tuple(network.to(device).eval().requires_grad_(False) for network in (prior, target))


def searched(world: tuple[GmiGan, nn.Module], labels: list[int], steps: int, batch: int) -> None:
    """A group of these labels, from start to end."""
    prior, target = world
    search = Variational(family=Glow(), optimizer=SGD, steps=steps, batch_size=batch)
    attack = SearchAttack(
        init=Random(candidates=1), objective=CrossEntropy(), search=search, select=Everything(), group=len(labels)
    )
    evidence = Evidence(torch.tensor(labels), torch.tensor(labels))
    for _ in attack.recover({}, prior, Oracle(target, "whitebox"), evidence, seeds.generator("benchmark")):
        pass


def flows(miner: Miner, steps: int, batch: int) -> None:
    """The steps of the flows alone: samples, divergence, backward, update."""
    optimizer, rng = SGD(list(miner.parameters())), seeds.generator("benchmark")
    for _ in range(steps):
        optimizer.zero_grad()
        samples = miner.sample(miner.noise(batch, rng, shared=True))
        (samples.square().sum() + miner.divergence(batch, rng).sum()).backward()
        optimizer.step()


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """What a call takes, with all the device has to do."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(device: torch.device, steps: int, batch: int, repeats: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds together and one after another, per repeat."""
    world, family = make_world(device), Glow()
    miners = [
        family.miner(count, 1, WIDTH, seeds.generator(count)).to(device, torch.float64) for count in (IDENTITIES, 1)
    ]
    labels = list(range(IDENTITIES))

    def one_by_one() -> None:
        for label in labels:
            searched(world, [label], steps, batch)

    def flow_by_flow() -> None:
        for _ in labels:
            flows(miners[1], steps, batch)

    ways = {
        "the whole search": (lambda: searched(world, labels, steps, batch), one_by_one),
        "the flows alone": (lambda: flows(miners[0], steps, batch), flow_by_flow),
    }
    for together, _ in ways.values():
        together()  # warm
    return {
        name: tuple(zip(*[[seconds(way, device) for way in pair] for _ in range(repeats)], strict=True))
        for name, pair in ways.items()
    }


def report(found: dict, device: torch.device, steps: int, batch: int, repeats: int) -> str:
    """The page."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    lines = [
        "# VMI's flows for 20 identities at once",
        "",
        "`python benchmarks/vmi.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{repeats} interleaved repeats; median (least to most).",
        "",
        f"Glow of the paper's size (3 levels of 10 couplings, 100 hidden) over latents of {WIDTH}, float64, {batch} "
        f"samples per identity and step, {steps} steps; generator and target of 32 px, narrow:",
        "",
        "| what | together, s | one after another, s | ratio of medians |",
        "|---|---|---|---|",
    ]
    for name, (together, apart) in found.items():
        ratio = statistics.median(apart) / statistics.median(together)
        lines.append(f"| {name} | {_spread(together)} | {_spread(apart)} | {ratio:.1f} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure, print, and write the page where `--write` is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    options = parser.parse_args()
    device = torch.device(options.device)
    found = measure(device, options.steps, options.batch, options.repeats)
    page = report(found, device, options.steps, options.batch, options.repeats)
    print(page)
    if options.write:
        REPORT.write_text(page)


if __name__ == "__main__":
    main()
