"""How much of the weights training images leave unexplained: networks whose answer is known, and the problem solved
another way."""

import math

import numpy as np
import pytest
import torch
from planted import planted
from scipy.optimize import nnls
from torch import nn

from midefense import seeds
from midefense.architectures.homogeneous import HomogeneousMLP
from midefense.architectures.network_inversion import NetworkInversionCNN
from midefense.architectures.tiny_vit import TinyViT
from midefense.defenses.vib import Sample
from midefense.metrics import unexplained as module
from midefense.metrics.base import World
from midefense.metrics.unexplained import UnexplainedWeights, unexplained
from midefense.types import Images, Trace

CLASSES, PER_CLASS, SIDE = 3, 4, 6
LABELS = torch.arange(CLASSES).repeat_interleave(PER_CLASS)


def pictures(seed, count=PER_CLASS):
    rng = seeds.generator("pictures", seed)
    pixels = torch.randint(0, 256, (CLASSES * count, 1, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    return Images(pixels, labels, torch.arange(len(labels)) + 1000 * seed, list("abc"))


TRAIN, TESTS = pictures(1), pictures(2, count=9)


class Linear(nn.Module):
    """Logits that are linear in the pixels: gradients of margins do not depend on the weights, so that any sum of them
    can be planted."""

    def __init__(self, images, labels, multipliers):
        super().__init__()
        weight = torch.zeros(CLASSES, SIDE * SIDE)
        for image, label, row in zip(images.flatten(1), labels.tolist(), multipliers, strict=True):
            others = [other for other in range(CLASSES) if other != label]
            for other, multiplier in zip(others, row, strict=True):
                weight[label] += multiplier * image
                weight[other] -= multiplier * image
        self.weight = nn.Parameter(weight)

    def forward(self, images, taps=()):
        return Trace(images.flatten(1) @ self.weight.T, images.flatten(1))


def planted_multipliers():
    rng = seeds.generator("multipliers")
    return torch.rand(len(LABELS), CLASSES - 1, generator=rng) * (torch.rand(len(LABELS), 2, generator=rng) > 0.3)


def world(target, **changes):
    return World(
        **{"references": TRAIN, "evaluators": {}, "classes": CLASSES, "tests": TESTS, "target": target, **changes}
    )


def test_training_images_that_were_planted_explain_all_and_others_do_not():
    wanted = planted_multipliers()
    model = Linear(TRAIN.floats(), LABELS, wanted)
    share, multipliers = unexplained(model, TRAIN.floats(), LABELS, CLASSES)
    assert share < 1e-12
    assert torch.allclose(multipliers.float(), wanted, atol=1e-4), "the multipliers that were planted"
    found = UnexplainedWeights().compute(world(model))
    assert found["unexplained_weights/train"].value < 1e-12
    assert 0.01 < found["unexplained_weights/held_out"].value < 1
    assert all(number.higher_leaks is None and number.low is None for number in found.values())


def test_a_planted_network_with_a_hidden_layer():
    """Its images lie outside [0, 1], and every neuron's weights are a sum of some of them."""
    model, images, labels, multiplier = planted()
    share, multipliers = unexplained(model, images, labels, 2)
    assert share < 1e-14 and torch.allclose(multipliers, torch.full((6, 1), multiplier).double(), atol=1e-6)
    assert unexplained(model, images, labels, 2, "runner_up")[0] < 1e-14
    assert unexplained(model, images, 1 - labels, 2)[0] == 1, "with the other label each gradient points away"
    strangers = torch.randn(images.shape, dtype=torch.float64, generator=seeds.generator("strangers")) / 4
    assert unexplained(model, strangers, labels, 2)[0] > 0.3


def directly(model, images, labels):
    """The same by a loop over images and classes, and the problem solved as it reads."""
    model = model.double().eval()
    parameters = list(model.parameters())
    columns = []
    for image, label in zip(images.double(), labels.tolist(), strict=True):
        logits = model(image[None]).logits[0]
        for other in range(CLASSES):
            if other != label:
                margin = logits[label] - logits[other]
                made = torch.autograd.grad(margin, parameters, retain_graph=True, materialize_grads=True)
                columns.append(torch.cat([part.flatten() for part in made]))
    flat = torch.cat([value.detach().flatten() for value in parameters]).numpy()
    return nnls(torch.stack(columns, 1).numpy(), flat)[1] ** 2 / np.square(flat).sum()


def networks():
    with seeds.isolated("networks"):
        yield HomogeneousMLP(classes=CLASSES, channels=1, size=SIDE, widths=(8, 6), first_deviation=None)
        yield NetworkInversionCNN(classes=CLASSES, channels=1, size=SIDE, widths=(3,), features=4)
        yield TinyViT(classes=CLASSES, channels=1, size=SIDE, patch=3, width=8, heads=2)


@pytest.mark.parametrize("model", list(networks()), ids=lambda model: type(model).__name__)
def test_it_is_the_least_distance_of_any_network(model, monkeypatch):
    images = TRAIN.floats()
    share, multipliers = unexplained(model, images, LABELS, CLASSES)
    assert model.training and next(model.parameters()).dtype == torch.float32, "a copy is asked"
    assert bool((multipliers >= 0).all()) and multipliers.shape == (len(LABELS), CLASSES - 1)
    assert unexplained(model, images, LABELS, CLASSES, "runner_up")[0] >= share, "it has fewer multipliers"
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert unexplained(model, images, LABELS, CLASSES)[0] == pytest.approx(share, rel=1e-9), "image by image"
    assert share == pytest.approx(directly(model, images, LABELS), rel=1e-6)


def test_gradients_of_nothing_explain_nothing():
    model = Linear(TRAIN.floats(), LABELS, planted_multipliers())
    assert unexplained(model, torch.zeros(len(LABELS), 1, SIDE, SIDE), LABELS, CLASSES)[0] == 1


def test_what_cannot_be_said_is_said_so():
    model = Linear(TRAIN.floats(), LABELS, planted_multipliers())
    names = {"unexplained_weights/train", "unexplained_weights/held_out"}

    def reasons(metric=None, **changes):
        found = (metric or UnexplainedWeights()).compute(world(**{"target": model, **changes}))
        assert set(found) == names
        return {name.split("/")[1]: number.reason for name, number in found.items() if math.isnan(number.value)}

    assert reasons() == {}
    many = reasons(UnexplainedWeights(columns=23))
    assert set(many) == {"train", "held_out"} and "24 multipliers, more than the 23" in many["train"]
    assert reasons(UnexplainedWeights(columns=23, coefficients="runner_up")) == {}
    few = reasons(tests=TESTS.take(TESTS.labels != 1))
    assert set(few) == {"held_out"} and "of classes [1]" in few["held_out"]
    assert set(reasons(tests=None)) == {"held_out"}
    assert set(reasons(target=None)) == {"train", "held_out"}
    drawing = nn.Sequential(Sample(always=True))
    assert "draws for every answer" in reasons(target=drawing)["held_out"]


def test_held_out_images_are_drawn_the_same_each_time():
    model = Linear(TRAIN.floats(), LABELS, planted_multipliers())
    one, again = (UnexplainedWeights().compute(world(model)) for _ in range(2))
    name = "unexplained_weights/held_out"
    assert one[name].value == again[name].value
    assert UnexplainedWeights(draws=1).compute(world(model))[name].value != one[name].value
