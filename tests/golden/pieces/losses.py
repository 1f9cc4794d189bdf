"""Losses with their gradients (`losses.npz`), through the parts that attacks and defenses are made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.objectives import Poincare
from midefense.attacks.problem import Look
from midefense.defenses.bido import BiDO
from midefense.defenses.label_smoothing import LabelSmoothing
from midefense.priors.pixels import Pixels
from midefense.types import Answer, Batch, Trace

from .recording import Entry, Recording
from .registry import replays

# The original inverts in float32, which costs nHSIC digits: up to 1.1e-3 of d(z, y) over 40 draws of this size.
FLOAT32_HSIC = 3e-3
PIXEL = torch.zeros(1, 1, 1, 1)


@replays("poincare")
def poincare(recording: Recording) -> Iterator[Entry]:
    """PPA's loss per row, and the gradient of its mean with respect to the logits."""
    logits, labels = recording["logits"].requires_grad_(), recording["targets"]
    prior = Pixels(channels=1, size=1)
    loss = Poincare()(Look(PIXEL, PIXEL, PIXEL, PIXEL, Answer(logits=logits), labels, prior))
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
    recording.leave_out("hsic/grad_z_*", "float32 of the original moves it by .3 to 1.6 of its size; see bido.npz, f64")
    for key in recording.keys("*/grad_z_*"):
        measure, lambdas = key.split("/")[0], key.split("_")[-2:]
        lambda_x, lambda_y = map(float, lambdas)
        hidden = recording["z"].requires_grad_()
        defense = BiDO(measure=measure, lambda_x=lambda_x, lambda_y=lambda_y)
        on_images, on_labels = defense.dependence([hidden], recording["x"], recording["y_onehot"])
        yield recording.compare(f"{measure}/d_zx", on_images[0])
        if measure == "hsic":
            yield recording.compare(f"{measure}/d_zy", on_labels[0], FLOAT32_HSIC, note="recorded in float32")
            continue
        (gradient,) = torch.autograd.grad((lambda_x * on_images - lambda_y * on_labels).sum(), hidden)
        yield recording.compare(f"{measure}/d_zy", on_labels[0])
        yield recording.compare(key, gradient)


def labelled(images: Tensor, labels: Tensor) -> Batch:
    """A batch [B, ...] of these labels [B], every image counting once."""
    count = len(images)
    return Batch(images, labels, torch.arange(count), images.new_ones(count), seeds.generator("golden"))
