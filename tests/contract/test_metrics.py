"""Every metric of `conf/metrics`, judged by a network that is read off the image and one that looks at parts of it."""

import math

import pytest
import torch
from torch import nn

from contract.listing import composed, node, options
from midefense import metrics
from midefense.types import Images, Trace

SETS = options("metrics")
NAMES = ["accuracy", "cost", "feature_distance", "fid", "kid", "prdc", "utility"]
# Of `paired`, beside utility and cost: they hold a reconstruction against the one private image that it answers.
PAIRED = ["feature_cosine", "paired_accuracy", "pictures", "release_cost", "released_utility"]
# In neither: they ask the target, teach a student or a critic, need weights that are not here, or are of one benchmark
# or of training sets, or tell what only fools (tests/test_feature_space.py, test_feature_to_id.py, test_knowledge.py,
# test_pairwise.py, test_low_resolution_metrics.py, test_matched.py, test_unexplained.py, test_nearest_other.py,
# test_net_of_fooling.py, test_panel.py, test_robust.py).
APART = [
    "benchmark_fid",
    "emd",
    "feature_space",
    "feature_to_id",
    "knowledge",
    "lpips",
    "matched",
    "nearest_other",
    "net_of_fooling",
    "panel",
    "restarts",
    "robust",
    "unexplained",
]
CLASSES = 4


def test_the_listing():
    mixed = ["all", "matched", "paired", "trust"]
    sets = ["emd", "feature_space", "feature_to_id", "knowledge", "low_resolution", "lpips"]
    sets += ["nearest_other", "net_of_fooling", "panel", "robust"]
    assert sorted(SETS) == sorted([*mixed, *sets, "cost", "privacy", "utility"])
    assert sorted(composed("evaluate", "metrics=all")[0]["metrics"]) == NAMES
    assert sorted(composed("evaluate", "metrics=paired")[0]["metrics"]) == sorted([*PAIRED, "cost", "utility"])
    sets = [part for part in SETS if part not in mixed]
    parts = [name for part in sets for name in composed("evaluate", f"metrics={part}")[0]["metrics"]]
    parts += set(composed("evaluate", "metrics=matched")[0]["metrics"]) - {"cost", "utility"}
    assert sorted(parts) == sorted(NAMES + APART), "all holds every other set"


@pytest.fixture(params=NAMES + PAIRED)
def metric(request, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # no Inception: the evaluator's features
    return metric_of(request.param)


def metric_of(name):
    return node("evaluate", f"metrics.{name}", "metrics=paired" if name in PAIRED else "metrics=all").build()


class Flat(nn.Module):
    """An evaluator whose features are the pixels and whose logits are the first of them."""

    def forward(self, images):
        flat = images.flatten(1)
        return Trace(logits=flat[:, : CLASSES + 2], features=flat)


def private_images(per_class=12, seed=0, shape=(2, 3)):
    """Pictures of 2 x 3 pixels: the brightest of the first four is the class."""
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 100, (len(labels), 1, *shape), generator=rng, dtype=torch.uint8)
    pixels.flatten(1)[torch.arange(len(labels)), labels] = 200
    return Images(pixels, labels, torch.arange(len(labels)), [str(label) for label in range(CLASSES)])


def pictures_for(metric):
    """Private images that a metric can take: SSIM has a window of 11 pixels."""
    return private_images(shape=(12, 12) if metric.matches == "image" else (2, 3))


def world_of(images):
    bill = {"queries_per_target_mean": 30.0, "queries_per_target_max": 31, "shared_queries": 7, "seconds": 2.5}
    utility, released = {"test_accuracy_top1": 0.875}, released_of(images)
    return metrics.World(images, {"main": Flat()}, CLASSES, utility=utility, bill=bill, released=released)


def released_of(images):
    """The flat pixels, at twice their length, which a cloud reads as the evaluator does."""
    flat = images.floats().flatten(1)
    return metrics.Released(
        images.ids, 2 * flat, flat, lambda features: features[:, :CLASSES], images.labels, seconds=0.5, bytes=24.0
    )


