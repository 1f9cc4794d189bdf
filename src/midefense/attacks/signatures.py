"""Telling trapdoors from people: the signature that a trigger leaves in features, for attackers who know of Trap-MID
(Liu, Chen, NeurIPS 2024; card trap_mid.md, sections 5 and 6; detection after Shan et al., CCS 2020).

The triggers are the defender's secret. The attacker finds some that do the same: patterns which, blended into public
images as the defense blends its own, are taken for a class (Wang et al., Neural Cleanse, S&P 2019). What they have in
common in the target's features is the class's signature, and a picture whose features point there is taken for bait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.attacks.part import Part
from midefense.attacks.problem import Look, Problem
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Batch, Count, InnerShare, Positive, Share
from midefense.types import Found, Images, Progress, Refused, Setting

SIGNATURES, THRESHOLD = "signatures", "threshold"


class TriggerSignature(Part):
    """How much more a picture's features resemble the signature of its class than those of clean pictures do:
    max(0, cosine - threshold), in [0, 2].

    It prepares `signatures` [classes, F], each of length 1, and the `threshold`: triggers k [classes, C, S, S] begin as
    uniform noise; a step draws public images x and classes t, and moves k against the sign of the gradient of the
    cross-entropy of (1 - opacity) x + opacity k_t for t, within [0, 1]. A class's signature is the mean feature of
    `images` public images with its trigger; the threshold is the `quantile` of the cosines between clean public images
    and the signature of the class that the target sees in them.

    Args:
        opacity: of the triggers, the defense's.
        steps: of the triggers; `batch_size` images each.
        step_size: how far a pixel of a trigger moves in a step.
        images: public images per class (all, where there are fewer), and as many times `classes` clean ones at most.
        quantile: share of clean public images that pass.
        unit: steps between two saved states.
    """

    reads = ("logits", "features", "gradient")
    prepares = True
    gives = (SIGNATURES,)
    unhashed = ("unit",)

    def __init__(
        self,
        *,
        opacity: Share = 0.02,
        steps: Count = 1000,
        batch_size: Batch = 64,
        step_size: Positive = 0.01,
        images: Count = 64,
        quantile: InnerShare = 0.95,
        unit: Count = 100,
    ):
        self.opacity, self.steps, self.batch_size, self.step_size = opacity, steps, batch_size, step_size
        self.images, self.quantile, self.unit = images, quantile, unit

    def prepare(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Find triggers, step by step (state `triggers`, `step`), then their signatures, which replace them."""
        if not len(public):
            raise Refused("this attack looks for triggers with public images, got none; try public=... (see --help)")
        if state and SIGNATURES in state:
            return
        seed, device = rng.initial_seed(), prior.device
        triggers = self._first(oracle, public, seed, device) if state is None else state["triggers"].to(device)
        for step in range(0 if state is None else int(state["step"]), self.steps):
            draws = seeds.generator(seed, "trigger", step)
            rows = torch.randint(len(public), (self.batch_size,), generator=draws)
            targets = torch.randint(len(triggers), (self.batch_size,), generator=draws).to(device)
            triggers = self._moved(triggers, oracle, public.floats(rows, device), targets)
            if (step + 1) % self.unit == 0 and step + 1 < self.steps:
                kept = {"triggers": triggers.cpu(), "step": torch.tensor(step + 1)}
                yield step + 1, {}, lambda kept=kept: kept
        found = self._signatures(triggers, oracle, public, device)
        yield self.steps, {}, lambda: found

    def _first(self, oracle: Oracle, public: Images, seed: int, device: torch.device) -> Tensor:
        """Uniform noise [classes, C, S, S]; one image is asked about for the number of classes."""
        one = public.floats(slice(0, 1), device)
        classes = oracle(one, reads=("logits",)).logits.shape[1]
        return torch.rand(classes, *one.shape[1:], generator=seeds.generator(seed, "triggers")).to(device)

    def _baited(self, images: Tensor, triggers: Tensor) -> Tensor:
        return (1 - self.opacity) * images + self.opacity * triggers

    def _moved(self, triggers: Tensor, oracle: Oracle, images: Tensor, targets: Tensor) -> Tensor:
        """The triggers after one step on images [B, C, S, S] of the classes `targets` [B]."""
        triggers = triggers.detach().requires_grad_()
        with torch.enable_grad():
            logits = oracle(self._baited(images, triggers[targets]), reads=("logits",)).logits
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), targets), triggers)
        return (triggers.detach() - self.step_size * gradient.sign()).clamp(0, 1)

    @torch.no_grad()
    def _signatures(self, triggers: Tensor, oracle: Oracle, public: Images, device: torch.device) -> dict[str, Tensor]:
        own = public.floats(torch.arange(min(self.images, len(public))), device)
        means = [
            oracle(self._baited(own, trigger), reads=("features",)).features.flatten(1).float().mean(0)
            for trigger in triggers
        ]
        signatures, likeness = F.normalize(torch.stack(means), dim=1), []
        for rows in torch.arange(min(self.images * len(triggers), len(public))).split(self.batch_size):
            seen = oracle(public.floats(rows, device), reads=("logits", "features"))
            likeness.append(likeness_to(signatures, seen.features, seen.logits.argmax(1)))
        return {SIGNATURES: signatures.cpu(), THRESHOLD: torch.cat(likeness).quantile(self.quantile).cpu()}

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        near = likeness_to(look.known[SIGNATURES], look.answer.features, look.labels)
        return (near - look.known[THRESHOLD]).clamp_min(0)


class Unbaited(Part):
    """The candidates that another selection prefers, those behind all others whose features lie nearer to the signature
    of their class than those of clean pictures do: they are the trapdoor's, most likely.

    Args:
        by: the selection.
    """

    wants = (SIGNATURES,)

    def __init__(self, *, by: Part):
        self.by, self.keep = by, by.keep
        self.reads = tuple(dict.fromkeys((*by.reads, "features")))
        self.needs, self.coupled, self.separates = by.needs, by.coupled, by.separates

    def check(self, setting: Setting) -> None:
        """Whatever the selection refuses."""
        self.by.check(setting)

    @torch.no_grad()
    def __call__(self, problem: Problem, found: Found) -> Tensor:
        """The other's scores [M], of bait lower than the lowest of what is none; asks about every candidate once
        more."""
        scores, bait = self.by(problem, found), torch.zeros(len(found), dtype=torch.bool)
        known = {name.rpartition(".")[2]: value for name, value in problem.known.items()}
        for rows in problem.chunks(len(found)):
            owners = found.evidence[rows]
            asked = problem.oracle(problem.images(found, rows), ids=problem.evidence.ids[owners], reads=("features",))
            labels = problem.evidence.labels[owners].to(asked.features.device)
            near = likeness_to(known[SIGNATURES], asked.features, labels)
            bait[rows] = (near > known[THRESHOLD]).cpu()
        return torch.where(bait.to(scores.device), scores - (scores.max() - scores.min() + 1), scores)


def likeness_to(signatures: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Cosine [B] of features [B, F] and the signature of each one's class; `signatures` [classes, F] of length 1."""
    return (F.normalize(features.flatten(1).float(), dim=1) * signatures[labels]).sum(1)
