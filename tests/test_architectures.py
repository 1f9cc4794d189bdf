"""Every classifier: one forward, features, head, split and taps agree; refusals say what to do."""

import hashlib
import io
import os
import shutil

import conftest
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import Weights, WeightsEnum

from midefense import seeds
from midefense.architectures.base import Preprocess
from midefense.architectures.custom import Custom
from midefense.architectures.resnet import ResNet
from midefense.architectures.small import CNN, MLP
from midefense.pipeline.classifiers import load_classifier
from midefense.pipeline.pipeline import Pipeline
from midefense.types import Refused


def custom(channels: int = 1, classes: int = 3) -> Custom:
    network = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, classes))
    return Custom(network=network, feature_layer="3", classes=classes, channels=channels)


BUILDERS = {
    "mlp": lambda: MLP(classes=3, channels=1, widths=[16, 8], dropout=0.5),
    "cnn": lambda: CNN(classes=3, channels=1, widths=[4, 8], features=6),
    "resnet18": lambda: ResNet(variant="resnet18", classes=3, channels=1, size=32),
    "resnet18_small": lambda: ResNet(variant="resnet18", classes=3, channels=1, size=32, stem="small"),
    "custom": custom,
}


@pytest.fixture(params=BUILDERS)
def model(request):
    with seeds.isolated("test", request.param):
        return BUILDERS[request.param]().eval()


@pytest.fixture
def images():
    return torch.rand(4, 1, 24, 28, generator=seeds.generator("images"))


def test_forward_features_head_and_split_agree_bit_for_bit(model, images):
    trace = model(images, taps=model.tap_names)
    assert trace.logits.shape == (4, model.classes) and trace.features.shape == (4, model.feature_width)
    assert torch.equal(model.features(images), trace.features)
    assert torch.equal(model.head(trace.features), trace.logits)
    assert tuple(trace.taps) == model.tap_names and trace.taps["features"] is trace.features
    for cut in model.tap_names:
        edge, cloud = model.split(cut)
        released = edge(images)
        assert torch.equal(released, trace.taps[cut])
        assert torch.equal(cloud(released), trace.logits)


def test_batch_of_one_and_gradients_everywhere(model, images):
    assert model(images[:1]).logits.shape == (1, 3)
    pixels = images.clone().requires_grad_()
    model(pixels).logits.square().sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_with_head_is_a_copy(model, images):
    other = model.with_head(7)
    assert other.classes == 7 and model.classes == 3
    assert torch.equal(other.features(images), model.features(images))
    assert not {id(parameter) for parameter in other.parameters()} & {id(parameter) for parameter in model.parameters()}


def test_survives_save_and_load(model, images):
    with seeds.isolated("another initialisation"):
        other = BUILDERS["custom"]() if isinstance(model, Custom) else model.with_head(model.classes)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(images).logits, model(images).logits)


def test_unknown_names_are_refused_with_the_choices(model, images):
    with pytest.raises(Refused, match="choices: .*features"):
        model(images, taps=("nowhere",))
    with pytest.raises(Refused, match="cut: got 'featurs'.*Did you mean 'features'"):
        model.split("featurs")
    with pytest.raises(Refused, match=r"expected \[B, 1, H, W\], got \[4, 3, 24, 28\]"):
        model(images.expand(-1, 3, -1, -1))


def test_preprocess_normalises_and_resizes_only_when_needed():
    preprocess = Preprocess(channels=3, size=8, mean=[0.0, 0.5, 1.0], std=0.5)
    ends = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    assert preprocess(ends)[:, :, 0, 0].tolist() == [[0.0, -1.0, -2.0], [2.0, 1.0, 0.0]]
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(preprocess(images), (images - preprocess.mean) / preprocess.std)
    assert preprocess(torch.rand(2, 3, 20, 9)).shape == (2, 3, 8, 8)
    with pytest.raises(Refused, match="mean: expected 1 or 3 values"):
        Preprocess(channels=3, size=8, mean=[0.5, 0.5])
    with pytest.raises(Refused, match="std: expected values above 0"):
        Preprocess(channels=3, size=8, std=0.0)


def test_cnn_refuses_more_stages_than_pixels():
    with pytest.raises(Refused, match="at least 16 pixels for 4 stages, got 8"):
        CNN(classes=2, channels=1, size=8, widths=[4, 4, 4, 4])
    with pytest.raises(Refused, match="widths: expected one or more"):
        MLP(classes=2, channels=1, widths=[])


def test_custom_equals_the_network_it_was_given():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))
    images = torch.rand(6, 1, 8, 8)
    expected = network((images - 0.5) / 0.5)
    model = Custom(network=network, feature_layer="3", classes=3, channels=1, size=8)
    assert torch.equal(model(images).logits, expected)
    assert sum(parameter.numel() for parameter in model.parameters()) == 64 * 5 + 5 + 5 * 3 + 3


