"""StyleGAN2: its networks against the recorded original, against another formulation, and by what the maths says."""

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from midefense import seeds
from midefense.priors.stylegan2.critic import Convolution, Discriminator, minibatch_deviation
from midefense.priors.stylegan2.generator import (
    Dense,
    Generator,
    Mapping,
    Styled,
    StyleGan2Config,
    ToRgb,
    blurred,
    modulated,
    resample_filter,
    upsampled,
)
from midefense.priors.stylegan2.prior import StyleGan2Trained
from midefense.types import Images, Refused

RECORDED = ROOT.parent / "shared" / "reference"
TINY = StyleGan2Config(
    resolution=16, z_dim=16, w_dim=16, channel_base=256, channel_max=32, mapping_layers=3, conv_clamp=256.0
)


def plain_formulation():
    """The formulation that the benchmark compares with."""
    spec = importlib.util.spec_from_file_location("stylegan2_benchmark", ROOT / "benchmarks" / "stylegan2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference


def made(config=TINY, seed=0):
    """A generator with noise, and its styles [3, num_ws, w_dim]."""
    with seeds.isolated("generator", seed):
        generator = Generator(config).eval()
        for layer in generator.modules():
            if isinstance(layer, Styled):
                torch.nn.init.normal_(layer.noise_strength)
                torch.nn.init.normal_(layer.bias)
        generator.mapping.w_avg.normal_()
        labels = F.one_hot(torch.tensor([0, 1, 1]), config.label_size).float() if config.label_size else None
        return generator.requires_grad_(False), generator.styles(torch.randn(3, config.z_dim), labels)


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module", params=["uncond", "cond"])
def recorded(request):
    file = RECORDED / f"stylegan2_{request.param}_32.npz"
    if not file.is_file():
        pytest.skip(f"the recorded outputs of the original are not at {file}")
    arrays = {name: torch.from_numpy(array) for name, array in np.load(file).items()}
    published = json.loads(bytes(arrays.pop("config_json")).decode())
    synthesis = published["synthesis_kwargs"]
    config = StyleGan2Config(
        resolution=published["img_resolution"],
        z_dim=published["z_dim"],
        w_dim=published["w_dim"],
        label_size=published["c_dim"],
        channel_base=synthesis["channel_base"],
        channel_max=synthesis["channel_max"],
        mapping_layers=published["mapping_kwargs"]["num_layers"],
        conv_clamp=synthesis["conv_clamp"],
    )
    generator = Generator(config).eval().requires_grad_(False)
    state = {name.removeprefix("state/"): array for name, array in arrays.items() if name.startswith("state/")}
    generator.load_state_dict(state, strict=True)
    return generator, {name.removeprefix("io/"): array for name, array in arrays.items() if name.startswith("io/")}


def test_the_recorded_styles(recorded):
    generator, known = recorded
    latents, labels = known["z"], known.get("c")
    assert relative(generator.styles(latents, labels), known["w_psi1"]) < 1e-5
    assert relative(generator.styles(latents, labels, psi=0.5), known["w_psi05"]) < 1e-5
    assert relative(generator.styles(latents, labels, psi=0.7, cutoff=4), known["w_psi07_cut4"]) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
def test_the_recorded_images_and_gradients(recorded, fused):
    generator, known = recorded
    ws = known["w_psi05"].clone().requires_grad_()
    images = generator.synthesis(ws, fused=fused)[1]
    (gradient,) = torch.autograd.grad(images.square().mean(), ws)
    assert relative(images.detach(), known["img_const_psi05"]) < 1e-4
    assert relative(gradient, known["grad_w_const_psi05"]) < 1e-4
    bare = generator.synthesis(known["w_psi1"], noise="none", fused=fused)[1]
    assert relative(bare, known["img_none_psi1"]) < 1e-4


@pytest.mark.parametrize("clamp", [None, 256.0, 0.3])
def test_both_formulations_agree(clamp):
    config = StyleGan2Config(**{**vars(TINY), "conv_clamp": clamp})
    generator, ws = made(config)
    results = []
    for synthesise in (plain_formulation(), lambda g, w: g.synthesis(w)[1], lambda g, w: g.synthesis(w, fused=True)[1]):
        moving = ws.clone().requires_grad_()
        images = synthesise(generator, moving)
        (gradient,) = torch.autograd.grad(images.square().mean(), moving)
        results.append((images.detach(), gradient))
    for images, gradient in results[1:]:
        assert relative(images, results[0][0]) < 1e-5 and relative(gradient, results[0][1]) < 1e-4


def test_rows_do_not_depend_on_the_batch():
    generator, ws = made()
    together = generator.synthesis(ws)[1]
    torch.testing.assert_close(generator.synthesis(ws[1:2])[1], together[1:2], atol=1e-5, rtol=1e-5)


def test_entering_at_a_block_continues_the_whole():
    generator, ws = made()
    whole = generator.synthesis(ws)[1]
    for block in (1, 2):
        features, picture = generator.synthesis(ws, last=block - 1)
        continued = generator.synthesis(ws, first=block, features=features, images=picture)[1]
        torch.testing.assert_close(continued, whole, atol=0, rtol=0)
        dropped = generator.synthesis(ws, first=block, features=features)[1]
        for _ in range(2 - block + 1):
            picture = upsampled(picture)
        torch.testing.assert_close(
            dropped, whole - picture, atol=1e-5, rtol=1e-5
        )  # the path of the picture is additive
        assert not torch.allclose(dropped, whole, atol=1e-2)


def test_leaving_early_gives_the_smaller_picture():
    generator, ws = made()
    assert generator.synthesis(ws, last=0)[1].shape == (3, 3, 4, 4)
    assert generator.synthesis(ws, last=1)[1].shape == (3, 3, 8, 8)


def test_checkpointing_changes_nothing():
    generator, ws = made()
    gradients = []
    for generator.synthesis.checkpoint in (False, True):
        moving = ws.clone().requires_grad_()
        gradients.append(torch.autograd.grad(generator.synthesis(moving)[1].square().sum(), moving)[0])
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


def test_gradients_to_the_styles_by_finite_differences():
    generator, ws = made()
    generator, ws = generator.double(), ws[:1, :, :].double().requires_grad_()
    # in float64 and away from kinks and clamps a central difference is good to 1e-7
    assert torch.autograd.gradcheck(
        lambda w: generator.synthesis(w)[1].square().mean(), (ws,), eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True
    )


def test_upsampling_of_ones():
    up = upsampled(torch.ones(1, 2, 4, 4))
    assert up[0, 0, 0, 0] == 0.5625 and up[0, 1, 0, 3] == 0.75 and (up[..., 1:-1, 1:-1] == 1).all()


def test_upsampling_is_zero_insertion_and_the_filter():
    images = torch.randn(2, 3, 5, 5, generator=seeds.generator("images"))
    stretched = torch.zeros(2, 3, 10, 10)
    stretched[..., ::2, ::2] = images
    kernel = (resample_filter() * 4).expand(3, 1, 4, 4)
    expected = F.conv2d(F.pad(stretched, (2, 1, 2, 1)), kernel, groups=3)
    torch.testing.assert_close(upsampled(images), expected, atol=1e-6, rtol=0)


def test_the_first_convolution_is_a_true_one_of_the_stretched_input():
    with seeds.isolated("layer"):
        layer = Styled(3, 4, w_dim=5, resolution=10, up=True, clamp=None).requires_grad_(False)
        features, w = torch.randn(2, 3, 5, 5), torch.randn(2, 5)
    style = layer.affine(w)
    expected = []
    for image, scale in zip(features, style, strict=True):  # card, section 4: upfirdn, then a flipped 3x3 convolution
        stretched = torch.zeros(1, 3, 10, 10)
        stretched[..., ::2, ::2] = image
        smooth = F.conv2d(F.pad(stretched, (3, 2, 3, 2)), (resample_filter() * 4).expand(3, 1, 4, 4), groups=3)
        weight = layer.weight * scale[:, None, None]
        weight = weight * (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        expected.append(F.conv2d(smooth, weight.flip(2, 3)))
    expected = F.leaky_relu(torch.cat(expected), 0.2) * 2**0.5
    torch.testing.assert_close(layer(features, w, "none", False), expected, atol=1e-5, rtol=1e-5)


def test_demodulation_forgets_the_scale_of_a_style_and_torgb_does_not():
    with seeds.isolated("layer"):
        styled = Styled(3, 4, w_dim=3, resolution=5, up=False, clamp=None).requires_grad_(False)
        coloured = ToRgb(3, 3, w_dim=3, clamp=None).requires_grad_(False)
        features, w = torch.randn(2, 3, 5, 5), torch.randn(2, 3)
    for layer in (styled, coloured):
        torch.nn.init.zeros_(layer.affine.bias)
    torch.testing.assert_close(styled(features, 7 * w, "none", False), styled(features, w, "none", False))
    torch.testing.assert_close(coloured(features, 7 * w), 7 * coloured(features, w), atol=1e-5, rtol=1e-5)


def test_the_mapping_sees_directions_only_and_learns_its_mean_in_training():
    with seeds.isolated("mapping"):
        mapping = Mapping(z_dim=6, label_size=0, w_dim=5, layers=2, rate=0.01, average=True).eval()
        latents = torch.randn(4, 6)
    torch.testing.assert_close(mapping(3 * latents), mapping(latents))
    assert not mapping.w_avg.any()
    styles = mapping.train()(latents)
    torch.testing.assert_close(mapping.w_avg, 0.005 * styles.mean(0).detach())


def test_truncation():
    generator, _ = made()
    latents = torch.randn(3, 16, generator=seeds.generator("latents"))
    free = generator.styles(latents)
    assert torch.equal(generator.styles(latents, psi=1.0, cutoff=2), free)
    assert torch.equal(generator.styles(latents, psi=0.5, cutoff=TINY.num_ws), generator.styles(latents, psi=0.5))
    assert torch.equal(generator.styles(latents, psi=0.0)[0], generator.styles(latents, psi=0.0)[1])
    cut = generator.styles(latents, psi=0.5, cutoff=2)
    assert torch.equal(cut[:, 2:], free[:, 2:])
    torch.testing.assert_close(cut[:, :2], generator.mapping.w_avg + 0.5 * (free[:, :2] - generator.mapping.w_avg))


def test_the_equalised_rate_scales_weights_when_they_are_used():
    layer = Dense(4, 2, rate=0.01, bias=3.0)
    inputs = torch.randn(5, 4, generator=seeds.generator("inputs"))
    torch.testing.assert_close(layer(inputs), inputs @ (layer.weight.T * 0.01 / 2) + 0.03)
    assert 20 < Dense(400, 400, rate=0.01).weight.std() / 4 < 30


def test_noise_is_constant_random_or_none():
    generator, ws = made()
    assert torch.equal(generator.synthesis(ws)[1], generator.synthesis(ws)[1])
    assert not torch.equal(generator.synthesis(ws, noise="random")[1], generator.synthesis(ws, noise="random")[1])
    with pytest.raises(Refused, match="noise"):
        generator.synthesis(ws, noise="fixed")


@pytest.mark.parametrize(
    ("shape", "generator", "buffers", "tensors", "critic", "critic_tensors"),
    [
        ({}, 30_370_060, 2_797_104, 182, 29_012_513, 82),
        ({"resolution": 512}, 30_276_583, 699_904, 163, 28_982_849, 73),
        ({"resolution": 256, "channel_base": 16384}, 24_767_458, 175_568, 144, 24_001_089, 64),
        ({"resolution": 256}, 30_034_338, 175_568, 144, 28_864_129, 64),
        (
            {"resolution": 32, "label_size": 10, "mapping_layers": 2, "critic_kind": "orig"},
            20_215_315,
            3_392,
            77,
            23_089_664,
            49,
        ),
    ],
)
def test_the_published_sizes(shape, generator, buffers, tensors, critic, critic_tensors):
    config = StyleGan2Config(**shape)
    with torch.device("meta"):
        networks = Generator(config), Discriminator(config)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [generator, critic]
    assert sum(buffer.numel() for buffer in networks[0].buffers()) == buffers
    assert [len(network.state_dict()) for network in networks] == [tensors, critic_tensors]
    assert config.num_ws == {1024: 18, 512: 16, 256: 14, 32: 8}[config.resolution]


def test_a_shape_that_is_none_is_refused():
    for wrong in ({"resolution": 48}, {"critic_kind": "skip"}, {"mapping_layers": 0}):
        with pytest.raises(Refused, match=r"expected|got"):
            StyleGan2Config(**wrong)


def test_the_critic_halves_by_the_filter():
    with seeds.isolated("critic"):
        images = torch.randn(2, 3, 8, 8)
        for kernel in (1, 3):
            layer = Convolution(3, 4, kernel, down=True, activate=False).requires_grad_(False)
            smooth = blurred(images, padding=kernel // 2 + 1)
            expected = F.conv2d(smooth, layer.weight / (3 * kernel**2) ** 0.5, stride=2)
            torch.testing.assert_close(layer(images), expected)
            assert layer(images).shape == (2, 4, 4, 4)
            inside = layer(torch.ones(1, 3, 8, 8))[..., 1:-1, 1:-1]  # a constant stays one where no border is near
            torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside), atol=1e-5, rtol=1e-5)


def test_groups_of_a_minibatch_are_strided():
    features = torch.randn(8, 2, 4, 4, generator=seeds.generator("features"))
    spread = minibatch_deviation(features, 4)
    assert torch.equal(spread[::2], spread[:1].expand(4)) and torch.equal(spread[1::2], spread[1:2].expand(4))
    expected = (features[::2].var(0, unbiased=False) + 1e-8).sqrt().mean()
    torch.testing.assert_close(spread[0], expected)
    assert minibatch_deviation(features[:3], 4).shape == (3,)
    with pytest.raises(Refused, match="multiple of 4"):
        minibatch_deviation(torch.zeros(25, 2, 4, 4), 4)


@pytest.mark.parametrize("shape", [{}, {"critic_kind": "orig"}, {"label_size": 4}, {"conv_clamp": 0.5}])
def test_the_critic_scores_and_is_differentiable_twice(shape):
    config = StyleGan2Config(**{**vars(TINY), **shape})
    with seeds.isolated("critic", *shape):
        critic = Discriminator(config)
        images = torch.randn(4, 3, 16, 16, requires_grad=True)
    labels = F.one_hot(torch.arange(4), 4).float() if config.label_size else None
    scores = critic(images, labels)
    assert scores.shape == (4,)
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    slope.square().sum().backward()
    trained = {name: p.grad for name, p in critic.named_parameters() if not name.endswith("bias")}
    assert [name for name, gradient in trained.items() if gradient is None or not gradient.any()] == []


def test_a_fixed_deviation_unties_the_batch():
    with seeds.isolated("critic"):
        critic, images = Discriminator(TINY).eval(), torch.randn(4, 3, 16, 16)
    tied, free = critic(images), critic(images, deviation=torch.tensor(0.7))
    alone = torch.cat([critic(image[None], deviation=torch.tensor(0.7)) for image in images])
    torch.testing.assert_close(free, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tied[:1], critic(images[:1]), atol=1e-4)


# As a prior


def public(size=8, channels=1, count=64):
    """Bright left halves and bright right halves."""
    pixels = torch.zeros(count, channels, size, size, dtype=torch.uint8)
    pixels[: count // 2, ..., : size // 2] = 230
    pixels[count // 2 :, ..., size // 2 :] = 230
    return Images(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count), ["public"])


def small(size=8, channels=1, **changes):
    options = {"latent_size": 8, "channel_base": 64, "channel_max": 16, "batch_size": 8, "unit": 4, "steps": 8}
    with seeds.isolated("prior"):
        return StyleGan2Trained(channels=channels, size=size, **{**options, **changes})


def test_styles_are_single_or_a_row_per_layer():
    prior = small()
    styles = prior.styles(3, seeds.generator("draw"), psi=0.5)
    assert styles.shape == (3, prior.config.num_ws, 8)
    torch.testing.assert_close(prior.decode(styles[:, 0]), prior.decode(styles))


def test_other_sizes_are_framed():
    prior = small(size=12, channels=3)
    assert prior.config.resolution == 16
    latents = prior.sample(2, seeds.generator("draw"))
    assert prior.draw(latents).shape == (2, 3, 16, 16) and prior.decode(latents).shape == (2, 3, 12, 12)
    assert torch.equal(prior.decode(latents), prior.frame(prior.draw(latents)))
    prior.eval().measure_deviation(seeds.generator("deviation"), groups=2)
    assert prior.deviation > 0 and prior.realism(prior.draw(latents)).shape == (2,)


def test_the_average_follows_and_forgets():
    """With a half-life of nothing the average is the generator itself; with a long one it lags behind."""
    ends = {}
    for images in (0, 1e9):
        prior = small(average_images=images, mixing=0.0)
        before = prior.generator.synthesis.b4.const.clone()
        states = [state() for _, _, state in prior.fit(public(), seed=1)]
        moved = {name: states[-1][f"{name}.synthesis.b4.const"] - before for name in ("generator", "average")}
        ends[images] = float(moved["average"].norm() / moved["generator"].norm())
    assert ends[0] == pytest.approx(1) and 0 < ends[1e9] < 1


def test_mirroring_and_resizing_show_the_public_images():
    prior = small(size=12, mirror=True)
    logs = [log for _, log, _ in prior.fit(public(12), seed=0)]
    assert [set(log) for log in logs] == [{"generator_loss", "critic_loss", "r1_penalty"}] * 2
    assert all(np.isfinite(list(log.values())).all() for log in logs) and logs[0]["r1_penalty"] > 0


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"r1": -1.0}, {"mixing": 1.5}, {"learning_rate": 0.0}, {"resolution": 20}]
)
def test_options_without_meaning_are_refused(wrong):
    with pytest.raises(Refused):
        small(**wrong)


