"""Where reconstructions lie: hulls, planes and distances with known answers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from midefense import metrics
from midefense.metrics.feature_space import principal_plane
from midefense.metrics.hull import convex_hull, in_hull
from midefense.types import Images, Refused, Trace

SQUARE = [(0, 0), (4, 0), (4, 4), (0, 4)]
LABELS = torch.arange(3).repeat_interleave(9)


# Hulls


def test_hull_of_a_square_is_its_corners_whatever_lies_inside_or_on_its_edges():
    points = np.array([*SQUARE, (2, 2), (2, 0), (4, 1), (0, 0)], dtype=float)
    hull = convex_hull(points[np.random.default_rng(0).permutation(len(points))])
    assert sorted(map(tuple, hull)) == sorted(SQUARE)
    turns = [
        np.cross(np.append(b - a, 0), np.append(c - b, 0))[2] for (a, b), (_, c) in pairwise(pairwise([*hull, *hull]))
    ]
    assert min(turns) > 0, "counter-clockwise"


def test_inside_counts_corners_and_edges():
    hull = convex_hull(np.array(SQUARE, dtype=float))
    points = np.array([(2, 2), (0, 0), (4, 2), (4.001, 2), (-1, -1), (2, 5)])
    assert in_hull(points, hull).tolist() == [True, True, True, False, False, False]


def test_inside_a_hull_are_all_points_it_was_made_of():
    points = np.random.default_rng(1).normal(size=(200, 2)) * 1e4
    assert in_hull(points, convex_hull(points)).all()


@pytest.mark.parametrize("points", [[(1, 1)], [(0, 0), (1, 1)], [(0, 0), (0.1, 0.3), (0.2, 0.6), (0.3, 0.9)]])
def test_points_on_a_line_have_no_hull(points):
    assert len(convex_hull(np.array(points, dtype=float))) < 3


# The plane


def test_the_plane_holds_what_varies_most_and_does_not_flip():
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(200, 2, generator=rng, dtype=torch.float64) * torch.tensor([10.0, 3.0])
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))
    features = spread @ turn[:2] + 7
    (plane,) = principal_plane(features, [features])
    centred = spread - spread.mean(0)
    assert torch.allclose(torch.cdist(plane, plane), torch.cdist(centred, centred), atol=1e-5), "distances are kept"
    assert plane[:, 0].var() > plane[:, 1].var()
    again = principal_plane(features.flip(0), [features])[0]
    torch.testing.assert_close(again, plane)


# The metric


class Positions(nn.Module):
    """A target whose features are the pixels, at the scale of a feature."""

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        return Trace(logits=images.flatten(1), features=10 * images.flatten(1))


class Darkening(nn.Module):
    """In place of a defense that erases: half of the light goes. Remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.rebuilt, self.drawn = 0, []

    def rebuild(self, model):
        self.rebuilt += 1
        return model

    def before_augment(self, batch):
        self.drawn.append(batch.rng.initial_seed())
        return batch

    def transform(self, batch):
        batch.images = batch.images / 2
        return batch


def private_images(labels=LABELS):
    """Images of 1 x 2 pixels: a block of nine points per class, the blocks apart."""
    corner = torch.tensor([[0, 0], [100, 0], [0, 100]])[labels]
    grid = torch.stack(torch.meshgrid(*[torch.tensor([0, 20, 40])] * 2, indexing="ij"), -1).reshape(9, 2)
    pixels = (50 + corner + grid.repeat(3, 1)[: len(labels)]).to(torch.uint8).view(-1, 1, 1, 2)
    return Images(pixels, labels, torch.arange(len(labels)), ["a", "b", "c"])


def measure(images, world=None, metric=None, labels=LABELS):
    world = metrics.World(private_images(), {}, 3, target=Positions().eval()) if world is None else world
    metric = metrics.FeatureSpace(erasing=Darkening()) if metric is None else metric
    metric.reset()
    metric.update(metrics.Judged(images, labels, torch.arange(len(labels))), world)
    return {name.removeprefix("feature_space_"): number for name, number in metric.compute(world).items()}


def test_copies_lie_inside_and_shifted_ones_outside_as_far_as_they_are_shifted():
    images = private_images().floats()
    copies = measure(images)
    assert copies["hull_share/target"].value == 1.0 and copies["centroid_accuracy/target"].value == 1.0
    assert copies["mmd_private/target"].value < 0 < copies["mmd_erased/target"].value, "unbiased: a copy is below 0"
    half = measure(images + torch.tensor([20 / 255, 0.0]))
    assert half["hull_share/target"].value == pytest.approx(6 / 9), "one column of three left the block"
    assert half["hull_share/target"].per_class == pytest.approx({0: 6 / 9, 1: 6 / 9, 2: 6 / 9})
    far = measure(1 - images)
    assert far["hull_share/target"].value == 0.0
    assert far["mmd_private/target"].value > half["mmd_private/target"].value > copies["mmd_private/target"].value
    assert [half[f"{name}/target"].higher_leaks for name in ("hull_share", "mmd_private", "mmd_erased")] == [
        True,
        False,
        None,
    ]


