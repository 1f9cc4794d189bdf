"""What the cards say of the low-resolution networks beyond their published numbers: taps, initialisation, backbones
out of a file, attention that can be differentiated twice, and the discriminator's and generator's own layers."""

import math

import conftest
import pytest
import torch
import torchvision
from torch import nn

from midefense import seeds
from midefense.architectures.face_evolve import FaceEvolve
from midefense.architectures.mnist_cnn import MCNN, SCNN
from midefense.architectures.network_inversion import NetworkInversionCNN, NetworkInversionMLP
from midefense.architectures.state_names import to_published
from midefense.architectures.tiny_vit import Attention, Layer, TinyViT
from midefense.architectures.vgg import VGG16
from midefense.pipeline.classifiers import load_classifier
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.bind import bind
from midefense.priors.nets.ked import Discriminator, MinibatchDiscrimination
from midefense.priors.nets.plg import ConditionalBatchNorm, Generator
from midefense.types import Refused


def tapped(model: nn.Module, size: int) -> list[list[int]]:
    """The shape of every tap, without the batch."""
    images = torch.zeros(2, model.channels, size, size)
    with torch.no_grad():
        return [list(tap.shape[1:]) for tap in model.eval()(images, taps=model.tap_names).taps.values()]


def test_taps_are_what_bido_taps():
    vgg, mcnn = tapped(VGG16(classes=3, channels=3), 64), tapped(MCNN(classes=3, channels=1), 32)
    assert [math.prod(shape) for shape in vgg] == [65536, 32768, 16384, 8192, 2048]
    assert [math.prod(shape) for shape in mcnn] == [12544, 3200, 256]
    assert tapped(SCNN(classes=3, channels=1), 32)[2:] == [[128, 1, 1], [256, 1, 1], [512]]


def test_every_face_evolve_stage_halves_the_side():
    model = FaceEvolve(classes=3, channels=1, size=32)
    assert tapped(model, 32) == [[64, 32, 32], [64, 16, 16], [128, 8, 8], [256, 4, 4], [512, 2, 2], [512]]
    first, second = model.stages["stage1"][:2]
    images = torch.rand(1, 64, 6, 6)
    assert torch.equal(first.shortcut(images), images[..., ::2, ::2])
    assert torch.equal(second.shortcut(images), images)


def test_pixels_are_not_normalised():
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(MCNN(classes=3, channels=1).preprocess(images), images)


def test_face_evolve_starts_from_xavier_uniform_weights():
    model = FaceEvolve(classes=3, channels=1, size=32)
    convolution, linear = model.stages["stage4"][0].residual[1], model.stages["features"][3]
    for weight, fans in ((convolution.weight, 9 * (256 + 512)), (linear.weight, 2048 + 512)):
        bound = (6 / fans) ** 0.5
        assert 0.99 * bound < weight.abs().max() <= bound
    assert not linear.bias.any()


def test_the_bias_of_vggs_features_is_frozen_at_zero():
    model = VGG16(classes=3, channels=1, size=32).with_head(4)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"stages.features.norm.bias"}
    assert not model.stages["features"].norm.bias.any()
    features = model.train()(torch.rand(6, 1, 32, 32)).features
    torch.testing.assert_close(features.mean(0), torch.zeros(512), atol=1e-5, rtol=0)


def test_sides_and_depths_that_do_not_exist_are_refused():
    with pytest.raises(Refused, match="multiple of 32 pixels, got 60; try 64"):
        VGG16(classes=3, channels=3, size=60)
    with pytest.raises(Refused, match="multiple of 16 pixels, got 100; try 64 or 112"):
        FaceEvolve(classes=3, channels=3, size=100)
    with pytest.raises(Refused, match="depth: got 101; choices: 50, 152"):
        FaceEvolve(classes=3, channels=3, depth=101)
    with pytest.raises(Refused, match="divisors of 28 px and of width 64, got 5 and 4"):
        TinyViT(classes=3, channels=1, patch=5)
    with pytest.raises(Refused, match="widths: expected one or more positive integers"):
        NetworkInversionMLP(classes=3, channels=1, widths=[])
    with pytest.raises(Refused, match="as many as 4 px can be halved"):
        NetworkInversionCNN(classes=3, channels=1, size=4)


