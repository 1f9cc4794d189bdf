"""Training images from weights at the size of a CPU core: three networks with as many weights each (multilayer
perceptron, convolutional, transformer) trained to rest on 100 or 600 images of MNIST, FashionMNIST, CIFAR-10 and SVHN.

    python benchmarks/network_inversion.py --packs DIR --store DIR [--images 100 600] [--seeds 0 1 2] --write

`--packs` holds mnist/MNIST/raw, fashion/FashionMNIST/raw, cifar10/{train,test}/<class> and svhn/*_32x32.mat; what is
not there is left out, and the page says so. Everything is kept in `--store`: the same command goes on where a run was
ended, several may share a store, and what is not measured yet is said so in the page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from low_resolution import ABSENT, T_QUANTILES, Cell, Cells, over_seeds, pipeline

from midefense.store.artefacts import Artefact, content_id, write_whole

REPORT = Path(__file__).with_suffix(".md")
RECORD = "network_inversion"  # folder in the store: what the page says of every run
CLASSES = 10
SIDE = 14
SEEDS = (0, 1, 2)
MLP, CNN, VIT = "MLP", "CNN", "ViT"
GAIN = "matched_ssim_gain/train"


@dataclass(frozen=True)
class Data:
    """A data set: its option, its folder within the packs, and the middle of its pixels, which anyone can guess."""

    option: str
    folder: str
    middle: float


@dataclass(frozen=True)
class Size:
    """What follows from how many images a network is trained on: epochs, the search's steps, further words."""

    epochs: int
    steps: int
    further: str = ""


DATA = {
    "MNIST": Data("mnist", "mnist", 0.13),
    "FashionMNIST": Data("fashion_mnist", "fashion", 0.29),
    "CIFAR-10": Data("cifar10", "cifar10", 0.47),
    "SVHN": Data("svhn", "svhn", 0.45),
}
SMALL_START = f"architecture.size={SIDE} architecture.first_deviation=0.01 architecture.mean={{middle}}"
NETWORKS = {
    MLP: f"architecture=homogeneous_mlp {SMALL_START} architecture.widths=[100,100]",
    CNN: f"architecture=homogeneous_cnn {SMALL_START} architecture.widths=[16,32] architecture.features=48",
    VIT: f"architecture=vit_tiny architecture.size={SIDE} architecture.width=32 architecture.ratio=4 "
    "architecture.dropout=0 architecture.mean={middle} architecture.std=1.0 recipe.optimizer.lr=0.02 "
    "attack.stationarity.gate=null",
}
# Nulls: two draws of held-out images. What is unexplained has a multiplier for every image and other class: 5,400 of
# 600 images are more than are solved for.
SIZES = {
    100: Size(1500, 300, "metrics.unexplained.draws=1"),
    600: Size(400, 150, "~metrics.unexplained"),
}
EVALUATOR = (
    "evaluators.main.architecture.widths=[16,32,64] evaluators.main.recipe.epochs=3 judge_at_chance=true "
    "+metrics.fid={{_target_:midefense.metrics.fid.FrechetDistance,features:main}}"
)


def _once_more(words: str) -> str:
    """Words that are formatted once more than those around them."""
    return words.replace("{", "{{").replace("}", "}}")


KKT = "KKT"
STATIONARITY = (
    "attack.terms.stationarity={{_target_:midefense.attacks.inversion_terms.WeightedTerm,weight:1.0,growing:false,"
    "loss:{{_target_:midefense.attacks.inversion_terms.StationaryWeights,"
    "distance:{{_target_:midefense.attacks.stationarity.Stationarity,gate:30.0}}}}}}"
)
ATTACKS = {  # beside free images, generators of as many, by the losses that they learn from
    KKT: "attack=kkt_small attack.steps={steps} attack.candidates={candidates} attack.around={middle}",
    "generator, all losses": "attack=network_inversion_small attack.steps={steps} attack.bank={candidates} "
    f"attack.candidates={{candidates}} {_once_more(STATIONARITY)}",
    "generator, without stationarity": "attack=network_inversion_small attack.steps={steps} attack.bank={candidates} "
    "attack.candidates={candidates}",
    "generator, stationarity alone": "attack=network_inversion_kkt_small attack.steps={steps} attack.bank={candidates} "
    "attack.candidates={candidates}",
}
SHOWN = {  # heads of the table, and the numbers under them with their scale
    "test accuracy, %": ("utility/test_accuracy_top1", 100),
    "SSIM, training": ("matched_ssim/train", 1),
    "SSIM, held out": ("matched_ssim/held_out", 1),
    "gain": (GAIN, 1),
    "best pair": ("matched_best/train", 1),
    "reconstructed, %": ("reconstructed_share/train", 100),
    "unexplained, training": ("unexplained_weights/train", 1),
    "unexplained, held out": ("unexplained_weights/held_out", 1),
    "FID": ("fid/main", 1),
    "target s": ("seconds/target", 1),
    "search s": ("seconds/search", 1),
}


