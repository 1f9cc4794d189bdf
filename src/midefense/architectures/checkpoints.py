"""Weights that others published: read as tensors and nothing else, from a file or from torch's cache.

Beside `midefense.store` this is the only place that opens a torch file. A pickle is never run: torch's restricted
reader refuses whatever is not a tensor or a plain container.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from midefense.architectures.strangers import (
    STATE_ALONE,
    other_archive,
    stranger_by_beginning,
    too_much,
    what_a_pickle_asks,
)
from midefense.foreign import require_regular
from midefense.types import Refused, in_a_sentence, refuse_unknown

if TYPE_CHECKING:  # torchvision takes seconds to import, and only its networks need it
    from torchvision.models import WeightsEnum

ACCEPTED = "a safetensors file, or a torch file with a state dict (alone, or as one entry of a checkpoint)"
# How a torch file begins: a zip archive, or, before torch 1.6, a pickled magic number.
BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")

# What reading a torch file that was cut short or changed can raise, by where it was.
CUT_SHORT = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)

TENSORS_ALONE = (
    "torch.save({name: value for name, value in state.items() if torch.is_tensor(value)}, FILE), where the rest is not "
    "needed to tell images apart"
)
MOST_REPEATED = 1 << 16  # how much larger a tensor may be than what is stored of it; ordinary ones are not
READ_AHEAD = 1 << 16  # bytes that say what a file is


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds: a state dict, the name of the `entry` it stood under (None: it is the whole file),
    and the `others`."""

    state: dict[str, Tensor]
    entry: str | None = None
    others: dict[str, object] = field(default_factory=dict)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors in a file, on the CPU.

    `*.safetensors`, or a torch file that holds a state dict, or a checkpoint one of whose entries is a state dict (its
    other entries are left). Raises `Refused`, saying what the file holds, for everything else; no code of it is run.
    """
    return read_checkpoint(path).state


def read_checkpoint(path: str | Path, entry: str | None = None) -> Checkpoint:
    """As `read_tensors`, with what stands beside the state dict.

    `entry` names the state dict to take, with dots for one that lies deeper (`model.ema`); it is needed where several
    stand in the file.
    """
    file = Path(path)
    try:
        require_regular(file, "a file of weights")
    except FileNotFoundError as error:
        raise Refused(f"weights: expected {ACCEPTED}, got no file {file}; try the path of one") from error
    content = _read(file)
    if entry is not None:
        return _entry(file, content, entry)
    if _is_state(content):
        return _sound(file, Checkpoint(dict(content)))
    states = _states(content)
    if len(states) > 1:
        raise _refusal(file, _in_words(content), f"--entry {states[0]} of `midefense import`, or {STATE_ALONE}")
    if not states:
        raise _refusal(file, *(_other_than_tensors(content) or (_in_words(content),)))
    others = {str(name): value for name, value in content.items() if name != states[0]}
    return _sound(file, Checkpoint(dict(content[states[0]]), str(states[0]), others))


def _entry(file: Path, content: object, entry: str) -> Checkpoint:
    """The state dict that `entry` names."""
    inside, rest = content, entry
    while rest and isinstance(inside, Mapping) and not _is_state(inside):
        name = rest if rest in inside else rest.split(".")[0]
        if name not in inside:
            break
        inside, rest = inside[name], rest.removeprefix(name).removeprefix(".")
    if rest:
        holds = [str(name) for name in _states(content)]
        raise refuse_unknown("--entry", entry, holds, f"{file} holds {_in_words(content)}.")
    if not _is_state(inside):
        got, advice = _other_than_tensors(inside) or (_in_words(inside), "another entry")
        raise Refused(f"--entry {entry}: expected a state dict, got {got}; try {advice}")
    others = {str(name): value for name, value in content.items() if not _is_state(value)}
    return _sound(file, Checkpoint(dict(inside), entry, others))


def _states(content: object) -> list[str]:
    """The entries of a file that are state dicts."""
    return [name for name, value in content.items() if _is_state(value)] if isinstance(content, Mapping) else []


def _sound(file: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint; refused where its tensors hold no plain numbers."""
    kinds = {name: kind for name, tensor in checkpoint.state.items() if (kind := _odd_kind(tensor))}
    if kinds:
        name, (kind, advice) = next(iter(kinds.items()))
        raise _refusal(file, f"{len(kinds)} {kind} among {len(checkpoint.state)} ({name}, ...)", advice)
    return checkpoint


def _odd_kind(tensor: Tensor) -> tuple[str, str] | None:
    """What a tensor is that holds no plain numbers, and what to do about it; None for an ordinary one."""
    if tensor.is_meta:
        return "tensors without values (on the meta device)", "saving the model after its weights were loaded"
    if tensor.is_quantized:
        return "quantised tensors", "the network from before it was quantised"
    if tensor.layout == torch.strided and _written_out(tensor) > MOST_REPEATED * tensor.untyped_storage().nbytes():
        return "tensors that repeat few values", "saving them with .contiguous()"
    if tensor.layout != torch.strided:
        return "sparse tensors", "saving them with .to_dense()"
    return None


