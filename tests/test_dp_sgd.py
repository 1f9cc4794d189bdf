"""DP-SGD (card dp_sgd.md): accounts, clipped steps, and a training that is killed."""

import functools

import pytest
import torch
from conftest import plan_for
from lightning_fabric import Fabric
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.defenses.base import NoDefense, Stack
from midefense.defenses.bido import BiDO
from midefense.defenses.dp_sgd import DPSGD, epsilon
from midefense.defenses.mixing import Mixup
from midefense.oracle import batchnorm_layers
from midefense.pipeline.pipeline import Pipeline
from midefense.training import loop
from midefense.training.recipe import Recipe, poisson_batches
from midefense.types import Batch, Images, Origin, Refused, Trace

SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Scalar(NoDefense):
    """A defense that keeps from others that its loss ties a batch together."""

    def losses(self, trace: Trace, batch: Batch) -> dict[str, torch.Tensor]:
        return {"all": trace.logits.mean()}


def network() -> nn.Module:
    with seeds.isolated("network"):
        return CNN(classes=4, channels=1, size=8, widths=[4, 8], features=6)


def images(count: int = 128) -> Images:
    rng = seeds.generator("images")
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 4, torch.arange(count), list("abcd"))


def batch_of(count: int) -> Batch:
    shown = images(count)
    return Batch(shown.floats(), shown.labels, shown.ids, torch.ones(count), seeds.generator("batch"))


def trainer_of(defense: DPSGD | Stack, count: int = 128, **settings) -> loop.Trainer:
    recipe = Recipe(**{"epochs": 1, "batch_size": 32, "optimizer": SGD, **settings})
    model = loop.assemble(network(), defense, 0)
    trainer = loop.Trainer(model, defense, recipe, Fabric(accelerator="cpu", devices=1), count)
    trainer.begin_epoch(0)
    return trainer


def moved(defense: DPSGD, batch: Batch) -> torch.Tensor:
    """By how much one step of rate 0.1 moves the weights, over the rate: the gradient that was used."""
    trainer = trainer_of(defense)
    before = nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()
    trainer.train(batch, 0, 0, 0)
    return (before - nn.utils.parameters_to_vector(trainer.model.parameters()).detach()) / 0.1


def one_by_one(batch: Batch) -> torch.Tensor:
    """The gradient of every image alone [B, weights]."""
    model, rows = loop.assemble(network(), DPSGD(noise=0.0, clip=1.0), 0).train(), []
    for row in range(len(batch.images)):
        loss = nn.functional.cross_entropy(model(batch.images[row : row + 1]).logits, batch.labels[row : row + 1])
        rows.append(nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(model.parameters()))))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "known"),
    [(0.01, 1.0, 1000, 2.1014), (256 / 60000, 1.1, 14063, 2.597), (64 / 27018, 1.0, 21100, 1.994)],
)
def test_epsilon_of_the_card(rate, noise, steps, known):
    """Opacus' RDP account with its own orders (1.1 to 10.9, 12 to 63); of integer orders alone the first is 2.108."""
    told = epsilon("rdp", noise, rate, steps, 1e-5)
    assert told == pytest.approx(known, abs=1e-3)
    assert epsilon("prv", noise, rate, min(steps, 1000), 1e-5) < told + 1e-3
    more = (noise, rate, 2 * steps), (noise, 2 * rate, steps), (noise / 1.5, rate, steps)
    assert all(epsilon("rdp", *each, 1e-5) > told for each in more)


@pytest.mark.parametrize("clip", [0.05, 0.5, 1e6])
def test_a_step_without_noise_is_the_mean_of_clipped_gradients(clip):
    batch = batch_of(32)
    alone = one_by_one(batch)
    factor = (clip / alone.norm(dim=1)).clamp(max=1)
    wanted = (alone * factor[:, None]).sum(0) / 32
    used = moved(DPSGD(noise=0.0, clip=clip), batch)
    torch.testing.assert_close(used, wanted, rtol=1e-4, atol=2e-6)
    assert used.norm() <= clip + 1e-6
    assert clip > 1 or (factor < 1).any()


def test_batches_are_divided_by_the_size_expected_of_them():
    batch = batch_of(40)
    wanted = one_by_one(batch).sum(0) / 32
    torch.testing.assert_close(moved(DPSGD(noise=0.0, clip=1e6), batch), wanted, rtol=1e-4, atol=2e-6)


def test_noise_has_the_deviation_of_noise_times_clip():
    batch = batch_of(32)
    plain = moved(DPSGD(noise=0.0, clip=0.01), batch)
    noisy = moved(DPSGD(noise=50.0, clip=0.01), batch)
    assert ((noisy - plain) * 32).std().item() == pytest.approx(0.5, rel=0.06)
    assert torch.equal(noisy, moved(DPSGD(noise=50.0, clip=0.01), batch)), "the step's key decides the noise"


