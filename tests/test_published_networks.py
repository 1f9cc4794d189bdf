"""The low-resolution networks of the field, name by name and number by number.

Known answers were recorded from the original implementations, whose weights were drawn from their names: in full under
`shared/reference` beside the repository, and a few of them here.
"""

import functools
import json
import math
import zlib

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from midefense.architectures.face_evolve import FaceEvolve
from midefense.architectures.low_resolution_resnets import BidoResNet18, VmiResNet34
from midefense.architectures.mnist_cnn import MCNN, SCNN
from midefense.architectures.small import MLP
from midefense.architectures.state_names import from_published, published_names, to_published
from midefense.architectures.vgg import VGG16
from midefense.priors.nets import gmi, ked, plg
from midefense.types import Refused, Trace

REFERENCE = ROOT.parent / "shared" / "reference"

# Per original: our network at the recorded size, and the recorded parameter count.
NETWORKS = {
    "gan64.Generator": (lambda: gmi.Generator(latent_size=100, channels=3, size=64, width=64), 5_142_083),
    "gan64.DGWGAN": (lambda: gmi.Critic(channels=3, size=64, width=64), 4_316_545),
    "gan64.MinibatchDiscriminator": (
        lambda: ked.Discriminator(classes=1000, channels=3, size=64, width=64),
        18_888_936,
    ),
    "target64.VGG16": (lambda: VGG16(classes=20, channels=3), 14_768_212),
    "target64.IR152": (lambda: FaceEvolve(classes=20, channels=3, depth=152), 62_097_108),
    "target64.FaceNet64": (lambda: FaceEvolve(classes=20, channels=3), 34_934_484),
    "eval112.FaceNet": (lambda: FaceEvolve(classes=20, channels=3, size=112), 43_585_236),
    "target32.MCNN": (lambda: MCNN(classes=5, channels=1), 1_029_765),
    "eval32.SCNN": (lambda: SCNN(classes=10, channels=1), 1_740_234),
    "gan32.GeneratorMNIST": (lambda: gmi.Generator(latent_size=100, channels=1, size=32, width=64), 1_443_777),
    "gan32.MinibatchDiscriminator_MNIST": (
        lambda: ked.Discriminator(classes=5, channels=1, size=32, width=64),
        14_154_949,
    ),
    "gan32.DGWGAN32": (lambda: gmi.Critic(channels=1, size=32, width=64), 1_030_913),
    "plg64.ResNetGenerator": (
        lambda: plg.Generator(classes=20, latent_size=128, channels=3, size=64, width=64),
        12_328_579,
    ),
}


