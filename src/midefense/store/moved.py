"""Where the files behind an artefact lie now, if they were moved since it was made: `<root>/moved/<id>.json`, places by
option. The artefact itself stays as it was written: a place is in no id, and the artefact may lie in a store that is
only read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from midefense.foreign import MOST_JSON, json_of, read_foreign
from midefense.types import Refused

FOLDER = "moved"
AGAIN = "remove it and say anew where the files lie (`midefense store relocate REF KEY=DIR`)"


def read_moved(roots: Sequence[Path], artefact_id: str) -> dict[str, str | None]:
    """What the folders of a store say of one artefact; the first folder has the last word."""
    places: dict[str, str | None] = {}
    for root in reversed(roots):
        places |= _read(_file(root, artefact_id))
    return places


def moved_content(root: Path, artefact_id: str, places: Mapping[str, str | None]) -> tuple[Path, bytes]:
    """The file that says where the files of an artefact lie, what it said before included, and its new content."""
    file = _file(root, artefact_id)
    return file, json.dumps({**_read(file), **places}, indent=1).encode()


def forget_moved(root: Path, artefact_id: str) -> None:
    """Remove what one folder says of an artefact."""
    _file(root, artefact_id).unlink(missing_ok=True)


def _file(root: Path, artefact_id: str) -> Path:
    return root / FOLDER / f"{Path(artefact_id).name}.json"  # a foreign provenance may call itself anything


def _read(file: Path) -> dict[str, str | None]:
    try:
        places = json_of(read_foreign(file, MOST_JSON, "a file of JSON"), file)
    except FileNotFoundError:
        return {}
    except Refused as refusal:
        raise Refused(f"{refusal}; {AGAIN}") from refusal
    if not isinstance(places, dict) or not all(value is None or isinstance(value, str) for value in places.values()):
        raise Refused(f"{file}: expected places by option; {AGAIN}")
    return places