def test_network_inversions_classifiers_have_the_layers_of_the_card():
    mlp = NetworkInversionMLP(classes=10, channels=1)
    assert sum(p.numel() for p in mlp.parameters()) == (784 + 3) * 512 + (512 + 3) * 256 + 257 * 10
    for size, width in ((28, 1152), (32, 2048)):
        cnn = NetworkInversionCNN(classes=10, channels=1, size=size)
        assert cnn.stages["features"][1].in_features == width
    vit = TinyViT(classes=10, channels=1)
    assert tapped(vit, 28) == [[17, 64], [17, 64], [17, 64], [64]]


def test_a_layer_of_the_transformer_is_torchs_post_norm_layer():
    with seeds.isolated("layer"):
        ours = Layer(8, heads=2, inner=16, dropout=0.0)
        theirs = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    pairs = {
        "attention.project_in.": "self_attn.in_proj_",
        "attention.project_out.": "self_attn.out_proj.",
        "attention_norm.": "norm1.",
        "mixing_norm.": "norm2.",
        "mixing.0.": "linear1.",
        "mixing.3.": "linear2.",
    }
    renamed = {f"{a}{kind}": f"{b}{kind}" for a, b in pairs.items() for kind in ("weight", "bias")}
    state = theirs.state_dict()
    ours.load_state_dict({name: state[renamed[name]] for name in ours.state_dict()})
    tokens = torch.rand(3, 5, 8, generator=seeds.generator("tokens"))
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_attention_can_be_differentiated_twice():
    with seeds.isolated("attention"):
        attention = Attention(4, heads=2, dropout=0.0).double()
        tokens = torch.rand(2, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(attention, (tokens,))


def test_a_gradient_of_the_transformers_weights_can_be_matched():
    with seeds.isolated("vit"):
        model = TinyViT(classes=3, channels=1).eval()
    images = torch.rand(2, 1, 28, 28, generator=seeds.generator("images")).requires_grad_()
    loss = model(images).logits.logsumexp(1).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    sum(gradient.square().sum() for gradient in gradients).backward()
    assert images.grad.isfinite().all() and images.grad.flatten(1).any(1).all()


def test_vgg_starts_from_torchvisions_convolutions(tmp_path):
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16_bn.pth")
    model = VGG16(classes=3, channels=3, size=32, weights=str(tmp_path / "vgg16_bn.pth")).eval()
    images = torch.rand(2, 3, 32, 32)
    parts = model.stages["features"]
    torch.testing.assert_close(model(images).features, parts.norm(layers.eval()(images).flatten(1)))
    with pytest.raises(
        Refused, match=r"backbone of VGG16, got 1 of another shape \(features.0.weight \[64, 3, 3, 3\] ins"
    ):
        VGG16(classes=3, channels=1, size=32, weights=str(tmp_path / "vgg16_bn.pth"))
    torch.save({**state, "head.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(Refused, match=r"1 unexpected \(head.weight\)"):
        VGG16(classes=3, channels=3, size=32, weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("size", [64, 112])
def test_face_networks_start_from_a_backbone_with_its_output_layer_only_at_its_own_size(size, tmp_path):
    donor = FaceEvolve(classes=3, channels=3, size=112)
    backbone = {
        name.removeprefix("feature."): tensor
        for name, tensor in to_published(donor).items()
        if name.startswith("feature.")
    }
    torch.save({f"module.{name}": tensor for name, tensor in backbone.items()}, tmp_path / "ir50.pth")
    model = FaceEvolve(classes=3, channels=3, size=size, weights=str(tmp_path / "ir50.pth"))
    theirs, ours = donor.state_dict(), model.state_dict()
    inside = [name for name in ours if not name.startswith(("classifier", "stages.features"))]
    assert len(inside) == 337 and all(torch.equal(ours[name], theirs[name]) for name in inside)
    linear = "stages.features.3.weight"
    assert (ours[linear].shape == theirs[linear].shape and torch.equal(ours[linear], theirs[linear])) == (size == 112)
    assert not torch.equal(ours["classifier.weight"], theirs["classifier.weight"])


def vgg_node(weights: object) -> dict:
    return {"_target_": "midefense.architectures.vgg.VGG16", "classes": 3, "channels": 3, "weights": weights}


def test_the_content_of_a_weights_file_decides_the_id_and_its_path_does_not(tmp_path):
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"another")):
        (tmp_path / name).write_bytes(content)
    recipes = {
        name: bind(vgg_node(str(tmp_path / name)), "architecture").recipe() for name in ("a.pth", "b.pth", "c.pth")
    }
    assert recipes["a.pth"] == recipes["b.pth"] != recipes["c.pth"]
    assert recipes["a.pth"]["weights"].startswith("sha256:7692c3ad")
    stored = {**vgg_node(None), "weights": recipes["a.pth"]["weights"]}
    assert bind(stored, "stored").recipe()["weights"] == recipes["a.pth"]["weights"]
    assert bind(vgg_node(None), "architecture").recipe()["weights"] is None
    with pytest.raises(Refused, match="weights: expected a file, got .*nowhere.pth; try weights=null"):
        bind(vgg_node(str(tmp_path / "nowhere.pth")), "architecture").recipe()


def test_a_stored_target_opens_without_the_backbone_it_started_from(store, tmp_path):
    file = tmp_path / "vgg16_bn.pth"
    donor = to_published(VGG16(classes=3, channels=1, size=32))  # the toy's images are grey
    convolutions = {name: tensor for name, tensor in donor.items() if name.startswith("feature.")}
    torch.save({f"features.{name.removeprefix('feature.')}": tensor for name, tensor in convolutions.items()}, file)
    overrides = ("dataset=toy", "architecture=vgg16_64", "architecture.size=32", f"architecture.weights={file}")
    short = ("dataset.images_per_class=12", "dataset.test_images_per_class=2", "recipe.epochs=1", "compute=cpu")
    pipeline = Pipeline(conftest.plan_for("train_target", *overrides, *short, store=store))
    artefact = pipeline.target.artefact
    file.unlink()
    model = load_classifier(pipeline.session, artefact)
    stored = artefact.tensors()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_minibatch_discrimination_counts_near_duplicates():
    with seeds.isolated("closeness"):
        closeness = MinibatchDiscrimination(6)
        features = 100 * torch.randn(4, 6)
    assert torch.equal(closeness(features[:1]), torch.zeros(1, 64))
    torch.testing.assert_close(closeness(features[:1].expand(5, -1)), torch.full((5, 64), 4.0))
    torch.testing.assert_close(closeness(features), torch.zeros(4, 64))
    near = 0.01 * features
    mapped = torch.einsum("bf,fkd->bkd", near, closeness.kernel)
    distances = (mapped[:, None] - mapped[None]).abs().sum(3)
    expected = (-distances).exp().sum(1) - 1
    torch.testing.assert_close(closeness(near), expected, rtol=1e-4, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(closeness(near[order]), closeness(near)[order], rtol=1e-4, atol=1e-5)


def test_the_discriminators_features_do_not_depend_on_the_batch_but_its_logits_do():
    with seeds.isolated("discriminator"):
        discriminator = Discriminator(classes=3, channels=1, size=32, width=2)
        images = torch.rand(3, 1, 32, 32)
    (features, logits), (alone, alone_logits) = discriminator(images), discriminator(images[:1])
    torch.testing.assert_close(features[:1], alone)
    repeated = discriminator(images[:1].expand(3, -1, -1, -1))[1]
    assert logits.shape == (3, 3) and not torch.allclose(repeated[:1], alone_logits)


def test_a_fresh_conditional_norm_is_a_plain_one_for_every_class():
    hidden, labels = torch.rand(4, 5, 3, 3), torch.tensor([0, 1, 2, 0])
    norm, plain = ConditionalBatchNorm(5, classes=3), nn.BatchNorm2d(5)
    torch.testing.assert_close(norm(hidden, labels), plain(hidden))
    nn.init.constant_(norm.gains.weight[1], 2.0)
    changed = norm.eval()(hidden, labels) / plain.eval()(hidden)
    torch.testing.assert_close(changed[:, 0, 0, 0], torch.tensor([1.0, 2.0, 1.0, 1.0]), rtol=0.1, atol=0)


def test_the_conditional_generator_gives_images_between_minus_one_and_one():
    with seeds.isolated("generator"):
        generator = Generator(classes=3, latent_size=8, channels=1, size=32, width=2).eval()
        images = generator(torch.randn(2, 8), torch.tensor([0, 2]))
    assert images.shape == (2, 1, 32, 32) and images.abs().max() < 1
    assert "b5.running_mean" in to_published(generator) and "conv5.weight" in to_published(generator)