def finished_by_hand(layer, features, w):
    """A layer's end without what saves memory: every step apart."""
    convolved, strength = modulated(features, layer.weight, layer.affine(w), up=layer.up)
    offset = layer.bias.view(1, -1, 1, 1) + layer.noise_const * layer.noise_strength
    outputs = F.leaky_relu(convolved * strength[:, :, None, None] + offset, 0.2) * math.sqrt(2)
    return outputs.clamp(-layer.clamp, layer.clamp)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_a_layer_that_keeps_less_has_the_gradients_of_one_that_keeps_all(up, learns):
    with seeds.isolated("test", "layer"):
        layer = Styled(3, 4, w_dim=5, resolution=8 if up else 4, up=up, clamp=0.7).double()
        features, w = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5).double()
        weights = torch.randn(2, 4, *layer.noise_const.shape).double()
    layer.noise_strength.data.fill_(0.3)
    layer.requires_grad_(learns)
    features, w = features.requires_grad_(), w.requires_grad_()
    wanted = [features, w, *(layer.parameters() if learns else ())]
    results = []
    for outputs in (layer(features, w, "const", False), finished_by_hand(layer, features, w)):
        first = torch.autograd.grad((outputs * weights).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum((part.square() * (part.detach() + 1)).sum() for part in first), wanted)
        results.append([outputs, *first, *second])
    assert float(results[0][0].detach().abs().max()) == pytest.approx(0.7 * math.sqrt(2))  # some are clamped
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def kept_for_backward(call):
    """Bytes of all tensors that a graph keeps."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_an_image_of_1024_pixels_keeps_half_a_gibibyte_for_its_gradient():
    """Counted on tensors without memory: what one image more keeps. Each step apart kept 1.6 GiB."""
    with torch.device("meta"):
        generator = Generator(StyleGan2Config(resolution=1024)).eval().requires_grad_(False)
        one, two = (torch.rand(count, 18, 512).requires_grad_() for count in (1, 2))
        more = kept_for_backward(lambda: generator.synthesis(two)) - kept_for_backward(lambda: generator.synthesis(one))
    assert 0.4 < more / 2**30 < 0.52
