"""Judge what an attack recovered: the metrics, the same metrics on their anchors, and pictures beside the truth.

Anchors say what a number means: private test images the target never saw (real), unattacked samples of the same
prior under the same labels (prior), the same drawn as the attack draws its starts, where that is nearer to the mean
(truncated), what the same attack recovers from a target that was never told who is who (placebo, where a metric asks
for it), and blind guessing (chance). Where evidence points at images, a reconstruction is held against the one it
answers: real images are then those very ones, and another image of the same identity is an anchor too (other).

Images are made, shown to every metric and forgotten a batch at a time; metrics keep what the networks say of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.datasets.splits import Splits
from midefense.metrics.accuracy import ranks
from midefense.metrics.against_queries import against_queries
from midefense.metrics.base import Judged, Measured, Metric, Placebo, Released, World, with_ids
from midefense.metrics.feature_distance import class_distances
from midefense.metrics.features import (
    INCEPTION,
    INCEPTION_PPA,
    Inception,
    batch_rows,
    judged_trace,
    original_features,
    reference_features,
)
from midefense.pipeline.candidates import BATCH, HEADLINE, TRACE, Candidates, Stages, open_stages
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact
from midefense.types import Images, clip_images, to_pixels

PICTURES = 1000  # in all, but one per class: those of FaceScrub at 299 px would fill gigabytes otherwise
PICTURES_PER_CLASS = 8
NEAREST, ORIGINAL = "nearest private", "private image"  # what stands beside a reconstruction
PICTURE_COLUMNS = ["class", "candidate", "recovered", NEAREST, "distance", "target confidence"]


@dataclass
class Judgement:
    """Numbers by name, their anchors by anchor and name, and what to look at. `candidates`: of each target; `matched`:
    whether each answers one private image, which the pictures then show beside it; `unreached`: the classes of targets
    of which the attack stands by nothing."""

    measured: dict[str, Measured]
    kinds: dict[str, str]
    anchors: dict[str, dict[str, float]]
    tensors: dict[str, Tensor]
    candidates: int
    matched: bool = False
    unreached: Sequence[int] = ()

    @property
    def picture_columns(self) -> list[str]:
        """What a row of `picture_rows` has, in order."""
        return [ORIGINAL if self.matched and name == NEAREST else name for name in PICTURE_COLUMNS]

    def flat(self) -> dict[str, float]:
        """Value by name."""
        return {name: number.value for name, number in self.measured.items()}

    def report(self) -> dict:
        """What is stored beside the row."""
        metrics = {
            name: {
                "value": m.value,
                "low": m.low,
                "high": m.high,
                "n": m.n,
                "per_class": m.per_class,
                "reason": m.reason,
                "interval": m.interval,
                "higher_leaks": m.higher_leaks,
                "kind": self.kinds[name],
            }
            for name, m in self.measured.items()
        }
        return {"metrics": metrics, "anchors": self.anchors}

    def picture_rows(self, names: Sequence[str]) -> list[dict]:
        """One row per picture: the reconstruction beside its nearest private image, or beside the one it answers."""
        t = self.tensors
        return [
            {
                "class": names[int(t["labels"][i])],
                "candidate": int(t["candidates"][i]),
                "recovered": t["reconstructions"][i],
                (ORIGINAL if self.matched else NEAREST): t["nearest"][i],
                "distance": float(t["distance"][i]),
                "target confidence": float(t["confidence"][i]),
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
    known: dict[str, Tensor] | None = None,
    shown: Mapping[str, Splits] | None = None,
    truncated: Callable[[int, torch.Generator], Tensor] | None = None,
    released: Released | None = None,
    tells_classes: bool = True,
    placebo: tuple[Artefact, Prior] | None = None,
) -> Judgement:
    """Measure a recovered artefact, the stages that metrics ask for, and the anchors.

    `known`: the features that evaluators give the private images, by evaluator; what is missing is added. `shown`: the
    images of `splits` in other sizes, by the evaluator that is shown them: each is shown what is framed for it.
    `truncated(count, rng)`: latents [count, ...] as the attack draws its starts, where it draws them nearer to the mean
    than the prior does (None: it does not). `placebo`: what the same attack recovered from a target that was never told
    who is who, and the prior that decodes it: one more anchor. `released`: what left the edge of a target that is cut.
    `tells_classes`: whether the target's outputs are the private classes; one of attributes is not asked how sure it is
    of a class.
    """
    known, shown = {} if known is None else known, shown or {}
    sizes = {images.private_train.pixels.shape[-1]: images for images in (splits, *shown.values())}
    if inception := sizes.get(Inception.size):  # made for images of this size: no need to enlarge those of the target
        shown = {**dict.fromkeys((INCEPTION, INCEPTION_PPA), inception), **shown}
    world = World(
        references=splits.private_train,
        evaluators=evaluators,
        classes=splits.classes,
        utility=dict(utility),
        bill={k: v for k, v in recovered.provenance["bill"].items() if isinstance(v, int | float)},
        device=device,
        tests=splits.private_test,
        target=target,
        shown={name: images.private_train for name, images in shown.items() if images is not splits},
        shown_tests={name: images.private_test for name, images in shown.items() if images is not splits},
        released=released,
        public=splits.public if len(splits.public) else None,
        shown_public={name: images.public for name, images in shown.items() if images is not splits},
        samples=_generated(prior, device),
        cache={("references", name): features for name, features in known.items()},
    )
    draws = {"prior": prior.sample, "truncated": truncated}
    draws = {name: draw for name, draw in draws.items() if draw is not None}
    private = {side: (one.private_test, one.private_train) for side, one in sizes.items()}
    asked = target if tells_classes else None
    with contextlib.ExitStack() as files:
        stages = files.enter_context(open_stages(recovered, prior, device, world.sides))
        if placebo is not None:
            world.placebo = _placebo(files.enter_context(open_stages(*placebo, device, world.sides)))
        candidates = stages[HEADLINE]
        pictures = _Pictures(world, len(candidates.labels.unique()))
        unreached = stages.classes[candidates.unreached]
        found = _measure(metrics, candidates.batches(asked), _facing(world, candidates, stages), pictures)
        marked = _measure_stages(metrics, stages, asked, world, found.by_metric)
        curves = _curves(stages, world)
    known |= {name: world.cache[key] for name in evaluators if (key := ("references", name)) in world.cache}
    return Judgement(
        measured={**found.numbers, **marked.numbers},
        kinds={**found.kinds(metrics), **marked.kinds(metrics)},
        anchors=_anchors(metrics, candidates, stages.prior, draws, private, world),
        tensors={**pictures.tensors(), **found.drawings, **curves},
        candidates=len(candidates)
        // max(1, len((candidates.labels if candidates.ids is None else candidates.ids).unique())),
        matched=candidates.ids is not None,
        unreached=unreached.tolist(),
    )


def _placebo(stages: Stages) -> Placebo:
    """The selected candidates of an attack on a placebo."""
    candidates = stages[HEADLINE]
    unreached, each = _lacking(candidates, stages)
    return Placebo(candidates.batches, unreached, each)


@torch.no_grad()
def decode_clipped(prior: Prior, latents: Tensor, device: torch.device) -> Tensor:
    """Images [M, C, H, W] in [0, 1] of a few latents [M, ...], clipped."""
    rows = batch_rows(BATCH, prior.size)
    return torch.cat([clip_images(prior.decode(part.to(device))) for part in latents.split(rows)])


@dataclass
class _Found:
    """What metrics found: their numbers by the metric's key and the number's name, and what they let one draw."""

    by_metric: dict[str, dict[str, Measured]] = field(default_factory=dict)
    drawings: dict[str, Tensor] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, Measured]:
        """All numbers by name."""
        return {name: number for own in self.by_metric.values() for name, number in own.items()}

    def kinds(self, metrics: Mapping[str, Metric]) -> dict[str, str]:
        """Of which kind every number is."""
        return {name: metrics[key].kind for key, own in self.by_metric.items() for name in own}


def _measure(
    metrics: Mapping[str, Metric], batches: Iterable[Judged], world: World, pictures: _Pictures | None = None
) -> _Found:
    """Show every batch to all metrics at once, so that each network looks at it once; then let each one count."""
    for metric in metrics.values():
        metric.reset()
    for judged in batches:
        for metric in metrics.values():
            metric.update(judged, world)
        if pictures is not None:
            pictures.update(judged)
    found = _Found()
    for key, metric in metrics.items():
        found.by_metric[key] = metric.compute(world)
        found.drawings |= metric.drawings()
        metric.reset()  # its features need not outlive its numbers
    return found


def _facing(world: World, candidates: Candidates, stages: Stages) -> World:
    """The world of the candidates of a stage: it knows which targets they lack."""
    unreached, each = _lacking(candidates, stages)
    return replace(world, unreached=unreached, each=each)


def _lacking(candidates: Candidates, stages: Stages) -> tuple[Tensor, int]:
    """The classes of the targets of which a stage has no candidate, and how many candidates others have."""
    reached = len(stages.targets) - len(candidates.unreached)
    return stages.classes[candidates.unreached], max(1, round(len(candidates) / max(1, reached)))


def _measure_stages(
    metrics: Mapping[str, Metric],
    stages: Stages,
    target: nn.Module | None,
    world: World,
    headline: Mapping[str, Mapping[str, Measured]],
) -> _Found:
    """The stages that metrics ask for, their numbers marked `<number>@<stage>/<network>`; NaN where candidates diverged
    (the selection takes those last, so that the headline may be sound)."""
    found = _Found()
    for stage in stages.names:
        asking = {k: m for k, m in metrics.items() if any(fnmatchcase(stage, pattern) for pattern in m.stages)}
        if stage == HEADLINE or not asking:
            continue
        candidates = stages[stage]
        if candidates.diverged:
            reason = f"{candidates.diverged} of {len(candidates)} candidates diverged"
            lost = {k: {name: Measured.undefined(reason, len(candidates)) for name in headline[k]} for k in asking}
            own = _Found(lost)
        else:
            own = _measure(asking, candidates.batches(target), _facing(world, candidates, stages))
        for key, numbers in own.by_metric.items():
            marked = {name.replace("/", f"@{stage}/", 1): number for name, number in numbers.items()}
            found.by_metric.setdefault(key, {}).update(marked)
    return found


@torch.no_grad()
def _curves(stages: Stages, world: World) -> dict[str, Tensor]:
    """Top-1 accuracy of the best candidate of every target against what it had cost, as every evaluator sees it:
    `curve.<evaluator>.queries`, `.accuracy`, `.low` and `.high`, float64 [P] each. {} where an attack left no trace."""
    costs = stages.costs
    if costs is None:
        return {}
    traced, targets = stages[TRACE], stages.targets
    owners = torch.searchsorted(targets, traced.owners)
    hits: dict[str, list[Tensor]] = {name: [] for name in world.evaluators}
    for judged in traced.batches():
        for name, kept in hits.items():
            logits = judged_trace(judged, world, name, BATCH).logits
            kept.append((ranks(logits, judged.labels) == 1).cpu())
    shared = int(world.bill.get("shared_queries", 0))
    drawn = {}
    for name, kept in hits.items():
        curve = against_queries(torch.cat(kept), costs, owners, stages.classes[targets], shared)
        drawn |= {f"curve.{name}.{field}": value for field, value in curve.tensors().items()}
    return drawn


def _anchors(
    metrics: Mapping[str, Metric],
    judged: Candidates,
    prior: Prior,
    draws: Mapping[str, Callable[[int, torch.Generator], Tensor]],
    sizes: Mapping[int, tuple[Images, Images]],
    world: World,
) -> dict[str, dict[str, float]]:
    """What the privacy metrics say of real images and of unattacked samples for the same targets, and chance. `draws`:
    how latents of unattacked samples are drawn, by anchor; `sizes`: the private images of test and training by their
    side, the target's first."""
    labels, ids = judged.labels, judged.ids
    private = {key: metric for key, metric in metrics.items() if metric.kind == "privacy"}
    samples = {name: draw(len(labels), seeds.generator("evaluate", f"{name} samples")) for name, draw in draws.items()}
    held_against = {
        **(_real(labels, sizes, world) if ids is None else _originals(ids, sizes, world)),
        **{
            name: replace(
                Candidates.of_latents(prior, latents, labels, world.device, world.sides, judged.owners), ids=ids
            )
            for name, latents in samples.items()
        },
    }
    anchors: dict[str, dict[str, float]] = {}
    for name, candidates in held_against.items():
        # a split that is not stratified may leave none of the attacked classes to test on
        numbers = _measure(private, candidates.batches(), world).numbers if len(candidates) else {}
        anchors[name] = {k: number.value for k, number in numbers.items() if not math.isnan(number.value)}
    if world.placebo is not None:
        lost = replace(world, unreached=world.placebo.unreached, each=world.placebo.each)
        numbers = _measure(private, world.placebo.batches(), lost).numbers
        anchors["placebo"] = {k: number.value for k, number in numbers.items() if not math.isnan(number.value)}
    # what is released may be good for no more than guessing, which then must be said
    blind = metrics if world.released is not None else private
    anchors["chance"] = {name: value for metric in blind.values() for name, value in metric.chance(world).items()}
    return anchors


