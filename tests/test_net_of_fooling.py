"""Leakage net of fooling: placebos that know nobody, differences by hand, and intervals that hold the truth."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import plan_for

from midefense import seeds
from midefense.datasets.placebos import dealt, placebo_images
from midefense.metrics.base import World
from midefense.metrics.intervals import DIRICHLET, mean_interval
from midefense.metrics.net_of_fooling import DIFFERENCE, NetOfFooling, paired_difference, with_failures
from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.pipeline import Pipeline
from midefense.store.artefacts import Draft, content_id
from midefense.store.store import Store
from midefense.types import Images, Refused

TOY = ("dataset=toy", "architecture=mlp", "architecture.widths=[8]", "attack=pool_small", "prior=toy")

# ------------------------------------------------------------------------------------------------ what a placebo learns


def images_of(labels, names):
    count = len(labels)
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return Images(pixels, labels, 10 + torch.arange(count), [str(name) for name in range(names)])


@pytest.mark.parametrize(("per_identity", "identities"), [(20, 4), (7, 5), (3, 30)])
def test_a_dealt_label_tells_nothing_of_an_identity(per_identity, identities):
    labels = torch.arange(identities).repeat_interleave(per_identity)
    images = images_of(labels, identities)
    placebo = dealt(images, "train")
    table = torch.zeros(identities, identities, dtype=torch.int64)
    table.index_put_((labels, placebo.labels), torch.tensor(1), accumulate=True)
    assert table.sum(0).max() - table.sum(0).min() <= 1, "every label has as many images"
    assert table.max() - table.min() <= 1, "and of every identity"
    assert placebo.pixels is images.pixels and torch.equal(placebo.ids, images.ids)
    assert torch.equal(dealt(images, "train").labels, placebo.labels)
    assert not torch.equal(dealt(images, "test").labels, placebo.labels)


def test_identities_of_few_images_share_no_labels_that_tell_who_they_are():
    """A hundred people of twenty images each: whoever is dealt one label is not dealt the other nineteen of anybody."""
    labels = torch.arange(100).repeat_interleave(20)
    placebo = dealt(images_of(labels, 100), "train").labels
    table = torch.zeros(100, 100, dtype=torch.int64).index_put_((labels, placebo), torch.tensor(1), accumulate=True)
    assert table.max() == 1 and set(table.sum(0).tolist()) == {20}
    shared = (table @ table.T).fill_diagonal_(0)
    assert len({tuple(row) for row in table.tolist()}) == 100 and shared.max() < 14
    told = (table.T @ table).fill_diagonal_(0)
    assert told.max() < 14, "nor do two labels stand for the same people"


@pytest.mark.parametrize("kind", ["permuted", "left_out"])
def test_which_label_is_whose_is_drawn(kind, store, monkeypatch):
    """Over draws a label is as often one identity's as another's, so that no habit is right more often than that."""
    splits = Pipeline(plan_for("train_target", "dataset=toy", store=store)).splits
    keyed, orders = seeds.generator, []
    for draw in range(100):
        monkeypatch.setattr(seeds, "generator", lambda *key, draw=draw: keyed(*key, draw))
        train, _ = placebo_images(kind, splits)
        orders.append(int(train.labels[train.ids.argmin()]) if kind == "permuted" else train.names[0])
    counts = [orders.count(one) for one in set(orders)]
    assert len(counts) == 4 and max(counts) < 45


def test_identities_move_alike_would_be_no_placebo():
    """Labels that are permuted person by person leave each label with one person, whom the target then knows."""
    labels = torch.arange(4).repeat_interleave(20)
    moved = (labels + 1) % 4
    assert len({(int(a), int(b)) for a, b in zip(labels, moved, strict=True)}) == 4
    mixed = dealt(images_of(labels, 4), "train").labels
    assert len({(int(a), int(b)) for a, b in zip(labels, mixed, strict=True)}) == 16


def test_left_out_has_as_many_others(store):
    splits = Pipeline(plan_for("train_target", "dataset=toy", store=store)).splits
    train, test = placebo_images("left_out", splits)
    assert len(train.names) == splits.classes == len(train.labels.unique()) == len(test.labels.unique())
    assert not set(train.names) & set(splits.class_names) and set(train.names) <= set(splits.public.names)
    assert not set(train.ids.tolist()) & set(splits.private_train.ids.tolist())
    share = len(test) / (len(train) + len(test))
    own = len(splits.private_test) / (len(splits.private_train) + len(splits.private_test))
    assert share == pytest.approx(own, abs=0.03)
    few = replace(splits, public=splits.public.take(splits.public.labels < 3))
    few.public = replace(few.public, names=few.public.names[:3])
    with pytest.raises(Refused, match="at least 4 public people, .*got 3; try train_on=permuted"):
        placebo_images("left_out", few)


def test_a_placebo_is_a_target_of_its_own_id(store):
    ids = set()
    for train_on in ("private", "permuted", "left_out"):
        words = (*TOY[:3], f"train_on={train_on}")
        draft = look_ahead(Pipeline(plan_for("train_target", *words, store=store))).items[0].artefact
        assert draft.recipe["train_on"] == train_on
        assert draft.name == ("toy-mlp-none" if train_on == "private" else f"toy-mlp-none-{train_on}")
        ids.add(draft.id)
    assert len(ids) == 3


# ------------------------------------------------------------------------------------------------ the difference


def test_a_difference_made_by_hand():
    """Identity 3 has three images, of which two are recognised, and one of two on the floor: 2/3 - 1/2. Identity 7 has
    one, recognised, and none of two."""
    hits, labels = torch.tensor([1, 1, 0, 1]).bool(), torch.tensor([3, 3, 3, 7])
    floor, floor_labels = torch.tensor([1, 0, 0, 0, 1]).bool(), torch.tensor([3, 3, 7, 7, 9])
    found = paired_difference(hits, labels, floor, floor_labels)
    assert found.per_class == pytest.approx({3: 2 / 3 - 1 / 2, 7: 1.0})
    assert found.value == pytest.approx((3 * (2 / 3 - 1 / 2) + 1.0) / 4)
    assert -1 <= found.low < found.value < found.high <= 1 and found.interval == DIRICHLET
    lacking = paired_difference(hits, labels, floor[:2], floor_labels[:2])
    assert math.isnan(lacking.value) and "nothing was recovered from the placebo for classes [7]" in lacking.reason


def test_alike_on_both_sides_is_nothing_and_the_bounds_are_symmetric():
    labels = torch.arange(10).repeat_interleave(3)
    hits = torch.rand(30, generator=torch.Generator().manual_seed(0)) < 0.8
    found = paired_difference(hits, labels, hits, labels)
    assert found.value == 0 and -found.low == pytest.approx(found.high, abs=0.01)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 10), abs=0.01), "ten pairs without a difference"


def test_targets_that_were_never_reached_count_as_failed():
    hits, labels = with_failures(torch.tensor([True, True]), torch.tensor([0, 0]), torch.tensor([1]), 2)
    assert hits.tolist() == [True, True, False, False] and labels.tolist() == [0, 0, 1, 1]
    assert with_failures(hits, labels, None, 2)[0] is hits


# How identities differ in how often the attack, or the placebo, is recognised.
HETEROGENEITY = {"all or none": 0.05, "mixed": 1.0, "alike": 500.0}


def simulated(rng, repetitions, classes, real, fooling, concentration, images=8):
    """Shares [R, C] of images recognised on the real target and on the placebo: each identity has chances of its own,
    those on the placebo the rarer the more `real` there is beside `fooling`."""

    def chances(mean):
        return rng.beta(mean * concentration, (1 - mean) * concentration, size=(repetitions, classes))

    fooled = rng.binomial(images, chances(fooling)) / images
    return rng.binomial(images, chances(fooling + real)) / images, fooled


def coverage(pairs, truth, interval):
    found = [interval(*pair) for pair in zip(*pairs, strict=True)]
    return np.mean([low <= truth <= high for low, high in found])


def ours(real, fooled):
    found = mean_interval(real - fooled, np.ones(len(real)), DIFFERENCE)
    return found.low, found.high


def of_images(real, fooled, images=8):
    """Two independent proportions over images, which everyone would write: those of one identity hang together."""
    first, second, count = real.mean(), fooled.mean(), images * len(real)
    reach = 1.96 * math.sqrt((first * (1 - first) + second * (1 - second)) / count)
    return first - second - reach, first - second + reach


def of_means(real, fooled):
    """Student's t over identities, which is too narrow where few of them differ."""
    differences = real - fooled
    reach = 2.262 * differences.std(ddof=1) / math.sqrt(len(differences))
    return differences.mean() - reach, differences.mean() + reach


