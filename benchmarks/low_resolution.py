"""The low-resolution table at the size of a CPU core: five targets (undefended, BiDO-HSIC, BiDO-COCO, random erasing,
negative label smoothing) under five attacks (GMI, KED-MI, PLG-MI, LOMMA on KED-MI, VMI), on MNIST and on real faces.

    python benchmarks/low_resolution.py --packs DIR --store DIR [--only mnist|faces|faces64] [--seeds 0 1 2] --write
    python benchmarks/low_resolution.py --packs DIR --store DIR --only faces64 --device cuda --write

`--packs` holds mnist/MNIST/raw (the published files), celeba_id_aligned/celeba (the private people, official layout),
celeba_10k_public/*.jpg (others at half size, 89x109: celeba_10k_half without the rows that its index flags as private
people; for faces64 the first 4,500 of them by name) and nets/mobilefacenet_068.ckpt. Everything is kept in `--store`:
the same command goes on where a run was ended, several may share a store (`--rows` and `--columns` divide the work),
and what is not measured yet is said so in the page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.plan.read import read_plan
from midefense.store.artefacts import Artefact, content_id, write_whole

REPORT = Path(__file__).with_suffix(".md")
RECORD = "low_resolution"  # folder in the store: what the page says of every run
PEOPLE = 20  # of 100 are attacked
ABSENT = "not measured"
STAGES = ("prior", "preparation", "search")
KINDS = ("real", "prior")  # of anchors

SEEDS = (0, 1, 2)
T_QUANTILES = {2: 12.706, 3: 4.303}  # 95 %, by the number of seeds

Cell = dict[str, list[float]]  # a number, or a number and the ends of its 95 % interval
Cells = Mapping[str, Cell]


@dataclass(frozen=True)
class Part:
    """One of the two tables: command-line words, with {packs} where the folder stands.

    `world` says data, target and evaluators. `attacks` and `defenses` have the words of each column and row, `further`
    those of single cells, and `evaluators` what the evaluators are called in the page.
    """

    title: str
    text: str
    world: str
    attacks: Mapping[str, str]
    defenses: Mapping[str, str]
    evaluators: Mapping[str, str]
    further: Mapping[tuple[str, str], str] = field(default_factory=dict)


def students(steps: int) -> str:
    """Words for LOMMA's two small students."""
    return f"attack/surrogate=distilled_small {_both('steps', steps)}"


def features(evaluator: str) -> str:
    """Words for whose features FID is measured in, and without what compares all pairs of images: not in the table,
    and of 30,000 private images the longest part of judging."""
    return f"metrics.fid.features={evaluator} ~metrics.kid ~metrics.prdc"


def _both(option: str, value: object) -> str:
    return " ".join(f"attack.surrogate.students.{name}.{option}={value}" for name in ("narrow", "wide"))


SLOW_FLOWS = "attack.search.optimizer.lr=1.0e-6"
MNIST = Part(
    title="MNIST",
    text=(
        "Private: digits 0 to 4 of MNIST; public: 5 to 9. Target: `cnn` of widths 16, 32, 64, two epochs: a step of "
        "the benchmark's MCNN takes six times as long, and a core has no time for it. Evaluator: a `cnn` twice as wide "
        "that knows all ten digits; its 64 features also give the FID. 14 images of each of the five digits; chance is "
        "10 %. VMI against NLS has the rate 1e-6: at that of the others, 1e-3, and at 1e-4 its flows end in NaN."
    ),
    world=(
        "dataset=mnist dataset.root={packs}/mnist architecture=cnn architecture.widths=[16,32,64] recipe.epochs=2 "
        "evaluators.main.architecture.widths=[32,64,128] evaluators.main.recipe.epochs=1 "
        f"metrics=[privacy,cost] {features('main')}"
    ),
    attacks={
        "GMI": "attack=gmi_small attack.init.candidates=14",
        "KED-MI": "attack=ked_mi_small attack.search.steps=300 attack.search.draws=14",
        "LOMMA+KED-MI": "attack=lomma_ked_mi prior=ked_gan_small attack.search.steps=300 attack.search.draws=14 "
        f"attack.objective.terms.features.weight=1.0 {students(200)}",
        "PLG-MI": "attack=plg_mi_small attack.init.candidates=14 attack.search.steps=60",
        "VMI": "attack=vmi_small attack.init.candidates=14 attack.search.batch_size=8",
    },
    defenses={
        "none": "defense=none",
        "BiDO-HSIC": "defense=bido_hsic",
        "BiDO-COCO": "defense=bido_coco",
        "random erasing": "defense=random_erasing",
        "NLS": "defense=negative_label_smoothing",
    },
    evaluators={"main": "wide CNN"},
    further={("NLS", "VMI"): SLOW_FLOWS},
)
BOX = "[35,55,143,163]"
AUGMENT = (
    "augment=[{{_target_:midefense.training.augmentations.HorizontalFlip,p:0.5}},"
    "{{_target_:midefense.training.augmentations.ResizedCrop,scale:[0.8,1.0],ratio:[1.0,1.0]}}]"
)


