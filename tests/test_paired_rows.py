"""Split inference judged end to end: rows of their own protocol, their anchors, and what table and page make of them.
The attack is a double that knows the pictures and blurs them; the defense, one that adds noise to features."""

import math
import re

import conftest
import numpy as np
import pytest
import torch
from report_rows import document, put

from midefense import seeds
from midefense.attacks.base import Attack
from midefense.datasets.toy import Toy
from midefense.defenses.base import Defense
from midefense.metrics.base import with_ids
from midefense.metrics.intervals import mean_interval
from midefense.pipeline.judge import other_images
from midefense.pipeline.pipeline import Pipeline
from midefense.report import build, read_rows, table
from midefense.report.rows import setups
from midefense.report.worst import worst_cases
from midefense.types import Found, Images, Refused, to_pixels

SIZE = 16
WORLD = {"classes": 4, "public_classes": 4, "images_per_class": 12, "test_images_per_class": 4, "size": SIZE}
FILES = {
    "attack/knowing": "_target_: test_paired_rows.Knowing\naccess: features\nbudget: null\ngroup: 8\nnoise: 0.0\n",
    "defense/hidden": "_target_: test_paired_rows.Hidden\nscale: 0.0\n",
}
WORDS = (
    "dataset=toy",
    *(f"dataset.{name}={value}" for name, value in WORLD.items()),
    "prior=toy",
    "architecture=mlp",
    "architecture.widths=[7,6]",
    f"architecture.size={SIZE}",
    "recipe.epochs=2",
    "evidence=released_features",
    "architecture.cut=hidden1",
    "attack=knowing",
    "evaluators.main.recipe.epochs=4",
    "evaluators.main.architecture.widths=[8,8]",
    "compute.threads=1",
    "tracking=none",
    "allow=[test_paired_rows]",
    "judge_at_chance=true",
)


class Hidden(Defense):
    """Noise on what the edge makes of an image."""

    owns = ("release",)

    def __init__(self, *, scale: float):
        super().__init__()
        self.scale = scale

    def release(self, edge, images, ids, rng):
        features = edge(images)
        draws = [torch.randn(features.shape[1:], generator=own) for own in seeds.by_row(rng, ids)]
        return features + self.scale * torch.stack(draws)


