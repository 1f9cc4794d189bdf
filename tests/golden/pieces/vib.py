"""MID's bottleneck (`vib_mid.npz`): its codes, its answers under recorded noise, and a step of training."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.architectures.vgg import VGG16
from midefense.defenses.vib import VIB, mean_and_deviation
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.training.loop import Trainer, assemble
from midefense.training.recipe import Recipe
from midefense.types import Batch

from .recording import Entry, Recording
from .registry import replays
from .rules import gradient_norms, mean_sizes

TABLE = {"st_layer": "stages.bottleneck", "fc_layer": "classifier"}


def defense_of(beta: float, **settings: str) -> VIB:
    """The defense as conf/defense composes it, with the noise that the originals deploy."""
    changed = {"beta": beta, "deployed": "sampled", **settings}
    overrides = ["defense=vib", *(f"defense.{name}={value}" for name, value in changed.items())]
    return bind(compose("train_target", overrides)[0]["defense"], "defense").build()


def images_of(pixels: Tensor) -> Tensor:
    """Recorded bytes as images [B, C, H, W] in [0, 1]."""
    return pixels.float() / 255


def told(model: Classifier, noise: Tensor) -> None:
    """Give the recorded `noise` [B, k] to the next forward."""
    model.stages["sample"].noise = lambda like: noise.to(like)


@replays("vib_mid/x_uint8", "vib_mid/y")
def data(recording: Recording) -> Iterator[Entry]:
    """The images and labels that both networks are shown."""
    (key,) = recording.arrays
    shape = {"x_uint8": (4, 3, 64, 64), "y": (4,)}[key]
    yield recording.compare_exactly(key, recording[key].view(shape))


@replays("vib_mid/vgg16_vib")
def face_step(recording: Recording) -> Iterator[Entry]:
    """VGG16 without the norm of its neck: codes and answers when deployed, twice, and one step of SGD."""
    defense = defense_of(beta_of(recording), neck="drop")
    model = assemble(VGG16(classes=recording["eval/logits"].shape[1], channels=3), defense, seed=0)
    recording.draws.fill(model, table={**model.published, **TABLE})
    count = sum(parameter.numel() for parameter in model.parameters())
    yield recording.compare_exactly("n_params", torch.tensor(count))
    images, labels = images_of(recording.elsewhere("x_uint8")), recording.elsewhere("y")
    yield from answers(recording, model, images, "eval/")
    told(model, recording["eval_second_call/eps"])
    yield recording.compare("eval_second_call/logits", model(images).logits)
    yield from step(recording, model, defense, images, labels)


@replays("vib_mid/cnn")
def small_step(recording: Recording) -> Iterator[Entry]:
    """The small network of the study of updates that leak: two strided convolutions and a max-pooling."""
    images, labels = images_of(recording["x_uint8"]), recording["y"]
    defense = defense_of(beta_of(recording))
    convolutions = [nn.Conv2d(3, 64, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 128, 3, 2, 1), nn.LeakyReLU(0.2)]
    body = nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten())
    head = nn.Linear(2048, recording["logits"].shape[1])
    plain = Classifier({"features": body}, head, channels=3, size=images.shape[-1], mean=0.0, std=1.0)
    model = assemble(plain, defense, seed=0)
    recording.draws.fill(model, table={"feature": "stages.features", "st_layer": TABLE["st_layer"]})
    yield from answers(recording, model, images)
    yield from step(recording, model, defense, images, labels)


def beta_of(recording: Recording) -> float:
    return float(recording["train_step/beta_lr"][0])


def answers(recording: Recording, model: Classifier, images: Tensor, path: str = "") -> Iterator[Entry]:
    """Codes and answers of the deployed network under the recorded noise."""
    told(model, recording[f"{path}eps"])
    trace = model(images, taps=("features", "bottleneck"))
    mean, deviation = mean_and_deviation(trace.taps["bottleneck"])
    yield from (
        recording.compare(f"{path}{key}", value)
        for key, value in {"mu": mean, "std": deviation, "logits": trace.logits}.items()
    )
    if f"{path}feature_first64" in recording:
        yield recording.compare(f"{path}feature_first64", trace.taps["features"][:, :64])


def step(recording: Recording, model: Classifier, defense: VIB, images: Tensor, labels: Tensor) -> Iterator[Entry]:
    """One step in training mode, under the recorded noise."""
    told(model, recording["train_step/eps"])
    rate = float(recording["train_step/beta_lr"][1])
    sgd = functools.partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=1e-4)
    recipe = Recipe(epochs=1, batch_size=len(images), optimizer=sgd)
    trainer = Trainer(model, defense, recipe, Fabric(accelerator="cpu", devices=1))
    trainer.begin_epoch(0)
    shown: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, inputs, trace: shown.append(trace.logits.detach()))
    batch = Batch(images, labels, torch.arange(len(images)), torch.ones(len(images)), seeds.generator("golden"))
    logs = trainer.train(batch, 0, 0, 0)
    handle.remove()
    yield recording.compare("train_step/logits", shown[0])
    divergence = logs["loss/kl"] / defense.beta
    for key, value in {"total": logs["loss"], "ce": logs["loss/task"], "kl": divergence}.items():
        yield recording.compare(f"train_step/{key}", value)
    named = dict(model.named_parameters())
    norms = gradient_norms(list(named.values()), torch.float32)
    yield recording.compare_rows("train_step/grad_norm_per_param", norms, list(named))
    yield recording.compare("train_step/param_abs_mean_after", mean_sizes(list(named.values())))
