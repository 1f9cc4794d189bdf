"""The world as the parts of an attack see it: one group of targets, who is asked about them, and one look at that."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.chunks import Fixed, Measured, chunks_of
from midefense.attacks.part import Part
from midefense.compiling import Compiler
from midefense.oracle import Oracle
from midefense.precision import at_least_float32, mixed
from midefense.priors.base import Entrance, Prior
from midefense.training_state import within
from midefense.types import Answer, Evidence, Found, clip_images

OBJECTIVE = "objective."  # what a prepared state holds of the objective has names that begin so


@dataclass
class Look:
    """One look at candidates: `latents` [B, ...], the pictures `drawn` from them and their `images` [B, C, H, W]; what
    the target was `shown` (a view of them) and its `answer`; the `labels` [B] wanted; what the objective prepared is
    `known`; what was `observed` [B, ...] of the targets (None: nothing); the objective's `dice` [B, columns] (None: it
    wants none). The objective makes it a loss per image."""

    latents: Tensor
    drawn: Tensor
    images: Tensor
    shown: Tensor
    answer: Answer
    labels: Tensor
    prior: Prior
    known: Mapping[str, Tensor] = field(default_factory=dict)
    observed: Tensor | None = None
    dice: Tensor | None = None

    def confidence(self) -> Tensor | None:
        """How sure who was asked is of the labels wanted [B], without a gradient; None where the answer hides it. No
        question is asked for it."""
        probs, logits = self.answer.probs, self.answer.logits
        if probs is None and logits is None:
            return None
        sure = probs if probs is not None else logits.detach().float().softmax(1)
        return sure.detach().gather(1, self.labels[:, None])[:, 0]


@dataclass
class Problem:
    """The world as the parts of one group see it. `oracle` is what a part asks: the target, or, before the selection,
    a surrogate in its place. `reads` is what a look asks for, `chunk` how many images fit in memory at once (None: all,
    as where parts are coupled; `auto`: as many as the device holds). `precision` and `compiler` say how networks
    calculate where a search looks; what is chosen by is looked at without them."""

    prior: Prior
    oracle: Oracle
    evidence: Evidence
    state: Mapping[str, Tensor]
    rng: torch.Generator
    objective: Part
    views: Part | None
    reads: tuple[str, ...]
    chunk: int | str | None
    device: torch.device
    precision: str = "32-true"
    compiler: Compiler | None = None

    @classmethod
    def plain(
        cls, prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator, chunk: int | None = None
    ) -> Problem:
        """The world of one group without a search's parts, for what is done before or beside one."""
        nothing = {"state": {}, "objective": Part(), "views": None, "reads": ()}
        return cls(prior, oracle, evidence, rng=rng, chunk=chunk, device=prior.device, **nothing)

    @functools.cached_property
    def known(self) -> dict[str, Tensor]:
        """What the objective prepared, on the problem's device."""
        return {name: value.to(self.device) for name, value in within(self.state, OBJECTIVE).items()}

    @functools.cached_property
    def observed(self) -> Tensor | None:
        """What was observed of each target of the group [N, ...], on the problem's device."""
        observed = self.evidence.observed
        return None if observed is None else observed.to(self.device)

    def draw(self, purpose: str) -> torch.Generator:
        """A generator for `purpose`, the same whatever was drawn before."""
        return seeds.fork(self.rng, purpose)

    def draws_of(self, purpose: str, owners: Tensor) -> list[torch.Generator]:
        """A generator for `purpose` for each candidate, with their rows of the evidence, `owners` int64 [M], ascending:
        of its target and its place among that target's, so that it draws the same whoever else is in the group."""
        places = torch.arange(len(owners)) - torch.searchsorted(owners, owners)
        keys = zip(self.evidence.ids[owners].tolist(), places.tolist(), strict=True)
        rng = self.draw(purpose)
        return [seeds.fork(rng, f"target {target}, start {place}") for target, place in keys]

    @functools.cached_property
    def cut(self) -> Fixed | Measured:
        """How this group is cut."""
        return chunks_of(self.chunk, self.device)

    def chunks(self, count: int) -> Iterator[slice]:
        """Rows 0..count-1 in pieces that fit in memory; a piece must be done with before the next is asked for."""
        for rows in self.cut.slices(count):
            if self.compiler is not None:
                self.compiler.expect(count / len(self.evidence), self.cut.width_of)
            yield rows

    def drawn(self, *given: Tensor | None, entrance: Entrance | None = None) -> Tensor:
        """Pictures as the prior, or one of its entrances, draws what is `given`, in the search's precision."""
        draw = (self.prior if entrance is None else entrance).draw
        if self.compiler is not None:
            draw = self.compiler.of(f"picture {getattr(entrance, 'block', '')}", self.prior, draw)
        with mixed(self.precision, self.device):
            return at_least_float32(draw(*given))

    def look(
        self, latents: Tensor, owners: Tensor, views: Part | None = None, draws: object = None, reads=None
    ) -> Look:
        """Decode latents [B, ...], show the target a view of them and hear its answer.

        `owners` int64 [B] on the CPU: the evidence row of each latent; its target is charged.
        """
        return self.show(self.drawn(latents), latents, owners, views, draws, reads)

    def show(
        self,
        drawn: Tensor,
        latents: Tensor,
        owners: Tensor,
        views: Part | None = None,
        draws: object = None,
        reads=None,
        dice: Tensor | None = None,
    ) -> Look:
        """As `look`, with pictures [B, C, r, r] that were drawn already. Who reads nothing of it does not ask."""
        images = self.prior.frame(drawn)
        shown = images if views is None else views(images, draws)
        wanted, answer = self.reads if reads is None else reads, Answer()
        if wanted:
            with mixed(self.precision, self.device):
                answer = self.oracle(shown, ids=self.evidence.ids[owners], reads=wanted)
        labels = self.evidence.labels[owners].to(images.device, non_blocking=True)
        observed = None if self.observed is None else self.observed[owners.to(self.device)]
        return Look(latents, drawn, images, shown, answer, labels, self.prior, self.known, observed, dice)

    def images(self, found: Found, rows: slice, clip: bool = True) -> Tensor:
        """The images [B, C, H, W] of the candidates at `rows`, clipped, as they would be saved; or as the prior makes
        them, where there are no pixels yet, without `clip`."""
        if found.pixels is not None:
            return found.pixels[rows].to(self.device).float().div_(255)
        made = self.prior.decode(found.latents[rows])
        return clip_images(made) if clip else made.detach()


def seen(losses: Tensor, confidences: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """What a step of a search saw, for `Found.seen`: the mean of its losses [M], and of `confidences` (pieces [B] of
    those looked at), where there are any."""
    told = {"loss": losses.detach().mean()}
    known = [piece for piece in confidences if piece is not None]
    return {**told, "confidence": torch.cat(known).mean()} if known else told
