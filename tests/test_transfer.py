"""Transfer learning as a defense (card tl_dmi.md): the layers that are frozen, the parameters that are left, and what
stays as it was through training."""

import functools

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import seeds
from midefense.architectures.face_evolve import FaceEvolve
from midefense.architectures.resnet import ResNet
from midefense.architectures.small import CNN
from midefense.architectures.tiny_vit import TinyViT
from midefense.architectures.vgg import VGG16
from midefense.architectures.vision import Vision
from midefense.defenses.base import Stack
from midefense.defenses.random_erasing import RandomErasing
from midefense.defenses.transfer import TransferLearning, layers_in
from midefense.pipeline.pipeline import Pipeline
from midefense.training import loop
from midefense.training.recipe import Recipe
from midefense.types import Images, Origin, Refused

SMALL = {"classes": 3, "channels": 1, "size": 16, "widths": [4, 4], "features": 6}
ir152 = functools.partial(FaceEvolve, depth=152)


def trained_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def frozen(build, upto=None, ratio=None, **settings) -> nn.Module:
    """A network without memory, behind a frozen front."""
    with torch.device("meta"):
        return TransferLearning(upto=upto, ratio=ratio, **settings).rebuild(build(channels=3), Origin.STARTED)


@pytest.mark.parametrize(
    ("build", "front", "known"),
    [
        (VGG16, {"upto": "block3.2"}, 16_217_576),
        (VGG16, {"upto": "block4.2"}, 13_855_208),
        (VGG16, {"upto": "features.block5"}, 2_051_048),
        (ir152, {"upto": "stage3"}, 17_825_256),
        (ir152, {"ratio": 0.5}, 43_805_672),
        (functools.partial(FaceEvolve, depth=50), {"upto": "stage2.2"}, 34_391_912),
    ],
)
def test_parameters_of_the_card(build, front, known):
    assert trained_parameters(frozen(functools.partial(build, classes=1000), **front)) == known


def test_layers_of_the_card():
    with torch.device("meta"):
        assert len([*layers_in(ir152(classes=1000, channels=3).stages)]) + 1 == 312
        front = TransferLearning(upto=None, ratio=0.5).front(ir152(classes=1000, channels=3))
    assert len(front) == 156


@pytest.mark.parametrize(
    ("build", "upto", "first_trained"),
    [
        (functools.partial(ResNet, variant="resnet18", classes=3, size=64), "layer2", "stages.layer3.0.conv1.weight"),
        (functools.partial(TinyViT, classes=3), "layer1", "stages.layer2.attention.project_in.weight"),
        (
            functools.partial(Vision, variant="vit_b_16", classes=3, size=32),
            "encoder_layer_0",
            "stages.encoder_layer_1.ln_1.weight",
        ),
    ],
)
def test_the_front_is_everything_before_parameters_outside_of_layers_too(build, upto, first_trained):
    """Tokens, positions and the projections of an attention are no layers of their own."""
    parameters = dict(frozen(build, upto).named_parameters())
    names = list(parameters)
    trained = [name for name in names if parameters[name].requires_grad]
    assert trained == names[names.index(first_trained) :]


def test_the_head_is_trained_at_any_ratio():
    model = frozen(functools.partial(CNN, classes=3), ratio=1.0)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]


def pictures(count: int) -> Images:
    pixels = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=seeds.generator("pictures"))
    return Images(pixels, torch.arange(count) % 3, torch.arange(count), ["a", "b", "c"])


def fitted(defense) -> tuple[dict, dict, nn.Module]:
    """The state before and after two epochs with everything that moves weights."""
    with seeds.isolated("network"):
        model = loop.assemble(CNN(**SMALL), defense, 0, Origin.STARTED)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in loop.fit(model, defense, pictures(24), Recipe(epochs=2, batch_size=12, optimizer=sgd), seed=0):
        pass
    return before, model.state_dict(), model


@pytest.mark.parametrize("frozen_bn", ["eval", "train"])
def test_what_is_frozen_stays_bit_for_bit(frozen_bn):
    """Also under momentum and weight decay; statistics of batch norm move where they are asked to, alone."""
    before, after, model = fitted(TransferLearning(upto="stage1", ratio=None, frozen_bn=frozen_bn))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {f"stages.stage1.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    inside = {name for name in moved if name.startswith("stages.stage1.")}
    assert inside == (statistics if frozen_bn == "train" else set())
    assert moved - inside == {name for name in before if not name.startswith("stages.stage1.")}
    assert all(parameter.grad is None for parameter in model.stages["stage1"].parameters())


def test_a_front_stays_frozen_in_a_stack():
    stack = Stack(members={"erase": RandomErasing(), "transfer": TransferLearning(upto="stage1", ratio=None)})
    before, after, _ = fitted(stack)
    assert stack.needs_start
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("stages.stage1."))


def test_weights_that_are_loaded_need_no_freezing():
    model = TransferLearning(upto="stage1", ratio=None).rebuild(CNN(**SMALL), Origin.LOADED)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_refusals(tmp_path):
    with pytest.raises(Refused, match="expected one of them, got None and None"):
        TransferLearning(upto=None, ratio=None)
    with pytest.raises(Refused, match="expected one of them, got stage1 and 0.5"):
        TransferLearning(upto="stage1", ratio=0.5)
    with pytest.raises(Refused, match="defense.frozen_bn: got 'off'; choices: eval, train"):
        TransferLearning(upto="stage1", ratio=None, frozen_bn="off")
    with pytest.raises(Refused, match="defense.upto: got 'stage9'; choices: stage1, stage2, features"):
        TransferLearning(upto="stage9", ratio=None).rebuild(CNN(**SMALL), Origin.LOADED)
    with pytest.raises(Refused, match="weights worth keeping.*try recipe.start"):
        TransferLearning(upto="stage1", ratio=None).rebuild(CNN(**SMALL))
    toy = ("dataset=toy", "dataset.size=16", "architecture=cnn", "architecture.size=16")
    for words in (("defense=tl_dmi",), ("defense=stack", "defense@defense.members.second=tl_dmi")):
        with pytest.raises(Refused, match="expected a training that begins with the weights of another network"):
            plan_for("train_target", *toy, *words, store=tmp_path)
    plan_for("train_target", *toy, "defense=tl_dmi", "defense.ratio=0", store=tmp_path)


def test_digits_that_others_taught(tmp_path):
    """A network of other classes lends its first stage, and the private ones are learned behind it."""
    words = ("dataset=toy", "dataset.size=16", "architecture=cnn", "architecture.size=16", "architecture.widths=[4,8]")
    words += ("recipe.epochs=3", "recipe.optimizer.lr=1e-2", "compute.threads=1")
    public = Pipeline(plan_for("train_target", *words, "dataset.classes=5", store=tmp_path)).target.artefact
    front = ("defense=tl_dmi", "defense.ratio=null", "defense.upto=stage1", f"recipe.start={public.id}")
    private = Pipeline(plan_for("train_target", *words, *front, "dataset.classes=3", store=tmp_path)).target.artefact
    mine, theirs = private.tensors(), public.tensors()
    same = {name for name in mine if mine[name].shape == theirs[name].shape and torch.equal(mine[name], theirs[name])}
    assert same == {name for name in mine if name.startswith("stages.stage1.")}
    assert private.metrics["test_accuracy_top1"] > 0.6
