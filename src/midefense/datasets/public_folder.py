"""Pictures without identities: FFHQ, AFHQ, MetFaces and the like, which an attacker may own and nobody can train on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from midefense.datasets.base import FileDataset
from midefense.datasets.decoding import Decoding
from midefense.datasets.files import SUFFIXES, Files, is_left_behind, natural_key, require_folder, require_inside
from midefense.ranges import Count, Side
from midefense.types import Refused

NODE = "public.dataset"  # where it stands in a configuration


class PublicFolder(FileDataset):
    """The pictures of `root`/`folders`, each folder flat or divided into folders once more, in natural order; other
    files are left alone. A folder `a|b` is the one of both that is there.

    `count` is how many there must be (None: any number); with `numbered`, picture k is called k, with any zeros in
    front (00000.png), so that one that is missing is named. All images have one label. `size`, `framing`, `crop`,
    `convert`, `orientation` and `alpha` are those of `Decoding`.
    """

    places = ("root",)
    later = {"orientation": "applied", "alpha": "refused"}  # where they bite, the hashes of the images differ

    def __init__(
        self,
        *,
        root: str,
        folders: Sequence[str],
        count: Count | None = None,
        numbered: bool = False,
        channels: int = 3,
        size: Side = 64,
        framing: str = "centre_crop",
        crop: Sequence[float] | None = None,
        convert: bool = False,
        orientation: str = "applied",
        alpha: str = "refused",
    ) -> None:
        if not folders:
            raise Refused(f"{NODE}.folders: expected at least one folder, got none; try ['.'] for the root itself")
        self.decoding = Decoding(
            channels=channels,
            size=size,
            framing=framing,
            crop=crop,
            convert=convert,
            orientation=orientation,
            alpha=alpha,
        )
        self.root = root
        self.folders = list(folders)
        self.count = count
        self.numbered = numbered

    def tree(self) -> str:
        """One line per folder, and how many pictures there must be."""
        picture = "00000.png ..." if self.numbered else "<picture>"
        lines = [f"  ROOT/{folder}/{picture}    flat, or one folder deeper" for folder in self.folders]
        total = "any number of" if self.count is None else f"{self.count:,}"
        return "\n".join([*lines, f"  {total} pictures ({' '.join(SUFFIXES)})"])

    def listing(self) -> tuple[Files, Files, Files]:
        """Refused: nobody is known by name here."""
        raise Refused(
            f"{type(self).__name__}: expected private identities, got pictures without any: they can only be public. "
            "Try dataset=facescrub public=ffhq (or afhq_dog, metfaces), and public.part=public."
        )

    def public_listing(self) -> Files:
        """All pictures, folder by folder; ids count them."""
        root = require_folder(self.root, "root", self.tree(), NODE)
        paths = [path for folder in self.folders for path in self._pictures(self._chosen(root, folder))]
        self._refuse_other_numbers(paths)
        if not paths or len(paths) != (self.count or len(paths)):
            expected = f"{self.count:,} pictures" if self.count else "pictures"
            raise self._differs(root, expected, f"{len(paths):,}", f"{NODE}.count={len(paths) or 'null'}")
        return Files.grouped([paths], ["without identity"])

    def _chosen(self, root: Path, folder: str) -> Path:
        choices = folder.split("|")
        there = [choice for choice in choices if (root / choice).is_dir()]
        if len(there) > 1:
            raise self._differs(root, f"one of {', '.join(choices)}", "several", f"'{NODE}.folders=[{there[0]},...]'")
        return require_inside(root, (there or choices)[0], self.tree(), NODE)

    def _pictures(self, folder: Path, depth: int = 0) -> list[Path]:
        """Pictures by their names alone: these sets are too large to ask the disk about each file."""
        with os.scandir(folder) as inside:
            visible = sorted((e for e in inside if not is_left_behind(e.name)), key=lambda e: natural_key(e.name))
        pictures = [folder / entry.name for entry in visible if entry.name.lower().endswith(SUFFIXES)]
        deeper = [folder / entry.name for entry in visible if entry.is_dir()]
        if deeper and (pictures or depth):
            beside = f"{deeper[0].name} beside {pictures[0].name}" if pictures else f"folder {deeper[0].name}"
            raise self._differs(folder, "pictures, or folders of pictures", beside, f"{NODE}.root=DIR")
        return pictures or [path for inner in deeper for path in self._pictures(inner, depth + 1)]

    def _refuse_other_numbers(self, paths: Sequence[Path]) -> None:
        for number, path in enumerate(paths if self.numbered else ()):
            if not path.stem.isdecimal() or int(path.stem) != number:
                raise self._differs(path.parent, f"picture {number:05d}", path.name, "unpacking the set again")

    def _differs(self, where: Path, expected: str, got: str, advice: str) -> Refused:
        return Refused(
            f"expected\n{self.tree()}\nfirst difference in {where}: expected {expected}, got {got}. Try {advice}."
        )
