"""Metrics of pairs: a reconstruction against the private image it answers. Known answers, and what must collapse."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from midefense import metrics
from midefense.metrics import emd, pairwise
from midefense.metrics.base import with_ids
from midefense.metrics.features import original_features
from midefense.metrics.fsim import fsim, phase_congruency
from midefense.metrics.intervals import mean_interval
from midefense.metrics.released import attribute_auc, aucs
from midefense.types import Images, Refused, Trace

RECORDED = ROOT.parent / "shared" / "reference" / "attacks" / "crafter.npz"
PEOPLE, SIZE = 6, 12


class Flat(nn.Module):
    """An evaluator whose features are the pixels and whose logits are the first of them."""

    def __init__(self, classes=PEOPLE):
        super().__init__()
        self.classes, self.asked = classes, 0

    def forward(self, images):
        self.asked += len(images)
        flat = images.flatten(1)
        return Trace(logits=flat[:, : self.classes], features=flat)


def private_images(per_person=3, first=0, seed=0, size=SIZE):
    """Pictures whose brightest pixel, among the first, is the person; ids begin at `first`."""
    labels = torch.arange(PEOPLE).repeat_interleave(per_person)
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 100, (len(labels), 1, size, size), generator=rng, dtype=torch.uint8)
    pixels.flatten(1)[torch.arange(len(labels)), labels] = 220
    return Images(pixels, labels, first + torch.arange(len(labels)), [str(person) for person in range(PEOPLE)])


def world_of(tests, **more):
    more.setdefault("evaluators", {"main": Flat()})
    return metrics.World(private_images(first=100, seed=9), classes=PEOPLE, tests=tests, **more)


def judged_of(images, pixels=None, ids=None):
    ids = images.ids if ids is None else ids
    labels = torch.arange(len(ids)) * 0  # what the row is filed under says nothing of the pair
    return metrics.Judged(images.floats() if pixels is None else pixels, labels, torch.arange(len(ids)), ids=ids)


def measure(metric, world, *batches):
    metric.reset()
    for judged in batches:
        metric.update(judged, world)
    return metric.compute(world)


def all_numbers(tests, judged):
    world = world_of(tests)
    found = [metrics.PairedAccuracy(), metrics.FeatureCosine(), metrics.PictureSimilarity()]
    return {name: number for metric in found for name, number in measure(metric, world, judged).items()}


def test_a_copy_has_the_best_value_of_all_and_permuted_ids_collapse():
    tests = private_images()
    copy = all_numbers(tests, judged_of(tests))
    expected = {"paired_accuracy_top1/main": 1.0, "id_feature_cosine/main": 1.0, "ssim": 1.0, "fsim": 1.0}
    assert {name: copy[name].value for name in expected} == pytest.approx(expected, abs=1e-6)
    assert copy["psnr"].value == pytest.approx(10 * math.log10(12 * 255**2))
    others = all_numbers(tests, judged_of(tests, ids=tests.ids.roll(3)))  # every image answers another person's
    assert others["paired_accuracy_top1/main"].value == 0.0
    assert others["ssim"].value < 0.2 and others["psnr"].value < 15 and others["id_feature_cosine/main"].value < 0.9
    first = all_numbers(tests, judged_of(tests, ids=tests.ids[:1].expand(len(tests))))  # the batch-0 mistake
    assert first["paired_accuracy_top1/main"].value == pytest.approx(1 / PEOPLE)


def test_numbers_fall_as_noise_grows():
    tests, rng = private_images(), torch.Generator().manual_seed(1)
    noise = torch.randn(tests.pixels.shape, generator=rng)
    rows = [all_numbers(tests, judged_of(tests, (tests.floats() + s * noise).clamp(0, 1))) for s in (0, 0.1, 0.3, 1)]
    for name in ("ssim", "fsim", "psnr", "id_feature_cosine/main"):
        values = [row[name].value for row in rows]
        assert values == sorted(values, reverse=True) and len(set(values)) == 4, name
    assert rows[-1]["paired_accuracy_top1/main"].value < 0.6


def test_intervals_are_over_identities_and_not_over_images():
    tests = private_images(per_person=5)
    shown = tests.floats()
    shown[tests.labels < 2] = shown[tests.labels == 3].repeat(2, 1, 1, 1)  # two people of six are lost, whole
    found = all_numbers(tests, judged_of(tests, shown))["paired_accuracy_top1/main"]
    sums, counts = np.array([0, 0, 5, 5, 5, 5]), np.full(6, 5)
    assert (found.low, found.high) == mean_interval(sums, counts, (0.0, 1.0))[:2] and found.n == 30
    assert found.per_class == {0: 0.0, 1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}
    over_images = mean_interval(np.repeat(sums / 5, 5), np.ones(30), (0.0, 1.0))
    assert found.high - found.low > 1.5 * (over_images.high - over_images.low)


def test_whom_an_evaluator_saw_is_kept_for_the_worst_case():
    tests = private_images()
    metric = metrics.PairedAccuracy(top=[1])
    measure(metric, world_of(tests), judged_of(tests, ids=tests.ids.roll(3)))
    kept = metric.drawings()
    assert kept["paired.ids"].tolist() == tests.ids.roll(3).tolist()
    assert kept["paired.identities"].tolist() == tests.labels.roll(3).tolist()
    assert kept["paired.answers.main"].tolist() == tests.labels.tolist()


def test_an_original_is_shown_to_a_network_once_and_in_its_own_size():
    tests, large = private_images(), private_images(size=2 * SIZE)
    references = private_images(first=100, seed=9, size=2 * SIZE)
    network = Flat()
    world = world_of(tests, evaluators={"main": network}, shown={"main": references}, shown_tests={"main": large})
    judged = judged_of(tests)
    for rows in (torch.tensor([4, 2, 4]), torch.tensor([2, 0, 17, 4])):
        judged.ids = tests.ids[rows]
        assert original_features(judged, world, "main", 2).equal(large.floats().flatten(1)[rows])
    assert network.asked == 4


def test_private_images_of_several_parts_are_found_by_id():
    tests, train = private_images(), private_images(first=100, seed=9)
    ids = torch.tensor([101, 3, 117, 3])
    found = with_ids((train, None, tests), ids)
    assert found.labels.tolist() == [0, 1, 5, 1] and found.ids.equal(ids)
    assert found.pixels.equal(torch.stack([train.pixels[1], tests.pixels[3], train.pixels[17], tests.pixels[3]]))
    with pytest.raises(Refused, match=r"ids: expected those of private images, got \[99\]"):
        with_ids((train, tests), torch.tensor([99, 1]))


def test_evidence_of_classes_is_refused():
    tests = private_images()
    judged = judged_of(tests)
    judged.ids = None
    with pytest.raises(Refused, match="PairedAccuracy: expected the private image of each reconstruction, got classes"):
        measure(metrics.PairedAccuracy(), world_of(tests), judged)


@pytest.mark.skipif(not RECORDED.is_file(), reason=f"the recorded answers of the original are not at {RECORDED}")
def test_ssim_is_that_of_the_original():
    with np.load(RECORDED) as file:
        known = {name: torch.from_numpy(file[f"other/{name}"]) for name in ("x", "xhat", "x_close", "ssim_per_image")}
        close = float(file["other/ssim_close"])
    assert (pairwise.ssim(known["x"], known["xhat"]) - known["ssim_per_image"]).abs().max() < 1e-6
    assert float(pairwise.ssim(known["x"], known["x_close"]).mean()) == pytest.approx(close, abs=1e-6)


def test_ssim_of_flat_images_has_a_closed_form_and_needs_its_window():
    dark, light = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)  # no variance: the second factor is 1
    assert float(pairwise.ssim(dark, light)) == pytest.approx(expected, rel=1e-5)
    assert pairwise.ssim(dark[..., :10], light[..., :10]).isnan().all()
    small = private_images(size=8)
    world = metrics.World(small, {"main": Flat()}, PEOPLE)
    found = measure(metrics.PictureSimilarity(), world, judged_of(small))
    assert math.isnan(found["ssim"].value) and "11 pixels wide" in found["ssim"].reason
    assert found["psnr"].value > 50 and found["fsim"].value == 1.0


def pictures(size):
    """Two pictures alike, RGB [1, 3, size, size]: a slope, waves, and an edge."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    first = torch.stack([x * y, torch.sin(9 * x + 3 * y) / 2 + 0.5, (x > 0.4).float() * y])
    second = torch.stack([x * y, torch.sin(9 * x + 4 * y) / 2 + 0.5, (x > 0.5).float() * y])
    return first[None], second[None]


