"""Datasets and weights: where they are expected, whether they are there, and the command that brings each; and whether
the disk has room for the pictures that will be decoded."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from midefense.architectures import facenet_vggface2
from midefense.architectures.official import weights_of
from midefense.architectures.resnet import VARIANTS
from midefense.commands.checkup.check import FINDING, NOTE, Check
from midefense.datasets.base import Dataset, FileDataset
from midefense.datasets.class_sets import ClassSet
from midefense.foreign import path_of, yaml_of
from midefense.metrics.features import INCEPTION_ADDRESS
from midefense.metrics.pairwise import ALEXNET_ADDRESS
from midefense.plan.bind import bind
from midefense.plan.verb_options import CONF
from midefense.store.artefacts import file_sha256
from midefense.store.folders import can_be_written
from midefense.store.space import size_of
from midefense.store.store import Store
from midefense.types import Refused, refuse_unknown

HASHED = re.compile(r"-([0-9a-f]{8,})\.(pth|pt)")  # the end of a file's name that tells its SHA-256
HASH_BYTES = 32  # kept beside each decoded picture
FILES = re.compile(r"^# files: (.*)$", re.M)
LEAST_FREE = 1 << 30  # bytes: less is no room for a study


class Datasets:
    """The datasets of `conf/dataset`.

    Args:
        roots: folders by dataset, other than those that its file names.
    """

    def __init__(self, roots: Mapping[str, str]) -> None:
        self.files = {file.stem: file for file in sorted((CONF / "dataset").glob("*.yaml"))}
        for name in roots:
            if name not in self.files:
                raise refuse_unknown("dataset", name, self.files)
        self.roots = roots
        self.planned = 0  # bytes of the decoded pictures of those that are there

    def checks(self) -> Iterator[Check]:
        """One of each, in the order of their names. Of pictures in files the names are read, and compared with the
        layout that is expected, no picture."""
        for name, file in self.files.items():
            node = dict(yaml_of(file.read_text(encoding="utf-8"), file))
            places = bind(node, "dataset").places()
            if name in self.roots:
                node[self._root_of(name, places)] = self.roots[name]
            bound = bind(node, "dataset")
            yield self._check(name, bound.build(), bound.places(), file)

    def _root_of(self, name: str, places: Mapping[str, object]) -> str:
        for place in ("root", "private_root"):
            if place in places:
                return place
        raise Refused(f"{name} reads no files; expected no folder for it, got {self.roots[name]}")

    def _check(self, name: str, dataset: Dataset, places: Mapping[str, object], file: Path) -> Check:
        if not places:
            return Check("datasets", f"{name}: comes with midefense")
        place = "root" if "root" in places else "private_root"
        given = places[place]
        where = path_of(given or "DIR").absolute() if given else None
        look = f"midefense datasets check {name} --root {shlex.quote(str(where or 'DIR'))}"
        if isinstance(dataset, ClassSet):
            return self._class_set(name, dataset, where)
        if where is None or not where.is_dir():
            told = FILES.search(file.read_text(encoding="utf-8"))
            source = f" ({told.group(1)})" if told else ""
            expected = f"expected at {where}" if where else f"expected where dataset.{place}=DIR says"
            return Check("datasets", f"{name}: absent, {expected}{source}", NOTE, look)
        if not isinstance(dataset, FileDataset):
            return Check("datasets", f"{name}: a folder is at {where}")
        try:
            count = sum(map(len, dataset.checked_listing()))
        except Refused as refusal:
            return Check("datasets", f"{name}: {refusal}", FINDING, look)
        self.planned += count * (dataset.channels * dataset.size**2 + HASH_BYTES)
        return Check("datasets", f"{name}: {count:,} pictures at {where}")

    def _class_set(self, name: str, dataset: ClassSet, where: Path) -> Check:
        difference = dataset.missing(where) if where.is_dir() else "no such folder"
        if not difference:
            return Check("datasets", f"{name}: at {where}")
        mend = f"midefense train dataset={name} dataset.root={shlex.quote(str(where))} dataset.download=true"
        return Check("datasets", f"{name}: absent, expected in {where} ({difference})", NOTE, mend)


def disk(store: Store, planned: int) -> Check:
    """Whether the disk of the store has room for decoded pictures of `planned` bytes, as far as they are not there."""
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    if not can_be_written(store.root):
        return Check("disk", f"the store {store.root} cannot be written", FINDING, "export MIDEFENSE_STORE=DIR")
    cache = store.root / "cache"
    there = size_of(cache) if cache.is_dir() and not cache.is_symlink() else 0
    free, wanted = shutil.disk_usage(folder).free, max(0, planned - there)
    said = (
        f"{free / 1e9:,.1f} GB free at {folder}; pictures decoded there {there / 1e9:,.2f} GB, to come at most "
        f"{wanted / 1e9:,.2f} GB"
    )
    if free < wanted + LEAST_FREE:
        return Check("disk", f"{said}: too little", FINDING, "export MIDEFENSE_STORE=DIR")
    return Check("disk", said)


def weights(store: Store, deep: bool) -> Iterator[Check]:
    """Files of weights that others published. They are looked for by name; `deep`: their bytes are hashed too, where
    the name tells the hash. None is unpickled."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    yield from _official(folder, deep)
    for what, address in {
        "features=inception (FID, KID)": INCEPTION_ADDRESS,
        "metrics=lpips": ALEXNET_ADDRESS,
        "architecture=facenet_vggface2": facenet_vggface2.ADDRESS,
    }.items():
        file = folder / Path(address).name
        if file.is_file():
            yield _file(what, file, deep)
        else:
            mend = f"curl --create-dirs -L -o {shlex.quote(str(file))} {address}"
            yield Check("weights", f"{what}: absent, expected at {file}", NOTE, mend)
    for name, file in _stylegan2(store).items():
        if file.is_file():
            yield Check("weights", f"prior={name}: {file}")
        else:
            mend = f"midefense import FILE --as stylegan2 --out {shlex.quote(str(file))}"
            yield Check("weights", f"prior={name}: absent, expected at {file}", NOTE, mend)


