"""Networks for large images: they are torchvision's, timm's and facenet-pytorch's own, and start from their files.
Faces are aligned for the networks that judge them."""

import functools
import hashlib
import os
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT
from contract.listing import node
from facenet_pytorch import InceptionResnetV1
from torchvision.models import Weights, WeightsEnum, get_model_weights

from midefense import seeds
from midefense.architectures import facenet_vggface2
from midefense.architectures.backbones import pin_weights
from midefense.architectures.base import Classifier
from midefense.architectures.checkpoints import read_tensors
from midefense.architectures.facenet_vggface2 import FaceNetVGGFace2
from midefense.architectures.faces import TARGET_LANDMARKS, FaceWarp, similarity
from midefense.architectures.inception import IMAGENET_MEAN, IMAGENET_STD, InceptionV3
from midefense.architectures.mobilefacenet import Embedding
from midefense.architectures.official import last_linear
from midefense.architectures.resnet import VARIANTS as RESNETS
from midefense.architectures.resnet import ResNet
from midefense.architectures.small import CNN
from midefense.architectures.state_names import from_published, to_published
from midefense.architectures.timm_networks import Timm
from midefense.architectures.vision import VARIANTS, Vision
from midefense.defenses.base import NoDefense
from midefense.training import loop
from midefense.training.recipe import Recipe
from midefense.types import Batch, Images, Refused

SHARED = ROOT.parent / "shared"
RESNET_STAGES = ["stem", "layer1", "layer2", "layer3", "layer4", "features"]
DENSE_STAGES = [f"{kind}{i}" for i in (1, 2, 3, 4) for kind in ("denseblock", "transition")][:-1]
STAGES = {
    "densenet": ["stem", *DENSE_STAGES, "features"],
    "efficientnet": ["stem", *(f"stage{i}" for i in range(1, 8)), "features"],
    "maxvit": ["stem", "block1", "block2", "block3", "block4", "features"],
    "swin": ["stem", "stage1", "stage2", "stage3", "stage4", "features"],
    "vit": ["stem", *(f"encoder_layer_{i}" for i in range(12)), "features"],
}


def noise(*shape):
    return torch.rand(*shape, generator=seeds.generator("noise", *shape))


def weight_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def settled(network):
    """Evaluation mode, with batch-norm statistics that are not those of a fresh network."""
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand(buffer.shape, generator=seeds.generator("buffer", name)) / 10)
    return network.eval()


# --- the same networks as torchvision's -------------------------------------------------------------------------------


def build(variant, **settings):
    """Ours, with 5 classes and 3 channels unless told otherwise."""
    settings = {"classes": 5, "channels": 3, **settings}
    if variant == "inception_v3":
        return InceptionV3(**settings)
    return (ResNet if variant in RESNETS else Vision)(variant=variant, **settings)


TWINS = {
    "resnet34": ("resnet34", {}, {"size": 32}),
    "resnext50": ("resnext50_32x4d", {}, {"size": 32}),
    "densenet121": ("densenet121", {}, {"size": 32}),
    "efficientnet_b0": ("efficientnet_b0", {}, {"size": 32}),
    "swin_t": ("swin_t", {}, {"size": 32}),
    "vit_b_16": ("vit_b_16", {"image_size": 32}, {"size": 32}),
    "maxvit_t": ("maxvit_t", {}, {"size": 224}),
    "inception_v3": (
        "inception_v3",
        {"aux_logits": False, "init_weights": True},
        {"size": 80, "auxiliary_weight": 0.0},
    ),
}


