"""Artefacts: an id that is the hash of a recipe, where it came from, and files that are checked before they are used.

    <kind>/<name>@<id>/   tensors.safetensors  config.yaml  provenance.json  metrics.json

No pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from midefense import __version__
from midefense.compute import machine_of
from midefense.foreign import MOST_BYTES, MOST_JSON, json_of, path_of, read_foreign, require_regular, yaml_of
from midefense.store.command import command_given
from midefense.store.names import require_name
from midefense.store.plain import plain
from midefense.store.provenance import require_sound
from midefense.types import Refused

KINDS = ("target", "prior", "prepared", "released", "cloud", "recovered", "result")


def canonical(value: object) -> str:
    """JSON that is the same text for the same content: sorted keys, tuples as lists. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_id(recipe: Mapping[str, object]) -> str:
    """12 characters that name a recipe: a letter, so that no parser takes it for a number (12e34...), and the first
    11 hex digits of its SHA-256."""
    return "h" + content_digest(recipe)[:11]


def content_digest(value: object) -> str:
    """The SHA-256 of a value of JSON's types, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Draft:
    """An artefact that may not exist yet.

    Args:
        kind: one of `KINDS`.
        name: readable, for people.
        recipe: everything that decides the content; its hash is the id.
        names: what people call its parts (dataset, defense ...).
        parents: references (`kind/name@id`) by role.
        parent_contents: what each of them held (`Artefact.content`) by role, as far as they are made (`lineage`).
        places: where files lay (`dataset.root` ...); kept for rebuilding, no part of the id.
        command: what makes it, said when it is missing and may not be made.
    """

    kind: str
    name: str
    recipe: dict
    names: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    parent_contents: dict[str, str] = field(default_factory=dict)
    places: dict[str, object] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        require_name(self.name, f"the name of a {self.kind}")

    @property
    def id(self) -> str:
        return content_id(self.recipe)

    @property
    def reference(self) -> str:
        """`kind/name@id`."""
        return f"{self.kind}/{self.name}@{self.id}"


@dataclass(frozen=True)
class Artefact:
    """A complete artefact in a store. `moved`: where its files lie now, by option, as far as they were moved."""

    path: Path
    provenance: dict
    moved: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.provenance["kind"]

    @property
    def name(self) -> str:
        return self.provenance["name"]

    @property
    def id(self) -> str:
        return self.provenance["id"]

    @property
    def reference(self) -> str:
        """`kind/name@id`."""
        return f"{self.kind}/{self.name}@{self.id}"

    @property
    def content(self) -> str:
        """The SHA-256 of all that others compute from it: its files, and its bill but for the time that was measured.
        Made anew to the same bits it is the same."""
        bill = {name: cost for name, cost in self.provenance["bill"].items() if not name.startswith("seconds")}
        return content_digest({"files": self.provenance["files"], "bill": bill})

    @property
    def parent_contents(self) -> dict[str, str]:
        """What each parent held when it was made, by role; of artefacts of before it was recorded, nothing."""
        return self.provenance.get("parent_contents", {})

    @property
    def recipe(self) -> dict:
        """What it was made from."""
        file = self.path / "config.yaml"
        recipe = yaml_of(read_foreign(file, MOST_BYTES, "a recipe"), file)
        if not isinstance(recipe, dict):
            raise Refused(f"{file}: expected a recipe, got another value; remove the folder")
        return recipe

    @property
    def metrics(self) -> dict:
        """What was measured when it was made."""
        file = self.path / "metrics.json"
        metrics = json_of(read_foreign(file, MOST_JSON, "numbers"), file)
        if not isinstance(metrics, dict):
            raise Refused(f"{file}: expected numbers by name, got another value; remove the folder")
        return metrics

    @property
    def places(self) -> dict[str, str | None]:
        """Where the files lie that it was made from, by option (`dataset.root`, `prior.weights`)."""
        node = "" if self.kind == "target" else "prior."  # the only node of other kinds that reads files
        return {**{f"{node}{path}": place for path, place in self.provenance["places"].items()}, **self.moved}

    def places_within(self, node: str) -> dict[str, str | None]:
        """The places of one node (`dataset`), by path within it."""
        opening = f"{node}."
        return {path.removeprefix(opening): place for path, place in self.places.items() if path.startswith(opening)}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU."""
        try:
            return safetensors.torch.load_file(self.path / "tensors.safetensors")
        except safetensors.SafetensorError as error:
            raise Refused(f"{self.reference}: expected safetensors, got another format ({error})") from error

    def verify(self) -> None:
        """Refuse the artefact if any file differs from what was written."""
        advice = f"remove it with `midefense store rm {self.reference} --dependants` and give the same command again"
        for name, expected in self.provenance["files"].items():
            path = self.path / name
            got = _sha256_or_none(path)
            if got != expected:
                raise Refused(f"{self.reference}: {name}: expected sha256 {expected[:12]}, got {got[:12]}; {advice}")
        recipe = self.recipe
        if content_id(recipe) != self.id:
            raise Refused(f"{self.reference}: config.yaml does not give this id; {advice}")
        if recipe.get("kind") != self.kind:
            raise Refused(f"{self.reference}: config.yaml is that of another kind ({recipe.get('kind')!r}); {advice}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # two hosts may have processes of one number
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:  # the system's own, which names no file where it refuses to write
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)  # a half of it would fill a disk that is full


def savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors wants every tensor to own its memory, in order."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    require_regular(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sha256_or_none(path: Path) -> str:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return "no file"


def absolute(place: object) -> str:
    """A file or folder from the root on, so that it is found from any folder."""
    return str(path_of(str(place)).absolute())


def read_provenance(path: Path) -> dict:
    """What an artefact's folder says of it. Refused if it is not what was written there, or cannot be that."""
    try:
        provenance = json_of(read_foreign(path / "provenance.json", MOST_JSON, "a file of JSON"), "provenance.json")
    except (FileNotFoundError, Refused) as error:
        raise Refused(f"{path}: provenance.json cannot be read ({error}); remove the folder and run again") from error
    if not isinstance(provenance, dict) or _seal(provenance) != provenance.get("digest"):
        raise Refused(f"{path}: provenance.json was changed since it was written; remove the folder and run again")
    return require_sound(path, provenance, KINDS)


def _seal(provenance: Mapping[str, object]) -> str:
    """The digest of all but itself; "" of what has none, as NaN."""
    try:
        return content_digest({key: value for key, value in provenance.items() if key != "digest"})
    except (ValueError, RecursionError):  # no JSON of ours, also half a character
        return ""


def provenance_of(draft: Draft, seconds: float, bill: Mapping[str, object], device: str) -> dict:
    return plain(
        {
            "kind": draft.kind,
            "name": draft.name,
            "id": draft.id,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "command": command_given(),
            "names": draft.names,
            "parents": draft.parents,
            "parent_contents": draft.parent_contents,
            "places": {option: None if p is None else absolute(p) for option, p in draft.places.items()},
            "bill": bill,
            "host": socket.gethostname(),
            "device": device,
            "threads": torch.get_num_threads(),
            "machine": machine_of(device),
            "versions": {"midefense": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "commit": _commit(),
        }
    )


def _commit() -> str:
    """The commit of the checkout this runs from, "" outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    if shutil.which("git") is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
