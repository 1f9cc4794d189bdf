"""Metrics: known answers of the cards, invariances, and loud failure."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from midefense import metrics
from midefense.architectures.faces import UnitLength
from midefense.metrics import base, features, intervals
from midefense.metrics.feature_distance import class_distances
from midefense.metrics.fid import frechet_distance, moments
from midefense.metrics.kid import kernel_distance
from midefense.metrics.prdc import overlap
from midefense.types import Images, Refused, Trace

CONF = Path(__file__).parents[1] / "conf"
CLASSES = 4
# Their second revision brought intervals that hold the truth for few classes.
INTERVALS_CHANGED = (metrics.AttackAccuracy, metrics.FeatureDistance, metrics.KernelDistance, metrics.PRDC)


class Table(nn.Module):
    """An evaluator that is read off the image: its flat pixels are the features and the first ones the logits."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.seen, self.dropout = classes, 0, nn.Dropout()

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        self.seen += len(images)
        flat = self.dropout(images).flatten(1)
        return Trace(logits=flat[:, : self.classes], features=flat)


def private_images(per_class=6, width=2, seed=0):
    """Images whose brightest pixel is their class, with noise elsewhere."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    pixels = torch.randint(0, 100, (len(labels), 1, 2, width), generator=rng, dtype=torch.uint8)
    pixels.flatten(1)[torch.arange(len(labels)), labels] = 200
    return Images(pixels, labels, torch.arange(len(labels)), [str(i) for i in range(CLASSES)])


def world_of(images, evaluator_classes=CLASSES, **more):
    return metrics.World(images, {"main": Table(evaluator_classes)}, CLASSES, **more)


def judged_of(images, **more):
    labels = images.labels
    candidates = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    return metrics.Judged(images.floats(), labels, candidates, **more)


def noise_like(judged, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return metrics.Judged(torch.rand(judged.images.shape, generator=rng), judged.labels, judged.candidates)


def measure(metric, world, *batches):
    metric.reset()
    for judged in batches:
        metric.update(judged, world)
    return metric.compute(world)


def table(rows, labels):
    """Judged images that make `Table` answer `rows` as logits."""
    images = torch.tensor(rows).reshape(len(rows), 1, 1, -1)
    return metrics.Judged(images, torch.tensor(labels), torch.arange(len(rows)))


def table_world(classes=3, evaluator_classes=3):
    pixels = torch.zeros(classes, 1, 1, evaluator_classes, dtype=torch.uint8)
    images = Images(pixels, torch.arange(classes), torch.arange(classes), "abc"[:classes])
    return metrics.World(images, {"main": Table(evaluator_classes)}, classes)


ALL_PRIVACY = [
    metrics.AttackAccuracy(top=[1, 2]),
    metrics.FeatureDistance(),
    metrics.FrechetDistance(features="main"),
    metrics.KernelDistance(features="main"),
    metrics.PRDC(features="main"),
]


# Attack accuracy


def test_accuracy_of_a_table_made_by_hand():
    rows = [[0.9, 0.1, 0.2], [0.3, 0.2, 0.9], [0.1, 0.8, 0.5], [0.6, 0.2, 0.7]]
    measured = measure(metrics.AttackAccuracy(top=[1, 2]), table_world(), table(rows, [0, 0, 1, 1]))
    top1, top2 = measured["attack_accuracy_top1/main"], measured["attack_accuracy_top2/main"]
    assert (top1.value, top1.per_class, top1.n) == (0.5, {0: 0.5, 1: 0.5}, 4)
    assert (top2.value, top2.per_class) == (0.75, {0: 1.0, 1: 0.5})
    confidence = torch.tensor(rows).softmax(1)[range(4), [0, 0, 1, 1]].mean()
    assert measured["target_class_confidence/main"].value == pytest.approx(float(confidence), rel=1e-6)
    correct = torch.tensor(rows).softmax(1)[[0, 2], [0, 1]].mean()
    assert measured["correct_class_confidence/main"].value == pytest.approx(float(correct), rel=1e-6)
    assert "target_class_confidence/target" not in measured


def test_confidence_of_correct_images_is_nan_where_there_are_none():
    measured = measure(metrics.AttackAccuracy(top=[1]), table_world(), table([[0.9, 0.1, 0.2]], [1]))
    number = measured["correct_class_confidence/main"]
    assert math.isnan(number.value) and "recognises none of the 1 images" in number.reason


def test_accuracy_counts_classes_that_are_not_private():
    world = table_world(classes=2, evaluator_classes=4)
    judged = table([[0.5, 0.1, 0.9, 0.0], [0.1, 0.5, 0.0, 0.2]], [0, 1])
    measured = measure(metrics.AttackAccuracy(top=[1]), world, judged)
    assert measured["attack_accuracy_top1/main"].per_class == {0: 0.0, 1: 1.0}
    assert metrics.AttackAccuracy(top=[1, 3, 4]).chance(world) == {
        "attack_accuracy_top1/main": 0.25,
        "attack_accuracy_top3/main": 0.75,
    }


def test_top_of_all_classes_is_nan_with_a_reason():
    measured = measure(metrics.AttackAccuracy(top=[1, 3]), table_world(), table([[0.9, 0.1, 0.2]], [0]))
    assert math.isnan(measured["attack_accuracy_top3/main"].value)
    assert "top-3 of the 3 classes" in measured["attack_accuracy_top3/main"].reason
    assert measured["attack_accuracy_top1/main"].value == 1.0


def test_a_constant_evaluator_recognises_nothing():
    measured = measure(metrics.AttackAccuracy(top=[1]), table_world(), table([[0.5, 0.5, 0.5]] * 3, [0, 1, 2]))
    assert measured["attack_accuracy_top1/main"].value == 0.0


def test_shifted_labels_of_a_good_evaluator_score_below_chance():
    images = private_images()
    judged = judged_of(images)
    shifted = metrics.Judged(judged.images, (judged.labels + 1) % CLASSES, judged.candidates)
    assert measure(metrics.AttackAccuracy(top=[1]), world_of(images), judged)["attack_accuracy_top1/main"].value == 1
    assert measure(metrics.AttackAccuracy(top=[1]), world_of(images), shifted)["attack_accuracy_top1/main"].value == 0


def test_confidence_of_the_target_is_reported_when_it_was_asked():
    images = private_images()
    metric, world = metrics.AttackAccuracy(top=[1]), world_of(images)
    judged = judged_of(images, target_confidence=torch.full((len(images),), 0.7))
    name = "target_class_confidence/target"
    assert measure(metric, world, judged)[name].value == pytest.approx(0.7)
    first, rest = part(judged, slice(0, 5)), part(judged, slice(5, None))
    rest.target_confidence = None
    mixed = measure(metric, world, first, rest)[name]
    assert math.isnan(mixed.value) and "5 of 24" in mixed.reason
    judged.target_confidence[0] = math.nan
    with pytest.raises(Refused, match="target_confidence: expected 24 finite values"):
        metric.update(judged, world)


# Feature distances


def test_distance_to_one_training_image_per_class_is_the_squared_distance():
    private = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    asked = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    knn, mean, nearest = class_distances(asked, torch.arange(3), private, torch.arange(3))
    assert knn.tolist() == pytest.approx([0.0, 2.0, 4.0])  # equal, orthogonal, opposite unit vectors
    assert mean.tolist() == pytest.approx([0.0, 2.0, 4.0])
    assert nearest.tolist() == [0, 1, 2]


class Direction(nn.Module):
    """An evaluator of unit-length features, as face networks have."""

    def forward(self, images):
        features = UnitLength()(2 * images.flatten(1) - 1)
        return Trace(logits=features, features=features)


@pytest.mark.parametrize(("pixels", "distance"), [([1.0, 1.0], 0.0), ([1.0, 0.0], 2.0), ([0.0, 0.0], 4.0)])
def test_delta_face_is_the_distance_of_unit_features(pixels, distance):
    private = Images(torch.full((1, 1, 1, 2), 255, dtype=torch.uint8), torch.zeros(1).long(), torch.zeros(1), "a")
    world = metrics.World(private, {"main": Table(2), "face": Direction()}, 1)
    judged = metrics.Judged(torch.tensor(pixels).view(1, 1, 1, 2), torch.zeros(1).long(), torch.zeros(1).long())
    measured = measure(metrics.FeatureDistance(), world, judged)
    assert measured["knn_distance/face"].value == pytest.approx(distance, abs=1e-6)  # 2 - 2 cos: equal, at 90, at 180


@pytest.mark.parametrize("name", ["facenet_vggface2", "mobilefacenet"])
def test_face_networks_that_give_delta_face_end_in_unit_length(name):
    from contract.listing import node

    bound = node("evaluate", "evaluators.face.architecture", f"+evaluator@evaluators.face={name}")
    bound = bound.given(classes=3, channels=3, size=112)
    network = replace(bound, arguments={**bound.arguments, **bound.target.without_weights}).build()
    assert isinstance(network.stages["features"][-1], UnitLength)


def test_nearest_image_is_of_the_target_class_and_mean_is_of_the_class():
    private = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 0.0]])
    knn, mean, nearest = class_distances(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0]), private, torch.tensor([0, 0, 1])
    )
    assert (knn.item(), mean.item(), nearest.item()) == (1.0, 1.0, 0)


def test_distance_of_exact_duplicates_is_exactly_zero():
    # The matrix form of cdist gives up to 8e-3 here (card, trap 13).
    private = torch.randn(200, 2048, generator=torch.Generator().manual_seed(0)) * 3
    knn, _, nearest = class_distances(private, torch.zeros(200, dtype=torch.long), private, torch.zeros(200))
    assert torch.equal(knn, torch.zeros_like(knn))
    assert torch.equal(nearest, torch.arange(200))


def test_nearest_rows_come_in_sorted_order():
    images = private_images()
    metric = metrics.FeatureDistance()
    judged = judged_of(images.take(torch.randperm(len(images), generator=torch.Generator().manual_seed(0))))
    measure(metric, world_of(images), judged)
    order = base.row_order(judged.labels, judged.candidates)
    assert torch.equal(images.floats(metric.nearest), judged.images[order])


def test_class_without_training_images_is_nan_with_a_reason():
    images = private_images()
    world = world_of(images.take(images.labels != 2))
    measured = measure(metrics.FeatureDistance(), world, judged_of(images))["knn_distance/main"]
    assert math.isnan(measured.value) and "classes [2]" in measured.reason


# Precision, recall, density, coverage

# The card's answers, from the original code and the standard definitions, on one feature.
CARD = [
    ([0, 1, 2, 10], [0.5, 1.5, 6], 1, (1, 1, 5 / 3, 1), (2 / 3, 1, 1.25, 1)),
    ([0, 1, 2, 3, 4, 20], [0.4, 1.6, 2.2, 9, 11], 3, (1, 1, 16 / 15, 1), (0.6, 1, 8 / 9, 1)),
]


@pytest.mark.parametrize(("private", "recovered", "k", "standard", "legacy"), CARD)
def test_overlap_of_the_card(private, recovered, k, standard, legacy):
    features = [torch.tensor(values, dtype=torch.float32)[:, None] for values in (private, recovered)]
    assert overlap(*features, k) == pytest.approx(standard)
    assert overlap(*features, k, legacy_ppa=True) == pytest.approx(legacy)


def test_overlap_of_a_copy_and_of_what_is_far_away():
    private = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    precision, recall, density, coverage = overlap(private, private.flip(0), 3)
    assert (precision, recall, coverage) == (1, 1, 1)
    assert density == pytest.approx(4 / 3)  # every image reaches itself and its 3 neighbours
    assert overlap(private, private + 100, 3) == (0, 0, 0, 0)


def test_overlap_is_a_mean_over_classes_and_says_which_class_is_too_small():
    images = private_images(per_class=6)
    judged = judged_of(images)
    judged.images[images.labels == 0] = 0.0  # far from all private images
    measured = measure(metrics.PRDC(features="main"), world_of(images), judged)
    assert measured["precision/main"].per_class == {0: 0.0, 1: 1.0, 2: 1.0, 3: 1.0}
    assert (measured["precision/main"].value, measured["precision/main"].n) == (0.75, 24)
    assert measured["precision/main"].low < 0.75 < measured["precision/main"].high
    few = images.take(torch.tensor([0, 1, 2, *range(6, 12)]))  # three of class 0: no third neighbour
    measured = measure(metrics.PRDC(features="main"), world_of(images), judged_of(few))
    assert math.isnan(measured["recall/main"].value) and "classes [0]: expected more than k=3" in (
        measured["recall/main"].reason
    )
    assert measured["coverage/main"].value > 0.7
    rare = world_of(images.take(images.labels != 1))
    measured = measure(metrics.PRDC(features="main"), rare, judged_of(images))
    assert all(math.isnan(number.value) and "classes [1]" in number.reason for number in measured.values())


def test_legacy_overlap_bears_its_name():
    images = private_images()
    measured = measure(metrics.PRDC(features="main", legacy_ppa=True), world_of(images), judged_of(images))
    names = ["precision", "recall", "density", "coverage"]
    assert list(measured) == [f"{name}_legacy_ppa/main" for name in names]


# FID and KID


def test_frechet_distance_of_shifted_gaussians_is_the_squared_shift():
    first = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert frechet_distance(first, first + shift) == pytest.approx(5.25, abs=1e-9)
    second = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + shift
    assert frechet_distance(first, second) == pytest.approx(5.25, rel=0.03)


def test_frechet_distance_of_scaled_gaussians_is_the_closed_form():
    first = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = (first - first.mean(0)) * 3 + first.mean(0)  # tr(S + 9 S - 2 * 3 S) = 4 tr S
    assert frechet_distance(first, scaled) == pytest.approx(4 * float(torch.cov(first.T).trace()), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_frechet_distance_of_a_set_to_itself_is_zero(scale):
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(200, 32, generator=rng)
    images[:, 16:] *= scale  # rank deficient: half of the features are dead
    assert abs(frechet_distance(images, images)) < 1e-4
    assert abs(frechet_distance(images, images[torch.randperm(200, generator=rng)])) < 1e-4


def test_frechet_distance_refuses_and_warns_with_the_numbers():
    images = private_images(per_class=6)
    fid, world = metrics.FrechetDistance(features="main"), world_of(images)
    warned = measure(fid, world, judged_of(images))["fid/main"]
    assert abs(warned.value) < 1e-9 and "24 private and 24 recovered images for 4 features" in warned.reason
    few = measure(fid, world, judged_of(images.take(torch.tensor([0, 6, 12, 18]))))["fid/main"]
    assert math.isnan(few.value) and "24 private and 4 recovered" in few.reason and "kid" in few.reason
    many = private_images(per_class=20)
    assert measure(fid, world_of(many), judged_of(many))["fid/main"].reason == ""


def test_distribution_distances_know_only_the_attacked_classes():
    images = private_images(per_class=20)
    attacked = images.take(images.labels < 2)
    fid = metrics.FrechetDistance(features="main")
    assert abs(measure(fid, world_of(images), judged_of(attacked))["fid/main"].value) < 1e-9


def naive_kernel_distance(first, second):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(first), len(second)
    within_first = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_second = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_first + within_second - 2 * sum(kernel(a, b) for a in first for b in second) / (n * m)


def test_kernel_distance_equals_the_double_loop(monkeypatch):
    monkeypatch.setattr("midefense.metrics.kid.ROWS", 5)
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(13, 3, generator=rng, dtype=torch.float64)
    second = torch.randn(8, 3, generator=rng, dtype=torch.float64) + 0.5
    measured = kernel_distance(first, torch.arange(13) % 3, second, torch.arange(8) % 3)
    assert measured.value == pytest.approx(naive_kernel_distance(first, second), rel=1e-12)
    assert measured.low <= measured.value <= measured.high


def test_kernel_distance_by_hand():
    # One feature, kernel (xy + 1)^3: within {0, 1}: 1, within {1, 2}: 27, between: (1 + 1 + 8 + 27) / 4.
    first, second = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1.0], [2.0]]).double()
    measured = kernel_distance(first, torch.zeros(2).long(), second, torch.zeros(2).long())
    assert measured.value == pytest.approx(1 + 27 - 2 * 37 / 4)
    assert measured.low is None and "one class only" in measured.reason


def test_kernel_distance_is_unbiased_and_works_for_one_image_per_class():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 6, 3, generator=rng, dtype=torch.float64) for _ in range(400)]
    values = torch.tensor([kernel_distance(a, torch.zeros(6), b, torch.zeros(6)).value for a, b in draws])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20
    single = kernel_distance(draws[0][0], torch.arange(6), draws[0][1], torch.arange(6))
    assert math.isfinite(single.low) and math.isfinite(single.high)


def test_kernel_distance_needs_two_images():
    images = private_images()
    kid = metrics.KernelDistance(features="main")
    measured = measure(kid, world_of(images), judged_of(images.take(torch.tensor([0]))))["kid/main"]
    assert math.isnan(measured.value) and "at least 2" in measured.reason


# Inception


def test_auto_features_are_pinned_to_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pinned = metrics.FrechetDistance.pin({"features": "auto", "batch_size": 8})
    assert pinned == {"features": "main", "batch_size": 8}
    assert metrics.KernelDistance().features == "main"
    with pytest.raises(Refused, match="features=inception: expected the weights at .* features=main"):
        metrics.FrechetDistance(features="inception")
    features.inception_file().parent.mkdir()
    features.inception_file().write_bytes(b"half a download")
    assert metrics.KernelDistance.pin({})["features"] == "inception"
    assert metrics.FrechetDistance.pin({"features": "second"})["features"] == "second"
    with pytest.raises(Refused, match="SHA-256"):
        metrics.FrechetDistance()


def test_inception_takes_grey_images_and_gives_2048_features(monkeypatch):
    from pytorch_fid import inception

    random_weights = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    monkeypatch.setattr(inception, "fid_inception_v3", lambda: random_weights)
    monkeypatch.setattr(features, "require_inception", lambda: None)
    network = features.Inception()
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trace = network(grey)
        assert torch.equal(trace.features, network(grey.repeat(1, 3, 1, 1)).features)
    assert trace.features.shape == (2, 2048) and trace.logits.shape == (2, 0)


class Shown(nn.Module):
    """In place of pytorch-fid's network: its features are what it is shown, before it maps [0, 1] to [-1, 1]."""

    def __init__(self, resize_input, normalize_input):
        super().__init__()
        assert resize_input and normalize_input

    def forward(self, images):
        return [images]


