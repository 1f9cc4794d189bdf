"""Directions that the papers of PPA, MIDRE and label smoothing claim, on a small set: the erased area, the sign of
label smoothing, the Poincaré loss against cross-entropy where the target is sure of everything, masks in the attack.

    python benchmarks/ablations.py --write

Digits, `cnn`, PPA with a small StyleGAN2 (`experiment=demo_ppa_digits`), three seeds for target and attack, one prior.
Everything is kept in `--store`, so that a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.plan.read import read_plan

REPORT = Path(__file__).with_suffix(".md")
ERASED, SMOOTHED = "defense=random_erasing defense.scale=[{low},{high}]", "defense=negative_label_smoothing"
SETTINGS = {
    "no erasing": "defense=none",
    "area .05 to .2": ERASED.format(low=0.05, high=0.2),
    "area .1 to .4": ERASED.format(low=0.1, high=0.4),
    "area .1 to .6": ERASED.format(low=0.1, high=0.6),
    "area .1 to .8": ERASED.format(low=0.1, high=0.8),
    "area .1 to .4, masks in the attack": ERASED.format(low=0.1, high=0.4) + " attack/views=crop_then_erase",
    "alpha .1": "defense=positive_label_smoothing",
    "alpha -.05": SMOOTHED,
    "alpha -.05, constant from the start": f"{SMOOTHED} defense.start=0 defense.full=0",
    "alpha -.05, cross-entropy instead of Poincaré": f"{SMOOTHED} attack/objective=cross_entropy",
    "no defense, cross-entropy instead of Poincaré": "defense=none attack/objective=cross_entropy",
}


def measure(setting: str, store: Path, seeds: tuple[int, ...], threads: int) -> list[dict[str, float]]:
    """Accuracies and confidences of one setting, one row per seed."""
    rows = []
    for seed in seeds:
        words = ["experiment=demo_ppa_digits", *setting.split(), f"seed={seed}", "metrics=privacy"]
        words += ["compute=cpu", f"compute.threads={threads}", "tracking=none", f"store={store}"]
        made = Pipeline(read_plan("evaluate", *compose("evaluate", words), words))
        values = {name: number["value"] for name, number in made.result.metrics["metrics"].items()}
        accuracy = made.target.artefact.metrics["test_accuracy_top1"]
        rows.append(
            {
                "target accuracy": accuracy,
                "attack accuracy": values["attack_accuracy_top1/main"],
                "all candidates": values["attack_accuracy_top1@optimised/main"],
                "best of pool": values["attack_accuracy_top1@initial/main"],
                "target's confidence": values["target_class_confidence/target"],
                "KNN distance": values["knn_distance/main"] / 100,
            }
        )
    return rows


def report(measured: dict[str, list[dict[str, float]]], seeds: tuple[int, ...], threads: int) -> str:
    """The settings as markdown, per cent, mean and standard deviation over seeds."""
    columns = list(next(iter(measured.values()))[0])
    lines = [
        "# Ablations",
        "",
        "`python benchmarks/ablations.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), threads: {threads}, "
        f"torch {torch.__version__}, seeds {', '.join(map(str, seeds))}; per cent (KNN distance as it is), "
        "mean ± standard deviation over seeds. Chance is 10 %.",
        "",
        "| setting | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for setting, rows in measured.items():
        cells = []
        for column in columns:
            values = [100 * row[column] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    seeds, measured = tuple(arguments.seeds), {}
    for name, setting in SETTINGS.items():
        measured[name] = measure(setting, arguments.store, seeds, arguments.threads)
        print(name, [row["attack accuracy"] for row in measured[name]], flush=True)
    text = report(measured, seeds, arguments.threads)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
