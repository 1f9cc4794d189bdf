"""Labeled Faces in the Wild (Huang, Ramesh, Berg and Learned-Miller, 2007), deep-funneled (Huang et al., NIPS 2012)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from midefense.datasets.attributes import UNKNOWN, require_label
from midefense.datasets.base import FileDataset
from midefense.datasets.decoding import Decoding
from midefense.datasets.files import Files, entries, first_difference, require_folder, require_inside
from midefense.datasets.splits import split_classes
from midefense.foreign import path_of
from midefense.ranges import Count, InnerShare, Seed, Side
from midefense.types import Refused

FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw")
# The crop 108x108 of aligned CelebA (178x218) in units of its faces, whose median eyes are 39.3 pixels apart and 41.0
# above the mouth: a side of 2.75 eye distances or 2.63 eye-to-mouth distances, its middle .22 sides above the face's.
SIDE_BY_EYES = 108 / 39.3
SIDE_BY_MOUTH = 108 / 41.0
RAISED = 0.22
ATTRIBUTE_FILE = "lfw_attributes.txt"  # of Kumar, Berg, Belhumeur and Nayar (ICCV 2009), as the set's site has it
# The ten of its 73 that Crafter uses, whose code names them by their columns: 0, 1, 2, 7, 9, 14, 16, 17, 19, 25.
ATTRIBUTES = (
    "Male",
    "Asian",
    "White",
    "Middle Aged",
    "Black Hair",
    "Eyeglasses",
    "Mustache",
    "Smiling",
    "Chubby",
    "Curly Hair",
)


class Lfw(FileDataset):
    """The published layout `root/lfw-deepfunneled/<Name>/<Name>_0001.jpg` (or `lfw_funneled`, or `lfw`). People with at
    least `min_images` pictures are private, those with fewer are public; of everyone the first `cap` pictures count
    (None: all of them). `test_share` of each private person is tested on.

    `crop` (as in `Decoding`) is by default where the faces of aligned CelebA's usual crop are. `landmarks` names an
    .npz file with `files` (texts <Name>/<Name>_0001.jpg) and `lm` [N, 5, 2] (x and y of left eye, right eye, nose, left
    and right corner of the mouth, in pixels): then every picture is cropped by its own, see `face_boxes`. `label`: what
    a target is taught, `identity` or `attributes` (of `root/lfw_attributes.txt`).
    """

    revision = 1
    places = ("root", "landmarks")
    later: ClassVar[dict[str, object]] = {"label": "identity"}
    attribute_names = ATTRIBUTES

    def __init__(
        self,
        *,
        root: str = "data/lfw",
        landmarks: str | None = None,
        min_images: Count = 10,
        cap: Count | None = None,
        test_share: InnerShare = 0.2,
        split_seed: Seed = 42,
        crop: Sequence[float] | None = (67, 51, 185, 169, 250, 250),
        size: Side = 64,
        label: str = "identity",
    ) -> None:
        require_label(label)
        self.decoding = Decoding(channels=3, size=size, framing="squash", crop=None if landmarks else crop)
        self.root = root
        self.landmarks = landmarks
        self.min_images = min_images
        self.cap = cap
        self.test_share = test_share
        self.split_seed = split_seed
        self.label = label

    def tree(self) -> str:
        """One folder per person."""
        return f"  ROOT/{FOLDERS[0]}/<Name>/<Name>_0001.jpg ...    or {' or '.join(FOLDERS[1:])}"

    def listing(self) -> tuple[Files, Files, Files]:
        """Pictures by person, in the order of names; ids count all pictures, those beyond `cap` too."""
        folder = self._folder()
        people = sorted(path for path in entries(folder) if path.is_dir())
        pictures = [self._pictures(person) for person in people]
        private = [label for label, paths in enumerate(pictures) if len(paths) >= self.min_images]
        if len(private) < 2:
            raise Refused(
                f"{folder}: expected at least 2 people with dataset.min_images={self.min_images} pictures or more, got "
                f"{len(private)} of {len(people)} people. Try completing the set, or a smaller dataset.min_images."
            )
        whole = Files.grouped(pictures, [person.name for person in people])
        if self.cap is not None:
            rank = torch.cat([torch.arange(len(paths)) for paths in pictures])
            whole = whole.take(rank < self.cap)
        if self.landmarks:
            whole = replace(whole, boxes=self._boxes(whole.paths))
        return split_classes(whole, private, self.test_share, self.split_seed)

    def attributes(self, ids: Tensor) -> Tensor:
        """Which of `attribute_names` pictures `ids` int64 [N] show, uint8 [N, 10]; `UNKNOWN` for those the file lacks.

        The file gives each attribute of a picture as a number, which is above 0 where it is there.
        """
        file = require_inside(self._folder().parent, ATTRIBUTE_FILE, f"  ROOT/{ATTRIBUTE_FILE}")
        scores = read_attributes(file)
        people = [path for path in sorted(entries(self._folder())) if path.is_dir()]
        stems = [picture.stem for person in people for picture in self._pictures(person)]
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(stems):
            raise Refused(f"attributes: expected ids of this dataset, got {int(ids.max())}; try Images.ids")
        lacking = [UNKNOWN] * len(ATTRIBUTES)
        rows = [scores.get(stems[number], lacking) for number in ids.tolist()]
        return torch.tensor(rows, dtype=torch.uint8).reshape(-1, len(ATTRIBUTES))

    def _folder(self) -> Path:
        root = require_folder(self.root, "root", self.tree())
        for name in FOLDERS:
            if (root / name).is_dir():
                self._refuse_nested(root / name)
                return root / name
        got = entries(root)[0].name if entries(root) else "nothing"
        advice = root.parent if root.name in FOLDERS else "DIR"
        raise Refused(
            f"expected\n{self.tree()}\nfirst difference in {root}: expected {FOLDERS[0]}, got {got}. "
            f"Try dataset.root={advice}."
        )

    def _refuse_nested(self, folder: Path) -> None:
        """Kaggle's archive holds the folder of people inside another of that name."""
        if any((folder / name).is_dir() for name in FOLDERS):
            raise Refused(
                f"expected\n{self.tree()}\nfirst difference in {folder}: expected folders of people, got the set "
                f"once more, as in Kaggle's archive. Try dataset.root={folder}."
            )

    def _pictures(self, person: Path) -> list[Path]:
        paths = entries(person)
        expected = [f"{person.name}_{number:04d}.jpg" for number in range(1, max(len(paths), 1) + 1)]
        if difference := first_difference(expected, (path.name for path in paths)):
            raise Refused(
                f"expected\n{self.tree()}\nfirst difference in {person}: {difference}. Try unpacking the set again."
            )
        return paths

    def _boxes(self, paths: Sequence[Path]) -> Tensor:
        points = read_landmarks(path_of(self.landmarks))
        names = [f"{path.parent.name}/{path.name}" for path in paths]
        absent = [name for name in names if name not in points]
        if absent:
            raise Refused(
                f"{self.landmarks}: expected landmarks of every picture, got none of {absent[0]} ({len(absent)} are "
                "missing). Try dataset.landmarks=null."
            )
        return face_boxes(torch.tensor(np.stack([points[name] for name in names])))


