"""The cloud's half of a cut target, and what it is handed: what a judge must know of a release to say what it is good
for. The attacker sees the same features; only the judge sees the images and the labels behind them."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from midefense.datasets.attributes import UNKNOWN
from midefense.evidence.base import Request
from midefense.evidence.transport import bytes_of, pack
from midefense.metrics.base import Released
from midefense.pipeline.classifiers import StoredTarget, rebuild_classifier
from midefense.pipeline.release import release
from midefense.pipeline.session import Session
from midefense.types import Images

BATCH = 128


def released_of(session: Session, target: StoredTarget, request: Request) -> Released:
    """What leaves the edge for the images of a request, once each, beside what the edge computed of them."""
    images, labels = _known(target, request.images)
    request = replace(request, images=images, repeats=1)
    started = time.monotonic()
    (features,) = release(session, target, request)
    seconds = (time.monotonic() - started) / max(1, len(images))
    model = rebuild_classifier(target.artefact, session.plan.allow).eval().requires_grad_(False)
    edge, cloud = (half.to(session.device) for half in model.split(request.cut or model.tap_names[-1]))
    with torch.no_grad():
        parts = torch.arange(len(images)).split(BATCH)
        clean = torch.cat([edge(images.floats(rows, session.device)).float().cpu() for rows in parts])
    return Released(
        ids=images.ids,
        features=features,
        clean=clean,
        cloud=cloud,
        edge=edge,
        labels=labels,
        attributes=target.plan.attributes,
        seconds=seconds,
        bytes=bytes_of(pack(features, request.transport)) / max(1, len(images)),
    )


def _known(target: StoredTarget, images: Images) -> tuple[Images, torch.Tensor]:
    """The images of which it is known what the target is to say, and that: classes, or which attributes each has."""
    if not target.plan.attributes:
        return images, images.labels
    shown = target.plan.dataset.build().attributes(images.ids)
    known = (shown != UNKNOWN).all(1)
    return images.take(known.nonzero()[:, 0]), shown[known].bool()
