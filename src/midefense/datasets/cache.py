"""Decoded once: pixels as a memory-mapped file, keyed by how they were made, so that a dataset larger than memory costs
its pages and not a decoding. What lies in the cache may be deleted at any time; it is made again. A decoding that is
killed goes on after the pictures it had saved: `<cache>/.writing-<name>` holds them, each with its hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
UNIT = 500  # pictures between two saves

# `fill(array, first)` writes the pictures of an array from row `first` on, in order, and yields how many rows are done.
Fill = Callable[[np.ndarray, int], Iterator[int]]


def cached_pixels(
    shape: tuple[int, int, int, int],
    fill: Fill,
    key: Mapping[str, object],
    cache: Caches,
    notes: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Pixels uint8 `shape` = [N, C, H, W] as `fill` writes them, and the SHA-256 of each picture uint8 [N, 32].

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
        for _ in fill(pixels, 0):
            pass
        return torch.from_numpy(pixels), picture_hashes(torch.from_numpy(pixels))
    if notes is not None:
        notes[:] = _map(folder / "notes", (shape[0],)).numpy()
    return _map(folder / "pixels", shape), _map(folder / "hashes", (shape[0], HASH_BYTES))


def _made(folder: Path, shape: tuple[int, ...], fill: Fill, notes: np.ndarray | None) -> Path:
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


def _make(folder: Path, shape: tuple[int, ...], fill: Fill, notes: np.ndarray | None = None) -> None:
    """Write under a temporary name and rename: a folder that is there is whole. What a killed process saved there is
    kept; an error leaves nothing, as it may be the full disk, or a picture that will be another one.

    A process whose claim was taken over while it fell silent may write beside this one: the same bytes.
    """
    begun = folder.with_name(f".writing-{folder.name}")
    begun.mkdir(exist_ok=True)
    try:
        _Saved(begun, shape, notes).complete(fill)
        begun.rename(folder)
    except FileNotFoundError:
        if not folder.is_dir():
            raise
    except Exception:
        shutil.rmtree(begun, ignore_errors=True)
        raise


class _Saved:
    """Pictures that are being decoded, in a folder: `pixels`, `notes` and, written last, `hashes`, zero where nothing
    is saved yet."""

    def __init__(self, folder: Path, shape: tuple[int, ...], notes: np.ndarray | None) -> None:
        self._rows, self._given = shape[0], notes
        self._pixels = _writable(folder / "pixels", shape)
        self._notes = None if notes is None else _writable(folder / "notes", shape[:1])
        self._hashes = _writable(folder / "hashes", (shape[0], HASH_BYTES))

    def complete(self, fill: Fill) -> None:
        """Write what is missing, and save it every `UNIT` pictures."""
        done = self._done()
        if self._given is not None:
            self._given[:done] = self._notes[:done]
        with contextlib.closing(fill(self._pixels, done)) as progress:
            for row in progress:
                if row - done >= UNIT or row == self._rows > done:
                    self._save(slice(done, row))
                    done = row

    def _save(self, rows: slice) -> None:
        self._pixels.flush()
        if self._given is not None:
            self._notes[rows] = self._given[rows]
            self._notes.flush()
        self._hashes[rows] = picture_hashes(torch.from_numpy(self._pixels[rows])).numpy()
        self._hashes.flush()

    def _done(self) -> int:
        """How many pictures are saved, from the first one on: the units whose hashes were saved with them."""
        for start in range(0, self._rows, UNIT):
            rows = slice(start, start + UNIT)
            if (picture_hashes(torch.from_numpy(self._pixels[rows])).numpy() != self._hashes[rows]).any():
                return start
        return self._rows


def _writable(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A file of bytes as an array, zeros where it is new; its room on the disk is its own."""
    size = int(np.prod(shape))
    if not path.is_file() or path.stat().st_size != size:
        reserve(path, size)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


def _map(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape))
    if (got := path.stat().st_size) != size:
        raise Refused(f"{path}: expected {size} bytes, got {got}; try removing {path.parent}, it is made again")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)
