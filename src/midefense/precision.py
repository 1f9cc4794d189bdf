"""In which precision networks calculate: a named part of the recipe, of a prior and of an attack, because it changes
numbers. What is summed up of them (losses, statistics, selection, metrics) stays in float32 at least.

`32-true`: float32. `tf32`: float32 whose matrix products and convolutions are rounded to TF32's 10 bits on GPUs that
have it, backward too; everywhere else the same as float32. `bf16-mixed`: networks run under bfloat16 autocast, their
weights stay float32. A recipe that says `tf32` is accepted on every machine, with a sentence where nothing comes of
it: it allows an approximation, and a number without it is one that it allows, as on the GPUs before TF32; so a store
written on a GPU can be opened, resumed and tested elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from midefense.terminal import tell
from midefense.types import refuse_unknown

PRECISIONS = ("32-true", "tf32", "bf16-mixed")
FIRST_WITH_TF32 = 8  # compute capability: Ampere
Yielded = TypeVar("Yielded")
Returned = TypeVar("Returned")


def require_precision(option: str, name: str) -> str:
    """The name of a precision; refused with the choices if it is none."""
    if name not in PRECISIONS:
        raise refuse_unknown(option, name, PRECISIONS)
    return name


def mixed(precision: str, device: torch.device) -> AbstractContextManager:
    """For the forward of a network: bfloat16 autocast where the precision asks for it."""
    if precision != "bf16-mixed":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def rounded(precision: str, device: torch.device) -> Iterator[None]:
    """For forward and backward: TF32 where the precision asks for it, and what was set before afterwards."""
    if precision != "tf32":
        yield
        return
    if not _has_tf32(device):
        _say_without(device.type)
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def stepwise(
    work: Iterable[Yielded] | Generator[Yielded, None, Returned], around: Callable[[], AbstractContextManager]
) -> Generator[Yielded, None, Returned]:
    """Long work whose steps each run within `around()`; who consumes it is outside."""
    steps = iter(work)
    while True:
        with around():
            try:
                made = next(steps)
            except StopIteration as end:
                return end.value
        yield made


@contextmanager
def forwards_mixed(networks: Iterable[nn.Module], precision: str) -> Iterator[None]:
    """Within it the forward of each network runs in this precision, and gives float32 at least."""
    with ExitStack() as stack:
        for network in networks if precision == "bf16-mixed" else ():
            stack.enter_context(_forward_mixed(network, precision))
        yield


@contextmanager
def _forward_mixed(network: nn.Module, precision: str) -> Iterator[None]:
    usual, own = network.forward, network.__dict__.get("forward")

    @functools.wraps(usual)
    def forward(*inputs: Tensor, **named: object) -> object:
        with mixed(precision, next(network.parameters()).device):
            given = usual(*inputs, **named)
        return widened(given)

    network.forward = forward  # of this one object, before its class's
    try:
        yield
    finally:
        del network.forward
        if own is not None:
            network.forward = own


def widened(given: object) -> object:
    """Tensors of half precision as float32; tuples and lists of them likewise; anything else as it is."""
    if isinstance(given, tuple | list):
        return type(given)(map(widened, given))
    if isinstance(given, Tensor) and given.is_floating_point():
        return at_least_float32(given)
    return given


def at_least_float32(values: Tensor) -> Tensor:
    """Numbers of half precision as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def working_kind(inputs: Tensor) -> torch.dtype:
    """What networks take in here: the kind of `inputs`, or that of the autocast that is on."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if _autocast_is_on(device) else inputs.dtype


def explicit_kinds(inputs: Tensor) -> AbstractContextManager:
    """Numbers keep the kinds that are written, where autocast is on too."""
    device = inputs.device.type
    return torch.autocast(device, enabled=False) if _autocast_is_on(device) else nullcontext()


def _autocast_is_on(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= FIRST_WITH_TF32


@functools.cache  # once per process
def _say_without(kind: str) -> None:
    tell(f"precision=tf32: this {kind} has no TF32 and calculates in float32, of which TF32 is an approximation")
