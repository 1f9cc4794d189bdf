"""Skip connections removed (card rolss.md): what an undefended network keeps, what a factor does to a block, narrower
DenseNets, and two stages of training."""

import copy
import functools

import pytest
import torch
from conftest import plan_for
from torch import nn
from torchvision.models.resnet import BasicBlock

from midefense import seeds
from midefense.architectures.face_evolve import FaceEvolve
from midefense.architectures.resnet import ResNet
from midefense.architectures.small import CNN
from midefense.architectures.state_names import from_published, to_published
from midefense.architectures.tiny_vit import TinyViT
from midefense.architectures.vision import Vision
from midefense.defenses.base import Stack
from midefense.defenses.rolss import RoLSS
from midefense.defenses.skips import Skip, blocks_of, scale
from midefense.defenses.transfer import TransferLearning
from midefense.defenses.vib import VIB
from midefense.training import loop
from midefense.training.recipe import Recipe
from midefense.types import Images, Origin, Refused

resnet = functools.partial(ResNet, variant="resnet18", classes=3, channels=1, size=32, stem="small")
transformer = functools.partial(TinyViT, classes=3, channels=1, size=16, patch=4, width=16, heads=4, dropout=0.0)
IMAGES = torch.rand(4, 1, 32, 32, generator=seeds.generator("images"))


def defended(build, *factors: float, origin: Origin = Origin.DRAWN, **settings) -> nn.Module:
    """A network in evaluation mode, the same weights at every call."""
    with seeds.isolated("network"):
        return RoLSS(factors=factors, **settings).rebuild(build(), origin).eval()


@pytest.mark.parametrize("build", [resnet, transformer], ids=["resnet18", "vit_tiny"])
def test_factors_of_one_change_nothing_and_others_the_last_stages_alone(build):
    plain, same, last = defended(build, 1), defended(build, 1, 1), defended(build, 1, 0)
    assert torch.equal(plain(IMAGES).logits, same(IMAGES).logits)
    taps = plain.tap_names[:-2]  # in front of the last stage with skips
    before, after = plain(IMAGES, taps=taps), last(IMAGES, taps=taps)
    assert all(torch.equal(before.taps[name], after.taps[name]) for name in taps)
    assert not torch.equal(before.logits, after.logits)
    wrapped = defended(build, 1, 2)  # reached, and not changed by anything but its factor
    for module in wrapped.modules():
        if isinstance(module, Skip):
            module.factor = 1.0
    assert torch.equal(plain(IMAGES).logits, wrapped(IMAGES).logits)


@pytest.mark.parametrize("projection", [False, True])
def test_the_slope_of_a_block_is_that_of_its_layers_and_a_share_of_its_shortcut(projection):
    """z' = g(z) + k shortcut(z) before the ReLU: d z'/dz = J_g + k J_shortcut, linear in k."""
    with seeds.isolated("block"):
        shortcut = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)) if projection else None
        block = BasicBlock(3, 3, downsample=shortcut).eval()
    block.relu = nn.Identity()
    image = torch.rand(1, 3, 4, 4, generator=seeds.generator("block"))

    def of(factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        other = copy.deepcopy(block)
        list(scale(other, factor, "all", keep=False))
        return other(image), torch.autograd.functional.jacobian(other, image)

    (without, flat), (half, slope), (whole, full) = of(0.0), of(0.5), of(1.0)
    torch.testing.assert_close(half, (without + whole) / 2)
    torch.testing.assert_close(slope, (flat + full) / 2)
    around = block.downsample or nn.Identity()
    torch.testing.assert_close(full - flat, torch.autograd.functional.jacobian(around, image), rtol=1e-4, atol=1e-6)


def test_what_nothing_goes_through_is_gone_and_other_names_stay():
    plain, removed, weak = (to_published(defended(resnet, factor)) for factor in (1, 0, 0.2))
    assert plain.keys() == weak.keys()
    gone = plain.keys() - removed.keys()
    assert gone and all(name.startswith("layer4.0.downsample.") for name in gone)
    with pytest.raises(Refused, match="layer4.0.downsample"):
        from_published(defended(resnet, 0), plain)
    assert to_published(defended(resnet, 0, full_until=0.05)).keys() == plain.keys(), "trained at first, and kept"


@pytest.mark.parametrize(
    ("variant", "factor", "width"),
    [
        ("densenet121", 1.0, 1024),
        ("densenet121", 0.0, 32),
        ("densenet121", 0.01, 37),
        ("densenet161", 0.0, 48),
        ("densenet161", 0.01, 59),
        ("densenet169", 0.01, 38),
    ],
)
def test_widths_of_the_card(variant, factor, width):
    with torch.device("meta"):
        model = RoLSS(factors=[1, 1, 1, factor]).rebuild(Vision(variant=variant, classes=5, channels=3, size=64))
    assert model.feature_width == width


def test_branches_of_a_transformer():
    answers = {name: defended(transformer, 0, branches=name)(IMAGES).logits for name in ("all", "attention", "mlp")}
    assert len({tuple(logits.flatten().tolist()) for logits in answers.values()}) == 3
    skips = [module for module in defended(transformer, 0, branches="mlp").modules() if isinstance(module, Skip)]
    assert [skip.factor for skip in skips] == [1.0, 0.0]


def test_other_families_are_reached():
    with torch.device("meta"):
        for build, kinds in (
            (FaceEvolve(classes=3, channels=3), 3),
            (Vision(variant="maxvit_t", classes=3, channels=3, size=64), 6),
            (Vision(variant="vit_b_16", classes=3, channels=3, size=32), 1),
        ):
            name = [stage for stage in build.tap_names if blocks_of(build.stages[stage])][-1]
            assert len(blocks_of(build.stages[name])) == kinds
            RoLSS(factors=[0.0]).rebuild(build)
            assert all(skip.factor == 0 for skip in build.modules() if isinstance(skip, Skip))


def pictures(count: int) -> Images:
    pixels = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=seeds.generator("pictures"))
    return Images(pixels, torch.arange(count) % 3, torch.arange(count), ["a", "b", "c"])


