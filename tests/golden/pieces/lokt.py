"""LOKT's networks, its loss, and the training of its GAN step by step (`lokt.npz`)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.architectures.state_names import to_published
from midefense.identity_losses import max_margin
from midefense.oracle import Oracle
from midefense.priors.lokt import LoktGan
from midefense.priors.nets.lokt import ClassGenerator, Discriminator
from midefense.types import Access, Trace

from .recording import Entry, Recording
from .registry import replays
from .rules import Draws

SHAPES = {"channels": 3, "size": 64, "width": 64}


class Matrix(nn.Module):
    """The recorded generator: tanh([z, onehot(c)] A) as 3x4x4 pixels."""

    def __init__(self, weight: Tensor, classes: int) -> None:
        super().__init__()
        self.weight, self.classes = nn.Parameter(weight), classes

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        told = torch.cat([latents, F.one_hot(labels, self.classes).to(latents)], 1)
        return (told @ self.weight).tanh().view(-1, 3, 4, 4)


class Heads(nn.Module):
    """The recorded discriminator: x.wd is how real an image is, as a logit, and Wq x says its class."""

    def __init__(self, realness: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.realness, self.labels = nn.Parameter(realness), nn.Parameter(labels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.flatten(1)
        return flat @ self.realness, flat @ self.labels.T


class Target(nn.Module):
    """The recorded target: logits Wt x."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Trace:
        flat = images.flatten(1)
        return Trace(flat @ self.weight.T, flat)


class Training:
    """The recorded training again: what every step lost and told, and who learned."""

    def __init__(self, recording: Recording) -> None:
        read = recording.elsewhere
        labels, latents = read("labels"), read("randn").double()
        classes, (_, batch, width) = len(read("Wt")), latents.shape
        gan = LoktGan(classes=classes, channels=3, size=32, latent_size=width, width=1, batch_size=batch, clip=False)
        gan.warmup, self.gan = int(read("warmup")), gan
        gan.generator, gan.critic = Matrix(read("A").double(), classes), Heads(read("wd").double(), read("Wq").double())
        self.oracle = Oracle(Target(read("Wt").double()), Access.LABELS)
        optimizers = {name: gan.adam(getattr(gan, name).parameters()) for name in ("generator", "critic")}
        turns = torch.stack([read("step_iter"), read("step_is_generator")], 1).tolist()
        row = {tuple(turn): index for index, turn in enumerate(turns)}
        self.told = []
        for step, real in enumerate(read("reals").double()):
            # where no generator step was recorded, the draws for one are never looked at
            rows = torch.tensor([row[step, 0], row.get((step, 1), row[step, 0])])
            told = gan.update(optimizers, self._ask, step, real, latents[rows], labels[rows])
            self.told.append({name: float(value) for name, value in told.items()})

    def _ask(self, images: Tensor) -> Tensor:
        return self.oracle(images, reads=("labels",)).labels

    @property
    def losses(self) -> Tensor:
        """In the order of the recording: that of the discriminator, then, where there was a step, the generator's."""
        names = ("critic_loss", "generator_loss")
        return torch.tensor([told[name] for told in self.told for name in names if name in told])


@replays("lokt/loss")
def losses(recording: Recording) -> Iterator[Entry]:
    """Every step's loss before it."""
    yield recording.compare("loss", Training(recording).losses)


@replays("lokt/final")
def learned(recording: Recording) -> Iterator[Entry]:
    """All weights at the end."""
    gan = Training(recording).gan
    yield recording.compare("A", gan.generator.weight)
    yield recording.compare("wd", gan.critic.realness)
    yield recording.compare("Wq", gan.critic.labels)


@replays("lokt/target_queries")
def questions(recording: Recording) -> Iterator[Entry]:
    """What all of it cost."""
    yield recording.compare_exactly("target_queries", torch.tensor(Training(recording).oracle.shared_bill))


