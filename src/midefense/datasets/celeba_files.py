"""CelebA's published files: aligned pictures, the identity of each, 40 attributes (Liu, Luo, Wang and Tang, ICCV 2015),
and the lists in which model inversion papers publish their split."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from midefense.datasets.files import Files, first_difference
from midefense.types import Refused

IDENTITIES = "identity_CelebA.txt"
ATTRIBUTE_FILE = "list_attr_celeba.txt"
_ATTRIBUTES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)
ATTRIBUTES = tuple(_ATTRIBUTES.split())
# First digits of the SHA-256 of the lists of PLG-MI (Yuan et al., AAAI 2023), which those of KED-MI and DMI equal.
PUBLISHED_LISTS = {"trainset": "fd758026", "testset": "b67ef7f4", "ganset": "1c217301"}
_IDENTITY_LINE = re.compile(r"^(\d{6})\.jpg[ \t]+(\d+)[ \t]*$", re.MULTILINE)
_LIST_LINE = re.compile(r"(\d{6})\.\w+(?:[ \t]+(\d+))?")


@dataclass(frozen=True)
class Pictures:
    """The pictures that count, in the order of the identity file: `stems` (six digits, N of them), `identities` int64
    [N]. `names` are the file names in `folder` by stem."""

    folder: Path
    stems: np.ndarray
    identities: np.ndarray
    names: dict[str, str]

    def files(self, rows: np.ndarray, labels: np.ndarray, identities: Sequence[int], tree: str) -> Files:
        """The pictures at `rows`, one label per identity; ids are the numbers in their names. Refused if one is not
        there."""
        stems = self.stems[rows].tolist()
        absent = [stem for stem in stems if stem not in self.names]
        if absent:
            raise Refused(
                f"expected\n{tree}\nfirst difference in {self.folder}: expected {absent[0]}.jpg, got no such file; "
                f"{len(absent)} of {len(stems)} pictures are missing. Try completing the set, or dataset.partial=true, "
                "under which only the pictures that are there count."
            )
        return Files(
            paths=[self.folder / self.names[stem] for stem in stems],
            labels=torch.from_numpy(labels.astype(np.int64)),
            ids=torch.tensor([int(stem) for stem in stems], dtype=torch.int64),
            names=[str(identity) for identity in identities],
        )


def read_pictures(root: Path, images: str, partial: bool, tree: str) -> Pictures:
    """The pictures of a root with an identity file and a folder `images`; `partial` leaves out those not there."""
    table = root / IDENTITIES
    text = table.read_text(encoding="ascii", errors="replace")
    found = _IDENTITY_LINE.findall(text)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(found) != len(lines):
        number, line = next((n, line) for n, line in lines if not _IDENTITY_LINE.fullmatch(line))
        raise Refused(
            f"expected\n{tree}\nfirst difference in {table}, line {number}: expected a picture and its identity "
            f"(000001.jpg 2880), got {line[:40]!r}. Try the published file."
        )
    stems = np.array([stem for stem, _ in found], dtype="<U6")
    identities = np.array([identity for _, identity in found], dtype=np.int64)
    if len(np.unique(stems)) < len(stems):
        raise Refused(f"{table}: expected every picture once, got one twice. Try the published file.")
    folder = root / images
    # Where a picture is there as .jpg and as .png, the former is read.
    names = {name.rpartition(".")[0]: name for name in sorted(os.listdir(folder), reverse=True)}
    if partial:
        there = np.array([stem in names for stem in stems.tolist()], dtype=bool)
        stems, identities = stems[there], identities[there]
    return Pictures(folder, stems, identities, names)


def read_attributes(path: Path, ids: Tensor) -> Tensor:
    """The attributes of pictures `ids` int64 [N] as uint8 [N, 40], 1 where present, in the order of `ATTRIBUTES`."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    if difference := first_difference(ATTRIBUTES, lines[1].split() if len(lines) > 1 else []):
        raise Refused(f"{path}: expected the 40 published attributes in line 2; first difference: {difference}")
    rows = {line[:6]: line for line in lines[2:]}
    values = [_attributes(path, rows, f"{picture:06d}") for picture in ids.tolist()]
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, len(ATTRIBUTES))


def _attributes(path: Path, rows: dict[str, str], stem: str) -> list[bool]:
    values = rows.get(stem, "").split()[1:]
    if len(values) != len(ATTRIBUTES) or not set(values) <= {"1", "-1"}:
        got = f"{len(values)} values" if values else "no line"
        raise Refused(f"{path}: expected 40 values of 1 or -1 for picture {stem}, got {got}. Try the published file.")
    return [value == "1" for value in values]


def read_list(folder: Path, part: str) -> tuple[list[str], list[int]]:
    """Stems and labels (none for `ganset`) of a published list `part`.txt or celeba_`part`.txt. Line ends and the
    suffixes of pictures may differ from the published ones; any other difference is refused."""
    path = next((path for name in (part, f"celeba_{part}") if (path := folder / f"{name}.txt").is_file()), None)
    if path is None:
        raise Refused(f"dataset.lists: expected {part}.txt or celeba_{part}.txt in {folder}, got neither")
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    entries = [_LIST_LINE.fullmatch(line.strip()) for line in lines]
    labelled = part != "ganset"
    if not all(entry and bool(entry[2]) == labelled for entry in entries) or not _is_published(part, entries):
        raise Refused(
            f"{path}: expected the published list, with SHA-256 {PUBLISHED_LISTS[part]}... where its pictures end on "
            ".jpg, got another. Try the lists of PLG-MI, or dataset.lists=null, which draws the split anew."
        )
    return [entry[1] for entry in entries], [int(entry[2]) for entry in entries] if labelled else []


def _is_published(part: str, entries: Sequence[re.Match]) -> bool:
    lines = [f"{entry[1]}.jpg {entry[2]}" if entry[2] else f"{entry[1]}.jpg" for entry in entries]
    texts = [end.join(lines) + last for end in ("\n", "\r\n") for last in (end, "")]
    return any(hashlib.sha256(text.encode()).hexdigest().startswith(PUBLISHED_LISTS[part]) for text in texts)
