"""What breeding for many identities at once saves: MIRROR's black-box search of 32 identities in one computation, and
the authors' loop, identity by identity.

    python benchmarks/mirror.py --write

The loop is written as the authors' script goes: for each identity it measures the pool, takes the logarithms of what
the target said of it, and scores a generation in batches of 50, its fittest again; the pictures that the script draws
and writes in every generation are left out. Both ways are handed the same draws, ask the same number of images and
must end with the same candidates. Repeats are interleaved, so that a busy machine slows both; medians are compared.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from midefense import seeds
from midefense.architectures.small import CNN, MLP
from midefense.attacks.p_space import MirrorPool
from midefense.attacks.problem import Problem
from midefense.attacks.scores import LogConfidence
from midefense.attacks.search.genetic import Genetic
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.priors.gmi import GmiGan
from midefense.types import Evidence

BATCH = 50  # the authors' script
POOLS = {"one layer": 100_000, "convolutions": 5000}  # the authors': 100,000, which convolutions take long to draw
WIDTH = 100
REPORT = Path(__file__).with_suffix(".md")


class OneLayer(Prior):
    """G(w) = (tanh(w A) + 1) / 2: what a look costs is then the loop around it."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels=channels, size=size)
        self.layer = nn.Linear(WIDTH, channels * size**2)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        return torch.randn(count, WIDTH, generator=rng)

    def decode(self, latents: Tensor) -> Tensor:
        return (self.layer(latents).tanh() + 1).div(2).view(-1, self.channels, self.size, self.size)


class World:
    """A generator and a target with random weights (speed does not ask for more), and a pool that was asked about.
    `networks`: `one layer` and a multilayer perceptron of 8 px, or `convolutions` of 32 px, GMI's generator."""

    def __init__(self, device: torch.device, networks: str, identities: int, population: int) -> None:
        with seeds.isolated("benchmark", "mirror"):
            if networks == "convolutions":
                prior = GmiGan(channels=1, size=32, width=8, latent_size=WIDTH)
                target = CNN(classes=identities, channels=1, size=32, widths=[8, 16])
            else:
                prior = OneLayer(channels=1, size=8)
                target = MLP(classes=identities, channels=1, size=8, widths=[64])
        self.device, self.population = device, population
        self.prior, self.target = (one.to(device).eval().requires_grad_(False) for one in (prior, target))
        self.evidence = Evidence(torch.arange(identities), torch.arange(identities))
        self.init = MirrorPool(size=POOLS[networks], candidates=population)
        pool = self.init.prepare(self.prior, self.oracle(), seeds.generator("pool"), None)
        self.state = [give() for *_, give in pool][-1]

    def oracle(self) -> Oracle:
        """A door with a bill of its own."""
        return Oracle(self.target, "scores")


def search_of(generations: int) -> Genetic:
    """The search with every habit of the authors' code, so that both ways do the same."""
    return Genetic(generations=generations, stop=None, crossover="authors", shared_noise=True, rescore=True)


@torch.no_grad()
def together(world: World, generations: int) -> tuple[Tensor, list[int]]:
    """The fittest of every identity [N, width], and what each asked."""
    oracle = world.oracle()
    problem = replace(
        Problem.plain(world.prior, oracle, world.evidence, seeds.generator("benchmark")),
        state=world.state,
        objective=LogConfidence(),
        reads=("probs",),
        chunk=2000,
    )
    for found in search_of(generations)(problem, world.init(problem)):  # noqa: B007
        pass
    return found.latents, [oracle.bill[label] for label in world.evidence.ids.tolist()]


