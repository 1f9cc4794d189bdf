"""Matching reconstructions with training images one to one, and the same matching with held-out images."""

import math

import pytest
import torch

from midefense import seeds
from midefense.metrics.base import Judged, World
from midefense.metrics.matched import Matched, ssim_of_pairs, stretched
from midefense.types import Images, Refused

CLASSES, PER_CLASS, SIDE = 3, 4, 12


def pictures(count, seed, classes=CLASSES):
    """Blobs that differ from image to image, of a few pixels' width, as uint8 [classes * count, 1, S, S]."""
    rng = seeds.generator("pictures", seed)
    coarse = torch.rand(classes * count, 1, 4, 4, generator=rng)
    pixels = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear").mul(255).round().to(torch.uint8)
    labels = torch.arange(classes).repeat_interleave(count)
    return Images(pixels, labels, torch.arange(len(labels)) + 1000 * seed, [str(label) for label in range(classes)])


TRAIN, TESTS = pictures(PER_CLASS, 1), pictures(8, 2)


def world(**changes):
    return World(**{"references": TRAIN, "tests": TESTS, "evaluators": {}, "classes": CLASSES, **changes})


def measured(images, labels, metric=None, order=None, **changes):
    """Numbers of images [M, 1, S, S] in [0, 1]; `order`: the order in which they are shown."""
    metric = Matched(nulls=5) if metric is None else metric
    metric.reset()
    order = torch.arange(len(labels)) if order is None else order
    ranks = torch.cat([torch.arange(int((labels == label).sum())) for label in labels.unique()])
    within = world(**changes)
    for rows in order.split(5):
        metric.update(Judged(images[rows], labels[rows], ranks[rows]), within)
    return metric.compute(within), metric.drawings()


def test_copies_are_recognised_whatever_their_order():
    copies = TRAIN.floats()
    shuffle = torch.cat([torch.randperm(PER_CLASS) + PER_CLASS * label for label in range(CLASSES)])
    numbers, drawings = measured(copies[shuffle], TRAIN.labels)
    assert numbers["matched_ssim/train"].value == pytest.approx(1)
    assert numbers["matched_best/train"].value == pytest.approx(1)
    assert numbers["reconstructed_share/train"].value == 1
    assert numbers["matched_ssim/held_out"].value < 0.7
    gain = numbers["matched_ssim_gain/train"]
    assert gain.value == pytest.approx(1 - numbers["matched_ssim/held_out"].value)
    assert gain.low <= gain.value <= gain.high
    assert drawings["matched.ids"].sort().values.tolist() == TRAIN.ids.tolist(), "one to one"
    for row, known in zip(drawings["matched.rows"], drawings["matched.ids"], strict=True):
        assert torch.equal(copies[shuffle][row], copies[TRAIN.ids == known][0])


def test_the_best_pairs_stand_beside_the_best_of_held_out_images():
    """Of any twelve pairs five are better than the mean: only beside those of held-out images they say something."""
    mixed = torch.cat([TRAIN.floats()[:6], pictures(50, 9).floats()[:6]])
    numbers, drawings = measured(mixed, TRAIN.labels)
    for count in (5, 10):
        best = drawings["matched.ssim"].sort(descending=True).values[:count]
        assert numbers[f"matched_best{count}/train"].value == pytest.approx(float(best.mean()))
        assert numbers[f"matched_best{count}/held_out"].value > numbers["matched_ssim/held_out"].value
    strangers, _ = measured(pictures(PER_CLASS, 4).floats(), TRAIN.labels)
    gap = strangers["matched_best5/train"].value - strangers["matched_best5/held_out"].value
    assert abs(gap) < 0.1 < strangers["matched_best5/train"].value - strangers["matched_ssim/train"].value
    few, _ = measured(TRAIN.floats()[:4], TRAIN.labels[:4])
    assert math.isnan(few["matched_best5/train"].value) and "4 pairs, fewer than 5" in few["matched_best5/train"].reason


def test_what_is_like_every_image_of_its_class_is_no_reconstruction():
    """Means of a class over images of others, and such images themselves, gain nothing."""
    strangers = pictures(50, 9)
    likeness = torch.stack([strangers.floats()[strangers.labels == label].mean(0) for label in TRAIN.labels])
    numbers, _ = measured(likeness, TRAIN.labels)
    assert numbers["reconstructed_share/train"].value == 0
    others = pictures(PER_CLASS, 3)
    gains = [measured(pictures(PER_CLASS, seed).floats(), others.labels)[0] for seed in range(3, 9)]
    assert abs(sum(number["matched_ssim_gain/train"].value for number in gains) / len(gains)) < 0.05
    assert all(number["reconstructed_share/train"].value <= 0.25 for number in gains)