@pytest.mark.parametrize(("size", "colour", "grey"), [(32, 0.8541, 0.7753), (33, 0.8572, 0.7751), (64, 0.8900, 0.8690)])
def test_fsim_is_that_of_another_implementation(size, colour, grey):
    """By piq 0.8.0 (photosynthesis-team), `fsim(chromatic=False)` in float64: of RGB, and of one channel of each."""
    first, second = pictures(size)
    assert float(fsim(first, second)) == pytest.approx(colour, abs=2e-4)
    assert float(fsim(first[:, :1], second[:, 2:])) == pytest.approx(grey, abs=2e-4)


def test_phase_is_congruent_at_an_edge_however_faint():
    _, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for contrast in (200.0, 20.0):
        phase = phase_congruency(contrast * (x > 31)[None].double())[0, 32]
        assert phase[31:33].min() > 0.7 > 2 * phase[22:29].max()
    assert float(fsim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))) == 1.0, "two flat images are alike"


def test_large_images_are_seen_from_further_away():
    first, second = pictures(64)
    near = [each.repeat_interleave(8, 2).repeat_interleave(8, 3) for each in (first, second)]
    halved = [each.repeat_interleave(4, 2).repeat_interleave(4, 3) for each in (first, second)]
    assert float(fsim(*near)) == pytest.approx(float(fsim(*halved)), abs=1e-9)


