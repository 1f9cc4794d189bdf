"""Noise, pruned channels and few bits against closed forms; DISCO and adversarial learning: what each gradient
reaches."""

import functools

import pytest
import torch
from contract.listing import node
from torch import nn

from midefense import seeds
from midefense.architectures.inverters import ConvDecoder
from midefense.architectures.small import CNN
from midefense.defenses.adversarial import AdversarialLearning, norm_per_pixel
from midefense.defenses.base import NoDefense, Stack, task_loss
from midefense.defenses.disco import Disco, Pruner
from midefense.defenses.features import FeatureNoise, FeaturePruning, FeatureQuantisation
from midefense.training import loop
from midefense.types import Batch, Images, Origin, Refused

IDS = torch.tensor([7, 3, 11, 20])
FEATURES = torch.randn(4, 8, 6, 6, generator=seeds.generator("features")).relu()
VECTORS = torch.randn(4, 50, generator=seeds.generator("vectors"))


def released(defense, features=FEATURES, repeat=0):
    return defense.release(lambda images: images, features, IDS, seeds.generator("release", repeat))


@pytest.mark.parametrize("features", [FEATURES, VECTORS], ids=["maps", "vectors"])
@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
def test_noise_has_the_share_of_the_features_norm(distribution, features):
    noise = released(FeatureNoise(scale=0.3, distribution=distribution), features) - features
    lengths = noise.flatten(1).norm(dim=1) / features.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((4,), 0.3), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("distribution", "kurtosis"), [("gaussian", 3.0), ("laplace", 6.0)])
def test_noise_is_of_its_distribution(distribution, kurtosis):
    drawn = FeatureNoise(scale=1.0, distribution=distribution).noise(torch.Size([200_000]), seeds.generator("noise"))
    assert abs(float(drawn.mean() / drawn.std())) < 0.01
    assert abs(float((drawn**4).mean() / (drawn**2).mean() ** 2) - kurtosis) < 0.02 * kurtosis**2


def test_the_mean_over_repeats_takes_the_noise_away():
    defense = FeatureNoise(scale=1.0)
    mean = torch.stack([released(defense, repeat=repeat) for repeat in range(64)]).mean(0)
    left = (mean - FEATURES).norm() / FEATURES.norm()
    assert 0.1 < left < 0.15, "one eighth of it is left"