class Knowing(Attack):
    """Has the private pictures by their ids, and gives them under noise."""

    def __init__(self, *, access: str, budget: int | None, group: int, noise: float, rung: str | None = None):
        super().__init__(access=access, budget=budget, group=group, rung=rung)
        self.noise = noise

    def recover(self, state, prior, oracle, evidence, rng):
        splits = Toy(**WORLD).load()
        pictures = with_ids((splits.private_test, splits.private_train), evidence.ids).floats()
        pixels = to_pixels(pictures + self.noise * torch.randn(pictures.shape, generator=rng))
        rows = torch.arange(len(evidence))
        yield Found(prior.sample(len(evidence), rng), torch.zeros(len(evidence)), rows, "selected", pixels=pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's configurations of the doubles, and one store for all tests."""
    folder = tmp_path_factory.mktemp("paired")
    for path, text in FILES.items():
        file = folder / "conf" / f"{path}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def planned(folder, *overrides, metrics="paired"):
    words = (f"hydra.searchpath=[file://{folder / 'conf'}]", *WORDS, f"metrics={metrics}", *overrides)
    return Pipeline(conftest.plan_for("evaluate", *words, store=folder / "store"))


def numbers(pipeline):
    return {name: number["value"] for name, number in pipeline.result.metrics["metrics"].items()}


def test_a_copy_is_judged_as_one_between_its_anchors(folder):
    found = planned(folder)
    measured, anchors = numbers(found), found.result.metrics["anchors"]
    assert measured["ssim"] == pytest.approx(1.0) and measured["psnr"] > 55
    accuracy = "paired_accuracy_top1/main"
    assert measured[accuracy] == anchors["real"][accuracy], "the images themselves"
    assert anchors["real"]["id_feature_cosine/main"] == pytest.approx(1.0)
    for name in ("ssim", "fsim", "psnr", "id_feature_cosine/main"):
        assert anchors["real"][name] > anchors["other"][name] > anchors["prior"][name], name
    assert anchors["chance"][accuracy] == 1 / 8, "the evaluator knows public people too"
    row = found.result.metrics["row"]
    assert (row["matched"], row["images"], row["classes"], row["candidates"]) == ("image", 16, 4, 1)


def test_what_was_released_is_held_against_what_was_clean(folder):
    plain, noisy = numbers(planned(folder)), numbers(planned(folder, "defense=hidden", "defense.scale=5"))
    target = planned(folder).target.artefact.metrics["test_accuracy_top1"]
    assert plain["released_accuracy_top1"] == plain["clean_accuracy_top1"] == pytest.approx(target)
    assert plain["feature_distortion"] == 0.0 and noisy["feature_distortion"] > 1
    assert noisy["clean_accuracy_top1"] == pytest.approx(target)
    assert noisy["cost/bytes_per_feature"] == 4 * 7 and noisy["cost/release_seconds_per_image"] > 0
    half = numbers(planned(folder, "evidence.transport=float16"))
    assert half["cost/bytes_per_feature"] == 2 * 7 and 0 < half["feature_distortion"] < 1e-3


def test_the_picture_beside_a_reconstruction_is_the_one_it_answers(folder):
    found = planned(folder, "attack.noise=0.3")
    tensors, tests = found.result.tensors(), found.splits.private_test
    assert tensors["nearest"].equal(tests.pixels) and not tensors["reconstructions"].equal(tests.pixels)
    assert (tensors["distance"] > 0).all() and (planned(folder).result.tensors()["distance"] < 1e-6).all()


def test_its_protocol_is_its_own_and_that_of_all_who_attack_the_same_images(folder):
    def protocol(*overrides, **metrics):
        return planned(folder, *overrides, **metrics).result.metrics["row"]["protocol"]

    plain = protocol()
    same = ("attack.noise=0.3",), ("evidence.repeats=3",), ("evidence.cut=hidden1",), ("defense=hidden",)
    assert {protocol(*words) for words in same} == {plain}
    apart = ("part=train", "images=8", "transport=float16", "cut=features")
    others = {protocol(f"evidence.{word}") for word in apart}
    assert len(others - {plain}) == 4
    classes = ("evidence=class_labels", "attack=gmi", "attack.search.steps=1", "attack.init.candidates=1")
    assert protocol(*classes, metrics="privacy") not in {plain, *others}
    grouped = read_rows(folder / "store")[0]
    assert all(row.matched == (row["matched"] == "image") for row in grouped)
    for rows in ([row for row in grouped if row["protocol"] == one] for one in {row["protocol"] for row in grouped}):
        assert len({row.matched for row in rows}) == 1, "never in one table with class inversion"


def test_metrics_that_do_not_fit_the_evidence_are_refused_before_any_compute(folder):
    with pytest.raises(Refused, match=r"metrics: expected some that hold each reconstruction .* try metrics=paired"):
        planned(folder, metrics="all")
    planned(folder, metrics="[all,paired]"), planned(folder, metrics="cost")
    with pytest.raises(Refused, match="metrics.paired_accuracy: expected evidence that points at private images"):
        planned(folder, "evidence=class_labels", "attack=gmi")
    with pytest.raises(Refused, match="metrics.emd: expected a prior that generates images .*, got Pixels"):
        planned(folder, "prior=pixels", metrics="emd")


def test_the_gap_to_what_the_prior_makes_of_nothing(folder):
    found = planned(folder, "metrics.emd.steps=30", "metrics.emd.width=4", metrics="emd")
    anchors = found.result.metrics["anchors"]
    assert math.isfinite(numbers(found)["emd_gap"])
    assert abs(anchors["prior"]["emd_gap"]) < 0.3, "samples of the prior against samples of the prior"


def test_another_image_of_the_same_identity():
    tests = Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 2]), torch.arange(5), "abc")
    train = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 1]), torch.tensor([8, 9]), "abc")
    answered, others = other_images(torch.tensor([0, 2, 3, 4, 9]), tests, train)
    assert answered.tolist() == [0, 2, 3, 9], "the one of whom there is one picture is left out"
    assert others.tolist() == [1, 0, 8, 3], "the next test image, around; else one of training"


# The report


def fabricated(store, attack, seen, defense="none", accuracy=None, **about):
    """A row about six private images of three people, of whom an evaluator saw `seen`."""
    identities = torch.tensor([0, 0, 1, 1, 2, 2])
    content = document(
        defense=defense, attack=attack, protocol="p", setup=f"{defense}{attack}", matched="image", **about
    )
    hit = float((torch.tensor(seen) == identities).double().mean()) if accuracy is None else accuracy
    number = {"value": hit, "low": max(0, hit - 0.2), "high": min(1, hit + 0.2), "n": 6, "higher_leaks": True}
    content["metrics"] = {
        "utility/test_accuracy_top1": {"value": 0.9, "n": 1, "kind": "utility"},
        "released_auc": {"value": 0.8, "n": 6, "kind": "utility"},
        "released_auc/Male": {"value": 0.7, "n": 6, "kind": "utility"},
        "paired_accuracy_top1/main": {**number, "kind": "privacy"},
        "feature_to_id_oracle_assisted/released": {"value": 0.7, "n": 6, "kind": "privacy", "higher_leaks": True},
        "ssim": {"value": 0.4, "n": 6, "kind": "privacy", "higher_leaks": True},
        "cost/bytes_per_feature": {"value": 32768.0, "n": 1, "kind": "cost"},
    }
    content["anchors"] = {
        "real": {"paired_accuracy_top1/main": 0.95},
        "other": {"paired_accuracy_top1/main": 0.9},
        "prior": {"paired_accuracy_top1/main": 0.05},
        "chance": {"paired_accuracy_top1/main": 0.01, "released_auc": 0.5},
    }
    kept = {"paired.ids": torch.arange(6), "paired.identities": identities, "paired.answers.main": torch.tensor(seen)}
    return put(store, content, f"{defense}-{attack}", **kept)


