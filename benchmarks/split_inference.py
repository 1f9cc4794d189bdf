"""Utility of what leaves the edge against the identities that the strongest of a ladder of attacks finds in it: all
defenses at release, at three strengths each, on synthetic faces.

    python benchmarks/split_inference.py --store DIR --write [--size 64] [--images 100] [--seeds 0 1 2] [--threads N]

The target tells ten attributes and has learned them from public people; it is cut behind its first stage. Every cell
(seed x defense x attack) is one row of the store: a run that was ended goes on, several may share a store, and the page
is written of as many as there are. `--tiny` is a world of minutes, to see that all works; `--only crafter_small`,
`--strengths medium` and `--attacks feature_decoder_small` run a part; `--show` writes the page of what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.plan.read import read_plan
from midefense.report import Row, read_rows
from midefense.report.rows import Setup, setups, summarise
from midefense.report.worst import WorstCase, worst_cases
from midefense.store.artefacts import content_id, write_whole
from midefense.types import Diverged, Refused

REPORT = Path(__file__).with_suffix(".md")
INDEX = "split_inference"  # folder in the store: a file for each cell of this table, with its row or why there is none
SECOND = "second"
WORLD = (
    "dataset=synthetic_faces dataset.label=attributes train_on=public architecture=cnn architecture.cut=stage1 "
    "recipe=quick recipe.epochs=15 metrics=paired evidence.part=test "
    "evaluators.main.train_on=private evaluators.main.recipe.epochs=20 "
    "+evaluator@evaluators.second=resnet18 evaluators.second.train_on=private evaluators.second.recipe.epochs=10"
)
TINY = (
    "dataset.identities=12 dataset.public_identities=12 dataset.images_per_identity=20 "
    "dataset.public_images_per_identity=20 dataset.test_images_per_identity=4 recipe.epochs=3 "
    "evaluators.main.recipe.epochs=12 evaluators.second.recipe.epochs=2 judge_at_chance=true"
)
# Weak, medium, strong: what stands behind defense=.
DEFENSES: dict[str, tuple[str, ...]] = {
    "none": ("",),
    "feature_noise": ("defense.scale=0.5", "defense.scale=1.0", "defense.scale=2.0"),
    "feature_pruning": ("defense.share=0.5", "defense.share=0.75", "defense.share=0.9"),
    "feature_quantisation": ("defense.bits=4", "defense.bits=2", "defense.bits=1"),
    "disco": ("defense.alpha=0.2", "defense.alpha=0.4", "defense.alpha=0.8"),
    "adversarial_learning": ("defense.weight=0.1", "defense.weight=0.5", "defense.weight=0.8"),
    "crafter_small": ("defense.beta=10.0", "defense.beta=2.0", "defense.beta=0.5"),
    "crafter_z": ("defense.rate=5.0e-4", "defense.rate=1.0e-3", "defense.rate=5.0e-3"),
}
SMALLER = {  # what a defense needs to run on two cores
    "crafter_small": "defense.group=128",
    "crafter_z": "prior@defense.prior=crafter_gan_small defense.steps=100 defense.critic.steps=5 defense.group=128 "
    "defense.amortiser.steps=1500 defense.amortiser.rate=1.0e-3 'defense.amortiser.network.widths=[64,128,256]' "
    "defense.amortiser.network.hidden=128",
}
ATTACKS = (
    "feature_decoder_small",
    "feature_gan_small",
    "feature_hybrid_small",
    "feature_decoder_adaptive_small",
    "feature_gan_adaptive_small",
    "feature_gan_other_prior_small",
    "feature_gan_averaged_small",
    "feature_decoder_purified_small",
    "feature_gan_purified_small",
    "feature_gan_full_small",
)
STRENGTHS = {"medium": 1, "weak": 0, "strong": 2}  # which of the three; undefended is the medium one
DROPS = (0.01, 0.03, 0.05)  # of the AUC, at which defenses are held together


@dataclass(frozen=True)
class Cell:
    """One attack on one defense at one strength, and its seed."""

    seed: int
    defense: str
    strength: str
    attack: str

    @property
    def name(self) -> str:
        """What the index calls it."""
        return " ".join(filter(None, (self.defense, self.strength, self.attack, f"seed={self.seed}")))

    @property
    def words(self) -> list[str]:
        """What stands on its command line beside the world."""
        smaller = SMALLER.get(self.defense, "").replace("'", "").split()
        own = (f"defense={self.defense}", self.strength, f"attack={self.attack}", f"seed={self.seed}")
        return [*filter(None, own), *smaller]


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """All cells, so that an early end leaves whole rows of as many defenses as possible."""
    for seed in options.seeds:
        for defense, strength in _strengths(options.only, [STRENGTHS[name] for name in options.strengths]):
            for attack in options.attacks:
                yield Cell(seed, defense, strength, attack)


def _strengths(only: Sequence[str], places: Sequence[int] = (1, 0, 2)) -> Iterator[tuple[str, str]]:
    """No defense, then every defense at its medium strength, then the others."""
    chosen = [name for name in DEFENSES if not only or name in only]
    for place in places:
        for name in chosen:
            strengths = DEFENSES[name]
            if len(strengths) == 1 and place == 1:
                yield name, strengths[0]
            elif len(strengths) > 1:
                yield name, strengths[place]


def world(options: argparse.Namespace) -> list[str]:
    """Command-line words that all cells share."""
    words = [*WORLD.split(), *(TINY.split() if options.tiny else ())]
    words += [f"dataset.size={options.size}", f"architecture.size={options.size}", f"evidence.images={options.images}"]
    return [
        *words,
        f"compute.accelerator={options.device}",
        f"compute.threads={options.threads}",
        "tracking=none",
        f"store={options.store}",
    ]


def run(cell: Cell, options: argparse.Namespace) -> str:
    """Make a cell's row, or find it. Gives the name of its folder."""
    words = [*world(options), *cell.words, *options.extra]
    return Pipeline(read_plan("evaluate", *compose("evaluate", words), words)).result.path.name


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Markdown of a head and its lines."""
    head, *body = lines
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]


def number(rows: Sequence[Row], metric: str, scale: float = 100.0, digits: int = 1) -> str:
    """A metric over the seeds of rows, with the bounds of its interval."""
    found = summarise(rows, metric)
    if not math.isfinite(found.mean):
        return "n/a"
    bounds = f" [{found.low * scale:.{digits}f}, {found.high * scale:.{digits}f}]" if math.isfinite(found.low) else ""
    return f"{found.mean * scale:.{digits}f}{bounds}"


def summary(cases: Sequence[WorstCase], attacks: Mapping[int, Sequence[Row]]) -> list[str]:
    """The table of utility against the worst case. `attacks`: all rows of a case, by its place."""
    lines = [
        ["defense", "AUC, released", "AUC, clean", "distortion", "identity accuracy, worst", "by", "by any attack"]
        + ["second evaluator, worst", "SSIM there", "seconds per image", "bytes"]
    ]
    for place, case in enumerate(cases):
        rows, worst = attacks[place], case.worst.rows
        union = "n/a" if math.isnan(case.union) else f"{100 * case.union:.1f}"
        if case.bounds.way:
            union += f" [{100 * case.bounds.low:.1f}, {100 * case.bounds.high:.1f}]"
        second = max(
            (row.metrics[name].value for row in rows if (name := _accuracy(SECOND)) in row.metrics), default=math.nan
        )
        lines.append(
            [
                case.defense,
                number(rows, "released_auc"),
                number(rows, "clean_auc"),
                number(rows, "feature_distortion", 1, 2),
            ]
            + [number(worst, _accuracy("main")), _called(case.worst), union, f"{100 * second:.1f}"]
            + [number(worst, "ssim", 1, 2), number(rows, "cost/release_seconds_per_image", 1, 3)]
            + [number(rows, "cost/bytes_per_feature", 1, 0)]
        )
    return table(lines)


def matrix(found: Mapping[str, Mapping[str, Setup]], order: Sequence[str]) -> list[str]:
    """Identity accuracy by defense and attack."""
    attacks = [attack for attack in order if any(attack in row for row in found.values())]
    names = [attack.removeprefix("feature_").removesuffix("_small") for attack in attacks]
    lines = [["defense", *names]]
    for defense, row in found.items():
        shown = [number(row[attack].rows, _accuracy("main")) if attack in row else "–" for attack in attacks]
        lines.append([defense, *shown])
    return table(lines)


def matched(cases: Sequence[WorstCase], utilities: Sequence[float]) -> list[str]:
    """What each kind of defense leaves the strongest attack at equal loss of AUC, on lines between its strengths."""
    plain = next((place for place, case in enumerate(cases) if case.defense == "none"), None)
    if plain is None:
        return ["(needs the undefended rows)"]
    lines = [["defense", *(f"AUC drop of {100 * drop:.0f} points" for drop in DROPS)]]
    for name in (name for name in DEFENSES if name != "none"):
        own = [place for place, case in enumerate(cases) if case.defense.split("(")[0] == name]
        if not own:
            continue
        points = sorted({(utilities[plain] - utilities[p], cases[p].leak.mean) for p in (plain, *own)})
        lost, leaks = zip(*points, strict=True)
        at = [np.interp(drop, lost, leaks, left=math.nan, right=math.nan) for drop in DROPS]
        lines.append([name, *("n/a" if math.isnan(leak) else f"{100 * leak:.1f}" for leak in at)])
    return table(lines)


def page(rows: Sequence[Row], failed: Mapping[str, str], options: argparse.Namespace, left: int) -> str:
    """What was measured, as markdown."""
    lines = [
        "# Split inference: utility against the worst case of a ladder of attacks",
        "",
        f"`python benchmarks/split_inference.py --store DIR --size {options.size} --device {options.device} --write`",
        f"measured {_days(rows)}, {_machines(rows)}, threads: {options.threads}, torch {_torches(rows)}, "
        f"seeds {', '.join(map(str, options.seeds))}" + (f"; {left} cells are still to come." if left else "."),
        "",
    ]
    if not rows:
        return "\n".join([*lines, "Nothing yet.", ""])
    found = setups(rows)
    cases = worst_cases(found)
    by_defense: dict[str, dict[str, Setup]] = {}
    for setup in found:
        by_defense.setdefault(setup["defense"], {})[setup["attack"].split("(")[0]] = setup
    attacks = {p: [r for s in by_defense[case.defense].values() for r in s.rows] for p, case in enumerate(cases)}
    utilities = [summarise(attacks[place], "released_auc").mean for place in attacks]
    first = rows[0]
    lines += [
        f"Synthetic faces at {options.size} px; the target (`cnn`, ten attributes, learned from public people) is cut "
        f"behind `stage1`; {first['images']} private test images of {first['classes']} people. Per cent, with 95 % "
        "intervals over people. Identity accuracy is top-1 of the evaluator "
        f"({'; '.join(dict.fromkeys(row.evaluators for row in rows))}). Attacks are the short presets.",
        "",
        _anchors(rows),
        "",
        *summary(cases, attacks),
        "",
        "Identity accuracy of the strongest attack, at equal loss of AUC:",
        "",
        *matched(cases, utilities),
        "",
        "Identity accuracy by attack:",
        "",
        *matrix(by_defense, ATTACKS),
    ]
    if failed:
        lines += ["", "Not run:", "", *(f"- {name}: {reason}" for name, reason in failed.items())]
    return "\n".join(lines) + "\n"


def _machines(rows: Sequence[Row]) -> str:
    """On which machines the attacks of rows ran."""
    return " and ".join(sorted({row.about["made_on"]["attack"] for row in rows})) or "nowhere"


def _torches(rows: Sequence[Row]) -> str:
    """The versions of torch that judged rows."""
    known = (json.loads((row.folder / "provenance.json").read_text()) for row in rows)
    return " and ".join(sorted({provenance["versions"]["torch"] for provenance in known})) or torch.__version__


def _days(rows: Sequence[Row]) -> str:
    """The days on which rows were judged."""
    return ", ".join(sorted({row["date"] for row in rows})) or time.strftime("%Y-%m-%d")


def _anchors(rows: Sequence[Row]) -> str:
    """Ceiling and floors of the identity accuracy."""
    names = {"real": "the images themselves", "other": "other images of the same people", "prior": "random images"}
    known = []
    for kind, words in {**names, "chance": "chance"}.items():
        levels = [
            level for row in rows if math.isfinite(level := row.anchors.get(kind, {}).get(_accuracy("main"), math.nan))
        ]
        if levels:
            known.append(f"{words} {100 * sum(levels) / len(levels):.1f}")
    return "Identity accuracy of " + ", ".join(known) + "."


def _accuracy(evaluator: str) -> str:
    return f"paired_accuracy_top1/{evaluator}"


def _called(setup: Setup) -> str:
    name = setup["attack"].split("(")[0].removeprefix("feature_").removesuffix("_small")
    return f"{name} ({setup['rung']})" if setup["rung"] else name


def main() -> None:
    options = parsed()
    planned = [] if options.show else list(cells(options))
    for done, cell in enumerate(planned, start=1):
        started = time.monotonic()
        try:
            outcome = {"row": run(cell, options)}
        except (Refused, Diverged) as reason:  # said on the page; the other cells are worth having
            outcome = {"failed": str(reason)}
        keep(options.store, cell, outcome)
        state = "failed" if "failed" in outcome else "done"
        print(f"{done}/{len(planned)} {cell.name}: {state}, {time.monotonic() - started:.0f} s", flush=True)
        if options.write:
            write_whole(REPORT, written(options).encode())
    text = written(options)
    if options.write:
        write_whole(REPORT, text.encode())
    print(text, end="")


def keep(store: Path, cell: Cell, outcome: Mapping[str, str]) -> None:
    """Record a cell: a file of its own, as several processes may share a store."""
    (store / INDEX).mkdir(parents=True, exist_ok=True)
    place = store / INDEX / f"{content_id({'cell': cell.name})}.json"
    write_whole(place, json.dumps({"cell": cell.name, **outcome}, indent=1).encode())


def written(options: argparse.Namespace) -> str:
    """The page of all cells that the store has, of the whole table."""
    kept = [json.loads(path.read_text()) for path in sorted((options.store / INDEX).glob("*.json"))]
    whole = argparse.Namespace(**{**vars(options), "only": [], "strengths": list(STRENGTHS), "attacks": list(ATTACKS)})
    wanted = {cell.name for cell in cells(whole)}
    folders = {one["row"] for one in kept if one["cell"] in wanted and "row" in one}
    failed = {one["cell"]: one["failed"] for one in kept if one["cell"] in wanted and "failed" in one}
    rows = [row for row in read_rows(options.store)[0] if row.folder.name in folders]
    return page(rows, failed, options, len(wanted) - len(folders) - len(failed))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--images", type=int, default=100, help="private test images that are attacked")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", default=[], choices=list(DEFENSES), help="these defenses")
    parser.add_argument("--strengths", nargs="+", default=list(STRENGTHS), choices=list(STRENGTHS))
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--tiny", action="store_true", help="a world of minutes")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    parser.add_argument("extra", nargs="*", help="further overrides of every cell, after --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
