"""An auxiliary image of each victim (GMI): what hides a part of it, the evidence, the prior that completes it, and a
reconstruction that is matched with the image it answers."""

import math

import conftest
import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.attacks.base import run_group
from midefense.datasets.toy import Toy
from midefense.evidence.auxiliary import AuxiliaryImages
from midefense.metrics.base import Metric, over_classes
from midefense.metrics.intervals import POSITIVE
from midefense.obscuring import Blur, Mask, RandomMask, completed
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.priors.inpainting import InpaintingGan, diversity, part_of
from midefense.priors.nets.inpainting import InpaintingGenerator
from midefense.types import Refused, Trace

WORLD = (
    "dataset=toy",
    "dataset.classes=3",
    "dataset.public_classes=3",
    "dataset.images_per_class=6",
    "dataset.test_images_per_class=2",
    "architecture=mlp",
    "architecture.widths=[8]",
    "recipe.epochs=1",
    "prior.width=2",
    "prior.latent_size=5",
    "prior.steps=2",
    "prior.batch_size=4",
    "attack.init.candidates=2",
    "attack.search.steps=3",
    "attack.group=2",
    "compute.threads=1",
    "tracking=none",
)
JUDGED = (
    "evaluators.main.recipe.epochs=1",
    "evaluators.main.architecture.widths=[4,4]",
    "judge_at_chance=true",
    "allow=[test_auxiliary]",
    "metrics=utility",
    "+metrics.matched={_target_: test_auxiliary.KnownError}",
)


def seen_of(obscuring, images, seed=0):
    return obscuring(images, obscuring.draw(len(images), seeds.generator("dice", seed)))


def pictures(count=4, channels=1, size=32):
    return torch.rand(count, channels, size, size, generator=seeds.generator("pictures"))


# What hides


@pytest.mark.parametrize(
    ("boxes", "size", "pixels"),
    [
        ([[0.15, 0.85, 0.15, 0.85]], 64, 44 * 44),
        ([[0.390625, 0.625, 0.15625, 0.8125], [0.625, 0.984375, 0.40625, 0.59375]], 64, 906),  # card secret_gen.md
        ([[0, 1, 0, 0.5]], 32, 512),
    ],
)
def test_a_mask_hides_its_rectangles_and_nothing_else(boxes, size, pixels):
    images = pictures(channels=3, size=size)
    seen = seen_of(Mask(boxes=boxes, fill=[0.5, 0.25, 0.0]), images)
    hidden = seen[:, 3:].bool().expand(-1, 3, -1, -1)
    assert seen.shape == (4, 4, size, size) and seen[:, 3].flatten(1).sum(1).tolist() == [pixels] * 4
    assert torch.equal(seen[:, :3][~hidden], images[~hidden]), "what is known is the image's own, to the bit"
    assert (seen[:, :3].transpose(0, 1)[:, seen[:, 3].bool()] == torch.tensor([[0.5], [0.25], [0.0]])).all()
    grey = seen_of(Mask(boxes=boxes, fill=[0.5, 0.25, 0.0]), images[:, :1])
    assert (grey[:, 0][grey[:, 1].bool()] == 0.25).all(), "the mean of the colours"


def test_a_random_mask_is_that_of_its_dice():
    mask, images = RandomMask(scale=[0.2, 0.5], ratio=[0.5, 2.0]), pictures(count=200)
    seen = seen_of(mask, images)
    shares = seen[:, 1].flatten(1).mean(1)
    assert 0.17 < shares.min() < 0.25 < 0.4 < shares.max() < 0.53 and len(shares.unique()) > 50
    alone = mask(images[7:8], mask.draw(200, seeds.generator("dice", 0))[7:8])
    assert torch.equal(alone[0], seen[7])


def test_a_blur_is_a_gaussian_and_keeps_no_pixel():
    dot = torch.zeros(1, 1, 64, 64)
    dot[..., 32, 32] = 1
    seen = seen_of(Blur(deviation=0.05), dot)
    assert (seen[:, 1] == 1).all(), "no pixel is known for certain"
    s = 0.05 * 64
    expected = math.exp(-(3**2 + 2**2) / (2 * s * s)) / (2 * math.pi * s * s)
    assert seen[0, 0, 35, 30].item() == pytest.approx(expected, rel=0.01) and seen[0, 0].sum().item() == pytest.approx(
        1
    )
    images = pictures(channels=3)
    even = torch.full_like(images, 0.3)
    torch.testing.assert_close(seen_of(Blur(), even)[:, :3], even)
    near, far = ((seen_of(Blur(deviation=d), images)[:, :3] - images).square().mean() for d in (0.01, 0.2))
    assert 0 < near < far


