"""Targets that tell attributes: what they are taught, how well they tell it, and what cannot be asked of them."""

import math

import conftest
import pytest
import torch
import torch.nn.functional as F
from contract.listing import composed

from midefense.attacks.base import Attack
from midefense.datasets.attributes import UNKNOWN, by_attributes
from midefense.datasets.synthetic_faces.dataset import SyntheticFaces
from midefense.datasets.toy import Toy
from midefense.defenses.base import share_right, task_loss
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.bind import bind
from midefense.store.store import Store
from midefense.training.inference import mean_over_attributes, told_attributes
from midefense.types import Found, Refused

FACES = (
    "dataset=synthetic_faces",
    "dataset.identities=6",
    "dataset.public_identities=12",
    "dataset.images_per_identity=10",
    "dataset.public_images_per_identity=10",
    "dataset.test_images_per_identity=5",
    "dataset.size=16",
    "architecture=cnn",
    "architecture.size=16",
    "architecture.widths=[8,8]",
    "architecture.features=16",
    "recipe.epochs=2",
    "compute.threads=1",
    "tracking=none",
)
TAUGHT = (*FACES, "dataset.label=attributes")
SPLIT = (
    "evidence=released_features",
    "evidence.images=6",
    "architecture.cut=stage1",
    "prior=pixels",
    "attack=echo",
    "evaluators.main.recipe.epochs=1",
    "judge_at_chance=true",
    "metrics=utility",
    "allow=[test_attributes]",
)


class Echo(Attack):
    """Answers every row with a draw of the prior, after one question about features."""

    def __init__(self, *, access: str, budget: int | None, group: int):
        super().__init__(access=access, budget=budget, group=group)

    def recover(self, state, prior, oracle, evidence, rng):
        latents = prior.sample(len(evidence), rng)
        features = oracle(prior.decode(latents), ids=evidence.ids, reads=("features",)).features
        assert features.shape == evidence.observed.shape
        yield Found(latents, torch.zeros(len(evidence)), torch.arange(len(evidence)), "selected")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attributes")
    (folder / "conf" / "attack").mkdir(parents=True)
    (folder / "conf" / "attack" / "echo.yaml").write_text(
        "_target_: test_attributes.Echo\naccess: features\nbudget: null\ngroup: 4\n"
    )
    return folder


def planned(folder, verb, *words, store="store"):
    searched = (f"hydra.searchpath=[file://{folder / 'conf'}]",)
    return Pipeline(conftest.plan_for(verb, *searched, *words, store=folder / store))


def test_the_loss_is_the_mean_over_attributes_of_each_image():
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.5, 0.5, -3.0]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.uint8)
    by_hand = torch.stack([-(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log())]).mean(2)[0]
    assert torch.allclose(task_loss(logits, labels), by_hand, atol=1e-6)
    assert share_right(logits, labels).tolist() == pytest.approx([1.0, 1 / 3])  # a logit of 0 says no
    classes = torch.tensor([0, 2])
    assert task_loss(logits, classes).equal(F.cross_entropy(logits, classes, reduction="none"))
    soft = F.one_hot(classes, 3).float()
    assert task_loss(logits, soft).equal(F.cross_entropy(logits, soft, reduction="none")), "soft labels are of classes"


def test_how_well_each_attribute_is_told():
    logits = torch.tensor([[1.0, 0.0, 3.0], [-1.0, 0.0, 2.0], [2.0, 0.0, 1.0], [-2.0, 0.0, -1.0]])
    labels = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    told = told_attributes(logits, labels, ["perfect", "blind", "all have it"])
    assert told["perfect"] == {"accuracy": 1.0, "auc": 1.0, "share": 0.5}
    assert told["blind"]["auc"] == 0.5 and told["blind"]["accuracy"] == 0.5
    assert math.isnan(told["all have it"]["auc"]) and told["all have it"]["share"] == 1.0
    assert mean_over_attributes(told, "auc") == 0.75, "what is not defined does not count"


def test_images_are_labelled_by_what_they_show_and_the_unknown_left_out():
    faces = SyntheticFaces(identities=2, public_identities=2, images_per_identity=3, size=16)
    images = faces.load().private_train
    taught = by_attributes(images, faces)
    assert taught.labels.dtype == torch.uint8 and taught.labels.equal(faces.attributes(images.ids))
    assert list(taught.names) == list(faces.attribute_names) and taught.pixels.equal(images.pixels)
    noted = faces.attributes(images.ids)
    noted[1, 3] = UNKNOWN
    faces.attributes = lambda ids: noted
    assert by_attributes(images, faces).ids.tolist() == [int(i) for n, i in enumerate(images.ids) if n != 1]
    noted[:] = UNKNOWN
    with pytest.raises(Refused, match="expected the attributes of some of 6 pictures, got none"):
        by_attributes(images, faces)
    with pytest.raises(Refused, match="Toy: expected a dataset with attributes"):
        by_attributes(Toy(size=8).load().public, Toy(size=8))


