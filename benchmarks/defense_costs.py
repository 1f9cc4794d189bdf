"""What training under each defense costs beside training without one: the same network, images and batches.

    python benchmarks/defense_costs.py --write

In every round each defense trains for an epoch of a few updates from fresh weights, right after `none` on the same
network, so that what else the machine does meets both. What is compared is the CPU time of this one process, on one
thread.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning_fabric import Fabric

from midefense import seeds
from midefense.defenses.base import Defense
from midefense.defenses.output import OutputDefense
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.bind import Node, bind
from midefense.plan.compose import compose
from midefense.plan.read import read_plan
from midefense.plan.verb_options import CONF
from midefense.training import loop
from midefense.types import Images, Origin

REPORT = Path(__file__).with_suffix(".md")
WORLD = ("dataset=digits", "dataset.size=16", "recipe.batch_size=64", "recipe.epochs=1", "tracking=none", "compute=cpu")
NETWORK = ("architecture=cnn", "architecture.size=16")
# It removes skip connections, which `cnn` has not.
OWN_NETWORK = {"rolss": ("architecture=vit_tiny", "architecture.size=16", "architecture.patch=4")}
UPDATES = 4
ROUNDS = 6  # counted: the least and the largest of six hold the median with 97 % (1 - 2/2^6), whatever it is like


@dataclass
class Entry:
    """A defense, the words of its network, and what each round measured: CPU seconds of an epoch under it and, right
    before, under none."""

    name: str
    defense: Node
    network: tuple[str, ...]
    pairs: list[tuple[float, float]] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether it has a part in training: not what acts at release, or on answers, alone."""
        built = self.defense.build()
        return not (built.only_releases or isinstance(built, OutputDefense))

    @property
    def line(self) -> str:
        """Its row of the table."""
        if not self.trains:
            return f"| `{self.name}` | | trains as `none`: it acts at release, or on answers |"
        ratios = sorted(under / plain for under, plain in self.pairs)
        seconds = statistics.median(under for under, _ in self.pairs) / UPDATES
        found = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        return f"| `{self.name}` | {self.network[0].partition('=')[2]} | {found}, {1000 * seconds:.0f} ms an update |"


@dataclass(frozen=True)
class World:
    """What all defenses of one network share: images, the network and the recipe."""

    images: Images
    architecture: Node
    recipe: Node

    @classmethod
    def of(cls, network: tuple[str, ...], store: Path) -> World:
        words = [*WORLD, *network, "defense=none", f"store={store}"]
        plan = read_plan("train_target", *compose("train_target", words), words)
        images = Pipeline(plan).splits.private_train
        dataset = plan.target.dataset.build()
        shape = {"classes": len(images.names), "channels": dataset.channels, "size": dataset.size}
        batch = plan.target.recipe.arguments["batch_size"]
        some = images.take(torch.randperm(len(images), generator=seeds.generator("costs"))[: UPDATES * batch])
        return cls(some, plan.target.architecture.given(**shape), plan.target.recipe)

    def seconds(self, defense: Defense, fabric: Fabric) -> float:
        """CPU seconds of an epoch from fresh weights."""
        with seeds.isolated("costs"):
            model = self.architecture.build()
        model = loop.assemble(model, defense, 0, Origin.STARTED if defense.needs_start else Origin.DRAWN)
        progress = loop.fit(model, defense, self.images, self.recipe.build(), 0, fabric)
        started = time.process_time()
        for _ in progress:
            pass
        return time.process_time() - started


def entries() -> list[Entry]:
    """All defenses but `none`, as their files have them."""
    found = []
    for name in sorted(path.stem for path in (CONF / "defense").glob("*.yaml") if path.stem != "none"):
        network = OWN_NETWORK.get(name, NETWORK)
        config, _ = compose("train_target", [*WORLD, *network, f"defense={name}", "store=nowhere"])
        node = bind(config["defense"], "defense", beside_dataset=True)
        found.append(Entry(name, node.given(classes=5, channels=1, size=16), network))
    return found


def measure(found: list[Entry], rounds: int) -> None:
    """Measure every defense that trains, `rounds` times in turn after a round that does not count."""
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=1)
    none = bind({"_target_": "midefense.defenses.base.NoDefense"}, "defense")
    training = [entry for entry in found if entry.trains]
    with tempfile.TemporaryDirectory() as store:
        worlds = {network: World.of(network, Path(store)) for network in {entry.network for entry in training}}
    for number in range(rounds + 1):
        for entry in training:
            world = worlds[entry.network]
            plain, under = (world.seconds(node.build(), fabric) for node in (none, entry.defense))
            if number:
                entry.pairs.append((under, plain))
        print(f"round {number} of {rounds}", flush=True)


def report(found: list[Entry]) -> str:
    """The page."""
    lines = [
        "# What training under a defense costs",
        "",
        "`python benchmarks/defense_costs.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), one thread, torch {torch.__version__}, "
        "while other work kept both cores busy.",
        "",
        f"CPU time of an epoch of {UPDATES} updates on digits at 16 px (64 images each; what leaves updates out of an "
        "epoch pays for fewer), over that of `none` on the same network right before it: the median of "
        f"{ROUNDS} rounds, and the least and the largest, which hold the true median with 97 %. Every defense is as "
        "its file has it.",
        "",
        "| defense | network | times `none` |",
        "|---|---|---|",
        *(entry.line for entry in sorted(found, key=lambda entry: (not entry.trains, entry.name))),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    found = entries()
    measure(found, arguments.rounds)
    text = report(found)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
