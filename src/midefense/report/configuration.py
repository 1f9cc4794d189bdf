"""What a result was made with: the recipes of its target, its attack and its prior, as flat keys and short values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from midefense.report.rows import Row
from midefense.store.artefacts import Artefact, content_id, read_provenance

LONGEST = 120  # characters of a value: a list of a thousand labels is cut
PARTS = ("recovered", "target")  # parents whose recipes say how a result came about
# Keys of a recipe that are clearer under another name, by kind; None: said elsewhere on the page.
RENAMED = {
    "result": {"kind": None, "recovered": None, "protocol.labels": None},
    "recovered": {
        "kind": None,
        "target": None,
        "seed": "seeds.attack",
        "labels": "evidence.labels",
        "prior.kind": None,
        "prior.seed": "seeds.prior",
        "prior.prior": "prior",
    },
    "target": {"kind": None, "seed": "seeds.target"},
}


class Configurations:
    """Reads the configurations of rows; a target that many rows share is read once."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, str] | str] = {}

    def of(self, row: Row) -> tuple[dict[str, str], list[str]]:
        """Values by dotted key (`attack.search.steps`), sorted, and one sentence for each part that cannot be told
        because it is not in the store (any more) or was changed."""
        if row.folder is None:
            return {}, []
        parents = read_provenance(row.folder).get("parents") or {}
        folders = [row.folder, *(_folder(row.folder.parents[1], str(parents[p])) for p in PARTS if p in parents)]
        found: dict[str, str] = {}
        missing = []
        for folder in folders:
            part = self._part(folder)
            if isinstance(part, str):
                missing.append(part)
            else:
                found |= part
        return dict(sorted(found.items())), missing

    def _part(self, folder: Path) -> dict[str, str] | str:
        if folder not in self._read:
            self._read[folder] = _recipe(folder)
        return self._read[folder]


def _folder(store: Path, reference: str) -> Path:
    """The folder of a parent. A reference is a text of a file, so it may lead nowhere but to a folder of its kind."""
    kind, _, name = reference.partition("/")
    return store / Path(kind).name / Path(name).name


def _recipe(folder: Path) -> dict[str, str] | str:
    """The flat recipe of an artefact, or why it cannot be told."""
    name = f"{folder.parent.name}/{folder.name}"
    if not folder.is_dir():
        return f"the configuration of {name} is not in this store"
    try:
        artefact = Artefact(folder, read_provenance(folder))
        recipe = artefact.recipe
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"the configuration of {name} cannot be read ({type(error).__name__})"
    if content_id(recipe) != artefact.id:
        return f"the configuration of {name} was changed since it was written"
    renamed = RENAMED.get(artefact.kind, {})
    named = ((_renamed(key, renamed), value) for key, value in flat(recipe))
    return {key: value for key, value in named if key}


def _renamed(key: str, names: Mapping[str, str | None]) -> str | None:
    """The reader's name of a key: that of the longest renamed key that it is or lies below."""
    for old in sorted(names, key=len, reverse=True):
        if key == old or key.startswith(f"{old}."):
            new = names[old]
            return None if new is None else new + key.removeprefix(old)
    return key


def flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested mappings with their dotted keys. A class stands under `class`; that it is in its first
    revision, or is made later (`_partial_`), says nothing to a reader."""
    if not isinstance(value, Mapping):
        yield key, _text(value)
    elif not value:
        yield key, "{}"
    else:
        for name, item in value.items():
            if name == "_target_":
                yield f"{key}.class" if key else "class", str(item).removeprefix("midefense.")
            elif name != "_partial_" and (name, item) != ("revision", 1):
                yield from flat(item, f"{key}.{name}" if key else str(name))


def _text(value: object) -> str:
    """A value as YAML would have it, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
