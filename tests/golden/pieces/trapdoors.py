"""Trap-MID (`trap_mid.npz`): an epoch of three batches, in which discriminators, triggers and network learn."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense, Stack, share_right
from midefense.defenses.label_smoothing import LabelSmoothing
from midefense.defenses.trapdoors import TrapMID, balanced
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.training.loop import Trainer, assemble
from midefense.training.recipe import Recipe
from midefense.types import Batch, Trace

from .recording import Entry, Recording
from .registry import replays
from .rules import mean_sizes

TABLE = {"c": "stages.features.0", "b": "stages.features.1", "fc": "classifier"}
ALPHA = -0.05  # of the recorded label smoothing
SCHEDULES = {"celeba": 0.75, "mnist": 0.7, "cifar10": 0.75}  # from which share of the epochs alpha is whole
# The name of each recorded loss in our logs.
LOSSES = {
    "image": ("discriminator/image", "trigger", "loss"),
    "both": ("discriminator/image", "discriminator/features", "trigger", "loss"),
}


def defense_of(discriminator: str) -> TrapMID:
    """The defense as conf/defense composes it, without augmentation, as it was recorded."""
    overrides = ["defense=trap_mid", "defense.augment=[]", f"defense.discriminator={discriminator}"]
    return bind(compose("train_target", overrides)[0]["defense"], "defense").build()


def network(width: int, classes: int) -> Classifier:
    """A convolution with batch norm, and a linear head on 3 by 3 places."""
    layers = (nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    head = nn.Linear(width * 9, classes)
    model = Classifier({"features": nn.Sequential(*layers)}, head, channels=3, size=6, mean=0.0, std=1.0)
    model.published = TABLE
    return model


def trainer_of(recording: Recording, smoothed: bool, discriminator: str) -> tuple[Trainer, TrapMID]:
    """Network, discriminators and triggers as they were filled, about to be trained."""
    trap, classes, draws = defense_of(discriminator), len(recording["trigger0"]), recording.draws
    smoothing = LabelSmoothing(alpha=ALPHA, start=0.0, full=0.0)
    defense: Defense = Stack(members={"trap": trap, "smoothing": smoothing}) if smoothed else trap
    model = assemble(network(6, classes), defense, seed=0)
    draws.fill(model)
    trap.judges["image"] = draws.fill(network(5, 1))
    if "features" in trap.judging:
        draws.fill(trap.judges["features"])
    trap.triggers.copy_(recording["trigger0"])
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)
    recipe = Recipe(epochs=1, batch_size=recording["x"].shape[1], optimizer=sgd)
    return Trainer(model, defense, recipe, Fabric(accelerator="cpu", devices=1)), trap


def dealt(drawn: Tensor, count: int, classes: int) -> Tensor:
    """The classes of an epoch by recorded permutations: one of the classes, then one of the images."""
    orders = iter(drawn.split([classes, count]))
    return balanced(count, classes, lambda number: next(orders))


def batch_of(images: Tensor, labels: Tensor) -> Batch:
    count = len(images)
    return Batch(images, labels, torch.arange(count), torch.ones(count), seeds.generator("golden"))


@replays("trap_mid/ce", "trap_mid/negls", "trap_mid/feat")
def epoch(recording: Recording) -> Iterator[Entry]:
    """Three steps: losses, the triggers before and after each, the network's weights; then the accuracies."""
    smoothed, feat = recording.name.endswith("negls"), recording.name.endswith("feat")
    discriminator = "both" if feat else "image"
    trainer, trap = trainer_of(recording, smoothed, discriminator)
    images, labels, classes = recording["x"], recording["y"], len(recording["trigger0"])
    targets = dealt(recording["randperm_classes_then_data"], labels.numel(), classes)
    yield recording.compare_exactly("trapdoor_targets", targets.view_as(labels))
    trainer.images_per_epoch = labels.numel()
    trainer.begin_epoch(0)
    trap.to_come = targets
    losses, snapshots, sizes = [], [], []
    for index in range(len(images)):
        snapshots.append(trap.triggers.clone())
        logs = trainer.train(batch_of(images[index], labels[index]), 0, 0, index)
        snapshots.append(trap.triggers.clone())
        losses.append(torch.stack([logs[name] for name in LOSSES[discriminator]]))
        sizes.append(mean_sizes(list(trainer.model.parameters())))
    yield recording.compare("losses", torch.stack(losses))
    known = recording["trigger_snapshots"]
    for index, snapshot in enumerate(snapshots):
        note = f"triggers, snapshot {index}"
        yield Entry("trigger_snapshots", float((snapshot - known[index]).abs().max()), 1e-6, note)
    yield recording.compare("model_param_abs_mean_after_each_step", torch.stack(sizes))
    yield recording.compare("trigger_final_best", trap.triggers)
    yield from weights(recording, "model", trainer.model)
    yield from weights(recording, "D", trap.judges["image"])
    yield from accuracies(recording, trainer.model.eval(), trap)
    if smoothed:
        yield from loss(recording)


def weights(recording: Recording, name: str, model: Classifier) -> Iterator[Entry]:
    """Every tensor of a network at the end."""
    own = model.state_dict()
    for key in recording.keys(f"final/{name}/*"):
        layer, _, rest = key.removeprefix(f"final/{name}/").partition(".")
        yield recording.compare(key, own[f"{TABLE[layer]}.{rest}"], floor=1.0)


def accuracies(recording: Recording, model: Classifier, trap: TrapMID) -> Iterator[Entry]:
    """Per cent of all images answered rightly, and taken for the class of their trigger."""
    images, labels = recording["x"].flatten(0, 1), recording["y"].flatten()
    targets = dealt(recording["test_randperm"], len(labels), len(trap.triggers))
    clean = share_right(model(images).logits, labels).mean()
    baited = share_right(model(trap.bait(images, targets)).logits, targets).mean()
    yield recording.compare("best_clean_and_trapdoor_acc", 100 * torch.stack([clean, baited]))


def loss(recording: Recording) -> Iterator[Entry]:
    """The smoothed loss of given logits, and its gradient."""
    logits, labels = recording["logits"].requires_grad_(), recording["targets"]
    defense = LabelSmoothing(alpha=ALPHA, start=0.0, full=0.0)
    task = defense.losses(Trace(logits, logits), batch_of(logits, labels))["task"].mean()
    yield recording.compare("loss", task)
    yield recording.compare("grad", torch.autograd.grad(task, logits)[0])


@replays("trap_mid/negls_schedule")
def schedule(recording: Recording) -> Iterator[Entry]:
    """Alpha of every epoch, as a share of all of it."""
    for key, full in SCHEDULES.items():
        epochs = len(recording[key])
        defense = LabelSmoothing(alpha=-1.0, start=0.5, full=full)
        shares = [-defense.scheduled(epoch, epochs) for epoch in range(epochs)]
        yield recording.compare(key, torch.tensor(shares))


@replays("trap_mid/blend")
def blend(recording: Recording) -> Iterator[Entry]:
    """Images with triggers blended in, one each."""
    trap = defense_of("none")
    trap.triggers = recording["key"]
    yield recording.compare("out", trap.bait(recording["img"], torch.arange(len(recording["img"]))))