@replays("lokt/dis_terms_*")
def shares(recording: Recording) -> Iterator[Entry]:
    """The accuracies of the generator and of the discriminator's labels; the terms of the losses are within them."""
    (key,) = recording.arrays
    table = recording[key].clone()
    for row, told in enumerate(Training(recording).told):
        table[row, 3:] = torch.tensor([told.get("generator_accuracy", 0.0), told.get("agreement", 0.0)])
    yield recording.compare(key, table, note="the last two columns; lokt/loss compares the sum of the others")


@replays(*(f"lokt/{name}" for name in ("A", "wd", "W[qt]", "reals", "randn", "labels", "warmup", "step_*")))
def given(recording: Recording) -> Iterator[Entry]:
    """What the training is given fits together: `lokt/loss` and `lokt/final` use it."""
    ((key, given),) = recording.arrays.items()
    read = recording.elsewhere
    classes, pixels = read("Wt").shape
    turns, batch, width = read("randn").shape
    shapes = {
        "A": (width + classes, pixels),
        "wd": (pixels,),
        "Wq": (classes, pixels),
        "Wt": (classes, pixels),
        "reals": (int(read("step_iter").max()) + 1, batch, 3, 4, 4),
        "randn": (turns, batch, width),
        "labels": (turns, batch),
        "warmup": (),
        "step_iter": (turns,),
        "step_is_generator": (turns,),
    }
    yield Entry(key, float(given.shape != shapes[key]), 0.0, "its shape beside those of the others")
    recording.leave_out(key, "given to lokt/loss and lokt/final")


@replays("lokt/gen_terms_*")
def terms(recording: Recording) -> Iterator[Entry]:
    """The generator's losses, and the share of the class in them."""
    (key,) = recording.arrays
    steps = [told for told in Training(recording).told if "generator_loss" in told]
    table = [[told["generator_loss"], told.get("class_loss", 0.0)] for told in steps]
    yield recording.compare(key, torch.tensor(table), note="the total and the class's share of it, unweighted")


@replays("lokt/margin")
def margin(recording: Recording) -> Iterator[Entry]:
    """The mean of the loss and its gradient."""
    logits = recording["logits"].requires_grad_()
    loss = max_margin(logits, recording["targets"]).mean()
    yield recording.compare("loss", loss)
    yield recording.compare("grad", torch.autograd.grad(loss, logits)[0])


def _named(recording: Recording, module: nn.Module) -> Iterator[Entry]:
    """The original's names and shapes, and its number of weights."""
    ours = {name: list(tensor.shape) for name, tensor in to_published(module).items()}
    wanted = json.loads(bytes(recording["state_json"].numpy()).decode())
    yield Entry("state_json", float(ours != wanted), 0.0, "names and shapes")
    yield recording.compare_exactly("n_params", torch.tensor(sum(each.numel() for each in module.parameters())))


@replays("lokt/G64")
def generator(recording: Recording) -> Iterator[Entry]:
    """The filled generator in eval mode and in train mode."""
    latents, labels = recording["z"], recording["c"]
    classes = json.loads(bytes(recording["state_json"].numpy()).decode())["block2.b1.weights.weight"][0]
    network = ClassGenerator(classes=classes, latent_size=latents.shape[1], **SHAPES)
    yield from _named(recording, network)
    Draws().fill(network)
    with torch.no_grad():
        images = network(latents, labels)
        yield recording.compare("eval_out_pool8", F.avg_pool2d(images, 8))
        yield recording.compare("eval_out_crop", images[..., 20:36, 20:36])
        yield recording.compare("train_out_pool8", F.avg_pool2d(network.train()(latents, labels), 8))


@replays("lokt/D64")
def discriminator(recording: Recording) -> Iterator[Entry]:
    """The filled discriminator, twice in train mode, where its spectral norms move, and then in eval mode."""
    images = recording["x_uint8"].float() / 255
    network = Discriminator(classes=recording["train1_q"].shape[1], **SHAPES)
    yield from _named(recording, network)
    Draws().fill(network).train()
    with torch.no_grad():
        for name in ("train1", "train2", "eval_after_two_train"):
            realness, logits = (network if name.startswith("train") else network.eval())(images)
            yield recording.compare(f"{name}_p", realness.sigmoid())
            yield recording.compare(f"{name}_q", logits)
