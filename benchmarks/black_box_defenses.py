"""Black-box attacks against defenses: accuracy by an independent evaluator against how often the target was asked,
beside white-box attacks with the same prior, on digits, synthetic faces and real faces.

    python benchmarks/black_box_defenses.py --store DIR [--only digits|synthetic] [--seeds 0 1 2] --write
    python benchmarks/black_box_defenses.py --store DIR --packs DIR --only faces --write

`--packs` holds what benchmarks/low_resolution.py says; faces has its targets, evaluators and GAN, and with the same
`--store` finds them. The same command goes on where a run was ended, several may share a store (`--rows` and
`--columns` divide the work), and what is not measured yet is said so in the page.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from low_resolution import (
    ABSENT,
    FACES,
    SEEDS,
    Cell,
    Cells,
    Part,
    anchors,
    cell,
    grid,
    keep,
    key,
    machine,
    over_seeds,
    pipeline,
    recorded,
    recorded_machines,
    runs,
    words,
)

from midefense.pipeline.pipeline import Pipeline

REPORT = Path(__file__).with_suffix(".md")
BUDGETS = (100, 1000, 10000)  # questions per target at which the curves are read
ACCURACY = "attack_accuracy_top1/main"
PRIOR = "prior=gmi_gan_small"
ATTACKS = {
    "GMI, white-box": f"attack=gmi_small {PRIOR}",
    "MIRROR, white-box": f"attack=mirror_small {PRIOR}",
    "MIRROR, scores": f"attack=mirror_blackbox_small {PRIOR}",
    "C2FMI, scores": f"attack=c2f_mi_small {PRIOR}",
    "RLB-MI, scores": f"attack=rlb_mi_small {PRIOR}",
    "BREP-MI, labels": f"attack=brep_mi_small {PRIOR}",
    "LOKT, labels": f"attack=lokt_small {PRIOR}",
}
BLACK_BOX = [name for name in ATTACKS if "white-box" not in name]
DEFENSES = {
    "none": "defense=none",
    "random erasing": "defense=random_erasing_strong",
    "NLS": "defense=negative_label_smoothing",
    "BiDO": "defense=bido_hsic",
}
DIGITS = Part(
    title="Digits",
    text="Private: digits 0 to 4; public: 5 to 9. Target: `cnn`; random erasing of area .1 to .8; evaluator "
    "`cnn_wide`, which knows all ten digits (chance 10 %).",
    world="dataset=digits architecture=cnn metrics=[privacy,cost]",
    attacks=ATTACKS,
    defenses=DEFENSES,
    evaluators={"main": "wide CNN"},
)
SYNTHETIC = Part(
    title="Synthetic faces",
    text="Ten of fifty synthetic people, 32 px; public: a hundred others. Target: `cnn`; random erasing of area .1 to "
    ".8; evaluator `cnn_wide`, which knows all 150 (chance .7 %).",
    world="dataset=synthetic_faces dataset.size=32 architecture=cnn prior.steps=3000 metrics=[privacy,cost] "
    "evidence.classes=[0,1,2,3,4,5,6,7,8,9]",
    attacks=ATTACKS,
    defenses=DEFENSES,
    evaluators={"main": "wide CNN"},
)
REAL = Part(
    title="Real faces",
    text="Targets, evaluators and GAN of [the low-resolution table](low_resolution.md): 20 of 100 people of CelebA, 32 "
    "px, random erasing of area .1 to .4 (chance 1 %). Curves are those of MobileFaceNet.",
    world=FACES.world,
    attacks={**ATTACKS, "GMI, white-box": FACES.attacks["GMI"]},
    defenses={
        "none": "defense=none",
        "random erasing": "defense=random_erasing",
        "NLS": "defense=negative_label_smoothing",
        "BiDO": FACES.defenses["BiDO-HSIC"],
    },
    evaluators=FACES.evaluators,
)
PARTS = {"digits": DIGITS, "synthetic": SYNTHETIC, "faces": REAL}


def numbers(made: Pipeline) -> Cell:
    """A cell's numbers, and what its curve says at each budget."""
    found = cell(made)
    tensors = made.result.tensors()
    if "curve.main.queries" not in tensors:
        return found
    queries, accuracy = (tensors[f"curve.main.{name}"].numpy() for name in ("queries", "accuracy"))
    for budget in BUDGETS:
        place = int(np.searchsorted(queries, budget, side="right")) - 1
        found[f"accuracy at {budget}"] = [float(accuracy[place]) if place >= 0 else 0.0]
    return found