def test_legacy_fid_shows_the_network_what_the_code_of_ppa_shows_it(monkeypatch):
    monkeypatch.setattr("pytorch_fid.inception.InceptionV3", Shown)
    monkeypatch.setattr(features, "require_inception", lambda: None)
    images = private_images(per_class=8)
    world, judged = world_of(images), judged_of(images)
    measured = measure(metrics.FrechetDistance(features="inception", legacy_ppa=True), world, judged)
    assert list(measured) == ["fid_legacy_ppa/inception"]
    shown = images.floats()
    legacy, own = features.network(world, features.INCEPTION_PPA), features.network(world, "inception")
    assert torch.equal(legacy(shown).features, own(2 * shown - 1).features)  # PPA's images are in [-1, 1]
    assert torch.equal(own(shown).features, shown.expand(-1, 3, -1, -1).flatten(1))
    assert torch.equal(judged.traces[features.INCEPTION_PPA].features, legacy(shown).features)
    with pytest.raises(Refused, match="legacy_ppa: expected features=inception, .* got main"):
        metrics.FrechetDistance(features="main", legacy_ppa=True)


def test_moments_are_those_of_the_whole_set(monkeypatch):
    monkeypatch.setattr("midefense.metrics.fid.ROWS", 7)
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 100 + 1000
    mean, covariance = moments(rows)
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(covariance, torch.cov(rows.double().T), rtol=1e-12, atol=1e-10)


