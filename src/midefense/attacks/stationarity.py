"""Reconstruct training images from weights: those of a classifier trained for long are a weighted sum of gradients at
its training images (Haim et al., NeurIPS 2022; Buzaglo et al., NeurIPS 2023; card network_inversion.md, 4.4 and 4.5).

A homogeneous network that gradient flow trained to a small loss points where the Karush-Kuhn-Tucker conditions of the
largest margin hold (Lyu and Li, ICLR 2020): theta = sum_i sum_{j != y_i} lambda_ij grad (z_{y_i} - z_j)(x_i) with
lambda >= 0. Any network that weight decay holds at rest fulfils theta = -1/(n wd) sum_i grad loss_i. Images and
multipliers for which this holds are searched for; nothing else is known of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.attacks.base import Attack, best_of_each
from midefense.attacks.part import Part
from midefense.attacks.schedules import Schedule, paced
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Count, Draws, NotNegative, Positive
from midefense.types import Evidence, Found, Refused, Setting, refuse_unknown

Weights = Mapping[str, Tensor]
Ask = Callable[[slice, Weights], Tensor]  # the logits [B, classes] of the images of a slice, under these weights

STARTS = ("projected", "uniform")
COEFFICIENTS = ("all_pairs", "runner_up", "weight_decay")
PRECISIONS = {"64-true": torch.float64, "32-true": torch.float32}
# As recipes hold them, and as they were once written: artefacts keep the ids that they have.
STORED_PRECISIONS = {"64-true": "float64", "32-true": "float32"}
FORMER_PRECISIONS = {stored: name for name, stored in STORED_PRECISIONS.items()}


def pair_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the logit of the label is above each other one [B, classes]; 0 at the label itself."""
    return logits.gather(1, labels[:, None]) - logits


