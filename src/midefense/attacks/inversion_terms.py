"""The losses that a generator of network inversion learns by (Suhail and Sethi, arXiv 2407.18002, 2410.16884 and
2502.00760; card network_inversion.md, section 4.3). All give one number for a whole batch.

Where the authors' code computes something else than what it is after, an option names both: what is meant is the
default, and what the code does is kept, for it changes numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.attacks.part import Part
from midefense.attacks.stationarity import Stationarity
from midefense.ranges import NotNegative, Share
from midefense.types import Answer, Refused, Setting, refuse_unknown

DIVERGENCES = ("of_scores", "of_twice_softened")
SIGNS = ("signed", "absolute")
PAIRS = ("others", "all")
SCALES = ("mean", "per_number")
Ask = Callable[[Tensor, Mapping[str, Tensor] | None], Answer]


@dataclass
class Scene:
    """One step as its losses see it.

    Attributes:
        images: what the generator made [B, C, H, W], in its own range.
        labels: int64 [B], the classes asked for; `wanted` [B, classes] how much of each.
        ask: (images, weights) -> the target's answer about them, under its own weights (None) or under these.
        signs: of the perturbation, -1, 0 or 1 [B, C, H, W], where a loss takes one.
        perturb: what is made of images and signs.
        theta: the target's parameters, which take gradients; empty where no loss differentiates by them.
        multipliers: of the margins, not negative [B] or [B, classes]; None where there are none.
        normed: names of the parameters that stand right in front of a BatchNorm.
        generator: who made the images.
    """

    images: Tensor
    labels: Tensor
    wanted: Tensor
    ask: Ask
    signs: Tensor | None = None
    perturb: Callable[[Tensor, Tensor], Tensor] | None = None
    theta: Mapping[str, Tensor] = field(default_factory=dict)
    multipliers: Tensor | None = None
    normed: frozenset[str] = frozenset()
    generator: nn.Module | None = None

    @functools.cached_property
    def answer(self) -> Answer:
        """Of the target, about the images: one forward for all losses that read it."""
        return self.ask(self.images, self.theta or None)

    @functools.cached_property
    def perturbed(self) -> Answer:
        """Of the target, about the perturbed images."""
        return self.ask(self.perturb(self.images, self.signs), None)

    def seen(self, perturbed: bool) -> Answer:
        """One of both."""
        return self.perturbed if perturbed else self.answer

    def accuracy(self) -> Tensor:
        """Share of the images that the target takes for what was asked."""
        return (self.answer.logits.detach().argmax(1) == self.labels).float().mean()


class Term(Part):
    """A loss of a `Scene`: one number.

    `role`: what schedules call it by: `clean` and `perturbed` for what the target says of the images as they are and
    perturbed, `smoothness`, or nothing. `by_weights`: it differentiates by the target's parameters. `taps`: stages of
    the target that it reads beside the features.
    """

    coupled = True
    role = ""
    by_weights = False
    taps: tuple[str, ...] = ()

    def __call__(self, scene: Scene) -> Tensor:
        raise NotImplementedError


class OfScores(Term):
    """A loss of what the target says, of the images or of them `perturbed`."""

    reads = ("logits", "gradient")

    def __init__(self, *, perturbed: bool = False):
        self.perturbed = perturbed
        self.role = "perturbed" if perturbed else "clean"


class CrossEntropy(OfScores):
    """-log p_y, mean over images; `smoothing` of the label, as in training."""

    def __init__(self, *, perturbed: bool = False, smoothing: Share = 0.0):
        super().__init__(perturbed=perturbed)
        self.smoothing = smoothing

    def __call__(self, scene: Scene) -> Tensor:
        """From 0."""
        return F.cross_entropy(scene.seen(self.perturbed).logits, scene.labels, label_smoothing=self.smoothing)


class Divergence(OfScores):
    """KL(wanted || p), mean over images; for a one-hot label it is the cross-entropy.

    Args:
        perturbed: of the perturbed images.
        form: `of_scores`, p = softmax(logits); or `of_twice_softened`, as in the authors' code, which takes the softmax
            of p once more: for a one-hot label among ten it lies in [1.461, 2.461], cannot reach 0, and hardly pulls.
    """

    def __init__(self, *, perturbed: bool = False, form: str = "of_scores"):
        super().__init__(perturbed=perturbed)
        if form not in DIVERGENCES:
            raise refuse_unknown("attack.terms.divergence.loss.form", form, DIVERGENCES)
        self.form = form

    def __call__(self, scene: Scene) -> Tensor:
        """From 0, or from 1.461 (of ten classes, twice softened)."""
        logits = scene.seen(self.perturbed).logits
        scores = logits if self.form == "of_scores" else logits.softmax(1)
        return F.kl_div(scores.log_softmax(1), scene.wanted, reduction="batchmean")


class OfFeatures(Term):
    """A loss of features [B, F] of the images, those in front of the head or, summed, those at `taps`."""

    def __init__(self, taps: Sequence[str]):
        self.taps = tuple(taps)
        self.reads = ("gradient", "features")

    def check(self, setting: Setting) -> None:
        """Refused for stages that the target's network has not."""
        for tap in self.taps:
            if tap not in setting.architecture.taps:
                option = f"attack.terms: loss.taps of {type(self).__name__}"
                raise refuse_unknown(option, tap, setting.architecture.taps)

    def of(self, features: Tensor) -> Tensor:
        """The loss of one set of features [B, F]."""
        raise NotImplementedError

    def __call__(self, scene: Scene) -> Tensor:
        answer = scene.answer
        read = [answer.taps[tap] for tap in self.taps] if self.taps else [answer.features]
        return sum(self.of(features.flatten(1)) for features in read)


