"""SecretGen: blanked views, votes, what they cost, labels that nobody is told, and a prior that asks no target."""

import functools

import conftest
import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy, PlacedRealism, Weighted, WeightedSum
from midefense.attacks.problem import Problem
from midefense.attacks.search.distribution import Distribution
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.search.voting import Ballot, Voted, blanks
from midefense.attacks.select import Everything, TargetConfidence
from midefense.datasets.toy import Toy
from midefense.obscuring import Mask, completed
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.priors.base import Prior
from midefense.priors.inpainting import part_of, parts_of
from midefense.priors.inpainting_public import PublicInpaintingGan
from midefense.types import Evidence, Found, Images, Refused, Trace

MIDDLE = Mask(boxes=((0.25, 0.75, 0.25, 0.75),), fill=0.4)
SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)


def seen_of(images):
    return MIDDLE(images, torch.zeros(len(images), 0))


# Views


@pytest.mark.parametrize(("side", "cells"), [(64, 4), (32, 4), (30, 4), (8, 1)])
def test_the_cells_tile_the_image(side, cells):
    hidden = blanks(side, cells)
    assert hidden.shape == (1 + cells**2, 1, side, side) and not hidden[0].any()
    assert (hidden[1:].sum(0) == 1).all(), "each pixel is blanked in one view"
    if side % cells == 0:
        assert hidden[1:].flatten(1).sum(1).unique().tolist() == [(side // cells) ** 2]
    assert len(blanks(side, 0)) == 1


def test_a_part_lies_where_it_is_placed_and_may_lie_anywhere_it_fits():
    images = torch.rand(3, 1, 8, 8, generator=seeds.generator("images"))
    places = torch.tensor([[0.0, 0.0], [0.5, 0.99], [0.3, 0.7]])
    parts = parts_of(images, places)
    for image, part, corner in zip(images, parts, ([0, 0], [2, 4], [1, 3]), strict=True):
        assert torch.equal(part, part_of(image[None], torch.tensor(corner))[0])


# Votes


class Colours(Prior):
    """Completions whose first latent is the brightness of what was hidden; the critics like .5 best."""

    held, completes = 1, True
    offers = frozenset({"sample", "realism", "places"})

    def __init__(self, seen):
        super().__init__(channels=1, size=seen.shape[-1])
        self.seen = seen

    def given(self, observed):
        return self if observed is None else Colours(observed)

    def sample(self, count, rng):
        return torch.cat([torch.randn(count, 2, generator=rng), torch.zeros(count, 1)], 1)

    def of_rows(self, latents, rows):
        return torch.cat([latents[:, :-1], rows[:, None].to(latents)], 1)

    def decode(self, latents):
        made = torch.sigmoid(2 * latents[:, 0])[:, None, None, None].expand(-1, 1, self.size, self.size)
        return completed(self.seen[latents[:, -1].detach().long()], made)

    def realism_at(self, drawn, places):
        return -(drawn - 0.5).square().mean((1, 2, 3)) + 0.01 * places.sum(1)


class Brightness(nn.Module):
    """Three classes by mean brightness of the middle; counts what it is asked."""

    def forward(self, images, taps=()):
        level = images[..., 4:12, 4:12].mean((1, 2, 3))
        centres = torch.tensor([0.2, 0.5, 0.8], device=images.device)
        return Trace(-200 * (level[:, None] - centres).square(), level[:, None])


def world(targets=3, labels=None):
    images = torch.rand(targets, 1, 16, 16, generator=seeds.generator("images"))
    labels = torch.arange(targets) % 3 if labels is None else torch.tensor(labels)
    return Evidence(labels, torch.arange(10, 10 + targets), seen_of(images))


def attack_of(objective=None, select=None, access="scores", candidates=1, **options):
    descent = Gradient(optimizer=SGD, steps=5, box=1.0)
    return SearchAttack(
        init=Random(candidates=candidates),
        objective=objective or PlacedRealism(),
        search=Voted(descent=descent, **{"draws": 8, "fill": 0.4, **options}),
        select=select or Everything(),
        access=access,
    )


WHITE_BOX = WeightedSum(
    terms={
        "identity": Weighted(loss=CrossEntropy(), weight=100.0),
        "realism": Weighted(loss=PlacedRealism(), weight=1.0),
    }
)


def run(attack, evidence, oracle=None, seed=0):
    oracle = oracle or Oracle(Brightness(), attack.access, attack.budget, ids=evidence.ids.tolist())
    steps = run_group(attack, {}, Colours(evidence.observed), oracle, evidence, seeds.generator("group", seed))
    return [(found.detached(), why) for found, why in steps], oracle


@pytest.mark.parametrize(
    ("attack", "each"),
    [
        (functools.partial(attack_of), 8 * 17),  # ini-bb: completions and views, and nothing more
        (functools.partial(attack_of, labels="told"), 8),  # full-bb
        (functools.partial(attack_of, cells=0), 8),
        (functools.partial(attack_of, cells=2), 8 * 5),
        (functools.partial(attack_of, answers="labels", access="labels"), 8 * 17),
        (functools.partial(attack_of, WHITE_BOX, TargetConfidence(), "whitebox"), 8 * 17 + 5 + 1),  # ini-wb
        (functools.partial(attack_of, WHITE_BOX, TargetConfidence(), "whitebox", asked_twice=True), 8 * 18 + 5 + 1),
        (functools.partial(attack_of, WHITE_BOX, TargetConfidence(), "whitebox", labels="told", asked_twice=True), 22),
        (functools.partial(attack_of, WHITE_BOX, TargetConfidence(), "whitebox", candidates=3), 8 * 17 + 3 * 6),
    ],
)
def test_what_a_picture_costs_is_the_closed_form(attack, each):
    steps, oracle = run(attack(), world())
    assert oracle.bill == {10: each, 11: each, 12: each} and oracle.shared_bill == 0
    assert len(steps) == 1 + 8 + 5 + 1


def test_a_label_is_voted_by_all_views_and_nobody_is_told_it():
    """The evidence's labels are wrong on purpose: nothing may come of them."""
    told, untold = world(labels=[0, 1, 2]), world(labels=[2, 2, 0])
    (left, _), (right, _) = (run(attack_of(WHITE_BOX, TargetConfidence(), "whitebox"), x) for x in (told, untold))
    for (one, _), (other, _) in zip(left, right, strict=True):
        assert torch.equal(one.latents, other.latents)
    assert torch.equal(left[-1][0].scores, right[-1][0].scores), "the selection goes by the vote, too"
    known = [run(attack_of(WHITE_BOX, TargetConfidence(), "whitebox", labels="told"), x)[0] for x in (told, untold)]
    assert not torch.equal(known[0][-1][0].latents, known[1][-1][0].latents)


def test_the_label_found_is_that_of_the_completion():
    steps, oracle = run(attack_of(draws=40), world())
    votes = steps[40][0]
    with torch.no_grad():
        told = Oracle(Brightness(), "labels")(Colours(world().observed).decode(votes.latents), reads=("labels",)).labels
    assert torch.equal(votes.labels, told) and steps[-1][0].labels is not None
    assert (votes.loss < 0.6).all() and steps[1][0].loss.mean() >= votes.loss.mean()


def test_black_box_asks_nothing_of_the_target_once_it_has_voted():
    class Blind(Oracle):
        def __call__(self, images, *args, **options):
            assert not images.requires_grad
            return super().__call__(images, *args, **options)

    evidence = world()
    oracle = Blind(Brightness(), "scores", ids=evidence.ids.tolist())
    steps, _ = run(attack_of(), evidence, oracle)
    assert not torch.equal(steps[8][0].latents, steps[-1][0].latents), "and still it descends"


def test_labels_alone_give_the_same_bits_from_an_oracle_of_scores():
    evidence = world()
    paths = [run(attack_of(answers="labels", access=access), evidence)[0] for access in ("labels", "scores")]
    for (left, _), (right, _) in zip(*paths, strict=True):
        assert torch.equal(left.latents, right.latents)
        assert left.stage == "initial" or torch.equal(left.labels, right.labels)


def test_a_label_that_no_completion_was_given_leaves_the_start_as_it_was_drawn():
    class Dark(Brightness):
        def forward(self, images, taps=()):
            return Trace(torch.tensor([[5.0, 0, 0]]).expand(len(images), 3), images.flatten(1)[:, :1])

    evidence = world(labels=[2, 2, 2])
    attack = attack_of(labels="told", candidates=2)
    steps, _ = run(attack, evidence, Oracle(Dark(), "scores", ids=evidence.ids.tolist()))
    start, voted = steps[0][0], steps[8][0]
    assert torch.equal(voted.latents, start.latents) and (voted.loss == 1).all()
    assert voted.latents[:, :2].abs().max() > 1, "outside the box, until the first step"


def ballot_of(answers, labels, starts=1, guesses=True):
    """A ballot of one target: `answers` are (whole, average) per completion; latents count from 1."""
    evidence = Evidence(torch.tensor([labels]), torch.tensor([0]))
    problem = Problem.plain(Colours(world(1).observed), None, evidence, seeds.generator("ballot"))
    begin = Found(torch.zeros(starts, 3), torch.zeros(starts), torch.zeros(starts, dtype=torch.int64), "initial")
    ballot = Ballot(problem, begin, guesses)
    for number, (whole, average) in enumerate(answers, start=1):
        ballot.add(torch.full((1, 3), float(number)), torch.tensor([average]), torch.tensor([whole]))
    return ballot.best()


def test_the_label_of_most_votes_must_have_been_given_to_a_whole_completion():
    answers = [
        ([0.6, 0.4, 0.0], [0.1, 0.2, 0.7]),
        ([0.1, 0.9, 0.0], [0.1, 0.3, 0.6]),
        ([0.2, 0.8, 0.0], [0.2, 0.2, 0.6]),
    ]
    found = ballot_of(answers, -1)
    assert found.labels.tolist() == [1], "class 2 has most votes, and no completion"
    assert found.latents[0, 0] == 2 and found.loss.item() == pytest.approx(0.1), "the surest of class 1"
    several = ballot_of(answers, -1, starts=3)
    assert several.latents[:, 0].tolist() == [2, 3, 0], "then the next, then the start"
    told = ballot_of(answers, 0, guesses=False)
    assert told.labels is None and told.latents[0, 0] == 1


def test_what_was_found_stands_when_the_budget_ends():
    evidence = world()
    oracle = Oracle(Brightness(), "scores", budget=60, ids=evidence.ids.tolist())
    steps, _ = run(attack_of(), evidence, oracle)
    assert "the budget is 60" in steps[-1][1] and steps[-1][0].stage == "optimised"
    assert max(oracle.bill.values()) <= 60


def test_each_target_ends_alike_in_any_company():
    """What is drawn is drawn for the group; what comes of a draw depends on no other picture, nor on the chunk."""
    evidence = world(4)
    attack = attack_of(WHITE_BOX, TargetConfidence(), "whitebox")
    whole = run(attack, evidence)[0][-1][0]
    attack.chunk = 3
    cut = run(attack, evidence)[0][-1][0]
    torch.testing.assert_close(whole.latents, cut.latents, rtol=1e-4, atol=1e-5)


def test_dice_of_an_objective_are_drawn_anew_in_every_step_and_only_by_searches_that_draw_them():
    seen = []

    class Watched(PlacedRealism):
        def __call__(self, look):
            seen.append(look.dice.clone())
            return super().__call__(look)

    run(attack_of(Watched()), world())
    assert len(torch.stack(seen).flatten(0, 1).unique(dim=0)) == 15 and torch.stack(seen).max() < 1
    seen.clear()
    run(attack_of(Watched(shared=True)), world())
    assert len(torch.stack(seen).flatten(0, 1).unique(dim=0)) == 5
    with pytest.raises(Refused, match="draws anew in every step: expected a search that hands it its dice"):
        SearchAttack(
            init=Random(),
            objective=PlacedRealism(),
            search=Distribution(optimizer=SGD, steps=2),
            select=Everything(),
        )


# The prior


def public_prior(**changes):
    classifier = functools.partial(CNN, widths=[4], features=4, size=32)
    options = {"latent_size": 5, "width": 2, "batch_size": 4, "steps": 3, "lessons": 3, "unit": 2, **changes}
    with seeds.isolated("prior"):
        return PublicInpaintingGan(channels=1, size=32, obscuring=MIDDLE, classifier=classifier, **options).eval()


@functools.cache
def public():
    return Toy(classes=3, public_classes=3, images_per_class=6, test_images_per_class=2).load().public


def test_a_prior_of_the_attacker_s_own_features_asks_nobody_and_resumes_to_the_same_bits():
    def fitted(stop=None, state=None):
        prior = public_prior()
        assert prior.asks is None and prior.fit_steps(public()) == 6
        for number, (_, _, give) in enumerate(prior.fit(public(), seed=1, state=state), start=1):
            state = {name: value.clone() for name, value in give().items()}
            if number == stop:
                break
        return prior.state_dict(), state

    whole = fitted()[0]
    for stop in (1, 2):  # within the lessons, and behind them
        resumed = fitted(state=fitted(stop)[1])[0]
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert not any(name.startswith("classifier") for name in whole)


def test_who_shows_one_person_teaches_no_features():
    images = public()
    one = Images(images.pixels, torch.zeros_like(images.labels), images.ids, ["somebody"])
    with pytest.raises(Refused, match="expected public images of two or more people to learn to tell apart, got 1"):
        public_prior().fit(one, seed=0)


# The whole


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
    "attack.group=2",
    "attack.search.draws=3",
    "attack.search.descent.steps=2",
    "compute.threads=1",
    "tracking=none",
)


def test_end_to_end_the_labels_it_went_by_are_stored_with_what_was_found(store):
    words = (*WORLD, "attack=secret_gen_scores_small", "prior.lessons=2", "prior.classifier.widths=[2]")
    pipeline = Pipeline(conftest.plan_for("attack", *words, store=store))
    tensors = pipeline.recovered.tensors()
    assert tensors["selected.labels"].shape == tensors["evidence.labels"].shape == (3,)
    assert tensors["selected.labels"].min() >= 0 and tensors["queries"].tolist() == [3 * 17] * 3
    assert pipeline.prior.artefact.provenance["bill"]["shared_queries"] == 0
    right = tensors["selected.labels"] == tensors["evidence.labels"]
    assert pipeline.recovered.metrics["labels_right"] == pytest.approx(float(right.float().mean()))
    view = pipeline.prior.prior.given(tensors["evidence.observed"])
    shown = view.decode(view.of_rows(tensors["selected.latents"], tensors["selected.evidence"]))
    known = tensors["evidence.observed"][:, 1:] == 0
    assert torch.equal(shown[known], tensors["evidence.observed"][:, :1][known]), "known pixels to the bit"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ("prior=gmi_gan", "evidence=class_labels", "attack/objective=gmi"),
            "Voted.: expected a prior that completes what was observed, got GmiGan",
        ),
        (("prior=gmi_gan", "evidence=class_labels"), "needs a prior that offers places, GmiGan offers"),
        (("attack.access=scores",), "access=scores hides"),
        (("attack.search.labels=known",), "attack.search.labels: got 'known'; choices: told, voted"),
        (("attack.search.answers=logits",), "attack.search.answers: got 'logits'; choices: probs, labels"),
        (("attack.search.cells=33",), "attack.search.cells: expected at most 32, the side of an image, got 33"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_plan(store, words, complaint):
    world = [word for word in WORLD if not word.startswith(("attack.search", "prior."))]
    with pytest.raises(Refused, match=complaint):
        conftest.plan_for("attack", *world, "attack=secret_gen_small", *words, store=store)
