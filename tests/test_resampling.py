"""Crops, resizes and warps by sums in a fixed order, against torch's own."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import midefense
from midefense.attacks.views import RandomResizedCrop
from midefense.priors import augmentation
from midefense.priors.augmentation import Augmentation
from midefense.resampling import (
    Warp,
    cropped_by_taps,
    resized,
    resized_by_taps,
    stretched,
    stretched_by_taps,
    turned,
    turned_by_taps,
)
from midefense.training import augmentations
from midefense.training.augmentations import ResizedCrop

SOURCE = Path(midefense.__file__).parent


def images_of(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def same(ours, theirs, images, tolerance=1e-12):
    """Values and gradients agree; the gradient of a sum with random weights sees every output."""
    weights = images_of(*ours.shape, seed=1).detach()
    (mine,) = torch.autograd.grad((ours * weights).sum(), images)
    (other,) = torch.autograd.grad((theirs * weights).sum(), images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    torch.testing.assert_close(mine, other, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(
    "sides", [(8, 8, 5, 5), (5, 7, 12, 4), (9, 3, 3, 9), (40, 32, 7, 32), (1, 1, 4, 4), (6, 6, 1, 1)]
)
def test_a_resize_is_torchs_antialiased_one(sides):
    height, width, to_height, to_width = sides
    images = images_of(2, 3, height, width)
    theirs = F.interpolate(images, size=(to_height, to_width), mode="bilinear", antialias=True)
    same(resized_by_taps(images, to_height, to_width), theirs, images)
    assert resized(images, to_height, to_width).equal(theirs)


def test_twice_as_large_is_torchs_plain_bilinear():
    images = images_of(2, 3, 5, 4)
    same(resized_by_taps(images, 10, 8), F.interpolate(images, scale_factor=2, mode="bilinear"), images)


def test_what_has_the_size_comes_back_itself():
    images = torch.rand(1, 1, 4, 6)
    assert resized(images, 4, 6).equal(images)


def by_grid(images, boxes):
    """The crop as torch's affine grid reads it."""
    width, height, x, y = boxes.to(images.dtype).unbind(1)
    zero = torch.zeros_like(width)
    affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@pytest.mark.parametrize("shape", [(40, 3, 9, 9), (40, 1, 6, 13), (3, 2, 1, 1)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.9, 1.0), (1.0, 1.0)), ((0.5, 0.9), (0.8, 1.2)), ((0.01, 0.3), (0.3, 3.0))]
)
def test_a_crop_is_torchs_affine_grid_with_every_gradient(shape, scale, ratio):
    images = images_of(*shape)
    view = RandomResizedCrop(scale=scale, ratio=ratio, flip=0.5)
    draws = view.draw(len(images), torch.Generator().manual_seed(3))
    same(cropped_by_taps(images, draws, view.smallest), view(images, draws), images, 1e-6)  # the draws are float32
    torch.testing.assert_close(view(images, draws), by_grid(images, draws), rtol=0, atol=0)


def test_the_least_box_that_is_told_is_the_least_that_may_come():
    images = images_of(1, 1, 30, 30)
    box = torch.tensor([[0.2, 0.2, 0.0, 0.0]])
    same(cropped_by_taps(images, box, 0.2), by_grid(images, box), images, 1e-6)
    with pytest.raises(AssertionError):  # who reads a pixel is looked for too near
        same(cropped_by_taps(images, box, 1.0), by_grid(images, box), images, 1e-6)


def test_a_box_cut_out_first_shows_nothing_of_what_lies_beside_it():
    images = images_of(1, 1, 8, 8)
    box = torch.tensor([[0.5, 0.25, -0.25, 0.5]])  # columns 1 to 4, rows 5 and 6
    cut = F.interpolate(images[..., 5:7, 1:5], size=(8, 8), mode="bilinear")
    same(cropped_by_taps(images, box, 0.25, apart=True), cut, images)
    assert not torch.allclose(cropped_by_taps(images, box, 0.25), cut)