def _real(labels: Tensor, sizes: Mapping[int, tuple[Images, Images]], world: World) -> dict[str, Candidates]:
    """The private test images of the attacked classes."""
    tests = {side: test for side, (test, _) in sizes.items()}
    attacked = torch.isin(next(iter(tests.values())).labels, labels.unique()).nonzero()[:, 0]
    return {"real": Candidates.of_images(tests, attacked, world.device)}


def _originals(ids: Tensor, sizes: Mapping[int, tuple[Images, Images]], world: World) -> dict[str, Candidates]:
    """The attacked private images, each as its own reconstruction, and other images of the same identities as those."""
    attacked = ids.unique()
    answered, others = other_images(attacked, *next(iter(sizes.values())))
    return {
        "real": replace(Candidates.of_private(sizes, attacked, world.device), ids=attacked),
        "other": replace(Candidates.of_private(sizes, others, world.device), ids=answered),
    }


def other_images(ids: Tensor, tests: Images, train: Images) -> tuple[Tensor, Tensor]:
    """For the private images `ids` [N]: those of them [K] whose identity has another image, and such a one [K] each:
    the next of the test images (which no evaluator has learned), cyclically, else of the training images."""
    pairs = []
    for one, label in zip(ids.tolist(), with_ids((tests, train), ids).labels.tolist(), strict=True):
        for part in (tests, train):
            others = part.ids[(part.labels == label) & (part.ids != one)]
            if len(others):
                pairs.append((one, int(others[(others > one).long().argmax()])))
                break
    answered, others = (torch.tensor([pair[place] for pair in pairs], dtype=torch.int64) for place in (0, 1))
    return answered, others


