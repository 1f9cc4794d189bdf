"""States of unfinished work, with a checksum: what a crash, a full disk or a foreign hand left in their place is told
from what was saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from midefense.foreign import json_of, require_regular
from midefense.store.artefacts import canonical, savable
from midefense.store.plain import plain
from midefense.types import Refused

ENTRY = "about"


def sealed(tensors: Mapping[str, Tensor], notes: Mapping[str, object]) -> bytes:
    """A safetensors file of `tensors`, with `notes` (JSON values) and a checksum of both in its metadata, as one entry:
    safetensors writes several in an order that differs from time to time."""
    own, known = savable(tensors), plain(notes)
    about = {"notes": known, "sha256": _checksum(own, known)}
    return safetensors.torch.save(own, {ENTRY: canonical(about)})


def unsealed(file: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the notes of a file that `sealed` wrote; both of one file, also where another is just put in its
    place.

    Raises:
        FileNotFoundError: there is none.
        Refused: it is not what was written.
    """
    require_regular(file, "a saved state")
    try:
        with safetensors.safe_open(file, "pt") as content:
            about = json_of((content.metadata() or {}).get(ENTRY, "null"), file)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 -- it is no mapping
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise Refused(f"{file}: expected a saved state, got what cannot be read ({error})") from error
    if not isinstance(about, dict) or about.get("sha256") != _checksum(tensors, about.get("notes")):
        raise Refused(f"{file}: expected a saved state, got one without its checksum, or changed since")
    return tensors, about["notes"]


def _checksum(tensors: Mapping[str, Tensor], notes: object) -> str:
    """SHA-256 of names, types, shapes and bytes, in the order of the names, and of the notes."""
    digest = hashlib.sha256(canonical(notes).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
