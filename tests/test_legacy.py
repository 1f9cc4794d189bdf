"""What the authors' code does and ours does by option: crops that do not fit, images that are not cut, shared views."""

import pytest
import torch
from contract.listing import composed, node, options
from torchvision.transforms.v2 import RandomResizedCrop as Original

from midefense import seeds
from midefense.attacks.problem import Problem
from midefense.attacks.select import TargetConfidence
from midefense.attacks.views import Chain, RandomErase, RandomResizedCrop
from midefense.plan.bind import bind
from midefense.priors.base import Prior
from midefense.types import Answer, Evidence, Found, Refused

SELECTION = {"scale": (0.5, 0.9), "ratio": (0.8, 1.2)}
MANY = 40_000
OF_PPA = [name for name in options("attack") if name.startswith("ppa")]
OF_IF_GMI = [name for name in options("attack") if name.startswith("if_gmi")]
ON_DIGITS = ("ppa_small", "ppa_upright_small", "ppa_masked")  # their numbers were measured before, cut and clamped


def sizes(**settings):
    """Widths and heights [N] of crops, in units of the image."""
    draws = RandomResizedCrop(**SELECTION, **settings).draw(MANY, seeds.generator("crops"))
    return draws[:, 0].abs(), draws[:, 1], draws


# crops that do not fit -------------------------------------------------------------------------------------------


def test_a_crop_that_does_not_fit_is_cut_to_the_image_or_drawn_again():
    clamped, redrawn = (torch.stack(sizes(fit=fit)[:2]) for fit in ("clamp", "redraw"))
    assert clamped.prod(0).mean() == pytest.approx(0.6973, abs=0.002)
    assert redrawn.prod(0).mean() == pytest.approx(0.6910, abs=0.002), "that of the original, below"
    assert (clamped == 1).any(0).float().mean() > 0.02, "cut crops touch both edges"
    assert (redrawn <= 1).all() and (redrawn == 1).any(0).float().mean() < 1e-3


def test_redrawn_crops_are_distributed_as_the_originals():
    image, torch_state = torch.empty(3, 1000, 1000, device="meta"), torch.random.get_rng_state()
    torch.manual_seed(0)
    original = Original(224, scale=SELECTION["scale"], ratio=SELECTION["ratio"])
    drawn = [original.make_params([image]) for _ in range(8000)]
    torch.random.set_rng_state(torch_state)
    theirs = {name: torch.tensor([one[name] for one in drawn]) / 1000 for name in ("width", "height", "left", "top")}
    width, height, draws = sizes(fit="redraw")
    left, top = (1 + draws[:, 2] - width) / 2, (1 + draws[:, 3] - height) / 2
    for name, ours in {"width": width, "height": height, "left": left, "top": top}.items():
        steps = torch.linspace(0.02, 0.98, 25)
        torch.testing.assert_close(ours.quantile(steps), theirs[name].quantile(steps), atol=0.012, rtol=0)
    assert (width * height).mean() == pytest.approx(float((theirs["width"] * theirs["height"]).mean()), abs=0.004)


@pytest.mark.parametrize(
    ("ratio", "expected"), [((0.8, 1.2), (1.0, 1.0)), ((2.0, 3.0), (1.0, 0.5)), ((0.25, 0.5), (0.5, 1.0))]
)
def test_where_none_of_ten_fits_it_is_the_largest_in_the_middle(ratio, expected):
    view = RandomResizedCrop(scale=(1.0, 1.0), ratio=ratio, fit="redraw")
    draws = view.draw(50, seeds.generator("none"))
    assert torch.equal(draws[:, :2], torch.tensor(expected).expand(50, 2))
    whole = RandomResizedCrop(scale=(1.0, 1.0), ratio=(0.8, 1.2), fit="clamp").draw(50, seeds.generator("none"))
    assert (whole[:, :2].amin(1) < 1).all()


def test_clamped_crops_are_those_of_before():
    """Tiny presets on digits were measured with them: five dice an image, in this order."""
    dice = torch.rand(6, 5, generator=seeds.generator("before"))
    area = 0.5 + 0.4 * dice[:, 0]
    low, high = torch.tensor(SELECTION["ratio"]).log()
    ratio = (low + (high - low) * dice[:, 1]).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    expected = [width, height, (1 - width) * (2 * dice[:, 2] - 1), (1 - height) * (2 * dice[:, 3] - 1)]
    draws = RandomResizedCrop(**SELECTION).draw(6, seeds.generator("before"))
    assert torch.equal(draws, torch.stack(expected, 1))


def test_another_fit_is_refused():
    with pytest.raises(Refused, match="views.fit: got 'cut'; choices: clamp, redraw"):
        RandomResizedCrop(fit="cut")


# images that are not cut -----------------------------------------------------------------------------------------


