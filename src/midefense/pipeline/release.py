"""What leaves the edge of a deployed target: its half of the network, and what the defense makes of the output. It is
stored by (id of the image, repeat), never by the batch it was released in, and made group by group: work that is killed
goes on to the same bits."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.datasets.splits import digest
from midefense.defenses.base import Defense
from midefense.evidence.base import Request
from midefense.evidence.transport import bytes_of, pack, unpack
from midefense.pipeline.classifiers import StoredTarget, rebuild_defended
from midefense.pipeline.equipment import equip
from midefense.pipeline.session import Session
from midefense.plan.bind import Node
from midefense.plan.facts import assembled, generators_of
from midefense.plan.read import TargetPlan, name_of
from midefense.store.artefacts import Artefact, Draft
from midefense.store.lineage import lineage
from midefense.store.store import Work
from midefense.types import Images, Origin, Refused


def release(session: Session, target: StoredTarget, request: Request) -> Tensor:
    """What arrives of a request, float32 [repeats, N, ...] on the CPU."""
    artefact = released_artefact(session, target, request)
    return torch.stack([released_of(artefact, request.images.ids, repeat) for repeat in range(request.repeats)])


def released_of(artefact: Artefact, ids: Tensor, repeat: int = 0) -> Tensor:
    """What a released artefact holds of the images `ids` int64 [N] in one of its repeats, as it arrives: float32
    [N, ...]. Raises `Refused` for images or repeats that it does not hold."""
    tensors = artefact.tensors()
    known, repeats = tensors.pop("ids"), tensors["payload"].shape[0]
    order = known.argsort()
    rows = order[torch.searchsorted(known[order], ids).clamp(max=len(known) - 1)]
    if strange := ids[known[rows] != ids].tolist():
        raise Refused(f"{artefact.reference}: expected ids of images that were released, got {strange[:3]}")
    if not 0 <= repeat < repeats:
        raise Refused(f"{artefact.reference}: expected a repeat from 0 to {repeats - 1}, got {repeat}")
    return unpack({name: part[repeat][rows] for name, part in tensors.items()})


def released_artefact(session: Session, target: StoredTarget, request: Request) -> Artefact:
    """What a request gets, found or made. Its bill says the `seconds_per_image` that the edge took for one release.

    Draws come from the seed of the target, the image's id and the number of the repeat, so that the same image is
    released alike each time. Raises `Refused` for an unknown stage, a network that was sealed so that it cannot be cut,
    or one whose halves are not the whole.
    """
    only_releases = target.plan.defense if target.plan.defense.build().only_releases else None
    draft = draft_of(session, target.artefact, target.plan, request, target.plan.names, only_releases)
    if (found := session.store.find(draft)) is not None:
        return found
    session.store.require_may_make(draft, session.plan.missing)
    edge, defense, made_of = edge_of(session, target, request)
    draft = replace(draft, **lineage({"target": target.artefact, **made_of}))
    making = _Release(session, target, request, edge, defense)

    def make(work: Work) -> Artefact:
        return making.make(draft, work)

    return session.store.get_or_make(draft, make, session.plan.missing)


def draft_of(
    session: Session,
    target: Artefact | Draft,
    plan: TargetPlan,
    request: Request,
    names: dict[str, str],
    only_releases: Node | None,
) -> Draft:
    """What a request gets of a target: all that decides the bits.

    Args:
        plan: that of the target.
        names: what people call its parts.
        only_releases: the defense, where it has no part in the target's training, whose recipe then does not name it.
    """
    recipe = {
        "kind": "released",
        "target": target.id,
        "cut": request.cut,
        "images": digest(request.images),
        "ids": request.images.ids.tolist(),
        "repeats": request.repeats,
        "transport": request.transport,
        "group": plan.defense.build().group,
        "seed": plan.seed,
    }
    recipe |= {} if only_releases is None else {"release": only_releases.recipe()}
    if generators_of(plan.defense):  # what it learned from decides what is released
        recipe |= {"public": digest(session.splits(plan.dataset).public)}
    parts = ("dataset", "architecture", "defense")
    return Draft(
        kind="released",
        name=name_of(names, *parts),
        recipe=recipe,
        names={part: names[part] for part in parts if part in names},
        **lineage({"target": target}),
        command=session.command("attack", names),
    )


def edge_of(session: Session, target: StoredTarget, request: Request) -> tuple[nn.Module, Defense, dict[str, Artefact]]:
    """The half of a deployed target that stays with the victim, the defense that releases its output, equipped with
    what it needs, and what that was made of, by role."""
    model, defense = rebuild_defended(target.artefact, session.plan.allow)
    if target.plan.defense.build().only_releases:
        model, defense = assembled(model, target.plan.defense, target.plan.seed, Origin.LOADED)
    if not hasattr(model, "split"):
        raise Refused(
            f"evidence: expected a deployed network that can be cut, got {type(model).__name__}, as the defense of "
            f"{target.artefact.reference} sealed it; try another defense"
        )
    model, cut = model.eval().requires_grad_(False).to(session.device), request.cut or model.tap_names[-1]
    edge, cloud = model.split(cut)
    require_halves(model, edge, cloud, request.images.floats(slice(0, 2), session.device), cut)
    defense.to(session.device).eval()
    return edge, defense, equip(session, target, target.plan.defense, defense, edge, cut)


@torch.no_grad()
def require_halves(model: nn.Module, edge: nn.Module, cloud: nn.Module, images: Tensor, cut: str) -> None:
    """Refuse halves that are not the whole network: where something reaches the cloud past the edge, what the edge
    releases is not what the attacker would see. In eval mode both are equal bit for bit."""
    with seeds.isolated("halves"):
        whole = model(images).logits
    with seeds.isolated("halves"):
        halves = cloud(edge(images))
    if not torch.equal(whole, halves):
        raise Refused(
            f"architecture.cut={cut}: expected a stage that everything passes, got one whose cloud, of what its edge "
            f"gives, makes other logits than the whole {type(model).__name__} (by up to "
            f"{float((whole - halves).abs().max()):.3g}): something skips across it; try another stage"
        )


class _Release:
    """The making of one released artefact, a group of images and a repeat at a time."""

    def __init__(
        self, session: Session, target: StoredTarget, request: Request, edge: nn.Module, defense: Defense
    ) -> None:
        self.session, self.target, self.request = session, target, request
        self.edge, self.defense = edge, defense

    def make(self, draft: Draft, work: Work) -> Artefact:
        """Release what is missing of `work`, and write the artefact."""
        request, images = self.request, self.request.images
        groups = torch.arange(len(images)).split(self.defense.group)
        with self.session.run(draft, "release", {"target": self.target.artefact}) as run:
            repeats, seconds = [], 0.0
            for repeat in range(request.repeats):
                parts = []
                for number, rows in enumerate(groups):
                    packed, taken = self._saved_or_released(work, f"repeat-{repeat}-group-{number:05d}", rows, repeat)
                    parts.append(packed)
                    seconds += taken
                    done = repeat * len(images) + int(rows[-1]) + 1
                    run.log({"seconds_per_image": seconds / done}, done, "release")
                repeats.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
            tensors = {name: torch.stack([packed[name] for packed in repeats]) for name in repeats[0]}
            metrics = {
                "images": len(images),
                "repeats": request.repeats,
                "shape": list(tensors["payload"].shape[2:]),
                "bytes_per_image": bytes_of(tensors) / (request.repeats * len(images)),
            }
            bill = {"seconds": seconds, "seconds_per_image": seconds / (request.repeats * len(images))}
            return self.session.finish(run, work, {"ids": images.ids, **tensors}, metrics, bill)

    def _saved_or_released(self, work: Work, name: str, rows: Tensor, repeat: int) -> tuple[dict[str, Tensor], float]:
        """What travels of a group, and the seconds it took."""
        if (saved := work.saved(name)) is not None:
            return saved[0], saved[1]["seconds"]
        started = time.monotonic()
        key = (self.target.plan.seed, "release", self.request.cut, repeat)
        features = released(self.edge, self.defense, self.request.images.take(rows), key, self.session.device)
        seconds = time.monotonic() - started
        packed = pack(features, self.request.transport)
        work.save(name, packed, {"seconds": seconds})
        return packed, seconds


def released(
    edge: nn.Module, defense: Defense, images: Images, key: tuple[object, ...], device: torch.device
) -> Tensor:
    """What a defense releases of one group of images, on the CPU. Its generator is the same for every group of a
    repeat, see `Defense.release`."""
    with seeds.isolated(*key, int(images.ids[0])):
        observed = defense.release(edge, images.floats(device=device), images.ids, seeds.generator(*key))
    return observed.detach().cpu()
