"""Split training: the cloud's half learns from what the edge released, and is tested on that and on clean features."""

import conftest
import pytest
import torch
from torch import nn

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.bind import bind
from midefense.store.store import Store
from midefense.training.cloud import cloud_logits, fit_cloud
from midefense.types import Refused

WORDS = (
    "dataset=toy",
    "dataset.classes=3",
    "dataset.public_classes=3",
    "dataset.images_per_class=20",
    "dataset.test_images_per_class=6",
    "dataset.size=8",
    "architecture=mlp",
    "architecture.widths=[16,8]",
    "architecture.size=8",
    "architecture.cut=hidden1",
    "recipe.epochs=4",
    "recipe@cloud=split_training",
    "cloud.epochs=12",
    "cloud.batch_size=20",
    "cloud.optimizer.lr=0.02",
    "compute.threads=1",
    "tracking=none",
)
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.05}
RECIPE = {"_target_": "midefense.training.recipe.Recipe", "epochs": 4, "batch_size": 8, "optimizer": ADAM}


def planned(folder, *words):
    return Pipeline(conftest.plan_for("train_target", *WORDS, *words, store=folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("split_training") / "store"


def test_two_numbers_and_the_features_they_come_from(folder):
    pipeline = planned(folder)
    cloud = pipeline.cloud
    numbers = cloud.metrics
    assert set(numbers) == {"released_test_accuracy_top1", "clean_test_accuracy_top1"}
    assert numbers["released_test_accuracy_top1"] == numbers["clean_test_accuracy_top1"] > 0.6, "nothing was changed"
    released = {
        role: Store(folder).parent(cloud.provenance["parents"][f"released_{role}"]) for role in ("train", "test")
    }
    assert {role: one.metrics["images"] for role, one in released.items()} == {"train": 60, "test": 18}
    assert set(cloud.provenance["parents"]) == {"target", "released_train", "released_test"}
    halves = pipeline.target.model.split("hidden1")
    assert {name: tensor.shape for name, tensor in cloud.tensors().items()} == {
        name: tensor.shape for name, tensor in halves[1].state_dict().items()
    }
    assert any(not tensor.equal(halves[1].state_dict()[name].cpu()) for name, tensor in cloud.tensors().items())
    assert planned(folder).cloud.path == cloud.path and len(Store(folder).list("cloud")) == 1


def test_a_head_that_learned_from_noise_is_told_apart_by_clean_features(folder):
    noisy = planned(folder, "defense=feature_noise", "defense.scale=3")
    cloud, bare = noisy.cloud, planned(folder).cloud
    assert noisy.target.artefact.id == planned(folder).target.artefact.id, "the edge is one"
    assert cloud.id != bare.id and "noise" in cloud.name
    assert cloud.metrics["released_test_accuracy_top1"] < bare.metrics["released_test_accuracy_top1"]
    assert cloud.metrics["released_test_accuracy_top1"] != cloud.metrics["clean_test_accuracy_top1"]


def test_attributes_are_told_one_by_one(tmp_path):
    words = [word for word in WORDS if not word.startswith(("dataset", "cloud", "architecture.size"))]
    faces = ("dataset=synthetic_faces", "dataset.label=attributes", "dataset.identities=4", "dataset.size=16")
    few = ("dataset.images_per_identity=8", "dataset.test_images_per_identity=4", "dataset.public_identities=2")
    words = (*words, *faces, *few, "cloud.epochs=2", "cloud.batch_size=16", "architecture.size=16")
    cloud = Pipeline(conftest.plan_for("train_target", *words, store=tmp_path)).cloud
    assert len(cloud.metrics["released_attributes"]) == len(cloud.metrics["clean_attributes"]) == 10
    assert 0 <= cloud.metrics["released_test_attribute_auc_mean"] <= 1


def toy():
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(48) % 2
    features = torch.randn(48, 5, generator=generator) + 2.0 * labels[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), features, labels


def test_killed_after_an_epoch_it_goes_on_to_the_same_bits():
    recipe = bind(RECIPE, "cloud").build()
    whole, features, labels = toy()
    states = [state() for _, _, state in fit_cloud(whole, features, labels, recipe, 0)]
    assert [int(state["epoch"]) for state in states] == [1, 2, 3, 4]
    for saved in states[:-1]:
        again, *_ = toy()
        for _ in fit_cloud(again, features, labels, recipe, 0, state=saved):
            pass
        assert all(tensor.equal(again.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert (cloud_logits(whole, features).argmax(1) == labels).float().mean() > 0.9
    other, *_ = toy()
    list(fit_cloud(other, features, labels, recipe, 1))
    assert not other[0].weight.equal(whole[0].weight), "another seed goes another way"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("architecture.cut=null",), "cloud: expected a target that is cut, got none"),
        (("architecture.cut=hidden9",), "architecture.cut: got 'hidden9'; choices: hidden1, features"),
        (("cloud.select=validation",), "cloud.select: expected a recipe for features, which are no pictures"),
        (("cloud.head=centroids",), "cloud.head: expected a recipe for features"),
        (("cloud.epochs=0",), "expected epochs >= 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_cut_or_learned_is_refused_before_anything_is_trained(tmp_path, words, complaint):
    with pytest.raises(Refused, match=complaint):
        planned(tmp_path / "store", *words)
    assert not (tmp_path / "store").exists() or Store(tmp_path / "store").list() == []
