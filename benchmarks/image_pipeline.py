"""How fast training batches come: our cached, batched pipeline against torchvision's DataLoader with Pillow, doing the
same transforms on the same JPEG files.

    python benchmarks/image_pipeline.py --write [--root DIR]

Both: the centre crop of 108 of 178x218 at 64 px, random resized crop, colour jitter, mirror image, random erasing, in
batches of 64. torchvision gets two worker processes (one thread each, as it comes), ours two threads of one process.
Repeats are interleaved, so that a busy machine slows both; medians are compared. Without `--root` (a folder of class
folders) the files are drawn here.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.datasets.decoding import Decoding, decode
from midefense.datasets.image_folder import class_folders, list_folders
from midefense.defenses.random_erasing import RandomErasing
from midefense.training.augmentations import ColorJitter, HorizontalFlip, ResizedCrop
from midefense.types import Batch, Images

SIZE, BATCH, WORKERS = 64, 64, 2
SCALE, RATIO, ERASED = (0.85, 1.0), (1.0, 1.0), (0.1, 0.4)
COLOUR = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.1}
CROP = (35, 55, 143, 163, 178, 218)
REPORT = Path(__file__).with_suffix(".md")


def draw_files(root: Path, classes: int = 20, images: int = 64) -> None:
    """Smooth colour pictures of 178x218, as JPEG, one folder per class."""
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir()
        noise = torch.rand(images, 3, 7, 6, generator=seeds.generator("benchmark", label))
        pictures = torch.nn.functional.interpolate(noise, size=(218, 178), mode="bicubic").clamp(0, 1)
        for number, picture in enumerate((pictures * 255).byte().permute(0, 2, 3, 1).numpy()):
            Image.fromarray(picture).save(folder / f"{number}.jpg", quality=95)


def torchvision_epoch(loader: DataLoader) -> int:
    """Images that one pass over the loader gives."""
    return sum(len(images) for images, _ in loader)


def torchvision_loader(root: Path) -> DataLoader:
    """The published pipeline: decode, crop and resize with Pillow, augment image by image in two workers."""
    transform = v2.Compose(
        [
            v2.CenterCrop(108),
            v2.Resize(SIZE),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO, antialias=True),
            v2.ColorJitter(**COLOUR),
            v2.RandomHorizontalFlip(),
            v2.RandomErasing(p=1.0, scale=ERASED, ratio=RATIO),
        ]
    )
    files = torchvision.datasets.ImageFolder(str(root), transform)
    return DataLoader(files, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)


def our_epoch(images: Images, defense: RandomErasing, device: torch.device) -> int:
    """Images that one pass of the training loop's own steps gives."""
    augmentations = [ResizedCrop(scale=SCALE, ratio=RATIO), ColorJitter(**COLOUR), HorizontalFlip()]
    order = torch.randperm(len(images), generator=seeds.generator("benchmark", "order"))
    for index, rows in enumerate(order.split(BATCH)):
        batch = Batch(
            images=images.floats(rows, device),
            labels=images.labels[rows].to(device),
            ids=images.ids[rows].to(device),
            weight=torch.ones(len(rows), device=device),
            rng=seeds.generator("benchmark", "batch", index),
        )
        for place, augment in enumerate(augmentations):
            batch.images = augment(batch.images, seeds.fork(batch.rng, f"augment/{place}"))
        defense.transform(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(images)


def rates(works: list[Callable[[], int]], repeats: int) -> list[list[float]]:
    """Images per second of each work, measured in turns after one pass each that warms up."""
    for work in works:
        work()
    return [list(column) for column in zip(*([_rate(work) for work in works] for _ in range(repeats)), strict=True)]


def _rate(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def report(root: Path, device: torch.device, repeats: int, files: str) -> str:
    """The measurement as markdown."""
    torch.set_num_threads(WORKERS)
    listing = list_folders(class_folders(root))
    with tempfile.TemporaryDirectory() as cache:
        decoding = Decoding(channels=3, size=SIZE, framing="squash", crop=CROP)
        cold = _rate(lambda: len(decode((listing,), decoding, Path(cache))[0]))
        (images,) = decode((listing,), decoding, Path(cache))
        defense = RandomErasing(scale=ERASED).to(device)
        defense.rebuild(CNN(classes=2, channels=3, size=SIZE).to(device))
        loader = torchvision_loader(root)
        works = [functools.partial(torchvision_epoch, loader), functools.partial(our_epoch, images, defense, device)]
        theirs, ours = rates(works, repeats)
    ratio = statistics.median(ours) / statistics.median(theirs)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    lines = [
        "# Image pipeline",
        "",
        "`python benchmarks/image_pipeline.py --write`",
        f"measured {time.strftime('%Y-%m-%d')}, {device.type} ({name}), {WORKERS} workers or threads, torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, {repeats} interleaved repeats; median (least to "
        "most).",
        "",
        f"{len(listing):,} JPEG files of 178x218 ({files}) as 64 px training batches: crop, resize, random resized "
        "crop, colour jitter, mirror image, random erasing.",
        "",
        "| pipeline | images per second |",
        "|---|---|",
        f"| torchvision + Pillow + DataLoader, {WORKERS} workers | {_spread(theirs)} |",
        f"| ours, from the cache, {WORKERS} threads | {_spread(ours)} |",
        f"| ratio of medians | {ratio:.1f} |",
        "",
        f"Filling the cache, once: {cold:,.0f} images per second.",
    ]
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder of class folders; default: drawn here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root or Path(folder)
        if arguments.root is None:
            draw_files(root)
        files = "drawn" if arguments.root is None else "given"
        text = report(root, torch.device(arguments.device), arguments.repeats, files)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