def _generated(prior: Prior, device: torch.device) -> Callable[[int], Tensor] | None:
    """How many samples of the prior are made for a metric that asks, the same each time; None of no generator."""
    if "pixels" in prior.offers:
        return None
    return lambda count: decode_clipped(prior, prior.sample(count, seeds.generator("evaluate", "gap samples")), device)


class _Pictures:
    """The first candidates of every class beside the private image that each answers or, where the evidence was a
    class, that the first evaluator finds nearest."""

    def __init__(self, world: World, classes: int) -> None:
        self._world, self._evaluator = world, next(iter(world.evaluators))
        self._per_class = max(1, min(PICTURES_PER_CLASS, PICTURES // max(1, classes)))
        self._kept: list[dict[str, Tensor]] = []

    def update(self, judged: Judged) -> None:
        """Keep what is shown of a batch."""
        keep = (judged.candidates < self._per_class).nonzero()[:, 0]
        sure = judged.target_confidence
        sure = torch.full((len(judged.labels),), math.nan) if sure is None else sure.float().cpu()
        shown = {
            "reconstructions": to_pixels(judged.images[keep]).cpu(),
            "labels": judged.labels[keep],
            "candidates": judged.candidates[keep].cpu(),
            "confidence": sure[keep.cpu()],
            "features": judged_trace(judged, self._world, self._evaluator, BATCH).features[keep],
        }
        if judged.ids is not None:
            shown["ids"] = judged.ids[keep].cpu()
            originals = original_features(judged, self._world, self._evaluator, BATCH)[keep]
            shown["distance"] = (shown.pop("features") - originals).square().sum(1).cpu()
        self._kept.append(shown)

    def tensors(self) -> dict[str, Tensor]:
        """`reconstructions` and `nearest` uint8 [K, C, H, W]; `labels`, `candidates`, `distance`, `confidence` [K]."""
        if not self._kept:  # no target was reached
            none, numbers = self._world.references.pixels[:0], torch.zeros(0)
            places = torch.zeros(0, dtype=torch.int64)
            shown = {"reconstructions": none, "nearest": none, "labels": places, "candidates": places}
            return {**shown, "distance": numbers, "confidence": numbers}
        shown = {name: torch.cat([part[name] for part in self._kept]) for name in self._kept[0]}
        if "ids" in shown:
            originals = with_ids((self._world.references, self._world.tests), shown.pop("ids"))
            return {**shown, "labels": shown["labels"].cpu(), "nearest": originals.pixels}
        features, labels, references = shown.pop("features"), shown.pop("labels"), self._world.references
        known = reference_features(self._world, self._evaluator, BATCH)
        distance, _, nearest = class_distances(features, labels, known, references.labels)
        found = {
            "labels": labels.cpu(),
            "distance": distance.float().cpu(),
            "nearest": references.pixels[nearest.cpu()],
        }
        return {**shown, **found}
