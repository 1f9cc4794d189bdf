"""An attacker with a generator who knows the defense (attack A1 of the ladder, white-box; card crafter.md, 4.8)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.decoder import some_of
from midefense.attacks.matching import distances, shares
from midefense.attacks.part import Part
from midefense.attacks.progress import passed_on
from midefense.oracle import Edge, Oracle, SharedBill
from midefense.priors.base import Prior
from midefense.ranges import Colour, Count
from midefense.training_state import load_training, training_state, within
from midefense.types import Evidence, Found, Images, Progress, Question, Refused, to_pixels

ADAPTED = "adapted."
NOT_LEARNED = ("select", "budget", "group", "chunk", "rung")  # what is done after the generator was adapted


class AdaptiveGenerator(SearchAttack):
    """The search over a generator's latents, after the generator has learned to make public images of what the deployed
    edge, its defense included, releases of them: for each batch, find latents for what was released, then move the
    generator's weights so that those latents give the images (`adaptiveUpdateG.py`).

    Its images are not those of the stored prior: they are returned as pixels beside the latents.

    Args:
        images: public images that the edge is asked about, drawn without replacement; None is all.
        epochs: passes over them (the authors': 50, of at most 50 batches each).
        batch_size: images per update of the generator.
        optimizer: a partial torch optimiser, of the generator.
        std: colour scale in which images are compared, ||(a - b) / std|| (the mean cancels).
        coupled_update: one norm over the batch, as in the authors' code; else the mean of the norms per image.
        init, objective, search, ..., rung: see `SearchAttack`.
    """

    later = {**SearchAttack.later, "rung": "A1"}
    asks_edge = True

    def __init__(
        self,
        *,
        init: Part,
        objective: Part,
        search: Part,
        select: Part,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        images: Count | None = None,
        epochs: Count = 50,
        batch_size: Count = 64,
        std: Colour = (0.229, 0.224, 0.225),
        coupled_update: bool = False,
        views: Part | None = None,
        surrogate: Part | None = None,
        access: str = "whitebox",
        budget: Count | None = None,
        group: Count = 60,
        chunk: Count | None = None,
        legacy: bool = False,
        precision: str = "32-true",
        compile: bool = False,
        channels_last: bool = False,
        purify: Part | None = None,
        rung: str | None = "A1",
    ):
        super().__init__(
            init=init,
            objective=objective,
            search=search,
            select=select,
            views=views,
            surrogate=surrogate,
            access=access,
            budget=budget,
            group=group,
            chunk=chunk,
            legacy=legacy,
            precision=precision,
            compile=compile,
            channels_last=channels_last,
            purify=purify,
            rung=rung,
        )
        self.optimizer, self.images, self.epochs, self.batch_size = optimizer, images, epochs, batch_size
        self.std = (std,) if isinstance(std, int | float) else tuple(std)
        self.coupled_update = coupled_update
        self.prepares_parts, self.prepares = self.prepares, True

    def check_prior(self, prior: Prior) -> None:
        """As `SearchAttack.check_prior`; refuses a prior that has no weights to adapt."""
        super().check_prior(prior)
        if not any(True for _ in prior.parameters()):
            raise Refused(
                f"AdaptiveGenerator moves the weights of a generator, got {type(prior).__name__}, which has none; "
                "try prior=gmi_gan_small"
            )

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """All but what is done once the generator was adapted."""
        return {name: value for name, value in recipe.items() if name not in NOT_LEARNED}

    def asked_of_edge(self, public: Images, rng: torch.Generator) -> Images:
        """`images` of them."""
        return some_of(public, self.images, seeds.fork(rng, "adapt"))

    def prepare(
        self,
        prior: Prior,
        oracle: Oracle,
        public: Images,
        rng: torch.Generator,
        state: dict[str, Tensor] | None,
        question: Question | None = None,
        edge: Edge | None = None,
    ) -> Iterator[Progress]:
        """What the parts prepare, then the generator adapts; one step is an update of it."""
        saved = state or {}
        own = {name: value for name, value in saved.items() if not name.startswith(ADAPTED)}
        done, made = 0, own
        if self.prepares_parts:
            work = super().prepare(prior, oracle, public, rng, own or None, question)
            done, made = yield from passed_on(work, "", own, 0, {})
        known = within(saved, ADAPTED)
        chosen, draws = self.asked_of_edge(public, rng), seeds.fork(rng, "adapt")
        work = self._adapt(prior, SharedBill(oracle), chosen, draws, known, edge, made)
        yield from passed_on(work, ADAPTED, known, done, made)

    def _adapt(
        self,
        prior: Prior,
        oracle: SharedBill,
        chosen: Images,
        rng: torch.Generator,
        state: Mapping[str, Tensor],
        edge: Edge,
        prepared: Mapping[str, Tensor],
    ) -> Iterator[Progress]:
        """The generator's updates, towards the images `chosen` of which it is asked what leaves the edge. Step s draws
        everything under a key of s."""
        released = edge(chosen)
        prior = copy.deepcopy(prior).eval().requires_grad_(True)
        optimizers = {"prior": self.optimizer(list(prior.parameters()))}
        seed, width = rng.initial_seed(), min(self.batch_size, len(chosen))
        batches = len(chosen) // width
        for step in range(load_training(state, {"prior": prior}, optimizers), self.epochs * batches):
            order = torch.randperm(len(chosen), generator=seeds.generator(seed, "epoch", step // batches))
            rows = order[(step % batches) * width :][:width]
            # of public images the attacker knows no label, and needs none
            evidence = Evidence(torch.zeros(width, dtype=torch.int64), torch.arange(width), released[rows])
            draws = seeds.generator(seed, "search", step)
            latents = self._found(prior.requires_grad_(False), oracle, evidence, draws, prepared)
            loss = self._update(prior.requires_grad_(True), latents, chosen.floats(rows, prior.device), optimizers)
            yield step + 1, {"loss": loss}, training_state({"prior": prior}, optimizers, step + 1)

    def _found(
        self,
        prior: Prior,
        oracle: SharedBill,
        evidence: Evidence,
        rng: torch.Generator,
        prepared: Mapping[str, Tensor],
    ) -> Tensor:
        """The best latent of each target [N, ...], as the attack finds it, without a gradient."""
        found = None
        for found in super().recover(prepared, prior, oracle, evidence, rng):  # noqa: B007
            pass
        first = torch.searchsorted(found.evidence, torch.arange(len(evidence)))
        return found.latents[first.to(found.latents.device)].detach()

    def _update(self, prior: Prior, latents: Tensor, images: Tensor, optimizers: Mapping) -> float:
        """One step of the generator towards `images`; the loss before it."""
        each = scaled_distances(prior.decode(latents), images, self.std)
        loss = shares(each).sum() if self.coupled_update else each.mean()
        optimizers["prior"].zero_grad()
        loss.backward()
        optimizers["prior"].step()
        return float(loss.detach())

    def recover(
        self, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
    ) -> Iterator[Found]:
        """As `SearchAttack.recover`; the pixels are those that the adapted generator makes (`Found.pictured`)."""
        adapted = copy.deepcopy(prior)
        adapted.load_state_dict(within(state, f"{ADAPTED}prior."))

        @torch.no_grad()
        def pixels(latents: Tensor) -> Tensor:
            pieces = latents.to(adapted.device).split(self.batch_size)
            return torch.cat([to_pixels(adapted.decode(piece)) for piece in pieces])

        for found in super().recover(state, adapted.eval().requires_grad_(False), oracle, evidence, rng):
            yield replace(found, decoder=pixels)


def scaled_distances(left: Tensor, right: Tensor, std: tuple[float, ...]) -> Tensor:
    """||(left - right) / std|| per image [B], of images [B, C, H, W]; grey images get the mean of several `std`."""
    scale = torch.tensor(std, dtype=left.dtype, device=left.device)
    scale = scale if len(scale) == left.shape[1] else scale.mean()
    scale = scale.view(-1, 1, 1)
    return distances(left / scale, right / scale, "l2")
