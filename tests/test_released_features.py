"""Evidence of private images, end to end: what a defense releases of each reaches the attack, and the judge matches a
reconstruction with the image it answers. The evidence, the defense, the attack and the metric are doubles."""

import conftest
import pytest
import torch

from midefense import seeds
from midefense.attacks.base import Attack
from midefense.datasets.toy import Toy
from midefense.defenses.base import Defense
from midefense.metrics.base import Metric, World, over_classes
from midefense.metrics.intervals import POSITIVE
from midefense.pipeline.pipeline import Pipeline
from midefense.store.store import Store
from midefense.types import Found, Refused, to_pixels

SIZE = 8
READBACK = "{_target_: test_released_features.Readback, access: features, budget: null, group: 2, shift: 0}"
FILES = {
    "evidence/released": "defaults: [released_features]\nimages: 5\ncut: hidden1\n",
    "attack/readback": READBACK,
    "defense/noise": "_target_: test_released_features.Noise\nscale: 0.0\n",
    "metrics/matched_error": "matched: {_target_: test_released_features.MatchedError}\n",
}
WORDS = (
    "dataset=toy",
    "dataset.classes=3",
    "dataset.public_classes=3",
    "dataset.images_per_class=12",
    "prior=toy",
    "dataset.test_images_per_class=4",
    f"dataset.size={SIZE}",
    "architecture=mlp",
    "architecture.widths=[7,6]",
    f"architecture.size={SIZE}",
    "recipe.epochs=1",
    "defense=noise",
    "evidence=released",
    "attack=readback",
    "evaluators.main.recipe.epochs=1",
    "compute.threads=1",
    "tracking=none",
    "allow=[test_released_features]",
)


class Noise(Defense):
    """Releases the picture itself, under noise, in front of what the edge makes of it."""

    owns = ("release",)

    def __init__(self, *, scale: float):
        super().__init__()
        self.scale = scale

    def release(self, edge, images, ids, rng):
        draws = [torch.randn(images.shape[1:], generator=own) for own in seeds.by_row(rng, ids)]
        noise = self.scale * torch.stack(draws).to(images)
        return torch.cat([(images + noise).flatten(1), edge(images).flatten(1)], 1)


class Readback(Attack):
    """Takes the picture out of what was released; under `shift`, that of another target of its group."""

    def __init__(self, *, access: str, budget: int | None, group: int, shift: int):
        super().__init__(access=access, budget=budget, group=group)
        self.shift = shift

    def recover(self, state, prior, oracle, evidence, rng):
        pictures = evidence.observed[:, : SIZE * SIZE].unflatten(1, (1, SIZE, SIZE))
        asked = oracle(pictures.clamp(0, 1), ids=evidence.ids, reads=("features",)).features
        loss = (asked - evidence.observed[:, SIZE * SIZE :]).square().sum(1)
        pixels = to_pixels(pictures).roll(self.shift, 0)
        yield Found(prior.sample(len(evidence), rng), loss, torch.arange(len(evidence)), "selected", pixels=pixels)


