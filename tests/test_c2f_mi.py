"""C2FMI: what its mapping reads, where its coarse stage starts, how its populations are bred, and what it costs."""

import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import plan_for
from learned_doubles import Quarters, Student

from midefense import seeds
from midefense.architectures.inverters import ScoreMapping
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.coarse import Coarse, mapping_input, pseudo_predictions
from midefense.attacks.embedding import Embedding, Pretrained, PublicLabels
from midefense.attacks.init import Random
from midefense.attacks.learning import Learning
from midefense.attacks.problem import Look, Problem
from midefense.attacks.scores import Score
from midefense.attacks.search.evolution import Evolution
from midefense.attacks.select import LowestLoss
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.priors.pixels import Pixels
from midefense.priors.toy import ToyFamily
from midefense.types import Answer, Evidence, Images, Refused, Trace

PRIOR = ToyFamily(channels=1, size=16).requires_grad_(False)
EVIDENCE = Evidence(torch.tensor([0, 2, 3]), torch.tensor([10, 12, 13]))
ADAM = functools.partial(torch.optim.Adam, lr=0.02)
DRAWS = torch.Generator().manual_seed(0)


def public(count=50, classes=5):
    pixels = torch.randint(256, (count, 1, 16, 16), dtype=torch.uint8, generator=DRAWS)
    return Images(pixels, torch.arange(count) % classes + 7, torch.arange(count), list("abcdefghijklm"))


PUBLIC = public()


# what the mapping reads ------------------------------------------------------------------------------------------


def test_the_pseudo_prediction_is_one_of_a_sure_target():
    """Card, section 8: .2635 at the label, .0417 elsewhere on average, of 526 classes."""
    labels = torch.tensor([3, 500])
    told = pseudo_predictions(labels, torch.randn(2, 526, generator=DRAWS))
    read = mapping_input(told)
    assert (read >= 0).all() and torch.allclose(read.norm(dim=1), torch.ones(2)) and torch.equal(read.argmax(1), labels)
    at_label = read.gather(1, labels[:, None])
    assert at_label.mean().item() == pytest.approx(0.2635, abs=2e-3)
    assert ((read.sum(1) - at_label[:, 0]) / 525).mean().item() == pytest.approx(0.0417, abs=2e-4)


def test_a_mapping_of_one_score_reads_a_label():
    scores = torch.randn(20, 6, generator=DRAWS).softmax(1)
    assert torch.equal(mapping_input(scores, top=1), F.one_hot(scores.argmax(1), 6).float())
    assert torch.allclose(mapping_input(scores * 3, top=1), mapping_input(scores, top=1))
    scaled = mapping_input(scores * 1e-3) - mapping_input(scores)
    assert scaled.abs().max() > 1e-3, "the logarithm of the scale is added before the norm"


@pytest.mark.parametrize("top", [None, 1, 3, 100])
def test_scores_of_zero_and_ties_are_borne(top):
    scores = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    read = mapping_input(scores, top)
    assert read.isfinite().all() and (read >= 0).all()
    assert torch.allclose(read.norm(dim=1), torch.ones(3))


# the fitness -----------------------------------------------------------------------------------------------------


def test_the_score_of_a_target_that_tells_a_few():
    probs = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0]])
    nothing, labels = torch.zeros(3, 1), torch.tensor([1, 1, 0])
    look = Look(nothing, nothing, nothing, nothing, Answer(probs=probs), labels, PRIOR)
    torch.testing.assert_close(Score()(look), torch.tensor([-0.3, -0.2, -0.0]))
    torch.testing.assert_close(Score(top=2)(look)[:2], torch.tensor([-0.3, 0.7]))
    torch.testing.assert_close(Score(top=1)(look), torch.tensor([0.6, 0.4, 1.0]))


def test_the_least_score_is_not_lost_to_rounding():
    probs = torch.tensor([[1e-12, 1.0], [2e-12, 1.0]])
    nothing = torch.zeros(2, 1)
    look = Look(nothing, nothing, nothing, nothing, Answer(probs=probs), torch.zeros(2, dtype=torch.int64), PRIOR)
    worse, better = Score()(look)
    assert better < worse


