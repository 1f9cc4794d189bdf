"""The GANs of GMI, KED-MI and PLG-MI as others publish them: both files come into the store under the names of the
original classes, written out here, and nothing may be missing or over."""

import functools
import math

import pytest
import torch
from contract.listing import composed
from torch import Tensor

from midefense import seeds
from midefense.architectures.state_names import to_published
from midefense.exchange.priors import import_prior
from midefense.plan.bind import bind
from midefense.priors.base import Prior
from midefense.store.store import Store
from midefense.types import Refused

WIDTH, LATENT, CLASSES, CHANNELS = 4, 6, 3, 1
WORLD = ("dataset=toy", "dataset.size=64", f"dataset.classes={CLASSES}")
SMALL = (*WORLD[1:], f"prior.width={WIDTH}", f"prior.latent_size={LATENT}")
Shapes = dict[str, tuple[int, ...]]


def running(name: str, width: int) -> Shapes:
    statistics = {f"{name}.{part}": (width,) for part in ("running_mean", "running_var")}
    return {**statistics, f"{name}.num_batches_tracked": ()}


def affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def gmi_generator() -> Shapes:
    """`Generator` of GMI, which KED-MI keeps: a linear layer, three enlargements, and one to the image."""
    shapes = {
        "l1.0.weight": (8 * WIDTH * 16, LATENT),
        **affine("l1.1", 8 * WIDTH * 16),
        **running("l1.1", 8 * WIDTH * 16),
    }
    for index, width in enumerate((4 * WIDTH, 2 * WIDTH, WIDTH)):
        shapes |= {f"l2_5.{index}.0.weight": (2 * width, width, 5, 5), **affine(f"l2_5.{index}.1", width)}
        shapes |= running(f"l2_5.{index}.1", width)
    return {**shapes, "l2_5.3.weight": (WIDTH, CHANNELS, 5, 5), "l2_5.3.bias": (CHANNELS,)}


def gmi_critic() -> Shapes:
    """`DGWGAN` of GMI."""
    shapes, inputs = affine("ls.0", WIDTH, CHANNELS, 5, 5), WIDTH
    for index in (2, 3, 4):
        shapes |= {**affine(f"ls.{index}.0", 2 * inputs, inputs, 5, 5), **affine(f"ls.{index}.1", 2 * inputs)}
        inputs *= 2
    return {**shapes, **affine("ls.5", 1, inputs, 4, 4)}


def ked_critic() -> Shapes:
    """`MinibatchDiscriminator` of KED-MI."""
    shapes, inputs = {}, CHANNELS
    for index, (width, side) in enumerate(((WIDTH, 5), (2 * WIDTH, 5), (4 * WIDTH, 5), (4 * WIDTH, 3)), start=1):
        shapes |= {**affine(f"layer{index}.0", width, inputs, side, side), **affine(f"layer{index}.1", width)}
        inputs = width
    features = 16 * inputs
    return {**shapes, "mbd1.T": (features, 64, 50), **affine("fc_layer", CLASSES, features + 64)}


def plg_generator() -> Shapes:
    """`ResNetGenerator` of PLG-MI, which embeds gains and biases of its norms per class."""
    shapes = affine("l1", 16 * WIDTH * 16, LATENT)
    for block, width in enumerate((8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH), start=2):
        place = f"block{block}"
        shapes |= {**affine(f"{place}.c1", width, 2 * width, 3, 3), **affine(f"{place}.c2", width, width, 3, 3)}
        shapes |= affine(f"{place}.c_sc", width, 2 * width, 1, 1)
        for norm, channels in (("b1", 2 * width), ("b2", width)):
            shapes |= running(f"{place}.{norm}", channels)
            shapes |= {f"{place}.{norm}.{part}.weight": (CLASSES, channels) for part in ("weights", "biases")}
    return {**shapes, **affine("b6", WIDTH), **running("b6", WIDTH), **affine("conv6", CHANNELS, WIDTH, 1, 1)}


