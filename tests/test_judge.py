"""The judge: a batch at a time, every stage by its name, and numbers that do not depend on how they were fed."""

import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from midefense import metrics
from midefense.datasets.splits import Splits
from midefense.metrics.base import Metric
from midefense.pipeline import candidates, judge
from midefense.pipeline.candidates import Candidates, open_stages
from midefense.priors.pixels import Pixels
from midefense.store.artefacts import Draft
from midefense.store.store import Store
from midefense.types import Images, Refused, Trace

CLASSES, SIZE = 3, 4
CPU = torch.device("cpu")


class First(nn.Module):
    """A network whose features are the pixels and whose logits are the first of them."""

    def forward(self, images):
        flat = images.flatten(1)
        return Trace(logits=flat[:, : CLASSES + 1], features=flat)


class Counted(Pixels):
    """Latents are images. Remembers how many it decoded at once."""

    def __init__(self):
        super().__init__(channels=1, size=SIZE, start="noise")
        self.counts = []

    def decode(self, latents):
        self.counts.append(len(latents))
        return latents.clone()


class Watching(metrics.AttackAccuracy):
    """Counts the images and batches it was shown that are still alive when it is shown more."""

    def __init__(self):
        super().__init__(top=[1])
        self.shown, self.alive = [], []

    def rows(self, judged, world):
        self.alive.append(sum(one() is not None for one in self.shown))
        self.shown += [weakref.ref(judged), weakref.ref(judged.images)]
        return super().rows(judged, world)


def bright(labels, seed=0, others=0.4):
    """Images [N, 1, 4, 4] whose brightest pixel is their class."""
    images = others * torch.rand(len(labels), 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    images.flatten(1)[torch.arange(len(labels)), labels] = 0.9
    return images


def stored(images, labels):
    ids = torch.arange(len(labels))
    return Images((images * 255).round().to(torch.uint8), labels, ids, [str(i) for i in range(CLASSES)])


@pytest.fixture
def splits():
    labels = torch.arange(CLASSES).repeat_interleave(8)
    train, test = (stored(bright(labels, seed), labels) for seed in (1, 2))
    return Splits(train, test, stored(bright(labels, 3), labels))


@pytest.fixture
def recovered(store):
    """`recovered(stage=latents or (field, tensor), ...)`: an artefact of those stages, all of six rows per class."""

    def make(name="recovered", **stages):
        owners = torch.arange(CLASSES).repeat_interleave(6)
        tensors = {"evidence.labels": torch.tensor([2, 0, 1]), "queries": torch.zeros(CLASSES)}
        for stage, content in stages.items():
            fields = content if isinstance(content, dict) else {"latents": content}
            tensors |= {f"{stage}.evidence": owners, **{f"{stage}.{k}": v for k, v in fields.items()}}
        draft = Draft(kind="recovered", name=name, recipe={"kind": "recovered", "of": name})
        return Store(store).work(draft).finish(tensors, {}, bill={"seconds": 1.0})

    return make


WANTED = torch.tensor([2, 0, 1]).repeat_interleave(6)  # what the rows of `recovered` stand for


def judged(artefact, splits, prior=None, target=None, **chosen):
    return judge.judge(
        recovered=artefact,
        prior=Counted() if prior is None else prior,
        target=First() if target is None else target,
        splits=splits,
        evaluators={"main": First()},
        metrics=chosen or {"accuracy": metrics.AttackAccuracy(top=[1]), "distance": metrics.FeatureDistance()},
        utility={"test_accuracy_top1": 0.9},
        device=CPU,
    )


def test_no_more_than_a_batch_is_held(recovered, splits, monkeypatch):
    artefact = recovered(optimised=bright(WANTED, 5), selected=bright(WANTED))
    whole = judged(artefact, splits, accuracy=metrics.AttackAccuracy(top=[1]), distance=metrics.FeatureDistance())
    prior, watching = Counted(), Watching()
    monkeypatch.setattr(candidates, "BATCH", 5)
    parts = judged(artefact, splits, prior, accuracy=watching, distance=metrics.FeatureDistance())
    assert prior.counts == [5, 5, 5, 3] * 3  # selected, optimised, samples of the prior
    assert len(watching.alive) == 4 * 3 + 5 and max(watching.alive) <= 2, (
        "one batch and its images, while the next is made"
    )
    assert parts.measured == whole.measured and parts.anchors == whole.anchors
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in parts.tensors.items())


def test_stages_are_marked_and_the_selected_one_is_the_headline(recovered, splits):
    wrong = bright((WANTED + 1) % CLASSES)
    artefact = recovered(initial=wrong, stage00=bright(WANTED), selected=bright(WANTED), other=wrong)
    found = judged(artefact, splits)
    accuracy = {name: n.value for name, n in found.measured.items() if name.startswith("attack_accuracy_top1")}
    assert accuracy == {
        "attack_accuracy_top1/main": 1.0,
        "attack_accuracy_top1@initial/main": 0.0,
        "attack_accuracy_top1@stage00/main": 1.0,
    }
    initial = found.measured["attack_accuracy_top1@initial/main"]
    assert initial.per_class == {0: 0.0, 1: 0.0, 2: 0.0} and initial.low == 0.0 < initial.high
    assert not [name for name in found.measured if name.startswith("knn_distance@")], "distances ask for no stage"
    assert found.kinds["attack_accuracy_top1@initial/main"] == "privacy"
    assert not [name for anchor in found.anchors.values() for name in anchor if "@" in name]
    assert "target_class_confidence@stage00/target" in found.measured
    only = judged(artefact, splits, accuracy=metrics.AttackAccuracy(top=[1], stages=[]))
    assert not [name for name in only.measured if "@" in name]


