"""Every prior of `conf/prior`, small, on the toy's public images."""

import atexit
import functools
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from stylegan2_files import write_imported
from torch import nn

from contract.listing import CONF, class_of, composed, node, options
from midefense import seeds
from midefense.datasets.toy import Toy
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.priors.conditional import ClassConditional
from midefense.priors.lokt import LoktGan
from midefense.priors.plg import PlgGan
from midefense.priors.stylegan2.prior import StyleBased
from midefense.types import Refused, Trace

NAMES = options("prior")
CLASSES = 4
QUICK_GAN = (
    "prior.width=8",
    "prior.steps=80",
    "prior.unit=20",
    "prior.batch_size=16",
    "prior.critic_steps=2",
    "prior.learning_rate=3e-3",
)
QUICK_STYLES = (
    "prior.latent_size=16",
    "prior.channel_base=128",
    "prior.channel_max=16",
    "prior.steps=80",
    "prior.unit=20",
    "prior.batch_size=8",
    "prior.average_images=50",
    "prior.mirror=false",
)
QUICK_SCORES = (*QUICK_GAN, "prior.width=4", "prior.critic_steps=1")
QUICK_CLASSES = (
    *QUICK_GAN,
    "prior.latent_size=16",
    "prior.width=2",
    "prior.critic_steps=1",
    "prior.identity_weight=0.01",
    "prior.augmentation.flip=0",
)
QUICK_LABELS = (*QUICK_GAN, "prior.latent_size=16", "prior.width=2", "prior.critic_steps=1", "prior.warmup=2")
QUICK_COMPLETIONS = (*QUICK_GAN[:4], "prior.learning_rate=3e-3", "prior.latent_size=16", "prior.width=2")
QUICK_LESSONS = (
    *(word for word in QUICK_COMPLETIONS if not word.startswith("prior.steps")),
    "prior.steps=70",
    "prior.lessons=10",
    "prior.classifier.widths=[4,8]",
    "prior.classifier.features=8",
)
# The priors that learn.
SHORT = {
    **dict.fromkeys(("gmi_gan", "gmi_gan_small"), QUICK_GAN),
    **dict.fromkeys(("crafter_gan", "crafter_gan_small"), (*QUICK_GAN, "prior.latent_size=16")),
    **dict.fromkeys(("ked_gan", "ked_gan_small"), QUICK_SCORES),
    **dict.fromkeys(("plg_gan", "plg_gan_small"), QUICK_CLASSES),
    **dict.fromkeys(("lokt_gan", "lokt_gan_small"), QUICK_LABELS),
    **dict.fromkeys(("inpainting_gan", "inpainting_gan_small", "secret_gan", "secret_gan_small"), QUICK_COMPLETIONS),
    **dict.fromkeys(("secret_gan_public", "secret_gan_public_small"), QUICK_LESSONS),
    # of fewer channels the first layers, which see the picture, end dead
    **dict.fromkeys(("deblurring_gan", "deblurring_gan_small"), (*QUICK_COMPLETIONS, "prior.width=4")),
    "stylegan2_small": QUICK_STYLES,
}
IMPORTED = tuple(name for name in NAMES if name.startswith("stylegan2_") and name not in SHORT)


def test_the_listing():
    assert set(SHORT) == {name for name in NAMES if class_of("prior", name).learns}


def bound(name, seed=0, classes=CLASSES):
    overrides = ("dataset=toy", f"prior={name}", *SHORT.get(name, ()))
    if name in IMPORTED:
        overrides = (*overrides, f"prior.weights={imported_file(name == 'stylegan2_cifar10', seed)}")
    return node("attack", "prior", *overrides).given(channels=1, size=32, classes=classes)


def build(name, seed=0, classes=CLASSES):
    with seeds.isolated("prior", seed):
        return bound(name, seed, classes).build()


@functools.cache
def imported_file(conditional, seed):
    """A small generator with its critic, as the importer writes them."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return write_imported(folder / "tiny.safetensors", seed=seed, label_size=10 if conditional else 0)


@functools.cache
def public():
    return Toy().load().public


class Nearest(nn.Module):
    """The target of priors that ask one: which of the first classes' mean images is nearest."""

    def __init__(self):
        super().__init__()
        means = [public().of_class(label).floats().mean(0) for label in range(CLASSES)]
        self.register_buffer("means", torch.stack(means).flatten(1))

    def forward(self, images, taps=()):
        features = images.flatten(1)
        return Trace(-(features[:, None] - self.means).square().sum(2) / 2, features)


def oracle_for(prior, **changes):
    """An oracle as the pipeline makes it; None for a prior that asks no target."""
    return None if prior.asks is None else Oracle(Nearest(), prior.asks, mode=prior.target_mode, **changes)


