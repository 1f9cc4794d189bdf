"""Plug & Play Attacks end to end on real faces, without a download: 100 people of CelebA private, others public, a
StyleGAN2 that learns from them, targets with and without a defense, two evaluators, three seeds.

    python benchmarks/ppa_faces.py --packs DIR --write [--only targets|prior] [--threads N]

`--packs` holds celeba_id_aligned/celeba (the private people, official layout) and celeba_10k_public/*.jpg (others
at half size, 89x109: celeba_10k_half without the rows that its index flags as private people), and
nets/mobilefacenet_068.ckpt. Everything is kept in `--store`, so that a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from pathlib import Path

import torch

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.plan.read import read_plan
from midefense.store.artefacts import Artefact

REPORT = Path(__file__).with_suffix(".md")
SIZE, BOX = 32, "[35,55,143,163]"
PEOPLE = 25  # of 100 are attacked
DATASET = (
    "dataset=celeba dataset.root={packs}/celeba_id_aligned/celeba dataset.partial=true dataset.identities=100 "
    f"dataset.min_images=25 dataset.test_share=0.2 dataset.public_images=0 dataset.size={SIZE}"
)
AUGMENT = (
    "augment=[{{_target_:midefense.augmentations.HorizontalFlip,p:0.5}},"
    "{{_target_:midefense.augmentations.ResizedCrop,scale:[0.8,1.0],ratio:[1.0,1.0]}}]"
)
TARGET = f"architecture=cnn recipe=lowres_sgd recipe.epochs=30 recipe.{AUGMENT}"
PRIOR = (
    "public=picture_folder public.dataset.root={packs}/celeba_10k_public public.dataset.crop=[17,27,71,81,89,109] "
    "prior=stylegan2_small prior.resolution=null prior.latent_size=128 prior.channel_base=512 prior.channel_max=128 "
    "prior.mapping_layers=2 prior.conv_clamp=null prior.minibatch_group=4 prior.steps=12000 prior.batch_size=32 "
    "prior.learning_rate=2.5e-3 prior.betas=[0.0,0.99] prior.r1=0.3 prior.r1_every=16 prior.average_images=10000 "
    "prior.mixing=0.9 prior.mirror=true prior.unit=200"
)
EVALUATORS = (
    "evaluator@evaluators.main=mobilefacenet evaluators.main.architecture.weights={packs}/nets/mobilefacenet_068.ckpt "
    f"evaluators.main.architecture.warp.box={BOX} +evaluator@evaluators.trained=cnn_wide "
    f"evaluators.trained.train_on=private evaluators.trained.recipe.epochs=40 evaluators.trained.recipe.{AUGMENT}"
)
ATTACK = (
    f"attack=ppa_small attack.init.size=2000 attack.init.candidates=20 attack.select.keep=10 attack.group=10 "
    f"attack.chunk=200 evidence.classes=[{','.join(map(str, range(PEOPLE)))}]"
)
METRICS = "metrics=[privacy,feature_space]"
DEFENSES = ("none", "random_erasing", "negative_label_smoothing")
SEEDS = (0, 1, 2)


def words(packs: Path, store: Path, threads: int, *parts: str) -> list[str]:
    """Command-line words of several pieces."""
    inside = [word for part in parts for word in part.format(packs=packs).split()]
    return [*inside, "compute=cpu", f"compute.threads={threads}", "tracking=none", f"store={store}"]


def pipeline(verb: str, given: list[str]) -> Pipeline:
    """What a command would carry out."""
    return Pipeline(read_plan(verb, *compose(verb, given), given))


def cells(result: Artefact) -> dict[str, float]:
    """The numbers of one run: of what was selected, of all candidates, of the starts; and of the anchors."""
    metrics, anchors = result.metrics["metrics"], result.metrics["anchors"]
    numbers = {name: number["value"] for name, number in metrics.items()}
    return {
        **numbers,
        **{f"{anchor}:{name}": value for anchor, values in anchors.items() for name, value in values.items()},
    }


def interval(values: list[float], scale: float = 1.0) -> str:
    """Mean and its 95 % interval over seeds (Student's t with two degrees of freedom, for three)."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return ", ".join(f"{value * scale:.3g}" for value in values)
    width = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values) * scale:.1f} ± {width * scale:.1f}"


