"""Sixty labels in one group or in six: each attack of the low-resolution benchmark finds the same latents, where its
mathematics leaves an image alone with itself; and says `coupled` where it does not.

Groups draw from generators of their own. Here the group of sixty draws, and each of the six is handed the rows that are
its own, so that nothing is left that may differ but what an image does to its mates.
"""

import copy

import pytest
import torch
from contract.listing import composed
from torch import nn

from midefense import seeds
from midefense.attacks.base import run_group
from midefense.datasets.toy import Toy
from midefense.obscuring import Mask
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.types import Evidence, Refused, Trace

LABELS, GROUPS = 60, 6
GAN = ("prior.width=2", "prior.latent_size=8")
STYLES = ("prior.latent_size=8", "prior.channel_base=64", "prior.channel_max=4")
SHORT = ("attack.search.steps=3",)
TWO = (*SHORT, "attack.init.candidates=2")
DRAWN = (*SHORT, "attack.search.draws=2")
FLOW = (*TWO, "attack.search.batch_size=2", "attack.search.optimizer.lr=0.01", "attack.chunk=null")
STUDENTS = tuple(f"attack.surrogate.students.{name}.steps=2" for name in ("narrow", "wide"))
APART = {  # attacks whose candidates do not know each other
    "gmi": ("prior=gmi_gan", *GAN, *TWO),
    "gmi_paper": ("prior=gmi_gan", *GAN, *TWO),
    "gmi_masked": (*GAN, *TWO),
    "lomma_gmi_logit": ("prior=gmi_gan", *GAN, *TWO),
    "lomma_gmi_small": ("prior=gmi_gan", *GAN, *TWO, *STUDENTS),
    "ked_mi": ("prior=ked_gan", *GAN, *DRAWN, "attack/objective=cross_entropy"),
    "ked_mi_rt": ("prior=gmi_gan", *GAN, *DRAWN),
    "plg_mi": ("prior=plg_gan", *GAN, *TWO),
    "vmi": ("prior=stylegan2_small", *STYLES, *FLOW, "attack.search.family.levels=1", "attack.search.family.steps=2"),
    "vmi_flow": ("prior=ked_gan", *GAN, *FLOW, "attack.search.family.levels=2", "attack.search.family.steps=2"),
    "vmi_gaussian": ("prior=gmi_gan", *GAN, *FLOW, "attack.search.family.draws=10"),
}
TIED = {  # attacks that ask a critic which looks at a whole batch
    "ked_mi": ("prior=ked_gan", *GAN, *DRAWN),
    "ked_mi_rt": ("prior=ked_gan", *GAN, *DRAWN),
    "lomma_ked_mi": ("prior=ked_gan", *GAN, *DRAWN, "attack/surrogate=distilled_small", *STUDENTS),
}


HEAVY = ("gmi_paper", "lomma_gmi_small", "lomma_ked_mi", "vmi")


def marked(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in names]


