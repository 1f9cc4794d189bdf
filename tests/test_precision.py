"""Precision by name: what it rounds, what it leaves in float32, and how far it moves gradients and attacks."""

import functools

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import precision, seeds
from midefense.architectures.small import MLP
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import TargetConfidence
from midefense.oracle import Oracle
from midefense.precision import PRECISIONS, forwards_mixed, rounded
from midefense.priors.gmi import GmiGan
from midefense.priors.stylegan2.critic import Discriminator
from midefense.priors.stylegan2.generator import Block, Generator, StyleGan2Config
from midefense.priors.stylegan2.prior import StyleGan2Trained
from midefense.types import Evidence, Images, Refused

CPU = torch.device("cpu")
SMALL = StyleGan2Config(resolution=32, z_dim=16, w_dim=16, channel_base=256, channel_max=16, mapping_layers=2)
# Of the length of a picture, and of a gradient, that of the difference from float32's. Gradients jump where a rectifier
# changes sides, so they are further apart than pictures.
BFLOAT16, HALF = (0.01, 0.08), (0.002, 0.04)


def networks():
    with seeds.isolated("precision"):
        generator, critic = Generator(SMALL).eval(), Discriminator(SMALL).eval()
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                nn.init.constant_(parameter, 0.1)
        ws = generator.styles(torch.randn(4, 16))
    return generator.requires_grad_(False), critic.requires_grad_(False), ws


def gradient(generator, critic, ws):
    """Of a smooth loss of the critic's scores to the styles, and the picture."""
    ws = ws.clone().requires_grad_()
    picture = generator.synthesis(ws)[1]
    loss = torch.nn.functional.softplus(critic(picture)).sum() + picture.square().mean()
    return torch.autograd.grad(loss, ws)[0], picture.detach()


def apart(ours, theirs):
    return float((ours.detach() - theirs.detach()).norm() / theirs.detach().norm())


def test_a_gradient_through_bfloat16_is_near_that_of_float32():
    generator, critic, ws = networks()
    exact, picture = gradient(generator, critic, ws)
    with forwards_mixed([generator.synthesis, critic], "bf16-mixed"):
        rough, drawn = gradient(generator, critic, ws)
    assert drawn.dtype == rough.dtype == torch.float32
    assert 1e-4 < apart(drawn, picture) < BFLOAT16[0] and 1e-4 < apart(rough, exact) < BFLOAT16[1]
    again, _ = gradient(generator, critic, ws)
    assert again.equal(exact), "the networks are as they were"


@pytest.mark.parametrize("blocks", [1, 3, 9])
def test_half_precision_in_the_highest_blocks_alone(blocks):
    generator, critic, ws = networks()
    exact, picture = gradient(generator, critic, ws)
    kinds = {}
    for name, block in generator.synthesis.named_children():
        assert isinstance(block, Block)
        block.register_forward_hook(lambda _, __, made, name=name: kinds.update({name: made[0].dtype}))
    generator.synthesis.half_blocks = critic.half_blocks = blocks
    rough, drawn = gradient(generator, critic, ws)
    half = {name for name, kind in kinds.items() if kind == torch.float16}
    assert half == {"b32", "b16", "b8"} if blocks >= 3 else {"b32"}, "never the first"
    assert drawn.dtype == torch.float32
    assert 1e-5 < apart(drawn, picture) < HALF[0] and 1e-5 < apart(rough, exact) < HALF[1]


def test_styles_that_half_precision_cannot_hold_are_scaled():
    """A product of features and such styles is beyond 65,504; demodulation makes their size nothing."""
    generator, _, ws = networks()
    for block in generator.synthesis.children():
        for name, layer in block.named_children():
            if name.startswith("conv"):
                layer.affine.weight.mul_(1e5), layer.affine.bias.mul_(1e5)
    expected = generator.synthesis(ws)[1]
    generator.synthesis.half_blocks = 3
    assert torch.isfinite(expected).all()
    assert apart(generator.synthesis(ws)[1], expected) < HALF[0]


def test_half_precision_wants_clamped_convolutions():
    with pytest.raises(Refused, match=r"prior.half_blocks: expected 0 .* not clamped, got 2; try prior.conv_clamp"):
        StyleGan2Trained(channels=1, size=8, half_blocks=2)
    StyleGan2Trained(channels=1, size=8, latent_size=4, channel_base=16, half_blocks=2, conv_clamp=256.0)


PUBLIC = Images(torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8), torch.zeros(8).long(), torch.arange(8), ["-"])


def learned(name, kind="gmi", **changes):
    """The weights of a prior that learned a little, and the last logs."""
    with seeds.isolated("learned"):
        shared = {"channels": 1, "size": 32, "steps": 3, "batch_size": 4, "precision": name, **changes}
        if kind == "gmi":
            prior = GmiGan(width=2, latent_size=4, critic_steps=2, **shared)
        else:
            prior = StyleGan2Trained(latent_size=8, channel_base=128, channel_max=8, r1_every=2, **shared)
    *_, (_, logs, _) = prior.fit(PUBLIC, seed=0)
    return prior.state_dict(), logs


