"""Defenses of the answer: what a deployed network tells of an image is changed, and its weights are those of no defense
(rounding: Fredrikson et al., CCS 2015; top-k, temperature: Shokri et al., S&P 2017; card output_perturbation.md).

They bind whoever asks. Whoever holds the weights leaves them out, so that white-box attackers get the network's own
answers unless `white_box` says otherwise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense
from midefense.ranges import Count, InnerShare, NotNegative, Positive
from midefense.types import Images, Refused, refuse_unknown

FLOOR = math.log(1e-12)  # of a logit: a probability of 0 keeps losses finite
LIFT = 1e-5  # relative, which float32 tells apart at any probability that can be the largest of 100,000
WHITE_BOX = ("removed", "kept")
RESTS = ("zero", "uniform")
NOISES = ("gaussian", "laplace")
DRAWN_PER = ("image", "answer")


class Change(nn.Module):
    """One change of log-probabilities float64 [B, classes], -inf where a probability is 0, told of images
    [B, C, H, W]. `keeps_label`: the likeliest class is put back on top afterwards."""

    keeps_label = True

    def forward(self, told: Tensor, images: Tensor) -> Tensor:
        raise NotImplementedError


class Output(nn.Module):
    """What a deployed classifier tells instead of its logits: all `changes`, one after the other."""

    def __init__(self, changes: Sequence[Change], removable: bool) -> None:
        super().__init__()
        self.changes, self.removable = nn.ModuleList(changes), removable

    def forward(self, logits: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] of images [B, C, H, W] as told ones and as probabilities, float32: these sum to 1 and may
        be 0; the logits are their logarithms, from log 1e-12. The largest of both is the label that is told."""
        label = logits.argmax(1, keepdim=True)
        told = logits.double().log_softmax(1)
        for change in self.changes:
            told = change(told, images)
            if change.keeps_label:
                told = with_largest(told, label)
            else:
                label = told.argmax(1, keepdim=True)
        return as_told(lifted(told, label))


def with_largest(told: Tensor, label: Tensor) -> Tensor:
    """Rows of `told` [B, K] in which the largest number and that of `label` [B, 1] have changed places."""
    largest = told.argmax(1, keepdim=True)
    value, other = told.gather(1, largest), told.gather(1, label)
    return told.scatter(1, largest, other).scatter(1, label, value)


def lifted(told: Tensor, label: Tensor) -> Tensor:
    """`told` [B, K], float64, with `label` [B, 1] above all others by `LIFT` where it shares the largest number in
    float32: as probabilities, or as logits."""
    shared = sum((values >= values.gather(1, label)).sum(1, keepdim=True) for values in as_told(told)) > 2
    above = told.scatter(1, label, told.amax(1, keepdim=True) + LIFT).log_softmax(1)
    return torch.where(shared, above, told)