def table(rows: dict[str, list[dict]], columns: dict[str, tuple[str, float]]) -> list[str]:
    """Rows of runs under columns (number, scale) as markdown."""
    lines = ["| row | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in rows.items():
        found = [interval([run.get(number, math.nan) for run in runs], scale) for number, scale in columns.values()]
        lines.append(f"| {name} | " + " | ".join(found) + " |")
    return lines


COLUMNS = {
    "target accuracy": ("target accuracy", 100),
    "selected": ("attack_accuracy_top1/main", 100),
    "all candidates": ("attack_accuracy_top1@optimised/main", 100),
    "best of pool, no search": ("attack_accuracy_top1@initial/main", 100),
    "random samples": ("prior:attack_accuracy_top1/main", 100),
    "real test images": ("real:attack_accuracy_top1/main", 100),
}
OTHERS = {
    "selected, trained evaluator": ("attack_accuracy_top1/trained", 100),
    "real test images, trained evaluator": ("real:attack_accuracy_top1/trained", 100),
    "KNN distance, MobileFaceNet (x100)": ("knn_distance/main", 100),
    "target's confidence, all": ("target_class_confidence@optimised/target", 100),
    "target's confidence, selected": ("target_class_confidence/target", 100),
    "hull share": ("feature_space_hull_share/target", 100),
}


def report(rows: dict[str, list[dict]], threads: int) -> str:
    """What was measured, as markdown."""
    lines = [
        "# PPA on real faces, end to end",
        "",
        "`python benchmarks/ppa_faces.py --packs DIR --write`",
        f"measured {time.strftime('%Y-%m-%d')}, cpu ({platform.machine()}), threads: {threads}, "
        f"torch {torch.__version__}, seeds {', '.join(map(str, SEEDS))} for target and attack, one prior (seed 0). "
        "Numbers are per cent, mean over seeds ± half of the 95 % interval (Student's t).",
        "",
        f"Private: 100 people of CelebA (20 training images each); {PEOPLE} of them attacked, 10 of 20 candidates "
        f"kept. Public: 9,840 pictures of others. Everything at {SIZE} px RGB, which is what two CPU cores allow: a "
        "StyleGAN2 of 16 to 128 channels, 12,000 steps of 32 images. Target: `cnn`, from random weights. Attack "
        "accuracy is top-1 of MobileFaceNet among 100 people (nearest class mean; the pack was filtered by this "
        "network, so its scores are optimistic); chance is 1 %.",
        "",
        *table(rows, COLUMNS),
        "",
        *table({name: runs for name, runs in rows.items() if name in DEFENSES}, OTHERS),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="which, in which order")
    parser.add_argument("--only", choices=("targets", "prior"))
    parser.add_argument("--write", action="store_true", help=f"also write {REPORT.name} beside this file")
    arguments = parser.parse_args()
    place = (arguments.packs, arguments.store, arguments.threads)
    if arguments.only == "targets":
        for seed in arguments.seeds:
            for defense in DEFENSES:
                given = words(*place, DATASET, TARGET, f"defense={defense} seed={seed}")
                print(defense, seed, pipeline("train_target", given).target.artefact.metrics["test_accuracy_top1"])
        return
    if arguments.only == "prior":
        print(pipeline("attack", words(*place, DATASET, TARGET, ATTACK, PRIOR)).prior.artefact.reference)
        return
    rows: dict[str, list[dict]] = {}
    settings = {defense: f"defense={defense}" for defense in DEFENSES}
    for seed in arguments.seeds:
        for name, setting in {**settings, "none, 0 steps": "defense=none attack.search.steps=0"}.items():
            parts = (DATASET, TARGET, ATTACK, METRICS, PRIOR, EVALUATORS, setting, f"seed={seed}")
            made = pipeline("evaluate", words(*place, *parts))
            accuracy = {"target accuracy": made.target.artefact.metrics["test_accuracy_top1"]}
            rows.setdefault(name, []).append({**cells(made.result), **accuracy})
            print(name, seed, rows[name][-1]["attack_accuracy_top1/main"], flush=True)
    text = report(rows, arguments.threads)
    print(text, end="")
    if arguments.write:
        REPORT.write_text(text)


if __name__ == "__main__":
    main()
