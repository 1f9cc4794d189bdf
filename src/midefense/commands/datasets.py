"""What lies in a folder, held against what a dataset expects there: before the first training, and without one."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from midefense.commands.parsing import refusing
from midefense.datasets.base import Dataset, FileDataset
from midefense.datasets.decoding import survey
from midefense.datasets.files import Files
from midefense.datasets.splits import Splits, copies, digest
from midefense.foreign import path_of, yaml_of
from midefense.plan.bind import bind
from midefense.plan.compose import CONF, compose
from midefense.terminal import say, shown
from midefense.types import Images, Refused, refuse_unknown

PARTS = ("private_train", "private_test", "public")
READ_UNASKED = 10_000  # pictures: of larger sets only the listing is looked at, unless --decode asks for more


def run(words: Sequence[str]) -> int:
    """Run one command; returns the exit code (1: refused)."""
    parser = _parser()
    options, changes = parser.parse_known_args(words)  # argparse knows no free words behind an option
    if unknown := [word for word in changes if "name" not in options or word.startswith("-") or "=" not in word]:
        parser.error(f"expected KEY=VALUE, got {' '.join(unknown)}")
    return refusing(lambda: options.command(options, changes))


def _list(options: argparse.Namespace, changes: Sequence[str]) -> int:
    for name, file in sorted(_files().items()):
        say(f"{name:<18} {file.parent.name:<8} {file.read_text().splitlines()[0].removeprefix('# ')}")
    return 0


def _check(options: argparse.Namespace, changes: Sequence[str]) -> int:
    node, config = _composed(options.name)
    dataset = _built(options.name, node, config, options.root, changes)
    say(f"{options.name} expects\n{dataset.tree()}")
    if not isinstance(dataset, FileDataset):  # not one picture per file: reading is checking
        parts = _loaded(dataset, node)
        lines = [f"split    {digest(*parts.values())}"]
        notices = copies(list(parts.values()))
    else:
        parts = _listed(dataset, node)
        lines = [f"listing  {listing_hash(parts.values(), _roots(dataset))}"]
        notices = ["no picture was opened; --decode reads them all, and says what they hold unseen"]
        if options.decode or (options.decode is None and sum(map(len, parts.values())) <= READ_UNASKED):
            split, notices = _read(dataset, parts)
            lines.append(f"split    {split}")
            notices = notices or ["every picture is upright as stored, opaque, a single frame, and there once"]
    print("ok")
    for name, part in parts.items():
        say(f"  {name:<14} images {len(part):,}, classes {len(part.names):,}")
    colour = {1: "grey", 3: "RGB"}[dataset.channels]
    say("\n".join(f"  {line}" for line in [f"made     {dataset.size}x{dataset.size} {colour}", *lines]))
    print(shown("".join(f"  {notice}\n" for notice in notices)), end="")
    return 0


def listing_hash(parts: Iterable[Files], roots: Sequence[Path]) -> str:
    """SHA-256 (hex) over names, labels and paths below the `roots`, in order: it tells one copy of a set from another
    without opening a picture."""
    sha = hashlib.sha256()
    for part in parts:
        paths = [_below(path, roots) for path in part.paths]
        sha.update(json.dumps([list(part.names), part.labels.tolist(), paths]).encode())
    return sha.hexdigest()


def _below(path: Path, roots: Sequence[Path]) -> str:
    return next((path.relative_to(root).as_posix() for root in roots if path.is_relative_to(root)), path.name)


def _listed(dataset: FileDataset, node: str) -> dict[str, Files]:
    if node != "dataset":
        return {"public": dataset.public_listing()}
    return dict(zip(PARTS, dataset.checked_listing(), strict=True))


def _loaded(dataset: Dataset, node: str) -> dict[str, Images]:
    if node != "dataset":
        return {"public": dataset.load_public()}
    splits = dataset.load()
    return {name: getattr(splits, name) for name in PARTS}


def _read(dataset: FileDataset, parts: Mapping[str, Files]) -> tuple[str, list[str]]:
    """The hash of the decoded parts, checked as `Dataset.load` does, and what to know of the pictures; all that cannot
    be used are refused together."""
    found = survey(list(parts.values()), dataset.decoding)
    if found.refused:
        raise Refused("\n".join([f"{len(found.refused):,} pictures cannot be used", *found.refused, *found.remarks]))
    if len(found.images) == len(PARTS):
        Splits(*found.images, stratified=dataset.stratified).check()
    return digest(*found.images), [*found.remarks, *copies(found.images)]


def _files() -> dict[str, Path]:
    """The YAML files of all datasets by name; those of `conf/public` that are of no dataset's name too."""
    public = {file.stem: file for file in (CONF / "public").glob("*.yaml") if file.stem != "own"}
    return public | {file.stem: file for file in (CONF / "dataset").glob("*.yaml")}


def _composed(name: str) -> tuple[str, dict]:
    """Where a dataset stands in a verb's configuration (`dataset` or `public.dataset`), and its plain node."""
    files = _files()
    if name not in files:
        raise refuse_unknown("dataset", name, sorted(files))
    if files[name].parent.name == "dataset":
        return "dataset", compose("train_target", [f"dataset={name}"])[0]["dataset"]
    return "public.dataset", compose("attack", [f"public={name}"])[0]["public"]["dataset"]


def _built(name: str, node: str, config: Mapping[str, object], root: str | None, changes: Sequence[str]) -> Dataset:
    places = bind(config, node).target.places
    given: dict[str, object] = {} if root is None else {_place(name, places): root}
    for word in changes:
        key, _, text = word.partition("=")
        key = key.removeprefix(f"{node}.")  # as refusals spell it
        given[key] = text if key in places and text != "null" else _value(word, text)
    if given.get("download"):
        raise Refused("expected no download: this command only looks; try download=true with python train_target.py")
    return bind({**config, **given}, node).build()


def _place(name: str, places: Sequence[str]) -> str:
    """The option that --root sets."""
    if "root" in places:
        return "root"
    if not places:
        raise Refused(f"{name} reads no files; expected no --root")
    raise Refused(f"{name} has several folders; expected {', '.join(f'{place}=DIR' for place in places)}, got --root")


def _roots(dataset: FileDataset) -> list[Path]:
    folders = [getattr(dataset, place) for place in dataset.places]
    return [path_of(folder).absolute() for folder in folders if folder]


def _value(word: str, text: str) -> object:
    try:
        return yaml_of(text, word)
    except Refused as refusal:
        raise Refused(f"expected KEY=VALUE with a YAML value, got {word!r}") from refusal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="midefense datasets", description="Look at datasets on disk.")
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="every dataset: its name, its group, where it is from")
    listing.set_defaults(command=_list)
    check = commands.add_parser(
        "check",
        usage="%(prog)s NAME [--root DIR] [--decode | --no-decode] [KEY=VALUE ...]",
        help="compare a folder with the tree a dataset expects; downloads nothing",
        epilog="KEY=VALUE: an option of the dataset, such as size=64 or public_root=DIR.",
    )
    check.add_argument("name", help="a name in conf/dataset or conf/public")
    check.add_argument("--root", metavar="DIR", help="the dataset's folder")
    check.add_argument(
        "--decode",
        action=argparse.BooleanOptionalAction,
        help="read every picture: name all that are broken, count those that EXIF turns, that are transparent, of "
        f"several frames, or there twice (default: up to {READ_UNASKED:,} pictures)",
    )
    check.set_defaults(command=_check)
    return parser
