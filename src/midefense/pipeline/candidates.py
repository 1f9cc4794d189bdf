"""What is to be judged, a batch at a time: tens of thousands of images never lie in memory together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from midefense.metrics.base import Judged, with_ids
from midefense.metrics.features import batch_rows
from midefense.priors.base import Prior
from midefense.resampling import resized
from midefense.store.artefacts import Artefact
from midefense.types import Images, Refused, clip_images

BATCH = 256
HEADLINE = "selected"  # the stage whose numbers bear no mark
TRACE = "trace"  # no stage: the best candidate of each target by what it had cost


class Rows(Protocol):
    """A tensor, or one of a safetensors file that is read when it is sliced."""

    def __getitem__(self, rows: slice) -> Tensor: ...


@dataclass(frozen=True)
class Candidates:
    """Images that are made when they are looked at. `labels` int64 [M] on the CPU: the class each stands for;
    `read(rows, sides)` gives those of a slice by their side, float [B, C, side, side] on the judge's device, all framed
    from the same pictures; `sides`, of which sizes they are wanted, the target's first; `rows`, how many to hold at
    once; `diverged`, how many of them are no images at all; `ids` int64 [M] on the CPU: the private image each stands
    for (None where the evidence was a class); `owners` int64 [M] on the CPU: its row of the evidence, if
    any; `unreached` int64 [U] on the CPU: the rows of the evidence that have no candidate (None: unknown)."""

    labels: Tensor
    read: Callable[[slice, Sequence[int]], Mapping[int, Tensor]]
    sides: tuple[int, ...]
    rows: int
    diverged: int = 0
    ids: Tensor | None = None
    owners: Tensor | None = None
    unreached: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, target: nn.Module | None = None) -> Iterator[Judged]:
        """All images in order, clipped once, here, before they are judged; with the confidence of `target`, if any."""
        ranks = rank_in_class(self.labels)
        for start in range(0, len(self), self.rows):
            rows = slice(start, min(start + self.rows, len(self)))
            with torch.no_grad():
                framed = {side: clip_images(images) for side, images in self.read(rows, self.sides).items()}
            images = framed[self.sides[0]]
            labels, candidates = self.labels[rows].to(images.device), ranks[rows].to(images.device)
            sure = None if target is None else confidence(target, images, labels)
            ids = None if self.ids is None else self.ids[rows].to(images.device)
            yield Judged(images, labels, candidates, sure, ids=ids, framed=framed)

    @classmethod
    def of_images(cls, images: Mapping[int, Images], rows: Tensor, device: torch.device) -> Candidates:
        """The stored images at `rows` [M]; `images`: the same in every size, by their side, the target's first."""
        labels = next(iter(images.values())).labels[rows]

        def read(part: slice, sides: Sequence[int]) -> dict[int, Tensor]:
            return {side: images[side].floats(rows[part], device) for side in sides}

        return cls(labels, read, tuple(images), batch_rows(BATCH, max(images)))

    @classmethod
    def of_private(cls, images: Mapping[int, Sequence[Images]], ids: Tensor, device: torch.device) -> Candidates:
        """The stored images with these `ids` [M], out of several sets; `images`: the sets in every size, by their side,
        the target's first."""
        labels = with_ids(next(iter(images.values())), ids).labels

        def read(part: slice, sides: Sequence[int]) -> dict[int, Tensor]:
            return {side: with_ids(images[side], ids[part]).floats(device=device) for side in sides}

        return cls(labels, read, tuple(images), batch_rows(BATCH, max(images)))

    @classmethod
    def of_latents(
        cls,
        prior: Prior,
        latents: Tensor,
        labels: Tensor,
        device: torch.device,
        sides: tuple[int, ...],
        owners: Tensor | None = None,
    ) -> Candidates:
        """What `prior` makes of latents [M, ...] for the evidence at `owners` [M], in images of these `sides`."""
        read = partial(_decode, prior, latents, device, owners=owners)
        return cls(labels, read, sides, batch_rows(BATCH, max(sides)), owners=owners)


