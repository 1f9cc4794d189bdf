"""The folders of a store: one that is written to, and any behind it that are only read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from midefense.foreign import yaml_of
from midefense.types import Refused

ADVICE = "try store=DIR (or unset an empty MIDEFENSE_STORE), or 'store=[MINE,SHARED]' to write into MINE and read both"


def folders_of(store: object) -> list[str]:
    """What `store=`, `--store` or the variable MIDEFENSE_STORE names: a folder, or several, the one that is written to
    first, as a list or as its text (`[mine,shared]`).

    Raises `Refused` for anything else, and for a name that is empty.
    """
    named = _listed(store) if isinstance(store, str) else store
    named = [str(named)] if isinstance(named, str | Path) else named
    if (
        not isinstance(named, Sequence)
        or not named
        or not all(isinstance(one, str | Path) and str(one).strip() for one in named)
    ):
        raise Refused(f"store: expected a folder, or a list of folders, got {store!r}; {ADVICE}")
    return [str(one) for one in named]


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in `folder` (or in the nearest folder above, where there is none yet), by the rights
    alone: nothing is written."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(
        folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    )


def _listed(text: str) -> object:
    """A text in brackets as the list that it writes; any other text as it is."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    try:
        return yaml_of(text, "store")
    except Refused as refusal:
        raise Refused(f"store: expected a list of folders, got {text!r}; {ADVICE}") from refusal