@pytest.mark.parametrize("concentration", HETEROGENEITY.values(), ids=list(HETEROGENEITY))
def test_where_everything_is_fooling_the_interval_holds_zero(concentration):
    """Hypothetical: ten identities of which evaluators see 60 % whoever the target knows. Of a placebo whose labels are
    drawn no more than 10 % is to be expected; what an interval owes must not hang on that."""
    pairs = simulated(np.random.default_rng(0), 200, 10, 0.0, 0.6, concentration)
    assert coverage(pairs, 0.0, ours) >= 0.95
    raw = [mean_interval(one, np.ones(10), (0.0, 1.0)).low for one in pairs[0]]
    assert np.mean(np.array(raw) > 0.1) > 0.9, "the accuracy everybody reports says that it leaks"


def test_the_simulation_tells_intervals_that_are_too_narrow():
    rng = np.random.default_rng(0)
    assert coverage(simulated(rng, 300, 10, 0.0, 0.6, HETEROGENEITY["all or none"]), 0.0, of_images) < 0.8
    assert coverage(simulated(rng, 300, 10, 0.05, 0.02, HETEROGENEITY["all or none"]), 0.05, of_means) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5, 10, 100])
@pytest.mark.parametrize(
    ("real", "fooling"), [(0.0, 0.05), (0.0, 0.5), (0.05, 0.02), (0.4, 0.3), (-0.2, 0.5), (0.9, 0.05)]
)
def test_the_difference_is_held_however_identities_differ(classes, real, fooling):
    rng = np.random.default_rng(0)
    for name, concentration in HETEROGENEITY.items():
        pairs = simulated(rng, 300, classes, real, fooling, concentration)
        assert coverage(pairs, real, ours) >= 0.93, name


