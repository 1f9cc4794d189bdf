"""Targets trained on the field's data, on a CPU's budget: what the loaders, networks and recipes reach together.

    python benchmarks/targets.py --packs DIR --write

`--packs` holds the datasets in their official layouts: mnist_raw/MNIST, att_faces/att_faces, celeba_id_aligned/celeba,
lfw_ge10_cap30/lfw-deepfunneled. Every row is one `train_target.py` with seed 0; targets are kept in `--store`, so that
a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.plan.read import read_plan

REPORT = Path(__file__).with_suffix(".md")
FACES = "recipe=lowres_sgd"
CELEBA = "dataset=celeba dataset.root={packs}/celeba_id_aligned/celeba dataset.partial=true dataset.identities=100 "
CELEBA += "dataset.min_images=25 dataset.test_share=0.2 dataset.public_images=0"
LFW = "dataset=lfw dataset.root={packs}/lfw_ge10_cap30 dataset.cap=30"
ATT = "dataset=att_faces dataset.root={packs}/att_faces/att_faces dataset.private=40 dataset.public=0"
MNIST = "dataset=mnist dataset.root={packs}/mnist_raw"
ROWS = (
    f"{MNIST} architecture=mcnn recipe=dmi_mnist recipe.epochs=8 recipe.milestones=[0.75]",
    f"{ATT} architecture=cnn architecture.size=64 recipe=quick",
    f"{ATT} architecture=resnet18 recipe=quick",
    f"{CELEBA} architecture=cnn architecture.size=64 {FACES} recipe.epochs=30",
    f"{CELEBA} architecture=resnet18 {FACES} recipe.epochs=15",
    f"{LFW} architecture=cnn architecture.size=64 {FACES} recipe.epochs=30",
)


def train(row: str, packs: Path, store: Path) -> dict:
    """What one command makes: its sizes and its accuracy."""
    words = [*row.format(packs=packs).split(), "tracking=none", f"store={store}"]
    plan = read_plan("train_target", *compose("train_target", words), words)
    pipeline = Pipeline(plan)
    target, splits = pipeline.target, pipeline.splits
    return {
        "command": row.format(packs="DIR"),
        "classes": splits.classes,
        "images": f"{len(splits.private_train):,} / {len(splits.private_test):,}",
        "accuracy": target.artefact.metrics["test_accuracy_top1"],
        "parameters": sum(p.numel() for p in target.model.parameters()),
    }


def report(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = [
        "# Targets",
        "",
        "`python benchmarks/targets.py --packs DIR --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, seed 0, from random weights, no defense. Each command stands after `train_target.py`.",
        "",
        "| command | classes | train / test images | parameters | test accuracy |",
        "|---|---|---|---|---|",
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict) -> str:
    numbers = f"{row['classes']} | {row['images']} | {row['parameters']:,} | {100 * row['accuracy']:.2f} %"
    return f"| `{row['command']}` | {numbers} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, required=True, help="the folder that holds the datasets")
    parser.add_argument("--store", type=Path, default=Path("store/benchmarks"))
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    rows = []
    for row in ROWS:
        rows.append(train(row, arguments.packs.absolute(), arguments.store))
        print(rows[-1], flush=True)
    text = report(rows)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