def test_custom_takes_the_last_linear_layer_where_none_is_named():
    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3))

    told = {"classes": 3, "channels": 1, "size": 4}
    states = [Custom(network=network(), **named, **told).state_dict() for named in ({}, {"feature_layer": "2"})]
    assert list(states[0]) == list(states[1]) and states[0]["classifier.weight"].shape == (3, 5)
    with pytest.raises(Refused, match="feature_layer"):
        Custom(network=nn.Flatten(), **told)


def test_custom_refusals():
    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(dim=1))

    settings = {"channels": 1, "size": 8}
    with pytest.raises(Refused, match="feature_layer: got 'fc'; choices: 1"):
        Custom(network=network(), feature_layer="fc", classes=3, **settings)
    with pytest.raises(Refused, match="expected 4 outputs of '1', got 3.*fresh_head=true"):
        Custom(network=network(), feature_layer="1", classes=4, **settings)
    with pytest.raises(Refused, match="no softmax"):
        Custom(network=network(), feature_layer="1", classes=3, **settings)
    fresh = Custom(network=network()[:2], feature_layer="1", classes=4, fresh_head=True, **settings)
    assert fresh(torch.rand(2, 1, 8, 8)).logits.shape == (2, 4)


def test_resnet_refuses_absent_weights_without_downloading(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(Refused, match="expected the file .*download=true"):
        ResNet(variant="resnet18", classes=3, channels=3, pretrained=True)
    with pytest.raises(Refused, match="weights: got 'V1'; choices: IMAGENET1K_V1"):
        ResNet(variant="resnet18", classes=3, channels=3, pretrained=True, weights="V1")
    with pytest.raises(Refused, match="expected stem=imagenet"):
        ResNet(variant="resnet18", classes=3, channels=3, pretrained=True, stem="small")
    with pytest.raises(Refused, match="stem: got 'tiny'"):
        ResNet(variant="resnet18", classes=3, channels=3, stem="tiny")


def cached_weights(monkeypatch, folder, content: bytes, name_hash: str | None = None) -> None:
    """A file in torch's cache that torchvision takes for its ResNet-18 weights; by default its name tells its hash."""
    name = f"resnet18-{name_hash or hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / name).write_bytes(content)
    weights = Weights(url=f"https://nowhere.invalid/{name}", transforms=None, meta={})
    choices = WeightsEnum("ResNet18_Weights", {"IMAGENET1K_V1": weights})
    monkeypatch.setattr(torchvision.models, "get_model_weights", {"resnet18": choices}.__getitem__)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Trap:
    """What a pickle may hide: loading it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_cached_weights_are_checked_and_never_unpickled(tmp_path, monkeypatch):
    donor = torchvision.models.resnet18(weights=None).state_dict()
    cached_weights(monkeypatch, tmp_path, saved(donor))
    model = ResNet(variant="resnet18", classes=1000, channels=3, size=32, pretrained=True)
    assert torch.equal(model.classifier.weight, donor["fc.weight"])
    cached_weights(monkeypatch, tmp_path, saved(donor), name_hash="0123abcd")
    with pytest.raises(Refused, match="expected SHA-256 as in the name of .*0123abcd.pth, got "):
        ResNet(variant="resnet18", classes=3, channels=3, pretrained=True)
    cached_weights(monkeypatch, tmp_path, saved({"fc.weight": Trap(tmp_path / "sprung")}))
    with pytest.raises(Refused, match="holds a pickle that asks for posix.mkdir"):
        ResNet(variant="resnet18", classes=3, channels=3, pretrained=True)
    assert not (tmp_path / "sprung").exists()


def test_a_stored_target_opens_without_the_weights_it_started_from(store, tmp_path, monkeypatch):
    cached_weights(monkeypatch, tmp_path, saved(torchvision.models.resnet18(weights=None).state_dict()))
    overrides = ("dataset=toy", "architecture=resnet18", "architecture.pretrained=true", "recipe.epochs=1")
    few = ("dataset.images_per_class=12", "dataset.test_images_per_class=2", "compute=cpu")
    pipeline = Pipeline(conftest.plan_for("train_target", *overrides, *few, store=store))
    artefact = pipeline.target.artefact
    shutil.rmtree(tmp_path / "checkpoints")
    model = load_classifier(pipeline.session, artefact)
    stored = artefact.tensors()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_pretrained_grey_stem_sees_what_three_equal_channels_would(monkeypatch):
    from torchvision.models import resnet18

    from midefense.architectures import official

    donor = resnet18(weights=None).eval()
    monkeypatch.setattr(official, "official_weights", lambda choices, name, download: donor.state_dict())
    grey = ResNet(variant="resnet18", classes=1000, channels=1, size=32, pretrained=True).eval()
    rgb = ResNet(variant="resnet18", classes=1000, channels=3, size=32, pretrained=True).eval()
    images = torch.rand(2, 1, 32, 32)
    expected = donor((images.expand(-1, 3, -1, -1) - 0.5) / 0.5)
    torch.testing.assert_close(grey(images).logits, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(rgb(images.expand(-1, 3, -1, -1)).logits, expected)
