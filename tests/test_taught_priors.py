"""Priors that learn from a target: what they learn by, known answers of their losses, the mode the target answers in,
whose priors they are, and a fit that is killed."""

import functools
import math

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import seeds
from midefense.architectures.state_names import to_published
from midefense.attacks.init import Random, Zero
from midefense.attacks.part import Part
from midefense.attacks.problem import Problem
from midefense.attacks.search.distribution import Distribution
from midefense.attacks.search.gradient import Gradient
from midefense.exchange.priors import import_prior
from midefense.identity_losses import max_margin
from midefense.oracle import Oracle
from midefense.pipeline import priors as making
from midefense.pipeline.pipeline import Pipeline
from midefense.priors.augmentation import Augmentation
from midefense.priors.ked import KedGan, discriminator_loss, entropy, generator_loss, realness
from midefense.priors.nets.ked import Discriminator, MinibatchDiscrimination
from midefense.priors.nets.plg import Critic
from midefense.priors.pixels import Pixels
from midefense.priors.plg import PlgGan, critic_loss, most_confident
from midefense.store.store import Store, Work
from midefense.types import Access, Evidence, Refused, Trace

# Losses: section 8 of the cards ked_mi.md and plg_mi.md


def blank(logits, features=None):
    """A discriminator that says these logits of any image."""
    return lambda images: (features if features is not None else images.flatten(1), logits.expand(len(images), -1))


def test_the_discriminator_without_an_opinion():
    classes, images = 1000, torch.rand(3, 1, 4, 4)
    silent = blank(torch.zeros(1, classes, dtype=torch.float64))
    soft = torch.full((3, classes), 1 / classes, dtype=torch.float64)
    unlabelled = 0.5 * (2 * math.log(1 + classes) - math.log(classes))
    assert discriminator_loss(silent, images, soft, images, images).item() == pytest.approx(
        math.log(classes) + unlabelled
    )
    assert math.log(classes) == pytest.approx(6.9078, abs=1e-4) and unlabelled == pytest.approx(3.4549, abs=1e-4)
    assert -realness(torch.zeros(1, classes, dtype=torch.float64)).item() == pytest.approx(9.995e-4, rel=1e-4)


def test_the_generator_is_told_mean_features_and_a_sum_of_entropies():
    images = torch.rand(4, 1, 4, 4)
    silent = blank(torch.zeros(1, 7))
    assert entropy(torch.zeros(4, 7)).item() == pytest.approx(4 * math.log(7))
    assert generator_loss(silent, images, images, 0.5).item() == pytest.approx(0.5 * 4 * math.log(7), rel=1e-5)
    assert generator_loss(silent, images, images + 0.25, 0.0).item() == pytest.approx(0.25, rel=1e-5)


def test_minibatch_discrimination_sees_duplicates_alone():
    layer, row = MinibatchDiscrimination(6), torch.randn(1, 6, generator=seeds.generator("row"))
    assert torch.allclose(layer(row.expand(5, -1)), torch.full((5, 64), 4.0), atol=1e-4)
    assert layer(row).abs().max() == 0 and layer(torch.cat([row, row + 100])).abs().max() < 1e-6
    assert sum(p.numel() for p in Discriminator(classes=1000, channels=3, size=64, width=64).parameters()) == 18_888_936


def test_the_margin_and_its_gradient():
    logits = torch.tensor([[2.0, 5, 1], [3, 0, -1]], requires_grad=True)
    loss = max_margin(logits, torch.tensor([0, 0]))
    assert loss.tolist() == [3, -3]
    loss.mean().backward()
    assert logits.grad.tolist() == [[-0.5, 0.5, 0], [-0.5, 0.5, 0]]


def test_the_hinge_of_a_critic_without_an_opinion():
    labels = torch.zeros(3, dtype=torch.int64)
    silent = lambda images, labels: torch.zeros(len(images))  # noqa: E731
    assert critic_loss(silent, torch.rand(3, 1), labels, torch.rand(3, 1), labels).item() == 2