# LPIPS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_lpips_is_refused_without_its_weights(hub):
    with pytest.raises(Refused, match=r"metrics.lpips: expected AlexNet's weights at .*alexnet-owt-7be5be79.pth"):
        metrics.PerceptualDistance()


def test_lpips_is_refused_without_its_package(hub, monkeypatch):
    (hub / pairwise.ALEXNET_FILE).write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"expected the package torchmetrics.*pip install 'midefense\[lpips\]'"):
        metrics.PerceptualDistance()


def test_lpips_of_each_pair(hub, monkeypatch):
    """With the package's function replaced: it is handed RGB pairs in [0, 1], and small images are n/a."""
    monkeypatch.setattr(pairwise, "require_perceptual", lambda: None)
    squared = lambda a, b: (a - b).square().mean((1, 2, 3)) * (a.shape[1] == 3)  # noqa: E731
    monkeypatch.setattr(pairwise, "perceptual_distance", squared)
    large = private_images(size=32)
    world = metrics.World(large, {"main": Flat()}, PEOPLE)
    metric = metrics.PerceptualDistance()
    assert measure(metric, world, judged_of(large))["lpips/alexnet"].value == 0.0
    shifted = measure(metric, world, judged_of(large, large.floats() + 0.1))["lpips/alexnet"]
    assert shifted.value == pytest.approx(0.01) and shifted.higher_leaks is False
    small = private_images()
    found = measure(metric, metrics.World(small, {"main": Flat()}, PEOPLE), judged_of(small))["lpips/alexnet"]
    assert math.isnan(found.value) and "32 pixels a side or more" in found.reason


# The earth mover's gap


def normal_images(count, mean, seed):
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (mean + 0.05 * noise).clamp(0, 1)


def gap(mean, seed=0, steps=80):
    tests = private_images(per_person=20, size=8)
    world = metrics.World(tests, {"main": Flat()}, PEOPLE, samples=lambda count: normal_images(count, 0.4, 7))
    metric = metrics.EarthMoverGap(steps=steps, width=4, learning_rate=1e-2, seed=seed)
    return measure(metric, world, judged_of(tests, normal_images(len(tests), mean, 3)))["emd_gap"]


def test_the_gap_is_the_distance_of_a_shift_and_none_of_a_distribution_from_itself():
    """A shift of all 64 pixels by c moves every image by 8 c, which is the earth mover's distance."""
    itself, near, far = gap(0.4), gap(0.5), gap(0.6)
    assert abs(itself.value) < 0.08
    assert near.value == pytest.approx(0.8, rel=0.15) and far.value == pytest.approx(1.6, rel=0.15)
    assert near.n == 60, "people the critic has not learned from"
    assert near.low < near.value < near.high and near.higher_leaks is True
    short = [gap(0.5, seed, steps=3).value for seed in (0, 0, 1)]
    assert short[0] == short[1] != short[2]


def test_a_gap_needs_a_generator_and_two_people():
    tests = private_images(size=8)
    judged = judged_of(tests)
    without = measure(metrics.EarthMoverGap(steps=1), metrics.World(tests, {"main": Flat()}, PEOPLE), judged)["emd_gap"]
    assert math.isnan(without.value) and "generates nothing" in without.reason
    one = tests.of_class(2)
    world = metrics.World(tests, {"main": Flat()}, PEOPLE, samples=lambda count: torch.zeros(count, 1, 8, 8))
    alone = measure(metrics.EarthMoverGap(steps=1), world, judged_of(one))["emd_gap"]
    assert math.isnan(alone.value) and "one identity only" in alone.reason


def test_a_critic_learns_its_answers_by_heart_and_is_not_asked_for_them():
    """Of few images the gap is large among those that it learned from, and about none among others."""
    metric = metrics.EarthMoverGap(steps=80, width=8, learning_rate=1e-2, penalty=1.0)
    recovered, samples = (emd.to_pixels(normal_images(6, 0.4, seed)) for seed in (1, 2))
    critic = metric._trained(recovered, samples)
    learned = float(emd._asked(critic, recovered).mean() - emd._asked(critic, samples).mean())
    others = [emd.to_pixels(normal_images(200, 0.4, seed)) for seed in (5, 6)]
    new = float(emd._asked(critic, others[0]).mean() - emd._asked(critic, others[1]).mean())
    assert learned > 0.1 > abs(new)