# ------------------------------------------------------------------------------------------------ a row


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """A row of the toy world, with the pipeline that made it."""
    small = ("recipe.epochs=2", "evaluators.main.recipe.epochs=2", "evaluators.main.architecture.widths=[4,4]")
    quick = ("attack.init.size=20", "attack.init.candidates=4", "attack.search.steps=3", "attack.select.repeats=2")
    words = (*TOY, *small, *quick, "compute=cpu", "compute.threads=1", "tracking=none")
    metrics = ("metrics=[privacy,net_of_fooling]", "judge_at_chance=true")
    pipeline = Pipeline(plan_for("evaluate", *words, *metrics, store=tmp_path_factory.mktemp("placebo") / "store"))
    agenda = look_ahead(pipeline)
    return pipeline, agenda, pipeline.result


def test_a_row_has_the_placebo_as_an_anchor_and_the_difference_to_it(row):
    pipeline, _, result = row
    numbers, anchors = result.metrics["metrics"], result.metrics["anchors"]
    accuracy, floor = numbers["attack_accuracy_top1/main"]["value"], numbers["placebo_accuracy/main"]["value"]
    assert floor == anchors["placebo"]["attack_accuracy_top1/main"]
    assert numbers["leakage_net_of_fooling/main"]["value"] == pytest.approx(accuracy - floor)
    assert numbers["leakage_net_of_fooling/main"]["low"] is not None
    assert anchors["placebo"]["leakage_net_of_fooling/main"] == 0 == anchors["chance"]["leakage_net_of_fooling/main"]
    assert anchors["chance"]["placebo_accuracy/main"] == anchors["chance"]["attack_accuracy_top1/main"] == 1 / 12
    assert anchors["real"]["leakage_net_of_fooling/main"] == pytest.approx(
        anchors["real"]["attack_accuracy_top1/main"] - floor
    )
    assert {"knn_distance/main", "kid/main"} <= set(anchors["placebo"]), "as an anchor of every number"


def test_the_placebo_is_attacked_alike_and_is_a_parent_of_the_row(row):
    pipeline, agenda, result = row
    real, placebo = pipeline.recovered, pipeline.placebo.recovered
    assert result.provenance["parents"]["placebo"] == placebo.reference and result.recipe["placebo"] == placebo.id
    differing = {key for key in real.recipe if real.recipe[key] != placebo.recipe[key]}
    assert differing == {"target", "prepared"}, (
        "the target, and what is asked of it: budget, prior and seeds are the same"
    )
    of_both = [pipeline.store.open(one.provenance["parents"]["target"], "target") for one in (real, placebo)]
    differing = {key for key in of_both[0].recipe if of_both[0].recipe[key] != of_both[1].recipe[key]}
    assert differing == {"train_on", "images"}
    told = [item.what for item in agenda.items]
    assert told.count("training the target (placebo)") == told.count("attacking (placebo)") == 1
    assert [item.artefact.id for item in agenda.items][-1] == result.id, "looked ahead as it was made"
    alone = pipeline.placebo.session.command("attack", {"attack": "pool_small"})
    assert alone == pipeline.session.command("evaluate", {}), "the command that makes it is the one of the row"