def faces(title: str, text: str, size: int, epochs: tuple[int, int], network: str = "", public: str = "") -> Part:
    """The table of real faces at `size` px. `epochs`: of the target, and of the evaluator that is trained. `network`,
    `public`: further words of both of them, and of the public pictures."""
    target, evaluator = epochs
    return Part(
        title=title,
        text=(
            f"Private: 100 people of CelebA, 20 training images each, {PEOPLE} of them attacked, 4 images of each; "
            f"{text} Target: `cnn` from random weights, {target} epochs, flips and crops. BiDO-HSIC learns from "
            "batches of 16 identities x 4 images and BiDO-COCO from shuffled ones, as published; COCO's lambdas are a "
            "tenth of those published for MNIST (1, 50). Why, at 32 px (train_target.py with the words of a cell and "
            "recipe.epochs=6, seed 0, one run each, cpu, 2026-11-27): test accuracy in shuffled batches 4.2 % at the "
            "published lambdas, 14.0 % at a tenth, 14.8 % at 0 and 1e-9; in batches of 16 x 4 2.4 % at a tenth and "
            "1.8 % at 0 and 1e-9: there nothing but HSIC's label term makes this network learn. "
            "Evaluators: MobileFaceNet (by the nearest class mean; the pack was filtered by "
            "this network, so its scores are optimistic), and `cnn_wide`, trained here on the same pictures from other "
            f"random weights, {evaluator} epochs, which also gives the FID its 64 features; it is of the target's kind "
            "and may be fooled with it. VMI against NLS has the rate 1e-6: at 1e-3 four of its 80 images are NaN. "
            "Chance is 1 %."
        ),
        world=(
            "dataset=celeba dataset.root={packs}/celeba_id_aligned/celeba dataset.partial=true dataset.identities=100 "
            f"dataset.min_images=25 dataset.test_share=0.2 dataset.public_images=0 dataset.size={size} "
            f"public=picture_folder public.dataset.root={{packs}}/celeba_10k_public {public}"
            "public.dataset.crop=[17,27,71,81,89,109] "
            f"architecture=cnn {network}recipe=lowres_sgd recipe.epochs={target} recipe.{AUGMENT} "
            "evaluator@evaluators.main=mobilefacenet "
            "evaluators.main.architecture.weights={packs}/nets/mobilefacenet_068.ckpt "
            f"evaluators.main.architecture.warp.box={BOX} +evaluator@evaluators.trained=cnn_wide "
            "recipe@evaluators.trained.recipe=lowres_sgd evaluators.trained.train_on=private "
            f"evaluators.trained.recipe.epochs={evaluator} evaluators.trained.recipe.{AUGMENT} metrics=[privacy,cost] "
            f"{features('trained')} "
            f"evidence.classes=[{','.join(map(str, range(PEOPLE)))}]"
        ),
        attacks=FACE_ATTACKS,
        defenses={
            "none": "defense=none",
            "BiDO-HSIC": f"defense=bido_hsic {SAMPLER}",
            "BiDO-COCO": "defense=bido_coco defense.lambda_x=0.1 defense.lambda_y=5",
            "random erasing": "defense=random_erasing",
            "NLS": "defense=negative_label_smoothing",
        },
        evaluators={"main": "MobileFaceNet", "trained": "CNN"},
        further={("NLS", "VMI"): SLOW_FLOWS},
    )


