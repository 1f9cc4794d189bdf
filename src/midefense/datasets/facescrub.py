"""FaceScrub: 530 actors and actresses, found by name on the web (Ng and Winkler, ICIP 2014), as Plug & Play Attacks
(Struppek et al., ICML 2022) label and split it."""

from __future__ import annotations

from pathlib import Path

from midefense.datasets.base import FileDataset, require_private
from midefense.datasets.decoding import Decoding
from midefense.datasets.files import SUFFIXES, Files, entries, require_folder, require_inside
from midefense.datasets.splits import split_shuffled
from midefense.ranges import Classes, Count, InnerShare, Seed, Side
from midefense.types import Refused, refuse_unknown

GROUPS = {"all": ("actors", "actresses"), "actors": ("actors",), "actresses": ("actresses",)}
VARIANTS = ("faces", "images")


class FaceScrub(FileDataset):
    """People are the folders `root/{actors,actresses}/{faces,images}/<Name_With_Underscores>`, in the order of their
    names, actresses after actors; `variant` is the published face crops or the whole pictures.

    `actors` and `actresses` are how many there must be. The first `private` people are private (None: all of them),
    the others public. Private images are shuffled and cut whatever their class: the first int(`train_share` x n) train.
    Grey and other pictures are turned into RGB; `orientation` and `alpha` are those of `Decoding`, by default as PPA's
    code reads pictures. As in torchvision's ImageFolder, files that are no pictures are passed
    over: what the links of the set deliver differs from copy to copy.
    """

    places = ("root",)
    stratified = False
    later = {"orientation": "ignored", "alpha": "ignored"}

    def __init__(
        self,
        *,
        root: str = "data/facescrub",
        variant: str = "faces",
        group: str = "all",
        actors: Count = 265,
        actresses: Count = 265,
        private: Classes | None = None,
        size: Side = 224,
        framing: str = "centre_crop",
        train_share: InnerShare = 0.9,
        split_seed: Seed = 42,
        orientation: str = "ignored",
        alpha: str = "ignored",
    ) -> None:
        if variant not in VARIANTS:
            raise refuse_unknown("dataset.variant", variant, VARIANTS)
        if group not in GROUPS:
            raise refuse_unknown("dataset.group", group, GROUPS)
        counts = {"actors": actors, "actresses": actresses}
        self.expected = {name: counts[name] for name in GROUPS[group]}
        self.people = sum(self.expected.values())
        require_private(private, self.people)
        self.decoding = Decoding(
            channels=3, size=size, framing=framing, convert=True, orientation=orientation, alpha=alpha
        )
        self.root = root
        self.variant = variant
        self.private = self.people if private is None else private
        self.train_share = train_share
        self.split_seed = split_seed

    def tree(self) -> str:
        """One line per group, and what is a picture."""
        lines = [
            f"  ROOT/{name}/{self.variant}/<Name_With_Underscores>/<picture>    {count} people"
            for name, count in self.expected.items()
        ]
        return "\n".join([*lines, f"  pictures: {' '.join(SUFFIXES)}"])

    def listing(self) -> tuple[Files, Files, Files]:
        """Pictures by person, then by file name; ids count them."""
        root = require_folder(self.root, "root", self.tree())
        people = [person for name in self.expected for person in self._people(root, name)]
        whole = Files.grouped([self._pictures(person) for person in people], [person.name for person in people])
        return split_shuffled(whole, range(self.private), self.train_share, self.split_seed)

    def _people(self, root: Path, group: str) -> list[Path]:
        folder = require_inside(root, f"{group}/{self.variant}", self.tree())
        people = sorted(path for path in entries(folder) if path.is_dir())
        if len(people) != self.expected[group]:
            between = f" ({people[0].name} ... {people[-1].name})" if people else ""
            raise Refused(
                f"expected\n{self.tree()}\nfirst difference in {folder}: expected {self.expected[group]} people, got "
                f"{len(people)}{between}. Try completing the set, or dataset.{group}={len(people) or 'COUNT'}."
            )
        return people

    def _pictures(self, person: Path) -> list[Path]:
        inside = entries(person)
        pictures = sorted(path for path in inside if path.suffix.lower() in SUFFIXES)
        if not pictures:
            found = inside[0].name if inside else "nothing"
            raise Refused(
                f"expected\n{self.tree()}\nfirst difference in {person}: expected a picture, got {found}. "
                "Try completing the set, or removing the folder and lowering the number of people."
            )
        return pictures
