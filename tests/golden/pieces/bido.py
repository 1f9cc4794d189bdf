"""BiDO's dependence, loss, gradients and five steps of training (`bido.npz`), in float64 as the recordings judge it."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.architectures.mnist_cnn import MCNN
from midefense.architectures.vgg import VGG16
from midefense.defenses.bido import BiDO
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.training.loop import Trainer, assemble
from midefense.training.recipe import Draws, Recipe, identity_batches
from midefense.types import Batch

from .recording import Entry, Recording
from .registry import replays
from .rules import gradient_norms, parameters, sums_and_norms

ROUNDED = 5e-6  # half a unit of the fifth digit
# The names of BiDO's own classes, whose blocks are ours.
MCNN_NAMES = {
    "layer1": "stages.stage1",
    "layer2": "stages.stage2",
    "layer3": "stages.features",
    "fc_layer": "classifier",
}
VGG16_NAMES = {
    **{f"layer{index}": f"stages.block{index}" for index in range(1, 5)},
    "layer5": "stages.features.block5",
    "bn": "stages.features.norm",
    "fc_layer": "classifier",
}


@dataclass
class Trained:
    """A network under BiDO, ready for a step in float64."""

    model: Classifier
    defense: BiDO
    trainer: Trainer
    table: Mapping[str, str]
    labels: Tensor

    def batch(self, images: Tensor) -> Batch:
        """A batch of float64 images [B, C, H, W]."""
        count = len(images)
        weight = torch.ones(count, dtype=torch.float64)
        return Batch(images, self.labels, torch.arange(count), weight, seeds.generator("golden"))

    def step(self, images: Tensor, index: int = 0) -> dict[str, Tensor]:
        """One update; its logged losses. The gradients stay on the parameters."""
        return self.trainer.train(self.batch(images), 0, 0, index)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, classes], and d(z, x) and d(z, y) per layer. Moves batch norm's statistics, as a step does."""
        trace, _ = self.trainer.learner(self.batch(images))
        hidden = [trace.taps[name] for name in self.defense.taps]
        one_hot = F.one_hot(self.labels, trace.logits.shape[1])
        return trace.logits, *self.defense.dependence(hidden, self.model.preprocess(images), one_hot)


def trained(recording: Recording, model: Classifier, tag: str, table: Mapping[str, str]) -> Trained:
    """The filled `model` under the recorded defense, in training mode."""
    config = recording.config
    recording.draws.fill(model, tag, config.get("gain", 1.0), table)
    defense = defense_of(config)
    model = assemble(model.double(), defense, seed=0)
    adam = functools.partial(torch.optim.Adam, lr=config.get("lr", 1e-4))
    recipe = Recipe(epochs=1, batch_size=config["batch"], optimizer=adam)
    trainer = Trainer(model, defense, recipe, Fabric(accelerator="cpu", devices=1))
    trainer.begin_epoch(0)
    return Trained(model, defense, trainer, table, recording["labels"])


def defense_of(config: Mapping[str, object]) -> BiDO:
    """BiDO as conf/defense composes it, with the recorded numbers."""
    changes = {
        "lambda_x": config["a1"],
        "lambda_y": config["a2"],
        "sigma": config["sigma"],
        "label_kernel": config["label_kernel"],
    }
    overrides = [f"defense=bido_{config['measure'].lower()}", *(f"defense.{k}={v}" for k, v in changes.items())]
    return bind(compose("train_target", overrides)[0]["defense"], "defense").build()


def enlarged(recording: Recording, name: str, channels: int, drawn: int, side: int) -> Tensor:
    """Named uniform pixels, enlarged to `side` px by interpolation: images [B, channels, side, side], float64."""
    pixels = recording.draws.uniform(name, (recording.config["batch"], channels, drawn, drawn))
    return F.interpolate(pixels.double(), size=(side, side), mode="bilinear", align_corners=False)


def grey(recording: Recording, index: int) -> Tensor:
    """The images of batch `index` for MCNN."""
    return enlarged(recording, f"bido/x{index}", channels=1, drawn=4, side=32)


