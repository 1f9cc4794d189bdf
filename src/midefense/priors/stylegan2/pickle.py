"""NVIDIA's pickles of StyleGAN2-ADA networks (`torch_utils.persistence`), read without running any of them.

Such a file carries the source of its classes, and its authors' loader executes it. Here it is dropped unread, and all
that comes of a file is plain data, `StoredModule` and `StoredTensor`, never more of it than the file is large.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from midefense.architectures.strangers import A_STYLEGAN2, pickled_family
from midefense.priors.stylegan2.closed_pickle import DAMAGED, SHOWN, Name, Named, NotTaken, Plain, load
from midefense.types import Refused

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of a storage as torch wrote it before its zip files
SCALARS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}  # numpy's codes, and those of struct
DIMENSIONS = 8  # of a tensor, at most
DEEPEST = 8  # modules within modules, at most
LONGEST = 64  # characters of a module's name, at most
AGAIN = "downloading it again, or, where you trust it, a torch file of G_ema.state_dict()"


class StoredStorage(NamedTuple):
    """`count` little-endian floats in `content`, from its byte `start` on."""

    content: bytes
    start: int
    count: int


class StoredTensor(NamedTuple):
    """A tensor that is still in its storage; a pickle cannot change it, as it could a real one."""

    storage: StoredStorage
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Its values, on the CPU, in memory of their own."""
        content, start, count = self.storage
        values = torch.from_numpy(np.frombuffer(content, "<f4", count, start).astype(np.float32))
        return values.as_strided(self.shape, self.stride, self.offset).clone(memory_format=torch.contiguous_format)


class StoredModule(NamedTuple):
    """A module: the name of its class, and its `__dict__`."""

    class_name: str
    state: Mapping[str, object]


def read_networks(content: bytes, file: Path) -> dict[str, dict[str, StoredModule]]:
    """The networks `G_ema` and, where the pickle has one, `D`, each as its modules by path ("" is the network itself).

    Raises `Refused`, saying what `file` holds, for any other content.
    """
    try:
        held = load(io.BytesIO(content), NAMES, instead={("dnnlib.tflib.network", "Network"): TENSORFLOW})
        if not (isinstance(held, dict) and isinstance(held.get("G_ema"), StoredModule)):
            raise NotTaken("a pickle without a network called G_ema")
        names = [name for name in ("G_ema", "D") if held.get(name) is not None]
        networks = {name: dict(_modules(held[name])) for name in names}
        tensors = [tensor for modules in networks.values() for tensor in state_of(modules).values()]
        if sum(4 * math.prod(tensor.shape) for tensor in tensors) > len(content):
            raise NotTaken("tensors that are larger than the file")
        return networks
    except DAMAGED as error:
        raise _refusal(file, *_said_of(error, content)) from error


def state_of(modules: Mapping[str, StoredModule]) -> dict[str, StoredTensor]:
    """The state dict of a network from its modules, in the order of `Module.state_dict()`."""
    state = {}
    for path, module in modules.items():
        passing = module.state["_non_persistent_buffers_set"]
        buffers = {name: value for name, value in module.state["_buffers"].items() if name not in passing}
        for name, value in {**module.state["_parameters"], **buffers}.items():
            whole = _joined(path, name)
            if isinstance(value, StoredTensor):
                state[whole] = value
            elif value is not None:
                raise NotTaken(f"a {type(value).__name__} in place of the tensor {whole}")
    return state


def _modules(module: object, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, StoredModule]]:
    """A module and then all within it. A module that stands in two places is refused: it might stand in itself."""
    seen = set() if seen is None else seen
    if not (isinstance(module, StoredModule) and isinstance(module.state, dict)):
        raise NotTaken(f"a {type(module).__name__} in place of the module {path}")
    if id(module.state) in seen or path.count(".") >= DEEPEST:
        raise NotTaken(f"a module that stands in two places, or too deep: {path}")
    seen.add(id(module.state))
    yield path, module
    for name, child in module.state["_modules"].items():
        if child is not None:
            yield from _modules(child, _joined(path, name), seen)