def test_the_projection_critic_of_the_paper():
    critic = Critic(classes=1000, channels=3, size=64, width=64)
    assert sum(p.numel() for p in critic.parameters()) == 11_165_441
    small = Critic(classes=3, channels=1, size=32, width=2).train()
    images, labels = torch.rand(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])
    before = {name: vector.clone() for name, vector in small.named_buffers()}
    for _ in range(30):
        small(images, labels)
    for layer in (small.score, small.classes, small.shrink[0].first):
        assert torch.linalg.matrix_norm(layer.eval().weight().flatten(1), 2).item() == pytest.approx(1, abs=0.02)
    assert any(not torch.equal(vector, before[name]) for name, vector in small.named_buffers())
    assert {"block1.c1.weight_orig", "l_y.weight_u", "l5.bias"} <= set(to_published(small))


def test_among_equals_the_later_image_is_pseudo_labelled():
    probs = torch.tensor([[0.3], [0.9], [0.3], [0.3], [0.1]])
    rows = torch.arange(5)[:, None]
    assert most_confident(probs, rows, 3)[1][:, 0].tolist() == [2, 3, 1]
    assert most_confident(probs, rows, 1)[1][:, 0].tolist() == [1]


# What the target is asked, and in which mode


class Net(nn.Module):
    """A target whose answers in train mode come from its batch."""

    def __init__(self, classes=3):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(1024), nn.Linear(1024, classes)

    def forward(self, images, taps=()):
        features = self.norm(images.flatten(1))
        return Trace(self.head(features), features)


def target():
    with seeds.isolated("target"):
        return Net().eval()