@replays("bido_hsic_*", "bido_coco_*")
def mnist_step(recording: Recording) -> Iterator[Entry]:
    """One backward, and where it is recorded five steps of Adam, of MCNN."""
    recording.leave_out("f32/*", "the original's float32; f64 judges")
    config = recording.config
    images = grey(recording, 0)
    world = trained(recording, MCNN(classes=config["classes"], channels=1), "N/", MCNN_NAMES)
    logits, on_images, on_labels = world.look(images)
    logs = world.step(images)
    found = {"logits": logits, "d_zx": on_images, "d_zy": on_labels, "loss": logs["loss"], "ce": logs["loss/task"]}
    for key, value in found.items():
        yield recording.compare(f"f64/{key}", value)
    tensors = parameters(world.model, config["names"], world.table)
    yield recording.compare_rows("f64/grad_norms", gradient_norms(tensors), config["names"])
    if "f64/train/loss" in recording:
        yield from _training(recording)


def _training(recording: Recording) -> Iterator[Entry]:
    """Steps of Adam on one batch each, from the filled network on."""
    config, losses = recording.config, []
    world = trained(recording, MCNN(classes=config["classes"], channels=1), "N/", MCNN_NAMES)
    tensors = parameters(world.model, config["names"], world.table)
    for step in range(1, len(recording["f64/train/loss"]) + 1):
        losses.append(world.step(grey(recording, step - 1), step)["loss"])
        for kind, table in (("grad_norm", gradient_norms), ("sum_norm", sums_and_norms)):
            if (key := f"f64/train/{kind}{step}") in recording:
                yield recording.compare_rows(key, table(tensors), config["names"])
    yield recording.compare("f64/train/loss", torch.stack(losses))
    yield recording.compare("f64/train/bn1_running_mean", world.model.stages["stage1"][1].running_mean)


@replays("bido_vgg16*")
def face_step(recording: Recording) -> Iterator[Entry]:
    """One backward of VGG16 at 64 px. The bias of its last norm is frozen and has no gradient."""
    config = recording.config
    world = trained(recording, VGG16(classes=config["classes"], channels=3), "V/", VGG16_NAMES)
    images = enlarged(recording, "bido/vx", channels=3, drawn=8, side=64)
    logits, on_images, on_labels = world.look(images)
    logs = world.step(images)
    for key, value in {"logits": logits, "loss": logs["loss"], "ce": logs["loss/task"]}.items():
        yield recording.compare(key, value)
    for key, value in {"d_zx_rounded5": on_images, "d_zy_rounded5": on_labels}.items():
        known = recording[key].abs().max()
        yield recording.compare(key, value, 1e-4 + ROUNDED / float(known), note="recorded to five digits")
    tensors = parameters(world.model, config["names"], world.table)
    yield recording.compare_rows("grad_norms", gradient_norms(tensors), config["names"])


class Seeded(Draws):
    """Draws of the original: Python's generator and NumPy's, under one seed."""

    def __init__(self, seed: int) -> None:
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)

    def shuffled(self, rows: Tensor) -> Tensor:
        order = rows.tolist()
        self.python.shuffle(order)
        return torch.tensor(order)

    def with_replacement(self, rows: Tensor, count: int) -> Tensor:
        return torch.from_numpy(self.numpy.choice(rows.numpy(), size=count, replace=True))

    def chosen(self, among: int, count: int) -> list[int]:
        return self.python.sample(range(among), count)


@replays("bido_sampler*")
def sampler(recording: Recording) -> Iterator[Entry]:
    """An epoch of batches of identities, under the seeds of Python and NumPy, as the composed recipe asks for them."""
    labels, (batch, images) = recording["labels"], recording["batch_and_instances"].tolist()
    asked = compose("train_target", ["recipe=bido_adam"])[0]["recipe"]["sampler"]
    seen = list(dict.fromkeys(labels.tolist()))
    ranks = torch.tensor([seen.index(label) for label in labels.tolist()])  # the original's order of classes
    for key in recording.keys("order_seed*"):
        seed = key.removeprefix("order_seed")
        batches = identity_batches(ranks, batch // images, images, Seeded(int(seed)), asked["leftover"])
        yield recording.compare_exactly(key, torch.cat(batches))
        yield recording.compare_exactly(f"len_after_seed{seed}", torch.tensor(sum(map(len, batches))))
    recording.leave_out("len_before_seed*", "the original's estimate of the epoch, which it does not keep to")