# What a release is still good for


def released(labels, features=None, attributes=(), tests=None, clean=None):
    tests = private_images() if tests is None else tests
    clean = tests.floats().flatten(1) if clean is None else clean
    features = clean if features is None else features
    return metrics.Released(tests.ids, features, clean, lambda part: part[:, :PEOPLE], labels, attributes)


def utility_of(one, tests=None):
    world = world_of(private_images() if tests is None else tests, released=one)
    return metrics.ReleasedUtility().compute(world), metrics.ReleasedUtility().chance(world)


def test_zeros_are_good_for_guessing_alone():
    tests = private_images()
    flags = torch.eye(PEOPLE, dtype=torch.bool)[tests.labels]
    names = [f"a{i}" for i in range(PEOPLE)]
    zero = torch.zeros(len(tests), SIZE * SIZE)
    found, chance = utility_of(released(flags, zero, names))
    assert found["clean_auc"].value == 1.0 and found["released_auc"].value == 0.5 == chance["released_auc"]
    assert found["released_auc/a3"].value == 0.5 and found["feature_distortion"].value == 1.0
    label, level = utility_of(released(tests.labels, zero))
    assert label["clean_accuracy_top1"].value == 1.0 and label["released_accuracy_top1"].value == 1 / PEOPLE
    assert level == {"released_accuracy_top1": 1 / PEOPLE, "clean_accuracy_top1": 1 / PEOPLE}


def test_utility_falls_as_noise_grows():
    tests, rng = private_images(per_person=20), torch.Generator().manual_seed(0)
    flags = torch.eye(PEOPLE, dtype=torch.bool)[tests.labels]
    clean, names = tests.floats().flatten(1), [f"a{i}" for i in range(PEOPLE)]
    noise = torch.randn(clean.shape, generator=rng)
    rows = [utility_of(released(flags, clean + s * noise, names, tests), tests)[0] for s in (0.0, 0.3, 1.0, 4.0)]
    auc, moved = ([row[name].value for row in rows] for name in ("released_auc", "feature_distortion"))
    assert auc == sorted(auc, reverse=True) and auc[-1] < 0.7 < 0.99 < auc[0] and moved == sorted(moved)
    assert {row["clean_auc"].value for row in rows} == {1.0}
    assert rows[1]["released_auc"].low < rows[1]["released_auc"].value < rows[1]["released_auc"].high


def test_the_mean_auc_is_over_attributes_that_some_have_and_others_have_not():
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.4, 0.2, 0.1], [0.35, 0.1, 0.2], [0.8, 0.6, 0.4]])
    labels = torch.tensor([[0, 1, 1], [0, 1, 0], [1, 1, 1], [1, 1, 0]]).bool()
    assert aucs(scores.numpy(), labels.numpy()) == pytest.approx([0.75, math.nan, 0.5], nan_ok=True)
    found = attribute_auc("auc", scores, labels, ["Male", "Smiling", "Young"], torch.arange(4))
    assert found["auc"].value == 0.625 and "without Smiling" in found["auc"].reason
    assert found.keys() == {"auc", "auc/Male", "auc/Young"}
    none = attribute_auc("auc", scores, torch.ones(4, 3).bool(), ["Male", "Smiling", "Young"], torch.arange(4))
    assert math.isnan(none["auc"].value) and "agree in every attribute" in none["auc"].reason


def test_the_interval_of_an_auc_is_over_identities():
    """Copies of the images of each person tell nothing new, and do not narrow it."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.rand(30, 2, generator=rng) > 0.5
    scores = labels + torch.randn(30, 2, generator=rng)
    people = torch.arange(30)
    once = attribute_auc("auc", scores, labels, ["a", "b"], people)["auc"]
    five = [each.repeat_interleave(5, 0) for each in (scores, labels, people)]
    often = attribute_auc("auc", five[0], five[1], ["a", "b"], five[2])["auc"]
    assert often.value == pytest.approx(once.value)
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_what_the_cloud_cannot_take_is_said():
    tests = private_images()
    found, _ = utility_of(released(tests.labels, torch.zeros(len(tests), 5)))
    assert math.isnan(found["released_accuracy_top1"].value) and "[144]" in found["released_accuracy_top1"].reason
    assert math.isnan(found["feature_distortion"].value) and found["clean_accuracy_top1"].value == 1.0
    nothing, _ = utility_of(None)
    assert [number.reason for number in nothing.values()] == ["nothing was released: the evidence is no feature"]
