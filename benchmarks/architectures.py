"""What every architecture reaches on `toy` in a few epochs: that it trains, and its size. No ranking: the large ones
are made for large images and pretrained weights, and see neither here.

    python benchmarks/architectures.py --write [--only NAME ...]

Each is one `train_target.py dataset=toy architecture=NAME recipe=quick recipe.epochs=5 recipe.batch_size=16`, at a
small side where the published one is larger. Targets are kept in `--store`, so that a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import CONF, compose
from midefense.plan.read import read_plan

REPORT = Path(__file__).with_suffix(".md")
COMMON = ("dataset=toy", "recipe=quick", "recipe.epochs=5", "recipe.batch_size=16")
SIDE = 64  # of the networks that are published for large images and take a size
NOTE = (
    "No ranking: the large networks are made for large images and pretrained weights, and see neither here. Training "
    "accuracy is that of the last epoch's 160 images under the statistics of their batches; where test accuracy (40 "
    "images) is far below it, 50 updates were too few for the running averages of batch norm that deployment uses. "
    "Transformers need more than 50 updates either way."
)
LARGE = ("resnet", "resnext", "densenet", "efficientnet", "vit_b", "swin", "maxvit", "resnest", "timm")
# what cannot be trained so: it has no size of its own, or needs published weights to make sense
OWN = {
    "inception_v3": ["architecture.size=75", "architecture.auxiliary_weight=0"],
    "facenet_vggface2": ["architecture.pretrained=false", "architecture.size=80"],
    "timm": ["architecture.size=64", "architecture.name=mobilenetv3_small_100"],
    **dict.fromkeys(("vgg16_64", "ir152_64", "facenet64", "facenet112", "resnet18_bido"), ["architecture.size=32"]),
}


def overrides(name: str) -> list[str]:
    """What the benchmark sets for architecture `name`."""
    if name in OWN:
        return OWN[name]
    return [f"architecture.size={SIDE}"] if name.startswith(LARGE) else []


def train(name: str, store: Path) -> dict:
    """Name, side, parameters, epochs and test accuracy of one architecture."""
    words = [*COMMON, f"architecture={name}", *overrides(name), "tracking=none", f"store={store}"]
    plan = read_plan("train_target", *compose("train_target", words), words)
    target = Pipeline(plan).target
    return {
        "name": name,
        "size": target.model.size,
        "parameters": sum(p.numel() for p in target.model.parameters()),
        "accuracy": target.artefact.metrics["test_accuracy_top1"],
        "training": _last_epoch(store / "runs" / "train_target" / target.artefact.path.name),
        "set": " ".join(overrides(name)),
    }


def _last_epoch(run: Path) -> float:
    """Accuracy on the training batches of the last epoch, under the statistics of the batch."""
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["accuracy"]


def report(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = [
        "# Architectures",
        "",
        "`python benchmarks/architectures.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; `{' '.join(COMMON)}`, seed 0, random weights.",
        "",
        NOTE,
        "",
        "| architecture | side | parameters (4 classes, grey) | training accuracy | test accuracy | set besides |",
        "|---|---|---|---|---|---|",
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict) -> str:
    accuracies = " | ".join(f"{100 * row[name]:.1f} %" for name in ("training", "accuracy"))
    return f"| `{row['name']}` | {row['size']} px | {row['parameters']:,} | {accuracies} | {row['set']} |"


def main() -> None:
    names = sorted(path.stem for path in (CONF / "architecture").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--store", type=Path, default=Path("store/benchmarks"))
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only:
        rows.append(train(name, arguments.store))
        print(rows[-1], flush=True)
    text = report(rows)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
