"""The cloud's half of a cut target, and what it is handed: what a judge must know of a release to say what it is good
for. The attacker sees the same features; only the judge sees the images and the labels behind them."""

from __future__ import annotations

import torch

from midefense.datasets.attributes import UNKNOWN
from midefense.evidence.base import Request
from midefense.metrics.base import Released
from midefense.pipeline.classifiers import StoredTarget, rebuild_classifier
from midefense.pipeline.release import released_artefact, released_of
from midefense.pipeline.session import Session
from midefense.types import Images

BATCH = 128


def judged_release(session: Session, target: StoredTarget, request: Request) -> Released:
    """What left the edge for the images of a request, its first release of each, beside what the edge computed."""
    images, labels = _known(target, request.images)
    artefact = released_artefact(session, target, request)
    model = rebuild_classifier(target.artefact, session.plan.allow).eval().requires_grad_(False)
    edge, cloud = (half.to(session.device) for half in model.split(request.cut or model.tap_names[-1]))
    with torch.no_grad():
        parts = torch.arange(len(images)).split(BATCH)
        clean = torch.cat([edge(images.floats(rows, session.device)).float().cpu() for rows in parts])
    return Released(
        ids=images.ids,
        features=released_of(artefact, images.ids),
        clean=clean,
        cloud=cloud,
        edge=edge,
        labels=labels,
        attributes=target.plan.attributes,
        seconds=artefact.provenance["bill"]["seconds_per_image"],
        bytes=artefact.metrics["bytes_per_image"],
    )


def _known(target: StoredTarget, images: Images) -> tuple[Images, torch.Tensor]:
    """The images of which it is known what the target is to say, and that: classes, or which attributes each has."""
    if not target.plan.attributes:
        return images, images.labels
    shown = target.plan.dataset.build().attributes(images.ids)
    known = (shown != UNKNOWN).all(1)
    return images.take(known.nonzero()[:, 0]), shown[known].bool()
