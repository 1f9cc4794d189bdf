"""VMI's ResNet-34 and BiDO's ResNet-18, against their formulas written out under the names of the originals."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.architectures.low_resolution_resnets import BidoResNet18, VmiResNet34
from midefense.architectures.state_names import from_published, to_published
from midefense.defenses.bido import BiDO
from midefense.types import Batch, Refused

WIDTHS = (64, 64, 128, 256, 512)  # of the stem, then of the four layers
Shapes = dict[str, tuple[int, ...]]


def norm_shapes(name: str, width: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (width,) for part in parts}, f"{name}.num_batches_tracked": ()}


def block_shapes(place: str, inputs: int, width: int, first: str, second: str, shortcut: tuple[str, str]) -> Shapes:
    """Of a residual block; `first` and `second` are its convolutions and norms, as in `conv1/bn1`."""
    shapes: Shapes = {}
    for (convolution, norm), channels in ((first.split("/"), inputs), (second.split("/"), width)):
        shapes |= {f"{place}.{convolution}.weight": (width, channels, 3, 3), **norm_shapes(f"{place}.{norm}", width)}
    if inputs != width:
        shapes |= {f"{place}.{shortcut[0]}.weight": (width, inputs, 1, 1)}
        shapes |= norm_shapes(f"{place}.{shortcut[1]}", width)
    return shapes


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def vmi_shapes(classes: int, channels: int, embedding: int) -> Shapes:
    """Names and shapes of the original `ResNetClsH`."""
    shapes = {"backbone.block1.0.weight": (64, channels, 7, 7), **norm_shapes("backbone.block1.1", 64)}
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            inputs = WIDTHS[layer - 1] if block == 0 else WIDTHS[layer]
            place, shortcut = f"backbone.block{layer + 1}.{block}", ("shortcut", "BNshortcut")
            shapes |= block_shapes(place, inputs, WIDTHS[layer], "C1/BN1", "C2/BN2", shortcut)
    shapes |= {**norm_shapes("bn1", 512), **linear_shapes("fc1", 512, embedding)}
    return {**shapes, **norm_shapes("bn2", embedding), **linear_shapes("fc2", embedding, classes)}


def bido_shapes(classes: int, channels: int, size: int) -> Shapes:
    """Names and shapes of BiDO's `ResNet18`."""
    shapes = {"conv1.weight": (64, channels, 3, 3), **norm_shapes("bn1", 64)}
    for layer in range(1, 5):
        for block in range(2):
            inputs = WIDTHS[layer - 1] if block == 0 else WIDTHS[layer]
            place, shortcut = f"layer{layer}.{block}", ("shortcut.0", "shortcut.1")
            shapes |= block_shapes(place, inputs, WIDTHS[layer], "conv1/bn1", "conv2/bn2", shortcut)
    shapes |= {**norm_shapes("output_layer.0", 512), **linear_shapes("output_layer.3", 512 * (size // 32) ** 2, 512)}
    return {**shapes, **norm_shapes("output_layer.4", 512), **linear_shapes("fc_layer", 512, classes)}


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    """A state of these shapes: matrices that keep the scale, norms that are no identity."""
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        numbers = torch.randn(shape, generator=seeds.generator("resnet", index), dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif len(shape) >= 2:
            state[name] = numbers * (2 / math.prod(shape[1:])) ** 0.5
        else:
            state[name] = (1 + 0.2 * numbers.abs()) if name.endswith(("weight", "var")) else 0.2 * numbers
    return state


def normed(state: dict[str, Tensor], name: str, hidden: Tensor) -> Tensor:
    """Batch norm in eval mode."""
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    shape = (1, -1) + (1,) * (hidden.dim() - 2)
    scaled = (hidden - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return scaled * weight.view(shape) + bias.view(shape)


def block_of(state: dict[str, Tensor], place: str, hidden: Tensor, names: tuple[str, ...], stride: int) -> Tensor:
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""
    first, first_norm, second, second_norm, shortcut, shortcut_norm = (f"{place}.{name}" for name in names)
    out = normed(state, first_norm, F.conv2d(hidden, state[f"{first}.weight"], stride=stride, padding=1)).relu()
    out = normed(state, second_norm, F.conv2d(out, state[f"{second}.weight"], padding=1))
    if f"{shortcut}.weight" in state:
        hidden = normed(state, shortcut_norm, F.conv2d(hidden, state[f"{shortcut}.weight"], stride=stride))
    return (out + hidden).relu()


def linear(state: dict[str, Tensor], name: str, hidden: Tensor) -> Tensor:
    return F.linear(hidden, state[f"{name}.weight"], state[f"{name}.bias"])


def vmi_forward(state: dict[str, Tensor], images: Tensor) -> tuple[list[Tensor], Tensor]:
    """What BiDO taps, and the logits, of images in [0, 1]."""
    names = ("C1", "BN1", "C2", "BN2", "shortcut", "BNshortcut")
    hidden = F.conv2d(2 * images - 1, state["backbone.block1.0.weight"], stride=2, padding=3)
    taps = [F.max_pool2d(normed(state, "backbone.block1.1", hidden).relu(), 3, 2, 1)]
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        hidden = taps[-1]
        for block in range(blocks):
            stride = 2 if layer > 1 and block == 0 else 1
            hidden = block_of(state, f"backbone.block{layer + 1}.{block}", hidden, names, stride)
        taps.append(hidden)
    taps.append(linear(state, "fc1", normed(state, "bn1", hidden.mean((2, 3)).relu())))
    taps.append(normed(state, "bn2", taps[-1].relu()))
    return taps, linear(state, "fc2", taps[-1])


def bido_forward(state: dict[str, Tensor], images: Tensor) -> tuple[list[Tensor], Tensor]:
    """What BiDO taps, and the logits, of images in [0, 1]."""
    names = ("conv1", "bn1", "conv2", "bn2", "shortcut.0", "shortcut.1")
    taps = [normed(state, "bn1", F.conv2d(images, state["conv1.weight"], padding=1)).relu()]
    for layer in range(1, 5):
        for block in range(2):
            stride = 2 if layer > 1 and block == 0 else 1
            taps.append(block_of(state, f"layer{layer}.{block}", taps[-1], names, stride))
    hidden = normed(state, "output_layer.0", F.avg_pool2d(taps[-1], 4)).flatten(1)
    taps.append(normed(state, "output_layer.4", linear(state, "output_layer.3", hidden)))
    return taps, linear(state, "fc_layer", taps[-1])


# Ours, the original's shapes and forward, and how many numbers of an image of 64 px each tap of BiDO's has.
NETWORKS = {
    "resnet34_vmi": (
        functools.partial(VmiResNet34, embedding=50),
        functools.partial(vmi_shapes, embedding=50),
        vmi_forward,
        [16384, 16384, 8192, 4096, 2048, 50, 50],
    ),
    "resnet18_bido": (
        BidoResNet18,
        functools.partial(bido_shapes, size=64),
        bido_forward,
        [262144, 262144, 262144, 131072, 131072, 65536, 65536, 32768, 32768, 512],
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request) -> tuple[nn.Module, dict[str, Tensor], list[Tensor], Tensor, list[int]]:
    """Ours with the original's state, that state, what the original's formula taps and says, and the taps' sizes."""
    build, shapes, forward, sizes = NETWORKS[request.param]
    state, images = drawn(shapes(classes=3, channels=3)), torch.rand(2, 3, 64, 64, dtype=torch.float64)
    model = build(classes=3, channels=3).double()
    model.load_state_dict(from_published(model, state))
    return model.eval(), state, images, forward(state, images), sizes


def test_the_names_and_shapes_are_those_of_the_original(network):
    model, state, *_ = network
    assert {name: value.shape for name, value in to_published(model).items()} == {n: v.shape for n, v in state.items()}


def test_every_tap_and_the_logits_are_those_of_its_formula(network):
    model, _, images, (taps, logits), sizes = network
    with torch.no_grad():
        trace = model(images, taps=model.tap_names)
    assert [tap.flatten(1).shape[1] for tap in trace.taps.values()] == sizes
    for got, known in zip([*trace.taps.values(), trace.logits], [*taps, logits], strict=True):
        assert ((got - known).norm() / known.norm()) < 1e-10


def test_a_name_too_few_or_too_many_is_refused(network):
    model, state, *_ = network
    name = next(name for name in state if name.endswith("conv2.weight") or name.endswith("C2.weight"))
    for other in ({k: v for k, v in state.items() if k != name}, {**state, "fc3.weight": torch.zeros(3, 3)}):
        with pytest.raises(Refused, match="missing|unexpected"):
            from_published(model, other)


@pytest.mark.parametrize(("build", "stages"), [(VmiResNet34, 7), (BidoResNet18, 10)])
def test_bido_taps_all_stages_or_all_but_the_stem_and_trains_on_them(build, stages):
    labels = torch.arange(6) % 3
    batch = Batch(torch.rand(6, 1, 32, 32), labels, torch.arange(6), torch.ones(6), seeds.generator("batch"))
    for layers, count in ((None, stages), ("blocks", stages - 1)):
        defense = BiDO(measure="hsic", lambda_x=0.05, lambda_y=0.5, layers=layers)
        model = defense.rebuild(build(classes=3, channels=1, size=32))
        assert len(defense.taps) == count and ("stem" in defense.taps) == (layers is None)
        losses = defense.losses(model(batch.images, taps=defense.taps), batch)
        sum(losses.values()).backward()
        held = [name for name, p in model.stages.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not held, held


def test_a_side_that_the_neck_does_not_fit_is_refused():
    with pytest.raises(Refused, match="size: expected a multiple of 32 pixels, got 48"):
        BidoResNet18(classes=3, channels=3, size=48)