# evolution -------------------------------------------------------------------------------------------------------


class Prototypes(torch.nn.Module):
    """Card, section 8: ten Gaussian prototypes in 32 dimensions; a picture is its own latent."""

    def __init__(self):
        super().__init__()
        self.centres, self.seen = torch.randn(10, 32, generator=seeds.generator("prototypes")), []

    def forward(self, images, taps=()):
        self.seen.append(len(images))
        flat = images.flatten(1)
        return Trace(-(flat[:, None] - self.centres).square().sum(2) / 16, flat)


class Plain(Pixels):
    """Latents [B, 1, 4, 8] are the pictures."""

    def __init__(self):
        super().__init__(channels=1, size=4)

    def sample(self, count, rng):
        return torch.randn(count, 1, 4, 8, generator=rng)

    def decode(self, latents):
        return latents


def problem(oracle, prior, evidence=EVIDENCE, **changes):
    world = Problem.plain(prior, oracle, evidence, seeds.generator("group"))
    world.objective, world.reads = changes.pop("objective", Score()), ("probs",)
    return world


def evolved(search, candidates=16, seed=0, chunk=None):
    """All populations of one run, [steps, N, P, ...] and their fitness, and what each target was charged."""
    oracle = Oracle(Prototypes(), "scores")
    world = problem(oracle, Plain())
    world.rng, world.chunk = seeds.generator("group", seed), chunk
    starts = Random(candidates=candidates)(world)
    found = [step.detached() for step in search(world, starts)]
    split = [step.latents.unflatten(0, (3, -1)) for step in found[1:]]
    return torch.stack(split), torch.stack([-step.loss.view(3, -1) for step in found[1:]]), oracle.bill, found


@pytest.mark.parametrize(
    ("generations", "population", "keep", "candidates"),
    [(9, 32, 10, 16), (4, 12, 12, 12), (0, 8, 3, 5), (2, 16, 16, 16)],
)
def test_it_asks_about_starts_fillers_and_children_alone(generations, population, keep, candidates):
    search = Evolution(generations=generations, population=population, keep=keep)
    steps, _, bill, found = evolved(search, candidates)
    per_target = candidates + (population - keep) + generations * population
    assert bill == dict.fromkeys((10, 12, 13), per_target) and steps.shape[:3] == (generations + 1, 3, population)
    assert len(found) == search.steps and all(step.stage == "optimised" for step in found)


def test_no_member_gets_worse_and_the_best_gets_good():
    _, fitness, _, _ = evolved(Evolution(generations=120, taper=7, taper_over=12))
    assert (fitness.diff(dim=0) >= 0).all()
    assert (fitness[-1].amax(1) > 0.9).all() and (fitness[0].amax(1) < 0.9).all()


def test_the_toolboxs_shares_let_a_worse_child_replace_its_parent():
    _, fitness, _, _ = evolved(Evolution(generations=40, taper=2, taper_over=5, compare="shares"))
    assert (fitness.diff(dim=0) < 0).any()


def test_several_differences_reach_further_than_one():
    """Card, section 8: 1.00 with four pairs, less with one."""
    best = {
        pairs: evolved(Evolution(generations=60, pairs=pairs, taper=4, taper_over=6))[1][-1].amax(1) for pairs in (1, 4)
    }
    assert best[4].mean() > best[1].mean()


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (Evolution(), {0: 0.1, 469: 0.1, 470: 0.06, 499: 0.002}),
        (Evolution(generations=300, pairs=1, taper=18, taper_over=48), {281: 0.1, 282: 0.0375, 299: 0.1 / 48}),
    ],
)
def test_differences_shrink_at_the_end(search, expected):
    assert {generation: search.scale_at(generation) for generation in expected} == pytest.approx(expected)


