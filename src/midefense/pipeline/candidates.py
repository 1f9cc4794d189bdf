"""What is to be judged, a batch at a time: tens of thousands of images never lie in memory together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from midefense.metrics.base import Judged
from midefense.metrics.features import batch_rows
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact
from midefense.types import Images, Refused, clip_images

BATCH = 256
HEADLINE = "selected"  # the stage whose numbers bear no mark


class Rows(Protocol):
    """A tensor, or one of a safetensors file that is read when it is sliced."""

    def __getitem__(self, rows: slice) -> Tensor: ...


@dataclass(frozen=True)
class Candidates:
    """Images that are made when they are looked at. `labels` int64 [M] on the CPU: the class each stands for;
    `read(rows)` gives those of a slice, float [B, C, H, W] on the judge's device; `rows`, how many to hold at once;
    `diverged`, how many of them are no images at all; `ids` int64 [M] on the CPU: the private image each stands for
    (None where the evidence was a class)."""

    labels: Tensor
    read: Callable[[slice], Tensor]
    rows: int
    diverged: int = 0
    ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, target: nn.Module | None = None) -> Iterator[Judged]:
        """All images in order, clipped once, here, before they are judged; with the confidence of `target`, if any."""
        ranks = rank_in_class(self.labels)
        for start in range(0, len(self), self.rows):
            rows = slice(start, min(start + self.rows, len(self)))
            with torch.no_grad():
                images = clip_images(self.read(rows))
            labels, candidates = self.labels[rows].to(images.device), ranks[rows].to(images.device)
            sure = None if target is None else confidence(target, images, labels)
            ids = None if self.ids is None else self.ids[rows].to(images.device)
            yield Judged(images, labels, candidates, sure, ids=ids)

    @classmethod
    def of_images(cls, images: Images, rows: Tensor, device: torch.device) -> Candidates:
        """The stored images at `rows` [M]."""
        size = images.pixels.shape[-1]
        return cls(images.labels[rows], lambda part: images.floats(rows[part], device), batch_rows(BATCH, size))

    @classmethod
    def of_latents(cls, prior: Prior, latents: Tensor, labels: Tensor, device: torch.device) -> Candidates:
        """What `prior` makes of latents [M, ...]."""
        return cls(labels, partial(_decode, prior, latents, device), batch_rows(BATCH, prior.size))


class Stages:
    """The candidates of a recovered artefact by the stage of the attack, read from its file as they are asked for."""

    def __init__(self, file: safe_open, prior: Prior, device: torch.device, matched: bool = False) -> None:
        self._file, self._prior, self._device = file, prior, device
        self._classes = file.get_tensor("evidence.labels")
        self._ids = file.get_tensor("evidence.ids") if matched else None
        self._keys = set(file.keys())
        self.names = sorted({key.rsplit(".", 1)[0] for key in self._keys if key.endswith((".latents", ".pixels"))})

    def __getitem__(self, stage: str) -> Candidates:
        """Its images: `<stage>.pixels` where the attack left them (no stored prior decodes a generator's inner
        features alone), else what the prior makes of `<stage>.latents`."""
        evidence, rows = self._file.get_tensor(f"{stage}.evidence"), batch_rows(BATCH, self._prior.size)
        labels, ids = self._classes[evidence], None if self._ids is None else self._ids[evidence]
        if f"{stage}.pixels" in self._keys:
            pixels = self._aligned(f"{stage}.pixels", labels)
            return Candidates(labels, partial(_scale, pixels, self._device), rows, ids=ids)
        latents = self._aligned(f"{stage}.latents", labels)
        parts = (latents[start : min(start + rows, len(labels))] for start in range(0, len(labels), rows))
        diverged = sum(int((~part.isfinite().flatten(1).all(1)).sum()) for part in parts)
        return Candidates(labels, partial(_decode, self._prior, latents, self._device), rows, diverged, ids)

    def _aligned(self, name: str, labels: Tensor) -> Rows:
        """A tensor of the file, one row per label, that is read when it is sliced."""
        part = self._file.get_slice(name)
        if part.get_shape()[0] != len(labels):
            raise Refused(f"{name}: expected a row for each of {len(labels)} candidates, got {part.get_shape()[0]}")
        return part


@contextlib.contextmanager
def open_stages(recovered: Artefact, prior: Prior, device: torch.device) -> Iterator[Stages]:
    """The stages of a recovered artefact, for as long as its file is open."""
    with safe_open(recovered.path / "tensors.safetensors", framework="pt") as file:
        yield Stages(file, prior, device, matched="ids" in recovered.recipe)


@torch.no_grad()
def confidence(target: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """How sure the attacked target is of each image's label [M]; asked by the judge, so nobody is charged."""
    rows = batch_rows(BATCH, images.shape[-1], target)
    probs = torch.cat([target(part).logits.float().softmax(1) for part in images.split(rows)])
    return probs.gather(1, labels.to(probs.device)[:, None])[:, 0]


def rank_in_class(labels: Tensor) -> Tensor:
    """Number every row among those of its label, in order: [3, 5, 3] gives [0, 0, 1]."""
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - torch.searchsorted(ordered, ordered)
    return ranks


def _decode(prior: Prior, latents: Rows, device: torch.device, rows: slice) -> Tensor:
    return prior.decode(latents[rows].to(device))


def _scale(pixels: Rows, device: torch.device, rows: slice) -> Tensor:
    return pixels[rows].to(device).float() / 255