class Cosine(OfFeatures):
    """How alike the features of different images are: the mean cosine of their pairs, against many alike.

    Args:
        taps: stages whose outputs are compared (the sum over them); none: the features in front of the head.
        sign: `signed`, or the `absolute` cosine.
        pairs: the mean is over the pairs of `others`, or over `all`, an image's pair with itself counted as 0.
    """

    def __init__(self, *, taps: Sequence[str] = (), sign: str = "signed", pairs: str = "others"):
        super().__init__(taps)
        if sign not in SIGNS:
            raise refuse_unknown("attack.terms.cosine.loss.sign", sign, SIGNS)
        if pairs not in PAIRS:
            raise refuse_unknown("attack.terms.cosine.loss.pairs", pairs, PAIRS)
        self.sign, self.pairs = sign, pairs

    def of(self, features: Tensor) -> Tensor:
        """In [-1, 1]."""
        units = F.normalize(features, dim=1)
        table = (units @ units.T) * (1 - torch.eye(len(units), device=units.device))
        table = table.abs() if self.sign == "absolute" else table
        count = len(units)
        return table.sum() / (count * (count - 1 if self.pairs == "others" else count))


class Orthogonality(OfFeatures):
    """Mean over all pairs of (<f_i, f_j> - [i = j])^2.

    Args:
        taps: as in `Cosine`.
        unit: features of length 1, without which the products say more of lengths than of angles (ours: the authors
            take features as they are).
        scale: `mean`, or `per_number`: divided once more by the numbers of all features, as in the authors' code.
    """

    def __init__(self, *, taps: Sequence[str] = (), unit: bool = True, scale: str = "mean"):
        super().__init__(taps)
        if scale not in SCALES:
            raise refuse_unknown("attack.terms.orthogonality.loss.scale", scale, SCALES)
        self.unit, self.scale = unit, scale

    def of(self, features: Tensor) -> Tensor:
        """From 0."""
        vectors = F.normalize(features, dim=1) if self.unit else features
        loss = (vectors @ vectors.T - torch.eye(len(vectors), device=vectors.device)).square().mean()
        return loss / vectors.numel() if self.scale == "per_number" else loss


class TotalVariation(Term):
    """Squared differences of neighbouring pixels, summed over an image, mean over images."""

    reads = ("gradient",)
    role = "smoothness"

    def __call__(self, scene: Scene) -> Tensor:
        """From 0."""
        images = scene.images
        return (images.diff(dim=2).square().sum() + images.diff(dim=3).square().sum()) / len(images)