@dataclass(frozen=True)
class Learnt:
    """A prior that was fitted in four units: the weights it ended with, the logs of every unit, the state that was
    saved after each, how many images its target had been asked about by then, and who asked."""

    prior: Prior
    weights: dict
    logs: list
    states: list
    asked: list
    oracle: Oracle | None


def learnt(name):
    """A fitted prior; made once for names that are alike in this quick setting. Not to be changed."""
    return _learnt(next(other for other in NAMES if recipe_of(other) == recipe_of(name)) if name in SHORT else name)


@functools.cache
def recipe_of(name):
    return bound(name).recipe()


@functools.cache
def _learnt(name):
    prior = build(name)
    oracle = oracle_for(prior)
    logs, states, asked = [], [], []
    for _, log, give in prior.fit(public(), seed=3, oracle=oracle):
        logs.append(log)
        states.append(copied(give()))
        asked.append(oracle and oracle.shared_bill)
    return Learnt(prior.eval().requires_grad_(False), copied(prior.state_dict()), logs, states, asked, oracle)


def copied(state):
    return {key: value.clone() for key, value in state.items()}


@pytest.fixture(scope="module", params=NAMES)
def prior(request):
    return learnt(request.param).prior


def test_samples_and_decodes(prior):
    latents = prior.sample(6, seeds.generator("draw"))
    assert len(latents) == 6 and latents.device.type == "cpu" and latents.isfinite().all()
    assert torch.equal(latents, prior.sample(6, seeds.generator("draw")))
    images = prior.decode(latents)
    assert images.shape == (6, 1, 32, 32) and images.dtype == torch.float32
    assert images.isfinite().all()
    if not isinstance(prior, StyleBased | ClassConditional):  # without a sigmoid only trained ones keep to it, nearly
        assert images.min() >= 0 and images.max() <= 1


def test_offers_what_it_says(prior):
    assert "sample" in prior.offers
    images = prior.draw(prior.sample(4, seeds.generator("draw")))
    if "realism" in prior.offers:
        images.requires_grad_()
        realism = prior.realism(images)
        assert realism.shape == (4,)
        realism.sum().backward()
        assert images.grad.flatten(1).any(1).all()


def test_differentiable_and_never_clamped_on_the_way(prior):
    latents = (prior.sample(5, seeds.generator("draw")) * 3).requires_grad_()
    images = prior.decode(latents)
    images.square().sum().backward()
    assert latents.grad.isfinite().all() and latents.grad.flatten(1).any(1).all()


def test_rows_do_not_depend_on_the_batch(prior):
    latents = prior.sample(7, seeds.generator("draw"))
    together = prior.decode(latents)
    torch.testing.assert_close(prior.decode(latents[3:4]), together[3:4], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prior.decode(latents.flip(0)).flip(0), together, rtol=1e-4, atol=1e-6)
    if "realism" in prior.offers and not prior.coupled:
        drawn = prior.draw(latents)
        torch.testing.assert_close(prior.realism(drawn[3:4]), prior.realism(drawn)[3:4], rtol=1e-3, atol=1e-5)


def test_a_coupled_critic_sees_the_batch(prior):
    if not prior.coupled:
        pytest.skip("what this critic says of an image depends on no other")
    drawn = prior.draw(prior.sample(4, seeds.generator("draw")))
    alike = drawn[:1].expand(4, -1, -1, -1)
    assert (prior.realism(alike) - prior.realism(drawn[:1])).abs().min() > 1e-3


def test_what_a_search_may_not_move_is_the_class(prior):
    latents = prior.sample(6, seeds.generator("draw"))
    wanted = torch.tensor([0, 1, 2, 3, 0, 1])
    place, other = prior.of_classes, prior.of_rows
    if prior.completes:  # it keeps the row of what was observed there, not the class
        place, other = other, place
    placed = place(latents, wanted)
    assert torch.equal(placed[:, : latents.shape[1] - prior.held], latents[:, : latents.shape[1] - prior.held])
    assert torch.equal(other(latents, wanted), latents)
    if prior.held:
        assert torch.equal(placed[:, -1], wanted.float())
        same = place(placed[:1].expand(4, -1), torch.arange(4))
        assert prior.decode(same).flatten(1).unique(dim=0).shape[0] == 4, "each is another image"
        assert torch.equal(prior.decode(placed + 0.2), prior.decode(place(placed + 0.2, wanted)))
    else:
        assert torch.equal(placed, latents)


