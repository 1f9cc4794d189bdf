"""DP-SGD (`dp_sgd.npz`): the private steps of mi-defense's loop, those of Opacus' optimizer, and its accounts."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.defenses.dp_sgd import DPSGD, epsilon
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.training.loop import Trainer, assemble
from midefense.training.recipe import Recipe
from midefense.types import Batch

from .recording import Entry, Recording
from .registry import replays

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

NAMES = {"c": "stages.features.0", "n": "stages.features.1", "fc": "classifier"}
GAIN = 1.5
MOMENTUM, DECAY, RATE = 0.9, 1e-3, 0.1
# Opacus clips by C / (norm + 1e-6), the loop by C / norm.
CLIPPED = 1e-5


class Replayed(DPSGD):
    """DP-SGD that takes the recorded `noise`, by parameter, and keeps what its optimizer made of it."""

    noises: list[Tensor] | None = None

    def private_optimizer(self, optimizer: torch.optim.Optimizer, expected: int) -> DPOptimizer:
        made = super().private_optimizer(optimizer, expected)
        if self.noises is not None:
            made.add_noise = functools.partial(self._add, made)
        made.attach_step_hook(self._keep)
        return made

    def _add(self, made: DPOptimizer) -> None:
        for parameter, noise in zip(made.params, self.noises, strict=True):
            parameter.grad = parameter.summed_grad + noise.to(parameter)

    def _keep(self, made: DPOptimizer) -> None:
        self.gradients = [parameter.grad.clone() for parameter in made.params]
        self.norms = torch.cat([sample.flatten(1) for sample in made.grad_samples], dim=1).norm(dim=1)


def defense_of(noise: float, clip: float) -> Replayed:
    """The defense as conf/defense composes it."""
    overrides = ["defense=dp_sgd", f"defense.noise={noise}", f"defense.clip={clip}"]
    return Replayed(**bind(compose("train_target", overrides)[0]["defense"], "defense").arguments)


def network(recording: Recording) -> Classifier:
    """The recordings' network, whose norm ties no images together."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten())
    model = Classifier({"features": body}, nn.Linear(36, 5), channels=3, size=6, mean=0.0, std=1.0)
    return recording.draws.fill(model, gain=GAIN, table=NAMES)


def trainer_of(recording: Recording, defense: Replayed, count: int) -> Trainer:
    sgd = functools.partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    model = assemble(network(recording), defense, seed=0)
    recipe = Recipe(epochs=1, batch_size=count, optimizer=sgd)
    trainer = Trainer(model, defense, recipe, Fabric(accelerator="cpu", devices=1), count)
    trainer.begin_epoch(0)
    return trainer


def batch_of(recording: Recording, step: int) -> Batch:
    images, labels = (recording.elsewhere(name)[step] for name in ("x", "y"))
    rows = torch.arange(len(images))
    return Batch(images, labels, rows, torch.ones(len(images)), seeds.generator("golden"))


def recorded_name(name: str) -> str:
    """A parameter of ours by its name in the recording."""
    return next(name.replace(own, short) for short, own in NAMES.items() if name.startswith(f"{own}."))


@replays("dp_sgd/x", "dp_sgd/y")
def data(recording: Recording) -> Iterator[Entry]:
    """Two batches of six images."""
    (key,) = recording.arrays
    shape = {"x": (2, 6, 3, 6, 6), "y": (2, 6)}[key]
    yield recording.compare_exactly(key, recording[key].view(shape))


@replays("dp_sgd/per_sample_norms_step0")
def norms(recording: Recording) -> Iterator[Entry]:
    """The length of the gradient of each image of the first batch."""
    defense = defense_of(0.0, 1.0)
    trainer_of(recording, defense, 6).train(batch_of(recording, 0), 0, 0, 0)
    yield recording.compare("per_sample_norms_step0", defense.norms)


@replays("dp_sgd/s*_c*")
def steps(recording: Recording) -> Iterator[Entry]:
    """Two private steps of the loop, which divides by the images of the batch."""
    noise, clip = recording["sigma_C"].tolist()
    defense = defense_of(noise, clip)
    trainer = trainer_of(recording, defense, 6)
    names = [recorded_name(name) for name, _ in trainer.model.named_parameters()]
    for step in range(2):
        defense.noises = [recording[f"step{step}/noise/{name}"] for name in names] if noise else None
        trainer.train(batch_of(recording, step), 0, 0, step)
        for name, gradient in zip(names, defense.gradients, strict=True):
            yield recording.compare(f"step{step}/private_grad/{name}", gradient, CLIPPED, floor=0.01)
    for name, parameter in zip(names, trainer.model.parameters(), strict=True):
        yield recording.compare(f"final/{name}", parameter.detach(), CLIPPED)


@replays("dp_sgd/opacus")
def optimizer(recording: Recording) -> Iterator[Entry]:
    """One step of the optimizer from recorded gradients of seven images, of ten that were expected."""
    for piece in ("mean", "sum", "nonoise"):
        noise, clip, expected, rate, momentum = recording[f"{piece}/sigma_C_expected_lr_momentum"].tolist()
        weights = [nn.Parameter(recording[f"{piece}/p{index}"].clone()) for index in range(2)]
        defense = defense_of(noise, clip)
        defense.noises = [recording[f"{piece}/noise{index}"] for index in range(2)] if noise else None
        made = defense.private_optimizer(torch.optim.SGD(weights, lr=rate, momentum=momentum), round(expected))
        made.loss_reduction = "sum" if piece == "sum" else "mean"
        for index, weight in enumerate(weights):
            weight.grad_sample = recording[f"{piece}/g{index}"]
        made.step()
        for index, weight in enumerate(weights):
            yield recording.compare(f"{piece}/grad{index}", defense.gradients[index])
            yield recording.compare(f"{piece}/after{index}", weight.detach())


@replays("dp_sgd/f64")
def accounts(recording: Recording) -> Iterator[Entry]:
    """Epsilon by both accountants of Opacus, with its own orders."""
    key = "opacus_q_sigma_T_delta_eps_rdp_eps_prv"
    rows = []
    for rate, noise, updates, delta, *_ in recording[key].tolist():
        told = [epsilon(accountant, noise, rate, round(updates), delta) for accountant in ("rdp", "prv")]
        rows.append([rate, noise, updates, delta, *told])
    for row, (got, known) in enumerate(zip(torch.tensor(rows).double(), recording[key], strict=True)):
        error = float(((got - known).abs() / known)[4:].max())
        yield Entry(f"{key}[{row}]", error, 1e-6, "relative, of both epsilons")
    recording.leave_out("mi_defense_accountant*", "the account is Opacus', whose conversion is tighter than this one")