class Net(nn.Module):
    """A target of sixty classes."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1024, 16), nn.Linear(16, LABELS)

    def forward(self, images, taps=()):
        features = self.body(images.flatten(1)).tanh()
        return Trace(self.head(features), features)


class Draws:
    """Stands in for torch's own draws from a generator: remembers what the whole group drew, or hands a part of it its
    rows, along the one dimension in which the part asks for fewer."""

    def __init__(self, monkeypatch):
        self.kept, self.part = [], None
        for name in ("randn", "rand", "randint"):
            monkeypatch.setattr(torch, name, self._instead(getattr(torch, name)))

    def _instead(self, draw):
        def drawn(*arguments, generator=None, **options):
            made = draw(*arguments, generator=generator, **options)
            if generator is None:
                return made
            if self.part is None:
                self.kept.append(made.clone())
                return made
            return self._rows(next(self.left), made.shape)

        return drawn

    def _rows(self, whole, wanted):
        fewer = [d for d, (a, b) in enumerate(zip(whole.shape, wanted, strict=True)) if a != b]
        if not fewer:  # drawn once for a whole call, as PLG-MI's order of jitter
            return whole.clone()
        (dimension,) = fewer
        assert whole.shape[dimension] == GROUPS * wanted[dimension]
        return whole.chunk(GROUPS, dimension)[self.part].clone()

    def of_part(self, part):
        self.part, self.left = part, iter(self.kept)


@pytest.fixture(scope="module")
def world():
    """Public images, a target and its evidence: sixty labels, each with a masked picture."""
    splits = Toy(classes=2, public_classes=3, images_per_class=8, test_images_per_class=2).load()
    with seeds.isolated("target"):
        model = Net().eval()
    with torch.no_grad():
        model.head.weight.mul_(5)
    pictures = torch.rand(LABELS, 1, 32, 32, generator=seeds.generator("pictures"))
    rows = torch.arange(LABELS)
    return splits.public, model, Evidence(rows, rows, Mask()(pictures, torch.zeros(LABELS, 0)))


def built(name, words):
    """An attack and its prior, untrained."""
    config, _ = composed("attack", "dataset=toy", f"attack={name}", *words)
    given = {"channels": 1, "size": 32, "classes": LABELS}
    attack = bind(config["attack"], "attack", beside_dataset=True).given(**given).build()
    with seeds.isolated("prior"):
        prior = bind(config["prior"], "prior", beside_dataset=True).given(**given).build()
        for name, weights in prior.named_parameters():  # fresh ones make nearly one image of all latents
            weights.data += 0.0 if "critic" in name else 0.2 * torch.randn_like(weights)
    return attack, prior.eval().requires_grad_(False)


def together_and_apart(monkeypatch, world, attack, prior, other=None):
    """What was found for all as one group, and for six parts, the latter one after the other; `other` is an attack for
    the parts alone."""
    public, model, evidence = world
    state = {}
    if attack.prepares:
        oracle = Oracle(model, attack.access)
        for _, _, give in attack.prepare(prior, oracle, public, seeds.generator("prepare"), None):
            state = give()
    with monkeypatch.context() as patch:
        draws = Draws(patch)

        def found(rows, of):
            group = run_group(of, state, prior, Oracle(model, attack.access), evidence.take(rows), seeds.generator("x"))
            stages = {step.stage: step.detached() for step, _ in group}
            return stages["initial"].latents, stages["optimised"].latents, stages["selected"].latents

        whole = found(slice(0, LABELS), attack)
        parts = []
        for part, rows in enumerate(torch.arange(LABELS).chunk(GROUPS)):
            draws.of_part(part)
            parts.append(found(slice(int(rows[0]), int(rows[-1]) + 1), other or attack))
            assert next(draws.left, None) is None, "a part draws as often as the whole"
    return whole, tuple(torch.cat(stage) for stage in zip(*parts, strict=True))


def free(latents, prior):
    """Latents without what no search moves: the row of a group is another in each."""
    return latents[..., : latents.shape[-1] - prior.held]


@pytest.mark.parametrize("name", marked(APART))
def test_sixty_in_one_group_or_in_six(name, world, monkeypatch):
    attack, prior = built(name, APART[name])
    whole, apart = together_and_apart(monkeypatch, world, attack, prior)
    assert not attack.coupled
    for left, right in zip(whole, apart, strict=True):
        torch.testing.assert_close(free(left, prior), free(right, prior), rtol=1e-4, atol=2e-5)
    if whole[0].shape == whole[1].shape:
        start, end = (free(latents, prior).clamp(-1, 1) for latents in whole[:2])  # the box alone moves some
        assert (end - start).abs().max() > 1e-3, "what stands still is the same in any group"


@pytest.mark.parametrize("name", marked(TIED))
def test_what_is_coupled_says_so_and_is_another_in_other_groups(name, world, monkeypatch):
    attack, prior = built(name, TIED[name])
    assert attack._couples(prior) and not attack._couples(built("gmi", APART["gmi"])[1])
    attack.chunk = 7
    with pytest.raises(Refused, match="attack.chunk: expected null, because the realism of KedGan is coupled"):
        attack.check(FakeSetting(type(prior)))
    attack.chunk = None
    prior.critic.closeness.kernel.mul_(0.01)  # every pair of pictures is nearly alike
    whole, apart = together_and_apart(monkeypatch, world, attack, prior)
    assert torch.equal(whole[0], apart[0]) and (whole[1] - apart[1]).abs().max() > 5e-5  # of the rest: 2e-5 at most


class FakeSetting:
    """As much of a `Setting` as is looked at before the refusal."""

    def __init__(self, prior):
        self.prior = prior
        self.evidence = type("Facts", (), {"cut": None})


def test_a_mean_over_the_batch_is_seen(world, monkeypatch):
    """The wrong variant: losses divided by how many there are."""
    attack, prior = built("gmi", APART["gmi"])
    other = copy.copy(attack)
    other.search = copy.copy(attack.search)
    attack.search.reference_batch, other.search.reference_batch = 2 * LABELS, 2 * LABELS // GROUPS
    whole, apart = together_and_apart(monkeypatch, world, attack, prior, other)
    assert torch.equal(whole[0], apart[0]) and (whole[1] - apart[1]).abs().max() > 1e-3
