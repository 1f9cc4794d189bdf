"""Randomness keyed by purpose. Every draw comes from a generator made from (seed, verb, purpose, group ...),
so that one process, eight, and a resumed run draw the same numbers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def derive(*key: object) -> int:
    """A 63-bit seed from any key of strings and integers, the same in every process (SHA-256, not `hash`)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator of its own for `key`."""
    return torch.Generator().manual_seed(derive(*key))


def fork(rng: torch.Generator, purpose: str) -> torch.Generator:
    """A generator for `purpose`, derived from the seed of `rng` and not from how far it has been drawn."""
    return generator(rng.initial_seed(), purpose)


def by_row(rng: torch.Generator, ids: Tensor) -> list[torch.Generator]:
    """A generator for each of `ids` int64 [N], which depends on no other id and on no order."""
    return [fork(rng, f"row {number}") for number in ids.tolist()]


def hashed_uniform(seed: int | Tensor, *counters: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, of the shape the `counters` (int64) broadcast to.

    A number depends on `seed` and its own counters only: on no other row, and not on the device or its threads.
    Every counter is folded in by SplitMix64 (Steele et al., OOPSLA 2014); int64 products wrap, which is what it needs.
    """
    state = torch.zeros((), dtype=torch.int64, device=counters[0].device) + seed
    for counter in counters:
        state = state + (counter + 1) * -0x61C8864680B583EB
        state = (state ^ _shifted(state, 30)) * -0x40A7B892E31B1A47
        state = (state ^ _shifted(state, 27)) * -0x6B2FB644ECCEEE15
        state = state ^ _shifted(state, 31)
    return _shifted(state, 11).double() * 2.0**-53


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (state >> bits) & (2 ** (64 - bits) - 1)


@contextlib.contextmanager
def isolated(*key: object) -> Iterator[None]:
    """Run what uses torch's global stream (dropout, a stochastic defense, weight initialisation) under a seed
    of its own; the global stream is left as it was. Covers the CPU and the current CUDA device."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(*key))
        yield
