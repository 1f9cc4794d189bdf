"""AT&T (ORL) faces: 40 people with 10 grey pictures of 92x112 each (Samaria and Harter, 1994; credit: AT&T Laboratories
Cambridge)."""

from __future__ import annotations

from pathlib import Path

import torch

from midefense.datasets.base import FileDataset
from midefense.datasets.decoding import Decoding
from midefense.datasets.files import Files, entries, first_difference, require_folder
from midefense.datasets.splits import split_classes
from midefense.ranges import Classes, Count, InnerShare, Seed, Side, Whole
from midefense.types import Refused


class AttFaces(FileDataset):
    """The published layout `root/s1/1.pgm` ... `root/s40/10.pgm`, complete. People s1 to s`private` are private, the
    next `public` ones (0: none) are public; `images` is the number of pictures per person."""

    places = ("root",)

    def __init__(
        self,
        *,
        root: str = "data/att_faces",
        private: Classes = 30,
        public: Whole = 10,
        images: Count = 10,
        size: Side = 64,
        framing: str = "squash",
        test_share: InnerShare = 0.2,
        split_seed: Seed = 42,
    ) -> None:
        self.decoding = Decoding(channels=1, size=size, framing=framing)
        self.root = root
        self.private = private
        self.people = private + public
        self.images = images
        self.test_share = test_share
        self.split_seed = split_seed

    def tree(self) -> str:
        """The first and the last picture."""
        return f"  ROOT/s1/1.pgm ... ROOT/s{self.people}/{self.images}.pgm"

    def listing(self) -> tuple[Files, Files, Files]:
        """Pictures in numeric order of person and picture; ids count them."""
        paths = self._paths(require_folder(self.root, "root", self.tree()))
        labels = torch.arange(self.people).repeat_interleave(self.images)
        names = [f"s{person}" for person in range(1, self.people + 1)]
        whole = Files(paths, labels, torch.arange(len(paths)), names)
        return split_classes(whole, range(self.private), self.test_share, self.split_seed)

    def _paths(self, root: Path) -> list[Path]:
        people = [path for path in entries(root) if path.is_dir()]
        difference = first_difference((f"s{person}" for person in range(1, self.people + 1)), (p.name for p in people))
        if difference:
            nested = [path for path in people if (path / "s1").is_dir()]
            advice = (
                f"dataset.root={nested[0]}" if nested else "dataset.root=DIR, or dataset.private and dataset.public"
            )
            raise Refused(
                f"expected {self.people} people (private {self.private} + public {self.people - self.private})\n"
                f"{self.tree()}\nfirst difference among the folders in {root}: {difference}. Try {advice}."
            )
        return [path for person in people for path in self._pictures(person)]

    def _pictures(self, person: Path) -> list[Path]:
        paths = entries(person)
        difference = first_difference((f"{n}.pgm" for n in range(1, self.images + 1)), (p.name for p in paths))
        if difference:
            raise Refused(
                f"expected {self.images} pictures per person\n{self.tree()}\nfirst difference in {person}: "
                f"{difference}. Try unpacking the set again, or dataset.images."
            )
        return paths
