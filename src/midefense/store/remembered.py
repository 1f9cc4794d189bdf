"""Digests of artefacts that are kept outside the store, a line each: `<digest>  <kind>/<name>@<id>`. Whoever may write
in a store can seal a changed artefact anew, and its descendants too; not a file that lies elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from midefense.foreign import require_regular
from midefense.store.artefacts import write_whole
from midefense.types import Refused

LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def remember(file: Path, digests: Mapping[str, str], roots: Sequence[Path]) -> None:
    """Write the digests of artefacts, by reference, into a new file outside the folders of a store.

    Raises `Refused` for a file that is there: it may be the only one that tells what was changed.
    """
    place = file.expanduser().resolve()
    if inside := [root for root in roots if place.is_relative_to(root)]:
        raise Refused(
            f"--remember {file}: expected a file outside the store, got one in {inside[0]}: who may write there could "
            "change it too; choose a place that others cannot write"
        )
    if place.exists():
        raise Refused(
            f"--remember {file}: expected a new file, got one that is there; compare with it by --against {file}, or "
            "choose another name"
        )
    if not place.parent.is_dir():
        raise Refused(f"--remember {file}: expected a file in a folder that is there, got no folder {place.parent}")
    write_whole(place, "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode())


def remembered(file: Path) -> dict[str, str]:
    """The digests in a file that `remember` wrote, by reference. Raises `Refused` for any other file."""
    try:
        require_regular(file.expanduser(), "a file that --remember wrote")
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"--against {file}: expected a file that --remember wrote, got what cannot be read ({error})"
        ) from error
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        found = LINE.fullmatch(line)
        if found is None or found[2] in digests:
            raise Refused(
                f"--against {file}: expected lines `<64 hex digits>  <kind>/<name>@<id>`, each artefact once, got "
                f"another in line {number}; try a file that --remember wrote"
            )
        digests[found[2]] = found[1]
    return digests
