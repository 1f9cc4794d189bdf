"""TL-DMI (`tl_dmi.npz`): which weights are frozen, and two steps of training behind them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.architectures.face_evolve import FaceEvolve
from midefense.architectures.state_names import published_names
from midefense.architectures.vgg import VGG16
from midefense.defenses.transfer import TransferLearning
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.training.loop import Trainer, assemble
from midefense.training.recipe import Recipe
from midefense.types import Batch, Origin

from .recording import Entry, Recording
from .registry import replays
from .rules import TOLERANCE, gradient_norms, mean_sizes, parameters

# The original's index of the last frozen module (VGG16) or unit, to our name of it; None freezes nothing. Index 0
# freezes all convolutions of VGG16, and nothing of the others.
UPTO = {
    "vgg16": {0: "features.block5", 16: "block3.2", 26: "block4.2", 39: "features.block5.5"},
    "ir152": {46: "stage3"},
    "facenet64": {0: None, 5: "stage2.2"},
}
NETWORKS = {
    "vgg16": VGG16,
    "ir152": functools.partial(FaceEvolve, depth=152),
    "facenet64": functools.partial(FaceEvolve, depth=50),
}
# A step of rate 0.08 along gradients of norm 161, of batch norms over four images: rounding decides. In float64 a
# random disturbance of 2e-6 of the pixels moves the norms of the first step by 1.5e-3, the second step's loss by 5e-3
# and its logits by 1e-2.
FIRST, SECOND, SIZES = 5e-3, 5e-2, 1e-3
LEFT = "feature.input_layer."  # trainable in the original by a typing error ("requries_grad")


def defense_of(upto: str | None) -> TransferLearning:
    """The defense as conf/defense composes it, with batch norms as in the original."""
    front = ["defense.ratio=0"] if upto is None else [f"defense.upto={upto}", "defense.ratio=null"]
    overrides = ["defense=tl_dmi", *front, "defense.frozen_bn=train"]
    return bind(compose("train_target", overrides)[0]["defense"], "defense").build()


def defended(network: str, index: int, classes: int) -> tuple[Classifier, TransferLearning]:
    """A network whose front is frozen up to the original's `index`."""
    defense = defense_of(UPTO[network][index])
    return assemble(NETWORKS[network](classes=classes, channels=3), defense, 0, Origin.STARTED), defense


def names_of(recording: Recording, key: str) -> list[str]:
    """Recorded names."""
    return json.loads(bytes(recording[key].tolist()).decode())


@replays("tl_dmi/x_uint8", "tl_dmi/y")
def data(recording: Recording) -> Iterator[Entry]:
    """The images and labels that are trained on."""
    (key,) = recording.arrays
    yield recording.compare_exactly(key, recording[key].view({"x_uint8": (4, 3, 64, 64), "y": (4,)}[key]))


@replays("tl_dmi/ir152", "tl_dmi/facenet64")
def frozen_lists(recording: Recording) -> Iterator[Entry]:
    """Every parameter's size, and whether it is trained."""
    network = recording.name.partition("/")[2]
    for key in recording.keys("freeze*/requires_grad"):
        yield from frozen_list(recording, network, key.partition("/")[0])


def frozen_list(recording: Recording, network: str, piece: str) -> Iterator[Entry]:
    """One list, under the original's index. Its input layer is frozen with the rest in ours."""
    names, sizes = names_of(recording, f"{piece}/names_json"), recording[f"{piece}/numel"]
    with torch.device("meta"):
        model = defended(network, int(piece.removeprefix("freeze")), classes=int(sizes[-1]))[0]
    tensors = parameters(model, names)
    known = recording[f"{piece}/requires_grad"]
    trained = torch.tensor([parameter.requires_grad for parameter in tensors])
    for index, name in enumerate(names):
        if name.startswith(LEFT):
            trained[index] = known[index]
    note = "share that differs; the input layer aside"
    yield recording.compare_exactly(f"{piece}/requires_grad", trained, note if LEFT in "".join(names) else "")
    yield recording.compare_exactly(f"{piece}/numel", torch.tensor([parameter.numel() for parameter in tensors]))


@replays("tl_dmi/vgg16")
def face_steps(recording: Recording) -> Iterator[Entry]:
    """VGG16's lists, and two steps of SGD at the original's index 26."""
    for key in recording.keys("freeze*/requires_grad"):
        yield from frozen_list(recording, "vgg16", key.partition("/")[0])
    model, defense = defended("vgg16", 26, classes=recording["step0/logits"].shape[1])
    recording.draws.fill(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield from steps(recording, model, defense, names_of(recording, "freeze26/names_json"))
    names = published_names(before, model.published)
    ours = {published: name for name, published in names.items()}
    order = [ours[name] for name in names_of(recording, "after/state_names_json")]
    after = model.state_dict()
    changed = torch.tensor([not torch.equal(before[name], after[name]) for name in order])
    yield recording.compare_exactly("after/changed", changed)
    yield recording.compare("after/abs_mean", mean_sizes([after[name] for name in order]), SIZES)
    recording.leave_out("after/eval_logits", "rounding moves it by 14 % (a disturbance of 2e-6, in float64)")


def images_of(recording: Recording) -> Tensor:
    """The images [B, C, H, W] in [0, 1]."""
    return recording.elsewhere("x_uint8").float() / 255


def steps(recording: Recording, model: Classifier, defense: TransferLearning, names: Sequence[str]) -> Iterator[Entry]:
    """Two steps of the defense's training on one batch."""
    sgd = functools.partial(torch.optim.SGD, lr=0.08, momentum=0.9, weight_decay=1e-4)
    recipe = Recipe(epochs=1, batch_size=4, optimizer=sgd)
    trainer = Trainer(model, defense, recipe, Fabric(accelerator="cpu", devices=1))
    trainer.begin_epoch(0)
    images, labels = images_of(recording), recording.elsewhere("y")
    shown: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, inputs, trace: shown.append(trace.logits.detach()))
    for index in range(2):
        batch = Batch(images, labels, torch.arange(4), torch.ones(4), seeds.generator("golden"))
        loss = trainer.train(batch, 0, 0, index)["loss"]
        tolerance = SECOND if index else TOLERANCE
        yield recording.compare(f"step{index}/loss", loss, tolerance)
        yield recording.compare(f"step{index}/logits", shown[index], tolerance)
        if index == 0:
            norms = gradient_norms(parameters(model, names), torch.float32)
            yield recording.compare_rows("step0/grad_norm_or_minus1_if_none", norms, names, FIRST)
    recording.leave_out("step1/grad*", "rounding moves them by 27 % (a disturbance of 2e-6, in float64)")
    handle.remove()