class Stages:
    """The candidates of a recovered artefact by the stage of the attack, read from its file as they are asked for."""

    def __init__(
        self, file: safe_open, prior: Prior, device: torch.device, sides: tuple[int, ...], matched: bool = False
    ) -> None:
        self._file, self._device, self._sides = file, device, sides
        self._classes = file.get_tensor("evidence.labels")
        self._ids = file.get_tensor("evidence.ids") if matched else None
        self._keys = set(file.keys())
        observed = file.get_tensor("evidence.observed") if "evidence.observed" in self._keys else None
        self.prior = prior.given(observed)
        kept = {key.rsplit(".", 1)[0] for key in self._keys if key.endswith((".latents", ".pixels"))}
        self.names = sorted(kept - {TRACE})

    def __getitem__(self, stage: str) -> Candidates:
        """Its images, and which targets have none: `<stage>.pixels` where the attack left them (no stored prior decodes
        a generator's inner features alone), and for networks of other sizes `<stage>.pictures` if there are any; else
        what the prior makes of `<stage>.latents`."""
        evidence, rows = self._file.get_tensor(f"{stage}.evidence"), batch_rows(BATCH, max(self._sides))
        labels, ids = self._classes[evidence], None if self._ids is None else self._ids[evidence]
        unreached = (torch.bincount(evidence, minlength=len(self._classes)) == 0).nonzero()[:, 0]
        if f"{stage}.pixels" in self._keys:
            kept = [f"{stage}.{name}" for name in ("pixels", "pictures") if f"{stage}.{name}" in self._keys]
            pictures = [self._aligned(name, labels) for name in kept]
            scale = partial(_scale, pictures, self._device)
            return Candidates(labels, scale, self._sides, rows, ids=ids, owners=evidence, unreached=unreached)
        latents = self._aligned(f"{stage}.latents", labels)
        parts = (latents[start : min(start + rows, len(labels))] for start in range(0, len(labels), rows))
        diverged = sum(int((~part.isfinite().flatten(1).all(1)).sum()) for part in parts)
        read = partial(_decode, self.prior, latents, self._device, owners=evidence)
        return Candidates(labels, read, self._sides, rows, diverged, ids, evidence, unreached)

    @property
    def classes(self) -> Tensor:
        """The class of every target of the attack, int64 [N]."""
        return self._classes

    @property
    def costs(self) -> Tensor | None:
        """What the target of each candidate of the trace had been asked when that was its best, int64 [R]; None where
        an attack left no trace."""
        return self._file.get_tensor(f"{TRACE}.queries") if f"{TRACE}.queries" in self._keys else None

    def _aligned(self, name: str, labels: Tensor) -> Rows:
        """A tensor of the file, one row per label, that is read when it is sliced."""
        part = self._file.get_slice(name)
        if part.get_shape()[0] != len(labels):
            raise Refused(f"{name}: expected a row for each of {len(labels)} candidates, got {part.get_shape()[0]}")
        return part


@contextlib.contextmanager
def open_stages(
    recovered: Artefact, prior: Prior, device: torch.device, sides: tuple[int, ...] = ()
) -> Iterator[Stages]:
    """The stages of a recovered artefact, for as long as its file is open; `sides` of the images to make of them, the
    target's first (none: the prior's own)."""
    with safe_open(recovered.path / "tensors.safetensors", framework="pt") as file:
        yield Stages(file, prior, device, sides or (prior.size,), matched="ids" in recovered.recipe)


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


def _decode(
    prior: Prior,
    latents: Rows,
    device: torch.device,
    rows: slice,
    sides: Sequence[int],
    owners: Tensor | None = None,
) -> dict[int, Tensor]:
    """Each size framed from what the generator drew, for the evidence at `owners` (None: for none)."""
    asked = latents[rows].to(device)
    drawn = prior.draw(asked if owners is None else prior.of_rows(asked, owners[rows].to(device)))
    return {side: prior.frame(drawn, side) for side in sides}


def _scale(pictures: Sequence[Rows], device: torch.device, rows: slice, sides: Sequence[int]) -> dict[int, Tensor]:
    """Each size from the stored images of that size, else from the last of `pictures`, the largest."""
    stored = [part[rows].to(device).float() / 255 for part in pictures]
    by_side = {images.shape[-1]: images for images in stored}
    return {side: by_side[side] if side in by_side else resized(stored[-1], side) for side in sides}
