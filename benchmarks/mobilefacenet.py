"""How well MobileFaceNet tells apart people it was not trained on, aligned as `conf/architecture/mobilefacenet.yaml`
says: the nearest class mean by cosine, from whole CelebA frames and from the low-resolution benchmark's 64-pixel crops.

    python benchmarks/mobilefacenet.py --root PACK --weights mobilefacenet_068.ckpt --write

`PACK` holds `index.csv` (columns `file` and `identity`) and `celeba/img_align_celeba/*.jpg`. Of each person the first
images by name are enrolled, the rest are looked up.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from midefense.architectures.base import Classifier
from midefense.plan.bind import bind
from midefense.plan.compose import compose

TEST_IMAGES = 5  # per person
BATCH = 100
REPORT = Path(__file__).with_suffix(".md")
CROP = (35, 55, 143, 163)  # left, top, right, bottom: 108 x 108 pixels of the 178 x 218 frame
VIEWS: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "whole frame, 178 x 218": ("[0,0,178,218]", lambda image: image),
    "crop of 108, resized to 64": (str(list(CROP)), lambda image: image.crop(CROP).resize((64, 64), Image.BILINEAR)),
}


def read_pack(root: Path) -> tuple[list[Path], Tensor]:
    """Files by person, then name, and their labels [N]."""
    with (root / "index.csv").open(newline="") as file:
        rows = sorted((int(row["identity"]), row["file"]) for row in csv.DictReader(file))
    people = {identity: label for label, identity in enumerate(dict.fromkeys(identity for identity, _ in rows))}
    labels = torch.tensor([people[identity] for identity, _ in rows])
    return [root / "celeba" / "img_align_celeba" / name for _, name in rows], labels


def evaluator(weights: Path, box: str, classes: int) -> Classifier:
    """The architecture as its YAML describes it, with published weights."""
    overrides = ["architecture=mobilefacenet", f"architecture.weights={weights}", f"architecture.warp.box={box}"]
    node = compose("train_target", overrides)[0]["architecture"]
    return bind(node, "architecture", beside_dataset=True).given(classes=classes, channels=3).build().eval()


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of the nearest class mean on the last `TEST_IMAGES` images [N, 3, H, W], uint8, of each person."""
    features = torch.cat([model.features(batch.float().div(255)) for batch in images.split(BATCH)])
    counts = torch.bincount(labels)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]
    test = place >= counts[labels] - TEST_IMAGES
    model.set_centroids(features[~test], labels[~test])
    return (model.head(features[test]).argmax(1) == labels[test]).double().mean().item()


def measure(root: Path, weights: Path) -> str:
    """The report as markdown."""
    files, labels = read_pack(root)
    classes = int(labels.max()) + 1
    rows = []
    for name, (box, view) in VIEWS.items():
        images = torch.stack([pil_to_tensor(view(Image.open(file).convert("RGB"))) for file in files])
        share = accuracy(evaluator(weights, box, classes), images, labels)
        rows.append(f"| {name} | `{box}` | {share:.2%} |".replace("%", " %"))
    lines = [
        "# MobileFaceNet as an evaluator",
        "",
        "`python benchmarks/mobilefacenet.py --root PACK --weights mobilefacenet_068.ckpt --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu, torch {torch.__version__}.",
        "",
        f"{classes} people of CelebA, {len(files)} images, {TEST_IMAGES} each looked up among the means of the rest; "
        "one fixed warp, no landmarks per image. The images were once filtered by this network, so this is optimistic.",
        "",
        "| stored image | `architecture.warp.box` | nearest mean, top-1 |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the unpacked images")
    parser.add_argument("--weights", type=Path, required=True, help="mobilefacenet_068.ckpt")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    text = measure(arguments.root, arguments.weights)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