@pytest.mark.parametrize("name", [name for name in NAMES if name in SHORT])
def test_what_asks_a_target_is_refused_without_and_charged_for_every_image(name):
    prior = build(name)
    if prior.asks is None:
        pytest.skip("this prior asks no target")
    with pytest.raises(Refused, match="expected a target to learn from, got none"):
        list(prior.fit(public(), seed=3))
    each = 2 if prior.completes else 1  # images per step and picture: two completions
    spared = prior.warmup + 1 if isinstance(prior, LoktGan) else 0  # steps in which nobody is asked
    beforehand = len(public()) if type(prior) is PlgGan else 0
    assert learnt(name).asked[0] == each * (20 - spared) * 16 + beforehand and learnt(name).oracle.bill == {}
    if not hasattr(prior, "classes"):
        return  # it reads features, of whatever classes
    with pytest.raises(Refused, match="expected a target of 3 classes, got one of 4"):
        next(iter(build(name, classes=3).fit(public(), seed=3, oracle=oracle_for(prior))))


def test_a_target_that_teaches_answers_as_deployed_and_every_file_names_the_switch():
    """The originals' scripts forget their target in train mode: here that is an option, off in every file."""
    for name in SHORT:  # no other learns
        config = composed("attack", f"prior={name}")[0]["prior"]
        assert config.get("target_mode") == (None if build(name).asks is None else "eval"), name
    taught = [name for name in options("attack") if re.search("(ked|plg)_gan", "".join(inherited(name)))]
    assert {"ked_mi_rt", "lomma_ked_mi_logit", "plg_mi_small"} <= set(taught) and "gmi" not in taught
    assert [name for name in taught if "prior.target_mode=train" not in next(inherited(name))] == []


def inherited(attack):
    """The text of an attack's file, then of those that it is made of."""
    yield (text := (CONF / "attack" / f"{attack}.yaml").read_text())
    for other in re.findall(r"^  - (\w+)$", text, re.M):
        if other in options("attack"):
            yield from inherited(other)


def test_entering_at_any_block_continues_the_whole(prior):
    if "blocks" not in prior.offers:
        pytest.skip("this prior is entered at its beginning only")
    latents = prior.sample(3, seeds.generator("draw"))
    whole, state = prior.draw(latents), (None, None)
    for block in range(prior.blocks):
        continued = prior.at(block).draw(latents, *state)
        torch.testing.assert_close(continued, whole, rtol=0, atol=0)
        state = prior.at(block).lift(latents, *state)


def test_styles_have_a_row_per_layer_and_obey_truncation(prior):
    if "styles" not in prior.offers:
        pytest.skip("this prior has no styles")
    free, mean = (prior.styles(5, seeds.generator("draw"), psi) for psi in (1.0, 0.0))
    assert free.ndim == 3 and len(free) == 5
    assert torch.equal(prior.styles(5, seeds.generator("draw"), 1.0, 1), free)
    cut = prior.styles(5, seeds.generator("draw"), 0.0, 1)
    assert torch.equal(cut[:, 1:], free[:, 1:]) and torch.equal(cut[:, 0], mean[:, 0])
    assert prior.decode(free[:, 0]).shape == prior.decode(free).shape


@pytest.mark.parametrize("name", NAMES)
def test_survives_save_and_load(name):
    prior, other = learnt(name).prior, build(name, seed=9).eval()
    latents = prior.sample(3, seeds.generator("draw"))
    if prior.learns:
        assert not torch.equal(prior.decode(latents), other.decode(latents))
    other.load_state_dict(prior.state_dict())
    assert torch.equal(prior.decode(latents), other.decode(latents))


@pytest.mark.parametrize("name", sorted(SHORT))
def test_fit_comes_closer_to_the_public_images(name):
    def distance(prior):
        with torch.no_grad():
            drawn = prior.eval().decode(prior.sample(128, seeds.generator("draw")))
        return float((drawn.mean(0) - public().floats().mean(0)).square().mean())

    prior, logs = learnt(name).prior, learnt(name).logs
    assert distance(prior) < 0.3 * distance(build(name))
    assert logs[-1]["critic_loss"] < logs[0]["critic_loss"]
    assert len(logs) == 4 and prior.fit_steps(public()) == 80


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHORT])
def test_what_does_not_learn_has_nothing_to_fit(name):
    prior = build(name)
    assert not prior.learns and prior.fit_steps(public()) == 0 and list(prior.fit(public(), seed=0)) == []


# `gmi_gan_small` and the like are `gmi_gan` again in their quick settings.
@pytest.mark.parametrize(
    "name", [name for name in sorted(SHORT) if name.removesuffix("_small") not in {*SHORT} - {name}]
)
def test_an_interrupted_fit_ends_bit_equal(name):
    whole, resumed = learnt(name), build(name)
    units = list(resumed.fit(public(), seed=3, oracle=oracle_for(resumed), state=copied(whole.states[2])))
    assert len(units) == 1, "three of four were done"
    ended = resumed.state_dict()
    assert [key for key in whole.weights if not torch.equal(whole.weights[key], ended[key])] == []
