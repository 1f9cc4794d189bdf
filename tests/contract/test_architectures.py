"""Every architecture of `conf/architecture`, built for two kinds of images."""

import pytest
import torch

from contract.listing import node, options
from midefense import seeds
from midefense.types import Refused

NAMES = options("architecture")
# What shows a network of large images cheaply: the smallest size it takes, and no weights that are not here.
CHEAPER = {
    **dict.fromkeys(("resnet34", "resnet50", "resnet101", "resnet152", "resnext50", "resnext101"), ["size=32"]),
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201", "resnest101", "timm"), ["size=32"]),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "swin_t", "vit_b_16"), ["size=32"]),
    **dict.fromkeys(("resnet34_vmi", "resnet18_bido"), ["size=32"]),
    "maxvit_t": ["size=64"],
    "inception_v3": ["size=75", "auxiliary_weight=0"],
    "facenet_vggface2": ["size=75", "pretrained=false"],
}
# Deeper or wider siblings, which share all their code with a lighter one: built on every run, run on slow ones.
HEAVY = (
    "resnet101",
    "resnet152",
    "resnext101",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b1",
    "efficientnet_b2",
    "resnest101",
    "facenet112",
)
# Of the others, whose updates take seconds: trained on slow runs.
SLOW_TO_TRAIN = (
    *("facenet64", "ir152_64", "maxvit_t", "mobilefacenet"),
    *("resnet18_bido", "resnet34_vmi", "vgg16_64", "vit_b_16"),
)


def build(name, channels=1, seed=0):
    overrides = [f"architecture={name}", *(f"architecture.{override}" for override in CHEAPER.get(name, ()))]
    bound = node("train_target", "architecture", *overrides).given(classes=3, channels=channels, size=32)
    with seeds.isolated("architecture", seed):
        return bound.build()


def marks(name, slow=HEAVY):
    return [pytest.mark.slow] if name in slow else []


EACH = [pytest.param(name, marks=marks(name)) for name in NAMES]
EACH_QUICK = [pytest.param(name, marks=marks(name, (*HEAVY, *SLOW_TO_TRAIN))) for name in NAMES]
EACH_WITH_CHANNELS = [
    pytest.param((name, channels), marks=marks(name), id=f"{name}-{channels}") for name in NAMES for channels in (1, 3)
]


@pytest.fixture(scope="module", params=EACH_WITH_CHANNELS)
def model(request):
    return build(*request.param).eval().requires_grad_(False)


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_sibling_is_built_and_its_stages_fit(name):
    with torch.device("meta"):
        model = build(name).eval()
        trace = model(torch.empty(1, 1, 32, 32), taps=model.tap_names)
    assert tuple(trace.taps) == model.tap_names and model.tap_names[-1] == "features"
    assert trace.logits.shape == (1, 3) and trace.features.shape == (1, model.feature_width)


def images_for(model, count=2, size=32):
    return torch.rand(count, model.channels, size, size, generator=seeds.generator("images", count, size))


def test_one_forward_features_head_and_every_cut_agree(model):
    images = images_for(model)
    trace = model(images, taps=model.tap_names)
    assert trace.logits.shape == (2, model.classes) == (2, 3)
    assert trace.features.shape == (2, model.feature_width)
    assert torch.equal(model.features(images), trace.features)
    assert torch.equal(model.head(trace.features), trace.logits)
    assert tuple(trace.taps) == model.tap_names and model.tap_names[-1] == "features"
    # the first stage alone sees the channels: who can be cut everywhere for one need be cut behind it alone for three
    for cut in model.tap_names if model.channels == 1 else model.tap_names[:1]:
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
    together, alone = model(images).logits, model(images[1:]).logits
    scale = together.abs().max().clamp(min=1)  # a deep network's fresh logits are thousands, and rounded accordingly
    torch.testing.assert_close(alone[0] / scale, together[1] / scale, rtol=1e-4, atol=1e-5)


def test_any_size_is_taken_and_other_channels_refused(model):
    assert model(images_for(model, size=48)).logits.shape == (2, 3)
    assert model(images_for(model, size=20)).logits.isfinite().all()
    with pytest.raises(Refused, match="channels"):
        model(torch.rand(2, 4 - model.channels, 32, 32))


@pytest.mark.parametrize("name", EACH)
def test_gradients_reach_every_parameter_and_the_images(name):
    model = build(name).train()
    images = images_for(model, count=4).requires_grad_()
    with seeds.isolated("gradients", name):  # dropout must not happen to cut a whole branch
        model(images).logits.logsumexp(1).sum().backward()
    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, p in trainable.items() if p.grad is None or not p.grad.any()] == []
    assert images.grad.flatten(1).any(1).all() and images.grad.isfinite().all()


@pytest.mark.parametrize("name", EACH_QUICK)
def test_a_few_updates_lower_the_loss(name):
    model = build(name).train()
    images, labels = images_for(model, count=6), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    losses = []
    with seeds.isolated("updates", name):
        for _ in range(5):
            loss = torch.nn.functional.cross_entropy(model(images).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert min(losses[2:]) < losses[0], losses


@pytest.mark.parametrize("name", EACH)
def test_a_seed_decides_and_weights_survive(name):
    first, other = build(name, seed=1).eval(), build(name, seed=2).eval()
    weights = build(name, seed=1).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in first.state_dict().items())
    images = images_for(first)
    expected = first(images).logits
    assert not torch.equal(other(images).logits, expected)
    other.load_state_dict(weights)
    assert torch.equal(other(images).logits, expected)
