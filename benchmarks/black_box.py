"""What it brings that black-box attacks search for all targets of a group at once: RLB-MI's agents together against one
after another, and BREP-MI's walks together against the loop over identities that its authors wrote.

    python benchmarks/black_box.py --write
    python benchmarks/black_box.py --device cuda --paper --write

Both ways ask as many images, or the run fails; how often they find the same is told. On a CPU the processor's own
seconds count, so that a busy machine does not; on a GPU those of the clock. Repeats are interleaved, medians are
compared.
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
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.attacks.scores import Reward, WrongLabel
from midefense.attacks.search.policy import SoftActorCritic
from midefense.attacks.search.repulsion import BoundaryRepulsion
from midefense.attacks.select import Everything
from midefense.oracle import Oracle
from midefense.priors.gmi import GmiGan
from midefense.types import Evidence, Found

REPORT = Path(__file__).with_suffix(".md")
BOX, RADIUS, GROWTH, POINTS = 1.5, 2.0, 1.3, 32


@dataclass(frozen=True)
class Sizes:
    """Of a world, and of what is measured in it: `episodes` of `targets` agents, `rounds` of `walks`. One after another
    only the first `alone` of either are measured, and counted for all: each takes as long as the next."""

    channels: int
    side: int
    width: int
    widths: tuple[int, ...]
    classes: int
    hidden: int
    batch_size: int
    episodes: int
    targets: int
    rounds: int
    walks: int
    alone: int


SMALL = Sizes(1, 32, 16, (16, 32), 10, 64, 64, 120, 32, 30, 32, 32)  # as rlb_mi_small and brep_mi_small
PAPER = Sizes(3, 64, 64, (64, 128, 256), 1000, 256, 256, 400, 32, 60, 300, 4)


@dataclass(frozen=True)
class World:
    """Frozen networks with random weights: speed does not ask for more."""

    prior: GmiGan
    target: nn.Module
    device: torch.device
    sizes: Sizes


def make_world(device: torch.device, sizes: Sizes) -> World:
    """The same weights every time."""
    shape = {"channels": sizes.channels, "size": sizes.side}
    with seeds.isolated("benchmark", "black_box"):
        prior = GmiGan(width=sizes.width, **shape)
        target = CNN(classes=sizes.classes, widths=list(sizes.widths), **shape)
    return World(*(part.to(device).eval().requires_grad_(False) for part in (prior, target)), device, sizes)


# RLB-MI ----------------------------------------------------------------------------------------------------------


def agents(world: World, apart: bool) -> tuple[dict[int, int], Tensor]:
    """What every target was asked, and how sure the target is of what was found [N]; all agents in one group, or some
    of them each in one of its own."""
    sizes = world.sizes
    attack = SearchAttack(
        init=Random(candidates=1),
        objective=Reward(),
        search=SoftActorCritic(
            optimizer=functools.partial(torch.optim.Adam, lr=5e-4),
            episodes=sizes.episodes,
            hidden=sizes.hidden,
            batch_size=sizes.batch_size,
        ),
        select=Everything(),
        access="scores",
    )
    groups = torch.arange(sizes.alone).split(1) if apart else [torch.arange(sizes.targets)]
    bills, found = {}, []
    for ids in groups:
        oracle = Oracle(world.target, "scores")
        evidence = Evidence(ids % sizes.classes, ids)
        *_, last = attack.recover({}, world.prior, oracle, evidence, seeds.generator("benchmark"))
        bills |= oracle.bill
        found.append(1 - last.loss)
    return bills, torch.cat(found)


# BREP-MI ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walks:
    """Starts [N, width] on the CPU and the label that the target gives each, int64 [N]."""

    noise: Tensor
    labels: Tensor


@torch.no_grad()
def starts(world: World) -> Walks:
    """Draws of the prior; whatever label they are given is the one wanted."""
    noise = torch.randn(world.sizes.walks, world.prior.normal_width, generator=seeds.generator("starts"))
    noise = noise.clamp(-BOX, BOX)
    pictures = (world.prior.decode(part.to(world.device)) for part in noise.split(64))
    return Walks(noise, torch.cat([world.target(images).logits.argmax(1) for images in pictures]).cpu())


class At(Part):
    """Given starts."""

    gives = ("noise",)

    def __init__(self, noise: Tensor):
        self.noise = noise

    def __call__(self, problem: Problem) -> Found:
        rows = torch.arange(len(self.noise))
        unmeasured = torch.full((len(rows),), torch.nan)
        return Found(self.noise.to(problem.device), unmeasured, rows, stage="initial", noise=self.noise)


def walks_together(world: World, walks: Walks) -> tuple[dict[int, int], Tensor]:
    """What every target was asked, and where it ends [N, width]."""
    search = BoundaryRepulsion(max_rounds=world.sizes.rounds, keep="last")
    attack = SearchAttack(
        init=At(walks.noise), objective=WrongLabel(), search=search, select=Everything(), access="labels"
    )
    oracle = Oracle(world.target, "labels")
    evidence = Evidence(walks.labels, torch.arange(len(walks.labels)))
    *_, last = attack.recover({}, world.prior, oracle, evidence, seeds.generator("benchmark"))
    return oracle.bill, last.latents.cpu()


@torch.no_grad()
def walks_one_by_one(world: World, walks: Walks) -> tuple[dict[int, int], Tensor]:
    """The same of some, as the authors' loop: identity after identity, a forward for the sphere and one for the
    move."""
    everyone = Evidence(walks.labels, torch.arange(len(walks.labels)))
    problem = Problem.plain(world.prior, None, everyone, seeds.generator("benchmark"))
    draws = problem.draws_of("search", everyone.ids)
    bills, ends = {}, []
    for target, label in enumerate(walks.labels[: world.sizes.alone].tolist()):
        bills[target], end = _walk(world, walks.noise[target], label, draws[target])
        ends.append(end)
    return bills, torch.stack(ends)


def _walk(world: World, noise: Tensor, label: int, draws: torch.Generator) -> tuple[int, Tensor]:
    """One identity from its start [width]."""

    def phi(points: Tensor) -> Tensor:
        images = world.prior.decode(points.to(world.device))
        return torch.where(world.target(images).logits.argmax(1) == label, 1.0, -1.0).cpu()

    radius, asked = RADIUS, 0
    for _ in range(world.sizes.rounds):
        step = min(radius / 3, 3.0)
        directions = torch.randn(POINTS, len(noise), generator=draws)
        directions = directions / directions.norm(dim=1, keepdim=True)
        signs = phi(noise + radius * directions)
        if signs.sum() > 0.75 * POINTS:
            radius *= GROWTH
        moved = (noise + step * ((signs - 1) / 2 @ directions) / POINTS).clamp(-BOX, BOX)
        if phi(moved[None])[0] > 0:
            noise = moved
        asked += POINTS + 1
    return asked, noise


# what it costs ---------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call: the processor's on a CPU, the clock's on a GPU, whose queue is waited for."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


def compared(
    together: Callable, apart: Callable, device: torch.device, repeats: int
) -> tuple[list[float], list[float], float]:
    """Seconds of both ways, in turns, after one call each; and in how many of 100 that both have they find the same to
    1e-3. Products of other shapes round otherwise, so that a decision on the very boundary may fall otherwise.

    Raises:
        AssertionError: one asks more than the other.
    """
    (bills, found), (other_bills, others) = together(), apart()
    assert other_bills == {target: bills[target] for target in other_bills}, "both ways ask the same"
    apart_by = (found[: len(others)] - others).abs().reshape(len(others), -1).amax(1)
    turns = [[seconds(work, device) for work in (together, apart)] for _ in range(repeats)]
    at_once, in_turn = (list(times) for times in zip(*turns, strict=True))
    return at_once, in_turn, 100 * float((apart_by < 1e-3).float().mean())


def report(world: World, repeats: int, command: str) -> str:
    """Both measurements as markdown."""
    walks, sizes = starts(world), world.sizes
    ways = {
        f"RLB-MI, {sizes.targets} targets, {sizes.episodes} episodes": (
            sizes.targets,
            functools.partial(agents, world, False),
            functools.partial(agents, world, True),
        ),
        f"BREP-MI, {sizes.walks} targets, {sizes.rounds} rounds": (
            sizes.walks,
            functools.partial(walks_together, world, walks),
            functools.partial(walks_one_by_one, world, walks),
        ),
    }
    rows = []
    for name, (count, together, apart) in ways.items():
        at_once, some, agree = compared(together, apart, world.device, repeats)
        in_turn = [spent * count / sizes.alone for spent in some]
        ratio = statistics.median(in_turn) / statistics.median(at_once)
        rows.append(f"| {name} | {_spread(at_once)} | {_spread(in_turn)} | {ratio:.1f} | {agree:.0f} |")
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine()
    kind = "clock" if world.device.type == "cuda" else "processor"
    lines = [
        "# Black-box attacks: all targets at once",
        "",
        f"`{command}`",
        f"measured {time.strftime('%Y-%m-%d')}, {world.device.type} ({name}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {repeats} interleaved repeats; median (least to most).",
        "",
        f"{sizes.side} px, generator of width {sizes.width}, agents of {sizes.hidden} units, updates of "
        f"{sizes.batch_size} steps. Both ways ask as many images of every target, and draw the same. One after "
        f"another {sizes.alone} targets were measured, and their seconds multiplied up to all.",
        "",
        f"| attack | {kind} seconds at once | one after another | ratio | found the same, in 100 |",
        "|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--paper", action="store_true", help="networks and agents of the papers' sizes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    paper = " --paper" if arguments.paper else ""
    command = f"python benchmarks/black_box.py --device {arguments.device}{paper} --repeats {arguments.repeats} --write"
    world = make_world(torch.device(arguments.device), PAPER if arguments.paper else SMALL)
    text = report(world, arguments.repeats, command)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
