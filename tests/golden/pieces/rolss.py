"""RoLSS (`rolss.npz`): networks whose skips are weakened, their answers and the gradient of these by the image."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.mobilenetv2 import mobilenet_v2
from torchvision.models.resnet import resnet18, resnet50
from torchvision.models.vision_transformer import VisionTransformer

from midefense.architectures import vision
from midefense.architectures.base import Classifier
from midefense.architectures.official import last_linear, original_names
from midefense.architectures.resnet import LAYERS
from midefense.architectures.state_names import to_published
from midefense.defenses.rolss import RoLSS
from midefense.defenses.skips import Skip
from midefense.plan.bind import bind
from midefense.plan.compose import compose
from midefense.training.loop import assemble

from .recording import Entry, Recording
from .registry import replays

CLASSES, SIDE = 10, 64
LOGITS, GRADIENT = "logits", "input_grad_pool4_of_mean_square"
NO_SKIP = (0, 6)  # the settings of MobileNetV2 that are one block, which has none


def defense_of(factors: Sequence[float], **settings: str) -> RoLSS:
    """The defense as conf/defense composes it."""
    changed = {"factors": f"[{','.join(map(str, factors))}]", **settings}
    overrides = ["defense=rolss", *(f"defense.{name}={value}" for name, value in changed.items())]
    return bind(compose("train_target", overrides)[0]["defense"], "defense").build()


def factors_of(piece: str) -> list[float]:
    """`1x0.5x0x0.2` as numbers."""
    return [float(number) for number in piece.split("x")]


def of(network: nn.Module, stages: dict[str, nn.Module]) -> Classifier:
    """An original's network, cut into stages, its pixels shown in [-1, 1]."""
    model = Classifier(stages, last_linear(network)[1], channels=3, size=SIDE, mean=0.5, std=0.5)
    model.published = original_names(network, model)
    return model


def resnet(build) -> Classifier:
    network = build(num_classes=CLASSES)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    body = {layer: getattr(network, layer) for layer in LAYERS}
    return of(network, {"stem": stem, **body, "features": nn.Sequential(network.avgpool, nn.Flatten())})


def densenet() -> Classifier:
    network = DenseNet(growth_rate=8, block_config=(2, 3, 2, 3), num_init_features=16, bn_size=2, num_classes=CLASSES)
    return of(network, vision.DENSENET.cut(network))


def convnext() -> Classifier:
    widths = (16, 32, 48, 64, None)
    settings = [CNBlockConfig(one, other, 2) for one, other in zip(widths, widths[1:], strict=False)]
    network = ConvNeXt(settings, num_classes=CLASSES)
    stages = {f"part{index}": part for index, part in enumerate(network.features)}
    norm, flatten, _ = network.classifier
    return of(network, {**stages, "features": nn.Sequential(network.avgpool, norm, flatten)})


