"""What leaves the edge of a deployed target: its half of the network, and what the defense makes of the output."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense import seeds
from midefense.pipeline.classifiers import StoredTarget, rebuild_defended
from midefense.pipeline.session import Session
from midefense.types import Images, Refused

TOGETHER = 128  # images per call of `Defense.release`: a group has draws of its own, whatever is released beside it


def release(session: Session, target: StoredTarget, images: Images, cut: str) -> Tensor:
    """What the attacker sees of each image [N, ...], on the CPU, of the network cut behind stage `cut`.

    Draws come from the seed of the target, so that the same images are released alike each time. Raises `Refused` for
    an unknown stage, or a network that was sealed so that it cannot be cut.
    """
    model, defense = rebuild_defended(target.artefact, session.plan.allow)
    if not hasattr(model, "split"):
        raise Refused(
            f"evidence: expected a deployed network that can be cut, got {type(model).__name__}, as the defense of "
            f"{target.artefact.reference} sealed it; try another defense"
        )
    edge = model.eval().requires_grad_(False).split(cut)[0].to(session.device)
    defense.to(session.device).eval()
    parts = []
    for start in range(0, len(images), TOGETHER):
        rows, key = slice(start, start + TOGETHER), (target.plan.seed, "release", cut, start)
        with seeds.isolated(*key):
            observed = defense.release(
                edge, images.floats(rows, session.device), images.ids[rows], seeds.generator(*key)
            )
        parts.append(observed.detach().cpu())
    return torch.cat(parts)