def _joined(path: str, name: object) -> str:
    if not (isinstance(name, str) and name.isidentifier() and len(name) <= LONGEST):
        raise NotTaken(f"something without a name in the module {path}")
    return f"{path}.{name}" if path else name


def _said_of(error: Exception, content: bytes) -> tuple[str, str]:
    """What is held by content that cannot be read for this reason, and what to do."""
    if family := pickled_family(content):
        return f"a network of {family}, which is not read here", A_STYLEGAN2
    said = str(error)[:SHOWN] or type(error).__name__
    return str(error) if isinstance(error, NotTaken) else f"a pickle cut short or changed ({said})", AGAIN


def _refusal(file: Path, what: str, advice: str) -> Refused:
    return Refused(
        f"weights: expected a network pickle of stylegan2-ada-pytorch, got {file}, which holds {what}; try {advice}"
    )


def _module(meta: Mapping[str, object]) -> StoredModule:
    if meta["type"] != "class":
        raise NotTaken("a persistent object that is no module")
    return StoredModule(meta["class_name"], meta["state"])


def _parameter(data: object, requires_grad: object, hooks: object) -> object:
    return data


def _tensor(
    storage: object, offset: int, size: tuple, stride: tuple, requires_grad: object, hooks: object
) -> StoredTensor:
    """A tensor, if all of it lies within its storage, and no more elements than that has."""
    whole = isinstance(storage, StoredStorage) and len(size) == len(stride) <= DIMENSIONS
    if not whole or not all(type(number) is int for number in (offset, *size, *stride)):
        raise NotTaken("a tensor of another layout")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    least = min(0, offset, *stride, *(length - 1 for length in size))
    if least < 0 or max(last + 1, math.prod(size), *stride) > storage.count:
        raise NotTaken("a tensor that leaves its storage")
    return StoredTensor(storage, offset, torch.Size(size), tuple(stride))


def _storage(content: bytes) -> StoredStorage:
    """A storage as `torch.save(storage, _use_new_zipfile_serialization=False)` writes it: five pickles (a magic number,
    a version, the machine, the storage, a list of keys), the number of elements, the elements."""
    stream = io.BytesIO(content)
    magic, version, machine, description, keys = (
        load(stream, {("torch", "FloatStorage"): "float32"}, instead={}, persistent=True) for _ in range(5)
    )
    kind, element, key, _, count, view = description
    if not isinstance(key, str):
        raise NotTaken("a storage without a key")
    start = stream.tell() + 8
    (counted,) = struct.unpack_from("<q", content, stream.tell())
    written = (magic, version, machine["little_endian"], kind, element, view, keys, counted, len(content) - start)
    if written != (MAGIC, VERSION, True, "storage", "float32", None, [key], count, 4 * counted):
        raise NotTaken("a storage of another layout")
    return StoredStorage(content, start, counted)


class _Kind:
    """A `numpy.dtype` of one little-endian number."""

    __slots__ = ("code",)

    def __init__(self, code: str, align: object, copy: object):
        self.code = SCALARS[code]

    def __setstate__(self, state: tuple) -> None:
        if state[1] != "<":
            raise NotTaken("numbers in another byte order")


def _scalar(kind: _Kind, content: bytes) -> float | int:
    return struct.unpack(kind.code, content)[0]


TENSORFLOW = "networks for TensorFlow (legacy.py of stylegan2-ada-pytorch converts them)"
NAMES: dict[Name, object] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Named(_module),
    ("dnnlib.util", "EasyDict"): Plain,
    ("collections", "OrderedDict"): Plain,
    ("builtins", "set"): Named(set),
    ("numpy", "dtype"): Named(_Kind),
    ("numpy.core.multiarray", "scalar"): Named(_scalar),
    ("numpy._core.multiarray", "scalar"): Named(_scalar),
    ("torch._utils", "_rebuild_parameter"): Named(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): Named(_tensor),
    ("torch.storage", "_load_from_bytes"): Named(_storage),
}