# All privacy metrics


@pytest.mark.parametrize("metric", ALL_PRIVACY, ids=lambda metric: type(metric).__name__)
def test_perfect_copy_is_best_and_noise_is_worse(metric):
    images = private_images(per_class=20)
    world, copy = world_of(images), judged_of(images)
    good, bad = measure(metric, world, copy), measure(metric, world, noise_like(copy))
    for name, measured in good.items():
        assert measured.higher_leaks is metric.higher_leaks
        better = measured.value - bad[name].value
        assert better > 0 if metric.higher_leaks else better < 0
        best = metric.best.get(name.split("/")[0])
        if best is not None:
            assert abs(measured.value - best) < (0.02 if "kid" in name else 1e-9)


@pytest.mark.parametrize("metric", ALL_PRIVACY, ids=lambda metric: type(metric).__name__)
def test_order_and_batch_size_never_matter(metric):
    images = private_images()
    world, judged = world_of(images), noise_like(judged_of(images))
    whole = measure(metric, world, judged)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    pieces = [part(judged, rows) for rows in order.split(5)]
    assert measure(metric, world, *pieces) == whole
    metric.batch_size = 7
    assert measure(metric, world, part(judged, slice(None))) == whole
    metric.batch_size = 256


def part(judged, rows):
    confidence = None if judged.target_confidence is None else judged.target_confidence[rows]
    return metrics.Judged(judged.images[rows], judged.labels[rows], judged.candidates[rows], confidence)


