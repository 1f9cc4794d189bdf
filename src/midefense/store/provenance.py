"""What `provenance.json` must say before any of it is used: a stranger may have written it, digest and all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from midefense.types import Refused

CONTENTS = ("tensors.safetensors", "config.yaml", "metrics.json")  # the files of an artefact beside it


def require_sound(path: Path, provenance: object, kinds: tuple[str, ...]) -> dict:
    """The provenance of the artefact in a folder; `Refused` names the first field that is missing or of another kind
    than what is written there."""
    if not isinstance(provenance, dict):
        raise Refused(f"{path}: provenance.json: expected an object, got another value; remove the folder")
    fields: dict[str, tuple[Callable[[object], bool], str]] = {
        "kind": (lambda value: value in kinds, f"one of {', '.join(kinds)}"),
        "name": (_is_name, "a name"),
        "id": (_is_name, "an id"),
        "created": (_is_text, "a time"),
        "names": (_maps_to(_is_text), "names by part"),
        "parents": (_maps_to(_is_reference), "references (kind/name@id) by role"),
        "places": (_maps_to(lambda value: value is None or isinstance(value, str)), "folders and files by option"),
        "files": (_is_digests, f"the SHA-256 of {', '.join(CONTENTS)}"),
    }
    for field, (fits, expected) in fields.items():
        if field not in provenance:
            raise Refused(f"{path}: provenance.json: expected {field} ({expected}), got none; remove the folder")
        if not fits(provenance[field]):
            got = repr(provenance[field])[:80]
            raise Refused(f"{path}: provenance.json: expected {expected} as {field}, got {got}; remove the folder")
    return provenance


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_name(value: object) -> bool:
    """Whether it can be one folder's name: stored names may be older than the rules for new ones."""
    return _is_text(value) and value not in ("", ".", "..") and not {"/", "\\"} & set(value)


def _is_reference(value: object) -> bool:
    return _is_text(value) and value.count("/") == 1 and all(map(_is_name, value.split("/")))


def _is_digests(value: object) -> bool:
    return _maps_to(_is_text)(value) and set(value) == set(CONTENTS)


def _maps_to(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    """Whether a value is an object of texts and values that fit."""
    return lambda value: isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(fits, value.values()))
