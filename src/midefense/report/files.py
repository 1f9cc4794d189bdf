"""Where pages and tables are written: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from midefense.store.artefacts import write_whole
from midefense.types import Refused


def refuse_odd_places(places: Iterable[Path]) -> None:
    """Refuse what is no place for a file, and a place that is named twice: one file would replace the other."""
    seen: set[Path] = set()
    for place in places:
        target = place.resolve()
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "something that is no file"
            raise Refused(f"{place}: expected the name of a file to write, got {kind}; try {place.name or 'out'}.html")
        if target in seen:
            raise Refused(f"{place}: expected a file of its own for the page and each table, got the same one twice")
        seen.add(target)


def save(place: Path, text: str) -> Path:
    """Write `text` as UTF-8 so that a reader, a full disk or a kill never meets half a file; what stood there before
    stands until then. A link keeps leading where it leads. Returns `place`."""
    return save_bytes(place, text.encode())


def save_bytes(place: Path, content: bytes) -> Path:
    """As `save`, for a file that is no text."""
    refuse_odd_places([place])
    target = place.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content)
    return place
