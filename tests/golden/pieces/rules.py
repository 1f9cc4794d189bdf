"""The rules that all recordings share: numbers drawn by their name, weights drawn by their name, and how far two arrays
may differ (`../shared/reference/README.md`, and section 0 of `../shared/reference/attacks/README.md`)."""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from midefense.architectures.state_names import published_names, require_match

TOLERANCE = 1e-4


class NotThereYet(Exception):
    """The method that a piece records is not implemented; the message names it."""


@dataclass(frozen=True)
class Draws:
    """Numbers that come from their name alone; `prefix` is put before every name."""

    prefix: str = ""

    def stream(self, name: str) -> np.random.RandomState:
        """The generator of `name`."""
        return np.random.RandomState(zlib.crc32((self.prefix + name).encode()) & 0x7FFFFFFF)

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), float32, of `shape`."""
        return torch.from_numpy(self.stream(name).random_sample(tuple(shape)).astype(np.float32))

    def weight(self, name: str, shape: Sequence[int], gain: float = 1.0) -> Tensor:
        """The weight of a filled network that is called `name` (with the tag of its network), float32 of `shape`."""
        if name.endswith("num_batches_tracked"):
            return torch.tensor(0)
        drawn = self.stream(name).standard_normal(tuple(shape))
        if len(shape) >= 2:
            values = gain * drawn / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = 1 + 0.1 * np.abs(drawn)
        elif name.endswith("weight"):
            values = 1 + 0.1 * drawn
        else:
            values = 0.1 * drawn
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    def state(self, shapes: Mapping[str, Sequence[int]], tag: str = "", gain: float = 1.0) -> dict[str, Tensor]:
        """A filled state dict of these names and shapes; `tag` names the network, as in `T/`."""
        return {name: self.weight(tag + name, shape, gain) for name, shape in shapes.items()}

    def fill(
        self, module: nn.Module, tag: str = "", gain: float = 1.0, table: Mapping[str, str] | None = None
    ) -> nn.Module:
        """`module` with weights drawn by their published names, in eval mode.

        table: {original prefix: ours}, where an original has other names than the module's own `published`.
        """
        own = module.state_dict()
        names = published_names(own, getattr(module, "published", {}) if table is None else table)
        expected = {names[name]: tensor for name, tensor in own.items()}
        state = self.state({name: tuple(tensor.shape) for name, tensor in expected.items()}, tag, gain)
        require_match(type(module).__name__, state, expected)
        module.load_state_dict({name: state[published] for name, published in names.items()})
        return module.eval()


def parameters(module: nn.Module, names: Sequence[str], table: Mapping[str, str] | None = None) -> list[nn.Parameter]:
    """The parameters of `module` that the original calls `names`, in that order."""
    own = dict(module.named_parameters())
    published = published_names(own, getattr(module, "published", {}) if table is None else table)
    by_name = {published[name]: parameter for name, parameter in own.items()}
    return [by_name[name] for name in names]


def gradient_norms(tensors: Sequence[nn.Parameter], dtype: torch.dtype = torch.float64) -> Tensor:
    """L2 norm of every gradient, summed in `dtype`, float64 [len(tensors)]; -1 where there is none. An original's own
    float32 sum over millions of numbers is off by more than the tolerance."""
    norms = [-1.0 if p.grad is None else float(p.grad.to(dtype).norm()) for p in tensors]
    return torch.tensor(norms, dtype=torch.float64)


def sums_and_norms(tensors: Sequence[nn.Parameter]) -> Tensor:
    """Sum and L2 norm of every parameter, float64 [len(tensors), 2]."""
    rows = [[float(p.detach().double().sum()), float(p.detach().double().norm())] for p in tensors]
    return torch.tensor(rows, dtype=torch.float64)


def mean_sizes(tensors: Sequence[Tensor]) -> Tensor:
    """Mean |number| of every tensor, float64 [len(tensors)]."""
    return torch.tensor([float(tensor.detach().double().abs().mean()) for tensor in tensors], dtype=torch.float64)


TINY_NORMS = {"conv1.bias": "bn1.weight", "conv2.bias": "bn2.weight", "emb.bias": "bn3.weight"}  # the stand-in's


def without_gradient(names: Sequence[str]) -> list[bool]:
    """Which parameters are biases right in front of a norm. Their gradient is 0 but for rounding, which Adam turns into
    steps of up to its rate: no two programs agree on them."""
    rows = []
    for name in names:
        layer = re.fullmatch(r"(.+)\.(\d+)\.bias", name)
        norm = f"{layer[1]}.{int(layer[2]) + 1}.weight" if layer else TINY_NORMS.get(name)
        rows.append(norm in names)
    return rows


class Arithmetic(NamedTuple):
    """How a path of many steps is computed: its dtype, and by what share its draws are moved first."""

    dtype: torch.dtype
    moved: float = 0.0

    def of(self, draws: Tensor) -> Tensor:
        """Recorded draws as the path takes them."""
        return draws.to(self.dtype) * (1 + self.moved)


# The originals computed in float32, where a path has kinks: a ReLU whose input is 0 but for rounding goes either way,
# and the path with it. A small move shows the other way (kedmi_dmi_mnist has an input of 9e-9 of the largest). The
# originals' own draws were disturbed by 6e-7.
ARITHMETICS = (
    Arithmetic(torch.float64),
    Arithmetic(torch.float32),
    *(Arithmetic(torch.float64, moved) for moved in (6e-7, -6e-7, 2e-6, -2e-6)),
)


def to_rounding(replay: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """A replay that takes an `Arithmetic`: each of its paths (what stands in front of the first / of a key, as in
    `restart1/z20`) in the first one that gives the recorded path; in the first of all, where none does. Paths do not
    depend on each other, so each may have its own."""

    @functools.wraps(replay)
    def replayed(recording) -> Iterator:
        found: dict[str, list] = {}
        for arithmetic in ARITHMETICS:
            for path, entries in _by_path(replay(recording, arithmetic)).items():
                if path not in found or (_all_ok(entries) and not _all_ok(found[path])):
                    found[path] = entries
            if all(map(_all_ok, found.values())):
                break
        for entries in found.values():
            yield from entries

    return replayed


def _by_path(entries: Iterator) -> dict[str, list]:
    paths: dict[str, list] = {}
    for entry in entries:
        paths.setdefault(entry.key.rpartition("/")[0], []).append(entry)
    return paths


def _all_ok(entries: Sequence) -> bool:
    return all(entry.ok for entry in entries)


def relative_error(got: Tensor, known: Tensor, floor: float = 0.0) -> float:
    """max |got - known| over max |known| (at least `floor`); infinite where shapes differ or a number is missing."""
    if got.shape != known.shape:
        return math.inf
    if not known.numel():
        return 0.0
    got, known = got.detach().double(), known.double()
    return _ratio((got - known).abs().max(), known.abs().max().clamp_min(floor))


def row_errors(got: Tensor, known: Tensor) -> Tensor:
    """Relative error of every row of a table of norms [N], or of sums and norms [N, 2], whose sums are compared with
    the norm of their row. A norm that is next to nothing beside the others counts as a millionth of the largest."""
    norms = (known if known.dim() == 1 else known[:, 1]).double().abs()
    norms = norms.clamp_min(1e-6 * float(norms.max())).clamp_min(1e-300)
    differences = (got.double() - known.double()).abs()
    worst = differences if known.dim() == 1 else differences.amax(1)
    return worst / norms


def _ratio(difference: Tensor, scale: Tensor) -> float:
    """0/0 is 0: both are nothing. A NaN stays one, and is beyond every tolerance."""
    return 0.0 if float(difference) == 0 else float(difference / scale)