def spectral(name: str, *shape: int, bias: bool = True) -> Shapes:
    vectors = {f"{name}.weight_u": shape[:1], f"{name}.weight_v": (math.prod(shape[1:]),)}
    return {f"{name}.weight_orig": shape, **vectors, **({f"{name}.bias": shape[:1]} if bias else {})}


def plg_critic() -> Shapes:
    """`SNResNetProjectionDiscriminator` of PLG-MI."""
    shapes, inputs = {}, CHANNELS
    for block, width in enumerate((WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH, 16 * WIDTH), start=1):
        hidden = width if block == 1 else inputs
        shapes |= spectral(f"block{block}.c1", hidden, inputs, 3, 3)
        shapes |= {
            **spectral(f"block{block}.c2", width, hidden, 3, 3),
            **spectral(f"block{block}.c_sc", width, inputs, 1, 1),
        }
        inputs = width
    return {**shapes, **spectral("l6", 1, inputs), **spectral("l_y", CLASSES, inputs, bias=False)}


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    """A state of these shapes, of small numbers; variances and the vectors of spectral norms are what they must be."""
    state = {}
    for index, (name, shape) in enumerate(shapes.items()):
        numbers = 0.1 * torch.randn(shape, generator=seeds.generator("published", index))
        if name.endswith("tracked"):
            numbers = torch.tensor(3)
        elif name.endswith("running_var"):
            numbers = 1 + numbers.abs()
        elif name.endswith(("_u", "_v")):
            numbers = numbers / numbers.norm()
        elif name in ("conv6.bias", "l1.bias"):  # a tanh that has learned [0, 1]
            numbers = numbers + 0.5
        state[name] = numbers
    return state


# How the repositories save a network, by the prior.
KINDS = {
    "gmi_gan": (gmi_generator, gmi_critic, lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
    "ked_gan": (gmi_generator, ked_critic, lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
    "plg_gan": (plg_generator, plg_critic, lambda state: {"n_iter": 30000, "model": state, "opt": {"state": {}}}),
}


@pytest.fixture(params=KINDS)
def published(request, tmp_path, store, run_verb):
    """The name of a prior, the states of its original's two networks, and what imports them."""
    name, (generator, critic, saved) = request.param, KINDS[request.param]
    states = {"generator": drawn(generator()), "critic": drawn(critic())}
    target = None
    if name != "gmi_gan":
        words = ("architecture=mlp", "architecture.widths=[4]", "architecture.size=16", "recipe.epochs=1")
        target = run_verb("train_target", *WORLD, *words).id

    def bring(**changed):
        files = {}
        for part, state in {**states, **changed}.items():
            files[part] = tmp_path / f"{part}.tar"
            torch.save(saved(state), files[part])
        come_in = functools.partial(import_prior, Store(store), prior=name, dataset="toy", overrides=SMALL)
        return come_in(files["generator"], critic=files["critic"], learned_from=target)

    return name, states, bring


def blank(name: str) -> Prior:
    """The prior as the import builds it."""
    config = composed("attack", "dataset=toy", f"prior={name}", *SMALL)[0]
    return (
        bind(config["prior"], "prior", beside_dataset=True).given(channels=CHANNELS, size=64, classes=CLASSES).build()
    )


def test_both_networks_come_in_under_their_original_names_and_nothing_is_missing_or_over(published):
    name, states, bring = published
    for part, state in states.items():
        first = next(key for key in state if not key.endswith("tracked"))
        wrong = {
            "missing": {key: value for key, value in state.items() if key != first},
            "unexpected": {**state, "more.weight": torch.zeros(2, 2)},
            "shape": {**state, first: state[first][:-1]},
        }
        for what, changed in wrong.items():
            with pytest.raises(Refused) as refusal:
                bring(**{part: changed})
            assert what in str(refusal.value) or first in str(refusal.value), (part, what, str(refusal.value))
    brought = bring().tensors()
    module = blank(name)
    module.load_state_dict(brought)
    for part, state in states.items():
        ours = to_published(getattr(module, part))
        assert ours.keys() == state.keys()
        assert [key for key, value in state.items() if not torch.equal(ours[key], value)] == []
