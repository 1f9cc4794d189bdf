"""Network inversion: a generator that is told a label learns what the target takes for its classes (Suhail and Sethi,
arXiv 2407.18002), and, told to, which images its weights are the sum of gradients at (2410.16884, 2502.00760; card
network_inversion.md, sections 4.2 to 4.7). Nothing is known of images: the weights are all there is to learn from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import Attack, best_of_each
from midefense.attacks.inversion_terms import (
    Perturbation,
    Scene,
    StationaryWeights,
    WeightedTerm,
    in_front_of_norms,
)
from midefense.attacks.part import Part
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Batch, Count, Draws, InnerShare, Positive
from midefense.training_state import load_training, training_state, within
from midefense.types import Answer, Evidence, Found, Images, Progress, Question, Refused, Setting, refuse_unknown

LABELS = ("balanced", "uniform", "soft")
MULTIPLIERS = ("softplus", "squares")
WEIGHINGS = ("none", "switch", "gated", "balanced")
LEAST_MEDIAN = 1e-8  # of losses
LEAST_START = 0.01  # added to what squares of multipliers start from


class Weighing(Part):
    """How the weights of the losses move while the generator learns.

    Args:
        kind: `none`; `switch`: losses of the images as they are up to a step, and of perturbed ones from it on;
            `gated`: where the target recognises more than a share of the batch, the perturbed ones alone and no
            smoothness, else the images as they are, so many times; `balanced`: each weight times the median of all
            losses over its own, within limits. The authors' code has the last three, switched off.
        step: of `switch`.
        accuracy, factor: the share and the factor of `gated`.
        limit: `balanced` factors lie within [1/limit, limit].
    """

    def __init__(
        self,
        *,
        kind: str = "none",
        step: Count = 400,
        accuracy: InnerShare = 0.9,
        factor: Positive = 10.0,
        limit: Positive = 10.0,
    ):
        if kind not in WEIGHINGS:
            raise refuse_unknown("attack.weighing.kind", kind, WEIGHINGS)
        if limit < 1:
            raise Refused(f"attack.weighing.limit: expected 1 or more, got {limit}; try 10")
        self.kind, self.step, self.accuracy, self.factor, self.limit = kind, step, accuracy, factor, limit

    def factors(self, roles: Mapping[str, str], values: Mapping[str, Tensor], scene: Scene, step: int) -> list:
        """What each loss's weight is multiplied by, in the order of `roles`; `values` are the losses of this step."""
        if self.kind == "balanced":
            losses = torch.stack([values[name].detach() for name in roles])
            return list((losses.median().clamp(min=LEAST_MEDIAN) / losses).clamp(1 / self.limit, self.limit))
        if self.kind == "switch":
            idle = "perturbed" if step < self.step else "clean"
            return [float(role != idle) for role in roles.values()]
        if self.kind == "gated":
            sure = scene.accuracy() > self.accuracy
            unsure = (~sure).float()
            by_role = {"clean": self.factor * unsure, "perturbed": sure.float(), "smoothness": unsure}
            return [by_role.get(role, 1.0) for role in roles.values()]
        return [1.0] * len(roles)


class Bank(nn.Module):
    """What is learnt beside the generator: a multiplier for each image of a batch, and, where the batch is always the
    same, its latents and labels.

    `raw` numbers, of any sign, become multipliers by their squares or by softplus, in units of `unit`.
    """

    def __init__(self, form: str, raw: Tensor | None, latents: Tensor | None, labels: Tensor | None):
        super().__init__()
        self.form = form
        self.raw = None if raw is None else nn.Parameter(raw)
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("latents", latents)
        self.register_buffer("labels", labels)

    def multipliers(self) -> Tensor | None:
        """Not negative; None where there are none."""
        if self.raw is None:
            return None
        return self.unit * (self.raw.square() if self.form == "squares" else F.softplus(self.raw))

    @staticmethod
    def start(form: str, uniform: Tensor) -> Tensor:
        """The raw numbers of multipliers that start as `uniform` numbers in [0, 1]; squares .01 above (the authors)."""
        if form == "squares":
            return (uniform + LEAST_START).sqrt()
        return uniform.clamp(min=1e-3).expm1().log()


