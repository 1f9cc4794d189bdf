"""Crops and resizes with their gradient, by sums in a fixed order (what `midefense.resampling` does on a GPU) and by
torch's own, on a CPU.

    python benchmarks/resampling.py --write

Both give the same images and gradients, or the run fails. Repeats are interleaved, so that a busy machine slows both;
medians are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.attacks.views import RandomResizedCrop
from midefense.resampling import cropped_by_taps, resized_by_taps

REPORT = Path(__file__).with_suffix(".md")
Way = Callable[[Tensor], Tensor]


def crops(count: int) -> tuple[Way, Way]:
    """PPA's selection views of `count` images: ours, and torch's affine grid."""
    view = RandomResizedCrop(scale=(0.5, 0.9), ratio=(0.8, 1.2), flip=0.5)
    draws = view.draw(count, torch.Generator().manual_seed(0))

    def by_grid(images: Tensor) -> Tensor:
        width, height, x, y = draws.unbind(1)
        zero = torch.zeros_like(width)
        affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    return lambda images: cropped_by_taps(images, draws, view.smallest), by_grid


def resizes(size: int) -> tuple[Way, Way]:
    """To `size` pixels square."""
    return (
        lambda images: resized_by_taps(images, size, size),
        lambda images: F.interpolate(images, size=(size, size), mode="bilinear", antialias=True),
    )


def cases(count: int) -> dict[str, tuple[int, tuple[Way, Way]]]:
    """What is timed: the side of the images, and both ways."""
    return {
        "crop at 64 px": (64, crops(count)),
        "crop at 224 px": (224, crops(count)),
        "32 to 64 px": (32, resizes(64)),
        "299 to 224 px": (299, resizes(224)),
        "800 to 224 px": (800, resizes(224)),
    }


def step(way: Way, images: Tensor) -> tuple[Tensor, Tensor]:
    """The images and the gradient of the mean square."""
    made = way(images)
    return made.detach(), torch.autograd.grad(made.square().sum(), images)[0]


def ratio(side: int, ways: tuple[Way, Way], count: int, repeats: int) -> tuple[float, float, float]:
    """How many times as long torch's own takes: median, least, most of interleaved repeats."""
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for mine, theirs in zip(*(step(way, images) for way in ways), strict=True):
        if (mine - theirs).abs().max() > 1e-3 * theirs.abs().max():
            raise SystemExit("the two ways do not give the same")
    found = []
    for _ in range(repeats):
        spent = []
        for way in ways:
            started = time.perf_counter()
            step(way, images)
            spent.append(time.perf_counter() - started)
        found.append(spent[1] / spent[0])
    return statistics.median(found), min(found), max(found)


def report(count: int, repeats: int) -> str:
    """The ratios as markdown."""
    lines = [
        "# Crops and resizes",
        "",
        f"`python benchmarks/resampling.py --images {count} --repeats {repeats} --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {repeats} interleaved repeats.",
        "",
        f"{count} images of three channels, forward and gradient, float32; both ways give the same:",
        "",
        "| what | torch's own takes, times sums in a fixed order | least to most |",
        "|---|---|---|",
    ]
    for name, (side, ways) in cases(count).items():
        middle, least, most = ratio(side, ways, count, repeats)
        lines.append(f"| {name} | {middle:.1f} | {least:.1f} to {most:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    text = report(arguments.images, arguments.repeats)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
