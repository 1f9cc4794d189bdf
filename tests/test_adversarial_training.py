"""Adversarial training (card adversarially_robust.md, sections 6 and 7): closed forms of the ascent on a linear model,
its ball, and that it makes a network harder to move."""

import functools

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from midefense import seeds
from midefense.architectures.base import Classifier
from midefense.architectures.small import CNN
from midefense.defenses.adversarial_training import AdversarialTraining, norms
from midefense.training import loop
from midefense.training.loop import rank_share
from midefense.training.recipe import Recipe
from midefense.types import Batch, Refused

WEIGHTS = torch.tensor([1.0, -2.0, 0.5])
RADIUS = 8 / 255


def linear() -> Classifier:
    """The card's model of three pixels, w = (1, -2, .5) and b = .1: the logit of class 1 over that of class 0."""
    head = nn.Linear(3, 2)
    head.load_state_dict({"weight": torch.stack([torch.zeros(3), WEIGHTS]), "bias": torch.tensor([0.0, 0.1])})
    return Classifier({"features": nn.Flatten()}, head, channels=3, size=1, mean=0.0, std=1.0)


def margin(images: torch.Tensor) -> list[float]:
    logits = linear()(images).logits
    return (logits[:, 1] - logits[:, 0]).tolist()


def batch_of(images: torch.Tensor, labels: torch.Tensor) -> Batch:
    count = len(images)
    return Batch(images, labels, torch.arange(count), torch.ones(count), seeds.generator("batch"))


def of_the_card() -> Batch:
    return batch_of(torch.full((1, 3, 1, 1), 0.5), torch.ones(1, dtype=torch.int64))


def test_the_linear_model_of_the_card():
    batch = of_the_card()
    assert margin(batch.images) == pytest.approx([-0.15], abs=1e-6)
    for start, steps in ((False, 1), (False, 10), (True, 40)):
        defense = AdversarialTraining(
            radius=RADIUS, step_size=RADIUS if steps == 1 else 2 / 255, steps=steps, start=start
        )
        assert margin(defense.worst(linear(), batch)) == pytest.approx([-0.15 - 0.109804], abs=1e-6)
    defense = AdversarialTraining(radius=0.1, step_size=0.05, steps=40, norm="l2", start=False)
    assert margin(defense.worst(linear(), batch)) == pytest.approx([-0.15 - 0.1 * float(WEIGHTS.norm())], abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", [True, False])
def test_images_stay_in_the_ball_and_in_range(norm, start):
    with seeds.isolated("network"):
        model = CNN(classes=3, channels=1, size=8, widths=[4, 4], features=6)
    images = torch.rand(12, 1, 8, 8, generator=seeds.generator("images"))
    images[:4] = images[:4].round()  # at both ends of the range
    batch = batch_of(images, torch.arange(12) % 3)
    radius = {"linf": 0.1, "l2": 1.0}[norm]
    defense = AdversarialTraining(radius=radius, step_size=radius / 4, steps=20, norm=norm, start=start)
    moved = defense.worst(model.train(), batch)
    away = moved - images
    size = away.flatten(1).abs().amax(1) if norm == "linf" else norms(away).flatten()
    assert size.min() > 0 and size.max() <= radius + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1 and not moved.requires_grad
    inside = (gentle := 0.8 * images + 0.1) + 0.01
    torch.testing.assert_close(defense.projected(inside, gentle), inside)
    model.eval()
    losses = [nn.functional.cross_entropy(model(shown).logits, batch.labels) for shown in (images, moved)]
    assert losses[1] > losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_network_is_asked_as_deployed_and_left_in_its_mode():
    model = CNN(classes=3, channels=1, size=8, widths=[4, 4], features=6).train()
    model.stages["features"].eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    batch = batch_of(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    AdversarialTraining(radius=0.1, step_size=0.05, steps=2).worst(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_a_start_is_the_images_own_whatever_stands_beside_it():
    defense = AdversarialTraining(radius=0.1, step_size=0.05, steps=1)
    batch = batch_of(torch.full((6, 1, 8, 8), 0.5), torch.arange(6) % 3)
    whole = defense.beginning(batch)
    ranks = torch.cat([defense.beginning(rank_share(batch, rank, 2)) for rank in range(2)])
    assert torch.equal(whole, ranks)
    away = (whole - 0.5).flatten()
    assert away.abs().max() <= 0.1 and away.std() == pytest.approx(0.2 / 12**0.5, rel=0.1)
    assert abs(float(away.mean())) < 0.02 and not torch.equal(whole[0], whole[1])


def test_the_update_is_on_what_was_found():
    defense = AdversarialTraining(radius=0.2, step_size=0.1, steps=3)
    model = loop.assemble(linear(), defense, 0)
    sgd = functools.partial(torch.optim.SGD, lr=0.5)
    trainer = loop.Trainer(
        model, defense, Recipe(epochs=1, batch_size=2, optimizer=sgd), Fabric(accelerator="cpu", devices=1)
    )
    trainer.begin_epoch(0)
    batch = of_the_card()
    found = defense.worst(model, batch)
    known, clean = (
        nn.functional.cross_entropy(linear()(x).logits, batch.labels).detach() for x in (found, batch.images)
    )
    assert float(trainer.train(batch, 0, 0)["loss"]) == pytest.approx(float(known), rel=1e-6)
    assert known > clean + 0.1


def test_attributes_and_soft_labels_are_taken():
    model = CNN(classes=3, channels=1, size=8, widths=[4, 4], features=6)
    images = torch.rand(4, 1, 8, 8)
    for labels in (torch.eye(3)[[0, 1, 2, 0]], torch.tensor([[1, 0, 1]] * 4, dtype=torch.uint8)):
        moved = AdversarialTraining(radius=0.1, step_size=0.05, steps=2).worst(model, batch_of(images, labels))
        assert not torch.equal(moved, images)


def test_refusals():
    with pytest.raises(Refused, match="defense.norm: got 'l1'; choices: linf, l2"):
        AdversarialTraining(radius=0.1, step_size=0.1, norm="l1")
