"""Recognition under small changes: known answers, draws of an image's own, and features that vanish."""

import math

import pytest
import torch
from torch import nn

from midefense.metrics import disturbing
from midefense.metrics.base import Judged, World
from midefense.metrics.disturbing import CHANGES, EVERYWHERE, Draws
from midefense.metrics.robust import RobustAccuracy
from midefense.types import Images, Refused, Trace

SIDE, CLASSES = 16, 3


class Quarters(nn.Module):
    """Sees the class whose third of the rows is the brightest, unless `stripes` are there, which it takes for the
    class they stand for: a pattern of single columns, as fine as can be."""

    def forward(self, images):
        bands = images[:, 0].unflatten(1, (4, 4)).mean((2, 3))[:, :CLASSES]
        signs = torch.where(torch.arange(SIDE) % 2 == 0, 1.0, -1.0)
        stripes = (images[:, 0] * signs).mean(2).unflatten(1, (4, 4)).mean(2)[:, :CLASSES]
        return Trace(logits=(100 * (bands + 12 * stripes.abs())).round(), features=images.flatten(1))


def shown(labels):
    """The class as a bright band: what a person would see."""
    images = torch.full((len(labels), 1, SIDE, SIDE), 0.2)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 * label : 4 * label + 4] = 0.9
    return images


def fooling(labels):
    """Grey pictures with stripes of one column in the band of the class: nothing that a person would see."""
    images = torch.full((len(labels), 1, SIDE, SIDE), 0.43)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 * label : 4 * label + 4, ::2] += 0.04
        image[0, 4 * label : 4 * label + 4, 1::2] -= 0.04
    return images


def world():
    labels = torch.arange(CLASSES)
    pixels = (shown(labels) * 255).to(torch.uint8)
    return World(Images(pixels, labels, labels, list("abc")), {"main": Quarters()}, CLASSES)


def measure(images, labels, metric=None, order=None, size=100):
    metric = RobustAccuracy(draws=3) if metric is None else metric
    counts = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    order = torch.arange(len(labels)) if order is None else order
    metric.reset()
    for part in order.split(size):
        metric.update(Judged(images[part], labels[part], counts[part]), world())
    return metric.compute(world())


LABELS = torch.arange(CLASSES).repeat_interleave(4)


def test_what_is_shown_is_seen_under_every_change():
    found = {name: number.value for name, number in measure(shown(LABELS), LABELS).items()}
    assert found.pop("recognition_lost/main") == 0
    assert set(found.values()) == {1.0} and len(found) == 2 + len(EVERYWHERE)


def test_what_only_fools_is_recognised_as_it_is_and_lost_under_changes():
    """The plain accuracy, which everybody reports, is that of real pictures."""
    images = fooling(LABELS)
    assert torch.equal(Quarters()(images).logits.argmax(1), LABELS)
    found = measure(images, LABELS)
    assert found["robust_accuracy_always/main"].value == 0
    assert found["recognition_lost/main"].value == pytest.approx(1 - found["robust_accuracy/main"].value)
    assert found["recognition_lost/main"].value > 0.3
    assert found["robust_accuracy_coarse/main"].value == found["robust_accuracy_levels/main"].value == 0


def test_numbers_made_by_hand():
    metric = RobustAccuracy(changes=["crop", "blur"], draws=2)
    plain = torch.tensor([True, True, False, False])
    hits = {
        "crop": torch.tensor([[1, 1], [1, 0], [1, 0], [0, 0]]).bool(),
        "blur": torch.tensor([[1], [0], [1], [0]]).bool(),
    }
    rows = {"label": torch.tensor([0, 0, 1, 1]), "as it is/main": plain}
    found = metric.measure(rows | {f"{change}/main": value for change, value in hits.items()}, world())
    assert found["robust_accuracy_crop/main"].value == (1 + 0.5 + 0.5 + 0) / 4
    assert found["robust_accuracy_blur/main"].value == 0.5
    assert found["robust_accuracy/main"].value == (1 + 0.25 + 0.75 + 0) / 4, "changes weigh alike, not looks"
    assert found["robust_accuracy_always/main"].value == 0.25
    assert found["recognition_lost/main"].value == 1 - (1 + 0.25) / 2
    assert all(number.low <= number.value <= number.high for name, number in found.items() if "lost" not in name)


def test_an_image_draws_the_same_beside_any_other():
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(len(LABELS), 1, SIDE, SIDE, generator=rng)
    whole, parts = measure(images, LABELS), measure(images, LABELS, order=torch.randperm(12, generator=rng), size=5)
    assert {name: number.value for name, number in whole.items()} == pytest.approx(
        {name: number.value for name, number in parts.items()}, nan_ok=True
    )


def draws_of(count, seed=0, candidate=0):
    return Draws(seed, (torch.arange(count), torch.full((count,), candidate)))


def test_draws_are_those_of_their_class_candidate_and_seed():
    first = draws_of(4).uniform(5)
    assert torch.equal(first, draws_of(6).uniform(5)[:4]) and len(first.unique()) == 20
    for other in (draws_of(4, seed=1), draws_of(4, candidate=1)):
        assert not (other.uniform(5) == first).any()
    normal = draws_of(2).normal(100, 100)
    assert abs(float(normal.mean())) < 0.02 and abs(float(normal.std()) - 1) < 0.02


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("side", [8, 32, 65])
def test_a_change_is_small_and_leaves_images_images(name, side):
    """A ramp stays about what it is, at every size by about as much; another image beside it changes nothing."""
    ramp = torch.linspace(0, 1, side).expand(1, 3, side, side).contiguous()
    images = torch.cat([ramp, torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))])
    changed = CHANGES[name](images, draws_of(3))
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    alone = CHANGES[name](ramp, draws_of(1))
    assert torch.allclose(alone[0], changed[0], atol=1e-6) and not torch.equal(alone, ramp)
    ramp = ramp.flip(-1) if name == "mirror" else ramp
    assert (alone - ramp).abs().mean() < 0.07
    again = CHANGES[name](ramp, draws_of(1, candidate=1))
    assert torch.equal(again, CHANGES[name](ramp, draws_of(1))) is not CHANGES[name].drawn


def test_strengths_are_relative_to_the_side():
    """A fixed window of pixels would blur a small picture far more than a large one."""

    def spread(side):
        step = (torch.arange(side) >= side // 2).float().expand(1, 1, side, side).contiguous()
        return float((disturbing.blur(step, draws_of(1)) - step).abs().mean())

    assert spread(64) == pytest.approx(spread(128), rel=0.05)


def test_nobody_recognised_is_nan_and_unreached_targets_fail():
    labels = torch.zeros(2, dtype=torch.int64)
    found = measure(shown(torch.ones(2).long()), labels)
    assert found["robust_accuracy/main"].value == 0
    assert math.isnan(found["recognition_lost/main"].value) and "none of the 2" in found["recognition_lost/main"].reason
    lacking = world()
    lacking.unreached, lacking.each = torch.tensor([1]), 2
    metric = RobustAccuracy(draws=1)
    metric.update(Judged(shown(labels), labels, torch.arange(2)), lacking)
    assert metric.compute(lacking)["robust_accuracy/main"].value == 0.5
    metric.reset()
    assert metric.compute(lacking)["robust_accuracy_always/main"].value == 0


def test_unknown_changes_are_refused():
    with pytest.raises(Refused, match="got 'blurr'; choices: crop, .*Did you mean 'blur'"):
        RobustAccuracy(changes=["blurr"])
    with pytest.raises(Refused, match="expected distinct names"):
        RobustAccuracy(changes=["blur", "blur"])