@dataclass
class Wanted:
    """What a batch is asked for: `latents` [B, n], `labels` int64 [B] and how much of each class, `shares`
    [B, classes]."""

    latents: Tensor
    labels: Tensor
    shares: Tensor


@dataclass
class Apprentice:
    """The generator while it learns: who is asked, what learns, and what moves it."""

    attack: NetworkInversion
    generator: nn.Module
    bank: Bank
    optimizers: dict[str, torch.optim.Optimizer]
    ask: Callable[..., Answer]
    theta: Mapping[str, Tensor]
    normed: frozenset[str]

    def scene(self, wanted: Wanted, signs: Tensor | None) -> Scene:
        """What the losses of a step see."""
        return Scene(
            images=self.generator(wanted.latents, wanted.shares),
            labels=wanted.labels,
            wanted=wanted.shares,
            ask=self.ask,
            signs=signs,
            perturb=self.attack.perturbation,
            theta=self.theta,
            multipliers=self.bank.multipliers(),
            normed=self.normed,
            generator=self.generator,
        )

    def update(self, wanted: Wanted, signs: Tensor | None, step: int) -> dict[str, Tensor]:
        """One step: the losses by name, their weighted sum as `loss`, and the `accuracy`."""
        scene = self.scene(wanted, signs)
        values = {name: term.loss(scene) for name, term in self.attack.terms.items()}
        roles = {name: term.loss.role for name, term in self.attack.terms.items()}
        factors = self.attack.weighing.factors(roles, values, scene, step)
        weights = [term.at(step) for term in self.attack.terms.values()]
        terms = zip(weights, factors, values.values(), strict=True)
        loss = torch.stack([weight * factor * value for weight, factor, value in terms]).sum()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        seen = {name: value.detach() for name, value in values.items()}
        return {"loss": loss.detach(), **seen, "accuracy": scene.accuracy()}