@pytest.mark.parametrize("kind", ["gmi", "stylegan2"])
def test_a_prior_learns_in_its_precision_and_keeps_float32(kind):
    exact, exact_logs = learned("32-true", kind)
    rough, logs = learned("bf16-mixed", kind)
    assert {value.dtype for value in rough.values() if value.is_floating_point()} == {torch.float32}
    assert any(not rough[name].equal(exact[name]) for name in exact)
    assert all(logs[name] == pytest.approx(exact_logs[name], rel=0.1, abs=0.05) for name in exact_logs)


def test_tf32_on_a_machine_without_it_is_float32_and_says_so_once(capsys):
    precision._say_without.cache_clear()
    assert all(learned("tf32")[0][name].equal(value) for name, value in learned("32-true")[0].items())
    learned("tf32")
    assert capsys.readouterr().err.count("precision=tf32: this cpu has no TF32") == 1


def test_tf32_holds_within_a_step_alone():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    with pytest.raises(KeyError), rounded("tf32", CPU):
        assert all(switch.allow_tf32 for switch in switches)
        raise KeyError
    assert [switch.allow_tf32 for switch in switches] == before
    inside = []
    steps = precision.stepwise(
        (inside.append(torch.backends.cudnn.allow_tf32) or step for step in range(3)), lambda: rounded("tf32", CPU)
    )
    outside = [torch.backends.cudnn.allow_tf32 for _ in steps]
    assert inside == [True] * 3 and outside == [before[1]] * 3


class Watched(MLP):
    """Says in which precision it was asked, and whether for a gradient."""

    def forward(self, images, taps=()):
        self.asked.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return super().forward(images, taps)


class InFloat32(CrossEntropy):
    def __call__(self, look):
        assert not torch.is_autocast_enabled("cpu")
        assert {look.drawn.dtype, look.images.dtype, look.answer.logits.dtype} == {torch.float32}
        return super().__call__(look)


def attacked(name, asked=None):
    with seeds.isolated("attacked"):
        prior = GmiGan(channels=1, size=32, width=4, latent_size=8).eval().requires_grad_(False)
        target = Watched(classes=4, channels=1, size=32, widths=[16])
    target.asked = [] if asked is None else asked
    attack = SearchAttack(
        init=Random(candidates=3),
        objective=InFloat32(),
        search=Gradient(optimizer=functools.partial(torch.optim.Adam, lr=0.05), steps=10),
        select=TargetConfidence(keep=1),
        precision=name,
    )
    Watched.__deepcopy__ = lambda self, memo: self  # an oracle copies its target
    evidence = Evidence(torch.arange(4), torch.arange(4))
    *_, optimised, selected = attack.recover({}, prior, Oracle(target, "whitebox"), evidence, seeds.generator("a"))
    return optimised, selected


def test_a_search_looks_in_its_precision_and_chooses_in_float32():
    asked = []
    optimised, selected = attacked("bf16-mixed", asked)
    assert asked[:10] == [(True, True)] * 10, "the search"
    assert asked[10:] == [(False, False)], "the selection"
    exact, _ = attacked("32-true")
    assert optimised.latents.dtype == torch.float32 and not optimised.latents.equal(exact.latents)
    torch.testing.assert_close(optimised.loss, exact.loss, rtol=0.05, atol=0)
    assert attacked("tf32")[0].latents.equal(exact.latents)


@pytest.mark.parametrize("option", ["recipe.precision", "prior.precision", "attack.precision"])
def test_precision_is_part_of_what_it_changes(store, option):
    words = ["dataset=digits", "attack=gmi_small"]
    ids = {name: plan_for("attack", *words, f"{option}={name}", store=store) for name in PRECISIONS}
    node = option.split(".")[0]
    hashed = {
        name: str((plan.target.recipe if node == "recipe" else getattr(plan, node)).recipe())
        for name, plan in ids.items()
    }
    assert len(set(hashed.values())) == 3
    usual = plan_for("attack", *words, store=store)
    assert hashed["32-true"] == str((usual.target.recipe if node == "recipe" else getattr(usual, node)).recipe())
    with pytest.raises(Refused, match="choices: 32-true, tf32, bf16-mixed"):
        plan_for("attack", *words, f"{option}=half", store=store)


@pytest.mark.slow
def test_an_attack_in_bfloat16_is_as_accurate_as_in_float32(run_verb, store):
    """Each within the other's interval."""
    words = ["dataset=digits", "attack=gmi_small", "recipe.epochs=10", "prior.steps=300", "attack.search.steps=100"]
    measured = {}
    for name in ("32-true", "bf16-mixed"):
        result = run_verb("evaluate", *words, f"attack.precision={name}", store=store)
        measured[name] = result.metrics["attack_accuracy/main"]
    for one, other in (("32-true", "bf16-mixed"), ("bf16-mixed", "32-true")):
        assert measured[one]["low"] <= measured[other]["value"] <= measured[one]["high"]