SAMPLER = "defense.sampler={{identities:16,images:4,leftover:drop}}"
AS_GMIS = "prior.width=16 prior.steps=1500 prior.batch_size=64 prior.learning_rate=5.0e-4"  # how gmi_gan_small learns
FACE_ATTACKS = {
    "GMI": "attack=gmi_small attack.init.candidates=4 attack.search.steps=100",
    "KED-MI": f"attack=ked_mi_small attack.search.steps=200 attack.search.draws=4 {AS_GMIS}",
    "LOMMA+KED-MI": "attack=lomma_ked_mi prior=ked_gan_small attack.search.steps=200 attack.search.draws=4 "
    f"attack.objective.terms.features.weight=1.0 {students(150)} {AS_GMIS}",
    "PLG-MI": "attack=plg_mi_small attack.init.candidates=4 attack.views.flip=0.5 prior.augmentation.flip=0.5 "
    "attack.search.steps=40 prior.width=16 prior.steps=600 prior.batch_size=64",
    "VMI": "attack=vmi_small attack.init.candidates=4 attack.search.batch_size=3 attack.search.steps=60",
}
FACES = faces(
    "Faces, 32 px",
    "public: 9,840 pictures of others. 32 px, which is what a CPU core allows.",
    size=32,
    epochs=(40, 40),
)
FACES_64 = faces(
    "Faces, 64 px",
    "public: 4,500 pictures of others. Targets alone were trained, on an NVIDIA H200 with torch 2.11 (2026-11-27, seed "
    "0, 57 to 65 s each, 22 processes at once): they know 27.4 % of the test images undefended, 46.6 % with BiDO-HSIC, "
    "9.2 % with random erasing, 25.4 % with NLS.",
    size=64,
    epochs=(40, 30),
    network="architecture.size=64 evaluators.trained.architecture.size=64 ",
    public="public.dataset.count=4500 ",
)
PARTS = {"mnist": MNIST, "faces": FACES, "faces64": FACES_64}


def words(part: Part, defense: str, attack: str, without: str | None = None) -> list[str]:
    """The command-line words of one cell but its seed, with {packs} in them, maybe without one of the evaluators."""
    further = part.further.get((defense, attack), "")
    all_words = " ".join((part.attacks[attack], part.world, part.defenses[defense], further)).split()
    if without is None:
        return all_words
    return [*(word for word in all_words if f"evaluators.{without}" not in word), f"~evaluators.{without}"]


def pipeline(verb: str, given: list[str], packs: Path, store: Path, threads: int, device: str = "cpu") -> Pipeline:
    """What a command would carry out on `device` (`cpu`, `cuda`)."""
    given = [word.format(packs=packs) for word in given]
    given += [f"compute.accelerator={device}", f"compute.threads={threads}", "tracking=none", f"store={store}"]
    return Pipeline(read_plan(verb, *compose(verb, given), given))


def cell(made: Pipeline) -> Cell:
    """The numbers of one cell, found in the store or measured now."""
    found: Mapping[str, Mapping] = made.result.metrics["metrics"]
    numbers = {name: _ends(number) for name, number in found.items()}
    anchors = made.result.metrics["anchors"]
    numbers |= {f"{kind}:{name}": [value] for kind, values in anchors.items() for name, value in values.items()}
    search = made.recovered
    prepared = search.provenance["parents"].get("prepared")
    numbers["seconds/target"] = [_seconds(made.target.artefact)]
    numbers["seconds/prior"] = [_seconds(made.prior.artefact)]
    numbers["seconds/preparation"] = [_seconds(made.store.open(prepared, "prepared")) if prepared else 0.0]
    numbers["seconds/search"] = [_seconds(search)]
    return {**numbers, "target accuracy": [made.target.artefact.metrics["test_accuracy_top1"]]}


def machine(made: Pipeline) -> str:
    """Which machine searched for a cell's images."""
    return made.recovered.provenance["machine"]


def _seconds(artefact: Artefact) -> float:
    return artefact.provenance["seconds"]


def _ends(number: Mapping) -> list[float]:
    ends = [number["low"], number["high"]]
    return [number["value"], *(ends if None not in ends else [])]