OF_TARGET = ("test accuracy, %", "unexplained, training", "unexplained, held out", "target s")


@dataclass(frozen=True)
class Setup:
    """One row of the table, of which each seed is a run."""

    data: str
    network: str
    images: int
    attack: str = KKT

    def words(self) -> list[str]:
        """The command-line words, but the seed, with {packs} in them."""
        data, size = DATA[self.data], SIZES[self.images]
        per_class = self.images // CLASSES
        attack = ATTACKS[self.attack].format(steps=size.steps, candidates=2 * per_class, middle=data.middle)
        words = (
            f"dataset={data.option} dataset.root={{packs}}/{data.folder} dataset.size={SIDE} "
            f"dataset.private_classes=[{','.join(map(str, range(CLASSES)))}] dataset.images_per_class={per_class} "
            f"recipe=kkt recipe.epochs={size.epochs} {attack} metrics=matched metrics.matched.nulls=2 "
            f"{size.further} {EVALUATOR} {NETWORKS[self.network].format(middle=data.middle)}"
        )
        return words.split()

    def key(self, seed: int) -> str:
        """What a run is recorded under: its words, so that a number of other words is not shown as its own."""
        return " ".join([*self.words(), f"seed={seed}"])


ABLATED = Setup("MNIST", MLP, 100)  # whose target generators attack too


def cell_of(setup: Setup, seed: int, packs: Path, store: Path, threads: int) -> Cell:
    """The numbers of one run, found in the store or measured now."""
    made = pipeline("evaluate", [*setup.words(), f"seed={seed}"], packs, store, threads)
    found: Mapping[str, Mapping] = made.result.metrics["metrics"]
    numbers = {name: _ends(number) for name, number in found.items() if number["value"] == number["value"]}
    return numbers | {
        "seconds/target": [_seconds(made.target.artefact)],
        "seconds/search": [_seconds(made.recovered)],
        "weights": [float(sum(value.numel() for value in made.target.model.state_dict().values()))],
    }


def _seconds(artefact: Artefact) -> float:
    return artefact.provenance["seconds"]


def _ends(number: Mapping) -> list[float]:
    ends = [number["low"], number["high"]]
    return [number["value"], *(ends if None not in ends else [])]


def runs(setup: Setup, cells: Cells) -> list[Cell]:
    """What was measured of one row, by seed."""
    return [cells[setup.key(seed)] for seed in SEEDS if setup.key(seed) in cells]


def table(images: int, cells: Cells) -> list[str]:
    """All numbers of one training size as markdown, a row for each data set and network."""
    lines = ["| data | network | seeds | " + " | ".join(SHOWN) + " |", "|---" * (3 + len(SHOWN)) + "|"]
    for data, network in itertools.product(DATA, NETWORKS):
        found = runs(Setup(data, network, images), cells)
        row = [over_seeds(found, number, scale) for number, scale in SHOWN.values()] if found else [ABSENT]
        row += [""] * (len(SHOWN) - len(row))
        lines.append(f"| {data} | {network} | {len(found)} | " + " | ".join(row) + " |")
    return lines


def claim(cells: Cells) -> list[str]:
    """Whether the perceptron leaks more than the other two, setup by setup: by the mean gain, by whether the intervals
    over classes of every seed part, and where all seeds are known by whether those over seeds do."""
    lines = []
    for other in (CNN, VIT):
        more = parted = known = whole = parted_over_seeds = 0
        for data, images in itertools.product(DATA, SIZES):
            pair = [runs(Setup(data, network, images), cells) for network in (MLP, other)]
            if not all(pair):
                continue
            first, second = pair
            means = [sum(run[GAIN][0] for run in found) / len(found) for found in pair]
            known, more = known + 1, more + (means[0] > means[1])
            parted += all(run[GAIN][1] > max(one[GAIN][2] for one in second) for run in first)
            if len(first) == len(second) == len(SEEDS):
                (low, _), (_, high) = between_seeds(first), between_seeds(second)
                whole, parted_over_seeds = whole + 1, parted_over_seeds + (low > high)
        over = (
            f"; of {whole} setups with three seeds, intervals over seeds part in {parted_over_seeds}" if whole else ""
        )
        lines.append(
            f"- MLP against {other}: its gain is the larger one in {more} of {known} setups measured, with intervals "
            f"over classes that part, in every seed, in {parted}{over}."
        )
    return lines


