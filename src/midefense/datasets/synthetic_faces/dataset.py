"""Faces of people who do not exist, drawn on the spot: a face set without a download, a licence or a subject.

python -m midefense.datasets.synthetic_faces --out sheet.png --identities 50 --columns 10
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import torch
from torch import Tensor

from midefense.datasets.attributes import require_label
from midefense.datasets.base import Dataset, to_uint8
from midefense.datasets.cache import Caches
from midefense.datasets.splits import Splits
from midefense.datasets.synthetic_faces.renderer import render
from midefense.datasets.synthetic_faces.traits import ATTRIBUTES, Conditions, Traits, shown_attributes
from midefense.ranges import Classes, Count, Side, Whole
from midefense.types import Images, Refused

PARTS = ("train", "test", "public")  # an id is made of the part, the identity and the picture's number, in that order
MOST_IDENTITIES, MOST_PICTURES = 100_000, 10_000
PIXELS_AT_ONCE = 2**18  # drawn together: few enough to stay in the processor's cache


class SyntheticFaces(Dataset):
    """RGB portraits with ten known attributes. A person keeps face, hair and belongings; pose, light, expression,
    clothes, background and whether the hat is on change from picture to picture.

    A picture depends on (`seed`, its part, identity, number) alone: more identities or pictures leave the others, and
    their ids, as they were. The bytes are the same on every machine, see `face_shapes`. `size`: 16 to 256.
    `label`: what a target is taught, `identity` or `attributes`.
    """

    may_be_shown = True
    channels = 3
    attribute_names = ATTRIBUTES
    later: ClassVar[dict[str, object]] = {"label": "identity"}

    def __init__(
        self,
        *,
        identities: Classes = 50,
        public_identities: Count = 100,
        images_per_identity: Count = 40,
        test_images_per_identity: Count = 10,
        public_images_per_identity: Count = 40,
        size: Side = 64,
        seed: Whole = 0,
        label: str = "identity",
    ) -> None:
        require_label(label)
        people = {"identities": identities, "public_identities": public_identities}
        pictures = {
            "images_per_identity": images_per_identity,
            "test_images_per_identity": test_images_per_identity,
            "public_images_per_identity": public_images_per_identity,
        }
        _require_at_most(MOST_IDENTITIES, people)
        _require_at_most(MOST_PICTURES, pictures)
        if not 16 <= size <= 256:
            raise Refused(f"dataset.size: expected 16 to 256 pixels, got {size}; try 64")
        self.identities = identities
        self.public_identities = public_identities
        self.images_per_identity = images_per_identity
        self.test_images_per_identity = test_images_per_identity
        self.public_images_per_identity = public_images_per_identity
        self.size = size
        self.seed = seed
        self.label = label

    def read(self, cache: Caches) -> Splits:
        """All three parts; within each, identity by identity. Drawing them takes seconds: nothing is cached."""
        test = self._part("test", self.identities, self.test_images_per_identity)
        return Splits(self.private_train(), test, self.load_public())

    def private_train(self) -> Images:
        """The private training part alone."""
        return self._part("train", self.identities, self.images_per_identity)

    def load_public(self, cache: Caches = None) -> Images:
        """The public part alone: no private picture is drawn."""
        return self._part("public", self.public_identities, self.public_images_per_identity)

    def attributes(self, ids: Tensor) -> Tensor:
        """Which of `attribute_names` the pictures `ids` int64 [N] of this dataset show, uint8 [N, 10]."""
        known = (ids >= 0) & (ids < len(PARTS) * MOST_IDENTITIES * MOST_PICTURES)
        if not known.all():
            raise Refused(f"attributes: expected ids of this dataset, got {int(ids[~known][0])}; try Images.ids")
        shown = torch.empty(len(ids), len(ATTRIBUTES), dtype=torch.uint8)
        for place, part in enumerate(PARTS):
            rows = ids // (MOST_IDENTITIES * MOST_PICTURES) == place
            shown[rows] = shown_attributes(*self._drawn(part, ids[rows]))
        return shown

    def _part(self, part: str, identities: int, pictures: int) -> Images:
        labels = torch.arange(identities).repeat_interleave(pictures)
        numbers = torch.arange(pictures).repeat(identities)
        ids = (PARTS.index(part) * MOST_IDENTITIES + labels) * MOST_PICTURES + numbers
        traits, conditions = self._drawn(part, ids)
        groups = torch.arange(len(ids)).split(max(1, PIXELS_AT_ONCE // self.size**2))
        with _one_thread_each() as workers, ThreadPoolExecutor(workers) as pool:
            drawn = pool.map(lambda rows: to_uint8(render(traits.take(rows), conditions.take(rows), self.size)), groups)
            pixels = torch.cat(list(drawn))
        return Images(pixels, labels, ids, [f"{_group(part)} {label}" for label in range(identities)])

    def _drawn(self, part: str, ids: Tensor) -> tuple[Traits, Conditions]:
        """Who is on the pictures `ids` of one part, and how they were taken. Train and test show the same people."""
        identity, number = ids // MOST_PICTURES % MOST_IDENTITIES, ids % MOST_PICTURES
        traits = Traits.draw((self.seed, "synthetic_faces", "traits", _group(part)), identity)
        return traits, Conditions.draw((self.seed, "synthetic_faces", "conditions", part), identity, number)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[int]:
    """The number of threads that torch may use, while every operation runs in the thread that calls it: splitting
    these short operations costs more than it gains (on a busy machine ten times as much)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _require_at_most(most: int, numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        if number > most:
            raise Refused(f"dataset.{name}: expected at most {most}, got {number}")


def _group(part: str) -> str:
    return "public" if part == "public" else "private"