def judged_of(images, pixels=None):
    counts = torch.arange(len(images)) % (len(images) // CLASSES)
    return metrics.Judged(images.floats() if pixels is None else pixels, images.labels, counts, ids=images.ids)


def numbers(metric, world, *batches):
    metric.reset()
    for batch in batches:
        metric.update(batch, world)
    return metric.compute(world)


def values(measured):
    return {name: number.value for name, number in measured.items()}


def test_best_on_a_perfect_copy_and_worse_on_noise(metric):
    images = pictures_for(metric)
    world = world_of(images)
    copy = numbers(metric, world, judged_of(images))
    noise = numbers(metric, world, judged_of(images, torch.rand(images.pixels.shape, generator=torch.manual_seed(1))))
    assert copy.keys() == noise.keys() and all(math.isfinite(number.value) for number in copy.values())
    for name, number in copy.items():
        if metric.kind != "privacy":
            assert number.value == noise[name].value, "it does not look at the images"
            continue
        assert number.higher_leaks is metric.higher_leaks is not None
        better = number.value > noise[name].value if metric.higher_leaks else number.value < noise[name].value
        assert better, f"{name}: {number.value} on the copy, {noise[name].value} on noise"
    for stem, best in metric.best.items():
        found = [number.value for name, number in copy.items() if name.split("/")[0] == stem]
        tolerance = 0.05 if stem == "kid" else 1e-6  # kid is unbiased: a copy gets slightly less than 0
        assert found and all(abs(value - best) <= tolerance for value in found)


def test_order_and_batches_do_not_matter(metric):
    images = pictures_for(metric)
    world = world_of(images)
    judged = judged_of(images, torch.rand(images.pixels.shape, generator=torch.manual_seed(1)))
    whole = numbers(metric, world, judged)
    order = torch.randperm(len(images), generator=torch.manual_seed(2))
    pieces = [
        metrics.Judged(judged.images[rows], judged.labels[rows], judged.candidates[rows], ids=judged.ids[rows])
        for rows in order.split(7)
    ]
    parts = numbers(metric, world_of(images), *pieces)
    assert values(parts) == pytest.approx(values(whole), rel=1e-9, nan_ok=True)
    for name, number in whole.items():
        assert (parts[name].low is None) == (number.low is None)
        assert number.low is None or parts[name].low == pytest.approx(number.low, rel=1e-9)
        assert parts[name].per_class == pytest.approx(number.per_class, rel=1e-9)


def accuracy(world, images):
    """A quarter of the images show another class: those are lost, and no more."""
    pixels = images.floats()
    pixels[images.labels == 0] = pixels[images.labels == 1]
    return judged_of(images, pixels), {"attack_accuracy_top1/main": 0.75}


def feature_distance(world, images):
    """All pixels of a black image are off: the sum of squares of the private image nearest to it."""
    squares = images.floats().double().flatten(1).square().sum(1)
    nearest = torch.stack([squares[images.labels == label].min() for label in range(CLASSES)]).mean()
    means = torch.stack([images.of_class(label).floats().double().mean(0) for label in range(CLASSES)])
    expected = {"knn_distance/main": nearest, "feature_distance/main": means.flatten(1).square().sum(1).mean()}
    return judged_of(images, torch.zeros(images.pixels.shape)), {key: float(value) for key, value in expected.items()}


def fid(world, images):
    """A shift moves the mean and nothing else: the squared length of the shift, six pixels of .1."""
    return judged_of(images, images.floats() + 0.1), {"fid/main": 6 * 0.1**2}


def kid(world, images):
    """Black images: k(0, x) = 1, so the distance is the mean private kernel of distinct pairs, plus 1, minus 2."""
    flat = images.floats().double().flatten(1)
    kernel = (flat @ flat.T / 6 + 1) ** 3
    pairs = (kernel.sum() - kernel.trace()) / (len(flat) * (len(flat) - 1))
    return judged_of(images, torch.zeros(images.pixels.shape)), {"kid/main": float(pairs) + 1 - 2}


def prdc(world, images):
    """Of a copy, every image reaches itself and its three neighbours, no two of which are equally far."""
    expected = {"precision/main": 1, "recall/main": 1, "density/main": 4 / 3, "coverage/main": 1}
    return judged_of(images), expected


def utility(world, images):
    return judged_of(images), {f"utility/{name}": value for name, value in world.utility.items()}


def cost(world, images):
    return judged_of(images), {f"cost/{name}": value for name, value in world.bill.items()}


def paired_accuracy(world, images):
    """A quarter of the reconstructions answer images of someone else than they show, and no label says so."""
    shifted = images.ids.clone()
    shifted[images.labels == 0] = images.ids[images.labels == 1]
    judged = judged_of(images)
    judged.ids = shifted
    return judged, {"paired_accuracy_top1/main": 0.75}


def feature_cosine(world, images):
    """White images: the cosine is the mean pixel over the root of the mean square."""
    flat = images.floats().double().flatten(1)
    expected = (flat.mean(1) / flat.square().mean(1).sqrt()).mean()
    return judged_of(images, torch.ones(images.pixels.shape)), {"id_feature_cosine/main": float(expected)}


def pictures(world, images):
    """All pixels off by .1: 20 dB. (SSIM and FSIM: tests/test_pairwise.py.)"""
    return judged_of(images, images.floats() + 0.1), {"psnr": 20.0}


def released_utility(world, images):
    """Twice the feature is as far from it as it is long, and has the same largest entry."""
    expected = {"released_accuracy_top1": 1.0, "clean_accuracy_top1": 1.0, "feature_distortion": 1.0}
    return judged_of(images), expected


def release_cost(world, images):
    return judged_of(images), {"cost/release_seconds_per_image": 0.5, "cost/bytes_per_feature": 24.0}


CLOSED_FORMS = [accuracy, cost, feature_distance, fid, kid, prdc, utility]
CLOSED_FORMS += [feature_cosine, paired_accuracy, pictures, release_cost, released_utility]


def test_every_metric_has_a_closed_form():
    assert [form.__name__ for form in CLOSED_FORMS] == NAMES + PAIRED


@pytest.mark.parametrize("form", CLOSED_FORMS, ids=NAMES + PAIRED)
def test_closed_form(form, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    images = private_images()
    world = world_of(images)
    judged, expected = form(world, images)
    measured = values(numbers(metric_of(form.__name__), world, judged))
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured_is_nan_with_a_reason(metric):
    """One image of one class, by an evaluator of few classes: no number that only looks good."""
    images = private_images()
    first = torch.zeros(1, dtype=torch.int64)
    one = metrics.Judged(images.floats()[:1], images.labels[:1], first, ids=images.ids[:1])
    for name, number in numbers(metric, metrics.World(images, {"main": Flat()}, CLASSES), one).items():
        assert math.isfinite(number.value) or number.reason, name
        assert number.low is None
        if metric.kind != "privacy" or name.split("/")[0] in ("fid", "kid"):
            assert math.isnan(number.value) and number.reason
