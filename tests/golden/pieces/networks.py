"""Networks in eval mode: the original's names, its weights, and what they give (`networks.json`, `networks.npz`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from midefense.architectures.face_evolve import FaceEvolve
from midefense.architectures.mnist_cnn import MCNN, SCNN
from midefense.architectures.state_names import from_published, to_published
from midefense.architectures.vgg import VGG16
from midefense.priors.nets.gmi import Critic, Generator
from midefense.priors.nets.ked import Discriminator
from midefense.priors.nets.plg import Generator as ConditionalGenerator
from midefense.types import Refused, Trace

from .recording import Entry, Recording
from .registry import replays


@dataclass(frozen=True)
class Facts:
    """What a recording tells of a network: its inputs and outputs, the original's state (name to shape) and the gain of
    its weights. State and gain are None where no .json beside the file names them."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    state: Mapping[str, Sequence[int]] | None
    gain: float | None
    parameters: int | None

    def shape(self, name: str, published: Sequence[int]) -> Sequence[int]:
        """The recorded shape of the weight `name`, or the `published` one where nothing is recorded."""
        if self.state is None:
            return published
        if name not in self.state:
            raise Refused(f"expected the name {name!r} in the recorded state, got {', '.join(self.state)}")
        return self.state[name]

    @property
    def pictures(self) -> dict[str, int]:
        """`channels` and `size` of the images that go in or come out."""
        images = next(tensor for tensor in (*self.inputs, *self.outputs) if tensor.dim() == 4)
        return {"channels": images.shape[1], "size": images.shape[2]}

    @property
    def labelled(self) -> dict[str, int]:
        """`classes` (of the last output) and `channels`."""
        return {"classes": self.outputs[-1].shape[1], "channels": self.pictures["channels"]}


def generator(facts: Facts) -> nn.Module:
    last = {32: "l2_5.1.0.weight", 64: "l2_5.2.0.weight"}[facts.pictures["size"]]
    width = facts.shape(last, (0, 64))[1]
    return Generator(latent_size=facts.inputs[0].shape[1], width=width, **facts.pictures)


def critic(facts: Facts) -> nn.Module:
    first = {32: "layer1.0.weight", 64: "ls.0.weight"}[facts.pictures["size"]]
    return Critic(width=facts.shape(first, (64,))[0], **facts.pictures)


def discriminator(facts: Facts) -> nn.Module:
    classes, width = facts.outputs[1].shape[1], facts.outputs[0].shape[1] // 64
    return Discriminator(classes=classes, width=width, **facts.pictures)


def conditional_generator(facts: Facts) -> nn.Module:
    classes, widest = facts.shape("block2.b1.weights.weight", (20, 1024))
    width = widest // {32: 8, 64: 16}[facts.pictures["size"]]
    return ConditionalGenerator(classes=classes, latent_size=facts.inputs[0].shape[1], width=width, **facts.pictures)


def face_evolve(facts: Facts, depth: int = 50) -> nn.Module:
    return FaceEvolve(size=facts.pictures["size"], depth=depth, **facts.labelled)


# Original to how ours is built, and the gain that its recorded weights had (the deep ones would overflow at 1).
NETWORKS: dict[str, tuple[Callable[[Facts], nn.Module], float]] = {
    "gan64.Generator": (generator, 1.0),
    "gan32.GeneratorMNIST": (generator, 1.0),
    "gan64.DGWGAN": (critic, 1.0),
    "gan32.DGWGAN32": (critic, 1.0),
    "gan64.MinibatchDiscriminator": (discriminator, 1.0),
    "gan32.MinibatchDiscriminator_MNIST": (discriminator, 1.0),
    "plg64.ResNetGenerator": (conditional_generator, 1.0),
    "target64.VGG16": (lambda facts: VGG16(size=facts.pictures["size"], **facts.labelled), 1.0),
    "target64.IR152": (lambda facts: face_evolve(facts, depth=152), 0.3),
    "target64.FaceNet64": (face_evolve, 0.3),
    "eval112.FaceNet": (face_evolve, 0.3),
    "target32.MCNN": (lambda facts: MCNN(**facts.labelled), 1.0),
    "eval32.SCNN": (lambda facts: SCNN(**facts.labelled), 1.0),
}


@replays(*NETWORKS)
def network(recording: Recording) -> Iterator[Entry]:
    """The original's names and shapes, its parameter count, and its outputs."""
    build, gain = NETWORKS[recording.name]
    facts = facts_of(recording)
    module = build(facts)
    shapes = facts.state or {name: tuple(tensor.shape) for name, tensor in to_published(module).items()}
    state = recording.draws.state(shapes, gain=gain if facts.gain is None else facts.gain)
    module.load_state_dict(from_published(module, state))
    if facts.parameters is not None:
        count = sum(parameter.numel() for parameter in module.parameters())
        yield Entry("n_params", abs(count - facts.parameters) / facts.parameters, 0.0, "names and shapes fit too")
    for index, output in enumerate(outputs(module.eval(), facts.inputs)):
        yield recording.compare(f"out{index}", output)


def facts_of(recording: Recording) -> Facts:
    """The arrays of a piece, and what `<the file's stem>.json` or `networks.json` beside the file says of it."""
    described = {}
    for name in (f"{recording.path.stem}.json", "networks.json"):
        if (file := recording.path.with_name(name)).is_file():
            described = json.loads(file.read_text()).get(recording.name, {})
            break
    inputs, outputs = ([recording[key] for key in sorted(recording.keys(f"{kind}[0-9]"))] for kind in ("in", "out"))
    if not inputs or not outputs:
        raise Refused(f"expected the keys in0 and out0, got {', '.join(recording.arrays)}")
    return Facts(inputs, outputs, described.get("state"), described.get("gain"), described.get("n_params"))


@torch.no_grad()
def outputs(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a network gives, in the original's order: features before logits."""
    answer = module(*inputs)
    if isinstance(answer, Trace):
        return [answer.features, answer.logits]
    return list(answer) if isinstance(answer, tuple) else [answer]