def test_populations_do_not_know_of_each_other():
    """A target alone has the fillers and children that it has among others, for the same draws."""
    search, world = Evolution(generations=1, population=6, keep=3), problem(Oracle(Prototypes(), "scores"), Plain())
    members, fitness = torch.randn(3, 6, 1, 4, 8, generator=DRAWS), torch.rand(3, 6, generator=DRAWS)
    pairs, dice = search.draws(members, seeds.generator("draws"))
    search.draws = lambda *given: (pairs, dice)
    together = search.bred(world.prior, members, fitness, 0.1, None)
    search.draws = lambda *given: (pairs[1:2], dice[1:2])
    alone = search.bred(world.prior, members[1:2], fitness[1:2], 0.1, None)
    assert torch.equal(together[1:2], alone)


def test_a_child_takes_a_share_of_its_coordinates_and_an_outsider_none():
    members, fitness = torch.randn(1, 40, 1, 4, 8, generator=DRAWS), torch.rand(1, 40, generator=DRAWS)
    for share in (0.0, 0.25, 1.0):
        children = Evolution(crossover=share).bred(PRIOR, members, fitness, 0.1, seeds.generator("bred"))
        assert (children != members).float().mean().item() == pytest.approx(share, abs=0.05)


def test_fillers_are_mixed_of_three_members_and_what_is_fresh():
    search, world = Evolution(population=9, keep=4), problem(Oracle(Prototypes(), "scores"), Plain())
    members = torch.randn(3, 4, 1, 4, 8, generator=DRAWS)
    triples = search.triples(3, 5, seeds.generator("triples"))
    assert triples.shape == (3, 5, 3) and all(len(set(row.tolist())) == 3 for row in triples.flatten(0, 1))
    search.triples, search.fresh = lambda *given: triples, lambda world, like, rng: torch.zeros_like(like)
    made = search.filled(world, members, 5, seeds.generator("fill"))
    a, b, c = (members[torch.arange(3)[:, None], triples[..., place]] for place in range(3))
    torch.testing.assert_close(made, 0.7 * (0.25 * a + 0.25 * b + 0.5 * c))


@pytest.mark.parametrize(("filler", "deviation"), [("draws", 3**-0.5), ("noise", 1.0)])
def test_what_is_fresh_are_means_of_draws_or_noise(filler, deviation):
    world = problem(Oracle(Prototypes(), "scores"), Plain())
    fresh = Evolution(filler=filler).fresh(world, torch.zeros(3, 200, 1, 4, 8), seeds.generator("fresh"))
    assert fresh.std().item() == pytest.approx(deviation, rel=0.05) and fresh.shape == (3, 200, 1, 4, 8)


class Labelled(Plain):
    """The last entry of a latent is its class."""

    held = 1

    def of_classes(self, latents, labels):
        return torch.cat([latents[..., :-1], labels.view(-1, 1, 1, 1).expand(-1, 1, 4, 1).to(latents)], -1)


def test_a_class_that_a_latent_holds_is_never_moved():
    world = problem(Oracle(Prototypes(), "scores"), Labelled())
    for found in Evolution(generations=3, population=8, keep=4)(world, Random(candidates=5)(world)):
        labels = EVIDENCE.labels[found.evidence].view(-1, 1, 1).expand(-1, 1, 4).float()
        assert torch.equal(found.latents[..., -1], labels)


def test_a_target_without_an_opinion_leaves_every_parent():
    """Hard rounding: all scores are 0, and a tie keeps the parent."""
    world = problem(Oracle(Prototypes(), "scores"), Plain(), objective=lambda look: torch.zeros(len(look.labels)))
    *_, first, last = list(Evolution(generations=1, population=8, keep=4)(world, Random(candidates=5)(world)))
    assert torch.equal(first.latents, last.latents)


def test_a_candidate_that_is_no_number_is_the_worst():
    def loss(look):
        return torch.where(look.latents.flatten(1)[:, 0] > 0, torch.nan, 0.5)

    world = problem(Oracle(Prototypes(), "scores"), Plain(), objective=loss)
    found = list(Evolution(generations=2, population=8, keep=4)(world, Random(candidates=12)(world)))[-1]
    assert (found.loss < torch.inf).any() and not found.loss.isnan().any()