def read_attributes(path: Path) -> dict[str, list[int]]:
    """Which of `ATTRIBUTES` each picture shows (0 or 1), by its name without suffix; refused unless the file says it of
    every picture that it lists."""
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    heads = [line.lstrip("#").strip().split("\t") for line in lines if line.startswith("#")]
    names = next((head for head in heads if head[:2] == ["person", "imagenum"]), [])
    if absent := [name for name in ATTRIBUTES if name not in names]:
        raise Refused(
            f"{path}: expected a line '#  person  imagenum  Male ...' with tabs that names the attributes, got none "
            f"with {absent[0]!r}. Try the published file, or dataset.label=identity."
        )
    columns, found = [names.index(name) for name in ATTRIBUTES], {}
    for line in lines:
        if line.startswith("#"):
            continue
        person, *numbers = line.split("\t")
        try:
            values = [float(number) for number in numbers]
            key = f"{person.replace(' ', '_')}_{int(values[0]):04d}"
            found[key] = [int(values[column - 1] > 0) for column in columns]
        except (ValueError, IndexError) as error:
            raise Refused(f"{path}: expected {len(names)} values with tabs, got {line[:60]!r}") from error
    return found


def face_boxes(points: Tensor) -> Tensor:
    """Squares float64 [N, 4] (left, top, right, bottom) that show faces at one place and scale, from landmarks [N, 5,
    2]; they may reach beyond the picture. The scale is the mean of two, which varies less than either: eyes come closer
    when a face turns, the mouth when it nods."""
    left, right, _, *mouth = points.double().unbind(1)
    eyes, lips = (left + right) / 2, (mouth[0] + mouth[1]) / 2
    by_eyes = SIDE_BY_EYES * (right - left).norm(dim=1)
    by_mouth = SIDE_BY_MOUTH * (lips - eyes).norm(dim=1)
    side = (by_eyes + by_mouth)[:, None] / 2
    middle = (eyes + lips) / 2 - RAISED * side * torch.tensor([0.0, 1.0])
    return torch.cat([middle - side / 2, middle + side / 2], dim=1)


def read_landmarks(path: Path) -> dict[str, np.ndarray]:
    """Landmarks [5, 2] by picture; refused unless all are there and finite."""
    expected = f"{path}: expected an .npz file with texts `files` [N] and numbers `lm` [N, 5, 2]"
    try:
        with np.load(path, allow_pickle=False) as table:
            files, points = table["files"], table["lm"].astype(np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:  # no file, pickles, no such array, no archive
        raise Refused(f"{expected}, got {error}. Try dataset.landmarks=null.") from error
    if files.ndim != 1 or points.shape != (len(files), 5, 2) or not np.isfinite(points).all():
        raise Refused(
            f"{expected}, all finite, got {list(files.shape)} and {list(points.shape)}. Try dataset.landmarks=null."
        )
    return dict(zip(files.tolist(), points, strict=True))
