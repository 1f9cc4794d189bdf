"""Adversarial training (Madry, Makelov, Schmidt, Tsipras, Vladu, ICLR 2018; card adversarially_robust.md, section 6):
the network learns from images that were moved, within a small ball, to where it is most wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.defenses.base import Defense, task_loss
from midefense.defenses.modes import in_eval
from midefense.ranges import Count, NotNegative
from midefense.types import Batch, refuse_unknown

NORMS = ("linf", "l2")
LEAST_NORM = 1e-12  # of a gradient, so that none at all is no direction


class AdversarialTraining(Defense):
    """Every update is on max over ||d|| <= `radius` of the task loss of x + d, sought by projected gradient ascent in
    eval mode; x + d stays in [0, 1].

    What is sought is a higher loss of the network alone: loss terms of others in a `Stack` are computed on what was
    found. A network with robust gradients may be easier to invert: a control, more than a defense.

    Args:
        radius: of the ball, in units of the [0, 1] image; 0 is no defense.
        step_size: of the ascent, along the sign of the gradient (`linf`) or its direction (`l2`).
        steps: of the ascent.
        norm: `linf` or `l2`.
        start: whether it begins at a random point of the cube of side 2 `radius` around x, put back into the ball; one
            that does not is BIM.
    """

    revision = 1
    owns = ("step",)
    neutral: ClassVar[dict[str, float]] = {"radius": 0.0}

    def __init__(
        self,
        *,
        radius: NotNegative,
        step_size: NotNegative,
        steps: Count = 10,
        norm: str = "linf",
        start: bool = True,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise refuse_unknown("defense.norm", norm, NORMS)
        self.radius, self.step_size, self.steps, self.norm, self.start = radius, step_size, steps, norm, start

    def step(self, trainer: Any, batch: Batch) -> dict[str, Tensor]:
        """One update on the images that were found."""
        if not self.radius:
            return trainer.step(batch)
        return trainer.step(replace(batch, images=self.worst(trainer.model, batch)))

    def worst(self, model: nn.Module, batch: Batch) -> Tensor:
        """Images [B, C, H, W] near those of the batch, at which the task loss is higher."""
        images = batch.images
        moved = self.beginning(batch) if self.start else images
        with in_eval(model):
            for _ in range(self.steps):
                shown = moved.detach().requires_grad_()
                loss = task_loss(model(shown).logits, batch.labels).sum()
                (gradient,) = torch.autograd.grad(loss, shown)
                moved = self.projected(shown.detach() + self.step_size * self.direction(gradient), images)
        return moved

    def beginning(self, batch: Batch) -> Tensor:
        """A random point of each image's ball: of an image's id and its pixels' places alone, as ranks have shares."""
        flat = batch.images.flatten(1)
        places = torch.arange(flat.shape[1], device=flat.device)
        seed = seeds.fork(batch.rng, "adversarial start").initial_seed()
        dice = seeds.hashed_uniform(seed, batch.ids[:, None], places).to(flat).view_as(batch.images)
        return self.projected(batch.images + self.radius * (2 * dice - 1), batch.images)

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest way up per image, of length 1 in the norm."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / norms(gradient).clamp_min(LEAST_NORM)

    def projected(self, moved: Tensor, images: Tensor) -> Tensor:
        """`moved` put back into the ball around `images` and into [0, 1]."""
        away = moved - images
        if self.norm == "linf":
            away = away.clamp(-self.radius, self.radius)
        else:
            away = away * (self.radius / norms(away).clamp_min(LEAST_NORM)).clamp_max(1)
        return (images + away).clamp(0, 1)


def norms(images: Tensor) -> Tensor:
    """Euclidean length of each image [B, 1, 1, 1]."""
    return images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