class NetworkInversion(Attack):
    """A generator conditioned on labels learns from the target alone; what it then makes of each class is found.

    It learns once for all targets, and all it asks is on the shared bill. Its images are those of no stored prior:
    they are kept as pixels (latents are images).

    Args:
        generator: a partial of one of `priors.nets.network_inversion`, told classes, channels and size.
        terms: the losses by name, each a `WeightedTerm`; a name set to null is left out.
        optimizer, multiplier_optimizer: partial torch optimisers of the generator, and of multipliers.
        weighing: how weights of losses move.
        perturbation: what perturbed images are.
        steps: updates.
        batch_size: images of an update.
        labels: those of a batch: `balanced` over the classes, `uniform` at random, or `soft`: the softmax of normal
            numbers, of which the largest is the label.
        bank: images of each class in a fixed batch, the same latents and labels in every step, so that an image has a
            multiplier of its own: twice the training images. None draws a batch anew in every step; a multiplier then
            belongs to a place in the batch, which is to say to nothing (the authors' code).
        multipliers: `softplus` of free numbers, or `squares` (the authors').
        raw_input: the mean and the deviation of the target's own normalisation, which is undone so that the target sees
            the generator's numbers as they are, as in the authors' code; None hands images over as images.
        candidates: images per class at the end; of a bank, all of it instead.
        unit: steps between two saved states.
        access, budget, group: see `Attack`.
    """

    needs = ("pixels",)
    prepares = True
    asks_question = True
    steps = 5
    unhashed = ("unit",)

    def __init__(
        self,
        *,
        generator: Callable[..., nn.Module],
        terms: Mapping[str, WeightedTerm | None],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        multiplier_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        weighing: Weighing,
        perturbation: Perturbation,
        steps: Count = 10_000,
        batch_size: Batch = 1000,
        labels: str = "balanced",
        bank: Draws | None = None,
        multipliers: str = "softplus",
        raw_input: tuple[float, Positive] | None = None,
        candidates: Draws = 100,
        unit: Count = 100,
        access: str = "whitebox",
        budget: Count | None = None,
        group: Count = 1000,
    ):
        super().__init__(access=access, budget=budget, group=group)
        self.terms = {name: term for name, term in terms.items() if term is not None}
        if not self.terms:
            raise Refused("attack.terms: expected at least one loss, got none; try attack=network_inversion as it is")
        for what, value, choices in (("labels", labels, LABELS), ("multipliers", multipliers, MULTIPLIERS)):
            if value not in choices:
                raise refuse_unknown(f"attack.{what}", value, choices)
        for name, term in self.terms.items():
            self.access.require(term.loss.reads, f"attack.terms.{name}")
        self.access.require(("logits", "gradient"), "attack (NetworkInversion)")
        stationary = [term.loss.distance for term in self.terms.values() if isinstance(term.loss, StationaryWeights)]
        if len(stationary) > 1:
            raise Refused(
                "attack.terms: expected one loss of stationarity at most, as they would share multipliers, got "
                f"{len(stationary)}; try null for the others"
            )
        if bank is not None and labels != "balanced":
            raise Refused(
                f"attack.labels: expected balanced for a fixed bank, whose labels are drawn once, got {labels}; "
                "try attack.bank=null"
            )
        self.distance = stationary[0] if stationary else None
        self.gate = self.distance.gate if self.distance else None
        self.generator, self.optimizer, self.multiplier_optimizer = generator, optimizer, multiplier_optimizer
        self.weighing, self.perturbation = weighing, perturbation
        self.updates, self.batch_size, self.labels, self.bank = steps, batch_size, labels, bank
        self.multipliers, self.raw_input, self.candidates, self.unit = multipliers, raw_input, candidates, unit
        self.by_weights = any(term.loss.by_weights for term in self.terms.values())
        self.perturbs = any(term.loss.role == "perturbed" for term in self.terms.values())
        self.taps = tuple(dict.fromkeys(tap for term in self.terms.values() for tap in term.loss.taps))
        reads = dict.fromkeys(["logits", *(read for term in self.terms.values() for read in term.loss.reads)])
        self.reads = tuple(read for read in reads if read not in ("gradient", "weights"))

    def check(self, setting: Setting) -> None:
        """As `Attack.check`, and whatever a loss refuses; refused for evidence of private images, one by one."""
        super().check(setting)
        evidence = setting.evidence
        if evidence.points_at == "image":
            raise Refused(
                f"evidence: expected the weights or class labels, got {evidence.kind}, as this attack makes images of "
                "classes; try evidence=weights"
            )
        for term in self.terms.values():
            term.loss.check(setting)

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """What it learns does not depend on how many images are then made."""
        return {name: value for name, value in recipe.items() if name not in ("candidates", "budget", "group")}

    # Learning

    def prepare(
        self,
        prior: Prior,
        oracle: Oracle,
        public: Images,
        rng: torch.Generator,
        state: dict[str, Tensor] | None,
        question: Question | None = None,
    ) -> Iterator[Progress]:
        """Learn. Step s draws everything under a key of s, so that work that goes on from a saved state draws what the
        uninterrupted one did. Yields every `unit` steps and at the end."""
        apprentice = self.apprentice(oracle, question, rng, prior.device, fresh=not state)
        networks = {"generator": apprentice.generator, "bank": apprentice.bank}
        done, seed = load_training(state, networks, apprentice.optimizers), rng.initial_seed()
        seen: list[dict[str, Tensor]] = []
        for step in range(done, self.updates):
            draws = seeds.generator(seed, "batch", step)
            with seeds.isolated(seed, "learn", step):
                wanted = self._batch(apprentice, question, draws, prior.device)
                signs = self._signs(prior, len(wanted.labels), draws)
                seen.append(apprentice.update(wanted, signs, step))
            if (step + 1) % self.unit == 0 or step + 1 == self.updates:
                logs = {name: float(torch.stack([one[name] for one in seen]).mean()) for name in seen[0]}
                seen.clear()
                yield step + 1, logs, training_state(networks, apprentice.optimizers, step + 1)

    def apprentice(
        self, oracle: Oracle, question: Question, rng: torch.Generator, device: torch.device, fresh: bool = True
    ) -> Apprentice:
        """The generator and the multipliers as they start, if `fresh`; else as they are about to be loaded."""
        generator = self._built(rng, question.classes).to(device).train()
        theta = {name: value.requires_grad_() for name, value in oracle.parameters().items()} if self.by_weights else {}
        buffers = [name for name in oracle.weights() if name not in theta] if theta else []
        ask = functools.partial(self._ask, oracle)
        bank = self._bank(generator, question, rng).to(device)
        optimizers = {"generator": self.optimizer(list(generator.parameters()))}
        if bank.raw is not None:
            optimizers["bank"] = self.multiplier_optimizer([bank.raw])
        normed = in_front_of_norms(list(theta), buffers)
        apprentice = Apprentice(self, generator, bank, optimizers, ask, theta, normed)
        if fresh and bank.raw is not None:
            bank.unit.fill_(self._unit(apprentice, question, rng, device))
        return apprentice

    def _built(self, rng: torch.Generator, classes: int) -> nn.Module:
        """A generator that learned nothing, on the CPU, whose weights `rng` decides."""
        with seeds.isolated(rng.initial_seed(), "generator"):
            generator = self.generator()
        if generator.classes != classes:
            raise Refused(
                f"attack.generator.classes: expected the target's {classes}, got {generator.classes}; leave it out"
            )
        return generator

    def _bank(self, generator: nn.Module, question: Question, rng: torch.Generator) -> Bank:
        draws = seeds.fork(rng, "bank")
        latents = labels = raw = None
        count = self.batch_size
        if self.bank is not None:
            labels = question.labels.repeat_interleave(self.bank)
            latents, count = torch.randn(len(labels), generator.latent_size, generator=draws), len(labels)
        if self.distance is not None:
            uniform = self.distance.multipliers(count, question.classes, draws, torch.float32)
            raw = None if uniform is None else Bank.start(self.multipliers, uniform)
        return Bank(self.multipliers, raw, latents, labels)

    @torch.no_grad()
    def _unit(self, apprentice: Apprentice, question: Question, rng: torch.Generator, device: torch.device) -> float:
        """In what multipliers count, so that the sum over what a fresh generator makes is about as long as the
        weights."""
        if self.distance.start == "uniform":
            return 1.0
        with seeds.isolated(rng.initial_seed(), "unit"):
            wanted = self._batch(apprentice, question, seeds.fork(rng, "unit"), device)
            images = apprentice.generator(wanted.latents, wanted.shares)
        multipliers = apprentice.bank.multipliers()
        theta = {name: value for name, value in apprentice.theta.items() if name not in apprentice.normed}
        with torch.enable_grad():
            return self.distance.unit(
                theta,
                lambda rows, weights: apprentice.ask(images[rows], apprentice.theta).logits,
                wanted.labels,
                multipliers,
            )

    def _batch(
        self, apprentice: Apprentice, question: Question, draws: torch.Generator, device: torch.device
    ) -> Wanted:
        """What a step asks for: the bank, or a batch drawn anew."""
        classes = question.classes
        if self.bank is not None:
            labels = apprentice.bank.labels
            return Wanted(apprentice.bank.latents, labels, F.one_hot(labels, classes).float())
        latents = torch.randn(self.batch_size, apprentice.generator.latent_size, generator=draws)
        if self.labels == "soft":
            shares = torch.randn(self.batch_size, classes, generator=draws).softmax(1)
            labels = shares.argmax(1)
        else:
            labels = question.labels[self._places(len(question.labels), draws)]
            shares = F.one_hot(labels, classes).float()
        return Wanted(latents.to(device), labels.to(device), shares.to(device))

    def _places(self, count: int, draws: torch.Generator) -> Tensor:
        """Which of `count` labels each image of a batch gets; balanced ones begin anywhere, so that none has more."""
        if self.labels == "uniform":
            return torch.randint(count, (self.batch_size,), generator=draws)
        return (torch.arange(self.batch_size) + torch.randint(count, (), generator=draws)) % count

    def _signs(self, prior: Prior, count: int, draws: torch.Generator) -> Tensor | None:
        """Up or down, for every pixel; None where no loss perturbs."""
        if not self.perturbs:
            return None
        return torch.randn(count, prior.channels, prior.size, prior.size, generator=draws).sign().to(prior.device)

    def _ask(self, oracle: Oracle, images: Tensor, weights: Mapping[str, Tensor] | None, ids=None) -> Answer:
        """The target's answer about what the generator made; on the shared bill, where no targets are named."""
        if self.raw_input is not None:
            mean, deviation = self.raw_input
            images = images * deviation + mean
        own, gate = (dict(weights), self.gate) if weights else (None, None)
        return oracle(images, ids, self.reads, own, gate, self.taps)

    # What it has learnt

    def recover(
        self, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
    ) -> Iterator[Found]:
        """What a generator that learned nothing makes of the same latents, as `initial`, and what this one does, as
        `optimised` and, by the target's confidence, `selected`. The loss of an image is -log p_y."""
        generator = self._loaded(state, prior.device)
        owners, latents = self._candidates(state, evidence, generator, rng)
        untrained = self._built(rng, generator.classes).to(prior.device).eval().requires_grad_(False)
        for stage, network in (("initial", untrained), ("optimised", generator)):
            images = self._images(network, latents, evidence.labels[owners], prior.device)
            found = Found(images, torch.full((len(owners),), torch.nan), owners, stage)
            yield found
            found = Found(images, self._losses(oracle, evidence, owners, images), owners, stage)
            yield found
        yield best_of_each(found, (-found.loss).exp(), None)

    def _loaded(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        with seeds.isolated("loaded"):  # any weights: they are replaced
            generator = self.generator()
        generator.load_state_dict(within(state, "generator."))
        return generator.to(device).eval().requires_grad_(False)

    def _candidates(
        self, state: Mapping[str, Tensor], evidence: Evidence, generator: nn.Module, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The row of the evidence and the latent of each image to be made."""
        if self.bank is None:
            owners = torch.arange(len(evidence)).repeat_interleave(self.candidates)
            return owners, torch.randn(len(owners), generator.latent_size, generator=seeds.fork(rng, "candidates"))
        labels, latents = state["bank.labels"].cpu(), state["bank.latents"].cpu()
        rows = [(labels == label).nonzero()[:, 0] for label in evidence.labels]
        return torch.arange(len(evidence)).repeat_interleave(self.bank), latents[torch.cat(rows)]

    @torch.no_grad()
    def _images(self, generator: nn.Module, latents: Tensor, labels: Tensor, device: torch.device) -> Tensor:
        """Images [M, C, H, W]; a generator that learned from soft labels is asked for the softmax of one-hot ones."""
        shares = F.one_hot(labels, generator.classes).float()
        shares = shares.softmax(1) if self.labels == "soft" else shares
        pieces = zip(latents.split(self.batch_size), shares.split(self.batch_size), strict=True)
        return torch.cat([generator(piece.to(device), share.to(device)) for piece, share in pieces])

    @torch.no_grad()
    def _losses(self, oracle: Oracle, evidence: Evidence, owners: Tensor, images: Tensor) -> Tensor:
        """-log p_y of images [M]; each is charged to its target."""
        losses = []
        for rows in torch.arange(len(owners)).split(self.batch_size):
            logits = self._ask(oracle, images[rows], None, evidence.ids[owners[rows]]).logits
            labels = evidence.labels[owners[rows]].to(logits.device)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
        return torch.cat(losses)
