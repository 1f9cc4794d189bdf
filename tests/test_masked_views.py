"""The attack that knows of random erasing: views behind the defense's own masks."""

import pytest
import torch
from contract.listing import node

from midefense import seeds
from midefense.architectures.small import MLP
from midefense.attacks.views import Chain, RandomErase, RandomResizedCrop
from midefense.defenses.random_erasing import RandomErasing
from midefense.plan.compose import compose
from midefense.rectangles import inside, random_boxes
from midefense.training import loop
from midefense.types import Batch, Refused


def pictures(count: int, channels: int = 3, height: int = 24, width: int = 20) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=seeds.generator("pictures"))


def masks(view: RandomErase, draws: torch.Tensor, height: int = 24, width: int = 20) -> torch.Tensor:
    return inside(random_boxes(draws, height, width, p=view.p, scale=view.scale, ratio=view.ratio), height, width)


@pytest.mark.parametrize(
    "settings", [{}, {"scale": (0.1, 0.8)}, {"p": 0.4, "ratio": (0.3, 3.3)}, {"scale": (0.8, 1.0)}, {"p": 0.0}]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_view_is_the_defense(settings, channels):
    """Under one seed both overwrite the same pixels with the same colour."""
    images = pictures(200, channels)
    model = MLP(classes=2, channels=channels, widths=[4])
    defense = RandomErasing(value=(0.485, 0.456, 0.406), fill_space="normalized", **settings)
    loop.assemble(model, defense, seed=0)
    ids = torch.arange(200)
    trained_on = defense.transform(Batch(images, ids, ids, torch.ones(200), seeds.generator("boxes"))).images
    view = RandomErase(**settings)
    shown = view(images, view.draw(200, seeds.generator("boxes")))
    torch.testing.assert_close(shown, trained_on, rtol=0, atol=1e-6)
    assert torch.equal(shown != images, trained_on != images)


def test_the_configured_view_is_the_configured_defense():
    view = node("attack", "attack.views", "attack=pool", "attack/views=random_erasing").build()
    defense = node("train_target", "defense", "defense=random_erasing").build()
    assert (view.p, view.scale, view.ratio) == (defense.p, defense.scale, defense.ratio)
    assert list(view.value) == pytest.approx([0.5 * value + 0.5 for value in defense.value])


def test_search_and_selection_of_the_masked_pool_look_behind_masks():
    attack = compose("attack", ["attack=pool_masked"])[0]["attack"]
    search, select = attack["views"]["members"], attack["select"]["views"]["members"]
    assert search["erase"] == select["erase"] and attack["select"]["repeats"] == 100
    assert search["crop"]["scale"] == [0.9, 1.0] and select["crop"]["scale"] == [0.5, 0.9]
    assert list(search) == list(select) == ["crop", "erase"]


def test_nothing_is_learnt_from_behind_the_rectangle():
    view, images = RandomErase(), pictures(50).requires_grad_()
    draws = view.draw(50, seeds.generator("draws"))
    shown, hidden = view(images, draws), masks(view, draws).expand_as(images)
    weights = 1 + pictures(50)
    (slope,) = torch.autograd.grad((weights * shown).sum(), images)
    assert hidden.any() and (slope[hidden] == 0).all()
    assert torch.equal(slope[~hidden], weights[~hidden])
    fill = torch.tensor([0.7425, 0.728, 0.703]).view(3, 1, 1).expand_as(images)
    assert torch.equal(shown[hidden], fill[hidden]) and torch.equal(shown[~hidden], images[~hidden])


def test_every_look_has_masks_of_its_own():
    view, rng = RandomErase(), seeds.generator("looks")
    first, second = (masks(view, view.draw(40, rng)) for _ in range(2))
    assert not torch.equal(first, second) and len(first.flatten(1).unique(dim=0)) > 30
    images = pictures(6)
    draws = view.draw(6, rng)
    alone = torch.cat([view(images[row : row + 1], draws[row : row + 1]) for row in range(6)])
    assert torch.equal(alone, view(images, draws))


@pytest.mark.parametrize("shared", [False, True])
def test_a_chain_shows_each_member_what_the_one_before_shows(shared):
    crop, erase = RandomResizedCrop(scale=(0.5, 0.9), flip=0.5, shared=shared), RandomErase()
    chain = Chain(members={"crop": crop, "erase": erase})
    images, rng = pictures(30), seeds.generator("chain")
    draws = chain.draw(30, seeds.generator("chain"))
    assert draws.shape == (30, chain.columns) and chain.columns == crop.columns + erase.columns
    expected = crop(images, crop.draw(30, rng))
    expected = erase(expected, erase.draw(30, rng))
    assert torch.equal(chain(images, draws), expected)
    turned = Chain(members={"erase": erase, "crop": crop})
    assert not torch.equal(turned(images, turned.draw(30, seeds.generator("chain"))), expected)
    nested = Chain(members={"only": chain})
    assert torch.equal(nested(images, nested.draw(30, seeds.generator("chain"))), expected)


def test_a_chain_reads_and_needs_what_its_members_do():
    crop, erase = RandomResizedCrop(), RandomErase()
    erase.reads, erase.needs = ("gradient", "probs"), ("realism",)
    chain = Chain(members={"one": erase, "two": crop, "three": erase})
    assert chain.reads == ("gradient", "probs") and chain.needs == ("realism",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain(members={}), "views.members: expected one or more views, got none"),
        (lambda: RandomErase(p=2), "p: expected a probability"),
        (lambda: RandomErase(scale=(0.4, 0.1)), "scale: expected 0 <= low <= high <= 1"),
        (lambda: RandomErase(ratio=(0, 1)), "ratio: expected 0 < low <= high"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(Refused, match=message):
        make()


def test_a_colour_of_other_channels_is_refused():
    view = RandomErase(value=[0.5, 0.5])
    with pytest.raises(Refused, match="value: expected 1 or 3 values for 3 channels, got 2"):
        view(pictures(2), view.draw(2, seeds.generator("draws")))