def curves(part: Part, cells: Cells) -> list[str]:
    """Accuracy at every budget as markdown: a row for each defense and attack that asks."""
    heads = [f"{budget:,} questions" for budget in BUDGETS]
    lines = ["| target | attack | " + " | ".join(heads) + " | in the end | questions per target, shared |"]
    lines.append("|---" * (len(heads) + 4) + "|")
    for defense, attack in itertools.product(part.defenses, [name for name in BLACK_BOX if name in part.attacks]):
        known = runs(part, cells, defense, attack)
        row = [over_seeds(known, f"accuracy at {budget}", 100) for budget in BUDGETS]
        row.append(over_seeds(known, ACCURACY, 100))
        asked = [over_seeds(known, f"cost/{name}") for name in ("queries_per_target_mean", "shared_queries")]
        lines.append(f"| {defense} | {attack} | " + " | ".join([*row, ", ".join(asked) if known else ABSENT]) + " |")
    return lines


def section(part: Part, cells: Cells, machines: dict[str, str]) -> list[str]:
    """One part of the page."""
    counts = [len(runs(part, cells, defense, attack)) for defense in part.defenses for attack in part.attacks]
    if not any(counts):
        return [f"## {part.title}", "", f"{part.text} Not measured yet.", ""]
    seeds = " or ".join(map(str, sorted(set(counts) - {0})))
    known = [key(part, *one) for one in itertools.product(part.defenses, part.attacks, SEEDS)]
    counted = Counter(machines[name] for name in known if name in cells)
    where = "; ".join(f"{count} runs on {name}" for name, count in counted.items())
    lines = [f"## {part.title}", "", f"{part.text} Seeds: {seeds} per cell. Measured: {where}.", ""]
    lines += anchors(part, cells)
    for name, title in part.evaluators.items():
        lines += ["", f"Attack accuracy, top-1 of {title}, per cent:", ""]
        lines += grid(part, cells, f"attack_accuracy_top1/{name}", 100)
    lines += ["", "The target's own confidence in what was recovered, per cent:", ""]
    lines += grid(part, cells, "target_class_confidence/target", 100)
    lines += ["", "Accuracy against questions per target, per cent; a label never reached counts as a failure:", ""]
    return [*lines, *curves(part, cells), ""]


def report(store: Path) -> str:
    """The page, of what was measured so far."""
    cells, machines = recorded(store), recorded_machines(store)
    lines = [
        "# Black-box attacks against defenses",
        "",
        "`python benchmarks/black_box_defenses.py --store DIR --packs DIR --write`",
        f"written {time.strftime('%Y-%m-%d')}; 1 thread, torch {torch.__version__}. All attacks of a part share one "
        "small GAN of GMI's kind and are the short presets of `conf/attack/*_small.yaml`: the numbers say how attacks "
        "and defenses stand to each other at this size, and are not the papers'. Intervals are 95 %: of one seed over "
        "the attacked classes (`docs/metrics.md`), which does not hold what another seed would change; of several (±) "
        "over seeds.",
        "",
    ]
    parts = [line for part in PARTS.values() for line in section(part, cells, machines)]
    return "\n".join([*lines, *parts]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--packs", type=Path, default=Path())
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS[:1], help="which, in which order")
    parser.add_argument("--rows", nargs="+", choices=tuple(DEFENSES), default=tuple(DEFENSES))
    parser.add_argument("--columns", nargs="+", choices=tuple(ATTACKS), default=tuple(ATTACKS))
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name} beside this file after every cell")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else list(PARTS)
    for seed, name in itertools.product(arguments.seeds, chosen):
        part = PARTS[name]
        for attack, defense in itertools.product(arguments.columns, arguments.rows):
            given = [*words(part, defense, attack), f"seed={seed}"]
            made = pipeline("evaluate", given, arguments.packs, arguments.store, 1)
            found = numbers(made)
            keep(arguments.store, key(part, defense, attack, seed), found, machine(made))
            print(time.strftime("%H:%M:%S"), name, seed, attack, defense, found.get(ACCURACY), flush=True)
            if arguments.write:
                REPORT.write_text(report(arguments.store))
    print(report(arguments.store), end="")


if __name__ == "__main__":
    main()
