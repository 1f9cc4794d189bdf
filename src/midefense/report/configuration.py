"""What a result was made with: the recipes of its target, its attack and its prior, as flat keys and short values."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from midefense.report.rows import Row
from midefense.store.artefacts import Artefact, content_id, read_provenance

LONGEST = 120  # characters of a value: a list of a thousand labels is cut
_JSON = json.JSONEncoder(ensure_ascii=False, default=str)  # made once: there are a hundred values of every result
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
        self._last: tuple[Path, dict] | None = None

    def of(self, row: Row) -> tuple[dict[str, str], list[str]]:
        """Values by dotted key (`attack.search.steps`), sorted, and one sentence for each part that cannot be told
        because it is not in the store (any more) or was changed."""
        if row.folder is None:
            return {}, []
        parents = self._provenance(row.folder).get("parents") or {}
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

    def made_with(self, row: Row) -> dict[str, str]:
        """The versions of what measured a row (`version of torch`), and the commit of its checkout, as far as it was
        written down."""
        if row.folder is None:
            return {}
        provenance = self._provenance(row.folder)
        versions = provenance.get("versions")
        known = versions if isinstance(versions, Mapping) else {}
        said = {f"version of {name}": version for name, version in known.items()}
        return {name: str(value) for name, value in (said | {"commit": provenance.get("commit")}).items() if value}

    def _part(self, folder: Path) -> dict[str, str] | str:
        if folder not in self._read:
            self._read[folder] = self._recipe(folder)
        return self._read[folder]

    def _provenance(self, folder: Path) -> dict:
        """What a folder says of itself; what is asked of one row is asked in a row, so the last one is kept."""
        if self._last is None or self._last[0] != folder:
            self._last = folder, read_provenance(folder)
        return self._last[1]

    def _recipe(self, folder: Path) -> dict[str, str] | str:
        """The flat recipe of an artefact, or why it cannot be told."""
        name = f"{folder.parent.name}/{folder.name}"
        if not folder.is_dir():
            return f"the configuration of {name} is not in this store"
        try:
            artefact = Artefact(folder, self._provenance(folder))
            recipe = artefact.recipe
        except (OSError, ValueError, yaml.YAMLError) as error:
            return f"the configuration of {name} cannot be read ({type(error).__name__})"
        if content_id(recipe) != artefact.id:
            return f"the configuration of {name} was changed since it was written"
        named = ((_renamed(key, artefact.kind), value) for key, value in flat(recipe))
        return {key: value for key, value in named if key}


def _folder(store: Path, reference: str) -> Path:
    """The folder of a parent. A reference is a text of a file, so it may lead nowhere but to a folder of its kind."""
    kind, _, name = reference.partition("/")
    return store / Path(kind).name / Path(name).name


@functools.lru_cache(maxsize=4096)
def _renamed(key: str, kind: str) -> str | None:
    """The reader's name of a key: that of the longest renamed key that it is or lies below."""
    names = RENAMED.get(kind, {})
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
    if type(value) is int:
        return str(value)  # as JSON has it, and most values are
    text = value if isinstance(value, str) else _JSON.encode(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
