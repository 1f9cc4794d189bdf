"""The classifier loop: known learning rates and batches, neutral defenses, resuming, ranks."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from midefense import seeds
from midefense.architectures.small import CNN, MLP
from midefense.compute import leave_group
from midefense.defenses.base import NoDefense, Stack
from midefense.defenses.bido import BiDO
from midefense.defenses.label_smoothing import LabelSmoothing
from midefense.defenses.random_erasing import RandomErasing
from midefense.training import inference, loop
from midefense.training.augmentations import (
    ColorJitter,
    HorizontalFlip,
    ResizedCrop,
    Rotation,
    Sometimes,
    adjust_hue,
    adjust_saturation,
)
from midefense.training.recipe import Draws, Recipe, identity_batches, require_sampler, shuffled_batches
from midefense.types import Images, Refused

ADAM = partial(torch.optim.Adam, lr=3e-3)
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)


def toy(count: int = 120, classes: int = 3, size: int = 8) -> Images:
    """Images whose class is the third of the rows that is bright, under noise."""
    rng = seeds.generator("toy")
    labels = torch.arange(count) % classes
    bright = torch.arange(size) * classes // size == labels.unsqueeze(1)
    noise = torch.randint(0, 120, (count, 1, size, size), generator=rng)
    pixels = noise + 120 * bright.view(count, 1, size, 1)
    return Images(pixels.to(torch.uint8), labels, 1000 + torch.arange(count), [str(i) for i in range(classes)])


def recipe(**changes) -> Recipe:
    return Recipe(**{"epochs": 3, "batch_size": 16, "optimizer": ADAM, **changes})


def cnn() -> CNN:
    with seeds.isolated("init"):
        return CNN(classes=3, channels=1, size=8, widths=[4, 8], features=6)


def mlp(dropout: float = 0.0) -> MLP:
    with seeds.isolated("init"):
        return MLP(classes=3, channels=1, size=8, widths=[16, 8], dropout=dropout)


def trained(model, defense, settings=None, images=None, state=None, epochs=None):
    """The state after `epochs` (default: all), and the logs of the last epoch."""
    model = loop.assemble(model, defense, seed=5)
    logs, give = {}, None
    for done, logs, give in loop.fit(model, defense, images or toy(), settings or recipe(), seed=5, state=state):  # noqa: B007
        if done == epochs:
            break
    return give(), logs


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


DEFENSES = {
    "none": NoDefense,
    "erasing": RandomErasing,
    "erasing_fixed": partial(RandomErasing, location="per_image"),
    "smoothing": partial(LabelSmoothing, alpha=-0.05, start=0.0, full=0.5),
    "hsic": partial(BiDO, measure="hsic", lambda_x=0.05, lambda_y=0.5),
    "coco": partial(BiDO, measure="coco", lambda_x=1.0, lambda_y=5.0, sampler={"identities": 3, "images": 4}),
    "stack": lambda: Stack(members={"a": RandomErasing(), "b": LabelSmoothing(alpha=-0.05)}),
}


@pytest.mark.parametrize("name", DEFENSES)
def test_learns_the_toy_under_every_defense(name):
    model, defense = cnn(), DEFENSES[name]()
    _, logs = trained(model, defense, recipe(epochs=16))
    assert all(torch.isfinite(torch.tensor(value)) for value in logs.values())
    result = inference.evaluate(model, toy())
    assert result["accuracy"] > 0.9
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert {"loss", "loss/task", "accuracy", "learning_rate"} <= logs.keys()


@pytest.mark.parametrize(
    ("defense", "settings"),
    [
        (RandomErasing, {}),
        (LabelSmoothing, {}),
        (BiDO, {"measure": "hsic"}),
        (BiDO, {"measure": "coco"}),
    ],
)
def test_neutral_settings_are_bit_equal_to_no_defense(defense, settings):
    plain, _ = trained(mlp(dropout=0.2), NoDefense())
    neutral, _ = trained(mlp(dropout=0.2), defense(**settings, **defense.neutral))
    weights = {name: value for name, value in plain.items() if name.startswith(("model", "optimizer"))}
    assert_same(weights, {name: neutral[name] for name in weights})


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("name", ["none", "erasing_fixed", "hsic", "stack"])
def test_resumed_training_is_bit_equal(name, optimizer):
    settings = recipe(optimizer=optimizer, milestones=[0.5], warmup=2, augment=[HorizontalFlip()], clip_norm=1.0)
    whole, _ = trained(mlp(dropout=0.3), DEFENSES[name](), settings)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        for stop in (1, 2):
            state, _ = trained(mlp(dropout=0.3), DEFENSES[name](), settings, epochs=stop)
            again, _ = trained(mlp(dropout=0.3), DEFENSES[name](), settings, state=state)
            assert_same(again, whole)


def test_resumed_selection_by_validation_is_bit_equal():
    settings = recipe(epochs=4, select="validation", validation_share=0.25)
    one, two = cnn(), cnn()
    whole, logs = trained(one, NoDefense(), settings)
    state, _ = trained(cnn(), NoDefense(), settings, epochs=2)
    again, _ = trained(two, NoDefense(), settings, state=state)
    assert_same(again, whole)
    assert 0 <= logs["validation/accuracy"] <= whole["best_accuracy"]
    assert_same({f"best.{name}": value for name, value in one.state_dict().items()}, {
        name: value for name, value in whole.items() if name.startswith("best.")
    })  # fmt: skip
    assert_same(one.state_dict(), two.state_dict())


def test_a_finished_state_has_nothing_left_to_do():
    state, _ = trained(cnn(), NoDefense())
    model = cnn()
    assert list(loop.fit(model, NoDefense(), toy(), recipe(), seed=5, state=state)) == []
    assert_same({f"model.{name}": value for name, value in model.state_dict().items()}, {
        name: value for name, value in state.items() if name.startswith("model.")
    })  # fmt: skip


def test_training_leaves_the_global_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trained(mlp(dropout=0.5), RandomErasing(location="per_image"))
    assert torch.equal(torch.rand(4), expected)


def test_a_stack_costs_one_forward_per_step():
    model, calls = cnn(), []
    model.classifier.register_forward_hook(lambda *_: calls.append(1))
    members = {"a": RandomErasing(), "b": LabelSmoothing(alpha=-0.05), "c": DEFENSES["hsic"]()}
    trained(model, Stack(members=members), recipe(epochs=2))
    assert len(calls) == 2 * 8  # 120 images in batches of 16; the last has 8


def test_weights_of_a_batch_scale_the_per_image_terms():
    class Halves(NoDefense):
        def transform(self, batch):
            batch.weight[::2] = 0.0
            return batch

    images = toy(32)
    odd = images.take(torch.arange(1, 32, 2))
    settings = recipe(epochs=1, batch_size=32, optimizer=SGD)
    model, other = mlp(), mlp()
    ((_, weighted, _),) = loop.fit(model, Halves(), images, settings, seed=1)
    order = torch.randperm(32, generator=seeds.generator(1, "train", "order", 0))
    expected = inference.evaluate(other, images.take(order[1::2]))
    assert weighted["loss"] == pytest.approx(expected["loss"], rel=1e-5) and len(odd) == 16


def test_learning_rates_of_the_card():
    settings = recipe(epochs=100, milestones=[0.75, 0.9])
    assert [settings.rate(epoch) for epoch in (0, 74, 75, 89, 90)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert recipe(milestones=[2], warmup=2).rate(0) == 0.5
    assert [recipe(milestones=[2], factor=0.5).rate(epoch) for epoch in (1, 2)] == [1.0, 0.5]
    _, logs = trained(mlp(), NoDefense(), recipe(milestones=[1, 2], epochs=3))
    assert logs["learning_rate"] == pytest.approx(3e-5)


def test_every_image_comes_once_per_epoch_and_small_rests_join():
    batches = shuffled_batches(33, 16, 2, False, seeds.generator("order"))
    assert [len(rows) for rows in batches] == [16, 17] and torch.cat(batches).sort().values.tolist() == list(range(33))
    assert [len(rows) for rows in shuffled_batches(34, 16, 2, False, seeds.generator(0))] == [16, 16, 2]
    assert [len(rows) for rows in shuffled_batches(34, 16, 2, True, seeds.generator(0))] == [16, 16]
    with pytest.raises(Refused, match="at least 4, got 3"):
        shuffled_batches(3, 16, 4, False, seeds.generator(0))


def test_identity_batches_hold_so_many_classes_and_images_of_each():
    labels = torch.tensor([0] * 8 + [1] * 9 + [2] * 8 + [3] * 1)
    batches = identity_batches(labels, 3, 4, Draws(seeds.generator("order")))
    assert len(batches) >= 2
    for rows in batches:
        classes, counts = labels[rows].unique(return_counts=True)
        assert len(classes) == 3 and set(counts.tolist()) == {4}
    with pytest.raises(Refused, match="at most 4 identities per batch .*sampler=shuffle"):
        identity_batches(labels, 5, 4, Draws(seeds.generator("order")))


def test_images_left_over_are_dropped_as_bido_does():
    """Nine images of a class give two groups of four, three give one with an image twice, four give one."""
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] * 4)
    batches = identity_batches(labels, 1, 4, Draws(seeds.generator("order")), leftover="drop")
    by_class = [[rows for rows in batches if labels[rows[0]] == label] for label in range(3)]
    assert [len(groups) for groups in by_class] == [2, 1, 1]
    assert len(set(torch.cat(by_class[0]).tolist())) == 8 and sorted(by_class[2][0].tolist()) == [12, 13, 14, 15]
    assert set(by_class[1][0].tolist()) <= {9, 10, 11}
    filled = identity_batches(labels, 1, 4, Draws(seeds.generator("order")))
    assert sum(labels[rows[0]] == 0 for rows in filled) == 3, "the ninth image has a group of its own"
    with pytest.raises(Refused, match="sampler.leftover: got 'keep'; choices: fill, drop"):
        require_sampler({"identities": 3, "images": 4, "leftover": "keep"})


def test_evaluate_is_the_mean_over_images_and_restores_modes():
    model, images = cnn(), toy(50)
    model.stages["stage1"].eval()
    modes = [module.training for module in model.modules()]
    result = inference.evaluate(model, images, batch_size=7)
    assert [module.training for module in model.modules()] == modes
    whole = inference.evaluate(model, images, batch_size=50)
    assert result == pytest.approx(whole, rel=1e-6)
    with torch.no_grad():
        logits = model.eval()(images.floats()).logits
    assert result["accuracy"] == pytest.approx((logits.argmax(1) == images.labels).double().mean().item())
    assert result["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, images.labels).item(), rel=1e-5)
    with pytest.raises(Refused, match="at least one image"):
        inference.evaluate(model, images.take(torch.zeros(50, dtype=torch.bool)))


@pytest.mark.parametrize("classes", [3, 5, 6])
def test_top5_is_measured_only_where_it_says_something(classes):
    images = toy(60, classes)
    model = MLP(classes=classes, channels=1, size=8, widths=[4]).eval()
    result = inference.evaluate(model, images)
    assert ("accuracy_top5" in result) is (classes > 5)
    if classes > 5:
        best = model(images.floats()).logits.topk(5).indices
        expected = (best == images.labels.unsqueeze(1)).any(1).double().mean().item()
        assert result["accuracy_top5"] == pytest.approx(expected) and expected < 1


def test_mixed_precision_keeps_losses_and_weights_in_float32():
    model = mlp()
    state, logs = trained(model, DEFENSES["hsic"](), recipe(precision="bf16-mixed", epochs=16))
    assert {value.dtype for name, value in state.items() if name.startswith("model.")} == {torch.float32}
    assert logs["accuracy"] > 0.8


def test_bad_input_is_refused_before_training():
    with pytest.raises(Refused, match="expected values below 3, the classes of the network, got 3"):
        next(loop.fit(cnn(), NoDefense(), toy(classes=4), recipe(), seed=0))
    for changes, message in [
        ({"epochs": 0}, "epochs >= 1"),
        ({"optimizer": None}, "_partial_: true"),
        ({"select": "best"}, "choices: last, validation"),
        ({"precision": "16"}, "choices: 32-true, tf32, bf16-mixed"),
        ({"sampler": {"identities": 4}}, "identities: 16, images: 4"),
        ({"sampler": "sorted"}, "expected 'shuffle'"),
        ({"milestones": [1.5]}, "shares in"),
    ]:
        with pytest.raises(Refused, match=message):
            recipe(**changes)
    with pytest.raises(Refused, match="leaves one part empty"):
        next(loop.fit(cnn(), NoDefense(), toy(4), recipe(select="validation"), seed=0))


def test_a_diverged_training_says_so():
    with pytest.raises(RuntimeError, match="training diverged in epoch 0"):
        trained(mlp(), NoDefense(), recipe(optimizer=partial(torch.optim.SGD, lr=1e20)))


def test_a_task_term_needs_the_slot():
    class Intruder(NoDefense):
        def losses(self, trace, batch):
            return {"task": trace.logits.sum(1)}

    with pytest.raises(Refused, match="goes with owning the slot"):
        trained(mlp(), Intruder())


# Augmentations


def test_flip_and_crop_are_per_image_and_match_torchvision():
    from torchvision.transforms.v2.functional import resized_crop

    images = torch.rand(40, 3, 16, 20)
    flipped = HorizontalFlip()(images, seeds.generator("flip"))
    same = (flipped == images).flatten(1).all(1)
    assert 5 < same.sum() < 35 and torch.equal(flipped[~same], images[~same].flip(-1))
    assert torch.equal(HorizontalFlip(p=0.0)(images, seeds.generator(0)), images)

    square = torch.rand(30, 1, 16, 16)
    torch.testing.assert_close(ResizedCrop(scale=(1.0, 1.0))(square, seeds.generator(0)), square)
    cropped = ResizedCrop(scale=(0.4, 0.4))(square, seeds.generator("crop"))  # side round(sqrt(.4) 16) = 10
    for image, crop in zip(square, cropped, strict=True):
        places = [resized_crop(image, i, j, 10, 10, [16, 16], antialias=False) for i in range(7) for j in range(7)]
        assert min((place - crop).abs().max().item() for place in places) < 1e-5


def test_rotations_are_per_image_and_sometimes_is_a_share_of_them():
    disc = torch.zeros(40, 1, 16, 16)
    disc[:, :, 7:9, 12:14] = 1.0  # to the right of the middle, at a distance of 5
    rows, columns = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")

    def angles(images):
        weights = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
        return torch.rad2deg(torch.atan2((weights * rows).sum((1, 2)), (weights * columns).sum((1, 2))))

    turned = angles(Rotation(degrees=30.0)(disc, seeds.generator("turn"))).abs()
    assert 20 < turned.max() <= 31 and turned.min() < 10
    torch.testing.assert_close(Rotation(degrees=0.0)(disc, seeds.generator(0)), disc)
    some = Sometimes(p=0.25, augmentation=Rotation(degrees=30.0))(disc, seeds.generator("some"))
    assert 3 < 40 - (some == disc).flatten(1).all(1).sum() < 20
    assert torch.equal(Sometimes(p=0.0, augmentation=Rotation())(disc, seeds.generator(0)), disc)


def test_colour_adjustments_match_torchvision():
    from torchvision.transforms.v2 import functional

    images = torch.rand(5, 3, 6, 6)
    for turns in (-0.5, -0.1, 0.0, 0.07, 0.4):
        expected = functional.adjust_hue(images, turns)
        torch.testing.assert_close(adjust_hue(images, torch.full((5,), turns)), expected, atol=1e-5, rtol=0)
    expected = functional.adjust_saturation(images, 1.3)
    torch.testing.assert_close(adjust_saturation(images, torch.full((5,), 1.3)), expected, atol=1e-4, rtol=0)
    jitter = ColorJitter(brightness=0.2, contrast=0.2, saturation=0.1, hue=0.1)
    jittered = jitter(images, seeds.generator("jitter"))
    assert jittered.shape == images.shape and jittered.min() >= 0 and jittered.max() <= 1
    assert torch.equal(jittered, jitter(images, seeds.generator("jitter")))
    torch.testing.assert_close(ColorJitter()(images, seeds.generator(0)), images, atol=1e-5, rtol=0)
    assert jitter(images[:, :1], seeds.generator(0)).shape == (5, 1, 6, 6)


# Ranks


def ranks_main(folder: str) -> None:
    """What each of two processes runs: train without batch norm, with it, and with a coupled defense."""
    from lightning_fabric import Fabric

    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    results = {}
    for name, model, defense in [
        ("erasing", mlp(), DEFENSES["erasing"]()),
        ("stack", mlp(), DEFENSES["stack"]()),
        ("batch norm", cnn(), DEFENSES["none"]()),
        ("hsic", cnn(), DEFENSES["hsic"]()),
    ]:
        model = loop.assemble(model, defense, seed=5)
        *_, (_, logs, give) = loop.fit(model, defense, toy(123), recipe(optimizer=SGD), seed=5, fabric=fabric)
        results[name] = {**give(), "loss": torch.tensor(logs["loss"])}
    torch.save(results, f"{folder}/rank{fabric.global_rank}.pt")
    leave_group()


def test_two_ranks_agree_and_equal_one_process(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(loop.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        assert_same(first[name], second[name])
    for name, model, defense in (("erasing", mlp, "erasing"), ("stack", mlp, "stack"), ("batch norm", cnn, "none")):
        alone, logs = trained(model(), DEFENSES[defense](), recipe(optimizer=SGD), toy(123))
        assert first[name]["loss"].item() == pytest.approx(logs["loss"], rel=1e-4)
        for key, value in alone.items():
            torch.testing.assert_close(first[name][key], value, atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    ranks_main(sys.argv[1])