def as_told(told: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, K] as the float32 logits and probabilities that leave."""
    return told.clamp_min(FLOOR).float(), told.exp().float()


def logarithm(probs: Tensor) -> Tensor:
    """Of probabilities [B, K] that sum to anything: those of the same that sum to 1, of a row of zeros the uniform
    ones."""
    total = probs.sum(1, keepdim=True)
    probs = torch.where(total > 0, probs, 1.0)
    probs = probs / probs.sum(1, keepdim=True)
    return torch.where(probs > 0, probs.clamp_min(torch.finfo(probs.dtype).tiny).log(), -math.inf)


class OutputDefense(Defense):
    """Changes what the deployed network tells; has no part in training. In a stack the changes follow one another.

    `white_box`: an attacker with the weights has the change `removed`, as nothing makes them apply it; or `kept`, so
    that gradients go through it (those of rounding are zero, which hides gradients and protects nothing).
    """

    needs_classes = True

    def __init__(self, *, white_box: str = "removed") -> None:
        super().__init__()
        if white_box not in WHITE_BOX:
            raise refuse_unknown("defense.white_box", white_box, WHITE_BOX)
        self.removable = white_box == "removed"

    def change(self) -> Change | None:
        """What is done to the answers; None where the setting is neutral."""
        raise NotImplementedError

    def seal(self, model: Classifier, public: Images | None = None) -> Classifier:
        model, change = super().seal(model, public), self.change()
        if change is None:
            return model
        before = model.output
        if before is not None and before.removable != self.removable:
            raise Refused("defense.white_box: expected the same of all members of a stack that change the output")
        model.output = Output([*([] if before is None else before.changes), change], self.removable).eval()
        return model


class Temperature(OutputDefense):
    """softmax(logits / temperature). It is invertible by whoever knows it, and changes no order."""

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"temperature": 1.0}

    def __init__(self, *, temperature: Positive, white_box: str = "removed") -> None:
        super().__init__(white_box=white_box)
        self.temperature = temperature

    def change(self) -> Change | None:
        return None if self.temperature == 1 else Tempered(self.temperature)


class Rounding(OutputDefense):
    """Probabilities to the nearest multiple of `step` (0.01: two decimals), made to sum to 1 again; where all become 0,
    all are equal. None: as they are. Of classes that share the largest, the label is told by 1e-5 more."""

    revision = 1
    neutral: ClassVar[dict[str, None]] = {"step": None}

    def __init__(self, *, step: InnerShare | None, white_box: str = "removed") -> None:
        super().__init__(white_box=white_box)
        self.unit = step

    def change(self) -> Change | None:
        return None if self.unit is None else Rounded(self.unit)


class TopK(OutputDefense):
    """The `keep` largest probabilities alone, the first of equal ones. The `rest` is `zero`, and what is kept sums to
    1: of keep=1 the label is all that is told; or `uniform`, which leaves what is kept as it is. None: as they are."""

    revision = 1
    neutral: ClassVar[dict[str, None]] = {"keep": None}

    def __init__(self, *, keep: Count | None, rest: str = "zero", white_box: str = "removed") -> None:
        super().__init__(white_box=white_box)
        if rest not in RESTS:
            raise refuse_unknown("defense.rest", rest, RESTS)
        self.keep, self.rest = keep, rest

    def change(self) -> Change | None:
        return None if self.keep is None else Kept(self.keep, self.rest)


class OutputNoise(OutputDefense):
    """Noise on the probabilities, cut at 0 and made to sum to 1 again.

    Args:
        scale: standard deviation of gaussian noise, or b of Laplace's (whose deviation is sqrt(2) b).
        distribution: `gaussian` or `laplace`.
        keep_label: the likeliest class changes places with the one that the noise made the largest.
        drawn_per: `image`, the same whenever its picture in 8 bits is asked, so that no average over questions takes it
            away; or `answer`, anew each time.
    """

    revision = 1
    neutral: ClassVar[dict[str, float]] = {"scale": 0.0}

    def __init__(
        self,
        *,
        scale: NotNegative,
        distribution: str = "gaussian",
        keep_label: bool = True,
        drawn_per: str = "image",
        white_box: str = "removed",
    ) -> None:
        super().__init__(white_box=white_box)
        for name, value, choices in (("distribution", distribution, NOISES), ("drawn_per", drawn_per, DRAWN_PER)):
            if value not in choices:
                raise refuse_unknown(f"defense.{name}", value, choices)
        self.scale, self.distribution, self.keep_label, self.drawn_per = scale, distribution, keep_label, drawn_per
        self.stochastic_when_deployed = bool(scale) and drawn_per == "answer"

    def change(self) -> Change | None:
        if self.scale == 0:
            return None
        return Noisy(self.scale, self.distribution, self.keep_label, self.drawn_per == "answer")


class Tempered(Change):
    """See `Temperature`."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, told: Tensor, images: Tensor) -> Tensor:
        return (told / self.temperature).log_softmax(1)


class Rounded(Change):
    """See `Rounding`."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, told: Tensor, images: Tensor) -> Tensor:
        return logarithm((told.exp() / self.unit).round() * self.unit)


class Kept(Change):
    """See `TopK`."""

    def __init__(self, keep: int, rest: str) -> None:
        super().__init__()
        self.keep, self.rest = keep, rest

    def forward(self, told: Tensor, images: Tensor) -> Tensor:
        if self.keep >= told.shape[1]:
            return told
        left_out = told.argsort(dim=1, descending=True, stable=True)[:, self.keep :]
        probs = told.exp()
        share = probs.gather(1, left_out).mean(1, keepdim=True) if self.rest == "uniform" else probs.new_zeros(1, 1)
        return logarithm(probs.scatter(1, left_out, share.expand(len(probs), left_out.shape[1])))


class Noisy(Change):
    """See `OutputNoise`."""

    def __init__(self, scale: float, distribution: str, keep_label: bool, anew: bool) -> None:
        super().__init__()
        self.scale, self.distribution, self.keeps_label = scale, distribution, keep_label
        self.draws_when_deployed = anew

    def forward(self, told: Tensor, images: Tensor) -> Tensor:
        if self.draws_when_deployed:
            uniform = torch.rand(told.shape, dtype=told.dtype, device=told.device)
        else:
            uniform = uniform_of(images, told.shape[1]).to(told)
        return logarithm((told.exp() + self.scale * self.noise(uniform)).clamp_min(0))

    def noise(self, uniform: Tensor) -> Tensor:
        """Uniform numbers of [0, 1) as ones of the distribution at scale 1, finite."""
        centred = (uniform - 0.5).clamp(-0.5 + 1e-12, 0.5 - 1e-12)
        if self.distribution == "gaussian":
            return math.sqrt(2) * torch.erfinv(2 * centred)
        return -centred.sign() * torch.log1p(-2 * centred.abs())


@torch.compiler.disable
def uniform_of(images: Tensor, count: int) -> Tensor:
    """Numbers of [0, 1), float64 [B, count] on the CPU, that depend on each picture [C, H, W] in 8 bits alone."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    digests = (hashlib.sha256(picture.numpy().tobytes()).hexdigest() for picture in pixels)
    rows = [torch.rand(count, dtype=torch.float64, generator=seeds.generator("answer", key)) for key in digests]
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.float64)