def fitted(defense: RoLSS, epochs: int = 4, state=None) -> tuple[nn.Module, list]:
    """A network after training, and what was logged and could be saved after every epoch."""
    with seeds.isolated("network"):
        model = loop.assemble(transformer(), defense, seed=0)
    sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    recipe = Recipe(epochs=epochs, batch_size=6, optimizer=sgd)
    steps = loop.fit(model, defense, pictures(12), recipe, seed=0, state=state)
    return model, [(logs, saved()) for _, logs, saved in steps]


def test_two_stages_of_training():
    """Whole skips for the first epochs, to the same bits as without a defense; then the factor, and a jump of the loss.
    What is deployed is the network of the second stage, and work that was killed in either goes on to the same bits."""
    staged, told = fitted(RoLSS(factors=[0.0], full_until=0.5))
    plain, undefended = fitted(RoLSS(factors=[1.0]))
    assert [logs["full_skips"] for logs, _ in told] == [1, 1, 0, 0]
    first, known = told[1][1], undefended[1][1]
    assert first.keys() == known.keys() and all(torch.equal(first[name], known[name]) for name in known)
    assert not torch.equal(told[2][1]["model.classifier.weight"], undefended[2][1]["model.classifier.weight"])
    for done in (1, 3):
        again, _ = fitted(RoLSS(factors=[0.0], full_until=0.5), state=told[done - 1][1])
        assert all(torch.equal(t, again.state_dict()[name]) for name, t in staged.state_dict().items())
    loaded = defended(transformer, 0, full_until=0.5, origin=Origin.LOADED)
    loaded.load_state_dict(staged.state_dict())
    assert torch.equal(loaded(IMAGES).logits, staged.eval()(IMAGES).logits)
    assert not torch.equal(plain.eval()(IMAGES).logits, loaded(IMAGES).logits)


def test_the_last_epoch_is_of_the_second_stage_and_so_is_what_is_sealed():
    defense = RoLSS(factors=[0.2], full_until=0.99)
    model, told = fitted(defense, epochs=2)
    assert [logs["full_skips"] for logs, _ in told] == [1, 0]
    defense.begin_epoch(model, 0, 2)
    assert {skip.factor for skip in defense.seal(model).modules() if isinstance(skip, Skip)} == {0.2}


def test_beside_other_defenses():
    both = Stack(members={"rolss": RoLSS(factors=[0.0]), "vib": VIB(beta=0.01)})
    assert loop.assemble(resnet(), both, seed=0).feature_width == 256
    frozen = Stack(members={"rolss": RoLSS(factors=[0.0]), "tl": TransferLearning(upto="layer3", ratio=None)})
    model = loop.assemble(resnet(), frozen, 0, Origin.STARTED)
    assert not any(p.requires_grad for p in model.stages["layer3"].parameters())
    assert all(p.requires_grad for p in model.stages["layer4"].parameters())
    dense = functools.partial(Vision, variant="densenet121", classes=3, channels=3, size=32)
    with torch.device("meta"):
        first = Stack(members={"rolss": RoLSS(factors=[0.0]), "vib": VIB(beta=0.01)})
        assert loop.assemble(dense(), first, seed=0).feature_width == 16
        behind = Stack(members={"vib": VIB(beta=0.01), "rolss": RoLSS(factors=[0.0])})
        with pytest.raises(Refused, match="a stage 'bottleneck' between them.*in front of it in the stack"):
            loop.assemble(dense(), behind, seed=0)


def test_refusals(tmp_path):
    with pytest.raises(Refused, match="stages of skip connections.*got one without"):
        RoLSS(factors=[0.0]).rebuild(CNN(classes=3, channels=1, size=16, widths=[4]))
    with pytest.raises(Refused, match=r"5 or more stages.*got one with 4 \(layer1, layer2, layer3, layer4\)"):
        RoLSS(factors=[1, 1, 1, 1, 0]).rebuild(resnet())
    with pytest.raises(Refused, match="defense.branches: got 'heads'; choices: all, attention, mlp"):
        RoLSS(factors=[0.0], branches="heads")
    with pytest.raises(Refused, match="expected a ResNet of four stages for as_released"):
        RoLSS(factors=[0.0], form="as_released").rebuild(transformer())
    for settings, origin in (({"full_until": 0.05}, Origin.DRAWN), ({}, Origin.STARTED)):
        with torch.device("meta"), pytest.raises(Refused, match="try architecture.pretrained=false"):
            dense = Vision(variant="densenet121", classes=3, channels=3, size=32)
            RoLSS(factors=[0.0], **settings).rebuild(dense, origin)
    with pytest.raises(Refused, match="stages of skip connections"):
        plan_for("train_target", "dataset=toy", "architecture=cnn", "defense=rolss", store=tmp_path)