def test_norms_are_swapped_and_nothing_stays_behind():
    model = loop.assemble(network(), DPSGD(noise=1.0, clip=1.0), 0)
    assert batchnorm_layers(network()) and not batchnorm_layers(model)
    groups = [module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert groups == [4, 8]
    names = loop.assemble(network(), DPSGD(noise=1.0, clip=1.0), 0, Origin.LOADED).state_dict().keys()
    assert model.state_dict().keys() == names
    trainer = trainer_of(DPSGD(noise=1.0, clip=1.0))
    trainer.train(batch_of(32), 0, 0, 0)
    assert not any(module._forward_hooks or module._backward_hooks for module in trainer.model.modules())
    assert all(getattr(p, "grad_sample", None) is None for p in trainer.model.parameters())


def test_poisson_batches_draw_every_row_at_the_rate():
    batches = poisson_batches(1000, 50, seeds.generator("poisson"))
    sizes = torch.tensor([len(rows) for rows in batches], dtype=torch.float64)
    assert len(batches) == 20 and sizes.std() > 3
    many = [poisson_batches(1000, 50, seeds.generator("poisson", index)) for index in range(50)]
    rows = torch.cat([torch.cat(each) for each in many])
    counts = torch.bincount(rows, minlength=1000).double()
    assert counts.mean() == pytest.approx(50, rel=0.01)
    assert counts.var() == pytest.approx(50 * 0.95, rel=0.15), "binomial: draws do not depend on one another"
    assert all(len(each.unique()) == len(each) for each in many[0])


def test_a_training_that_is_killed_keeps_its_epsilon_and_its_weights():
    def train(state=None, stop=None):
        model, defense = network(), DPSGD(noise=1.0, clip=1.0)
        model = loop.assemble(model, defense, 0)
        recipe = Recipe(epochs=4, batch_size=32, optimizer=functools.partial(SGD, momentum=0.9))
        for done, logs, give in loop.fit(model, defense, images(), recipe, seed=5, state=state):
            if done == stop:
                return give(), logs
        return model.state_dict(), defense.told()

    whole, told = train()
    state, logs = train(stop=2)
    again, resumed = train(state=state)
    assert told == resumed and told["privacy_delta"] == 1e-5
    assert told["privacy_epsilon"] == epsilon("rdp", 1.0, 32 / 128, 16, 1e-5) > logs["privacy_epsilon"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_stored_target_says_its_epsilon(tmp_path):
    words = ("dataset=toy", "dataset.size=16", "architecture=cnn", "architecture.size=16", "architecture.widths=[8]")
    words += ("recipe.epochs=2", "recipe.batch_size=32", "defense=dp_sgd", "compute=cpu", "tracking=none")
    metrics = Pipeline(plan_for("train_target", *words, store=tmp_path)).target.artefact.metrics
    assert metrics["privacy_epsilon"] > 1 and metrics["privacy_delta"] == 1e-5
    assert DPSGD(noise=0.0, clip=None).told() == NoDefense().told() == {}


def test_refusals():
    with pytest.raises(Refused, match="defense.clip: expected a length"):
        DPSGD(noise=1.0, clip=None)
    with pytest.raises(Refused, match="defense.accountant: got 'gdp'; choices: rdp, prv"):
        DPSGD(noise=1.0, clip=1.0, accountant="gdp")
    for other in (BiDO(measure="hsic", lambda_x=0.1, lambda_y=0.1), Mixup(p=1.0, alpha=0.2)):
        with pytest.raises(Refused, match="expected images apart from each other beside 'a', got 'b'"):
            Stack(members={"a": DPSGD(noise=1.0, clip=1.0), "b": other})
    tied = Stack(members={"a": DPSGD(noise=1.0, clip=1.0), "b": Scalar()})
    with pytest.raises(Refused, match="expected losses per image beside DP-SGD, got 'b/all'"):
        trainer_of(tied).train(batch_of(32), 0, 0, 0)
    for settings, sentence in (
        ({"clip_norm": 1.0}, "recipe.clip_norm: expected null"),
        ({"batch_size": 256}, "recipe.batch_size: expected at most 128, the training images"),
        ({"compile": True}, "recipe.compile: expected false"),
    ):
        with pytest.raises(Refused, match=sentence):
            trainer_of(DPSGD(noise=1.0, clip=1.0), **settings).train(batch_of(32), 0, 0, 0)
    for count, size in ((20, 32), (100, 16)):
        with pytest.raises(Refused, match=rf"recipe.batch_size: expected 32 to {count} .*got {size}"):
            poisson_batches(count, size, seeds.generator("a"))