def test_networks_are_asked_once_per_image_and_left_as_they_were():
    images = private_images()
    world, judged = world_of(images), judged_of(images)
    evaluator = world.evaluators["main"]
    evaluator.train()
    evaluator.dropout.eval()
    for metric in ALL_PRIVACY:
        measure(metric, world, judged)
        measure(metric, world, judged)
    assert evaluator.training and not evaluator.dropout.training
    assert evaluator.seen == 2 * len(images) + 1  # judged, references, and one image to count its classes


@pytest.mark.parametrize("metric", ALL_PRIVACY, ids=lambda metric: type(metric).__name__)
def test_bad_images_are_refused_by_name(metric):
    images = private_images()
    world = world_of(images)
    metric.reset()
    with pytest.raises(Refused, match="got none; try update"):
        metric.compute(world)
    judged = judged_of(images)
    judged.images[7, 0, 0, 0] = math.nan
    with pytest.raises(Refused, match="NaN or infinity in 1 of 24 images, first in candidate 1 of class 1"):
        metric.update(judged, world)
    with pytest.raises(Refused, match=r"expected pixels in \[0, 1\], got \[-1, .*clip_images"):
        metric.update(metrics.Judged(judged_of(images).images * 2 - 1, judged.labels, judged.candidates), world)
    with pytest.raises(Refused, match=r"expected float \[M, 1, H, W\]"):
        metric.update(metrics.Judged(torch.zeros(24, 3, 2, 2), judged.labels, judged.candidates), world)
    with pytest.raises(Refused, match=r"expected classes 0..3, got \[4\]"):
        metric.update(metrics.Judged(judged_of(images).images, judged.labels + 1, judged.candidates), world)
    with pytest.raises(Refused, match="expected one each"):
        metric.update(metrics.Judged(judged_of(images).images, judged.labels[:3], judged.candidates), world)
    metric.update(judged_of(images), world)
    metric.update(judged_of(images), world)
    with pytest.raises(Refused, match="candidate 0 of class 0 again"):
        metric.compute(world)