def over_seeds(runs: Sequence[Cell], number: str, scale: float = 1.0) -> str:
    """A number of one run with its interval over classes, or the mean of several with that over seeds (Student's t)."""
    values = [run[number] for run in runs if number in run]
    if not values:
        return ABSENT
    if len(values) == 1:
        value, *ends = (f"{value * scale:.3g}" for value in values[0])
        return f"{value} ({ends[0]} to {ends[1]})" if ends else value
    found = [value[0] * scale for value in values]
    width = T_QUANTILES[len(found)] * statistics.stdev(found) / len(found) ** 0.5
    return f"{statistics.mean(found):.3g} ± {width:.2g}"


def grid(part: Part, cells: Cells, number: str, scale: float = 1.0) -> list[str]:
    """One number of all cells as markdown: a row for each defense, a column for each attack."""
    lines = ["| target | " + " | ".join(part.attacks) + " |", "|---" * (len(part.attacks) + 1) + "|"]
    for defense in part.defenses:
        row = [over_seeds(runs(part, cells, defense, attack), number, scale) for attack in part.attacks]
        lines.append(f"| {defense} | " + " | ".join(row) + " |")
    return lines


def key(part: Part, defense: str, attack: str, seed: int, without: str | None = None) -> str:
    """What a run is recorded under: its words, so that a number of other words is not shown as its own."""
    return " ".join([*words(part, defense, attack, without), f"seed={seed}"])


def runs(part: Part, cells: Cells, defense: str, attack: str) -> list[Cell]:
    """What was measured of one cell, by seed; of a seed that not all evaluators have judged, what the others said."""
    found = []
    for seed in SEEDS:
        keys = [key(part, defense, attack, seed, without) for without in (None, *part.evaluators)]
        found += [cells[name] for name in keys if name in cells][:1]
    return found


def costs(part: Part, cells: Cells) -> list[str]:
    """Seconds of everything that was made, as markdown."""
    lines = ["| target | target | " + " | ".join(part.attacks) + " |", "|---" * (len(part.attacks) + 2) + "|"]
    for defense in part.defenses:
        known = [runs(part, cells, defense, attack) for attack in part.attacks]
        target = over_seeds(next(filter(None, known), [])[:1], "seconds/target")
        row = [_sum(found) if found else ABSENT for found in known]
        lines.append(f"| {defense} | {target} | " + " | ".join(row) + " |")
    return lines


def _sum(found: Sequence[Cell]) -> str:
    means = (statistics.mean(run[f"seconds/{stage}"][0] for run in found) for stage in STAGES)
    return " + ".join(f"{mean:.0f}" for mean in means)


def anchors(part: Part, cells: Cells) -> list[str]:
    """What targets reach on test images, and evaluators on real pictures and on unattacked samples, as markdown."""
    lines = ["| target | test accuracy |", "|---|---|"]
    known = {defense: [runs(part, cells, defense, attack) for attack in part.attacks] for defense in part.defenses}
    for defense, row in known.items():
        lines.append(f"| {defense} | {over_seeds(next(filter(None, row), []), 'target accuracy', 100)} |")
    first = next((found for row in known.values() for found in row if found), [])
    lines += ["", "| evaluator | real test images | samples of GMI's prior |", "|---|---|---|"]
    for name, title in part.evaluators.items():
        row = [over_seeds(first[:1], f"{kind}:attack_accuracy_top1/{name}", 100) for kind in KINDS]
        lines.append(f"| {title} | " + " | ".join(row) + " |")
    return lines


