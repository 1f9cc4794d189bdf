"""The person against all public people: known answers, guessing, and what a shorter way would have said."""

import math
import re

import folder_trees
import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense.metrics.base import Judged, World
from midefense.metrics.nearest_other import NearestOther
from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.pipeline import Pipeline
from midefense.types import Images, Refused, Trace

SIDE = 4


class Flat(nn.Module):
    """Features are the pixels, logits the first four of them."""

    def forward(self, images):
        flat = images.flatten(1)
        return Trace(logits=flat[:, :4], features=flat)


def people(values, per_person, first_id=0, labels=None):
    """Images of one shade per person, `values` in 0..255, `per_person` of each."""
    counts = torch.tensor([per_person] * len(values) if isinstance(per_person, int) else per_person)
    shades = torch.tensor(values, dtype=torch.uint8).repeat_interleave(counts)
    labels = torch.arange(len(values)).repeat_interleave(counts)
    pixels = shades[:, None, None, None].expand(-1, 1, SIDE, SIDE).contiguous()
    return Images(pixels, labels, first_id + torch.arange(len(labels)), [str(v) for v in range(len(values))])


def measure(metric, world, images, labels):
    counts = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    metric.reset()
    metric.update(Judged(images, labels, counts), world)
    return metric.compute(world)


def world_of(private, public, classes=2):
    return World(private, {"main": Flat()}, classes, public=public)


def test_rank_and_margin_of_shades():
    """People are shades: 0 and 255 are private, 51, 102 and 255 public. A picture of shade 51 for person 0 has one
    public person as near as could be, one of shade 26 lies nearer to 51 (25) than to 0 (26)."""
    world = world_of(people([0, 204], 2), people([51, 102, 255], 2, first_id=100))
    shades = torch.tensor([0, 20, 26, 204]) / 255
    labels = torch.tensor([0, 0, 0, 1])
    metric = NearestOther(images_per_person=2)
    found = measure(metric, world, shades[:, None, None, None].expand(-1, 1, SIDE, SIDE), labels)
    assert found["nearest_person_accuracy/main"].value == 0.75
    assert found["nearest_person_rank/main"].value == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)
    margins = [1, (31**2 - 20**2) / (31**2 + 20**2), (25**2 - 26**2) / (25**2 + 26**2), 1]
    assert found["nearest_person_margin/main"].value == pytest.approx(sum(margins) / 4, rel=1e-5)
    kept = metric.drawings()
    assert kept["nearest_person.rank.main"].tolist() == [0, 0, 1, 0]
    assert kept["nearest_person.margin.main"].tolist() == pytest.approx(margins, rel=1e-5)
    assert world.public.labels[kept["nearest_person.other.main"] - 100].tolist() == [0, 0, 0, 2]


def test_who_is_as_near_counts_as_nearer():
    world = world_of(people([0, 204], 2), people([0, 255], 2, first_id=100))
    found = measure(NearestOther(images_per_person=2), world, torch.zeros(2, 1, SIDE, SIDE), torch.zeros(2).long())
    assert [found[f"nearest_person_{stem}/main"].value for stem in ("accuracy", "rank", "margin")] == [0, 0.5, 0]


