"""How near `midefense plan` comes to the time that stages then take: a small study of digits, planned and carried out.

    python benchmarks/plan_times.py --write

Each stage is measured over a few steps in a fresh store, as `missing=measure` does, and then made. On an idle machine:
what other processes take while one of the two runs is in the difference. KEY=VALUE words are laid over those of the
study.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.costs import Cost
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.plan.overrides import laid_over
from midefense.plan.read import read_plan
from midefense.store.artefacts import Artefact

REPORT = Path(__file__).with_suffix(".md")
WORDS = (
    "dataset=digits",
    "architecture=cnn",
    "recipe.epochs=30",
    "prior=gmi_gan_small",
    "prior.steps=1500",
    "attack=gmi_small",
    "compute=cpu",
    "compute.threads=1",
    "tracking=none",
)
ALLOWED = 0.3  # of the real time


def pipeline(words: list[str]) -> Pipeline:
    """The attack of the study."""
    config, choices = compose("attack", words)
    return Pipeline(read_plan("attack", config, choices, words))


def compared(words: list[str]) -> list[tuple[str, Cost, Artefact]]:
    """What each stage was said to cost, and what was made."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, f"store={folder}"]
        agenda = look_ahead(pipeline(words))
        costs = agenda.measured()
        study = pipeline(words)
        assert study.recovered is not None
        made = {artefact.id: artefact for artefact in study.store.list()}
        return [(item.what, costs[item.artefact.id], made[item.artefact.id]) for item in agenda.missing]


def report(words: list[str]) -> str:
    """The comparison as markdown."""
    lines = []
    for what, cost, artefact in compared(words):
        real = artefact.provenance["seconds"]
        off = cost.seconds / real - 1
        verdict = "" if abs(off) <= ALLOWED else " (beyond 30 %)"
        lines.append(f"| {what} | {cost.steps} | {cost.seconds:.1f} s | {real:.1f} s | {off:+.0%}{verdict} |")
    return "\n".join(
        [
            "# What a plan says, and what it then takes",
            "",
            "`python benchmarks/plan_times.py --write`",
            f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), one thread, torch {torch.__version__}, "
            f"load average {os.getloadavg()[0]:.1f}.",
            "",
            f"`{' '.join(words)}`",
            "",
            "| stage | steps measured | planned | real | difference |",
            "|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="laid over those of the study")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name}")
    options = parser.parse_args()
    text = report(laid_over(options.words, WORDS))
    print(text)
    if options.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