def test_large_images_are_shown_a_few_at_a_time():
    small, large = nn.Identity(), nn.Identity()
    large.size = 299
    assert features.batch_rows(256, 64, small) == features.batch_rows(256, 64) == 256
    assert features.batch_rows(256, 64, large) == features.batch_rows(256, 299, small) == 23
    assert features.batch_rows(256, 4096) == 1


def test_bad_evaluators_are_refused():
    images = private_images()
    judged = judged_of(images)
    with pytest.raises(Refused, match="expected at least the 4 private classes, got 3"):
        metrics.AttackAccuracy().update(judged, world_of(images, evaluator_classes=3))
    with pytest.raises(Refused, match="expected at least one, got none"):
        metrics.FeatureDistance().update(judged, metrics.World(images, {}, CLASSES))
    with pytest.raises(Refused, match="expected names other than inception, .* got 'inception'"):
        metrics.FeatureDistance().update(judged, metrics.World(images, {"inception": Table(4)}, CLASSES))
    with pytest.raises(Refused, match="got 'man'; choices: inception, main. Did you mean 'main'"):
        metrics.FrechetDistance(features="man").update(judged, world_of(images))
    broken = nn.Module()
    broken.forward = lambda images: Trace(torch.full((len(images), 4), math.nan), images.flatten(1))
    with pytest.raises(Refused, match="network 'main': expected finite answers"):
        metrics.AttackAccuracy().update(judged, metrics.World(images, {"main": broken}, CLASSES))
    with pytest.raises(Refused, match="AttackAccuracy.top: expected distinct counts"):
        metrics.AttackAccuracy(top=[1, 1])


