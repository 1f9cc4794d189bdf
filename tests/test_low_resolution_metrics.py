"""The low-resolution benchmark's numbers: accuracy over restarts beside that of the best by the target, and four
distances that are all called FID elsewhere."""

import math
from dataclasses import replace

import pytest
import torch
from contract.test_metrics import CLASSES, Flat, private_images, world_of
from torch import nn

from midefense import metrics
from midefense.metrics import benchmark_fid, features
from midefense.metrics.benchmark_fid import VERSIONS, BenchmarkFid
from midefense.metrics.fid import frechet_distance
from midefense.metrics.restarts import RestartAccuracy
from midefense.plan.bind import bind
from midefense.types import Refused, Trace

RESTARTS = 3


def judged_of(hits, sure=None, ids=None, order=None):
    """Images of which an evaluator sees the wanted class where `hits` [targets, restarts] says so."""
    hits = torch.as_tensor(hits)
    labels = torch.arange(len(hits)) % CLASSES if ids is not None else torch.arange(len(hits))
    labels = labels.repeat_interleave(hits.shape[1])
    shown = torch.where(hits.flatten(), labels, (labels + 1) % CLASSES)
    images = torch.zeros(len(labels), 1, 2, 3)
    images.flatten(1)[torch.arange(len(labels)), shown] = 1.0
    ranks = torch.tensor([int((labels[:i] == label).sum()) for i, label in enumerate(labels)])
    ids = None if ids is None else torch.tensor(ids).repeat_interleave(hits.shape[1])
    sure = None if sure is None else torch.as_tensor(sure).flatten()
    rows = torch.arange(len(labels)) if order is None else order
    pick = lambda value: None if value is None else value[rows]  # noqa: E731
    return metrics.Judged(images[rows], labels[rows], ranks[rows], pick(sure), ids=pick(ids))


def measured(metric, judged, world=None):
    world = world or world_of(private_images())
    metric.reset()
    metric.update(judged, world)
    return metric.compute(world)


HITS = [[True, True, False], [True, False, False], [False, False, False], [True, True, True]]  # by restart: 3/4 2/4 1/4
SURE = [[0.2, 0.1, 0.9], [0.8, 0.1, 0.1], [0.5, 0.6, 0.7], [0.3, 0.3, 0.3]]  # picks a miss, a hit, a miss, a hit


def test_mean_and_deviation_over_restarts_and_the_best_by_the_target_apart():
    numbers = measured(RestartAccuracy(), judged_of(HITS, SURE))
    assert numbers["restart_accuracy/main"].value == pytest.approx(0.5)
    assert numbers["restart_accuracy_std/main"].value == pytest.approx(0.25)  # of .75, .5, .25 with n - 1
    assert numbers["restart_accuracy_std/main"].low is None, "a spread of restarts is no interval of the mean"
    assert numbers["best_of_restarts_accuracy/main"].value == pytest.approx(0.5)
    surer = torch.tensor(HITS).float() + 0.1
    best = measured(RestartAccuracy(), judged_of(HITS, surer / 2))["best_of_restarts_accuracy/main"]
    assert best.value == pytest.approx(0.75), "the target's choice may be better than any restart: a number apart"
    assert best.per_class == {0: 1, 1: 1, 2: 0, 3: 1}


def test_order_and_batches_do_not_matter_and_equals_fall_to_the_first():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    first, other = (measured(RestartAccuracy(), judged_of(HITS, SURE, order=o)) for o in (None, order))
    assert {n: v.value for n, v in first.items()} == {n: v.value for n, v in other.items()}
    alike = [[0.5] * 3] * 4
    assert measured(RestartAccuracy(), judged_of(HITS, alike))["best_of_restarts_accuracy/main"].value == 0.75


def test_restarts_of_private_images_are_counted_per_image():
    """Eight images of four classes: as two sets of restarts of each class, there would be six."""
    ids = [90, 91, 92, 93, 80, 81, 82, 83]
    numbers = measured(RestartAccuracy(), judged_of([*HITS, *HITS], [*SURE, *SURE], ids=ids))
    assert numbers["restart_accuracy_std/main"].n == RESTARTS
    assert numbers["restart_accuracy_std/main"].value == pytest.approx(0.25)
    assert numbers["best_of_restarts_accuracy/main"].n == 8


def test_best_on_hits_worse_on_misses():
    for value in (True, False):
        numbers = measured(RestartAccuracy(), judged_of([[value] * 3] * 4, SURE))
        for name in ("restart_accuracy/main", "best_of_restarts_accuracy/main"):
            assert numbers[name].value == float(value) and numbers[name].higher_leaks is True
        assert (
            numbers["restart_accuracy_std/main"].value == 0
            and numbers["restart_accuracy_std/main"].higher_leaks is None
        )


def test_what_cannot_be_told_is_nan_with_a_reason():
    numbers = measured(RestartAccuracy(), judged_of([[True]] * 4))
    assert math.isnan(numbers["restart_accuracy/main"].value)
    assert "from 1 to 1 candidates per target: expected two" in numbers["restart_accuracy_std/main"].reason
    assert "the target was not asked" in numbers["best_of_restarts_accuracy/main"].reason
    uneven = judged_of(HITS, SURE, order=torch.arange(11))
    assert "from 2 to 3 candidates per target" in measured(RestartAccuracy(), uneven)["restart_accuracy/main"].reason
    world = world_of(private_images())
    assert RestartAccuracy().chance(world) == {"restart_accuracy/main": 1 / 6}  # `Flat` tells six classes apart