def between_seeds(found: Sequence[Cell]) -> tuple[float, float]:
    """The ends of the 95 % interval of the mean gain over seeds (Student's t)."""
    gains = [run[GAIN][0] for run in found]
    width = T_QUANTILES[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5
    return statistics.mean(gains) - width, statistics.mean(gains) + width


def losses(cells: Cells) -> list[str]:
    """What generators make that learn from all losses, from all but stationarity, and from it alone, as markdown."""
    shown = {head: of for head, of in SHOWN.items() if head not in OF_TARGET}
    lines = ["| attack | seeds | " + " | ".join(shown) + " |", "|---" * (2 + len(shown)) + "|"]
    for attack in ATTACKS:
        found = runs(replace(ABLATED, attack=attack), cells)
        row = [over_seeds(found, number, scale) for number, scale in shown.values()] if found else [ABSENT]
        row += [""] * (len(shown) - len(row))
        lines.append(f"| {attack} | {len(found)} | " + " | ".join(row) + " |")
    return lines


def report(cells: Cells, threads: int, absent: Sequence[str] = ()) -> str:
    """The page, of what was measured so far; `absent`: data sets of which there is no pack."""
    counts = {
        network: next(
            (run["weights"][0] for setup in _all() if setup.network == network for run in runs(setup, cells)), 0
        )
        for network in NETWORKS
    }
    lines = [
        "# Training images from weights on a CPU core",
        "",
        "`python benchmarks/network_inversion.py --packs DIR --store DIR --images 100 600 --seeds 0 1 2 --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), threads: {threads}, "
        f"torch {torch.__version__}, on a machine that others used too. All ten classes, {SIDE} px. Networks of about "
        f"as many weights ({', '.join(f'{name} {count:,.0f}' for name, count in counts.items())}) are trained by "
        "`recipe=kkt` (full batches, weight decay 1e-3) and attacked by `kkt_small` with two candidates per training "
        "image; the transformer, which has no ReLU, without sloped gates. Intervals are 95 %: of one seed over "
        "classes; of several (±) over seeds. SSIM is that of reconstructions matched one to one with training images, "
        "and with as many held-out ones; the gain is the difference. Unexplained is the share of the weights that the "
        "best multipliers of the true images leave (`docs/metrics.md`). FID is in 64 features of an evaluator "
        "that learned from as many images, of which a hundred teach it little: the two sizes do not compare.",
        "",
    ]
    if absent:
        lines += [f"Not measured, as no pack holds it: {', '.join(absent)}.", ""]
    for images, size in SIZES.items():
        lines += [f"## {images} training images", "", f"{size.epochs} epochs, {size.steps} steps of the search.", ""]
        lines += [*table(images, cells), ""]
    lines += ["## Does a multilayer perceptron leak more?", "", *claim(cells), ""]
    lines += [f"## Does stationarity dominate? ({ABLATED.network}, {ABLATED.data}, {ABLATED.images} images)", ""]
    lines += ["Generators that are told the label (`network_inversion_small`), on the same target.", "", *losses(cells)]
    return "\n".join(lines).rstrip() + "\n"


def _all() -> list[Setup]:
    return [Setup(data, network, images) for images, data, network in itertools.product(SIZES, DATA, NETWORKS)]


def recorded(store: Path) -> Cells:
    """What was measured so far, by this process or another."""
    kept = [json.loads(path.read_text()) for path in (store / RECORD).glob("*.json")]
    return {one["key"]: one["cell"] for one in kept}


def keep(store: Path, name: str, found: Cell) -> Cells:
    """Record a run; returns all that was recorded."""
    (store / RECORD).mkdir(parents=True, exist_ok=True)
    path = store / RECORD / f"{content_id({'key': name})}.json"
    write_whole(path, json.dumps({"key": name, "cell": found}, indent=1).encode())
    return recorded(store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--data", nargs="+", choices=tuple(DATA), default=tuple(DATA))
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    parser.add_argument("--images", type=int, nargs="+", choices=tuple(SIZES), default=tuple(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS[:1], help="which, in which order")
    parser.add_argument("--losses", action="store_true", help="the generators, by their losses, instead of the table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name} beside this file after every run")
    arguments = parser.parse_args()
    absent = [name for name, data in DATA.items() if not (arguments.packs / data.folder).is_dir()]
    wanted = [name for name in arguments.data if name not in absent]
    rows = [Setup(*row) for row in itertools.product(wanted, arguments.networks, arguments.images)]
    rows.sort(key=lambda setup: setup.images)
    if arguments.losses:
        rows = [replace(ABLATED, attack=attack) for attack in ATTACKS]
    for seed, setup in itertools.product(arguments.seeds, rows):
        found = cell_of(setup, seed, arguments.packs, arguments.store, arguments.threads)
        cells = keep(arguments.store, setup.key(seed), found)
        print(time.strftime("%H:%M:%S"), seed, setup, found.get(GAIN), flush=True)
        if arguments.write:
            REPORT.write_text(report(cells, arguments.threads, absent))
    print(report(recorded(arguments.store), arguments.threads, absent), end="")


if __name__ == "__main__":
    main()
