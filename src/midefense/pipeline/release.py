"""What leaves the edge of a deployed target: its half of the network, and what the defense makes of the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.defenses.base import Defense
from midefense.evidence.base import Request
from midefense.evidence.transport import pack, unpack
from midefense.pipeline.classifiers import StoredTarget, rebuild_defended
from midefense.pipeline.equipment import equip
from midefense.pipeline.session import Session
from midefense.types import Images, Refused


def release(session: Session, target: StoredTarget, request: Request) -> Tensor:
    """What arrives of a request, float32 [repeats, N, ...] on the CPU.

    Draws come from the seed of the target and the number of the repeat, so that the same images are released alike each
    time. Raises `Refused` for an unknown stage, or a network that was sealed so that it cannot be cut.
    """
    edge, defense = edge_of(session, target, request.cut)
    images, groups = request.images, range(0, len(request.images), defense.group)
    repeats = []
    for repeat in range(request.repeats):
        key = (target.plan.seed, "release", request.cut, repeat)
        parts = [images.take(torch.arange(start, min(start + defense.group, len(images)))) for start in groups]
        sent = [pack(released(edge, defense, part, key, session.device), request.transport) for part in parts]
        repeats.append(torch.cat([unpack(packed) for packed in sent]))
    return torch.stack(repeats)


def edge_of(session: Session, target: StoredTarget, cut: str | None) -> tuple[nn.Module, Defense]:
    """The half of a deployed target that stays with the victim, and the defense that releases its output."""
    model, defense = rebuild_defended(target.artefact, session.plan.allow)
    if not hasattr(model, "split"):
        raise Refused(
            f"evidence: expected a deployed network that can be cut, got {type(model).__name__}, as the defense of "
            f"{target.artefact.reference} sealed it; try another defense"
        )
    cut = cut or model.tap_names[-1]
    edge = model.eval().requires_grad_(False).split(cut)[0].to(session.device)
    defense.to(session.device).eval()
    equip(session, target, target.plan.defense, defense, edge, cut)
    return edge, defense


def released(
    edge: nn.Module, defense: Defense, images: Images, key: tuple[object, ...], device: torch.device
) -> Tensor:
    """What a defense releases of one group of images, on the CPU. Its generator is the same for every group of a
    repeat, see `Defense.release`."""
    with seeds.isolated(*key, int(images.ids[0])):
        observed = defense.release(edge, images.floats(device=device), images.ids, seeds.generator(*key))
    return observed.detach().cpu()