def test_pixels_of_a_stage_are_shown_instead_of_its_latents(recovered, splits):
    pixels = (bright(WANTED) * 255).round().to(torch.uint8)
    features = torch.zeros(len(WANTED), 7)  # no prior decodes these
    prior = Counted()
    shown = judged(recovered(selected={"latents": features, "pixels": pixels}), splits, prior)
    assert shown.measured["attack_accuracy_top1/main"].value == 1.0
    assert prior.counts == [len(WANTED)], "the samples of the prior alone were decoded"
    plain = judged(recovered("plain", selected=pixels.float() / 255), splits)
    assert shown.measured == plain.measured
    assert torch.equal(shown.tensors["reconstructions"], pixels)
    with pytest.raises(Refused, match="selected.pixels: expected a row for each of 18 candidates, got 17"):
        judged(recovered("short", selected={"latents": features, "pixels": pixels[1:]}), splits)


def test_a_stage_with_diverged_candidates_has_no_number(recovered, splits):
    broken = bright(WANTED)
    broken[4] = math.nan
    found = judged(recovered(optimised=broken, selected=bright(WANTED)), splits).measured
    number = found["attack_accuracy_top1@optimised/main"]
    assert math.isnan(number.value) and number.reason == "1 of 18 candidates diverged" and number.n == 18
    assert found["attack_accuracy_top1/main"].value == 1.0
    with pytest.raises(Refused, match="expected finite pixels"):
        judged(recovered("all", selected=broken), splits)


def test_anchors_are_real_images_samples_and_chance(recovered, splits):
    artefact = recovered(selected=bright(WANTED))
    anchors = judged(artefact, splits).anchors
    assert anchors["real"]["attack_accuracy_top1/main"] == 1.0 and anchors["prior"]["attack_accuracy_top1/main"] < 0.7
    assert anchors["chance"] == {"attack_accuracy_top1/main": 1 / (CLASSES + 1)}
    untested = Splits(splits.private_train, splits.private_test.take(torch.zeros(0).long()), splits.public)
    assert judged(artefact, untested).anchors["real"] == {}


def test_what_a_metric_draws_is_stored_beside_the_pictures(recovered, splits):
    class Drawing(Metric):
        def rows(self, judged, world):
            return {"means": judged.images.flatten(1).mean(1)}

        def measure(self, rows, world):
            self.seen = len(rows["means"])
            assert world.target is not None and len(world.tests) == 24
            return {"number/main": metrics.Measured(1.0)}

        def drawings(self):
            return {"drawing.count": torch.tensor([self.seen])}

    found = judged(recovered(selected=bright(WANTED)), splits, drawing=Drawing())
    assert found.tensors["drawing.count"].tolist() == [18], "of what was recovered, not of an anchor"
    assert set(found.tensors) > {"reconstructions", "nearest", "labels", "candidates", "distance", "confidence"}


def test_pictures_are_of_the_first_candidates_and_no_more_than_a_thousand(recovered, splits, monkeypatch):
    artefact = recovered(selected=bright(WANTED))
    monkeypatch.setattr(candidates, "BATCH", 4)
    tensors = judged(artefact, splits).tensors
    assert torch.equal(tensors["labels"], WANTED) and tensors["candidates"].tolist() == [0, 1, 2, 3, 4, 5] * 3
    known = splits.private_train
    for row in (0, 7, 17):  # the nearest of its class, by pixels: they are the features
        own = (known.labels == WANTED[row]).nonzero()[:, 0]
        apart = (known.floats(own) - bright(WANTED)[row]).flatten(1).square().sum(1)
        assert torch.equal(tensors["nearest"][row], known.pixels[own[apart.argmin()]])
        assert float(tensors["distance"][row]) == pytest.approx(float(apart.min()), rel=1e-5)
    monkeypatch.setattr(judge, "PICTURES", 6)
    assert judged(artefact, splits).tensors["candidates"].tolist() == [0, 1] * 3
    monkeypatch.setattr(judge, "PICTURES", 1)
    assert judged(artefact, splits).tensors["candidates"].tolist() == [0] * 3, "one per class at least"


def test_stages_are_read_row_by_row(recovered):
    latents = bright(WANTED)
    with open_stages(recovered(selected=latents, optimised=latents[:, :, :2]), Counted(), CPU) as stages:
        assert stages.names == ["optimised", "selected"]
        assert torch.equal(stages["selected"].read(slice(3, 5), [SIZE])[SIZE], latents[3:5])
        assert torch.equal(stages["selected"].labels, WANTED)


def test_candidates_number_the_images_of_a_class_over_all_batches():
    images = stored(bright(WANTED), WANTED)
    some = replace(Candidates.of_images({SIZE: images}, torch.arange(len(images)), CPU), rows=4)
    ranks = torch.cat([batch.candidates for batch in some.batches()])
    assert ranks.tolist() == [0, 1, 2, 3, 4, 5] * 3
    assert candidates.rank_in_class(torch.tensor([3, 5, 3])).tolist() == [0, 0, 1]
    (batch,) = Candidates(
        torch.tensor([0]), lambda rows, sides: {1: torch.tensor([[[[1.5, -1.0]]]])}, (1,), rows=1
    ).batches()
    assert batch.images.tolist() == [[[[1.0, 0.0]]]] and batch.target_confidence is None
