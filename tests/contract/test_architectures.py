"""Every architecture of `conf/architecture`, built for two kinds of images."""

import pytest
import torch

from contract.listing import node, options
from midefense import seeds
from midefense.types import Refused

NAMES = options("architecture")


def test_the_listing():
    assert len(NAMES) == 4


def build(name, channels=1, seed=0):
    bound = node("train_target", "architecture", f"architecture={name}").given(classes=3, channels=channels, size=32)
    with seeds.isolated("architecture", seed):
        return bound.build()


@pytest.fixture(scope="module", params=[(name, channels) for name in NAMES for channels in (1, 3)], ids=str)
def model(request):
    return build(*request.param).eval()


def images_for(model, count=4, size=32):
    return torch.rand(count, model.channels, size, size, generator=seeds.generator("images", count, size))


def test_one_forward_features_head_and_every_cut_agree(model):
    images = images_for(model)
    trace = model(images, taps=model.tap_names)
    assert trace.logits.shape == (4, model.classes) == (4, 3)
    assert trace.features.shape == (4, model.feature_width)
    assert torch.equal(model.features(images), trace.features)
    assert torch.equal(model.head(trace.features), trace.logits)
    assert tuple(trace.taps) == model.tap_names and model.tap_names[-1] == "features"
    for cut in model.tap_names:
        edge, cloud = model.split(cut)
        assert torch.equal(edge(images), trace.taps[cut])
        assert torch.equal(cloud(trace.taps[cut]), trace.logits)


def test_taps_cost_no_second_forward_and_change_nothing(model):
    images = images_for(model)
    calls = []
    handles = [stage.register_forward_hook(lambda *_: calls.append(1)) for stage in model.stages.values()]
    tapped = model(images, taps=model.tap_names)
    for handle in handles:
        handle.remove()
    assert len(calls) == len(model.stages)
    assert model(images).taps == {} and torch.equal(model(images).logits, tapped.logits)


def test_an_image_does_not_depend_on_its_batch(model):
    images = images_for(model)
    together, alone = model(images).logits, model(images[2:3]).logits
    torch.testing.assert_close(alone[0], together[2], rtol=1e-4, atol=1e-5)


def test_any_size_is_taken_and_other_channels_refused(model):
    assert model(images_for(model, size=48)).logits.shape == (4, 3)
    assert model(images_for(model, size=20)).logits.isfinite().all()
    with pytest.raises(Refused, match="channels"):
        model(torch.rand(2, 4 - model.channels, 32, 32))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_the_images(name):
    model = build(name).train()
    images = images_for(model, count=8).requires_grad_()
    model(images).logits.logsumexp(1).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert images.grad.flatten(1).any(1).all() and images.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_and_weights_survive(name):
    first, again, other = build(name, seed=1).eval(), build(name, seed=1).eval(), build(name, seed=2).eval()
    images = images_for(first)
    assert torch.equal(first(images).logits, again(images).logits)
    assert not torch.equal(first(images).logits, other(images).logits)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(images).logits, other(images).logits)