def test_train_mode_is_a_copy_that_drifts_and_the_target_stays():
    model, images = target(), torch.rand(8, 1, 32, 32, generator=seeds.generator("images"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    deployed, legacy = (Oracle(model, Access.WHITEBOX, mode=mode) for mode in ("eval", "train"))
    assert not torch.allclose(deployed(images).probs, legacy(images).probs, atol=1e-3)
    assert torch.equal(deployed.weights()["norm.running_mean"], before["norm.running_mean"])
    assert not torch.equal(legacy.weights()["norm.running_mean"], before["norm.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not model.training
    with pytest.raises(Refused, match="oracle.mode: got 'test'; choices: eval, train"):
        Oracle(model, Access.SCORES, mode="test")


def taught(kind=KedGan, **changes):
    options = {"latent_size": 6, "width": 2, "batch_size": 4, "critic_steps": 2, "steps": 4, "unit": 2, **changes}
    options |= {"augmentation": Augmentation(), "top": 3} if kind is PlgGan else {}
    with seeds.isolated("prior"):
        return kind(classes=3, channels=1, size=32, **options)


def last(prior, public, state=None, stop=None, model=None):
    oracle = Oracle(model or target(), prior.asks, mode=prior.target_mode)
    for step, _, give in prior.fit(public, seed=2, oracle=oracle, state=state):
        state = {name: value.clone() for name, value in give().items()}
        if step == stop:
            break
    return state


@pytest.fixture(scope="module")
def public():
    from midefense.datasets.toy import Toy

    return Toy(classes=2, public_classes=3, images_per_class=8, test_images_per_class=2).load().public


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", [KedGan, PlgGan])
def test_a_fit_goes_on_to_the_same_bits(kind, mode, public):
    whole = last(taught(kind, target_mode=mode), public)
    part = last(taught(kind, target_mode=mode), public, stop=2)
    assert [
        k for k, v in last(taught(kind, target_mode=mode), public, state=part).items() if not v.equal(whole[k])
    ] == []
    other = last(taught(kind, target_mode="train" if mode == "eval" else "eval"), public)
    assert any(not value.equal(whole[name]) for name, value in other.items())


def test_another_target_teaches_another_prior(public):
    with seeds.isolated("another target"):
        other = Net().eval()
    mine, theirs = last(taught(), public), last(taught(), public, model=other)
    assert any(not value.equal(theirs[name]) for name, value in mine.items())


# The searches


class Squares(Part):
    """The squares of a latent."""

    def __call__(self, look):
        return look.latents.square().flatten(1).sum(1)


def problem(prior, model=None, objective=None, views=None):
    evidence = Evidence(torch.tensor([2, 0]), torch.tensor([0, 1]))
    model = model or target()
    objective = objective or Squares()
    place = {"device": torch.device("cpu"), "chunk": None, "reads": ("logits",), "state": {}, "views": views}
    rng = seeds.generator("search")
    return Problem(prior, Oracle(model, Access.WHITEBOX), evidence, rng=rng, objective=objective, **place)


SGD = functools.partial(torch.optim.SGD, lr=0.1)


def test_a_conditional_prior_is_searched_within_the_class_wanted():
    prior = taught(PlgGan).eval()
    world = problem(prior)
    starts = Random(candidates=3)(world)
    assert starts.latents[:, -1].tolist() == [2, 2, 2, 0, 0, 0]
    free = starts.latents[:, :-1].clone()
    for optimizer in (SGD, functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.5)):
        *_, found = Gradient(optimizer=optimizer, steps=3, box=0.5)(world, starts)
        assert found.latents[:, -1].tolist() == [2, 2, 2, 0, 0, 0] and found.latents[:, :-1].abs().max() <= 0.5
        assert not torch.equal(found.latents[:, :-1], free)
    *_, found = Distribution(optimizer=SGD, steps=2, draws=4, box=0.5)(world, Zero()(world))
    assert found.latents[:, -1].tolist() == [2] * 4 + [0] * 4 and found.latents[:, :-1].abs().max() <= 0.5


def test_a_step_of_a_distribution_is_that_of_its_draw():
    """One step on sum z^2: d/d mean = 2 z, d/d log_variance = 2 z (z - mean) / 2 = z eps exp(log_variance / 2)."""
    prior = Pixels(channels=1, size=32)
    world = problem(prior)
    search = Distribution(optimizer=SGD, steps=1, log_variance=0.6, draws=2, reference_batch=4)
    eps, noise = [], search.noise
    search.noise = lambda *arguments: eps.append(noise(*arguments)) or eps[-1]
    start = Zero()(world)
    (found,) = search(world, start)
    ends, z = eps[0], math.exp(0.3) * eps[1][:, 0]
    mean, log_variance = -0.1 * 2 * z / 4, 0.6 - 0.1 * z * z / 4
    expected = mean[:, None] + (log_variance / 2).exp()[:, None] * ends
    torch.testing.assert_close(found.latents, expected.flatten(0, 1))
    assert found.evidence.tolist() == [0, 0, 1, 1] and found.loss.tolist() == pytest.approx(
        z.square().flatten(1).sum(1).repeat_interleave(2).tolist()
    )


def test_beyond_the_box_there_is_no_gradient():
    search = Distribution(optimizer=SGD, steps=1, log_variance=1.0, draws=1, box=1.0)
    world = problem(Pixels(channels=1, size=32))
    kept = []
    search.optimizer = lambda parameters: kept.extend(parameters) or SGD(parameters)
    eps, noise = [], search.noise
    search.noise = lambda *arguments: eps.append(noise(*arguments)) or eps[-1]
    list(search(world, Zero()(world)))
    outside = (math.exp(0.5) * eps[1][:, 0]).abs() > 1
    assert 0.5 < outside.double().mean() < 0.6  # the card: 54 % are expected
    assert torch.equal(kept[0].grad == 0, outside) and torch.equal(kept[1].grad[outside], torch.zeros(outside.sum()))


def test_looks_are_summed_and_each_is_asked_for():
    class Shift:
        columns = 1

        def draw(self, count, rng):
            return torch.randint(1, 9, (count, 1), generator=rng).float()

        def __call__(self, images, draws):
            return images + draws[..., None, None]

    class Brightness(Part):
        def __call__(self, look):
            return look.shown.flatten(1).mean(1)

    world = problem(Pixels(channels=1, size=32), objective=Brightness(), views=Shift())
    start = Zero()(world)
    (once,) = Gradient(optimizer=SGD, steps=1)(world, start)
    asked = sum(world.oracle.bill.values())
    (twice,) = Gradient(optimizer=SGD, steps=1, looks=2)(world, start)
    assert torch.allclose(twice.latents, 2 * once.latents) and sum(world.oracle.bill.values()) == 3 * asked
    assert (twice.loss > once.loss).all()


# Whose prior it is

WORLD = ("dataset=toy", "architecture=mlp", "architecture.widths=[8]", "recipe.epochs=1", "evidence.classes=[0,1]")
GAN = ("prior.width=2", "prior.latent_size=6", "prior.steps=4", "prior.unit=2", "prior.batch_size=4")
KED = (*WORLD, "attack=ked_mi_small", *GAN, "attack.search.steps=2", "attack.search.draws=2")


def test_a_coupled_prior_takes_a_group_as_one_batch(store):
    with pytest.raises(Refused, match="attack.chunk: expected null, because the realism of KedGan is coupled"):
        plan_for("attack", *KED, "attack.chunk=1", store=store)
    plan_for("attack", *KED, "attack.chunk=1", "attack/objective=cross_entropy", store=store)


def test_a_prior_of_another_target_is_refused_unless_asked_for_and_every_row_says_so(store, run_verb):
    judged = ("evaluators.main.recipe.epochs=1", "judge_at_chance=true", "metrics=utility")
    mine = run_verb("evaluate", *KED, *judged)
    prior = Store(store).open(mine.metrics["row"]["ids"]["prior"], "prior")
    target = mine.provenance["parents"]["target"]
    assert prior.provenance["parents"]["target"] == target and prior.recipe["access"] == "scores"
    assert prior.provenance["bill"]["shared_queries"] == 4 * 4
    other = [word for word in KED if not word.startswith("prior.")] + ["seeds.target=5", f"prior_artefact={prior.id}"]
    with pytest.raises(
        Refused, match=f"got one that learned from {target}; try that as target=, or foreign_prior=true"
    ):
        run_verb("evaluate", *other, *judged)
    assert len(Store(store).list("target")) == 2, "refused before anything was trained"
    row = run_verb("evaluate", *other, *judged, "foreign_prior=true").metrics["row"]
    assert row["prior_learned_from"] == target and f"(learned from {target})" in row["prior"]
    assert "prior_learned_from" not in mine.metrics["row"] and row["setup"] != mine.metrics["row"]["setup"]
    with pytest.raises(Refused, match="foreign_prior: expected true or false, got 3"):
        run_verb("evaluate", *other, "foreign_prior=3")


@pytest.mark.parametrize(
    ("prior", "mode"), [("ked_gan_small", "eval"), ("plg_gan_small", "train"), ("gmi_gan_small", "")]
)
def test_a_target_is_asked_in_the_mode_that_the_prior_names(prior, mode, store, monkeypatch):
    """By default as deployed; a prior that asks no target is given none."""
    modes = []
    monkeypatch.setattr(making, "Oracle", lambda *given, mode="eval": modes.append(mode) or Oracle(*given, mode=mode))
    switch = ("prior.target_mode=train",) if mode == "train" else ()
    words = (*WORLD, "attack=pool_small", f"prior={prior}", *GAN, *switch)
    made = Pipeline(plan_for("attack", *words, store=store))
    before = {name: value.clone() for name, value in made.target.model.state_dict().items()}
    assert made.prior.artefact.recipe["prior"].get("target_mode", "eval") == (mode or "eval")
    assert modes == ([mode] if mode else [])
    assert all(torch.equal(value, before[name]) for name, value in made.target.model.state_dict().items())


def test_priors_of_two_targets_are_two(store):
    drafts = []
    for seed in (0, 1):
        pipeline = Pipeline(plan_for("attack", *KED, f"seeds.target={seed}", store=store))
        drafts.append(pipeline.prior_draft(pipeline.target.artefact))
    assert drafts[0].id != drafts[1].id and drafts[0].recipe["prior"] == drafts[1].recipe["prior"]


@pytest.mark.parametrize("name", ["ked_gan", "plg_gan"])
def test_published_files_come_in_with_the_target_they_learned_from(name, store, tmp_path, run_verb):
    trained = run_verb("train_target", *WORLD[:-1])
    pipeline = Pipeline(plan_for("attack", *WORLD, "attack=pool_small", f"prior={name}", *GAN[:2], store=store))
    module, files = pipeline.blank_prior[1], []
    for part in ("generator", "critic"):
        files.append(tmp_path / f"{part}.tar")
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in to_published(getattr(module, part)).items()}}, files[-1]
        )
    bring = functools.partial(import_prior, Store(store), files[0], critic=files[1], dataset="toy", overrides=GAN[:2])
    with pytest.raises(Refused, match=f"expected the target that this {name} learned from, got none"):
        bring(prior=name)
    with pytest.raises(Refused, match="expected none, because gmi_gan asks no target"):
        bring(prior="gmi_gan", learned_from=trained.id)
    artefact = bring(prior=name, learned_from=trained.id)
    state = module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in artefact.tensors().items())
    assert artefact.recipe["target"] == trained.id and artefact.recipe["access"] == module.asks.value