def mobilenet() -> Classifier:
    network = mobilenet_v2(width_mult=0.25, num_classes=CLASSES)
    blocks = list(network.features)
    stages = {"stem": blocks[0]}
    done = 1
    for index, count in enumerate((1, 2, 3, 4, 3, 3, 1)):
        stages[f"setting{index}"] = nn.Sequential(*blocks[done : done + count])
        done += count
    pool = nn.Sequential(blocks[-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return of(network, {**stages, "features": pool})


def transformer() -> Classifier:
    shape = {"num_layers": 3, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    network = VisionTransformer(image_size=SIDE, patch_size=16, num_classes=CLASSES, **shape)
    return of(network, vision.VIT.cut(network))


NETWORKS = {
    "resnet18": functools.partial(resnet, resnet18),
    "resnet50": functools.partial(resnet, resnet50),
    "densenet_g8_2323_i16_bn2": densenet,
    "convnext_16_32_48_64_2each": convnext,
    "mobilenetv2_w.25": mobilenet,
    "vit_64_p16_l3_h4_d32_m64": transformer,
}


def defended(network: str, factors: Sequence[float], **settings: str) -> Classifier:
    """A network whose skips are weakened, with zeros for its numbers still to be filled."""
    return assemble(NETWORKS[network](), defense_of(factors, **settings), seed=0)


@replays("rolss/x_uint8")
def data(recording: Recording) -> Iterator[Entry]:
    """The images that all networks are shown."""
    yield recording.compare_exactly("x_uint8", recording["x_uint8"].view(2, 3, SIDE, SIDE))


@replays("rolss/resnet*")
def resnets(recording: Recording) -> Iterator[Entry]:
    """ResNets in both forms. What has no gradient in the original, as nothing goes through it, is not there in ours."""
    network = recording.name.partition("/")[2]
    for piece in pieces_of(recording):
        factors, form = piece.split("/")
        settings = {"form": "as_released" if form == "as_released" else "paper"}
        model = defended(network, factors_of(factors), **settings)
        yield recording.compare(f"{piece}/skip_per_block", skips_of(model))
        yield from answers(recording, model, piece)
    dead = set(to_published(NETWORKS[network]())) - set(to_published(defended(network, [0.0])))
    for key in ("params_without_gradient_json", "buffers_moving_in_the_dead_branch_json"):
        known = set(json.loads(bytes(recording[key].tolist()).decode()))
        yield Entry(key, float(len(known - dead)), 0.0, "names that ours still has")
        dead -= known
    yield Entry("dead", float(len(dead)), 0.0, "names that ours lacks and the original uses")


@replays("rolss/densenet*")
def densenets(recording: Recording) -> Iterator[Entry]:
    """A small DenseNet: the shapes of its narrower layers, and answers."""
    network = recording.name.partition("/")[2]
    for piece in pieces_of(recording):
        model = defended(network, factors_of(piece))
        known = json.loads(bytes(recording[f"{piece}/state_json"].tolist()).decode())
        shapes = {name: list(tensor.shape) for name, tensor in to_published(model).items()}
        different = sum(shapes.get(name) != shape for name, shape in known.items()) + len(shapes.keys() - known.keys())
        yield Entry(f"{piece}/state_json", float(different), 0.0, "names and shapes that differ")
        yield from answers(recording, model, piece)


@replays("rolss/vit_*")
def transformers(recording: Recording) -> Iterator[Entry]:
    """A small vision transformer, by branch."""
    network = recording.name.partition("/")[2]
    for piece in pieces_of(recording):
        branch, factors = piece.split("/")
        yield from answers(recording, defended(network, factors_of(factors), branches=branch), piece)


@replays("rolss/convnext*", "rolss/mobilenetv2*")
def convolutional(recording: Recording) -> Iterator[Entry]:
    """ConvNeXt and MobileNetV2. The seventh setting of the latter has no skip: its 0 is the undefended network."""
    network = recording.name.partition("/")[2]
    for piece in pieces_of(recording):
        factors = factors_of(piece)
        if network.startswith("mobilenet"):
            factors = [factor for index, factor in enumerate(factors) if index not in NO_SKIP]
        yield from answers(recording, defended(network, factors), piece)


def pieces_of(recording: Recording) -> list[str]:
    """The settings that answers were recorded of."""
    return [key.removesuffix(f"/{LOGITS}") for key in recording.keys(f"*/{LOGITS}")]


def skips_of(model: Classifier) -> Tensor:
    """The factor of every block, in order."""
    blocks = [block for layer in LAYERS for block in model.stages[layer]]
    factors = [block.downsample.factor if isinstance(block.downsample, Skip) else 1.0 for block in blocks]
    return torch.tensor(factors)


def answers(recording: Recording, model: Classifier, piece: str) -> Iterator[Entry]:
    """Logits, and the gradient of the mean of their squares by the network's input, pooled."""
    recording.draws.fill(model)
    shown = (recording.elsewhere("x_uint8").float() / 255).requires_grad_()
    logits = model(shown).logits
    # by [-1, 1], of which a step is half as long as one of [0, 1]
    gradient = torch.autograd.grad(logits.square().mean(), shown)[0] / 2
    yield recording.compare(f"{piece}/{LOGITS}", logits)
    yield recording.compare(f"{piece}/{GRADIENT}", F.avg_pool2d(gradient, 4))