@pytest.mark.parametrize("features", [FEATURES, VECTORS], ids=["maps", "vectors"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_so_many_channels_are_pruned(share, features):
    for by in ("random", "magnitude"):
        kept = released(FeaturePruning(share=share, by=by), features)
        alive = (kept != 0).flatten(2).any(2) if kept.dim() > 2 else kept != 0
        assert alive.sum(1).tolist() == [round((1 - share) * features.shape[1])] * 4
        assert torch.equal(kept[alive], features[alive])


def test_the_least_channels_are_pruned_by_magnitude_and_others_for_each_image_at_random():
    kept = released(FeaturePruning(share=0.5, by="magnitude"))
    least = FEATURES.mean((2, 3)).argsort(1)[:, :4]
    assert torch.equal((kept == 0).all(3).all(2).nonzero()[:, 1].view(4, 4), least.sort(1).values)
    drawn = (released(FeaturePruning(share=0.5)) == 0).all(3).all(2)
    assert len(drawn.unique(dim=0)) > 1
    assert not torch.equal(drawn, (released(FeaturePruning(share=0.5), repeat=1) == 0).all(3).all(2))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_there_are_so_many_levels_between_the_extremes(bits):
    got = released(FeatureQuantisation(bits=bits), VECTORS)
    low, high = VECTORS.amin(1, keepdim=True), VECTORS.amax(1, keepdim=True)
    unit = (high - low) / (2**bits - 1)
    levels = (got - low) / unit
    assert ((levels - levels.round()).abs() < 0.02).all() and len(got[0].unique()) <= 2**bits
    assert ((got - VECTORS).abs() <= unit / 2 + 1e-5).all()
    torch.testing.assert_close(torch.stack([got.amin(1), got.amax(1)], 1), torch.cat([low, high], 1))


def test_no_bits_say_nothing_and_a_feature_of_one_value_is_itself():
    assert not released(FeatureQuantisation(bits=0)).any()
    assert torch.equal(released(FeatureQuantisation(bits=2), torch.full((4, 3), 0.7)), torch.full((4, 3), 0.7))


def network():
    with seeds.isolated("network"):
        return CNN(classes=3, channels=1, size=16, widths=(8, 16), features=8, mean=0.5, std=0.5)


def decoder():
    return functools.partial(ConvDecoder, channels=1, size=16, width=8)


def batch(labels=None):
    rng = seeds.generator("batch")
    labels = torch.arange(6) % 3 if labels is None else labels
    return Batch(torch.rand(6, 1, 16, 16, generator=rng), labels, torch.arange(6), torch.ones(6), rng)


def terms_of(defense, given=None):
    """The network as rebuilt, in training, and the defense's terms and task on one batch."""
    model = loop.assemble(network(), defense, seed=0).train()
    given = given or batch()
    trace = model(given.images, taps=defense.taps)
    terms = defense.losses(trace, given)
    return model, {"task": task_loss(trace.logits, given.labels), **terms}


def reached(loss, **modules):
    """Which of the modules get a gradient that is not zero."""
    names, parameters = zip(*((n, p) for n, m in modules.items() for p in m.parameters()), strict=True)
    grads = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, retain_graph=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None and grad.any()}


def test_each_loss_of_adversarial_learning_moves_its_own_side():
    defense = AdversarialLearning(cut="stage1", decoder=decoder(), weight=0.8)
    model, terms = terms_of(defense)
    edge, cloud = model.split("stage1")
    sides = {"edge": edge, "cloud": cloud, "decoder": defense.decoder}
    moved = {name: reached(term, **sides) for name, term in terms.items()}
    assert moved == {"task": {"edge", "cloud"}, "decoder": {"decoder"}, "privacy": {"edge"}}
    torch.testing.assert_close(terms["privacy"], -0.8 * terms["decoder"])
    plain = task_loss(model(batch().images).logits, batch().labels)
    torch.testing.assert_close(terms["task"], 0.2 * plain)


def test_its_error_is_the_norm_over_a_batch_of_32_for_equal_errors():
    defense = AdversarialLearning(cut="stage1", decoder=decoder())
    images = torch.rand(1, 3, 8, 8, generator=seeds.generator("image")).expand(32, 3, 8, 8)
    whole = (images - 0.2).norm() / 64
    torch.testing.assert_close(defense.distance(images, torch.full_like(images, 0.2)).mean(), whole)
    torch.testing.assert_close(norm_per_pixel(images, images + 1), torch.full((32,), 192**0.5 / 64))


def test_attributes_are_learned_against_a_decoder_too():
    attributes = torch.randint(2, (6, 3), generator=seeds.generator("attributes"), dtype=torch.uint8)
    for defense in (AdversarialLearning(cut="stage1", decoder=decoder()), Disco(cut="stage1", decoder=decoder())):
        _, terms = terms_of(defense, batch(attributes))
        assert {"task", "decoder", "privacy"} == set(terms) and terms["task"].shape == (6,)


@pytest.mark.parametrize(("form", "share"), [("intended", 0.75), ("original", 0.5)])
def test_the_pruner_of_disco_gets_its_share_of_the_task_and_the_decoder(form, share):
    defense = Disco(cut="stage1", decoder=decoder(), alpha=0.25, pruner_loss=form, steepness=3.0)
    model, terms = terms_of(defense)
    stage, pruner = model.stages["stage1"].stage, model.stages["stage1"].pruner
    sides = {"edge": stage, "cloud": model.stages["stage2"], "pruner": pruner, "decoder": defense.decoder}
    moved = {name: reached(term, **sides) for name, term in terms.items()}
    assert moved["task"] == {"edge", "cloud", "pruner"} and moved["decoder"] == {"decoder"}
    assert moved.get("privacy") == ({"pruner"} if form == "intended" else None)
    weight = pruner.scores.weight
    (scaled,) = torch.autograd.grad(terms["task"].sum(), weight)
    model.stages["stage1"].task_share = 1.0
    (whole,) = torch.autograd.grad(task_loss(model(batch().images).logits, batch().labels).sum(), weight)
    torch.testing.assert_close(scaled, share * whole)


def test_at_the_original_share_one_channel_of_64_passes_by_half():
    pruner = Pruner(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(64, 64), share=0.99)
    _, gate = pruner.gate(torch.randn(5, 64, 4, 4, generator=seeds.generator("wide")))
    assert gate.amax(1).tolist() == [0.5] * 5 and ((gate < 0.5).sum(1) == 63).all()


def test_what_disco_releases_is_pruned_and_its_cloud_reads_that():
    defense = Disco(cut="stage1", decoder=decoder())
    model = loop.assemble(network(), defense, seed=0).eval()
    edge, cloud = model.split("stage1")
    images = batch().images
    out = defense.release(edge, images, torch.arange(6), seeds.generator("release"))
    stage = model.stages["stage1"]
    torch.testing.assert_close(out, stage.pruner(stage.stage(model.preprocess(images))))
    assert torch.equal(cloud(out), model(images).logits)
    loaded = loop.assemble(network(), Disco(cut="stage1", decoder=decoder()), seed=1, origin=Origin.LOADED)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.eval()(images).logits, model(images).logits)


def test_training_tells_of_every_term():
    images = Images((batch().images * 255).to(torch.uint8), torch.arange(6) % 3, torch.arange(6), list("abc"))
    defense = Disco(cut="stage1", decoder=decoder())
    recipe = node("train_target", "recipe", "recipe.epochs=2", "recipe.batch_size=6").build()
    model = loop.assemble(network(), defense, seed=0)
    logs = [logs for _, logs, _ in loop.fit(model, defense, images, recipe, seed=0)]
    assert {"loss/task", "loss/decoder", "loss/privacy"} <= set(logs[-1])
    assert logs[-1]["loss/privacy"] == pytest.approx(-0.4 * logs[-1]["loss/decoder"], rel=1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(Refused, match="expected a stage with others behind it, got features"):
        loop.assemble(network(), Disco(cut="features", decoder=lambda observed: nn.Identity()), seed=0)
    for defense in (Disco(cut="moon", decoder=decoder()), AdversarialLearning(cut="moon", decoder=decoder())):
        for origin in (Origin.DRAWN, Origin.LOADED):
            with pytest.raises(Refused, match="cut: got 'moon'; choices: stage1"):
                loop.assemble(network(), defense, seed=0, origin=origin)
    with pytest.raises(Refused, match="defense.decoder: expected images"):
        terms_of(AdversarialLearning(cut="stage1", decoder=functools.partial(decoder(), size=32)))


def test_a_stack_says_of_release_what_its_member_says():
    stack = Stack(members={"none": NoDefense(), "noise": FeatureNoise(scale=1.0)})
    assert stack.only_releases and stack.group == 128 and stack.asks_of_prior == () and not stack.prepares
    assert torch.equal(released(stack), released(FeatureNoise(scale=1.0)))
    trained = Stack(
        members={"noise": FeatureNoise(scale=1.0), "against": AdversarialLearning(cut="stage1", decoder=decoder())}
    )
    assert not trained.only_releases and trained.cut == "stage1"
