"""Published StyleGAN2 generators, once, into the format that `prior=stylegan2_*` reads: safetensors, without a pickle.

midefense import ffhq.pkl --as stylegan2
python attack.py prior=stylegan2_ffhq prior.weights=store/stylegan2/ffhq.safetensors ...

Read are NVIDIA's pickles of stylegan2-ada-pytorch (G_ema, and D as the critic) and state dicts of G_ema alone, as
IF-GMI distributes them. Nothing of a file is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from midefense.architectures.checkpoints import BEGINNINGS, read_tensors
from midefense.foreign import path_of
from midefense.priors.stylegan2.generator import StyleGan2Config
from midefense.priors.stylegan2.pickle import StoredModule, read_networks, state_of
from midefense.priors.stylegan2.shape import NETWORKS, configuration, matched, require_values, shape_of, stated_in
from midefense.store.artefacts import canonical, savable, write_whole
from midefense.types import Refused

FORMAT = "midefense-stylegan2-1"
NOTES = "stylegan2"  # the one entry of the metadata: of several, safetensors writes any first, and the hash would vary
COMMAND = "midefense import FILE.pkl --as stylegan2"
# Official files whose hash several public sources agree on: bytes, SHA-256.
KNOWN = {"ffhq.pkl": (381_624_121, "a205a346e86a9ddaae702e118097d014b7b8bd719491396a162cca438f2f524c")}

State = dict[str, Tensor]


def import_file(
    file: str | Path, out: str | Path, *, sha256: str | None = None, told: Mapping[str, object] | None = None
) -> None:
    """Write the networks of `file` to `out`, whole or not at all; the same networks again change nothing.

    Args:
        sha256: the hash that `file` must have. Without it a file named as an official one must be that.
        told: arguments of `StyleGan2Config` that replace what the file says.
    Raises:
        Refused: the file holds no StyleGAN2, or is not the one that is meant; or `out` holds something else.
    """
    file, out = path_of(file), path_of(out)
    if not file.is_file():
        raise Refused(f"weights: expected a network pickle, got no file {file}; try the path of ffhq.pkl, downloaded")
    content = file.read_bytes()
    digest = require_source(file.name, content, sha256)
    if content.startswith(BEGINNINGS) or file.suffix == ".safetensors":
        config, states = _from_state(read_tensors(file), told or {})
    else:
        config, states = _from_pickle(read_networks(content, file), told or {})
    notes = {"config": canonical(asdict(config)), "source": file.name, "source_sha256": digest, "format": FORMAT}
    flat = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    require_values(flat)
    written = safetensors.torch.save(savable(flat), {NOTES: canonical(notes)})
    if out.exists() and out.read_bytes() != written:
        raise Refused(f"--out: expected a new file, got {out}, which holds something else; try another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, written)


def require_source(name: str, content: bytes, sha256: str | None) -> str:
    """The SHA-256 of a file; `Refused` if it is not `sha256` or, without one, not that of the official `name`."""
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None:
        if sha256.lower() != digest:
            raise Refused(f"--sha256: expected {name} to have {sha256}, got {digest}; try downloading it again")
    elif name in KNOWN and KNOWN[name] != (len(content), digest):
        size, expected = KNOWN[name]
        raise Refused(
            f"weights: expected the official {name}, {size} bytes with SHA-256 {expected}, got {len(content)} bytes "
            f"with {digest}; try downloading it again, or --sha256 {digest} where this one is meant"
        )
    return digest


def read_imported(path: str | Path) -> tuple[StyleGan2Config, State, State | None, dict[str, str]]:
    """The configuration, the state dicts of the generator and of the critic (None: the file had none), and the
    metadata (`config`, `source`, `source_sha256`, `format`) of an imported file.

    Raises `Refused` for a file that is missing, or not of the importer's making.
    """
    file = _imported(path)
    config, notes = _read_notes(file)
    try:
        flat = safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise _another(file) from error
    states: dict[str, State] = {}
    for name, tensor in flat.items():
        part, _, own = name.partition(".")
        states.setdefault(part, {})[own] = tensor
    if states.keys() - NETWORKS.keys() or "generator" not in states:
        got = ", ".join(states) or "nothing"
        raise Refused(f"weights: expected a generator, and perhaps a critic, got {got} in {file}; try {COMMAND}")
    states = matched(config, states)
    return config, states["generator"], states.get("critic"), notes


def read_configuration(path: str | Path) -> StyleGan2Config:
    """The configuration of an imported file, without its tensors. Raises as `read_imported` does."""
    return _read_notes(_imported(path))[0]


def _imported(path: str | Path) -> Path:
    file = path_of(path)
    if not file.is_file():
        raise Refused(f"weights: expected an imported StyleGAN2, got no file {file}; try {COMMAND} --out {file}")
    return file


def _read_notes(file: Path) -> tuple[StyleGan2Config, dict[str, str]]:
    """What an imported file says of its networks, and the whole of its metadata."""
    try:
        with safe_open(file, "pt") as opened:
            notes = json.loads(opened.metadata()[NOTES])
        written_as, told = notes["format"], dict(json.loads(notes["config"]))
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise _another(file) from error
    if written_as != FORMAT:
        raise Refused(f"weights: expected the format {FORMAT}, got {written_as} in {file}; try {COMMAND}")
    return configuration(told), notes


def _another(file: Path) -> Refused:
    return Refused(f"weights: expected an imported StyleGAN2, got another file, {file}; try {COMMAND}")


def _from_pickle(
    networks: Mapping[str, Mapping[str, StoredModule]], told: Mapping[str, object]
) -> tuple[StyleGan2Config, dict[str, State]]:
    stored = {part: state_of(networks[name]) for part, name in zip(NETWORKS, networks, strict=False)}
    modules = [pair for network in networks.values() for pair in network.items()]
    shape = shape_of(stored["generator"], stored.get("critic"))
    config = configuration({**shape, **stated_in(modules, told), **told})
    states = matched(config, stored)  # before any tensor takes memory
    return config, {part: {name: tensor.tensor() for name, tensor in state.items()} for part, state in states.items()}


def _from_state(state: State, told: Mapping[str, object]) -> tuple[StyleGan2Config, dict[str, State]]:
    config = configuration({**shape_of(state, None), **told})
    return config, matched(config, {"generator": state})