class Bright(Prior):
    """Latents are the colour of their image, also beyond [0, 1]."""

    def decode(self, latents):
        return latents.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def asked(select, pixels=None):
    """What the target is asked about by a selection among colours -.5 and 1.5, and the scores."""
    seen = []

    def oracle(images, ids, reads):
        seen.append(images.clone())
        return Answer(probs=images.mean((1, 2, 3))[:, None] / 2)

    latents = torch.tensor([[-0.5], [1.5]])
    evidence = Evidence(torch.tensor([0]), torch.tensor([0]))
    common = {"state": {}, "objective": None, "views": None, "reads": (), "chunk": None, "device": torch.device("cpu")}
    problem = Problem(
        prior=Bright(channels=1, size=4), oracle=oracle, evidence=evidence, rng=seeds.generator("rng"), **common
    )
    found = Found(latents, torch.zeros(2), torch.tensor([0, 0]), "optimised", pixels=pixels)
    scores = select(problem, found)
    return torch.cat(seen), scores


def test_selection_asks_about_cut_images_or_as_they_are_made():
    cut, scores = asked(TargetConfidence(keep=1))
    assert cut.unique().tolist() == [0.0, 1.0] and scores.tolist() == [0.0, 0.5]
    made, scores = asked(TargetConfidence(keep=1, clip=False))
    assert made.unique().tolist() == [-0.5, 1.5] and scores.tolist() == [-0.25, 0.75]
    kept, _ = asked(TargetConfidence(keep=1, clip=False), pixels=torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
    assert kept.unique().tolist() == [1.0], "pixels that were kept are cut already"


# one switch ------------------------------------------------------------------------------------------------------


def habits(view):
    return view.shared, view.fit


def built(name, *overrides):
    return node("attack", "attack", "dataset=digits", f"attack={name}", *overrides).build()


@pytest.mark.parametrize("name", OF_PPA)
def test_ppa_follows_the_original_in_its_presets_and_wholly_under_legacy(name):
    plain, legacy = built(name), built(name, "attack.legacy=true")
    if name == "ppa_masked":
        plain_views, legacy_views = (attack.select.views.members["crop"] for attack in (plain, legacy))
        searched = legacy.views.members["crop"]
    else:
        plain_views, legacy_views, searched = plain.select.views, legacy.select.views, legacy.views
    digits = name in ON_DIGITS
    assert (plain.select.clip, habits(plain_views)) == (digits, (False, "clamp" if digits else "redraw"))
    assert (legacy.select.clip, habits(legacy_views)) == (False, (True, "redraw"))
    assert habits(searched) == (True, "redraw") and legacy.parts["views"] is legacy.views
    assert (legacy.select.keep, legacy.select.repeats) == (plain.select.keep, plain.select.repeats)
    assert (legacy_views.scale, legacy_views.ratio, legacy_views.flip) == (
        plain_views.scale,
        plain_views.ratio,
        plain_views.flip,
    )


@pytest.mark.parametrize("name", OF_IF_GMI)
def test_if_gmi_shares_its_views_under_legacy(name):
    assert habits(built(name).views) == (False, "clamp")
    legacy = built(name, "attack.legacy=true")
    assert legacy.views.shared and type(legacy.select).__name__ == "Everything"
    assert legacy.views.scale == built(name).views.scale


def test_an_attack_without_such_parts_refuses_the_switch():
    with pytest.raises(
        Refused, match="attack.legacy: expected an attack with parts that can be run as published or not"
    ):
        built("gmi", "attack.legacy=true")


def test_the_switch_stands_in_the_recipe_only_where_it_is_set():
    def recipe(*overrides):
        config = composed("attack", "dataset=digits", "attack=ppa", *overrides)[0]["attack"]
        return bind(config, "attack").recipe()

    assert recipe("attack.legacy=true")["legacy"] is True and "legacy" not in recipe()


def test_a_chain_of_views_that_are_published_as_they_are_stays():
    erase, crop = RandomErase(), RandomResizedCrop()
    alone = Chain(members={"erase": erase})
    assert alone.as_published() is alone
    both = Chain(members={"crop": crop, "erase": erase}).as_published()
    assert habits(both.members["crop"]) == (True, "redraw") and both.members["erase"] is erase
    assert both.draw(3, seeds.generator("chain")).shape == (3, both.columns)


# the GANs of GMI's columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gmi", {"epochs": 120, "learning_rate": 2e-4}),
        ("gmi_paper", {"epochs": 280, "learning_rate": 2e-4}),
        ("gmi_mnist_paper", {"epochs": 100, "learning_rate": 2e-4}),
        ("gmi_dmi_celeba", {"epochs": 300, "learning_rate": 2e-4}),
        ("gmi_dmi_mnist", {"epochs": 300, "learning_rate": 4e-3}),
        ("gmi_toolbox", {"steps": 150_000, "learning_rate": 2e-4}),
    ],
)
def test_a_column_of_gmi_trains_its_gan_as_there(name, expected):
    """Card gmi.md, section 5."""
    prior = composed("attack", "dataset=digits", f"attack={name}")[0]["prior"]
    assert {key: prior[key] for key in expected} == expected
