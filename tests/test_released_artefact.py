"""Released features as artefacts: by image and repeat, made group by group, and the same bits whatever was between."""

import conftest
import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.commands.main import main
from midefense.defenses.features import FeatureNoise
from midefense.evidence.base import Request
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.release import release, released_artefact, released_of, require_halves
from midefense.store.store import Store
from midefense.types import Refused

WORDS = (
    "dataset=toy",
    "dataset.classes=3",
    "dataset.public_classes=3",
    "dataset.images_per_class=6",
    "dataset.test_images_per_class=4",
    "dataset.size=8",
    "architecture=mlp",
    "architecture.widths=[7,6]",
    "architecture.size=8",
    "architecture.cut=hidden1",
    "recipe.epochs=1",
    "evidence=released_features",
    "attack=feature_pixels_small",
    "prior=pixels",
    "compute.threads=1",
    "tracking=none",
)
NOISE = ("defense=feature_noise", "defense.scale=0.5")


def planned(folder, *words):
    return Pipeline(conftest.plan_for("attack", *WORDS, *words, store=folder))


def asked(pipeline, **changes):
    """The request of the plan's evidence, at the cut of its architecture."""
    request = pipeline.plan.evidence.build().request(pipeline.splits)
    return Request(**{**vars(request), "cut": "hidden1", **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("released") / "store"


@pytest.fixture(scope="module")
def noisy(folder):
    """A target whose edge adds noise, and what it released of all twelve test images, three times each."""
    pipeline = planned(folder, *NOISE)
    return pipeline, released_artefact(pipeline.session, pipeline.target, asked(pipeline, repeats=3))


def test_features_are_found_by_image_and_repeat(noisy):
    pipeline, artefact = noisy
    ids = pipeline.splits.private_test.ids
    first, second = (released_of(artefact, ids, repeat) for repeat in (0, 1))
    assert first.shape == (12, 7) and not torch.equal(first, second), "a repeat has draws of its own"
    order = torch.tensor([5, 0, 11])
    assert released_of(artefact, ids[order], 1).equal(second[order])
    with pytest.raises(Refused, match=rf"expected ids of images that were released, got \[{int(ids.max()) + 1}\]"):
        released_of(artefact, torch.tensor([int(ids[0]), int(ids.max()) + 1]))
    with pytest.raises(Refused, match="expected a repeat from 0 to 2, got 3"):
        released_of(artefact, ids, 3)


def test_an_image_is_released_alike_whatever_is_released_beside_it(noisy):
    pipeline, artefact = noisy
    tests = pipeline.splits.private_test
    some = tests.take(torch.tensor([7, 2, 9]))
    alone = release(pipeline.session, pipeline.target, asked(pipeline, images=some))
    assert torch.allclose(alone[0], released_of(artefact, some.ids), atol=1e-6)


def test_groups_change_nothing_where_images_are_not_tied(noisy, monkeypatch, tmp_path):
    """Twelve images as one group, or as five, five and two."""
    pipeline, artefact = noisy
    monkeypatch.setattr(FeatureNoise, "group", 5)
    ragged = planned(tmp_path / "store", *NOISE)
    other = released_artefact(ragged.session, ragged.target, asked(ragged))
    assert other.recipe["group"] == 5 and artefact.recipe["group"] == 128
    ids = pipeline.splits.private_test.ids
    assert torch.allclose(released_of(other, ids), released_of(artefact, ids), atol=1e-6)


def test_a_killed_release_goes_on_to_the_same_bits(noisy, monkeypatch, tmp_path):
    pipeline, _ = noisy
    monkeypatch.setattr(FeatureNoise, "group", 5)
    whole = planned(tmp_path / "whole", *NOISE)
    expected = released_artefact(whole.session, whole.target, asked(whole, repeats=2, transport="uint8"))
    released, calls = FeatureNoise.release, []

    def killed(self, edge, images, ids, rng):
        calls.append(ids.tolist())
        if len(calls) == 4:
            raise KeyboardInterrupt
        return released(self, edge, images, ids, rng)

    begun = planned(tmp_path / "begun", *NOISE)
    target = begun.target
    monkeypatch.setattr(FeatureNoise, "release", killed)
    with pytest.raises(KeyboardInterrupt):
        released_artefact(begun.session, target, asked(begun, repeats=2, transport="uint8"))
    again = planned(tmp_path / "begun", *NOISE)
    found = released_artefact(again.session, again.target, asked(again, repeats=2, transport="uint8"))
    assert len(calls) == 7, "of six groups the three that were saved are not made again"
    assert found.id == expected.id and found.content == expected.content
    for name, tensor in expected.tensors().items():
        assert found.tensors()[name].equal(tensor), name


def test_the_bill_says_what_an_image_took_and_the_numbers_what_it_weighs(noisy, folder):
    pipeline, artefact = noisy
    bill = artefact.provenance["bill"]
    assert bill["seconds_per_image"] == pytest.approx(bill["seconds"] / 36)
    assert artefact.metrics == {"images": 12, "repeats": 3, "shape": [7], "bytes_per_image": 28.0}
    small = released_artefact(pipeline.session, pipeline.target, asked(pipeline, transport="uint8"))
    assert small.metrics["bytes_per_image"] == 7 + 8, "seven numbers of a byte, their least and their step"
    exact = released_of(artefact, pipeline.splits.private_test.ids)
    assert (released_of(small, pipeline.splits.private_test.ids) - exact).abs().max() < 0.05
    assert artefact.provenance["parents"] == {"target": pipeline.target.artefact.reference}


def test_a_defense_that_only_releases_shares_the_target_of_no_defense(noisy, folder):
    pipeline, _ = noisy
    none, strong = planned(folder), planned(folder, NOISE[0], "defense.scale=2")
    targets = {one.target.artefact.id for one in (pipeline, none, strong)}
    assert len(targets) == 1 and len(Store(folder).list("target")) == 1
    assert none.target.artefact.name == "toy-mlp-none" and "NoDefense" in str(none.target.artefact.recipe["defense"])
    drafts = [one.released_draft(one.target.artefact) for one in (none, pipeline, strong)]
    assert len({draft.id for draft in drafts}) == 3 and drafts[1].name == "toy-mlp-feature_noise"
    assert "release" not in drafts[0].recipe and drafts[1].recipe["release"]["scale"] == 0.5
    node = none.attack_node(3)
    recovered = [one.recovered_draft(node, one.target.artefact, {}, None, None) for one in (none, pipeline, strong)]
    assert len({draft.id for draft in recovered}) == 3
    assert recovered[1].names["defense"] == "feature_noise(scale=0.5)" and "noise" in recovered[1].name
    assert none.evidence.observed.shape == pipeline.evidence.observed.shape
    assert not torch.allclose(none.evidence.observed, pipeline.evidence.observed, atol=1e-3)


def test_what_was_recovered_names_the_defense_that_released_it(folder):
    recovered = planned(folder, *NOISE, "evidence.images=3").recovered
    assert recovered.recipe["release"]["scale"] == 0.5
    parents = recovered.provenance["parents"]
    assert set(parents) == {"target", "released"} and "feature_noise" in parents["released"]

    def judged(artefact):
        words = ("metrics=utility", "tracking=none", "judge_at_chance=true", "evaluators.main.recipe.epochs=1")
        return Pipeline(conftest.plan_for("evaluate", f"recovered={artefact.id}", *words, store=folder))

    row = judged(recovered).result.metrics["row"]
    assert row["defense"] == "feature_noise(scale=0.5)"
    assert judged(recovered).target.plan.defense.recipe() == recovered.recipe["release"]
    plain = judged(planned(folder, "evidence.images=3").recovered).result.metrics["row"]
    assert plain["defense"] == "none" and plain["baseline"] == row["baseline"] and plain["setup"] != row["setup"]
    assert plain["protocol"] == row["protocol"] and plain["deployed"] != row["deployed"]


def test_the_store_knows_what_was_released(noisy, folder, capsys):
    pipeline, artefact = noisy
    assert main(["store", "--store", str(folder), "list", "released"]) in (0, None)
    assert artefact.reference in capsys.readouterr().out
    assert main(["store", "--store", str(folder), "verify", artefact.reference]) in (0, None)
    assert f"ok       {artefact.reference}" in capsys.readouterr().out
    dependants = [other.reference for other in Store(folder).dependants(pipeline.target.artefact.reference)]
    assert artefact.reference in dependants, "it goes with its target"


class Skipping(nn.Module):
    """What enters reaches the cloud past the edge."""

    def forward(self, images):
        from midefense.types import Trace

        return Trace(self.cloud(self.edge(images)) + images.flatten(1).sum(1, keepdim=True), images)

    def __init__(self):
        super().__init__()
        self.edge, self.cloud = nn.Flatten(), nn.Linear(4, 2)


def test_a_cut_that_something_skips_across_is_refused():
    model, images = Skipping(), torch.rand(2, 1, 2, 2, generator=seeds.generator("skip"))
    with pytest.raises(Refused, match=r"architecture.cut=middle: expected a stage that everything passes.*skips"):
        require_halves(model, model.edge, model.cloud, images, "middle")


def test_a_stored_target_is_attacked_behind_a_defense_that_only_releases(noisy, folder):
    """`target=REF defense=feature_noise` is the same row as naming the parts."""
    pipeline, _ = noisy
    stored = f"target={pipeline.target.artefact.id}"
    words = [word for word in WORDS if not word.startswith(("dataset", "architecture", "recipe"))]
    named = Pipeline(conftest.plan_for("attack", *words, stored, *NOISE, "evidence.cut=hidden1", store=folder))
    assert named.target.artefact.id == pipeline.target.artefact.id
    assert named.target.plan.defense.recipe() == pipeline.target.plan.defense.recipe()
    wanted = pipeline.released_draft(pipeline.target.artefact)
    found = named.released_draft(named.target.artefact)
    assert found.recipe["release"] == wanted.recipe["release"] and found.recipe["release"]["scale"] == 0.5
    assert found.id == wanted.id and found.name == wanted.name
    assert named.names_with(named.target.artefact)["defense"] == "feature_noise(scale=0.5)"


def test_beside_a_target_no_other_defense_may_stand(noisy, folder):
    pipeline, _ = noisy
    words = [word for word in WORDS if not word.startswith(("dataset", "architecture", "recipe"))]
    stored = f"target={pipeline.target.artefact.id}"
    for beside in ("defense=bido_hsic", "defense=none"):
        with pytest.raises(Refused, match=f"target=... brings its own defense; leave out {beside}"):
            conftest.plan_for("attack", *words, stored, beside, store=folder)
    defended = planned(folder, "defense=negative_label_smoothing").target.artefact
    with pytest.raises(
        Refused, match=r"defense=feature_noise\(scale=0.5\): expected a target without a defense.*trained"
    ):
        conftest.plan_for("attack", *words, f"target={defended.id}", *NOISE, store=folder)