def _written_out(tensor: Tensor) -> int:
    """Bytes of a tensor in memory of its own."""
    return tensor.numel() * tensor.element_size()


def official_weights(choices: type[WeightsEnum], name: str | None, download: bool) -> dict[str, Tensor]:
    """torchvision's weights `name` of `choices`, as a state dict under torchvision's names.

    The file must have the SHA-256 that its name begins to tell. Raises `Refused` for an unknown name, and as
    `cached_file` and `read_tensors` do.
    """
    if name not in choices.__members__:
        raise refuse_unknown("weights", name, choices.__members__)
    url = choices[name].url
    return read_tensors(cached_file(f"weights {name}", url, download, Path(url).stem.rsplit("-", 1)[1]))


def cached_file(what: str, url: str, download: bool, hash_prefix: str | None = None) -> Path:
    """The file of `url` in torch's cache; fetched if it is absent and `download` is set.

    Raises `Refused` if the file is absent and not to be fetched, or if its SHA-256 does not begin with `hash_prefix`.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.exists():
        if not download:
            raise Refused(
                f"{what}: expected the file {file}, got none; try architecture.download=true, or put {url} there"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix, progress=False)
    if hash_prefix is not None:
        _require_hash(file, hash_prefix, f"try removing it, then architecture.download=true, or put {url} there")
    return file


def _require_hash(file: Path, prefix: str, advice: str) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(prefix):
        raise Refused(f"weights: expected SHA-256 as in the name of {file}, got {digest[:8]}; {advice}")


def _read(file: Path) -> object:
    """What a file holds, read without running any of it; its first bytes decide how, and not its name."""
    with file.open("rb") as stream:
        beginning = stream.read(READ_AHEAD)
    is_torch = beginning.startswith(BEGINNINGS)
    if stranger := None if is_torch else stranger_by_beginning(file, beginning):
        raise _refusal(file, *stranger)
    if not is_torch and (file.suffix == ".safetensors" or _is_safetensors(beginning)):
        try:
            return safetensors.torch.load_file(file)
        except SafetensorError as error:
            raise _refusal(file, f"no safetensors ({error})") from error
    if not is_torch:
        raise _refusal(file, "nothing that torch saved")
    try:
        if archive := other_archive(file):
            raise _refusal(file, *archive)
        if much := too_much(file):
            raise _refusal(file, much)
        with file.open("rb") as stream:  # by a name that ends in .safetensors torch would read it as such
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(file, *what_a_pickle_asks(file, str(error))) from error
    except Refused:
        raise
    except CUT_SHORT as error:
        raise _refusal(file, "a torch file cut short or changed") from error


def _is_safetensors(beginning: bytes) -> bool:
    """Whether this is how safetensors begin: the length of a header in JSON, and the header."""
    return beginning[8:9] == b"{" and beginning[9:10] in (b'"', b"}")


def _refusal(file: Path, what: str, advice: str = STATE_ALONE) -> Refused:
    what, advice = in_a_sentence(what, 600), in_a_sentence(advice, 600)
    return Refused(f"weights: expected {ACCEPTED}, got {file}, which holds {what}; try {advice}")


def _is_state(content: object) -> bool:
    """Whether this is what `Module.state_dict()` gives: names and tensors, at least one."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _other_than_tensors(content: object) -> tuple[str, str] | None:
    """What stands in a state dict, alone or an entry of `content`, that is no tensor, and what to do; None where there
    is no such state dict. Modules put it there (`get_extra_state`), and so does who keeps numbers beside weights."""
    mapping = content if isinstance(content, Mapping) else {}
    if any("_packed_params" in str(name) for name in mapping):
        return None
    for inside in (mapping, *(value for value in mapping.values() if isinstance(value, Mapping))):
        tensors = [name for name, value in inside.items() if isinstance(value, Tensor)]
        others = [f"{name} ({type(value).__name__})" for name, value in inside.items() if name not in set(tensors)]
        if tensors and others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            return f"{len(tensors)} tensors, and what is none beside them: {shown}", TENSORS_ALONE
    return None


def _in_words(content: object) -> str:
    """What a file holds, as a message says it."""
    if isinstance(content, Mapping) and any("_packed_params" in str(name) for name in content):
        return "the state of a quantised network"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    entries = [
        f"{in_a_sentence(name, 60)} ({'a state dict' if _is_state(v) else type(v).__name__})"
        for name, v in content.items()
    ]
    return f"a mapping of {', '.join(entries[:6])}{', ...' if len(entries) > 6 else ''}" if entries else "nothing"