def test_a_target_of_attributes_has_an_output_for_each_and_says_how_well_it_tells_them(folder):
    longer = ("recipe.epochs=10", "dataset.images_per_identity=20", "architecture.widths=[16,16]")
    target = planned(folder, "train_target", *TAUGHT, *longer).target
    metrics, names = target.artefact.metrics, SyntheticFaces.attribute_names
    assert metrics["classes"] == len(names) == 10 and list(metrics["attributes"]) == list(names)
    assert "test_accuracy_top1" not in metrics, "it knows nobody"
    means = [metrics[f"test_attribute_{number}_mean"] for number in ("accuracy", "auc")]
    assert all(0.65 < mean <= 1 for mean in means), means
    assert target.model(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 10)
    assert target.artefact.recipe["dataset"]["label"] == "attributes"
    of_identities = planned(folder, "train_target", *FACES).plan.target.dataset.recipe()
    assert "label" not in of_identities, "what was stored before keeps its id"


def test_public_images_may_teach_attributes(folder):
    pipeline = planned(folder, "train_target", *TAUGHT, "train_on=public")
    own = planned(folder, "train_target", *TAUGHT)
    assert pipeline.target.artefact.recipe["images"] != own.target.artefact.recipe["images"]
    from midefense.pipeline.classifiers import images_of

    train, test = images_of(pipeline.plan.target, pipeline.splits)
    assert train.ids.tolist() == pipeline.splits.public.ids.tolist()
    assert test.ids.tolist() == pipeline.splits.private_test.ids.tolist()


def test_split_inference_of_a_target_of_attributes_is_judged_by_whose_the_pictures_are(folder):
    pipeline = planned(folder, "evaluate", *TAUGHT, *SPLIT)
    result = pipeline.result
    tensors = pipeline.recovered.tensors()
    assert tensors["evidence.labels"].tolist() == [0, 1, 2, 3, 4, 5], "identities"
    assert tensors["evidence.observed"].shape[1:] == (8, 8, 8)
    numbers = result.metrics["metrics"]
    assert 0 < numbers["utility/test_attribute_auc_mean"]["value"] < 1
    evaluator = pipeline.evaluators["main"]
    assert evaluator.recipe["dataset"] == {
        k: v for k, v in pipeline.plan.target.dataset.recipe().items() if k != "label"
    }
    by_class = planned(folder, "evaluate", *FACES, *SPLIT)
    assert by_class.evaluators["main"].id == evaluator.id, "one evaluator judges both"
    row, other = (one.result.metrics["row"]["protocol"] for one in (pipeline, by_class))
    assert row == other, "rows of both are ranked"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("evidence=class_labels",), "evidence=class_labels: expected what points at images, as the target tells attr"),
        (
            ("defense=bido_hsic", "defense.layers=[stage1]"),
            "defense=bido_hsic.*: expected one that works without classes",
        ),
        (("defense=mixup",), "defense=mixup: expected one that works without classes"),
        (("recipe.sampler={identities: 2, images: 2}",), "recipe.sampler: expected shuffle for a target of the attr"),
        (("recipe=nearest_centroid",), "recipe.head: expected trained, as a target of the attributes"),
        (("prior=ked_gan_small", "attack=ked_mi_small"), "expected one that learns without the target"),
        (("attack=mi_face", "attack.access=whitebox"), "attack.objective reads .* of classes"),
        (("train_on=publik",), "train_on: got 'publik'; choices: private, all, public"),
        (("evaluators.main.train_on=public",), "evaluators.main.train_on: got 'public'; choices: private, all"),
        (("dataset.label=age",), "dataset.label: got 'age'; choices: identity, attributes"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_assumes_classes_is_refused_before_anything_is_trained(folder, words, complaint):
    split = [word for word in SPLIT if not any(word.split("=")[0] == own.split("=")[0] for own in words)]
    if words[0] == "evidence=class_labels":
        split = [word for word in split if not word.startswith("evidence.")]
    if "recipe=nearest_centroid" in words:
        words = (*words, "recipe.epochs=0")
    with pytest.raises(Refused, match=complaint):
        planned(folder, "evaluate", *TAUGHT, *split, *words, store="empty")
    assert not (folder / "empty").exists() or Store(folder / "empty").list() == []


def test_identities_are_not_learned_from_public_images(folder):
    with pytest.raises(Refused, match="train_on=public: expected a target that is taught attributes"):
        planned(folder, "train_target", *FACES, "train_on=public")


@pytest.mark.parametrize("option", ["celeba", "celeba_ppa", "lfw", "synthetic_faces"])
def test_a_dataset_with_attributes_keeps_its_id_as_long_as_it_teaches_identities(option):
    config = composed("train_target", f"dataset={option}")[0]["dataset"]
    assert config["label"] == "identity" and "label" not in bind(config, "dataset").recipe()
    taught = bind({**config, "label": "attributes"}, "dataset")
    assert taught.recipe()["label"] == "attributes" and len(taught.target.attribute_names) in (10, 40)