# Confidence intervals: how often they hold the truth, and their known answers, are in test_intervals.py


def test_interval_holds_the_mean_and_shrinks_with_the_number_of_classes():
    def interval(classes):
        rng = torch.Generator().manual_seed(0)
        values, labels = torch.rand(classes * 5, generator=rng), torch.arange(classes).repeat(5)
        return base.over_classes(values, labels, True, intervals.SHARE)

    small, large = interval(6), interval(300)
    for measured in (small, large):
        assert measured.low < measured.value < measured.high
    assert large.high - large.low < (small.high - small.low) / 3
    # Mean of 300 class means of 5 uniform draws: standard error sqrt(1 / 12 / 1500), 95 % within 1.96 of it; the
    # further class that may lie at either end takes up to 1 / 301 more on each side.
    reach = 1.96 * math.sqrt(1 / 12 / 1500)
    assert 2 * reach < large.high - large.low < 2 * reach + 2 / 301
    assert interval(6) == small


def test_interval_is_over_classes_and_not_images():
    values = torch.tensor([0.0] * 50 + [1.0] * 50)
    labels = torch.tensor([0] * 50 + [1] * 50)
    measured = base.over_classes(values, labels, True, intervals.SHARE)
    # Clopper and Pearson's for one right of two: at the bounds, one or more right, and one or less, have 2.5 %.
    assert (measured.low, measured.high) == (
        pytest.approx(1 - 0.975**0.5, abs=2e-3),
        pytest.approx(0.975**0.5, abs=2e-3),
    )
    single = base.over_classes(values, torch.zeros(100, dtype=torch.long), True, intervals.SHARE)
    assert single.low is None and single.high is None and "one class only" in single.reason


