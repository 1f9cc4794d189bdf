"""A picture of training images that come back out of a network's weights: each above what the attack made of it, and
that above the held-out image of its class that it is most similar to.

    python benchmarks/training_images.py --store DIR --write

Digits 0 to 4, five images each, 8 px, a homogeneous perceptron that has learned them by heart; `attack=kkt_small`, as
its file says. Everything is kept in `--store`, so that the picture is drawn again without any work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from low_resolution import pipeline
from PIL import Image
from torch import Tensor

from midefense.metrics.matched import ssim_of_pairs
from midefense.pipeline.pipeline import Pipeline

PICTURE = Path(__file__).parents[1] / "docs" / "training_images.png"
SIDE, WINDOW, ZOOM, GAP = 8, 7, 8, 6
WORDS = (
    f"dataset=digits dataset.size={SIDE} dataset.images_per_class=5 architecture=homogeneous_mlp recipe=kkt "
    f"attack=kkt_small metrics=matched architecture.widths=[300,300] architecture.size={SIDE} architecture.mean=0.3 "
    "architecture.first_deviation=0.01"
)


def pairs(made: Pipeline) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training images [K, 1, H, W], what was made of each, the held-out image of its class most similar to that, and
    both similarities [K]: of the pair, and to that image. Most similar pairs first."""
    found, judged = made.recovered.tensors(), made.result.tensors()
    images = found["selected.latents"].clamp(0, 1)
    labels = found["evidence.labels"][found["selected.evidence"]]
    by_class = labels.argsort(stable=True)  # in which order metrics count the rows
    images, labels = images[by_class], labels[by_class]
    order = judged["matched.ssim"].argsort(descending=True)
    rows, ids = judged["matched.rows"][order], judged["matched.ids"][order]
    split = made.splits
    places = [int((split.private_train.ids == one).nonzero()[0, 0]) for one in ids]
    originals = split.private_train.floats(torch.tensor(places), torch.device("cpu"))
    tests = split.private_test.floats(device=torch.device("cpu"))
    similar = ssim_of_pairs(images[rows], tests, WINDOW)
    similar[labels[rows][:, None] != split.private_test.labels] = -1
    nearest = similar.max(1)
    return originals, images[rows], tests[nearest.indices], judged["matched.ssim"][order], nearest.values


def sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of images [K, 1, H, W] as one picture, white between them."""
    bands = [torch.cat([_framed(image[0]) for image in row], 1) for row in rows]
    pixels = (torch.cat(bands) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(np.pad(pixels, GAP // 2, constant_values=255))


def _framed(image: Tensor) -> Tensor:
    large = image.repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1)
    return torch.nn.functional.pad(large, (GAP // 2,) * 4, value=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write docs/{PICTURE.name}")
    arguments = parser.parse_args()
    words = [*WORDS.split(), f"seed={arguments.seed}"]
    made = pipeline("evaluate", words, Path(), arguments.store, arguments.threads)
    *images, of_pairs, of_others = pairs(made)
    for name in ("matched_ssim/train", "matched_ssim/held_out", "reconstructed_share/train"):
        print(f"{name} {made.result.metrics['metrics'][name]['value']:.3f}")
    for mine, other in zip(of_pairs[: arguments.columns].tolist(), of_others.tolist(), strict=False):
        print(f"SSIM {mine:.3f}; to the nearest of the held-out images {other:.3f}")
    if arguments.write:
        sheet([row[: arguments.columns] for row in images]).save(PICTURE)


if __name__ == "__main__":
    main()
