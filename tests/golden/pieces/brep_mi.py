"""BREP-MI's starts and its rounds (`brep_mi.npz`), as conf/attack composes them with the authors' habits
(`attack.legacy`): a generator that does nothing, and oracles of known shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.priors.base import Prior
from midefense.types import Evidence, Found, Question, Trace

from .recording import Entry, Recording
from .registry import replays

WIDTH = 4  # of a picture: the sixteen numbers of a latent


class Itself(Prior):
    """Pictures [B, 1, 4, 4] are the sixteen numbers of a latent: those of the box [-1.5, 1.5] are in [0, 1]."""

    offers = frozenset({"sample", "normal"})
    normal_width = WIDTH**2

    def __init__(self) -> None:
        super().__init__(channels=1, size=WIDTH)

    def of_normal(self, noise: Tensor) -> Tensor:
        return noise

    def decode(self, latents: Tensor) -> Tensor:
        return latents.unflatten(1, (1, WIDTH, WIDTH)) / 3 + 0.5


class Shape(nn.Module):
    """A target of whose logits [B, classes] only the order counts."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Trace:
        points = 3 * (images.flatten(1) - 0.5)
        return Trace(self.logits(points), points)


class At(Part):
    """One recorded start."""

    gives = ("noise",)

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def __call__(self, problem: Problem) -> Found:
        return Found(self.noise, torch.full((1,), torch.nan), torch.zeros(1).long(), "initial", noise=self.noise)


def two_classes(inside: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Logits of class 0 and class 1, which is where `inside` is true."""
    return lambda points: torch.stack([torch.full((len(points),), 0.5), inside(points).float()], 1)


def oracle_of(recording: Recording) -> Oracle:
    """The recorded oracle: a ball, a slab, or a linear map, which is that of the starts too."""
    if "centre" in recording:
        centre, radius = recording["centre"], recording["radius"]
        logits = two_classes(lambda points: (points - centre).norm(dim=1) <= radius)
    elif "normal" in recording:
        normal, half = recording["normal"], recording["half_width"]
        logits = two_classes(lambda points: (points @ normal).abs() <= half)
    elif recording.name.startswith("brep_mi/ball"):
        centre, radius = (recording.elsewhere(f"ball/{key}") for key in ("centre", "radius"))
        logits = two_classes(lambda points: (points - centre).norm(dim=1) <= radius)
    else:
        weight, bias = (recording[k] if k in recording else recording.elsewhere(f"linear/{k}") for k in ("W", "b"))
        logits = lambda points: points @ weight.T + bias  # noqa: E731
    return Oracle(Shape(logits), "labels")


def attack_of(changes: dict[str, object]) -> SearchAttack:
    """The preset as published, with other numbers, before a generator that is not cut to [0, 1]."""
    overrides = ["attack=brep_mi", "attack.legacy=true", "~attack.views"]
    overrides += [f"attack.{name}={'null' if value is None else value}" for name, value in changes.items()]
    return bind(compose("attack", overrides)[0]["attack"], "attack").build()


@replays("brep_mi/ball*", "brep_mi/linear*", "brep_mi/slab*")
def rounds(recording: Recording) -> Iterator[Entry]:
    """Every round: the centre and radius before, who is inside, and where it would go."""
    points, radius, growth, patience, low, high, repulsion_only = recording["params"].tolist()
    normals = recording["normals"]
    attack = attack_of(
        {
            "search.points": int(points),
            "search.radius": radius,
            "search.growth": growth,
            "search.patience": int(patience),
            "search.max_rounds": len(normals) if recording["hit_cap"] else 10 * len(normals),
            "search.box": high if low == -high else None,
            "search.repulsion_only": bool(repulsion_only),
        }
    )
    watched = _Watched(attack.search, normals)
    attack.init = At(recording["z0"][None])
    label = recording["y"].view(1)
    *_, last = attack.recover({}, Itself(), oracle_of(recording), Evidence(label, label), seeds.generator("golden"))
    yield recording.compare("z", torch.stack(watched.noise))
    yield recording.compare("R", torch.stack(watched.radius))
    yield recording.compare("points0", watched.asked[0])
    yield recording.compare_exactly("phi", torch.stack(watched.phi))
    yield recording.compare("cand", torch.stack(watched.moved))
    yield recording.compare_exactly("cand_phi", torch.stack(watched.moved_phi))


class _Watched:
    """What a search of one candidate does in every round, whose draws are the recorded ones."""

    def __init__(self, search: Part, normals: Tensor) -> None:
        self.noise, self.radius, self.asked, self.phi, self.moved, self.moved_phi = ([] for _ in range(6))
        units = iter(normals / normals.norm(dim=2, keepdim=True))
        outside = search._outside

        def directions(walk, rows):
            self.noise.append(walk.noise[0].clone())
            self.radius.append(walk.radius[0].clone())
            return next(units)[None]

        def watched(problem, walk, rows, noise):
            told, latents = outside(problem, walk, rows, noise)
            phi = (1 - 2 * told[0]).long()
            if noise.shape[1] == 1:
                self.moved.append(noise[0, 0])
                self.moved_phi.append(phi[0])
            else:
                self.asked.append(noise[0])
                self.phi.append(phi)
            return told, latents

        search.directions, search._outside = directions, watched


@replays("brep_mi/init_*")
def starts(recording: Recording) -> Iterator[Entry]:
    """The labels in the order in which they were met, and the first draw of each."""
    batches, untargeted = recording["normals"], recording.name.endswith("untargeted")
    classes = len(recording.elsewhere("linear/b"))
    changes = {"init.batch_size": batches.shape[1], "init.distinct": len(recording["labels"]) if untargeted else None}
    init = attack_of(changes).init
    init.draw = lambda width, rng, batch: batches[batch].clamp(-init.box, init.box)
    # the untargeted attack wants any labels; the recorded targeted one wanted 1 to 3
    wanted = torch.arange(classes) if untargeted else torch.arange(1, 4)
    oracle = oracle_of(recording)
    work = init.prepare(Itself(), oracle, seeds.generator("golden"), None, Question(wanted, classes))
    *_, (batch, _, state) = work
    made = state()
    hits = made["inside.hits"][:, 0]
    met = hits.argsort()[(hits < 0).sum() :]
    yield Entry("normals", float(batch != len(batches)), 0.0, "batches asked about")
    yield recording.compare_exactly("labels", made["inside.labels"][met])
    yield recording.compare("points", made["inside.noise"][met, 0])