@pytest.mark.parametrize("keep", [2, 33])
def test_a_population_needs_three_members_and_room(keep):
    with pytest.raises(
        Refused, match="attack.search.keep: expected from 3, of whom the others are mixed, to the popul"
    ):
        Evolution(keep=keep)


# the coarse stage ------------------------------------------------------------------------------------------------


def learning(network, **changes):
    options = {"steps": 30, "batch_size": 16, "unit": 11, "optimizer": functools.partial(torch.optim.Adam, lr=0.01)}
    return Learning(network=network, **{**options, **changes})


def mapping(**changes):
    return learning(functools.partial(ScoreMapping, hidden=16), **changes)


def embedding(**changes):
    return PublicLabels(learning=learning(functools.partial(Student, classes=4, channels=1, size=16), **changes))


def coarse(**changes):
    options = {"learning": mapping(), "embedding": embedding(steps=12), "optimizer": ADAM, "candidates": 6, "steps": 4}
    return Coarse(**{**options, **changes})


def attack_of(**changes):
    parts = {
        "init": coarse(),
        "objective": Score(),
        "search": Evolution(generations=4, population=8, keep=4),
        "select": LowestLoss(),
        "access": "scores",
    }
    return SearchAttack(**{**parts, **changes})


def prepare(attack, state=None, stop=None, images=PUBLIC):
    """The state after `stop` yields (None: all), what it cost, and how often it yielded."""
    oracle, done = Oracle(Quarters(), "scores"), 0
    for done, (_, _, give) in enumerate(  # noqa: B007
        attack.prepare(PRIOR, oracle, images, seeds.generator("prepare"), state), start=1
    ):
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    assert oracle.bill == {}
    return state, oracle.shared_bill, done


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


whole = functools.cache(lambda: prepare(attack_of())[0])
YIELDS = 2 + 1 + 3  # twelve steps of the embedding, four batches asked, thirty steps of the mapping, in units of eleven


def test_every_public_image_is_asked_about_once():
    state, bill, yields = prepare(attack_of())
    assert bill == len(PUBLIC) == len(state["asked"]) and yields == YIELDS
    assert state["asked"].shape == (50, 4) and int(state["embedding.classes"]) == 5


@pytest.mark.parametrize("stop", range(1, YIELDS + 1))
def test_killed_and_resumed_it_is_the_same_to_the_bit(stop):
    partly, first, _ = prepare(attack_of(), stop=stop)
    resumed, second, _ = prepare(attack_of(), partly)
    assert equal(resumed, whole()) and first + second == 50


def recover(attack, budget=None):
    target = Quarters()
    oracle, stages, why = Oracle(target, "scores", budget, ids=EVIDENCE.ids.tolist()), {}, ""
    for found, why in run_group(attack, whole(), PRIOR, oracle, EVIDENCE, seeds.generator("group")):  # noqa: B007
        stages[found.stage] = found.detached()
    return stages, oracle.bill, why


def test_the_coarse_stage_asks_nobody_and_the_fine_one_what_the_card_says():
    stages, bill, _ = recover(attack_of())
    assert bill == dict.fromkeys((10, 12, 13), 6 + 4 + 4 * 8)
    assert stages["initial"].loss.isnan().all() and len(stages["initial"]) == 18 and len(stages["selected"]) == 3
    assert torch.equal(stages["selected"].loss, stages["optimised"].loss.view(3, 8).amin(1))


def test_a_spent_budget_leaves_the_last_whole_population():
    free, _, _ = recover(attack_of())
    stages, bill, why = recover(attack_of(), budget=6 + 4 + 2 * 8 + 5)
    assert "the budget is 31" in why and set(bill.values()) == {26} and len(stages["optimised"]) == 24
    assert (stages["optimised"].loss >= free["optimised"].loss).all()