@pytest.mark.parametrize("variant", TWINS)
def test_gives_the_logits_of_torchvisions_own_network(variant):
    name, options, settings = TWINS[variant]
    with seeds.isolated("twin", variant):
        twin = settled(torchvision.models.get_model(name, weights=None, num_classes=5, **options))
        last_linear(twin)[1].reset_parameters()  # ViT's is zero at first, which any network would equal
        ours = build(variant, **settings).eval()
    images = noise(2, 3, ours.size, ours.size)
    ours.load_state_dict(from_published(ours, twin.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, twin((images - 0.5) / 0.5), rtol=1e-5, atol=1e-5)
    assert list(to_published(ours)) != list(ours.state_dict()) and set(to_published(ours)) == set(twin.state_dict())


@pytest.mark.parametrize("variant", [*RESNETS, *VARIANTS, "inception_v3"])
def test_stages_and_weight_counts_are_the_published_ones(variant):
    with torch.device("meta"):
        ours = build(variant, classes=1000)
        other = build(variant, classes=7)
    weights = list(get_model_weights(RESNETS.get(variant, variant)))
    assert weight_count(ours) == weights[0].meta["num_params"]
    assert other.classifier.out_features == 7 and other.feature_width == ours.feature_width
    family = variant.split("_")[0].rstrip("0123456789")
    if family in STAGES:
        assert list(ours.tap_names) == STAGES[family]
    elif variant in RESNETS:
        assert list(ours.tap_names) == RESNET_STAGES


def test_a_small_stem_keeps_the_side():
    with torch.device("meta"):
        trace = ResNet(variant="resnet34", classes=2, channels=1, size=32, stem="small")(
            noise(1, 1, 32, 32), ["layer1"]
        )
    assert trace.taps["layer1"].shape == (1, 64, 32, 32)


@pytest.mark.parametrize(
    ("variant", "size", "message"),
    [
        ("densenet121", 31, "at least 32 for densenet121, got 31"),
        ("vit_b_16", 40, "a multiple of 16, at least 32 for vit_b_16, got 40"),
        ("maxvit_t", 32, "a multiple of 32, at least 64 for maxvit_t, got 32"),
        ("inception_v3", 74, "at least 75, got 74"),
    ],
)
def test_sizes_a_network_cannot_take_are_refused(variant, size, message):
    with pytest.raises(Refused, match=message):
        build(variant, size=size)


def test_unknown_variants_are_refused_with_the_choices():
    with pytest.raises(Refused, match="variant: got 'resnet33'; choices: resnet18, .*Did you mean 'resnet"):
        ResNet(variant="resnet33", classes=2, channels=3)
    with pytest.raises(Refused, match="variant: got 'swin'; choices: densenet121"):
        Vision(variant="swin", classes=2, channels=3)


# --- pretrained weights -----------------------------------------------------------------------------------------------


def saved(folder: Path, content: object, name: str = "weights") -> Path:
    """A torch file whose name begins to tell its SHA-256, as torchvision's do."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "unnamed.pth"
    torch.save(content, file)
    return file.rename(folder / f"{name}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")


@pytest.fixture
def official(tmp_path, monkeypatch):
    """`official(network name, state dict)`: that file in torch's cache as torchvision's weights IMAGENET1K_V1."""

    def put(name, state, min_size=(1, 1)):
        file = saved(tmp_path / "checkpoints", state, name)
        entry = Weights(url=f"https://nowhere.invalid/{file.name}", transforms=None, meta={"min_size": min_size})
        choices = WeightsEnum(f"{name}_Weights", {"IMAGENET1K_V1": entry})
        monkeypatch.setattr(torchvision.models, "get_model_weights", {name: choices}.__getitem__)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    return put


def test_pretrained_weights_come_from_torchs_cache_and_grey_images_see_summed_kernels(official):
    with seeds.isolated("donor"):
        donor = settled(torchvision.models.swin_t(weights=None))  # its first convolution has a bias
    official("swin_t", donor.state_dict())
    settings = {"size": 32, "pretrained": True}
    rgb, grey = build("swin_t", classes=1000, **settings), build("swin_t", classes=1000, channels=1, **settings)
    images = noise(2, 1, 32, 32)
    with torch.no_grad():
        expected = donor((images.expand(-1, 3, -1, -1) - 0.5) / 0.5)
        torch.testing.assert_close(rgb.eval()(images.expand(-1, 3, -1, -1)).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grey.eval()(images).logits, expected, rtol=1e-3, atol=1e-4)
    few = build("swin_t", **settings)
    assert few.classes == 5 and torch.equal(few.state_dict()["stages.stem.0.weight"], donor.features[0][0].weight)
    with pytest.raises(Refused, match="pretrained: expected 1 or 3 channels, got 4"):
        build("swin_t", channels=4, **settings)


def test_densenets_old_names_are_understood(official):
    donor = torchvision.models.densenet121(weights=None).state_dict()
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for name, value in donor.items()}
    assert "features.denseblock1.denselayer1.conv.2.weight" in old
    official("densenet121", old)
    ours = to_published(build("densenet121", classes=1000, size=32, pretrained=True))
    assert all(torch.equal(ours[name], value) for name, value in donor.items())


def test_position_tables_fit_one_size(official):
    official("vit_b_16", {"class_token": torch.zeros(1, 1, 768)}, min_size=(224, 224))
    with pytest.raises(Refused, match="size: expected 224, as weights=IMAGENET1K_V1 of vit_b_16 were learnt, got 32"):
        build("vit_b_16", size=32, pretrained=True)


@pytest.mark.parametrize("variant", ["resnet50", "densenet161", "maxvit_t", "inception_v3"])
def test_absent_weights_are_refused_with_their_address(variant, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with torch.device("meta"), pytest.raises(Refused, match=f"download=true, or put https://.*{variant}.*pth there"):
        build(variant, pretrained=True)
    with torch.device("meta"), pytest.raises(Refused, match="weights: got 'V9'; choices: IMAGENET1K_V1"):
        build(variant, pretrained=True, weights="V9")


class Trap:
    """What a pickle may hide: loading it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_file_is_read_as_tensors_or_refused_with_what_it_holds(tmp_path):
    state = {"weight": noise(2, 3), "bias": noise(2)}
    checkpoint = {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}}
    safetensors.torch.save_file(state, tmp_path / "state.safetensors")
    for file in (saved(tmp_path, state), saved(tmp_path, checkpoint), tmp_path / "state.safetensors"):
        read = read_tensors(file)
        assert set(read) == set(state) and all(torch.equal(read[name], state[name]) for name in state)
    refused = {
        "a pickle that asks for posix.mkdir": {"weight": Trap(tmp_path / "sprung")},
        r"a mapping of a \(a state dict\), b \(a state dict\)": {"a": state, "b": state},
        "a mapping of epoch .int": {"epoch": 3},
        "a list": [state],
        "a pickle that asks for torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
    }
    for words, content in refused.items():
        with pytest.raises(Refused, match=f"which holds {words}"):
            read_tensors(saved(tmp_path, content))
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_none_are_refused(tmp_path):
    whole = saved(tmp_path, {"weight": noise(2)}).read_bytes()
    contents = {"cut.pth": whole[: len(whole) // 2], "text.pth": b"hello", "text.safetensors": b"123456789"}
    words = {
        "cut.pth": "cut short or changed",
        "text.pth": "nothing that torch saved",
        "text.safetensors": "no safetensors",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Refused, match=words[name]):
            read_tensors(tmp_path / name)
    with pytest.raises(Refused, match="got no file"):
        read_tensors(tmp_path / "absent.pth")


# --- Inception: auxiliary head, transform_input -----------------------------------------------------------------------


def batch_of(images, labels):
    count = len(images)
    return Batch(images, torch.tensor(labels), torch.arange(count), torch.ones(count), seeds.generator("batch"))


def recipe(**changes):
    settings = {"epochs": 1, "batch_size": 4, "optimizer": functools.partial(torch.optim.SGD, lr=0.01)}
    return Recipe(**{**settings, **changes})


def test_inceptions_auxiliary_head_is_trained_and_only_trained():
    with seeds.isolated("inception"):
        model = InceptionV3(classes=3, channels=1, size=299, auxiliary_weight=0.5).train()
        learner = loop.Learner(model, NoDefense(), recipe())
        trace, terms = learner(batch_of(noise(2, 1, 64, 64), [0, 2]))
    assert set(terms) == {"task", "auxiliary"} and list(trace.taps) == ["aux"]
    assert trace.taps["aux"].shape == (2, 1000)
    expected = 0.5 * F.cross_entropy(trace.taps["aux"], torch.tensor([0, 2]), reduction="none")
    torch.testing.assert_close(terms["auxiliary"], expected)
    terms["auxiliary"].sum().backward()
    assert all(parameter.grad.any() for parameter in model.auxiliary.parameters())
    assert model.classifier.weight.grad is None and model.stages["Mixed_6e"].branch1x1.conv.weight.grad.any()
    assert {"auxiliary.conv0.conv.weight", "auxiliary.fc.weight"} <= set(model.state_dict())
    assert to_published(model)["AuxLogits.fc.weight"].shape == (1000, 768)
    assert model.eval()(noise(1, 1, 64, 64)).taps == {}


def test_an_auxiliary_head_keeps_the_taps_asked_for():
    with torch.device("meta"):
        model = InceptionV3(classes=1200, channels=3, size=299).train()
        images = torch.empty(2, 3, 299, 299)
        assert list(model(images, taps=["Mixed_5b"]).taps) == ["Mixed_5b", "aux"]
        trace = model(images, taps=["Mixed_6e"])
    assert trace.taps["Mixed_6e"].shape == (2, 768, 17, 17) and trace.taps["aux"].shape == (2, 1200)


def test_an_auxiliary_head_without_room_is_refused():
    with pytest.raises(Refused, match="auxiliary_weight: expected 0 below 299 pixels.*got 1.0 at size=128"):
        InceptionV3(classes=3, channels=3, size=128)
    with torch.device("meta"):
        model = InceptionV3(classes=3, channels=3, size=128, auxiliary_weight=0.0)
    assert not any(name.startswith("auxiliary") for name in model.state_dict())


class TwoHeads(CNN):
    """A cheap network with an auxiliary head, as any architecture may declare it."""

    auxiliary_weight = 2.0

    def __init__(self, **settings):
        super().__init__(**settings)
        self.auxiliary = torch.nn.Linear(self.feature_width, self.classes)

    def forward(self, images, taps=()):
        trace = super().forward(images, taps)
        if self.training:
            trace.taps["aux"] = self.auxiliary(trace.features)
        return trace


def test_training_adds_the_auxiliary_loss_to_the_task():
    with seeds.isolated("two heads"):
        model = TwoHeads(classes=2, channels=1, size=8, widths=[4], features=4)
    before = model.auxiliary.weight.detach().clone()
    pixels = (noise(8, 1, 8, 8) * 255).to(torch.uint8)
    images = Images(pixels, torch.arange(8) % 2, torch.arange(8), ["a", "b"])
    [(_, logs, _)] = list(loop.fit(model, NoDefense(), images, recipe(), seed=0))
    assert logs["loss"] == pytest.approx(logs["loss/task"] + logs["loss/auxiliary"])
    assert not torch.equal(model.auxiliary.weight, before)


def test_transform_input_is_torchvisions_affine_map_and_no_weight():
    settings = {"classes": 3, "channels": 3, "size": 75, "auxiliary_weight": 0.0}
    with seeds.isolated("inception"):
        plain = InceptionV3(**settings).eval()
    mapped = InceptionV3(**settings, transform_input=True).eval()
    mapped.load_state_dict(plain.state_dict())
    images = noise(2, 3, 75, 75)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (images - 0.5) / 0.5
    torch.testing.assert_close(mapped.preprocess(images), normalised * std / 0.5 + (mean - 0.5) / 0.5)
    inverse = (images - mean) / (2 * std) + 0.5
    with torch.no_grad():
        torch.testing.assert_close(mapped(inverse).logits, plain(images).logits, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(mapped(images).logits, plain(images).logits, atol=1e-2)
    with pytest.raises(Refused, match="transform_input: expected 3 channels, got 1"):
        InceptionV3(**{**settings, "channels": 1}, transform_input=True)


# --- timm -------------------------------------------------------------------------------------------------------------


def timm_weights(folder, name, **options):
    """A network of timm, and its weights in a file."""
    with seeds.isolated("timm", name):
        donor = settled(timm.create_model(name, pretrained=False, num_classes=11, **options))
    safetensors.torch.save_file(donor.state_dict(), folder / f"{name}.safetensors")
    return donor, str(folder / f"{name}.safetensors")


@pytest.mark.parametrize(("name", "options"), [("vit_tiny_patch16_224", {"img_size": 32}), ("resnest14d", {})])
def test_timms_network_starts_from_a_file_and_keeps_its_features(name, options, tmp_path):
    donor, file = timm_weights(tmp_path, name, **options)
    rgb = Timm(name=name, classes=3, channels=3, size=32, weights=file).eval()
    grey = Timm(name=name, classes=3, channels=1, size=32, weights=file).eval()
    images = noise(2, 1, 32, 32)
    normalised = (images.expand(-1, 3, -1, -1) - 0.5) / 0.5
    with torch.no_grad():
        expected = donor.forward_head(donor.forward_features(normalised), pre_logits=True)
        torch.testing.assert_close(rgb.features(images.expand(-1, 3, -1, -1)), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grey.features(images), expected, rtol=1e-3, atol=1e-4)
    assert list(rgb.tap_names) == (RESNET_STAGES if name == "resnest14d" else ["features"])
    whole = Timm(name=name, classes=11, channels=3, size=32).eval()
    whole.load_state_dict(from_published(whole, donor.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(whole(images.expand(-1, 3, -1, -1)).logits, donor(normalised), rtol=1e-5, atol=1e-5)


def test_timms_refusals(tmp_path):
    settings = {"classes": 3, "channels": 3, "size": 32}
    with pytest.raises(Refused, match="name: got 'resnest101'; choices: .*resnest101e.*weights=FILE"):
        Timm(name="resnest101", **settings)
    with pytest.raises(Refused, match="name: got 'hf-hub:timm/resnet18'"):
        Timm(name="hf-hub:timm/resnet18", **settings)
    with pytest.raises(Refused, match="expected options it can be built with.*no_such_option"):
        Timm(name="resnet10t", options={"no_such_option": 1}, **settings)
    _, file = timm_weights(tmp_path, "resnet10t")
    with pytest.raises(Refused, match="missing"):
        Timm(name="resnest14d", weights=file, **settings)
    with pytest.raises(Refused, match="got no file"):
        Timm(name="resnet10t", weights=str(tmp_path / "absent.pth"), **settings)


def test_resnest101_is_the_authors_network():
    resnest = node("train_target", "architecture", "architecture=resnest101").given(classes=1000, channels=3)
    with torch.device("meta"):
        model = resnest.build()
    assert weight_count(model) == 48_275_016 and list(model.tap_names) == RESNET_STAGES
    assert model.feature_width == 2048 and model.size == 224


def test_the_content_of_a_weights_file_is_pinned_not_its_path(tmp_path):
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    torch.save({"weight": torch.zeros(2)}, first)
    second.write_bytes(first.read_bytes())
    recipes = [
        node("train_target", "architecture", "architecture=timm", f"architecture.weights={file}").recipe()
        for file in (first, second)
    ]
    assert recipes[0] == recipes[1] and recipes[0]["weights"] == pin_weights({"weights": str(first)})["weights"]


# --- faces ------------------------------------------------------------------------------------------------------------

FRAME = [0, 0, 178, 218]
CROP = [35, 55, 143, 163]


def mobilefacenet(channels=3, classes=4, **changes):
    overrides = [f"architecture.{name}={value}" for name, value in changes.items()]
    bound = node("train_target", "architecture", "architecture=mobilefacenet", *overrides)
    with seeds.isolated("mobilefacenet"):
        return bound.given(classes=classes, channels=channels).build().eval()


def blob(height, width, x, y, box):
    """An image [1, 1, H, W] of `box`: a bell of five frame pixels around the frame's point (x, y)."""
    left, top, right, bottom = box
    across = left + (torch.arange(width) + 0.5) * (right - left) / width - 0.5
    down = top + (torch.arange(height) + 0.5) * (bottom - top) / height - 0.5
    return torch.exp(-((across - x) ** 2 + (down[:, None] - y) ** 2) / 50).reshape(1, 1, height, width)


def centre(image):
    """Centre of mass (x, y) of an image [1, 1, H, W]."""
    mass = image[0, 0] / image.sum()
    return (mass.sum(0) * torch.arange(mass.shape[1])).sum(), (mass.sum(1) * torch.arange(mass.shape[0])).sum()


@pytest.mark.parametrize(
    ("box", "height", "width"),
    [(FRAME, 218, 178), (FRAME, 128, 128), (FRAME, 436, 356), (CROP, 108, 108), (CROP, 64, 64)],
)
def test_landmarks_land_on_their_targets(box, height, width):
    factor, shift = complex(0.8, -0.15), complex(50, 60)  # a small face, turned, away from the edges of every box
    source = [factor * complex(*point) + shift for point in TARGET_LANDMARKS]
    landmarks = [[z.real, z.imag] for z in source]
    warp = FaceWarp(landmarks=landmarks, box=box)
    for (x, y), target in zip(landmarks, TARGET_LANDMARKS, strict=True):
        assert centre(warp(blob(height, width, x, y, box))) == pytest.approx(target, abs=0.1)


def test_the_template_of_celeba_is_a_similarity_up_to_the_shape_of_a_face():
    warp = node("train_target", "architecture", "architecture=mobilefacenet").arguments["warp"]
    factor, shift = similarity(warp.arguments["landmarks"], TARGET_LANDMARKS)
    assert abs(factor) == pytest.approx(0.9356, abs=1e-3) and abs(factor.imag) < 0.01
    distances = [
        abs(factor * complex(*point) + shift - complex(*target))
        for point, target in zip(warp.arguments["landmarks"], TARGET_LANDMARKS, strict=True)
    ]
    assert max(distances[:2]) < 1 and max(distances) < 3.2


def test_the_warp_is_differentiable_and_black_outside():
    warp = FaceWarp(landmarks=TARGET_LANDMARKS, box=[20, 20, 80, 90])
    images = torch.ones(1, 1, 70, 60, requires_grad=True)
    faces = warp(images)
    assert faces.shape == (1, 1, 112, 96) and not faces[..., :19, :].any() and not faces[..., :, 81:].any()
    assert torch.equal(faces[..., 21:89, 21:79], torch.ones(1, 1, 68, 58))
    faces.sum().backward()
    assert images.grad.min() > 0
    with pytest.raises(Refused, match=r"landmarks: expected 5 pairs \(x, y\)"):
        FaceWarp(landmarks=TARGET_LANDMARKS[:4], box=FRAME)
    with pytest.raises(Refused, match="box: expected left, top, right, bottom, got .178"):
        FaceWarp(landmarks=TARGET_LANDMARKS, box=[178, 0, 0, 218])


def test_mobilefacenets_embedding():
    model = mobilefacenet()
    assert (
        weight_count(Embedding()) == 999_552 and sum(v.numel() for v in Embedding().state_dict().values()) == 1_019_186
    )
    images = noise(3, 3, 218, 178)
    faces = model.preprocess(images)
    with torch.no_grad():
        features, of_mirrored = model.features(images), model.stages["features"](faces.flip(-1))
    assert faces.shape == (3, 3, 112, 96) and features.shape == (3, 256)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(of_mirrored, features.roll(128, dims=1))


def test_grey_faces_are_seen_as_three_equal_channels():
    for build in (mobilefacenet, facenet):
        grey, rgb = build(channels=1), build(channels=3)
        images = noise(2, 1, 96, 96)
        assert torch.equal(grey.features(images), rgb.features(images.expand(-1, 3, -1, -1)))
        with pytest.raises(Refused, match="channels: expected 1 or 3"):
            build(channels=2)


def facenet(channels=3, classes=4, **changes):
    settings = {"size": 80, "pretrained": False, **changes}
    with seeds.isolated("facenet"):
        return FaceNetVGGFace2(classes=classes, channels=channels, **settings).eval()


def test_facenet_is_facenet_pytorchs(tmp_path, monkeypatch):
    with seeds.isolated("facenet donor"):
        donor = settled(InceptionResnetV1())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(Refused, match="20180402-114759-vggface2.pt, got none.*put https://github.com/timesler"):
        facenet(pretrained=True)
    published = {**donor.state_dict(), "logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    (tmp_path / "checkpoints").mkdir()
    torch.save(published, tmp_path / "checkpoints" / Path(facenet_vggface2.ADDRESS).name)
    model = facenet(pretrained=True)
    images = noise(2, 3, 80, 80)
    with torch.no_grad():
        features, expected = model.features(images), donor((images * 255 - 127.5) / 128)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert features.shape == (2, 512)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    with pytest.raises(Refused, match="size: expected at least 75, got 64"):
        facenet(size=64)


@pytest.mark.parametrize("make", [mobilefacenet, lambda: CNN(classes=4, channels=3, widths=[4], features=9)])
def test_centroids_make_the_largest_cosine_win(make):
    model: Classifier = make()
    rng = seeds.generator("centroids")
    features = torch.randn(40, model.feature_width, generator=rng)
    labels = torch.arange(40) % 4
    model.set_centroids(features, labels)
    means = torch.stack([F.normalize(features[labels == label], dim=1).mean(0) for label in range(4)])
    asked = torch.randn(20, model.feature_width, generator=rng)
    cosines = F.cosine_similarity(asked[:, None], means[None], dim=2)
    lengths = asked.norm(dim=1, keepdim=True) * model.centroid_scale
    torch.testing.assert_close(model.head(asked), cosines * lengths, rtol=1e-4, atol=1e-4)
    with pytest.raises(Refused, match=r"labels: expected each of 0 to 3 and no other, they differ in \[3\]"):
        model.set_centroids(features[labels < 3], labels[labels < 3])
    with pytest.raises(Refused, match=r"they differ in \[4\]"):
        model.set_centroids(features, torch.arange(40) % 5)


@pytest.mark.skipif(
    not (SHARED / "data" / "nets.tar.xz").is_file(), reason="needs shared/data/nets.tar.xz beside the repository"
)
def test_published_mobilefacenet_weights_fit(tmp_path):
    import tarfile

    with tarfile.open(SHARED / "data" / "nets.tar.xz") as pack:
        member = next(name for name in pack.getnames() if name.endswith("mobilefacenet_068.ckpt"))
        (tmp_path / "weights.ckpt").write_bytes(pack.extractfile(member).read())
    model = mobilefacenet(weights=str(tmp_path / "weights.ckpt"))
    state = read_tensors(tmp_path / "weights.ckpt")
    published = to_published(model)
    assert set(published) == {*state, "classifier.weight"}
    assert all(torch.equal(published[name], value) for name, value in state.items())
