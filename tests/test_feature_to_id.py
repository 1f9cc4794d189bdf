"""The oracle-assisted diagnostic: whom a network that learned from private identities sees in released features."""

import functools
import math

import pytest
import torch

from midefense.architectures.inverters import Recogniser
from midefense.metrics.base import Released, World
from midefense.metrics.recognition import NAME, FeatureToId
from midefense.types import Images, Refused

CLASSES = 4


def people(count, first):
    """`count` pictures of each of four people, grey 8 px: whose corner is bright."""
    rng = torch.Generator().manual_seed(first)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    pixels = torch.randint(0, 120, (len(labels), 1, 8, 8), dtype=torch.uint8, generator=rng)
    for row, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        pixels[row, :, top : top + 4, left : left + 4] += 60
    return Images(pixels, labels, torch.arange(first, first + len(labels)), list("abcd"))


def edge(images):
    """Maps [B, 2, 4, 4]."""
    small = torch.nn.functional.avg_pool2d(images, 2)
    return torch.cat([small, 1 - small], 1)


def world(change=lambda features: features, tests=None):
    train, tests = people(20, 0), people(6, 1000) if tests is None else tests
    clean = edge(tests.floats())
    released = Released(tests.ids, change(clean), clean, cloud=None, labels=tests.labels, edge=edge)
    return World(train, {}, CLASSES, tests=tests, released=released)


def metric(**changes):
    head = functools.partial(Recogniser, width=8)
    return FeatureToId(head=head, **{"epochs": 20, "batch_size": 20, "learning_rate": 0.01, **changes})


def test_it_names_people_as_far_as_their_features_do():
    whole = metric().compute(world())
    assert whole[f"{NAME}/released"].value == whole[f"{NAME}/clean"].value == 1.0
    assert whole[f"{NAME}/released"].higher_leaks and whole[f"{NAME}/released"].n == 24
    empty = metric().compute(world(torch.zeros_like))
    assert empty[f"{NAME}/clean"].value == 1.0
    assert empty[f"{NAME}/released"].value == pytest.approx(1 / CLASSES), "all look alike: one of four is right"
    others = metric().compute(world(lambda features: features.roll(6, 0)))
    assert others[f"{NAME}/released"].value == 0.0, "the next person's feature"
    assert metric().chance(world()) == {f"{NAME}/released": 0.25, f"{NAME}/clean": 0.25}
    assert NAME.endswith("oracle_assisted")


def test_it_is_the_same_each_time():
    one, two = (metric(epochs=2, learning_rate=1e-3).compute(world()) for _ in range(2))
    assert one[f"{NAME}/clean"].per_class == two[f"{NAME}/clean"].per_class


def test_what_it_cannot_say_is_said():
    nothing = World(people(20, 0), {}, CLASSES, tests=people(6, 1000))
    found = metric().compute(nothing)
    assert all(math.isnan(value.value) and "nothing was released" in value.reason for value in found.values())
    assert metric().chance(nothing) == {}
    own = metric().compute(world(tests=people(20, 0)))
    assert all("it learned from the very images; try evidence.part=test" in value.reason for value in own.values())
    half = metric(epochs=1).compute(world(lambda features: features[:, :1]))
    assert "it learned from features [2, 4, 4], got [1, 4, 4]" in half[f"{NAME}/released"].reason
    assert half[f"{NAME}/clean"].value >= 0
    with pytest.raises(Refused, match="head: expected a function of observed and classes, got 3"):
        FeatureToId(head=3)


def test_vectors_will_do():
    assert Recogniser(observed=(5,), classes=3)(torch.zeros(2, 5)).shape == (2, 3)
    with pytest.raises(Refused, match="Recogniser: expected square maps"):
        Recogniser(observed=(5, 4), classes=3)