def test_it_comes_nearer_to_what_the_mapping_says():
    part = coarse(steps=40, optimizer=functools.partial(torch.optim.Adam, lr=0.05))
    world = problem(None, PRIOR)
    world.state = whole()
    part.noise = lambda rng, rows, classes: torch.ones(rows, classes)
    losses = [loss.mean() for _, loss in part.descend(world, part.begin(world))]
    assert losses[-1] < losses[1]


def test_candidates_begin_at_means_of_draws():
    world = problem(None, PRIOR)
    drawn = PRIOR.sample(3 * 6 * 2, world.draw("init"))
    torch.testing.assert_close(coarse().begin(world), drawn.view(18, 2, 2).mean(1))


def test_rows_do_not_depend_on_the_batch():
    world = problem(None, PRIOR)
    world.state = whole()
    together, apart = (coarse(batch_size=size)(world).latents for size in (64, 5))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_public_images_of_one_class_teach_no_embedding():
    with pytest.raises(Refused, match="expected public images of two or more classes to tell apart, got 1"):
        prepare(attack_of(), images=public(classes=1))


def test_an_embedding_that_is_published_learns_nothing_and_is_the_same_each_time():
    given = Pretrained(network=functools.partial(Student, classes=4, channels=1, size=16))
    images = torch.rand(3, 1, 16, 16, generator=DRAWS)
    first, again = (given.of(given.learned({}, torch.device("cpu")), images) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (3, 16)
    assert list(given.fit(PUBLIC, None, None, None)) == []
    state, bill, yields = prepare(attack_of(init=coarse(embedding=given)))
    assert bill == 50 and yields == 4 and not any(name.startswith("embedding.") for name in state)
    with pytest.raises(Refused, match="embedding.output: got 'probs'; choices: logits, features"):
        Embedding(output="probs")


def test_labels_would_do_where_one_score_counts():
    """A mapping of the largest score alone is a table of labels: other scores of the same order change nothing."""
    part = coarse(top=1)
    network = part.learning.build(seeds.generator("mapping"), observed=(4,), embedded=(5,)).eval()
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.9, 0.05, 0.03, 0.02]])
    first, second = network(mapping_input(scores, part.top))
    assert torch.equal(first, second)


# through the plan ------------------------------------------------------------------------------------------------

WORLD = (
    "dataset=toy", "dataset.size=16", "dataset.public_classes=4", "dataset.images_per_class=10", "train_on=all",
    "architecture=mlp", "architecture.widths=[8]", "architecture.size=16", "recipe.epochs=1", "compute=cpu",
    "tracking=none", "attack=c2f_mi_small", "prior=toy", "evidence.classes=[0,1]",
    "attack.init.embedding.learning.steps=4", "attack.init.learning.steps=4", "attack.search.generations=2",
)  # fmt: skip


def test_every_user_pays_for_the_mapping(store):
    """Two attacks share it, and each is charged; what a target cost is its own."""
    bills = []
    for more in ((), ("attack.search.generations=1",)):
        pipeline = Pipeline(plan_for("attack", *WORLD, *more, store=store))
        bills.append(pipeline.recovered.provenance["bill"])
    assert {bill["shared_queries"] for bill in bills} == {40} and len(pipeline.store.list("prepared")) == 1
    assert [bill["queries_per_target_max"] for bill in bills] == [16 + 22 + 64, 16 + 22 + 32]


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("attack.access=labels",), r"attack.init \(Coarse\) reads probs, which access=labels hides"),
        (("attack/objective=cross_entropy",), "attack.objective .* reads gradient, logits, which access=scores hides"),
    ],
)
def test_what_cannot_work_is_refused_at_composition(words, refusal, store):
    with pytest.raises(Refused, match=refusal):
        plan_for("attack", *WORLD, *words, store=store)


def test_fine_without_coarse_is_one_word(store):
    words = ("attack/init=random", "attack.init.candidates=16", "~attack.init.optimizer")
    bill = Pipeline(plan_for("attack", *WORLD[:-3], "attack.search.generations=2", *words, store=store)).recovered
    assert bill.provenance["bill"]["shared_queries"] == 0 and bill.provenance["bill"]["queries_per_target_max"] == 102