def runner_up_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the logit of the label is above the largest other one [B]."""
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


def squared_norm(theta: Weights) -> Tensor:
    """The sum of squares of all numbers of `theta`, a scalar without gradient."""
    return sum(value.detach().square().sum() for value in theta.values())


def residual(
    theta: Weights,
    weighted: Callable[[slice], Tensor],
    pieces: list[slice],
    wanted: list[Tensor],
    scale: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """The squared distance of `theta` from `scale` times the gradient of the `weighted` margins, and what it moves.

    Args:
        theta: the parameters, which require gradients.
        weighted: the sum of multipliers times margins over a slice of the images, a scalar that depends on `theta`, and
            on `wanted`.
        pieces: slices that together hold each image once; only one of them is in memory with its graph.
        wanted: tensors whose gradients are asked for.
    Returns:
        The squared distance, and its gradient for each of `wanted`.

    Cut to pieces the result is the same up to rounding: the distance depends on a piece through the sum alone, so the
    gradient of each is that of its inner product with what is left over, -2 <rest, gradient>.
    """
    values = list(theta.values())
    if len(pieces) == 1:
        made = _gradient(weighted(pieces[0]), values, create_graph=True)
        rest = [value.detach() - scale * part for value, part in zip(values, made, strict=True)]
        loss = sum(part.square().sum() for part in rest)
        return loss.detach(), list(torch.autograd.grad(loss, wanted))
    rest = [value.detach().clone() for value in values]
    for rows in pieces:
        for left, part in zip(rest, _gradient(weighted(rows), values), strict=True):
            left.sub_(part, alpha=scale)
    moved = [torch.zeros_like(one) for one in wanted]
    for rows in pieces:
        made = _gradient(weighted(rows), values, create_graph=True)
        inner = sum((left * part).sum() for left, part in zip(rest, made, strict=True))
        for so_far, part in zip(moved, torch.autograd.grad(-2 * scale * inner, wanted), strict=True):
            so_far.add_(part)
    return sum(left.square().sum() for left in rest), moved


def _pieces(count: int, chunk: int | None) -> list[slice]:
    width = chunk or count
    return [slice(start, min(start + width, count)) for start in range(0, count, width)]


def _gradient(value: Tensor, wanted: list[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """As torch.autograd.grad; a parameter that nothing depends on has gradient 0."""
    return torch.autograd.grad(value, wanted, create_graph=create_graph, materialize_grads=True)


class Stationarity(Part):
    """How far the weights are from a weighted sum of gradients at the candidates, all layers together.

    Args:
        coefficients: `all_pairs`, a multiplier for every image and other class; `runner_up`, one for every image, for
            the class that comes next (Buzaglo et al.; exact only where one other class is active); `weight_decay`,
            none: they follow from the cross-entropy and `decay`.
        decay: the weight decay that the target was trained with, per mean loss (coupled; not AdamW's).
        images: how many the target was trained on, as the attacker believes, for `weight_decay`; None: as many as there
            are candidates.
        least: multipliers below are pushed up by their squared distance (Haim et al.: .01 to .5); None cuts them off at
            0 after every update instead.
        least_weight: of that push (Haim et al.: 5).
        start: where multipliers start: `projected`, uniform in [0, 1] times the number at which the sum is nearest to
            the weights, in units of which their optimiser steps; or `uniform` as it is (Haim et al.).
        mean: divide the sum by the candidates, as Haim et al. do; multipliers are that much larger then.
        relative: divide the distance by the squared norm of the weights, so that 1 is what no candidates get.
        gate: slope of the ReLUs' gates in the gradient (Haim et al.: 10 to 500); None leaves a step, whose own gradient
            is 0.
    """

    reads = ("logits", "gradient", "weights")
    coupled = True

    def __init__(
        self,
        *,
        coefficients: str = "all_pairs",
        decay: Positive | None = None,
        images: Count | None = None,
        least: NotNegative | None = None,
        least_weight: NotNegative = 5.0,
        start: str = "projected",
        mean: bool = False,
        relative: bool = True,
        gate: Positive | None = None,
    ):
        if coefficients not in COEFFICIENTS:
            raise refuse_unknown("attack.stationarity.coefficients", coefficients, COEFFICIENTS)
        if (coefficients == "weight_decay") != (decay is not None):
            raise Refused(
                "attack.stationarity.decay: expected the target's weight decay for coefficients=weight_decay and null "
                f"for others, got {decay} for {coefficients}"
            )
        if start not in STARTS:
            raise refuse_unknown("attack.stationarity.start", start, STARTS)
        self.coefficients, self.decay, self.images, self.start = coefficients, decay, images, start
        self.least, self.least_weight = least, least_weight
        self.mean, self.relative, self.gate = mean, relative, gate

    def multipliers(self, count: int, classes: int, rng: torch.Generator, dtype: torch.dtype) -> Tensor | None:
        """Where multipliers start: uniform in [0, 1], [count, classes] for all pairs, [count] for the runner-up; None
        where there are none."""
        if self.coefficients == "weight_decay":
            return None
        shape = (count, classes) if self.coefficients == "all_pairs" else (count,)
        return torch.rand(shape, generator=rng, dtype=dtype)

    def weighted(self, logits: Tensor, labels: Tensor, multipliers: Tensor | None, count: int) -> Tensor:
        """The sum over images of multipliers times margins, whose gradient stands for the weights. `count`: of all
        candidates."""
        if multipliers is None:
            return -F.cross_entropy(logits, labels, reduction="sum") / ((self.images or count) * self.decay)
        if self.coefficients == "all_pairs":
            return (multipliers * pair_margins(logits, labels)).sum()
        return (multipliers * runner_up_margins(logits, labels)).sum()

    def __call__(
        self,
        theta: Weights,
        ask: Ask,
        images: Tensor,
        labels: Tensor,
        multipliers: Tensor | None,
        chunk: int | None = None,
        unit: float = 1.0,
        norm: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The distance, and its gradients for images [M, C, H, W] and multipliers, with the push of the latter.

        `ask(rows, theta)` gives logits of `images[rows]`; `labels` int64 [M]; `chunk` images are asked about at once;
        multipliers count in `unit`s; `norm` is the `squared_norm` of theta, for who asks often (None: it is summed up).
        """
        wanted = [images] if multipliers is None else [images, multipliers]
        weighted = self._over(theta, ask, labels, multipliers)
        loss, moved = residual(theta, weighted, _pieces(len(images), chunk), wanted, self._scale(images) * unit)
        if self.relative:
            norm = squared_norm(theta) if norm is None else norm
            loss, moved = loss / norm, [part / norm for part in moved]
        if multipliers is None or self.least is None:
            return loss, moved[0], None if multipliers is None else moved[1]
        short = (self.least - unit * multipliers.detach()).clamp(min=0)
        loss = loss + self.least_weight * short.square().sum()
        return loss, moved[0], moved[1] - 2 * self.least_weight * unit * short

    def of_logits(self, theta: Weights, logits: Tensor, labels: Tensor, multipliers: Tensor | None) -> Tensor:
        """The distance alone, which takes gradients, from `logits` [M, classes] that depend on `theta`: for images that
        something else makes. The push of multipliers is left out."""
        values = list(theta.values())
        made = _gradient(self.weighted(logits, labels, multipliers, len(labels)), values, create_graph=True)
        scale = self._scale(labels)
        loss = sum((value.detach() - scale * part).square().sum() for value, part in zip(values, made, strict=True))
        return loss / sum(value.detach().square().sum() for value in values) if self.relative else loss

    def unit(
        self, theta: Weights, ask: Ask, labels: Tensor, multipliers: Tensor | None, chunk: int | None = None
    ) -> float:
        """In what multipliers count: how often the sum, with multipliers as they start, is to be taken to come nearest
        to the weights; 1 where `start` says so, and where there are none."""
        if self.start == "uniform" or multipliers is None:
            return 1.0
        weighted, values = self._over(theta, ask, labels, multipliers), list(theta.values())
        made = [torch.zeros_like(value) for value in values]
        for rows in _pieces(len(labels), chunk):
            for total, part in zip(made, _gradient(weighted(rows), values), strict=True):
                total.add_(part)
        along = sum((value.detach() * part).sum() for value, part in zip(values, made, strict=True))
        # images that start as noise may point away: what counts is the order of magnitude
        return abs(float(along / sum(part.square().sum() for part in made) / self._scale(labels))) or 1.0

    def _over(self, theta: Weights, ask: Ask, labels: Tensor, multipliers: Tensor | None) -> Callable[[slice], Tensor]:
        def weighted(rows: slice) -> Tensor:
            own = None if multipliers is None else multipliers[rows]
            return self.weighted(ask(rows, theta), labels[rows], own, len(labels))

        return weighted

    def _scale(self, candidates: Tensor) -> float:
        return 1 / len(candidates) if self.mean else 1.0


class TrainingSet(Attack):
    """Search for images, and multipliers, at which the weights are stationary; the whole set is one search.

    Candidates start as noise around `around`, in units of the [0, 1] image. What leaves [0, 1] is pulled back by its
    squared distance. The candidates of a class are ranked by their multipliers: one of 0 takes no part.

    Args:
        stationarity: the distance that is searched along.
        optimizer: a partial torch optimiser of the images.
        multiplier_optimizer: one of the multipliers.
        schedule: how both learning rates move (`attacks.schedules`); None leaves them as they are.
        steps: updates.
        candidates: per class; Haim et al. take twice as many as there are training images.
        deviation: of the noise that candidates start from.
        around: where they start; the mean of the images, as the attacker guesses it.
        range_weight: of the pull back into [0, 1], summed over pixels.
        precision: `64-true`, float64 (the authors'), or `32-true`, float32.
        chunk: images per forward, to fit memory (None: all); the result is that of the whole set but for rounding.
        access, budget, group: see `Attack`; a group must hold all classes.
    """

    needs = ("pixels",)  # the set is one search, but cut to chunks it is the same: nothing is refused for being coupled

    def __init__(
        self,
        *,
        stationarity: Stationarity,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        multiplier_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        schedule: Schedule | None = None,
        steps: Count = 50_000,
        candidates: Draws = 100,
        deviation: Positive = 0.01,
        around: float = 0.5,
        range_weight: NotNegative = 1e-3,
        precision: str = "64-true",
        chunk: Count | None = None,
        access: str = "whitebox",
        budget: Count | None = None,
        group: Count = 1000,
    ):
        super().__init__(access=access, budget=budget, group=group)
        self.access.require(stationarity.reads, "attack.stationarity")
        if precision in FORMER_PRECISIONS:
            raise Refused(
                f"attack.precision: expected it by the name that recipes and other attacks give it, got {precision}; "
                f"try {FORMER_PRECISIONS[precision]}"
            )
        if precision not in PRECISIONS:
            raise refuse_unknown("attack.precision", precision, PRECISIONS)
        self.stationarity, self.optimizer, self.multiplier_optimizer = stationarity, optimizer, multiplier_optimizer
        self.schedule = schedule
        self.updates, self.candidates, self.deviation, self.around = steps, candidates, deviation, around
        self.range_weight, self.dtype, self.chunk = range_weight, PRECISIONS[precision], chunk
        self.steps = steps + 2

    @classmethod
    def pin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments as recipes hold them: the precision under its former name."""
        precision = arguments["precision"]
        return {**arguments, "precision": STORED_PRECISIONS.get(precision, precision)}

    @classmethod
    def unpin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments of a recipe as the constructor takes them."""
        precision = arguments["precision"]
        return {**arguments, "precision": FORMER_PRECISIONS.get(precision, precision)}

    def check(self, setting: Setting) -> None:
        """As `Attack.check`; refused for evidence of another kind, classes that do not fit in one group, and networks
        with BatchNorm, whose weights are no such sum: those in front of it have gradients that stand at right angles to
        them."""
        super().check(setting)
        evidence = setting.evidence
        if evidence.points_at != "training_set":
            raise Refused(
                f"evidence: expected the weights, got {evidence.kind}, as this attack reconstructs a training set; "
                "try evidence=weights"
            )
        if evidence.labels is not None and len(evidence.labels) > self.group:
            raise Refused(
                f"attack.group: expected room for all {len(evidence.labels)} classes, as their images explain the "
                f"weights together, got {self.group}"
            )
        if setting.architecture.batchnorm:
            raise Refused(
                "architecture: expected a network without BatchNorm, got one with "
                f"{len(setting.architecture.batchnorm)} such layers, whose weights are no sum of gradients; try "
                "architecture=homogeneous_mlp or mlp"
            )

    def recover(
        self, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
    ) -> Iterator[Found]:
        """All candidates after every step; the loss of each is an equal share of the set's."""
        owners = torch.arange(len(evidence)).repeat_interleave(self.candidates)
        labels, theta, rest = self._world(oracle, evidence.labels[owners], prior.device)
        images = self._start(prior, len(owners), rng)
        # a copy: the optimiser moves these very numbers, and the start is kept until the end
        yield Found(images.detach().float().clone(), torch.full((len(owners),), torch.nan), owners, "initial")

        def ask(rows: slice, weights: Weights) -> Tensor:
            ids = evidence.ids[owners[rows]]
            return oracle(images[rows], ids, ("logits",), {**rest, **weights}, self.stationarity.gate).logits

        with torch.no_grad():  # with weights of the search's precision, whatever that of the target is
            classes = ask(slice(0, 1), theta).shape[1]
        multipliers = self.stationarity.multipliers(len(owners), classes, rng, self.dtype)
        if multipliers is not None:
            multipliers = multipliers.to(prior.device).requires_grad_()
        unit = self.stationarity.unit(theta, ask, labels, multipliers, self.chunk)
        movers = [self.optimizer([images])]
        movers += [] if multipliers is None else [self.multiplier_optimizer([multipliers])]
        paces = [paced(mover, self.schedule, self.updates) for mover in movers]
        norm = squared_norm(theta)
        for step in range(self.updates):
            value, images.grad, moved = self.stationarity(
                theta, ask, images, labels, multipliers, self.chunk, unit, norm
            )
            outside = images.detach() - images.detach().clamp(0, 1)
            images.grad = images.grad + 2 * self.range_weight * outside
            for pace, mover in zip(paces, movers, strict=True):
                pace(step)
                if mover is not movers[0]:
                    multipliers.grad = moved
                mover.step()
            if multipliers is not None and self.stationarity.least is None:
                multipliers.data.clamp_(min=0)
            share = (value / len(owners)).float().expand(len(owners))
            seen = {"stationarity": value.float(), "outside": outside.square().sum().float()}
            yield Found(images.detach().float(), share, owners, "optimised", seen=seen)
        yield best_of_each(
            Found(images.detach().float(), share, owners, "optimised"), self._scores(multipliers, images), None
        )

    def _world(self, oracle: Oracle, labels: Tensor, device: torch.device) -> tuple[Tensor, dict, dict]:
        """Labels on the device, the parameters that take gradients, and the buffers, all in the search's precision."""
        theta = {name: value.to(self.dtype).requires_grad_() for name, value in oracle.parameters().items()}
        buffers = {name: value for name, value in oracle.weights().items() if name not in theta}
        rest = {n: value.to(self.dtype) if value.is_floating_point() else value for n, value in buffers.items()}
        return labels.to(device), theta, rest

    def _start(self, prior: Prior, count: int, rng: torch.Generator) -> Tensor:
        """Noise around the middle [count, C, H, W], which takes gradients."""
        shape = (count, prior.channels, prior.size, prior.size)
        noise = torch.randn(shape, generator=rng, dtype=self.dtype)
        return (self.around + self.deviation * noise).to(prior.device).requires_grad_()

    def _scores(self, multipliers: Tensor | None, images: Tensor) -> Tensor:
        """What each candidate weighs [M]; all alike where there are no multipliers."""
        if multipliers is None:
            return torch.zeros(len(images))
        return multipliers.detach().float().view(len(images), -1).sum(1)