def test_erased_copies_are_nearer_to_the_erased_than_to_the_private():
    erased = measure(private_images().floats() / 2)
    assert erased["mmd_erased/target"].value < 0 < erased["mmd_private/target"].value


def test_centroid_accuracy_of_classes_that_mix():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    values = torch.tensor([0, 10, 110, 100, 100, 100])  # means 40 and 100: the third of class 0 is nearer to the other
    pixels = torch.stack([values, torch.zeros(6)], 1).to(torch.uint8).view(6, 1, 1, 2)
    mixed = metrics.World(Images(pixels, labels, torch.arange(6), "ab"), {}, 2, target=Positions().eval())
    number = measure(torch.rand(6, 1, 1, 2), world=mixed, labels=labels)["centroid_accuracy/target"]
    assert number.per_class == pytest.approx({0: 2 / 3, 1: 1.0}) and number.n == 6 and number.higher_leaks is None


def test_what_is_too_small_is_nan_with_a_reason():
    one = measure(private_images().floats()[:9], labels=LABELS[:9])
    assert "one class only" in one["centroid_accuracy/target"].reason and math.isnan(
        one["centroid_accuracy/target"].value
    )
    single = measure(private_images().floats()[[0, 9, 18]], labels=torch.arange(3))
    assert math.isnan(single["mmd_private/target"].value)
    assert "classes [0, 1, 2]: expected at least 2" in single["mmd_private/target"].reason
    assert single["hull_share/target"].value == 1.0
    line = private_images()
    line.pixels[:9, ..., 1] = 50
    flat = measure(line.floats(), world=metrics.World(line, {}, 3, target=Positions().eval()))["hull_share/target"]
    assert math.isnan(flat.value) and "classes [0]: expected at least 3 private images that do not lie" in flat.reason
    with pytest.raises(Refused, match="got 'target'; choices"):
        measure(private_images().floats(), world=metrics.World(private_images(), {}, 3))
    with pytest.raises(Refused, match=r"FeatureSpace\.erasing: expected a defense, got Positions"):
        metrics.FeatureSpace(erasing=Positions())


def test_erasing_is_drawn_once_per_world_and_by_the_seed(monkeypatch):
    monkeypatch.setattr("midefense.metrics.feature_space.ERASED_AT_ONCE", 10)
    images, world = private_images().floats(), metrics.World(private_images(), {}, 3, target=Positions().eval())
    metric = metrics.FeatureSpace(erasing=Darkening(), batch_size=7)
    first = measure(images, world, metric)
    assert measure(images, world, metric) == first
    assert metric.erasing.rebuilt == 1 and len(set(metric.erasing.drawn)) == 3
    other = metrics.FeatureSpace(erasing=Darkening(), seed=1)
    measure(images, world, other)
    assert not set(other.erasing.drawn) & set(metric.erasing.drawn)


def test_the_first_classes_are_drawn():
    metric = metrics.FeatureSpace(erasing=Darkening(), drawn=2)
    assert metric.drawings() == {}
    measure(private_images().floats()[::3], metric=metric, labels=LABELS[::3])
    drawn = metric.drawings()
    assert drawn["projection.labels"].tolist() == [0] * 21 + [1] * 21
    assert drawn["projection.sets"].tolist() == ([0] * 9 + [1] * 9 + [2] * 3) * 2
    points = drawn["projection.points"][:9]
    assert points.dtype == torch.float32 and float(points.mean(0).abs().max()) < 1e-5
    assert float(torch.pdist(points).max()) == pytest.approx(10 * 40 / 255 * math.sqrt(2), rel=1e-5)
    metric.reset()
    assert metric.drawings() == {}


def test_random_erasing_on_a_real_target_and_the_projection_in_the_report(run_verb, store, tmp_path):
    from midefense.commands.report import run

    small = ("dataset=toy", "prior=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=2")
    judge = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=1", "attack.search.steps=5")
    result = run_verb("evaluate", *small, *judge, "metrics=feature_space")
    assert 0 <= result.metrics["metrics"]["feature_space_hull_share/target"]["value"] <= 1
    assert set(result.metrics["anchors"]["real"]) == set(result.metrics["metrics"])
    assert len(result.tensors()["projection.labels"].unique()) == 4
    page = tmp_path / "report.html"
    assert run(["--store", str(store), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Feature space" in text and text.count('class="hull"') >= 8 and "features of class 3: " in text