def test_a_completion_is_the_picture_where_it_is_known():
    images, made = pictures(), torch.zeros(4, 1, 32, 32)
    seen = seen_of(Mask(), images)
    hidden = seen[:, 1:].bool()
    whole = completed(seen, made)
    assert torch.equal(whole[~hidden], images[~hidden]) and (whole[hidden] == 0).all()
    assert torch.equal(completed(seen_of(Blur(), images), made), made)


# The evidence


@pytest.fixture(scope="module")
def splits():
    return Toy(classes=3, public_classes=3, images_per_class=6, test_images_per_class=2).load()


def collected(splits, **changes):
    source = AuxiliaryImages(**{"obscuring": Mask(), **changes})
    return source.observe(source.collect(splits), splits, None)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_row_per_private_image_by_its_id(splits, part):
    evidence = collected(splits, classes=[2, 0], images=2, part=part)
    assert evidence.labels.tolist() == [2, 2, 0, 0] and len(set(evidence.ids.tolist())) == 4
    private = getattr(splits, f"private_{part}")
    for label, image_id, seen in zip(evidence.labels, evidence.ids, evidence.observed, strict=True):
        row = int((private.ids == image_id).nonzero())
        assert private.labels[row] == label
        known = seen[1] == 0
        assert torch.equal(seen[0][known], private.floats()[row, 0][known])


def test_an_image_is_hidden_alike_whichever_others_are_attacked(splits):
    draws = {"obscuring": RandomMask(), "images": 2}
    all_of_them, one = collected(splits, **draws), collected(splits, classes=[1], **draws)
    assert torch.equal(all_of_them.observed[all_of_them.labels == 1], one.observed)
    assert not torch.equal(one.observed, collected(splits, classes=[1], seed=1, **draws).observed)


def test_what_the_dataset_has_not_is_refused(splits):
    with pytest.raises(
        Refused, match="evidence.images: expected at most 6, the private train images of class private 0"
    ):
        collected(splits, images=7)
    with pytest.raises(Refused, match="evidence.part: got 'all'; choices: train, test"):
        AuxiliaryImages(obscuring=Mask(), part="all")
    with pytest.raises(Refused, match=r"evidence.classes: expected class numbers from 0 to 2 .*, got \[3\]"):
        collected(splits, classes=[3])


# The prior


class Net(nn.Module):
    """A target whose features are the pixels."""

    def forward(self, images, taps=()):
        features = images.flatten(1)
        return Trace(features[:, :3], features)


def prior(**changes):
    options = {"latent_size": 5, "width": 2, "batch_size": 4, "steps": 2, "unit": 1, "obscuring": Mask(), **changes}
    with seeds.isolated("prior"):
        return InpaintingGan(channels=1, size=32, **options).eval()


def test_the_generator_has_the_weights_of_the_card():
    generator = InpaintingGenerator(latent_size=100, channels=3, size=64, width=64)
    assert sum(weights.numel() for weights in generator.parameters()) == 6_996_259
    assert prior().part_critic(torch.rand(2, 1, 16, 16)).shape == (2,)


def test_diversity_is_a_ratio_of_means():
    first, second = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert diversity(first, second, torch.tensor([[0.5]]), torch.tensor([[-0.5]])).item() == 2
    assert diversity(first, first, torch.tensor([[0.5]]), torch.tensor([[-0.5]])).item() == 0


def test_a_part_is_a_quarter_of_the_image():
    images = pictures()
    assert torch.equal(part_of(images), images[..., 8:24, 8:24])
    assert torch.equal(part_of(images, torch.tensor([16, 3])), images[..., 16:32, 3:19])


def test_each_row_completes_its_own_picture():
    model, images = prior(), pictures(3)
    seen = seen_of(Mask(), images)
    view = model.given(seen)
    latents = view.of_rows(view.sample(6, seeds.generator("draw")), torch.tensor([0, 0, 1, 1, 2, 2]))
    made = view.decode(latents)
    known = seen[:, 1:].repeat_interleave(2, 0) == 0
    assert torch.equal(made[known], images.repeat_interleave(2, 0)[known])
    assert not torch.equal(made[0], made[1]), "another latent is another completion"
    assert model.decode(model.sample(2, seeds.generator("draw"))).shape == (2, 1, 32, 32), "examples without evidence"
    assert model._observed is None and all(a is b for a, b in zip(model.parameters(), view.parameters(), strict=True))
    for wrong in (None, seen[:, :1], torch.rand(2, 8)):
        with pytest.raises(
            Refused, match=r"completes pictures, expected evidence of obscured images \[N, C \+ 1, S, S\]"
        ):
            model.given(wrong)


