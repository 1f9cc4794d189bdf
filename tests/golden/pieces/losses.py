"""Losses with their gradients (`losses.npz`), through the parts that attacks and defenses are made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.base import Shot
from midefense.attacks.objectives import Poincare
from midefense.defenses.bido import BiDO
from midefense.defenses.label_smoothing import LabelSmoothing
from midefense.priors.pixels import Pixels
from midefense.types import Answer, Batch, Trace

from .recording import Entry, Recording
from .registry import replays

# The original inverts in float32, which costs nHSIC digits: its value with the labels is off by up to 1e-3, and its
# gradient by a third. `bido.npz` has it in float64, where no digit is given away.
FLOAT32_HSIC = {"d_zx": 1e-3, "d_zy": 3e-3, "grad": 0.6}
PIXEL = torch.zeros(1, 1, 1, 1)


@replays("poincare")
def poincare(recording: Recording) -> Iterator[Entry]:
    """PPA's loss per row, and the gradient of its mean with respect to the logits."""
    logits, labels = recording["logits"].requires_grad_(), recording["targets"]
    prior = Pixels(channels=1, size=1)
    loss = Poincare()(Shot(PIXEL, PIXEL, PIXEL, PIXEL, Answer(logits=logits), labels, prior))
    (gradient,) = torch.autograd.grad(loss.mean(), logits)
    yield recording.compare("loss", loss)
    yield recording.compare("grad_of_mean", gradient)


@replays("label_smoothing")
def label_smoothing(recording: Recording) -> Iterator[Entry]:
    """The loss of a batch under every recorded alpha, and its gradient; logits and labels are those of `poincare`."""
    labels = recording.elsewhere("poincare/targets")
    for key in recording.keys("*/loss"):
        case = key.removesuffix("/loss")
        logits = recording.elsewhere("poincare/logits").requires_grad_()
        defense = LabelSmoothing(alpha=float(case), start=0.0, full=0.0)
        loss = defense.losses(Trace(logits, logits), labelled(logits, labels))["task"].mean()
        (gradient,) = torch.autograd.grad(loss, logits)
        yield recording.compare(key, loss)
        yield recording.compare(f"{case}/grad", gradient)


@replays("bido")
def dependence(recording: Recording) -> Iterator[Entry]:
    """d(z, x), d(z, y) and the gradient of lambda_x d(z, x) - lambda_y d(z, y), for one layer z of given values."""
    images, labels = recording["x"], recording["y_onehot"]
    for key in recording.keys("*/d_zx"):
        measure = key.removesuffix("/d_zx")
        (gradient_key,) = recording.keys(f"{measure}/grad_z_*")
        lambda_x, lambda_y = map(float, gradient_key.split("_")[-2:])
        hidden = recording["z"].requires_grad_()
        defense = BiDO(measure=measure, lambda_x=lambda_x, lambda_y=lambda_y)
        on_images, on_labels = defense.dependence([hidden], images, labels)
        loss = (lambda_x * on_images - lambda_y * on_labels).sum()
        (gradient,) = torch.autograd.grad(loss, hidden)
        found = {key: on_images[0], f"{measure}/d_zy": on_labels[0], gradient_key: gradient}
        for name, value in found.items():
            yield _compared(recording, name, value, measure)


def _compared(recording: Recording, key: str, value: Tensor, measure: str) -> Entry:
    if measure != "hsic":
        return recording.compare(key, value)
    kind = "grad" if "grad" in key else key.split("/")[-1]
    return recording.compare(key, value, FLOAT32_HSIC[kind], note="recorded in float32")


def labelled(images: Tensor, labels: Tensor) -> Batch:
    """A batch [B, ...] of these labels [B], every image counting once."""
    count = len(images)
    return Batch(images, labels, torch.arange(count), images.new_ones(count), seeds.generator("golden"))
