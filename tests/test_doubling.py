"""Transposed convolutions by their four phases: what torch's own give, forward and backward, any number of times."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midefense import doubling, seeds
from midefense.doubling import Doubling, Halving, by_phases, doubled, halved
from midefense.priors.nets.gmi import Critic, Generator

SHAPES = [(3, 0, 0, 4, 5), (5, 2, 1, 4, 4), (5, 2, 0, 3, 6), (4, 1, 0, 5, 5), (3, 1, 1, 2, 3)]


@pytest.fixture
def in_phases(monkeypatch):
    """On a CPU, too."""
    monkeypatch.setattr(doubling, "_in_phases", lambda maps, weight: not weight.requires_grad)


def maps_and_weight(side, height, width):
    rng = seeds.generator("doubling", side, height, width)
    maps = torch.randn(2, 3, height, width, dtype=torch.float64, generator=rng)
    return maps.requires_grad_(), torch.randn(3, 4, side, side, dtype=torch.float64, generator=rng)


@pytest.mark.parametrize(("side", "padding", "more", "height", "width"), SHAPES)
def test_phases_are_the_transposed_convolution(in_phases, side, padding, more, height, width):
    maps, weight = maps_and_weight(side, height, width)
    usual = F.conv_transpose2d(maps, weight, stride=2, padding=padding, output_padding=more)
    got = doubled(maps, weight, padding, more)
    torch.testing.assert_close(got, usual, rtol=0, atol=1e-12)
    double = lambda maps: doubled(maps, weight, padding, more)  # noqa: E731
    halve = lambda maps: halved(maps, weight, padding)  # noqa: E731
    wide = torch.randn(2, 4, 2 * height, 2 * width, dtype=torch.float64, generator=seeds.generator("wide"))
    for way, inputs in ((double, maps), (halve, wide.requires_grad_())):
        assert torch.autograd.gradcheck(way, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(way, inputs, fast_mode=True)
    torch.testing.assert_close(halve(wide), F.conv2d(wide, weight, stride=2, padding=padding), rtol=0, atol=0)
    by_pixels = by_phases(maps.detach().contiguous(memory_format=torch.channels_last), weight, padding, got.shape[2:])
    torch.testing.assert_close(by_pixels, usual.detach(), rtol=0, atol=1e-12)
    assert by_pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wrong", ["other phase", "taps not turned"])
def test_a_plausible_mistake_is_seen(monkeypatch, wrong):
    maps, weight = maps_and_weight(5, 4, 4)
    usual = F.conv_transpose2d(maps, weight, stride=2, padding=2, output_padding=1)
    own = doubling._phase
    if wrong == "other phase":
        monkeypatch.setattr(doubling, "_phase", lambda start, *others: own(1 - start, *others))
    else:
        weight = weight.flip(2, 3)
    assert not torch.allclose(by_phases(maps.detach(), weight, 2, (8, 8)), usual, atol=0.1)


def test_layers_give_what_torchs_do(in_phases):
    """Frozen, by phases; learning, as ever, with a gradient to their weights."""
    with seeds.isolated("doubling", "layers"):
        pairs = [
            (Doubling(3, 4, 5, 2, padding=2, output_padding=1), nn.ConvTranspose2d(3, 4, 5, 2, 2, 1)),
            (Halving(3, 4, 5, 2, padding=2), nn.Conv2d(3, 4, 5, 2, 2)),
        ]
        images = torch.randn(2, 3, 8, 8)
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())
        assert ours(images).equal(theirs(images)), "what learns takes torch's own"
        ours(images).sum().backward()
        assert ours.weight.grad is not None
        torch.testing.assert_close(ours.requires_grad_(False)(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_networks_that_double_and_halve_are_made_of_them():
    shape = {"channels": 1, "size": 32, "width": 2}
    grown = [type(layer) for layer in Generator(latent_size=4, **shape).modules()]
    seen = [type(layer) for layer in Critic(**shape).modules()]
    assert grown.count(Doubling) == 3 and nn.ConvTranspose2d not in grown
    assert seen.count(Halving) == 3


def test_nothing_changes_on_a_cpu(monkeypatch):
    monkeypatch.setattr(doubling, "by_phases", None)
    maps, weight = maps_and_weight(5, 4, 4)
    assert doubled(maps, weight, 2, 1).equal(F.conv_transpose2d(maps, weight, stride=2, padding=2, output_padding=1))