def test_agreement_is_free_for_masks_and_costs_a_blur(splits):
    """After the same draws, only what a mask cannot disagree about is equal to the bit."""
    ends = {}
    for obscuring in (Mask(), Blur()):
        for weight in (0.0, 50.0):
            model = prior(obscuring=obscuring, agreement_weight=weight)
            list(model.fit(splits.public, seed=1, oracle=Oracle(Net(), "whitebox")))
            ends[type(obscuring), weight] = model.generator.state_dict()

    def moved(kind):
        pairs = zip(ends[kind, 0.0].values(), ends[kind, 50.0].values(), strict=True)
        return max(float((a.float() - b.float()).abs().max()) for a, b in pairs)

    assert moved(Mask) < 1e-6 < 1e-4 < moved(Blur)


# The attack


def attack_of(*words):
    return conftest.plan_for("attack", *WORLD, "attack=gmi_masked", *words, store="/nowhere").attack.build()


def test_six_targets_in_one_group_or_in_three_end_alike(splits):
    """With the same starts; what was observed goes with the rows of a group."""
    source = AuxiliaryImages(obscuring=Mask(), images=2)
    evidence = source.observe(source.collect(splits), splits, None)
    model, attack = prior().requires_grad_(False), attack_of()
    starts = torch.randn(12, 5, generator=seeds.generator("starts"))

    def found(rows):
        begin, view = starts[2 * rows.start : 2 * rows.stop], prior().requires_grad_(False)
        view.sample = lambda count, rng: torch.cat([begin, torch.zeros(count, 1)], 1)
        group = run_group(attack, {}, view, Oracle(Net(), "whitebox"), evidence.take(rows), seeds.generator("group"))
        *_, (last, why) = group
        assert why == ""
        return model.given(evidence.observed[rows]).decode(last.latents), last.latents[:, :-1]

    together = found(slice(0, 6))
    apart = [found(slice(start, start + 2)) for start in (0, 2, 4)]
    for whole, parts in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):  # had every group looked at the first pictures, this would be all the same
        torch.testing.assert_close(together[0][:4], torch.cat([apart[1][0], apart[2][0]]), rtol=1e-4, atol=1e-5)


class KnownError(Metric):
    """Mean squared error against the private image that a reconstruction answers, where it was shown to the attacker,
    and where it was not."""

    higher_leaks = False

    def rows(self, judged, world):
        error = (judged.images - world.private(judged.ids)).square()
        hidden = seen_of(Mask(), judged.images)[:, 1:].bool()
        return {"known": (error * ~hidden).sum((1, 2, 3)), "hidden": (error * hidden).sum((1, 2, 3))}

    def measure(self, rows, world):
        return {
            f"{name}_error": over_classes(rows[name], rows["label"], higher_leaks=False, span=POSITIVE)
            for name in ("known", "hidden")
        }


def test_end_to_end_a_reconstruction_is_matched_with_its_image(store):
    words = (*WORLD, "attack=gmi_masked", "evidence.images=2", *JUDGED)
    pipeline = Pipeline(conftest.plan_for("evaluate", *words, store=store))
    metrics, recovered = pipeline.result.metrics, pipeline.recovered
    tensors = recovered.tensors()
    assert recovered.recipe["ids"] == tensors["evidence.ids"].tolist() and len(recovered.recipe["ids"]) == 6
    assert tensors["evidence.observed"].shape == (6, 2, 32, 32)
    assert tensors["queries"].tolist() == [2 * 3] * 6, "each image is charged for its own questions"
    assert metrics["metrics"]["known_error"]["value"] == 0 and metrics["metrics"]["hidden_error"]["value"] > 0
    floor = metrics["anchors"]["prior"]
    assert floor["known_error"] == 0 and floor["hidden_error"] > 0, "the floor completes the same pictures"
    assert pipeline.prior.artefact.provenance["bill"]["shared_queries"] == 2 * 2 * 4


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ("evidence=class_labels",),
            "evidence: expected obscured images, because InpaintingGan completes pictures, got ",
        ),
        (("evidence.obscuring.fill=0.5",), "evidence.obscuring: expected what the prior learned to complete"),
        (("evidence=auxiliary_images",), "evidence.obscuring: expected what the prior learned to complete"),
        (("attack/init=best_of_pool",), "expected a prior whose images may be of any target"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_the_plan(store, words, complaint):
    world = [word for word in WORLD if not (word.startswith("attack.init") and "attack/init=best_of_pool" in words)]
    with pytest.raises(Refused, match=complaint):
        conftest.plan_for("attack", *world, "attack=gmi_masked", *words, store=store)


def test_gmi_without_the_picture_takes_the_same_evidence(store):
    """The attack that knows no more than the class is the baseline on the same targets."""
    plan = conftest.plan_for("attack", *WORLD, "attack=gmi", "prior=gmi_gan", "evidence=masked_images", store=store)
    assert isinstance(plan.evidence.build(), AuxiliaryImages)


def test_a_prior_learns_from_somebody(splits):
    with pytest.raises(Refused, match="InpaintingGan: expected a target to learn from, got none"):
        prior().fit(splits.public, seed=0)
