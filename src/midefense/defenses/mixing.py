"""Defenses that train on mixtures of two images, with labels mixed alike.

What one class looks like is then never seen alone. Labels become soft, which the cross-entropy, label smoothing and
BiDO take: for weights w that sum to one, the loss of the mixed label is the sum over labels j of w_j times that of j.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense
from midefense.ranges import Positive, Share
from midefense.rectangles import extent, inside
from midefense.types import Batch, Origin, Refused


class Mixing(Defense):
    """Mix each image with a partner: the batch and a permutation of it, with a share of its own for every pair.

    `p`: share of images mixed. `alpha`: the share of the image itself is Beta(alpha, alpha).
    """

    revision = 1
    needs_classes = True
    neutral: ClassVar[dict[str, float]] = {"p": 0.0}
    mixes = True
    classes: int | None = None

    def __init__(self, *, p: Share, alpha: Positive) -> None:
        super().__init__()
        if not alpha > 0:
            raise Refused(f"alpha: expected above 0, got {alpha}; try 1.0")
        self.p = p
        self.alpha = alpha

    def blend(self, images: Tensor, partners: Tensor, share: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images of which about `share` [B] is the first, and the exact share [B]; a share of 1 is the image whole."""
        raise NotImplementedError

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Look up how many classes a soft label has."""
        self.classes = model.classes
        return model

    def transform(self, batch: Batch) -> Batch:
        if self.classes is None:
            who = type(self).__name__
            raise Refused(f"{who}: expected rebuild(model) before training, got none; try loop.assemble")
        if self.p == 0:
            return batch  # with the labels as they are: the loss of soft ones is rounded otherwise
        count, device = len(batch.images), batch.images.device
        order = torch.randperm(count, generator=batch.rng).to(device)
        mixed = torch.rand(count, generator=batch.rng) < self.p
        share = torch.where(mixed, beta(self.alpha, count, batch.rng), 1.0).to(device)
        images, share = self.blend(batch.images, batch.images[order], share, batch.rng)
        labels = batch.labels if batch.labels.is_floating_point() else F.one_hot(batch.labels, self.classes).float()
        labels = share.unsqueeze(1) * labels + (1 - share.unsqueeze(1)) * labels[order]
        return replace(batch, images=images, labels=labels)


class Mixup(Mixing):
    """Convex combinations of images (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)."""

    revision = 1

    def __init__(self, *, p: Share = 1.0, alpha: Positive = 0.2) -> None:
        super().__init__(p=p, alpha=alpha)

    def blend(self, images: Tensor, partners: Tensor, share: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        own = share.view(-1, 1, 1, 1)
        return own * images + (1 - own) * partners, share


class CutMix(Mixing):
    """A rectangle of the partner pasted into the image (Yun et al., "CutMix", ICCV 2019): of sides sqrt(1 - share)
    times the image's, around a pixel that is everywhere as likely, cut off at the edges. Labels are mixed by the share
    that is then left."""

    revision = 1

    def __init__(self, *, p: Share = 0.5, alpha: Positive = 1.0) -> None:
        super().__init__(p=p, alpha=alpha)

    def blend(self, images: Tensor, partners: Tensor, share: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        image = extent(*images.shape[2:], share.expand(2, -1))
        sizes = ((1 - share).sqrt() * image).long()
        centres = torch.rand(2, len(images), generator=rng).to(images.device) * image
        pasted = inside(torch.cat([centres.long() - sizes // 2, sizes]), *images.shape[2:])
        return torch.where(pasted, partners, images), 1 - pasted.float().mean((1, 2, 3))


def beta(alpha: float, count: int, rng: torch.Generator) -> Tensor:
    """Draws [count] of Beta(alpha, alpha). Torch's take no generator, so they come from a seed that `rng` gives."""
    with seeds.isolated("beta", int(torch.randint(2**62, (), generator=rng))):
        return torch.distributions.Beta(alpha, alpha).sample((count,))
