"""Which weights a training keeps: the last, the best on held-out images, or, labelled wherever it shows, the best on
the test set; and heads that are not trained at all."""

import csv
from functools import partial

import pytest
import torch

from midefense import seeds
from midefense.architectures.small import MLP
from midefense.commands.report import run as report
from midefense.defenses.base import NoDefense
from midefense.report import read_rows, table
from midefense.training import inference, loop
from midefense.training.recipe import Imported, Recipe
from midefense.types import Images, Refused

LEGACY = "selected on the test set (legacy)"
SMALL = (
    "dataset=toy",
    "architecture=mlp",
    "architecture.widths=[8]",
    "recipe.epochs=2",
    "compute.threads=1",
    "prior=toy",
    "attack.search.steps=3",
    "evaluators.main.architecture.widths=[8]",
    "evaluators.main.recipe.epochs=1",
)


def images(count=60, classes=3, size=8, noise=230, key=0):
    """Images whose class is the third of the rows that is brighter, under noise that nearly hides it."""
    labels = torch.arange(count) % classes
    bright = torch.arange(size) * classes // size == labels.unsqueeze(1)
    pixels = torch.randint(0, noise, (count, 1, size, size), generator=seeds.generator("selection", key))
    pixels = (pixels + (250 - noise) * bright.view(count, 1, size, 1)).to(torch.uint8)
    return Images(pixels, labels, torch.arange(count), [str(label) for label in range(classes)])


def recipe(**changes):
    optimizer = partial(torch.optim.SGD, lr=0.5)
    return Recipe(**{"epochs": 8, "batch_size": 16, "optimizer": optimizer, **changes})


def mlp():
    with seeds.isolated("init"):
        return MLP(classes=3, channels=1, size=8, widths=[8])


def test_test_legacy_keeps_the_epoch_that_is_best_on_the_test_set():
    model, test, seen = mlp(), images(key=1), []
    for _, logs, _ in loop.fit(model, NoDefense(), images(), recipe(select="test_legacy"), seed=0, test=test):
        seen.append(
            (
                inference.evaluate(model, test)["accuracy"],
                logs["test_legacy/accuracy"],
                model.state_dict()["classifier.weight"].clone(),
            )
        )
    accuracies = [measured for measured, _, _ in seen]
    assert accuracies == [logged for _, logged, _ in seen]
    best = accuracies.index(max(accuracies))
    assert best < len(seen) - 1 and accuracies[-1] < max(accuracies), (
        "the last epoch is not the best: it tells them apart"
    )
    assert torch.equal(model.classifier.weight, seen[best][2])
    assert inference.evaluate(model, test)["accuracy"] == max(accuracies)


def test_the_test_set_is_looked_at_by_test_legacy_alone():
    blind, sighted = mlp(), mlp()
    for select in ("last", "validation"):
        list(loop.fit(blind, NoDefense(), images(), recipe(select=select), seed=0))
        list(loop.fit(sighted, NoDefense(), images(), recipe(select=select), seed=0, test=images(key=1)))
        assert torch.equal(blind.classifier.weight, sighted.classifier.weight)
    with pytest.raises(Refused, match="expected test images to select by, got none; try select=validation"):
        next(loop.fit(mlp(), NoDefense(), images(), recipe(select="test_legacy"), seed=0))


def test_test_legacy_trains_on_every_training_image():
    kept, held_out = recipe(select="test_legacy").hold_out(images(), seed=0)
    assert len(kept) == 60 and held_out is None


def test_centroids_are_the_class_means_of_the_features_without_an_epoch():
    model, data = mlp(), images(noise=100)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert list(loop.fit(model, NoDefense(), data, recipe(epochs=0, head="centroids"), seed=0)) == []
    with torch.no_grad():
        units = torch.nn.functional.normalize(model.features(data.floats()), dim=1)
    means = torch.stack([units[data.labels == label].sum(0) for label in range(3)])
    torch.testing.assert_close(model.classifier.weight, torch.nn.functional.normalize(means, dim=1))
    assert not model.classifier.bias.any()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert inference.evaluate(model, images(noise=100, key=1))["accuracy"] > 0.8


def test_centroids_follow_the_last_epoch_where_there_are_epochs():
    trained, replaced = mlp(), mlp()
    list(loop.fit(trained, NoDefense(), images(), recipe(epochs=2), seed=0))
    list(loop.fit(replaced, NoDefense(), images(), recipe(epochs=2, head="centroids"), seed=0))
    assert torch.equal(trained.stages["features"][1].weight, replaced.stages["features"][1].weight)
    assert not torch.equal(trained.classifier.weight, replaced.classifier.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"epochs": -1, "head": "centroids"}, "epochs >= 0"),
        ({"head": "frozen"}, "choices: trained, centroids"),
        ({"select": "test"}, "choices: last, validation, test_legacy"),
        ({"head": "centroids", "select": "validation"}, "expected last"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(Refused, match=message):
        recipe(**changes)
    with pytest.raises(Refused, match="choices: last, validation, test_legacy, unknown"):
        Imported(sha256="ab", format="state_dict", select="best")


def test_a_target_selected_on_the_test_set_is_labelled_wherever_it_shows(run_verb, store, tmp_path, capsys):
    honest = run_verb("evaluate", *SMALL)
    legacy = run_verb("evaluate", *SMALL, "recipe.select=test_legacy")
    assert honest.metrics["row"]["selection"] == "last" and legacy.metrics["row"]["selection"] == "test_legacy"
    rows, _ = read_rows(store)
    assert table(rows).count(LEGACY) == 1
    page, lines = tmp_path / "report.html", tmp_path / "rows.csv"
    assert report(["--store", str(store), "--out", str(page), "--csv", str(lines)]) == 0
    assert LEGACY in capsys.readouterr().out
    assert page.read_text().count(LEGACY) == 3, "in the table, in its narrow form, in the details"
    with open(tmp_path / "rows.wide.csv", newline="") as file:
        assert sorted(line["selection"] for line in csv.DictReader(file)) == ["last", LEGACY]


def test_a_target_says_how_it_was_selected(run_verb):
    for select in ("last", "validation", "test_legacy"):
        target = run_verb("train_target", *SMALL[:5], f"recipe.select={select}")
        assert target.metrics["selection"] == select


def test_a_head_of_class_means_is_a_target_like_any_other(run_verb):
    target = run_verb("train_target", "dataset=toy", "architecture=cnn", "recipe=nearest_centroid")
    assert target.metrics["test_accuracy_top1"] > 0.5