@pytest.fixture
def ladder(store):
    """No defense, and one under two attacks."""
    fabricated(store, "decoder", [0, 0, 1, 1, 2, -1], rung="A0")
    fabricated(store, "decoder", [0, -1, 2, 2, 0, 0], defense="crafter(beta=2)", rung="A0")
    fabricated(store, "adaptive", [-1, 0, 1, 2, 0, 0], defense="crafter(beta=2)", rung="A1")
    return read_rows(store)[0]


def test_the_worst_case_is_that_of_all_attacks(ladder):
    plain, crafted = worst_cases(setups(ladder))
    assert (plain.defense, plain.leak.mean, plain.attacks) == ("none", pytest.approx(5 / 6), 1)
    assert (crafted.worst["attack"], crafted.leak.mean, crafted.attacks) == ("adaptive", pytest.approx(2 / 6), 2)
    assert crafted.union == pytest.approx(3 / 6), "two images by one attack, one of them and another by the other"
    assert crafted.bounds[:2] == mean_interval(np.array([2, 1, 0]), np.array([2, 2, 2]), (0.0, 1.0))[:2]
    assert crafted.unprotected == pytest.approx(5 / 6) and crafted.rungs == ["A0", "A1"]
    assert crafted.text.startswith(
        "adaptive (A1) finds 33.3% [13.3%, 53.3%] of identities, the most of 2 attacks (A0, A1)"
    )
    assert "50.0%" in crafted.text and "83.3% without a defense" in crafted.text
    assert "not tried: A2, A3, A4, A5" in crafted.text and crafted.text.endswith("from the features themselves: 70.0%")


def test_seeds_of_a_target_are_united_apart(store):
    for seed, seen in ((0, [0, 0, 1, 1, -1, -1]), (1, [-1, -1, -1, -1, 2, 2])):
        folder = fabricated(store, f"decoder{seed}", seen)
        assert folder.is_dir()
    rows = read_rows(store)[0]
    for seed, row in enumerate(rows):
        row.seeds["target"] = seed
    (case,) = worst_cases(setups(rows))
    assert case.union == pytest.approx(0.5), "no target is recognised whole: each by its own attacks"


def test_rows_without_what_attacks_find_have_no_worst_case(store):
    content = document()
    content["metrics"] = {name: number for name, number in content["metrics"].items() if "accuracy_top1/" not in name}
    put(store, content, "one")
    assert worst_cases(setups(read_rows(store)[0])) == []


def test_table_and_page_say_what_these_rows_are(ladder, tmp_path):
    text = table(ladder)
    assert "released utility" in text and "identity accuracy" in text and "ssim" in text
    assert re.search(r"adaptive, rung A1, .*80\.0%\s+33\.3%", text) and "target accuracy" in text
    assert "oracle-assisted, from the features themselves: 70.0%" in text
    assert re.search(r"Other images of the same identities\s.*90\.0%", text)
    assert "worst case of crafter(beta=2): adaptive (A1) finds 33.3%" in text
    page = build(ladder, tmp_path / "report.html").read_text()
    assert (
        "Worst case over attacks" in page
        and "Of releases also" in page
        and "Below: the private image that it answers." in page
    )
    assert "identity accuracy (leaks" in page.lower() and "released utility (useful" in page.lower()
    assert page.count('alt="private image of') > 0 and "nearest private" not in page
    assert "oracle-assisted, from the features themselves: 70.0%" in page and "rung A1" in page


def test_pages_of_classes_are_as_they_were(store, tmp_path):
    put(store, document(), "one")
    page = build(read_rows(store)[0], tmp_path / "report.html").read_text()
    assert "Below: the private image nearest to it." in page and "Of releases also" not in page
    assert "Target accuracy (useful" in page and "nearest private" in page