def drawn(name: str, shape: tuple[int, ...], gain: float) -> torch.Tensor:
    """The recorded networks' weight `name`: every one comes from a generator seeded by its name."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape)
    if len(shape) >= 2:
        values = gain * noise / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(noise)
    elif name.endswith("weight"):
        values = 1 + 0.1 * noise
    else:
        values = 0.1 * noise
    return torch.from_numpy(np.asarray(values)).float()


def filled(module: nn.Module, shapes: dict[str, tuple[int, ...]], gain: float = 1.0) -> nn.Module:
    """`module` with the recorded weights of these published names and shapes, in eval mode."""
    state = {name: drawn(name, tuple(shape), gain) for name, shape in shapes.items()}
    module.load_state_dict(from_published(module, state))
    back = to_published(module)
    assert set(back) == set(state) and all(torch.equal(back[name], tensor) for name, tensor in state.items())
    return module.eval()


def outputs(module: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        answer = module(*inputs)
    if isinstance(answer, Trace):
        return [answer.features, answer.logits]
    return list(answer) if isinstance(answer, tuple) else [answer]


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@functools.cache
def reference() -> dict:
    if not REFERENCE.is_dir():
        pytest.skip(f"the recorded answers of the original implementations are not at {REFERENCE}")
    return json.loads((REFERENCE / "networks.json").read_text())


def recorded(name: str, kind: str) -> list[torch.Tensor]:
    with np.load(REFERENCE / "networks.npz") as arrays:
        keys = sorted(key for key in arrays.files if key.startswith(f"{name}/{kind}"))
        return [torch.from_numpy(arrays[key]) for key in keys]


def test_every_recorded_network_is_reproduced():
    assert set(reference()) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_original_state_dict_gives_the_recorded_outputs(name):
    facts, (build, parameters) = reference()[name], NETWORKS[name]
    module = filled(build(), facts["state"], facts["gain"])
    assert parameter_count(module) == facts["n_params"] == parameters
    inputs, expected = recorded(name, "in"), recorded(name, "out")
    assert inputs and expected
    for got, known in zip(outputs(module, *inputs), expected, strict=True):
        error = (got - known).norm() / known.norm()
        assert got.shape == known.shape and error < 1e-4


def ramp(*shape: int) -> torch.Tensor:
    """Images or latents that need no file: values 0, 1/16, ..., 1, over and over."""
    return (torch.arange(math.prod(shape)) % 17 / 16).view(shape)


# Input shape and, of each output, its first, middle and last value, taken from networks that pass the test above.
SMALL = {
    "target32.MCNN": ((3, 1, 32, 32), [[-0.004221, -0.049809, 0.682122], [0.205894, 0.415023, 0.016056]]),
    "eval32.SCNN": ((3, 1, 32, 32), [[0.265024, -0.009945, 0.011429], [-0.022302, -0.151492, -0.010639]]),
    "gan32.GeneratorMNIST": ((3, 100), [[0.356253, 0.429309, 0.462478]]),
    "gan32.DGWGAN32": ((3, 1, 32, 32), [[1.231471, 0.464286, -1.296779]]),
    "gan32.MinibatchDiscriminator_MNIST": (
        (3, 1, 32, 32),
        [[-0.266383, -0.009688, -0.175756], [0.161666, -0.144688, -0.160172]],
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_give_known_numbers(name):
    (shape, expected), (build, parameters) = SMALL[name], NETWORKS[name]
    module = build()
    assert parameter_count(module) == parameters
    filled(module, {key: tuple(tensor.shape) for key, tensor in to_published(module).items()})
    values = [output.flatten() for output in outputs(module, ramp(*shape))]
    got = torch.stack([value[[0, len(value) // 2, -1]] for value in values])
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "parameters", "features"),
    [
        (lambda: VGG16(classes=1000, channels=3), 16_776_232, 2048),
        (lambda: FaceEvolve(classes=1000, channels=3, depth=152), 62_599_848, 512),
        (lambda: FaceEvolve(classes=1000, channels=3), 35_437_224, 512),
        (lambda: FaceEvolve(classes=1000, channels=3, size=112), 44_087_976, 512),
        (lambda: MCNN(classes=5, channels=1), 1_029_765, 256),
        (lambda: SCNN(classes=10, channels=1), 1_740_234, 512),
        (lambda: VmiResNet34(classes=1000, channels=3), 21_362_446, 50),
        (lambda: BidoResNet18(classes=1000, channels=3), 12_732_968, 512),
    ],
    ids=["vgg16_64", "ir152_64", "facenet64", "facenet112", "mcnn", "scnn", "resnet34_vmi", "resnet18_bido"],
)
def test_classifiers_have_the_published_size(build, parameters, features):
    with torch.device("meta"):
        model = build()
    assert parameter_count(model) == parameters and model.feature_width == features


def test_the_conditional_generator_has_the_published_size():
    with torch.device("meta"):
        generator = plg.Generator(classes=1000, latent_size=128, channels=3, size=64, width=64)
    assert parameter_count(generator) == 17_973_379


def test_names_are_stripped_of_wrappers_that_all_share():
    module = MCNN(classes=5, channels=1)
    published = to_published(module)
    for wrapper in ("module.", "model._orig_mod.", "_orig_mod.module."):
        wrapped = {f"{wrapper}{name}": tensor for name, tensor in published.items()}
        state = from_published(module, wrapped)
        assert list(state) == list(module.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    published["module.fc_layer.bias"] = published.pop("fc_layer.bias")
    with pytest.raises(Refused, match=r"1 missing \(fc_layer.bias\); 1 unexpected \(module.fc_layer.bias\)"):
        from_published(module, published)


def test_a_network_without_a_table_keeps_its_own_names():
    module = MLP(classes=3, channels=1, size=4, widths=[5])
    own = module.state_dict()
    assert list(to_published(module)) == list(own)
    assert list(from_published(module, {f"module.{name}": tensor for name, tensor in own.items()})) == list(own)
    outer = nn.ModuleDict({"model": nn.Linear(2, 2)})  # a name of its own, no wrapper
    assert list(from_published(outer, outer.state_dict())) == ["model.weight", "model.bias"]


def test_the_longest_prefix_decides_and_ends_at_a_dot():
    table = {"body": "stage", "body.7": "stage.1", "head": "fc"}
    names = ["stage.0.weight", "stage.1.weight", "stage.10.weight", "fc.bias", "fcs.bias"]
    expected = ["body.0.weight", "body.7.weight", "body.10.weight", "head.bias", "fcs.bias"]
    assert list(published_names(names, table).values()) == expected


def test_a_state_that_does_not_fit_is_refused_with_the_first_names():
    module = MCNN(classes=5, channels=1)
    other_classes = to_published(MCNN(classes=7, channels=1))
    with pytest.raises(Refused, match=r"2 of another shape \(fc_layer.weight \[7, 256\] instead of \[5, 256\], fc_"):
        from_published(module, other_classes)
    with pytest.raises(Refused, match=r"the 23 names and shapes of MCNN.* 23 missing \(feature.0.weight, .*\.\.\.\)"):
        from_published(module, {"weight": torch.zeros(2)})