POOL = ("attack=pool_small", "attack.init.size=20", "attack.init.candidates=2", "attack.select.keep=1")
COMPLETION = ("attack=gmi_masked", "attack.init.candidates=2")
GANS = {  # some GANs of the low-resolution benchmark, and an attack for each; all die in tests/test_learning_killed.py
    "ked_gan_small": POOL,
    "plg_gan_small": POOL,
    "lokt_gan_small": POOL,
    "inpainting_gan_small": COMPLETION,
}


def words_for(name, steps):
    return (
        *WORLD,
        *GANS[name],
        f"prior={name}",
        *GAN[:2],
        *GAN[3:],
        f"prior.steps={steps}",
        *(("prior.warmup=1",) if name == "lokt_gan_small" else ()),
        "attack.search.steps=1",
        "compute=cpu",
    )


def require_same_prior(whole, killed):
    """One prior each, with the same bits, for the same bill."""
    left, right = (Store(root).list("prior")[0] for root in (whole, killed))
    assert left.id == right.id and left.tensors().keys() == right.tensors().keys()
    assert all(torch.equal(value, right.tensors()[key]) for key, value in left.tensors().items())
    assert {**left.provenance["bill"], "seconds": 0} == {**right.provenance["bill"], "seconds": 0}, (
        "what was asked before the kill is charged too"
    )


class Killed(BaseException):
    """Ends a verb of this process where a SIGKILL would."""


# gmi_gan dies so in tests/test_resume.py
@pytest.mark.parametrize("name", GANS)
def test_a_fit_that_dies_after_every_save_goes_on_to_the_same_bits(name, store, tmp_path, monkeypatch):
    def learn(root):
        return Pipeline(plan_for("attack", *words_for(name, steps=4), store=root)).prior

    def save_and_die(self, *arguments):
        save(self, *arguments)
        raise Killed

    learn(store)
    killed, save, kills = tmp_path / "killed", Work.save, 0
    Pipeline(plan_for("attack", *words_for(name, steps=4), store=killed)).target  # noqa: B018
    with monkeypatch.context() as patch:
        patch.setattr(Work, "save", save_and_die)
        while kills < 10:
            try:
                learn(killed)
                break
            except Killed:
                kills += 1
    assert kills == 2, "four steps are saved after every second"
    require_same_prior(store, killed)