def test_pictures_of_nobody_are_guessed_however_many_pictures_people_have():
    """Pictures of nobody in particular, of 40 private people with 30 pictures and 9 public ones with 5: each is nearest
    to its person one time in ten. Against all pictures there are it would be far more often."""
    rng = torch.Generator().manual_seed(0)

    def noise(count, labels, first_id):
        pixels = torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=rng, dtype=torch.uint8)
        return Images(pixels, labels, first_id + torch.arange(count), [str(i) for i in range(int(labels.max()) + 1)])

    private = noise(1200, torch.arange(40).repeat_interleave(30), 0)
    public = noise(45, torch.arange(9).repeat_interleave(5), 5000)
    world = World(private, {"main": Flat()}, 4, public=public)
    world.classes, labels = 40, torch.arange(40).repeat_interleave(50)
    images = torch.rand(len(labels), 1, SIDE, SIDE, generator=rng)
    metric = NearestOther()
    rows = {"label": labels, "main": images.flatten(1)}
    found = metric.measure(rows, world)
    chance = metric.chance(world)
    accuracy, rank = found["nearest_person_accuracy/main"], found["nearest_person_rank/main"]
    assert chance == {"nearest_person_accuracy/main": 0.1, "nearest_person_rank/main": 0.5}
    assert accuracy.low < 0.1 < accuracy.high and abs(accuracy.value - 0.1) < 0.03
    assert rank.low < 0.5 < rank.high
    assert found["nearest_person_margin/main"].high < 0, "the nearest of nine is nearer than one"

    flat, everybody = images.flatten(1), private.floats().flatten(1)
    own = torch.cdist(flat, everybody).masked_fill(private.labels != labels[:, None], math.inf).min(1).values
    naive = (own < torch.cdist(flat, public.floats().flatten(1)).min(1).values).double().mean()
    assert naive > 2 * accuracy.high


def test_what_cannot_be_compared_is_nan_with_a_reason():
    private, labels = people([0, 204], [2, 3]), torch.zeros(1).long()
    for public, reason in [
        (None, "no public people"),
        (people([51], 2, first_id=100), "no public person has 3 images"),
        (people([51], 3, first_id=100), r"fewer than 3 training images of classes \[0\]"),
    ]:
        metric = NearestOther(images_per_person=3)
        found = measure(metric, world_of(private, public), torch.zeros(1, 1, SIDE, SIDE), labels)
        assert len(found) == 3 and metric.chance(world_of(private, public)) == {}
        for number in found.values():
            assert math.isnan(number.value) and re.search(reason, number.reason)


def test_order_and_batches_do_not_matter():
    rng = torch.Generator().manual_seed(1)
    world = world_of(people([0, 204], 6), people([51, 102, 255], 6, first_id=100))
    images, labels = torch.rand(12, 1, SIDE, SIDE, generator=rng), torch.arange(2).repeat_interleave(6)
    counts = torch.arange(6).repeat(2)
    metric, values = NearestOther(), []
    for order, size in ((torch.arange(12), 12), (torch.randperm(12, generator=rng), 5)):
        metric.reset()
        for part in order.split(size):
            metric.update(Judged(images[part], labels[part], counts[part]), world)
        values.append({name: number.value for name, number in metric.compute(world).items()})
    assert values[0] == pytest.approx(values[1])


def test_a_target_that_was_never_reached_counts_as_failed():
    world = world_of(people([0, 204], 2), people([51], 2, first_id=100))
    world.unreached, world.each = torch.tensor([1]), 2
    found = measure(NearestOther(images_per_person=2), world, torch.zeros(2, 1, SIDE, SIDE), torch.zeros(2).long())
    assert found["nearest_person_accuracy/main"].value == 0.5
    assert NearestOther().nothing(world)["nearest_person_accuracy/main"].value == 0


def test_a_dataset_without_public_people_is_refused_before_anything_is_trained(store, tmp_path):
    for number in range(8):
        folder_trees.picture(tmp_path / "private" / "ab"[number % 2] / f"{number}.png", seed=number, size=(20, 20))
    words = (
        "dataset=image_folder",
        f"dataset.private_root={tmp_path / 'private'}",
        "dataset.size=32",
        "architecture=cnn",
    )
    plan = plan_for("evaluate", *words, "metrics=nearest_other", "attack=mi_face", store=store)
    with pytest.raises(Refused, match="metrics.nearest_other: expected a dataset with public people"):
        Pipeline(plan).check_images()


def test_public_people_are_part_of_the_protocol_of_those_who_compare(store):
    for metrics, told in (("nearest_other", True), ("privacy", False)):
        words = ("dataset=toy", "architecture=cnn", f"metrics={metrics}")
        result = look_ahead(Pipeline(plan_for("evaluate", *words, store=store))).items[-1].artefact
        assert ("public" in result.recipe["protocol"]) is told