@pytest.mark.parametrize("by_taps", [False, True])
def test_training_crops_are_cut_and_then_resized(by_taps, monkeypatch):
    if by_taps:
        monkeypatch.setattr(augmentations, "cropped", cropped_by_taps)
    images = images_of(6, 2, 12, 16)
    rng, again = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    crop = ResizedCrop(scale=(0.05, 1.0), ratio=(0.5, 2.0))
    shown = crop(images, rng)
    area = 12 * 16 * (torch.rand(6, generator=again, dtype=torch.float64) * 0.95 + 0.05)
    log = torch.tensor(2.0, dtype=torch.float64).log()
    ratio = (torch.rand(6, generator=again, dtype=torch.float64) * 2 * log - log).exp()
    wide, tall = (area * ratio).sqrt().round().clamp(1, 16), (area / ratio).sqrt().round().clamp(1, 12)
    top = (torch.rand(6, generator=again, dtype=torch.float64) * (12 - tall + 1)).floor()
    left = (torch.rand(6, generator=again, dtype=torch.float64) * (16 - wide + 1)).floor()
    edges = zip(*(side.int().tolist() for side in (top, top + tall, left, left + wide)), strict=True)
    expected = torch.cat(
        [
            F.interpolate(images[row : row + 1, :, up:down, west:east], size=(12, 16), mode="bilinear")
            for row, (up, down, west, east) in enumerate(edges)
        ]
    )
    same(shown, expected, images)


def test_a_warp_is_torchs_grid_sample():
    images = images_of(2, 3, 7, 9)
    turned = torch.tensor([[[0.9, 0.4, 0.1], [-0.3, 1.1, -0.2]]], dtype=torch.float64)
    grid = F.affine_grid(turned, [1, 1, 5, 6], align_corners=False)
    warp, theirs = (
        Warp(grid.flatten(0, 2), 5, 6),
        F.grid_sample(images, grid.expand(2, -1, -1, -1), align_corners=False),
    )
    assert warp(images).equal(theirs)
    same(warp.by_taps(images), theirs, images)


@pytest.mark.parametrize("side", [2, 7, 16])
def test_a_turn_is_torchs_affine_grid_with_every_gradient(side):
    images = images_of(9, 3, side, side)
    degrees = torch.tensor([0, 5, -5, 45, -60, 90, 133.3, 180, 1e-9], dtype=torch.float64)
    same(turned_by_taps(images, degrees.deg2rad()), turned(images, degrees.deg2rad()), images, 1e-11)


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_a_box_by_its_corners_is_torchs_affine_grid_with_every_gradient(share):
    images, rng = images_of(12, 3, 21, 21), torch.Generator().manual_seed(5)
    reach = torch.randint(round(20 * share), 21, (12, 2), generator=rng)
    first = (torch.rand(12, 2, generator=rng) * (21 - reach)).floor()
    corners = torch.cat([first, first + reach], 1).double()
    corners[::2] = corners[::2][:, [2, 1, 0, 3]]  # mirrored
    same(stretched_by_taps(images, corners, share), stretched(images, corners, share), images)


def test_plg_mis_augmentation_is_the_same_by_sums_in_a_fixed_order(monkeypatch):
    images, views = images_of(30, 3, 16, 16), Augmentation(scale=(0.05, 1.0), rotation=0.9, degrees=180.0)
    how = views.parameters(views.draw(30, torch.Generator().manual_seed(0)).double(), 16)
    theirs = augmentation.apply(images, how)
    monkeypatch.setattr(augmentation, "stretched", stretched_by_taps)
    monkeypatch.setattr(augmentation, "turned", turned_by_taps)
    same(augmentation.apply(images, how), theirs, images, 1e-10)


def test_gradients_have_gradients():
    images = images_of(2, 1, 4, 5)
    assert torch.autograd.gradgradcheck(lambda pixels: resized_by_taps(pixels, 3, 7).square(), images)


def test_numbers_keep_their_kind():
    for kind in (torch.float32, torch.bfloat16):
        images = torch.rand(1, 1, 4, 4, dtype=kind)
        assert (
            resized_by_taps(images, 6, 6).dtype
            == cropped_by_taps(images, torch.tensor([[0.5, 0.5, 0, 0]]), 0.5).dtype
            == kind
        )


def test_nothing_else_of_the_package_resamples_in_an_order_of_its_own():
    """Images of datasets are resized once, on a CPU, in float64 (pinned by their hashes)."""
    there = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"F\.(grid_sample|interpolate)\(", path.read_text())
    }
    assert there == {"datasets/base.py", "resampling.py"}, "try midefense.resampling"
