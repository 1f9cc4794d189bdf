"""Randomness keyed by purpose. Every draw comes from a generator made from (seed, verb, purpose, group ...),
so that one process, eight, and a resumed run draw the same numbers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


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


@contextlib.contextmanager
def isolated(*key: object) -> Iterator[None]:
    """Run what uses torch's global stream (dropout, a stochastic defense, weight initialisation) under a seed
    of its own; the global stream is left as it was. Covers the CPU and the current CUDA device."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(*key))
        yield