@torch.no_grad()
def one_by_one(world: World, generations: int) -> tuple[Tensor, list[int]]:
    """The same by the authors' loop."""
    search, oracle, fittest = search_of(generations), world.oracle(), []
    rngs = seeds.by_row(seeds.fork(seeds.generator("benchmark"), "search"), world.evidence.ids)
    for label, rng in zip(world.evidence.labels.tolist(), rngs, strict=True):
        pool = world.state["pool.latents"].to(world.device)
        coordinates = leaky_relu(pool, 1 / world.prior.slope)
        mean, deviation = coordinates.mean(0, keepdim=True), coordinates.std(0, keepdim=True, unbiased=False)
        low, high = (leaky_relu(mean + sign * deviation, world.prior.slope) for sign in (-1, 1))
        known = world.state["pool.scores"].to(world.device).clamp_min(1e-12).log()[:, label]
        fitness, best = known.topk(world.population)
        population = pool[best]
        for _ in range(generations):
            fitness, order = fitness.sort(descending=True, stable=True)
            population = population[order]
            dice = search.draw([rng], -fitness[None].cpu(), WIDTH)
            first, second = dice.parents[0].to(world.device)
            share = (fitness[first] / (fitness[first] + fitness[second]))[:, None]
            mask = (dice.crossing[0].to(world.device) < share).float()
            children = mask * population[first] + (1 - mask) * population[second]
            mask = (dice.mutating[0].to(world.device) < search.mutation).float()
            noise = search.strength * (2 * deviation * dice.noise[0].to(world.device) - deviation)
            children = leaky_relu(leaky_relu(children, 1 / world.prior.slope) + mask * noise, world.prior.slope)
            population = torch.cat([population[:1], torch.max(torch.min(children, high), low)])
            scores = []
            for start in range(0, len(population), BATCH):
                images = world.prior.decode(population[start : start + BATCH])
                probs = oracle(images, ids=[label] * len(images), reads=("probs",)).probs
                scores.append(probs.clamp_min(1e-12).log()[:, label])
            fitness = torch.cat(scores)
        fittest.append(population[fitness.argmax()])
    return torch.stack(fittest), [oracle.bill[label] for label in world.evidence.ids.tolist()]


def timed(way, world: World, generations: int) -> tuple[float, tuple[Tensor, list[int]]]:
    """What a way takes, with all the device has to do, and what it gives."""
    started = time.perf_counter()
    found = way(world, generations)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter() - started, found


def measure(world: World, generations: int, repeats: int) -> tuple[list[float], list[float], int, bool]:
    """Seconds together and one after another, per repeat; how many identities end with the same candidate, and whether
    all asked as many images."""
    together(world, 1), one_by_one(world, 1)  # warm
    at_once, apart = [], []
    for _ in range(repeats):
        seconds, (found, asked) = timed(together, world, generations)
        at_once.append(seconds)
        seconds, (known, paid) = timed(one_by_one, world, generations)
        apart.append(seconds)
    same = torch.isclose(found, known, rtol=1e-4, atol=1e-5).flatten(1).all(1)
    return at_once, apart, int(same.sum()), asked == paid


def report(lines: list[str], device: torch.device, options: argparse.Namespace) -> str:
    """The page."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    head = [
        f"# MIRROR's black-box search for {options.identities} identities at once",
        "",
        "`python benchmarks/mirror.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{options.repeats} interleaved repeats; median (least to most).",
        "",
        f"{options.generations} generations; latents of {WIDTH}; a pool of {POOLS['one layer']}, as the authors' "
        f"({POOLS['convolutions']} where convolutions draw it). Both ways ask as many images and are handed the same "
        "draws. With one layer the loop is measured, most of which is the pool, measured again for each identity as "
        "the script does (with a pool of 5,000 the ratio was 3.5); networks that fill the machine cost the "
        "same both ways:",
        "",
        "| networks | population | together, s | one after another, s | ratio of medians | same candidate at the end |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure, print, and write the page where `--write` is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--identities", type=int, default=32)
    parser.add_argument("--populations", type=int, nargs="+", default=[100])
    parser.add_argument("--networks", nargs="+", choices=list(POOLS), default=["one layer"])
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    options = parser.parse_args()
    device, lines = torch.device(options.device), []
    for networks, population in itertools.product(options.networks, options.populations):
        world = World(device, networks, options.identities, population)
        at_once, apart, same, equal = measure(world, options.generations, options.repeats)
        if not equal:
            raise SystemExit("expected both ways to ask as many images")
        ratio = statistics.median(apart) / statistics.median(at_once)
        ends = f"{same} of {options.identities}"
        lines.append(f"| {networks} | {population} | {_spread(at_once)} | {_spread(apart)} | {ratio:.1f} | {ends} |")
    page = report(lines, device, options)
    print(page)
    if options.write:
        REPORT.write_text(page)


if __name__ == "__main__":
    main()