def test_a_matching_is_one_to_one():
    """One copy shown many times is one reconstruction; a nearest neighbour without matching would count it for all."""
    one = TRAIN.floats()[:1].expand(PER_CLASS, -1, -1, -1)
    images, labels = torch.cat([one, TRAIN.floats()[PER_CLASS:]]), TRAIN.labels
    numbers, _ = measured(images, labels)
    assert numbers["matched_ssim/train"].per_class[0] < 0.9
    assert numbers["matched_ssim/train"].per_class[1] == pytest.approx(1)


def test_the_order_of_images_does_not_matter_and_noise_is_worse():
    images = (TRAIN.floats() + 0.1 * torch.randn(TRAIN.pixels.shape, generator=seeds.generator("noise"))).clamp(0, 1)
    numbers, _ = measured(images, TRAIN.labels)
    again, _ = measured(images, TRAIN.labels, order=torch.randperm(len(images)))
    assert {name: number.value for name, number in numbers.items()} == {
        name: number.value for name, number in again.items()
    }
    noisier = torch.rand(TRAIN.pixels.shape, generator=seeds.generator("noise"))
    worse, _ = measured(noisier, TRAIN.labels)
    assert worse["matched_ssim/train"].value < numbers["matched_ssim/train"].value < 1


def test_fewer_candidates_than_images_are_matched_with_some_of_them():
    rows = torch.tensor([0, 4, 5, 8])
    numbers, drawings = measured(TRAIN.floats()[rows], TRAIN.labels[rows])
    assert numbers["matched_ssim/train"].n == 4 and drawings["matched.ids"].tolist() == TRAIN.ids[rows].tolist()


def test_without_enough_held_out_images_there_is_nothing_to_hold_it_against():
    few = TESTS.take(TESTS.labels != 1)
    numbers, _ = measured(TRAIN.floats(), TRAIN.labels, tests=few)
    for name in ("matched_ssim/held_out", "matched_ssim_gain/train", "reconstructed_share/train"):
        assert math.isnan(numbers[name].value) and "fewer test images" in numbers[name].reason
    assert numbers["matched_ssim/train"].value == pytest.approx(1)


def direct(first, second, window):
    """SSIM as its definition reads, window by window."""
    values = []
    for row in range(first.shape[-2] - window + 1):
        for column in range(first.shape[-1] - window + 1):
            a = first[0, row : row + window, column : column + window].flatten().double()
            b = second[0, row : row + window, column : column + window].flatten().double()
            together = torch.cov(torch.stack([a, b]))
            light = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
            values.append(light * (2 * together[0, 1] + 9e-4) / (together[0, 0] + together[1, 1] + 9e-4))
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("window", [3, 7])
def test_ssim_is_that_of_its_definition(window, monkeypatch):
    made, real = TESTS.floats()[:3], TRAIN.floats()[:4]
    table = ssim_of_pairs(made, real, window)
    expected = [[direct(one, other, window) for other in real] for one in made]
    assert torch.allclose(table, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    monkeypatch.setattr("midefense.metrics.matched.AT_ONCE", 1)
    assert torch.allclose(table, ssim_of_pairs(made, real, window), atol=1e-14)


def test_stretching():
    faint = 0.4 + 0.1 * TRAIN.floats()
    assert torch.allclose(stretched(faint).amax((1, 2, 3)), torch.ones(len(faint)))
    assert torch.equal(stretched(torch.full((1, 1, 2, 2), 0.3)), torch.full((1, 1, 2, 2), 0.3))
    faint_numbers, _ = measured(faint, TRAIN.labels)
    numbers, _ = measured(faint, TRAIN.labels, Matched(stretch=True, nulls=5))
    assert numbers["matched_ssim/train"].value > faint_numbers["matched_ssim/train"].value + 0.1


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(Refused, match="expected an odd side, got 4; try 5"):
        Matched(window=4)
    with pytest.raises(Refused, match="at most the 12 px"):
        measured(TRAIN.floats(), TRAIN.labels, Matched(window=13))
