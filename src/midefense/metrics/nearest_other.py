"""Is a reconstruction closer to the person than to the most similar of other people?

An evaluator that has to name somebody names the likeliest, however unlike the picture is; a distance to the private
images alone says nothing of how near anybody else is. Here the person competes with all people of the public part, of
whom neither target nor attack was asked anything, by distance in the evaluator's features. Ours; the question is that
of closed-set identification with a gallery of distractors (Kemelmacher-Shlizerman et al., MegaFace, CVPR 2016).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from midefense import seeds
from midefense.metrics.base import Judged, Measured, Metric, World, over_classes, share_of_hits
from midefense.metrics.features import ask_features, batch_rows, evaluator_names, judged_trace, network
from midefense.metrics.intervals import SHARE, Span
from midefense.ranges import Count
from midefense.types import Images

MARGIN: Span = (-1.0, 1.0)
AT_ONCE = 2**24  # distances that are held together
NOBODY = -1  # the person of a row of an image that is left out


class Places(NamedTuple):
    """Of images [M]: `rank` int64, how many public people are as near as their person or nearer; `margin` float64; and
    `other` int64, the id of the nearest public picture."""

    rank: Tensor
    margin: Tensor
    other: Tensor


class NearestOther(Metric):
    """The person against all public people, in every evaluator's features; an interval over classes each.

    - `nearest_person_accuracy/<evaluator>`: the share of images that are nearer to their person than to everybody else,
      in [0, 1]; a tie counts against the attack;
    - `nearest_person_rank/<evaluator>`: the mean over images of the share of public people who are farther away than
      the person, in [0, 1]; 1 where nobody is as near, .5 where the person is anybody;
    - `nearest_person_margin/<evaluator>`: the mean of (other - own) / (other + own), of the squared distances to the
      person and to the nearest public person, in [-1, 1]; 0 where both are equal, below 0 for an image of nobody.

    The distance to a person is that to the nearest of `images_per_person` of their pictures (squared L2), of everybody
    equally many: of more pictures the nearest would be nearer. Who has fewer is left out, and of others these are drawn
    once, whatever is judged. Chance is 1 / (P + 1): how often the person is the nearest of P public people and
    themselves, for a picture to which all are equally near by their make (as if it were drawn among them). A prior's
    pictures need not be: one that learned from the public people lies nearer to them, and some of the private ones
    may lie nearer to everything. The floor is therefore what the prior's samples get, an anchor of every row.

    What is known of every image is kept beside the numbers (`drawings`).
    """

    higher_leaks = True
    compares_public = True
    unhashed = ("batch_size",)

    def __init__(self, *, images_per_person: Count = 5, batch_size: Count = 256) -> None:
        super().__init__()
        self.images_per_person = images_per_person
        self.batch_size = batch_size

    def reset(self) -> None:
        super().reset()
        self._drawings: dict[str, Tensor] = {}

    def drawings(self) -> dict[str, Tensor]:
        """`nearest_person.labels` int64 [M], whom each image was recovered for; for every evaluator
        `nearest_person.rank.<evaluator>` int64 [M], how many public people are as near or nearer,
        `nearest_person.margin.<evaluator>` float64 [M], and `nearest_person.other.<evaluator>` int64 [M], the id of the
        nearest public picture."""
        return self._drawings

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {name: judged_trace(judged, world, name, self.batch_size).features for name in evaluator_names(world)}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        labels = rows["label"]
        if reason := self._impossible(labels, world):
            return {
                f"nearest_person_{stem}/{name}": Measured.undefined(reason, len(labels), higher_leaks=True)
                for name in evaluator_names(world)
                for stem in ("accuracy", "rank", "margin")
            }
        measured: dict[str, Measured] = {}
        self._drawings = {"nearest_person.labels": labels.cpu()}
        for name in evaluator_names(world):
            place = self._placed(rows[name], labels, world, name)
            people = len(self._people(world.public, "public"))
            measured |= {
                f"nearest_person_accuracy/{name}": share_of_hits(place.rank == 0, labels, world),
                f"nearest_person_rank/{name}": over_classes(1 - place.rank / people, labels, True, SHARE),
                f"nearest_person_margin/{name}": over_classes(place.margin, labels, True, MARGIN),
            }
            self._drawings |= {
                f"nearest_person.rank.{name}": place.rank.cpu(),
                f"nearest_person.margin.{name}": place.margin.cpu(),
                f"nearest_person.other.{name}": place.other.cpu(),
            }
        return measured

    def nothing(self, world: World) -> dict[str, Measured]:
        none = torch.zeros(0, dtype=torch.int64, device=world.device)
        return {
            f"nearest_person_accuracy/{name}": share_of_hits(none.bool(), none, world)
            for name in evaluator_names(world)
        }

    def chance(self, world: World) -> dict[str, float]:
        if self._impossible(world.references.labels.unique(), world):
            return {}
        people = len(self._people(world.public, "public"))
        guessed = {"accuracy": 1 / (people + 1), "rank": 0.5}
        return {
            f"nearest_person_{stem}/{name}": value for name in evaluator_names(world) for stem, value in guessed.items()
        }

    def _impossible(self, labels: Tensor, world: World) -> str:
        """Why nobody can be compared; "" if they can."""
        count = self.images_per_person
        if world.public is None or not len(world.public):
            return "the dataset has no public people to compare with"
        if not len(self._people(world.public, "public")):
            return f"no public person has {count} images; try images_per_person=1"
        alone = sorted(set(labels.tolist()) - set(self._people(world.references, "private")))
        return f"fewer than {count} training images of classes {alone}; try images_per_person=1" if alone else ""

    def _people(self, images: Images, part: str) -> dict[int, Tensor]:
        """Rows [images_per_person] of every person who has enough pictures, by label: drawn once, of whom and from what
        they are alone."""
        rng = seeds.generator("evaluate", "pictures of people", part)
        order = torch.randperm(len(images), generator=rng)
        by_person = order[torch.argsort(images.labels[order], stable=True)]
        labels, counts = images.labels.unique(return_counts=True)
        rows = dict(zip(labels.tolist(), by_person.split(counts.tolist()), strict=True))
        return {
            label: own[: self.images_per_person] for label, own in rows.items() if len(own) >= self.images_per_person
        }

    def _placed(self, features: Tensor, labels: Tensor, world: World, name: str) -> Places:
        """Where the person of every image stands among the public people."""
        private, _ = self._gallery(world, name, "private")
        public, public_ids = self._gallery(world, name, "public")
        row_of = torch.full((int(labels.max()) + 1,), NOBODY, device=labels.device)
        for row, label in enumerate(self._people(world.references, "private")):
            if label < len(row_of):
                row_of[label] = row
        parts = []
        width = max(1, AT_ONCE // max(public[..., 0].numel(), private[0].numel()))
        for chosen in torch.arange(len(labels), device=labels.device).split(width):
            images = features[chosen].double()
            own = (images[:, None] - private[row_of[labels[chosen]]].double()).square().sum(2).min(1).values
            # the direct form: two equal pictures are at distance 0
            table = torch.cdist(images, public.flatten(0, 1).double(), compute_mode="donot_use_mm_for_euclid_dist")
            others, which = table.square().view(len(images), *public.shape[:2]).min(2)
            nearest, person = others.min(1)
            both = own + nearest
            margin = torch.where(both > 0, (nearest - own) / both.clamp(min=torch.finfo(both.dtype).tiny), 0.0)
            other = public_ids[person, which.gather(1, person[:, None])[:, 0]]
            parts.append(Places((others <= own[:, None]).sum(1), margin, other))
        return Places(*map(torch.cat, zip(*parts, strict=True)))

    def _gallery(self, world: World, name: str, part: str) -> tuple[Tensor, Tensor]:
        """Features [people, images_per_person, F] that an evaluator gives the pictures of people, and their ids; each
        is asked about once per world."""
        key = ("gallery", name, part, self.images_per_person)
        if key not in world.cache:
            images = world.references if part == "private" else world.public
            shown = world.references_for(name) if part == "private" else world.shown_public.get(name, world.public)
            rows = torch.stack(list(self._people(images, part).values()))
            module, flat = network(world, name), rows.flatten()
            size = batch_rows(self.batch_size, shown.pixels.shape[-1], module)
            batches = (shown.floats(some, world.device) for some in flat.split(size))
            features = ask_features(module, batches, name, len(flat)).view(*rows.shape, -1)
            world.cache[key] = features, images.ids[rows].to(world.device)
        return world.cache[key]