def test_a_training_that_begins_with_what_knows_the_identities_has_no_placebo(row, tmp_path):
    """A placebo would begin with it too: a target of the same dataset, however it was cut, or a file of anything."""
    pipeline, _, _ = row
    store, known = pipeline.store.root, pipeline.target.artefact
    asked = (*TOY, "dataset.size=16", "metrics=[utility,net_of_fooling]")
    file = tmp_path / "body.safetensors"
    file.write_bytes(b"weights")
    for start, said in [(known.reference, f"{known.reference}, which learned from the same"), (file, "a file of weig")]:
        with pytest.raises(Refused, match=f"begins without the identities, got recipe.start=.*{said}"):
            plan_for("evaluate", *asked, f"recipe.start={start}", store=store)
    plan_for("evaluate", *asked[:-1], "metrics=utility", f"recipe.start={known.reference}", store=store)


def test_a_training_that_begins_with_another_dataset_has_a_placebo(store):
    """Unless that one had begun with what knows the identities, or with what nobody knows."""
    asked, word = (*TOY, "metrics=[utility,net_of_fooling]"), "midefense.training.start."
    of_toy, of_others = ({"_target_": f"midefense.datasets.{name}"} for name in ("toy.Toy", "digits.Digits"))

    def stored(name, dataset, start=None, parents=None):
        recipe = {"kind": "target", "dataset": dataset, "recipe": {"start": start}, "of": name}
        return Store(store).work(Draft(kind="target", name=name, recipe=recipe, parents=parents or {})).finish({}, {})

    first, clean = stored("first", of_toy), stored("clean", of_others)
    second = stored("second", of_others, {"_target_": f"{word}FromTarget"}, {"start": first.reference})
    filed = stored("filed", of_others, {"_target_": f"{word}FromFile"})
    plan_for("evaluate", *asked, f"recipe.start={clean.reference}", store=store)
    for start in (second, filed):
        with pytest.raises(Refused, match="or began with what may have"):
            plan_for("evaluate", *asked, f"recipe.start={start.reference}", store=store)


def test_rows_that_do_not_ask_have_no_placebo(store):
    pipeline = Pipeline(plan_for("evaluate", *TOY, "metrics=privacy", store=store))
    assert pipeline.placebo is None
    assert "placebo" not in look_ahead(pipeline).items[-1].artefact.recipe


def test_what_stands_for_the_placebo_in_a_world_without_one_is_nan(row):
    pipeline, _, _ = row
    metric = NetOfFooling()
    world = World(pipeline.splits.private_train, {"main": torch.nn.Identity()}, 4)
    found = metric.measure({"label": torch.arange(4), "hit/main": torch.ones(4).bool()}, world)
    assert all(math.isnan(number.value) and "no placebo" in number.reason for number in found.values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train_on=permuted",), "expected a target of the private identities, got train_on=permuted"),
        (("metrics.net_of_fooling.placebo=sugar",), "got 'sugar'; choices: permuted, left_out"),
        (
            (
                "+metrics.other._target_=midefense.metrics.net_of_fooling.NetOfFooling",
                "+metrics.other.placebo=left_out",
            ),
            "expected one placebo for all, got permuted, left_out",
        ),
        (
            ("evidence=weights", "metrics=[matched,net_of_fooling]"),
            "expected an attack on classes, got evidence (Weights)",
        ),
    ],
)
def test_what_has_no_placebo_is_refused(words, sentence, store):
    with pytest.raises(Refused, match=re.escape(sentence)):
        asked = () if any(word.startswith("metrics=") for word in words) else ("metrics=[utility,net_of_fooling]",)
        plan_for("evaluate", *TOY, *asked, *words, store=store)


def test_the_choice_of_placebo_is_part_of_the_protocol(store):
    protocols = set()
    for placebo in ("permuted", "left_out"):
        words = ("metrics=net_of_fooling", f"metrics.net_of_fooling.placebo={placebo}")
        recipe = look_ahead(Pipeline(plan_for("evaluate", *TOY, *words, store=store))).items[-1].artefact.recipe
        protocols.add(content_id(recipe["protocol"]))
    assert len(protocols) == 2
