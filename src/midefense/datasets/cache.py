"""Decoded once: pixels as a memory-mapped file, keyed by how they were made, so that a dataset larger than memory costs
its pages and not a decoding. What lies in the cache may be deleted at any time; it is made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from midefense.store.claims import claim, owner_of
from midefense.store.folders import can_be_written
from midefense.store.space import reserve
from midefense.types import Refused

Caches = Path | Sequence[Path] | None  # folders of decoded pixels: see `cached_pixels`
HASH_BYTES = 32  # of SHA-256
POLL_SECONDS = 0.2


def cached_pixels(
    shape: tuple[int, int, int, int],
    fill: Callable[[np.ndarray], None],
    key: Mapping[str, object],
    cache: Caches,
    notes: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Pixels uint8 `shape` = [N, C, H, W] as `fill(array)` writes them, and the SHA-256 of each picture uint8 [N, 32].

    Args:
        key: plain values that decide every pixel.
        cache: folder of all caches, or several: the first is written to, those behind it are only read. None, or
            folders that lack the pixels and a first one that cannot be written, keep them in memory.
        notes: uint8 [N], which `fill` writes too; where the pixels were made before, it is given what was written then.
    """
    name = hashlib.sha256(json.dumps([list(shape), key], sort_keys=True).encode()).hexdigest()[:24]
    folders = [] if cache is None else [cache] if isinstance(cache, Path) else list(cache)
    folder = next((place / name for place in folders if (place / name).is_dir()), None)
    if folder is None and folders and can_be_written(folders[0]):
        folder = _made(folders[0] / name, shape, fill, notes)
    if folder is None:
        pixels = np.empty(shape, dtype=np.uint8)
        fill(pixels)
        return torch.from_numpy(pixels), picture_hashes(torch.from_numpy(pixels))
    if notes is not None:
        notes[:] = _map(folder / "notes", (shape[0],)).numpy()
    return _map(folder / "pixels", shape), _map(folder / "hashes", (shape[0], HASH_BYTES))


def _made(folder: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None], notes: np.ndarray | None) -> Path:
    """The folder, once this process or another has made it; who waits is told for whom."""
    claimed, told = folder.with_name(f"{folder.name}.claim"), False
    while not folder.is_dir():
        with claim(claimed) as mine:
            if mine and not folder.is_dir():
                _make(folder, shape, fill, notes)
        if not folder.is_dir():
            if not told:
                whom = owner_of(claimed)
                print(
                    f"waiting for another process that decodes the same pictures: {whom}", file=sys.stderr, flush=True
                )
                told = True
            time.sleep(POLL_SECONDS)
    return folder


def picture_hashes(pixels: Tensor) -> Tensor:
    """SHA-256 of each picture of uint8 [N, C, H, W], as uint8 [N, 32]."""
    digests = [hashlib.sha256(picture).digest() for picture in pixels.contiguous().numpy()]
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(len(pixels), HASH_BYTES)


def _make(
    folder: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None], notes: np.ndarray | None = None
) -> None:
    """Write under a temporary name and rename: a folder that is there is whole. The claim is ours, so what another
    process was writing is what it left when it was killed."""
    for left in folder.parent.glob(f".writing-{folder.name}-*"):
        shutil.rmtree(left)
    temporary = folder.with_name(f".writing-{folder.name}-{socket.gethostname()}-{os.getpid()}")
    temporary.mkdir()
    try:
        reserve(temporary / "pixels", int(np.prod(shape)))
        pixels = np.memmap(temporary / "pixels", dtype=np.uint8, mode="r+", shape=shape)
        fill(pixels)
        pixels.flush()
        if notes is not None:
            (temporary / "notes").write_bytes(notes.tobytes())
        (temporary / "hashes").write_bytes(picture_hashes(torch.from_numpy(pixels)).numpy().tobytes())
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _map(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape))
    if (got := path.stat().st_size) != size:
        raise Refused(f"{path}: expected {size} bytes, got {got}; try removing {path.parent}, it is made again")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)
