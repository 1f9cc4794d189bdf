"""Judge what an attack recovered: the metrics, the same metrics on their anchors, and pictures beside the truth.

Anchors say what a number means: private test images the target never saw (real), unattacked samples of the same
prior under the same labels (prior), and blind guessing (chance).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.artefacts import Artefact
from midefense.datasets.splits import Splits
from midefense.metrics.base import Judged, Measured, Metric, World
from midefense.metrics.feature_distance import class_distances
from midefense.metrics.features import judged_trace, reference_trace
from midefense.priors.base import Prior
from midefense.types import Images, clip_images

PICTURES_PER_CLASS = 8
PICTURE_COLUMNS = ["class", "candidate", "recovered", "nearest private", "distance", "target confidence"]
BATCH = 256


@dataclass
class Judgement:
    """Numbers by name, their anchors by anchor and name, and what to look at."""

    measured: dict[str, Measured]
    kinds: dict[str, str]
    anchors: dict[str, dict[str, float]]
    tensors: dict[str, Tensor]
    candidates: int

    def flat(self) -> dict[str, float]:
        """Value by name."""
        return {name: number.value for name, number in self.measured.items()}

    def report(self) -> dict:
        """What is stored beside the row."""
        metrics = {
            name: {
                **{"value": m.value, "low": m.low, "high": m.high, "n": m.n, "per_class": m.per_class},
                **{"reason": m.reason, "higher_leaks": m.higher_leaks, "kind": self.kinds[name]},
            }
            for name, m in self.measured.items()
        }
        return {"metrics": metrics, "anchors": self.anchors}

    def picture_rows(self, names: Sequence[str]) -> list[dict]:
        """One row per picture: the reconstruction beside its nearest private image."""
        t = self.tensors
        return [
            {
                **{"class": names[int(t["labels"][i])], "candidate": int(t["candidates"][i])},
                **{"recovered": t["reconstructions"][i], "nearest private": t["nearest"][i]},
                **{"distance": float(t["distance"][i]), "target confidence": float(t["confidence"][i])},
            }
            for i in range(len(t["labels"]))
        ]


def judge(
    *,
    recovered: Artefact,
    prior: Prior,
    target: nn.Module,
    splits: Splits,
    evaluators: dict[str, nn.Module],
    metrics: dict[str, Metric],
    utility: Mapping[str, float],
    device: torch.device,
) -> Judgement:
    """Measure a recovered artefact and its anchors; every image is clipped once, here, before it is judged."""
    tensors = recovered.tensors()
    labels = tensors["evidence.labels"][tensors["selected.evidence"]]
    images = decode(prior, tensors["selected.latents"], device)
    world = World(
        references=splits.private_train,
        evaluators=evaluators,
        classes=splits.classes,
        utility={"test_accuracy_top1": utility["test_accuracy_top1"]},
        bill={k: v for k, v in recovered.provenance["bill"].items() if isinstance(v, int | float)},
        device=device,
    )
    judged = Judged(images, labels.to(device), rank_in_class(labels).to(device), confidence(target, images, labels))
    measured, kinds = _measure(metrics, judged, world)
    private = {name: metric for name, metric in metrics.items() if metric.kind == "privacy"}
    draws = prior.sample(len(labels), seeds.generator("evaluate", "prior samples"))
    floor = Judged(decode(prior, draws, device), judged.labels, judged.candidates)
    attacked = splits.private_test.take(torch.isin(splits.private_test.labels, labels.unique()))
    chance = {name: value for metric in private.values() for name, value in metric.chance(world).items()}
    anchors = {
        # a split that is not stratified may leave none of the attacked classes to test on
        "real": _values(_measure(private, _real(attacked, device), world)[0]) if len(attacked) else {},
        "prior": _values(_measure(private, floor, world)[0]),
        "chance": chance,
    }
    pictures = _pictures(judged, world)
    return Judgement(measured, kinds, anchors, pictures, candidates=len(labels) // len(labels.unique()))


@torch.no_grad()
def decode(prior: Prior, latents: Tensor, device: torch.device) -> Tensor:
    """Images [M, C, H, W] in [0, 1] of latents [M, ...], clipped."""
    return torch.cat([clip_images(prior.decode(rows.to(device))) for rows in latents.split(BATCH)])


@torch.no_grad()
def confidence(target: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """How sure the attacked target is of each image's label [M]; asked by the judge, so nobody is charged."""
    probs = torch.cat([target(rows).logits.float().softmax(1) for rows in images.split(BATCH)])
    return probs.gather(1, labels.to(probs.device)[:, None])[:, 0]


def rank_in_class(labels: Tensor) -> Tensor:
    """Number every row among those of its label, in order: [3, 5, 3] gives [0, 0, 1]."""
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - torch.searchsorted(ordered, ordered)
    return ranks


def to_pixels(images: Tensor) -> Tensor:
    """Images [M, C, H, W] as uint8 on the CPU, clipped and rounded."""
    return (clip_images(images) * 255).round().to(torch.uint8).cpu()


def _real(images: Images, device: torch.device) -> Judged:
    return Judged(images.floats(device=device), images.labels.to(device), rank_in_class(images.labels).to(device))


def _measure(metrics: dict[str, Metric], judged: Judged, world: World) -> tuple[dict[str, Measured], dict[str, str]]:
    measured: dict[str, Measured] = {}
    kinds: dict[str, str] = {}
    for metric in metrics.values():
        metric.reset()
        metric.update(judged, world)
        numbers = metric.compute(world)
        measured |= numbers
        kinds |= dict.fromkeys(numbers, metric.kind)
    return measured, kinds


def _values(measured: dict[str, Measured]) -> dict[str, float]:
    return {name: number.value for name, number in measured.items() if not math.isnan(number.value)}


def _pictures(judged: Judged, world: World) -> dict[str, Tensor]:
    """The first candidates of every class beside the private image that the first evaluator finds nearest."""
    keep = (judged.candidates < PICTURES_PER_CLASS).nonzero()[:, 0]
    images, labels = judged.images[keep], judged.labels[keep].cpu()
    name = next(iter(world.evaluators))
    found = judged_trace(judged, world, name, BATCH).features[keep]
    known = reference_trace(world, name, BATCH).features
    distance, _, nearest = class_distances(found, judged.labels[keep], known, world.references.labels)
    return {
        "reconstructions": to_pixels(images),
        "nearest": world.references.pixels[nearest.cpu()],
        "labels": labels,
        "candidates": judged.candidates[keep].cpu(),
        "distance": distance.float().cpu(),
        "confidence": judged.target_confidence[keep].float().cpu(),
    }
