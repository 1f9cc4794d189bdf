"""How long the site of ten thousand results takes to build, and how long its filters take to answer in a browser.

    python benchmarks/report_site.py --write

The results are written into a store as `evaluate` writes them (recipe, provenance, seals, 30 metrics with 10 classes
each, pictures of 4 classes), each with the artefact of its attack, and are read back, checked and drawn by what
`midefense report --site` runs. Only their numbers are made up. The browser is that of the tests (`tests/browser.py`);
without one its lines say so. Seconds are those of the process (CPU); beside them the clock's, which others may share.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from midefense.report import build_site, read_rows
from midefense.store import artefacts
from midefense.store.artefacts import Draft
from midefense.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
DEFENSES = [
    f"{name}(weight={weight / 10})" for name in ("vib", "bido", "mid", "tl_dmi", "nls") for weight in range(1, 6)
]
ATTACKS = ("gmi", "ked_mi", "vmi", "plg_mi", "ppa", "mirror", "rlb_mi", "brep_mi")
ARCHITECTURES = ("vgg16", "ir152", "resnet18", "facenet64")
PROTOCOLS = 2
CLASSES = 10
OTHERS = ("precision", "recall", "density", "coverage", "feature_distance", "attack_accuracy_top5", "ssim", "psnr")
STAGES = ("", "@initial", "@optimised")
SAY = "(b => {{ b.value = '{}'; b.dispatchEvent(new Event('input')); }})(document.getElementById('words'))"
HEAD = "[...document.querySelectorAll('#tables th')].find(h => h.dataset.key.startsWith('attack_accuracy_top1'))"
STEPS = {
    "a word": SAY.format("vib plg_mi"),
    "a setting": SAY.format("steps=103"),
    "nothing again": SAY.format(""),
    "one value of a key": "document.querySelector('.facet[data-key=attack] input').click()",
    "a second key": "document.querySelector('.facet[data-key=architecture] input').click()",
    "seeds apart": "document.getElementById('apart').click()",
    "sorted by a number": f"{HEAD}.querySelector('button').click()",
    "all, seeds apart": "document.getElementById('reset').click()",
}


def points() -> Iterator[tuple[int, int, dict[str, str]]]:
    """Setups with their numbers, over seeds 0, 1, 2, without end."""
    number = 0
    while True:
        for attack in ATTACKS:
            for architecture in ARCHITECTURES:
                for defense in ("none", *DEFENSES):
                    for seed in range(3):
                        yield number, seed, {"defense": defense, "attack": attack, "architecture": architecture}
                    number += 1


def document(number: int, seed: int, names: dict[str, str], recovered: str = "") -> dict:
    """The content of a result's metrics.json, with made-up numbers."""
    rng = random.Random(f"{number} {seed}")

    def measured(low: float, high: float, leaks: bool | None, kind: str = "privacy") -> dict:
        value = rng.uniform(low, high)
        classes = {str(label): round(rng.uniform(low, high), 4) for label in range(CLASSES)}
        numbers = {"value": value, "low": 0.8 * value, "high": 1.2 * value, "n": 200, "per_class": classes}
        return {**numbers, "higher_leaks": leaks, "kind": kind, "interval": "classes"}

    about = {
        **{"dataset": "synthetic_faces", "public": "other", "prior": "gan_64", "access": "whitebox", **names},
        **{"protocol": f"protocol{number % PROTOCOLS}", "setup": f"h{number}", "classes": CLASSES, "candidates": 20},
        "baseline": f"b{names['attack']}{names['architecture']}{number % PROTOCOLS}",
        **{
            "date": f"2026-01-{1 + number % 28:02d}",
            "device": "cpu",
            "knew": "no",
            "made_on": {"attack": "cpu, 1 thread"},
        },
        "seeds": {"target": seed, "prior": 0, "attack": seed},
        "command": f"python evaluate.py defense={names['defense']} attack={names['attack']} seed={seed}",
        "evaluators": {"main": {"name": "facenet", "accuracy": 0.95, "images": 1000, "guessed": False}},
        "ids": {"recovered": recovered},
    }
    metrics = {
        "utility/test_accuracy_top1": measured(0.7, 0.95, None, "utility"),
        "attack_accuracy_top1/main": measured(0.1, 0.9, True),
        "target_class_confidence/main": measured(0.1, 0.9, True),
        "knn_distance/main": measured(500, 1500, False),
        "cost/queries_per_target_mean": measured(1e5, 1e6, None, "cost"),
        "cost/seconds": measured(10, 10_000, None, "cost"),
        **{f"{name}{stage}/main": measured(0, 1, True) for name in OTHERS for stage in STAGES},
    }
    anchors = {"real": {"attack_accuracy_top1/main": 0.95}, "chance": {"attack_accuracy_top1/main": 0.1}}
    return {"row": about, "metrics": metrics, "anchors": anchors}