def test_kernel_distance_leaves_out_whole_classes():
    rng = torch.Generator().manual_seed(0)
    private, recovered = torch.rand(20, 3, generator=rng), torch.rand(10, 3, generator=rng) + 0.2
    first, second = torch.arange(20) % 5, torch.arange(10) % 5
    without = [
        kernel_distance(private[first != c], first[first != c], recovered[second != c], second[second != c]).value
        for c in range(5)
    ]
    found = kernel_distance(private, first, recovered, second)
    expected = intervals.jackknife_interval(found.value, np.array(without))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert found.interval == intervals.STUDENT_T
    lone = kernel_distance(private[:2], first[:2], recovered[:2], second[:2])
    assert lone.low is None and "without one of the classes" in lone.reason


@pytest.mark.parametrize("metric", ALL_PRIVACY, ids=lambda metric: type(metric).__name__)
def test_every_interval_says_how_it_was_found(metric):
    images = private_images()
    for number in measure(metric, world_of(images), noise_like(judged_of(images))).values():
        assert bool(number.interval) == (number.low is not None) == (number.high is not None)


# Utility and cost


def test_utility_and_cost_repeat_what_was_recorded():
    images = private_images()
    world = world_of(images, utility={"test_accuracy_top1": 0.9}, bill={"shared_queries": 12, "seconds": math.inf})
    utility = metrics.TargetUtility(expects=["test_accuracy_top1", "train_accuracy_top1"])
    utility.update(judged_of(images), world)
    measured = utility.compute(world)
    assert measured["utility/test_accuracy_top1"].value == 0.9
    assert "not recorded" in measured["utility/train_accuracy_top1"].reason
    assert utility.chance(world) == {"utility/test_accuracy_top1": 0.25, "utility/train_accuracy_top1": 0.25}
    cost = metrics.Cost().compute(world)
    assert cost["cost/shared_queries"].value == 12 and cost["cost/shared_queries"].higher_leaks is None
    assert math.isnan(cost["cost/seconds"].value) and math.isnan(cost["cost/queries_per_target_max"].value)


# Configurations


def test_sets_compose_and_write_out_every_argument():
    from hydra.utils import get_class

    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose(overrides=["+metrics=all"]).metrics
        parts = [
            name for name in ("privacy", "utility", "cost") for name in compose(overrides=[f"+metrics={name}"]).metrics
        ]
    assert list(chosen) == parts == ["accuracy", "feature_distance", "fid", "kid", "prdc", "utility", "cost"]
    for node in chosen.values():
        arguments = {key: value for key, value in node.items() if key != "_target_"}
        kind = get_class(node._target_)
        assert set(arguments) == set(kind.__init__.__kwdefaults__)
        assert kind.revision == (2 if kind in INTERVALS_CHANGED else 1)
        kind(**arguments)