def _official(folder: Path, deep: bool) -> Iterator[Check]:
    """torchvision's weights, those that are there one by one, the others together."""
    absent = []
    for name, address in _addresses().items():
        file = folder / Path(address).name
        if file.is_file():
            yield _file(f"architecture={name}", file, deep)
        else:
            absent.append(name)
    if absent:
        mend = "midefense train architecture=NAME architecture.pretrained=true architecture.download=true"
        yield Check("weights", f"of torchvision absent, expected in {folder}: {', '.join(absent)}", NOTE, mend)


def _addresses() -> dict[str, str]:
    """Where torchvision's weights come from, by architecture."""
    found = {}
    for file in sorted((CONF / "architecture").glob("*.yaml")):
        node = yaml_of(file.read_text(encoding="utf-8"), file)
        if "pretrained" in node and str(node.get("weights", "")).startswith("IMAGENET"):
            network = str(node.get("variant", file.stem))
            found[file.stem] = weights_of(VARIANTS.get(network, network))[node["weights"]].url
    return found


def _file(what: str, file: Path, deep: bool) -> Check:
    """A file that is there; `deep`: whether its SHA-256 begins as its name says."""
    told = HASHED.search(file.name)
    if deep and told:
        got = file_sha256(file)
        if not got.startswith(told.group(1)):
            said = f"{what}: {file}: expected SHA-256 {told.group(1)}..., as its name says, got {got[:8]}..."
            return Check("weights", said, FINDING, f"rm {shlex.quote(str(file))}")
    return Check("weights", f"{what}: {file}")


def _stylegan2(store: Store) -> dict[str, Path]:
    """The files of the published generators, by prior."""
    found = {}
    for file in sorted((CONF / "prior").glob("stylegan2_*.yaml")):
        place = yaml_of(file.read_text(encoding="utf-8"), file).get("weights")
        if isinstance(place, str):
            found[file.stem] = Path(place.replace("${store}", str(store.root)))
    return found