def recipe(number: int, seed: int) -> dict:
    """A recipe of an attack, as long as a real one; `steps` and `weight` tell setups apart."""
    options = {f"option_{one}": one / 7 for one in range(50)}
    search = {"_target_": "midefense.attacks.search.gradient.Gradient", "steps": 100 + number % 40, **options}
    prior = {"kind": "prior", "seed": 0, "prior": {"_target_": "midefense.priors.gmi.GmiGan", "width": 64}}
    attack = {"search": search, "weight": number % 17 / 10, "setup": number}
    return {"kind": "recovered", "attack": attack, "prior": prior, "seed": seed, "labels": list(range(CLASSES))}


def fill(folder: Path, count: int) -> None:
    """Write so many results, each with the artefact of its attack, as the pipeline does; nothing is forced onto the
    disk, and the commit is asked once."""
    store, commit = Store(folder), artefacts._commit()
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = torch.linspace(0, 1, 8)
    pictures = {"reconstructions": images, "nearest": images.flip(0), "labels": torch.arange(8) // 2}
    pictures |= {"distance": numbers, "confidence": numbers}
    with mock.patch.object(os, "fsync", lambda _: None), mock.patch.object(artefacts, "_commit", lambda: commit):
        for _, (number, seed, names) in zip(range(count), points(), strict=False):
            draft = Draft(kind="recovered", name=f"attack-{number}-{seed}", recipe=recipe(number, seed))
            made = store.work(draft).finish({"latents": torch.zeros(1)}, {})
            parents = {"recovered": made.reference}
            own = {
                "kind": "result",
                "recovered": made.id,
                "protocol": {"evaluators": ["main"], "half": number % PROTOCOLS},
            }
            result = Draft(kind="result", name=f"r{number}-{seed}", recipe=own, parents=parents)
            store.work(result).finish(pictures, document(number, seed, names, made.id))


def timed(what: Callable[[], object]) -> tuple[object, float, float]:
    """What a call gives, its seconds of CPU, and those of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    found = what()
    return found, time.process_time() - cpu, time.perf_counter() - clock


def browsed(index: Path, profile: Path) -> list[tuple[str, float, float]]:
    """What the browser did: its name, the milliseconds of CPU of the page's thread until all is laid out, and those of
    the clock; empty without a browser."""
    sys.path.insert(0, str(ROOT / "tests"))
    import browser

    if (program := browser.find()) is None:
        return []
    with browser.Browser(program, profile) as tab:
        tab.send("Performance.enable", timeDomain="threadTicks")
        cost, clock = page_seconds(tab), time.perf_counter()
        tab.open(index, 1400)
        tab.run(LAID_OUT)
        found = [("opened", 1000 * (page_seconds(tab) - cost), 1000 * (time.perf_counter() - clock))]
        return found + [(name, *answered(tab, step)) for name, step in STEPS.items()]


LAID_OUT = "document.body.offsetHeight"


def answered(tab, step: str) -> tuple[float, float]:
    """Milliseconds of CPU of the page's thread, and of the clock within the page, from a wish to the new layout."""
    before = page_seconds(tab)
    clock = tab.run(
        f"(() => {{ const start = performance.now(); {step}; {LAID_OUT}; return performance.now() - start; }})()"
    )
    return 1000 * (page_seconds(tab) - before), clock


def page_seconds(tab) -> float:
    """Seconds of CPU that the page's thread has worked so far."""
    return next(one["value"] for one in tab.send("Performance.getMetrics")["metrics"] if one["name"] == "TaskDuration")


def page(
    count: int,
    parts: list[tuple[str, float, float]],
    seen: list[tuple[str, float, float]],
    size: int,
    given: str = "",
) -> str:
    """The page that `--write` leaves; `given`: further words of the command."""
    lines = [
        "# The site of many results",
        "",
        f"`python benchmarks/report_site.py {given}--write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), one thread, load {os.getloadavg()[0]:.1f} "
        "beside it: seconds of the process, then of the clock",
        "",
        f"{count:,} results, three seeds a setup, {PROTOCOLS} protocols; the first page has {size / 1e6:.1f} MB.",
        "",
        "| part | CPU | clock |",
        "|---|---|---|",
        *(f"| {name} | {cpu:.1f} s | {clock:.1f} s |" for name, cpu, clock in parts),
        *(f"| browser: {name} | {cpu:.0f} ms | {clock:.0f} ms |" for name, cpu, clock in seen),
    ]
    return "\n".join(lines + ([] if seen else ["", "No browser was found: filters were not measured."])) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="results (default: 10,000)")
    parser.add_argument("--store", type=Path, help="fill this folder, or use what it has; default: one that goes after")
    parser.add_argument("--write", action="store_true", help="write the page beside this script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store, site = options.store or Path(scratch) / "store", Path(scratch) / "site"
        if not store.exists():
            fill(store, options.count)
        (rows, broken), *reading = timed(lambda: read_rows(store))
        assert not broken, broken[:3]
        index, *building = timed(lambda: build_site(rows, site))
        parts = [("read and check the store", *reading), ("build the site", *building)]
        given = "--store DIR " if options.store else ""
        text = page(len(rows), parts, browsed(index, Path(scratch) / "profile"), index.stat().st_size, given)
    print(text)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