def section(part: Part, cells: Cells, machines: Mapping[str, str]) -> list[str]:
    """One part of the page. `machines`: where each run was searched, by its key."""
    counts = [len(runs(part, cells, defense, attack)) for defense in part.defenses for attack in part.attacks]
    if not any(counts):
        return [f"## {part.title}", "", f"{part.text} No attack is measured yet.", ""]
    seeds = f"Seeds: {' or '.join(map(str, sorted(set(counts) - {0})))} per cell." if any(counts) else ""
    known = [key(part, *one) for one in itertools.product(part.defenses, part.attacks, SEEDS, (None, *part.evaluators))]
    counted = Counter(machines[name] for name in known if name in cells)
    where = "; ".join(f"{count} {'run' if count == 1 else 'runs'} on {name}" for name, count in counted.items())
    text = " ".join(filter(None, (part.text, seeds, f"Measured: {where}." if where else "")))
    lines = [f"## {part.title}", "", text, "", *anchors(part, cells)]
    for name, title in part.evaluators.items():
        lines += ["", f"Attack accuracy, top-1 of {title}, per cent:", ""]
        lines += grid(part, cells, f"attack_accuracy_top1/{name}", 100)
    for name, title in part.evaluators.items():
        lines += ["", f"KNN distance in the features of {title} (squared L2):", ""]
        lines += grid(part, cells, f"knn_distance/{name}")
    narrow = list(part.evaluators)[-1]
    lines += ["", f"Frechet distance in the features of {part.evaluators[narrow]} (biased upwards: few images):", ""]
    lines += grid(part, cells, f"fid/{narrow}")
    lines += ["", "The target's own confidence in what was recovered, per cent:", ""]
    lines += grid(part, cells, "target_class_confidence/target", 100)
    stages = (
        "Seconds by the clock: of the target, and of each attack (prior + preparation + search; a shared prior counts "
        "each time). Several ran at once, and work that was ended and went on counts from its last start: only "
        "searches compare."
    )
    return [*lines, "", stages, "", *costs(part, cells), ""]


def report(store: Path, threads: int) -> str:
    """The page, of what was measured so far."""
    cells, machines = recorded(store), recorded_machines(store)
    lines = [
        "# The low-resolution table",
        "",
        "`python benchmarks/low_resolution.py --packs DIR --store DIR --write`",
        f"written {time.strftime('%Y-%m-%d')}; threads: {threads}, torch {torch.__version__}, on machines that "
        "others, or other runs, used too. Intervals are 95 %: of one seed over the attacked classes "
        "(`docs/metrics.md`), which does not hold what another seed would change; of several (±) over seeds. "
        "Networks, GANs and searches are small and short: the numbers say how attacks and defenses stand to "
        "each other at this size, and are not the papers'.",
        "",
    ]
    parts = [line for part in PARTS.values() for line in section(part, cells, machines)]
    return "\n".join([*lines, *parts]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS[:1], help="which, in which order")
    parser.add_argument("--rows", nargs="+", choices=tuple(MNIST.defenses), default=tuple(MNIST.defenses))
    parser.add_argument("--columns", nargs="+", choices=tuple(MNIST.attacks), default=tuple(MNIST.attacks))
    parser.add_argument("--without", choices=("main",), help="faces: leave MobileFaceNet, the slow judge, for later")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name} beside this file after every cell")
    arguments = parser.parse_args()
    place = (arguments.packs, arguments.store, arguments.threads, arguments.device)
    chosen = [arguments.only] if arguments.only else list(PARTS)
    for seed, name in itertools.product(arguments.seeds, chosen):
        part = PARTS[name]
        for attack, defense in itertools.product(arguments.columns, arguments.rows):
            asked = words(part, defense, attack, arguments.without)
            made = pipeline("evaluate", [*asked, f"seed={seed}"], *place)
            found = cell(made)
            keep(arguments.store, key(part, defense, attack, seed, arguments.without), found, machine(made))
            accuracies = [found.get(f"attack_accuracy_top1/{evaluator}", [None])[0] for evaluator in part.evaluators]
            print(time.strftime("%H:%M:%S"), name, seed, attack, defense, accuracies, flush=True)
            if arguments.write:
                REPORT.write_text(report(arguments.store, arguments.threads))
    print(report(arguments.store, arguments.threads), end="")


def recorded(store: Path) -> Cells:
    """What was measured so far, by this process or another."""
    return {one["key"]: one["cell"] for one in _records(store)}


def recorded_machines(store: Path) -> dict[str, str]:
    """Where each was measured; what says nothing of it was, before there was a choice, on a core of this CPU."""
    return {one["key"]: one.get("machine", f"cpu ({platform.machine()}), 1 thread") for one in _records(store)}


def _records(store: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((store / RECORD).glob("*.json"))]


def keep(store: Path, name: str, found: Cell, where: str) -> None:
    """Record a run."""
    (store / RECORD).mkdir(parents=True, exist_ok=True)
    path = store / RECORD / f"{content_id({'key': name})}.json"
    write_whole(path, json.dumps({"key": name, "cell": found, "machine": where}, indent=1).encode())


if __name__ == "__main__":
    main()