class MatchedError(Metric):
    """Mean squared error against the private image that a reconstruction answers."""

    matches = "image"

    higher_leaks = False

    def rows(self, judged, world):
        error = (judged.images - world.private(judged.ids)).square().mean((1, 2, 3))
        return {"error": error}

    def measure(self, rows, world):
        return {"matched_error": over_classes(rows["error"], rows["label"], higher_leaks=False, span=POSITIVE)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's configurations of the doubles, and one store for all tests."""
    folder = tmp_path_factory.mktemp("released")
    for path, text in FILES.items():
        file = folder / "conf" / f"{path}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def planned(folder, *overrides, store="store"):
    words = (
        f"hydra.searchpath=[file://{folder / 'conf'}]",
        *WORDS,
        "metrics=matched_error",
        "judge_at_chance=true",
        *overrides,
    )
    return Pipeline(conftest.plan_for("evaluate", *words, store=folder / store))


def error_of(pipeline):
    return pipeline.result.metrics["metrics"]["matched_error"]["value"]


def test_the_image_that_was_released_is_matched_with_its_reconstruction(folder):
    pipeline = planned(folder)
    assert error_of(pipeline) == 0.0
    recovered, tests = pipeline.recovered, pipeline.splits.private_test.take(torch.tensor([0, 1, 4, 5, 8]))
    tensors = recovered.tensors()
    assert tensors["evidence.ids"].tolist() == tests.ids.tolist() == recovered.recipe["ids"]
    assert tensors["evidence.labels"].tolist() == tests.labels.tolist() == [0, 0, 1, 1, 2]
    assert tensors["evidence.observed"].shape == (5, SIZE * SIZE + 7), "the picture, and the edge's seven features"
    assert tensors["selected.loss"].max() < 1e-9, "the oracle's features are those of the same stage"
    assert tensors["queries"].tolist() == [1] * 5, "each image is charged for its own questions"
    assert recovered.metrics["candidates"] == 5 and pipeline.result.metrics["row"]["classes"] == 3
    anchors = pipeline.result.metrics["anchors"]
    assert anchors["real"]["matched_error"] == 0.0 and anchors["prior"]["matched_error"] > 0.01


def test_another_image_is_worse_and_so_is_noise(folder):
    shifted, noisy = planned(folder, "attack.shift=1"), planned(folder, "defense.scale=0.1")
    assert error_of(shifted) > 1e-4 and error_of(noisy) > 1e-3
    assert sorted(shifted.recovered.tensors()["evidence.ids"]) == sorted(
        planned(folder).recovered.tensors()["evidence.ids"]
    )


def test_rows_are_ranked_over_defenses_and_not_over_other_images(folder):
    plain, noisy, other = planned(folder), planned(folder, "defense.scale=0.1"), planned(folder, "evidence.part=train")
    protocols = [one.result.metrics["row"]["protocol"] for one in (plain, noisy, other)]
    assert protocols[0] == protocols[1] != protocols[2]
    assert plain.recovered.id != noisy.recovered.id != other.recovered.id


def test_the_cut_of_the_architecture_serves_where_evidence_names_none(folder):
    named, told = planned(folder), planned(folder, "evidence.cut=null", "architecture.cut=hidden1")
    assert named.evidence.observed.equal(told.evidence.observed)
    assert named.target.artefact.id == told.target.artefact.id, "it changes no weight"
    assert error_of(told) == 0.0, "the attacker's oracle answers there too"
    other = planned(folder, "architecture.cut=features")
    assert other.evidence.observed.equal(named.evidence.observed), "what evidence names comes first"
    head = planned(folder, "evidence.cut=null")
    assert head.evidence.observed.shape == (5, SIZE * SIZE + 6), "without both, the input of the head"


def test_what_is_released_is_the_same_each_time(folder):
    first, again = (planned(folder, "defense.scale=0.1").evidence.observed for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, planned(folder, "defense.scale=0.1", "seeds.target=1").evidence.observed)


def test_whom_to_attack_is_checked_before_anything_is_trained(folder):
    with pytest.raises(Refused, match="evidence.images: expected at most 12, got 13"):
        _ = planned(folder, "evidence.images=13", store="empty").result
    assert Store(folder / "empty").list() == []
    planned(folder, store="empty").check_images()
    assert Store(folder / "empty").list() == [], "what is observed needs the target, whom to attack does not"
    with pytest.raises(Refused, match="evidence.cut: got 'nowhere'; choices: hidden1, features"):
        planned(folder, "evidence.cut=nowhere", store="empty")


def test_evidence_of_classes_names_no_image(folder):
    words = (
        "evidence=class_labels",
        "attack=gmi",
        "attack.search.steps=1",
        "attack.init.candidates=1",
        "metrics=privacy",
    )
    recovered = planned(folder, *words).recovered
    assert "ids" not in recovered.recipe and "evidence.observed" not in recovered.tensors()
    emptied = [f"~evidence.{name}" for name in ("images", "part", "repeats", "transport", "cut")]
    with pytest.raises(Refused, match="evidence: expected a EvidenceSource, got MatchedError"):
        planned(folder, "evidence._target_=test_released_features.MatchedError", *emptied)


def test_private_images_are_found_by_id():
    splits = Toy(classes=2, public_classes=2, images_per_class=3, test_images_per_class=2, size=SIZE).load()
    world = World(splits.private_train, {}, classes=2, tests=splits.private_test)
    wanted = torch.stack([splits.private_test.ids[1], splits.private_train.ids[4], splits.private_test.ids[1]])
    found = world.private(wanted)
    assert found[0].equal(found[2]) and found[0].equal(splits.private_test.floats()[1])
    assert found[1].equal(splits.private_train.floats()[4])
    with pytest.raises(Refused, match=r"ids: expected those of private images, got \[\d+\]"):
        world.private(splits.public.ids[:1])