# Four distances


def _six(images):
    return images[..., :3].flatten(1)


class Pixels(nn.Module):
    """In place of an Inception: its features are the first six pixels of what it is shown."""

    def __init__(self, *arguments, **options):
        super().__init__()

    def forward(self, images):
        return Trace(images.new_zeros(len(images), 0), _six(images))


@pytest.fixture(autouse=True)
def inceptions(monkeypatch):
    monkeypatch.setattr(features, "Inception", Pixels)
    for module in (benchmark_fid, features):
        monkeypatch.setattr(module, "require_inception", lambda: None)
    monkeypatch.setattr(benchmark_fid, "require_imagenet_inception", lambda: None)
    monkeypatch.setattr(benchmark_fid, "ImagenetInception", Pixels)


def copies(images, shift=0.0):
    """The private images again, brighter by `shift`; of the first class as another class, which is not recognised."""
    made = images.floats() + shift
    made[images.labels == 0] = made[images.labels == 1]
    ranks = torch.arange(len(images)) % (len(images) // CLASSES)
    return metrics.Judged(made, images.labels, ranks)


@pytest.mark.parametrize("name", VERSIONS)
def test_each_has_its_own_name_and_no_two_agree(name):
    images = private_images(per_class=40)
    world = world_of(images)
    world.shown = {"larger": enlarged(images)}
    judged = copies(images, shift=0.1)
    (number,) = numbers = measured(BenchmarkFid(version=name, per_class=10), judged, world)
    asked = {"plg": "imagenet_inception", "dmi": "main"}.get(name, "inception")
    assert number == f"fid_{name}/{asked}" and numbers[number].higher_leaks is False
    made, private, seen = judged.images.flatten(1), images.floats().flatten(1), judged.labels != 0
    dark, bright = made.amin(1, keepdim=True), made.amax(1, keepdim=True)
    expected = {
        "plg": lambda: frechet_distance(private, ((made - dark) / (bright - dark))[seen]),
        "rethinking": lambda: frechet_distance(private, (made / 2 + 0.5)[seen]),
        "dmi": lambda: frechet_distance(private.view(CLASSES, 40, 6)[:, :10].flatten(0, 1), made),
        "toolbox": lambda: frechet_distance(_six(enlarged(images).floats()), made),
    }
    values = {version: value() for version, value in expected.items()}
    assert numbers[number].value == pytest.approx(values[name], rel=1e-5)
    assert len({round(value, 4) for value in values.values()}) == 4


def enlarged(images):
    """Other pictures as images whose last side says 112."""
    return replace(images, pixels=(images.pixels // 2).repeat(1, 1, 1, 38)[..., :112])


def test_closer_copies_are_closer():
    images = private_images(per_class=40)
    whole = metrics.Judged(images.floats(), images.labels, torch.arange(len(images)) % 40)
    near, far = (
        measured(BenchmarkFid(version="dmi", per_class=40), judged, world_of(images))["fid_dmi/main"].value
        for judged in (whole, metrics.Judged(torch.rand(160, 1, 2, 3), images.labels, whole.candidates))
    )
    assert near == pytest.approx(0, abs=1e-9) and far > 0.01


def test_one_that_is_only_called_fid_is_refused():
    for wrong in ("fid", "inception", "ked"):
        with pytest.raises(
            Refused, match=f"BenchmarkFid.version: got '{wrong}'; choices: plg, rethinking, dmi, toolbox"
        ):
            bind({"_target_": "midefense.metrics.BenchmarkFid", "version": wrong}, "metrics.fid").build()
    with pytest.raises(Refused, match="BenchmarkFid.evaluator: got 'face'; choices: main"):
        BenchmarkFid(version="dmi", evaluator="face").check(["main"])


def test_without_what_it_compares_there_is_no_number():
    images = private_images(per_class=40)
    black = metrics.Judged(torch.zeros(40, 1, 2, 3), images.labels[120:], torch.arange(40))
    number = measured(BenchmarkFid(version="plg"), black, world_of(images))
    assert "recognises none of the 40 images" in number["fid_plg/imagenet_inception"].reason
    number = measured(BenchmarkFid(version="toolbox"), copies(images), world_of(images))["fid_toolbox/inception"]
    assert "expected private images of 112 px; an evaluator brings them: evaluators.main.size=112" in number.reason
    few = measured(BenchmarkFid(version="dmi", per_class=1), copies(images), world_of(images))["fid_dmi/main"]
    assert math.isnan(few.value) and "4 private and 160 recovered images for 6 features" in few.reason


def test_weights_are_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for version, said in {
        "plg": "inception_v3_google",
        "rethinking": "pt_inception",
        "toolbox": "pt_inception",
    }.items():
        with pytest.raises(Refused, match=f"expected the weights at .*{said}.*, got no such file"):
            BenchmarkFid(version=version)
    BenchmarkFid(version="dmi")


def test_the_evaluator_is_asked_once(monkeypatch):
    images, asked = private_images(per_class=40), []
    network = Flat()
    monkeypatch.setattr(
        Flat, "forward", lambda self, x: asked.append(len(x)) or Trace(x.flatten(1)[:, :6], x.flatten(1))
    )
    world = metrics.World(images, {"main": network}, CLASSES)
    judged = copies(images)
    for metric in (RestartAccuracy(), BenchmarkFid(version="dmi")):
        measured(metric, judged, world)
    assert sorted(asked) == [1, 160, 160], "one image to count classes, the recovered, the private"