class OutsideRange(Term):
    """How far pixels leave [low, high], summed over an image, mean over images.

    Args:
        low, high: the authors' code has -1 and 1, which no output of their generators can leave: a loss that is 0.
        summed: over the images too, as in the authors' code.
    """

    reads = ("gradient",)

    def __init__(self, *, low: float = 0.0, high: float = 1.0, summed: bool = False):
        if low >= high:
            raise Refused(f"range: expected low below high, got {low} and {high}; try 0 and 1")
        self.low, self.high, self.summed = low, high, summed

    def __call__(self, scene: Scene) -> Tensor:
        """From 0."""
        outside = (self.low - scene.images).clamp(min=0) + (scene.images - self.high).clamp(min=0)
        return outside.sum() if self.summed else outside.sum() / len(scene.images)


class GradientNorm(Term):
    """Length of the gradient of the batch's cross-entropy by all parameters: at training images it is short."""

    reads = ("logits", "gradient", "weights")
    by_weights = True

    def __call__(self, scene: Scene) -> Tensor:
        """From 0; where it is 0 its own gradient is 0 (the authors' is no number there)."""
        loss = F.cross_entropy(scene.answer.logits, scene.labels)
        made = torch.autograd.grad(loss, list(scene.theta.values()), create_graph=True, materialize_grads=True)
        squares = sum(part.square().sum() for part in made)
        return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()


class StationaryWeights(Term):
    """How far the weights are from a weighted sum of gradients at the images (`attacks.stationarity`).

    Args:
        distance: coefficients, scale and gates of the sum; multipliers are the attack's own.
        normed: count parameters right in front of a BatchNorm too. Their length changes nothing of the network, so that
            no such sum gives them; the authors' code counts them.
    """

    reads = ("logits", "gradient", "weights")
    by_weights = True

    def __init__(self, *, distance: Stationarity, normed: bool = False):
        self.distance, self.normed = distance, normed

    def __call__(self, scene: Scene) -> Tensor:
        """From 0; 1 is what no images get, where the distance is relative."""
        theta = {name: value for name, value in scene.theta.items() if self.normed or name not in scene.normed}
        return self.distance.of_logits(theta, scene.answer.logits, scene.labels, scene.multipliers)


class GeneratorNorm(Term):
    """Sum of the absolute values of the generator's parameters."""

    def __call__(self, scene: Scene) -> Tensor:
        """From 0."""
        return sum(parameter.abs().sum() for parameter in scene.generator.parameters())


class WeightedTerm(Part):
    """A loss and its weight.

    Args:
        loss: the loss.
        weight: how often it counts.
        growing: the weight times the number of steps done, as that of total variation in the authors' code: nothing at
            first, and in the end more than all others.
    """

    def __init__(self, *, loss: Term, weight: NotNegative, growing: bool = False):
        self.loss, self.weight, self.growing = loss, weight, growing

    def at(self, step: int) -> float:
        """The weight in a step, counted from 0."""
        return self.weight * step if self.growing else self.weight


class Perturbation(Part):
    """Images moved by `strength` up or down, pixel by pixel at random, and cut to [low, high].

    The authors' code takes 1.2, 1e-6 and no upper end: half of the pixels land on `low`, where their gradient is 0, the
    others beyond what an image can show. Meant is .1 within [0, 1].
    """

    def __init__(self, *, strength: NotNegative = 0.1, low: float = 0.0, high: float | None = 1.0):
        self.strength, self.low, self.high = strength, low, high

    def __call__(self, images: Tensor, signs: Tensor) -> Tensor:
        """Of images and signs [B, C, H, W]."""
        return (images + self.strength * signs).clamp(self.low, self.high)


def in_front_of_norms(parameters: Sequence[str], buffers: Sequence[str]) -> frozenset[str]:
    """Parameters that are registered right in front of a BatchNorm, by the names of a network's parameters and buffers:
    those of the layer whose outputs it scales to length 1."""
    norms = {name.removesuffix(".running_mean") for name in buffers if name.endswith(".running_mean")}
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    before = {one for one, after in zip(owners, owners[1:], strict=False) if after in norms and one not in norms}
    return frozenset(name for name in parameters if name.rpartition(".")[0] in before)
