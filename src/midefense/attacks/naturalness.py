"""What DeepInversion asks of images made without a generator: statistics as the target's BatchNorm layers remember,
smoothness, small colours, and, in its adaptive form, that a student errs (Yin et al., CVPR 2020, equations 3 to 9; card
deep_inversion.md, section 4).

All look at what the target was shown, pooled and jittered, in the scale of colours of the prior (`Prior.normalised`).
Terms of a whole batch are given to each of its images: their mean is the term, as the mean of cross-entropies is the
authors' identity loss, so that a search whose `reference_batch` is the batch descends their sum.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from midefense.attacks.part import Part
from midefense.attacks.problem import Look
from midefense.ranges import InnerShare, NotNegative, Positive
from midefense.types import Moments, Refused, refuse_unknown


class BatchNormStatistics(Part):
    """The sum over the BatchNorm layers of ||var - running var|| + ||mean - running mean||, of what they take in:
    norms, not squared, of the biased variance and the mean over the batch and space (equation 4). It is that of the
    batch; another batch, or a part of one, has another.

    Args:
        first_weight: what the first layer counts, the others 1 (the authors added it later; the paper has 1).
        maps_alone: only layers that take in maps, BatchNorm2d, as in the authors' code.
    """

    reads = ("batchnorm", "gradient")
    coupled = True

    def __init__(self, *, first_weight: NotNegative = 10.0, maps_alone: bool = True):
        self.first_weight, self.maps_alone = first_weight, maps_alone

    def __call__(self, look: Look) -> Tensor:
        """The term of the batch, for each image [B], from 0."""
        gaps = self.gaps(look.answer.batchnorm.values())
        first, others = self.first_weight * gaps[0], gaps[1:]
        return (first + others.sum()).expand(len(look.labels))

    def gaps(self, layers: Collection[Moments]) -> Tensor:
        """How far what each layer took in is from what it remembers [layers], of those that count."""
        counted = [told for told in layers if told.running_mean is not None and (told.spatial or not self.maps_alone)]
        if not counted:
            raise Refused(
                "attack.objective (BatchNormStatistics): expected a target with BatchNorm layers that take in maps and "
                f"remember statistics, got {len(layers)} without; try attack/objective=cross_entropy_tv"
            )
        return torch.stack([_gap(told) for told in counted])


def _gap(told: Moments) -> Tensor:
    return (told.var - told.running_var).norm() + (told.mean - told.running_mean).norm()


def neighbours(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differences of neighbouring pixels of images [B, C, H, W]: across, down, and along both diagonals."""
    across = images[..., :-1] - images[..., 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    diagonal = images[..., :-1, :-1] - images[..., 1:, 1:]
    other = images[..., 1:, :-1] - images[..., :-1, 1:]
    return across, down, diagonal, other


class NeighbourNorm(Part):
    """The sum over four directions of the norm of all differences of neighbouring pixels in the batch (the authors'
    `loss_var_l2`). It grows with the square root of the number of pixels: a weight is that of one batch and size."""

    reads = ("gradient",)
    coupled = True

    def __call__(self, look: Look) -> Tensor:
        """The term of the batch, for each image [B], from 0."""
        whole = sum(difference.norm() for difference in neighbours(look.prior.normalised(look.shown)))
        return whole.expand(len(look.labels))


class NeighbourMean(Part):
    """The sum over four directions of the mean absolute difference of neighbouring pixels (the authors'
    `loss_var_l1`)."""

    reads = ("gradient",)

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], from 0."""
        directions = neighbours(look.prior.normalised(look.shown))
        return sum(difference.abs().flatten(1).mean(1) for difference in directions)


class ColourNorm(Part):
    """The norm of an image, ||x||_2, in the scale of colours of the prior.

    Args:
        over: `image`, a norm for each; or `batch`, one of all together, as the authors' script for CIFAR-10.
    """

    reads = ("gradient",)
    choices = ("image", "batch")

    def __init__(self, *, over: str = "image"):
        if over not in self.choices:
            raise refuse_unknown("attack.objective.over", over, self.choices)
        self.over, self.coupled = over, over == "batch"

    def __call__(self, look: Look) -> Tensor:
        """Loss per image [B], or the term of the batch for each, from 0."""
        images = look.prior.normalised(look.shown)
        if self.over == "batch":
            return images.norm().expand(len(images))
        return images.flatten(1).norm(dim=1)


class Agreement(Part):
    """1 - JS, within [0, 1]: low where a student (`attack.surrogate`, asked beside the target) does not answer as the
    target does (Adaptive DeepInversion, equation 7). The mean over several students.

    The authors' JS = KL(M || P) / 2 + KL(M || Q) / 2, of P = softmax(student / T), Q = softmax(target / T) and
    M = (P + Q) / 2, has its divergences the other way round than Jensen and Shannon: where P and Q share no class it is
    above 1, and the term is 0 without a gradient.

    Args:
        temperature: T.
        floor: P, Q and M are cut to [floor, 1 - floor].
    """

    reads = ("logits", "gradient")
    coupled = True
    compares = True

    def __init__(self, *, temperature: Positive = 3.0, floor: InnerShare = 0.01):
        if floor >= 0.5:
            raise Refused(f"attack.objective.floor: expected less than .5, got {floor}; try 0.01")
        self.temperature, self.floor = temperature, floor

    def __call__(self, look: Look) -> Tensor:
        """The term of the batch, for each image [B], in [0, 1]."""
        target = look.answer.logits
        each = [1 - self.divergence(student, target).clamp(0, 1) for student in look.answer.beside]
        return torch.stack(each).mean().expand(len(target))

    def divergence(self, student: Tensor, target: Tensor) -> Tensor:
        """The authors' JS of logits [B, classes], its mean over the batch, a number from 0."""
        p, q = ((logits.float() / self.temperature).softmax(1) for logits in (student, target))
        p, q, middle = (x.clamp(self.floor, 1 - self.floor) for x in (p, q, (p + q) / 2))
        return sum((middle * (middle.log() - x.log())).sum(1).mean() for x in (p, q)) / 2
