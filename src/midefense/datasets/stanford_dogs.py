"""Stanford Dogs: 20,580 pictures of 120 breeds out of ImageNet (Khosla et al., FGVC workshop at CVPR 2011), as Plug &
Play Attacks (Struppek et al., ICML 2022) label, crop and split it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from midefense.datasets.base import FileDataset, require_private
from midefense.datasets.bounding_boxes import first_box
from midefense.datasets.decoding import Decoding
from midefense.datasets.files import Files, entries, require_folder, require_inside
from midefense.datasets.matlab import read_variables
from midefense.datasets.splits import split_shuffled
from midefense.ranges import Classes, InnerShare, Seed, Side
from midefense.types import Refused

LISTS = ("train_list.mat", "test_list.mat")


class StanfordDogs(FileDataset):
    """The pictures of both official lists, training before test; the official split itself is discarded.

    A breed's label is that of the lists, counted from 0. The first `private` breeds are private (None: all `breeds`),
    the others public. Private images are shuffled and cut whatever their class: the first int(`train_share` x n) train.
    `cropped` keeps the first bounding box of each picture's annotation. Grey and other pictures are turned into RGB, as
    they are stored: the boxes were drawn on them, and PPA's code reads them so.
    """

    places = ("root",)
    stratified = False

    def __init__(
        self,
        *,
        root: str = "data/stanford_dogs",
        breeds: Classes = 120,
        private: Classes | None = None,
        cropped: bool = False,
        size: Side = 224,
        framing: str = "squash",
        train_share: InnerShare = 0.9,
        split_seed: Seed = 42,
    ) -> None:
        require_private(private, breeds)
        self.decoding = Decoding(
            channels=3, size=size, framing=framing, convert=True, orientation="ignored", alpha="ignored"
        )
        self.root = root
        self.breeds = breeds
        self.private = breeds if private is None else private
        self.cropped = cropped
        self.train_share = train_share
        self.split_seed = split_seed

    def tree(self) -> str:
        """Pictures, annotations where they are read, and both lists."""
        pictures = f"  ROOT/Images/<nXXXXXXXX-Breed>/<picture>.jpg    {self.breeds} breeds"
        annotations = ["  ROOT/Annotation/<nXXXXXXXX-Breed>/<picture>"] if self.cropped else []
        return "\n".join([pictures, *annotations, *(f"  ROOT/{name}" for name in LISTS)])

    def listing(self) -> tuple[Files, Files, Files]:
        """Pictures in the order of the lists; ids count them."""
        root = require_folder(self.root, "root", self.tree())
        breeds = self._breeds(root)
        names, labels = self._records(root, breeds)
        self._refuse_missing(root / "Images", breeds, names)
        whole = Files(
            paths=[root / "Images" / name for name in names],
            labels=torch.tensor(labels),
            ids=torch.arange(len(names)),
            names=[breed.partition("-")[2] or breed for breed in breeds],
            boxes=self._boxes(root, names) if self.cropped else None,
        )
        return split_shuffled(whole, range(self.private), self.train_share, self.split_seed)

    def _breeds(self, root: Path) -> list[str]:
        folder = require_inside(root, "Images", self.tree())
        breeds = sorted(path.name for path in entries(folder) if path.is_dir())
        if len(breeds) != self.breeds:
            raise self._differs(folder, f"{self.breeds} folders of breeds", str(len(breeds)))
        return breeds

    def _records(self, root: Path, breeds: Sequence[str]) -> tuple[list[str], list[int]]:
        """Names `folder/file` and labels of all pictures, each label that of its folder."""
        records = [record for name in LISTS for record in self._list(require_inside(root, name, self.tree()), breeds)]
        names, labels = [name for name, _ in records], [label for _, label in records]
        if len(set(names)) < len(names):
            raise self._differs(root, "each picture in one list, once", f"{len(names) - len(set(names))} repeated")
        return names, labels

    def _list(self, path: Path, breeds: Sequence[str]) -> list[tuple[str, int]]:
        table = read_variables(path, ("file_list", "labels"))
        names, numbers = (table[key].ravel() for key in ("file_list", "labels"))
        if numbers.dtype.kind not in "iuf":
            raise self._differs(path, "labels that are numbers", f"labels of type {numbers.dtype}")
        if len(names) != len(numbers):
            raise self._differs(path, f"one label per picture, {len(names)}", str(len(numbers)))
        labels = {breed: label for label, breed in enumerate(breeds)}
        records = [(str(name), labels.get(str(name).partition("/")[0])) for name in names]
        for (name, label), number in zip(records, numbers.tolist(), strict=True):
            if label != number - 1:
                expected = f"labels that number the folders in their order, 1 to {len(breeds)}"
                raise self._differs(path, expected, f"label {number} for {name}")
        return records

    def _refuse_missing(self, images: Path, breeds: Sequence[str], names: Sequence[str]) -> None:
        """A name leads to what lies in its folder and nowhere else."""
        present = {f"{breed}/{path.name}" for breed in breeds for path in entries(images / breed)}
        missing = [name for name in names if name not in present]
        if missing:
            raise self._differs(
                images, f"the {len(names)} pictures of the lists", f"{len(missing)} fewer, no {missing[0]}"
            )

    def _boxes(self, root: Path, names: Sequence[str]) -> torch.Tensor:
        annotations = require_inside(root, "Annotation", self.tree())
        boxes = [first_box((annotations / name).with_suffix("")) for name in names]
        return torch.tensor(boxes, dtype=torch.float64)

    def _differs(self, where: Path, expected: str, got: str) -> Refused:
        return Refused(
            f"expected\n{self.tree()}\nfirst difference in {where}: expected {expected}, got {got}. Try unpacking the "
            "set again (images.tar, annotation.tar, lists.tar), or dataset.breeds."
        )
