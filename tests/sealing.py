"""What somebody who may write in a store can do to an artefact."""

import hashlib
import json

import safetensors.torch
import torch

from midefense.store.artefacts import content_digest


def spoil(folder, name, content):
    """Overwrite one file of an artefact and seal the whole again, hashes and all."""
    (folder / name).write_bytes(content)
    changed = json.loads((folder / "provenance.json").read_text())
    changed["files"][name] = hashlib.sha256(content).hexdigest()
    write_sealed(folder, changed)


def zero(folder):
    """Put zeros in the place of all tensors, and seal the artefact anew."""
    tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in tensors.items()}
    spoil(folder, "tensors.safetensors", safetensors.torch.save(zeros))


def write_sealed(folder, provenance):
    """Write a provenance with the digest that belongs to it."""
    provenance = {key: value for key, value in provenance.items() if key != "digest"}
    provenance["digest"] = content_digest(provenance)
    (folder / "provenance.json").write_text(json.dumps(provenance))
