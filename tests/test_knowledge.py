"""Knowledge extraction: a student learns what the reconstructions show, and is asked in the right class order."""

import math

import pytest
import torch
from torch import nn

from midefense import metrics
from midefense.training.augmentations import HorizontalFlip
from midefense.types import Images, Refused, Trace

CLASSES = 4


class Linear(nn.Module):
    """A student of one layer, and what it was built with and shown."""

    built = []

    def __init__(self, *, classes, channels):
        super().__init__()
        self.built.append((classes, channels))
        self.layer = nn.Linear(4 * channels, classes)
        self.dropout = nn.Dropout(0.1)

    def forward(self, images):
        features = images.flatten(1)
        return Trace(logits=self.layer(self.dropout(features)), features=features)


def pictures(labels, seed):
    """Images [N, 1, 2, 2] whose brightest pixel is their class."""
    images = 0.4 * torch.rand(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    images.flatten(1)[torch.arange(len(labels)), labels] = 1.0
    return images


def stored(labels, seed):
    pixels = (pictures(labels, seed) * 255).round().to(torch.uint8)
    return Images(pixels, labels, torch.arange(len(labels)), [str(i) for i in range(CLASSES)])


LABELS = torch.arange(CLASSES).repeat_interleave(10)


def world_of():
    return metrics.World(stored(LABELS, 1), {}, CLASSES, tests=stored(LABELS, 2))


def score(labels, shown=None, world=None, seed=0, pieces=1, **changed):
    """The metric on images of `shown` recovered for `labels`."""
    arguments = {"epochs": 15, "batch_size": 8, "learning_rate": 0.3, "seed": seed, **changed}
    metric = metrics.KnowledgeExtraction(student=Linear, augment=[HorizontalFlip(p=0.0)], **arguments)
    images = pictures(labels if shown is None else shown, 3)
    candidates = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    world = world or world_of()
    for rows in torch.arange(len(labels)).chunk(pieces):
        metric.update(metrics.Judged(images[rows], labels[rows], candidates[rows]), world)
    return metric.compute(world)


def test_a_student_of_true_pictures_knows_the_private_ones():
    measured = score(LABELS)
    assert list(measured) == ["knowledge_extraction_train/student", "knowledge_extraction_test/student"]
    assert all(number.value == 1.0 and number.higher_leaks is True and number.n == 40 for number in measured.values())
    wrong = score(LABELS, shown=(LABELS + 1) % CLASSES)
    assert all(number.value == 0.0 for number in wrong.values()), "taught every class by the pictures of the next one"


def test_a_student_of_noise_knows_little():
    noise = metrics.KnowledgeExtraction(student=Linear, epochs=15, batch_size=8)
    world = world_of()
    images = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    noise.update(metrics.Judged(images, LABELS, torch.arange(40) % 10), world)
    assert all(number.value < 0.7 for number in noise.compute(world).values())


def test_attacked_classes_keep_their_order_and_others_are_not_asked():
    """The student numbers classes 1 and 3 as 0 and 1; the authors' code would compare its 0 and 1 with 1 and 3."""
    Linear.built.clear()
    measured = score(torch.tensor([3] * 7 + [1] * 5))
    assert Linear.built == [(2, 1)]
    for number in measured.values():
        assert number.per_class == {1: 1.0, 3: 1.0} and number.n == 20
        assert number.low < number.high == 1.0


def test_test_images_that_were_taught_are_not_asked_about():
    world = world_of()
    world.tests.pixels[:5] = (pictures(LABELS, 3)[:5] * 255).round().to(torch.uint8)  # half of class 0 was taught
    number = score(LABELS, world=world)["knowledge_extraction_test/student"]
    assert number.n == 35 and number.value == 1.0
    world.references.pixels[:5] = world.tests.pixels[:5]
    assert score(LABELS, world=world)["knowledge_extraction_train/student"].n == 40, "a copy of those is extraction"


def test_the_seed_decides_and_neither_order_nor_batches_do():
    shown = (LABELS + (torch.arange(len(LABELS)) % 2)) % CLASSES  # half of the pictures are wrong
    first = score(LABELS, shown, epochs=2)
    torch.manual_seed(5)
    assert score(LABELS, shown, epochs=2, pieces=7) == first
    assert score(LABELS, shown, epochs=2, seed=1) != first


def test_what_cannot_be_asked_is_nan_or_refused():
    alone = score(torch.tensor([2, 2, 2]))
    assert all(math.isnan(number.value) and "one class only" in number.reason for number in alone.values())
    diverged = score(LABELS, learning_rate=1e30)
    assert all("diverged; try metrics.knowledge.learning_rate=1e+29" in number.reason for number in diverged.values())
    blind = metrics.World(stored(LABELS, 1), {}, CLASSES)
    with pytest.raises(Refused, match="expected private test images"):
        score(LABELS, world=blind)
    untested = metrics.World(stored(LABELS, 1), {}, CLASSES, tests=stored(torch.tensor([0, 0]), 2))
    part = score(LABELS[10:], world=untested)["knowledge_extraction_test/student"]
    assert math.isnan(part.value) and "no private image of the attacked classes that" in part.reason


def test_the_rate_falls_along_half_a_cosine():
    metric = metrics.KnowledgeExtraction(student=Linear)
    assert metric._rate(0) == pytest.approx(0.1)
    assert metric._rate(75) == pytest.approx(1e-4)
    assert metric._rate(25) == pytest.approx(1e-4 + 0.75 * (0.1 - 1e-4))


def test_a_real_architecture_is_told_the_attacked_classes(run_verb):
    small = ("dataset=toy", "prior=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=2")
    judge = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=1", "attack.search.steps=5")
    student = ("architecture@metrics.knowledge.student=mlp", "metrics.knowledge.student.widths=[8]")
    result = run_verb("evaluate", *small, *judge, "metrics=knowledge", *student, "metrics.knowledge.epochs=3")
    number = result.metrics["metrics"]["knowledge_extraction_test/student"]
    assert 0 <= number["value"] <= 1 and len(number["per_class"]) == 4
    anchors = result.metrics["anchors"]
    assert set(anchors["prior"]) == set(result.metrics["metrics"])
    assert set(anchors["real"]) == {"knowledge_extraction_train/student"}, "it was taught what it would be tested on"


def test_a_mounted_student_may_stand_beside_a_named_target(run_verb):
    small = ("dataset=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=1")
    target = run_verb("train_target", *small)
    attack = ("prior=toy", "attack.search.steps=2", "evaluators.main.recipe.epochs=1", "metrics=knowledge")
    student = ("architecture@metrics.knowledge.student=mlp", "metrics.knowledge.epochs=1")
    judged = run_verb("evaluate", f"target={target.reference}", *attack, *student)
    recovered = run_verb("attack", f"target={target.reference}", "prior=toy", "attack.search.steps=2")
    assert judged.provenance["parents"]["recovered"] == recovered.reference
    with pytest.raises(Refused, match="brings its own architecture"):
        run_verb("evaluate", f"target={target.reference}", *attack, "architecture=mlp")
    with pytest.raises(Refused, match="make it with: python train_target.py (?!.*metrics)"):
        run_verb("evaluate", *small, "seed=9", *attack, *student, "missing=fail")
