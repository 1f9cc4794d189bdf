"""IF-GMI's search through the blocks of a generator, PPA's styles, and the memory of many candidates."""

import functools
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from midefense import seeds
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import BestOfStyles
from midefense.attacks.objectives import NonSaturating, Poincare, Weighted, WeightedSum
from midefense.attacks.part import Part
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.search.layerwise import Layerwise, project_l1, running_sum
from midefense.attacks.select import Everything, TargetConfidence
from midefense.attacks.views import Chain, Clip, RandomResizedCrop
from midefense.oracle import Oracle
from midefense.priors.stylegan2.prior import StyleGan2Trained
from midefense.priors.toy import ToyFamily
from midefense.types import Evidence, Refused, Trace

CLASSES, SIZE = 4, 16
ALMOST_SIGN = functools.partial(torch.optim.Adam, lr=0.02, betas=(0.1, 0.1))


class Classifier(nn.Module):
    """A random convolution and a random head with a bias: nobody needs to be recognised to see losses fall."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES))
        self.body(torch.zeros(1, 3, SIZE, SIZE))

    def forward(self, images, taps=()):
        logits = self.body(images)
        return Trace(logits, logits)


@functools.cache
def prior(size=SIZE):
    with seeds.isolated("prior"):
        made = StyleGan2Trained(channels=3, size=size, latent_size=16, channel_base=128, channel_max=16, steps=1)
    made.eval().measure_deviation(seeds.generator("deviation"), groups=2)
    return made.requires_grad_(False)


@functools.cache
def target():
    with seeds.isolated("target"):
        return Classifier()


def search(steps, feature_radius=0.0, latent_radius=0.0, **changes):
    count = len(steps)
    radii = {"feature_radius": [feature_radius] * count, "latent_radius": [latent_radius] * count}
    return Layerwise(**{"steps": steps, "optimizer": ALMOST_SIGN, **radii, **changes})


def attack_of(**changes):
    parts = {
        "init": BestOfStyles(size=60, candidates=3, batch_size=20),
        "objective": Poincare(),
        "search": search([10, 5, 5]),
        "select": Everything(),
    }
    return SearchAttack(**{**parts, **changes})


def run(attack, seed=0):
    """The last of every stage, the starting state and the oracle."""
    oracle = Oracle(target(), attack.access, attack.budget)
    for _, _, give in attack.prepare(prior(), oracle, None, seeds.generator("prepare"), None):
        state = give()
    evidence = Evidence(torch.arange(CLASSES), torch.arange(CLASSES))
    stages = {}
    for found, _ in run_group(attack, state, prior(), oracle, evidence, seeds.generator("group", seed)):
        stages[found.stage] = found.detached()
    return stages, state, oracle


# the ball --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "radius", "expected"),
    [
        ([3.0, -1.0, 0.5], 2.0, [2.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0, 1.0], 2.0, [0.5] * 4),
        ([0.5, -0.5], 2.0, [0.5, -0.5]),
        ([0.0, 0.0], 0.0, [0.0, 0.0]),
    ],
)
def test_projections_of_the_card(vector, radius, expected):
    torch.testing.assert_close(project_l1(torch.tensor([vector]), radius), torch.tensor([expected]))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 5000, 300_000])
def test_sums_along_a_row_are_those_of_float64(count):
    values = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
    exact = values.double().cumsum(1)
    torch.testing.assert_close(running_sum(values).double(), exact, rtol=1e-6, atol=0)


def test_a_projection_is_inside_the_nearest_and_stays():
    vectors = torch.randn(6, 2, 5, generator=seeds.generator("vectors")) * torch.arange(6).view(-1, 1, 1)
    projected = project_l1(vectors, 3.0)
    assert (projected.abs().flatten(1).sum(1) <= 3 + 1e-5).all() and (projected * vectors >= 0).all()
    torch.testing.assert_close(project_l1(projected, 3.0), projected, atol=1e-6, rtol=0)
    distance = (projected - vectors).flatten(1).norm(dim=1)
    rng = seeds.generator("others")
    for _ in range(50):  # no other point of the ball is nearer
        other = project_l1(projected + 0.3 * torch.randn(projected.shape, generator=rng), 3.0)
        assert ((other - vectors).flatten(1).norm(dim=1) >= distance - 1e-5).all()


# the search ------------------------------------------------------------------------------------------------------


def test_one_stage_is_the_plain_search():
    views = RandomResizedCrop(scale=(0.9, 1.0))
    layered, _, _ = run(attack_of(search=search([20]), views=views))
    plain, _, _ = run(attack_of(search=Gradient(optimizer=ALMOST_SIGN, steps=20), views=views))
    torch.testing.assert_close(layered["stage00"].latents, plain["optimised"].latents, atol=1e-6, rtol=0)
    shown = prior().decode(plain["optimised"].latents).clamp(0, 1)
    torch.testing.assert_close(layered["stage00"].pixels / 255, shown, atol=0.5 / 255 + 1e-5, rtol=0)


def test_stages_are_reported_and_the_target_chooses_among_them():
    stages, _, oracle = run(attack_of())
    assert list(stages) == ["initial", "optimised", "stage00", "stage01", "stage02", "selected"]
    with torch.no_grad():
        sure = [
            target()(stages[f"stage{i:02d}"].pixels / 255).logits.softmax(1).view(CLASSES, 3, CLASSES) for i in range(3)
        ]
    means = torch.stack([p.diagonal(dim1=0, dim2=2).mean(0) for p in sure])  # [stages, classes]
    best = means.argmax(0)
    for label in range(CLASSES):
        rows = stages["optimised"].evidence == label
        chosen = stages[f"stage{int(best[label]):02d}"]
        assert torch.equal(stages["optimised"].pixels[rows], chosen.pixels[rows])
        assert torch.equal(stages["optimised"].latents[rows], chosen.latents[rows])
    # every step and one look back per stage
    assert oracle.bill == dict.fromkeys(range(CLASSES), 3 * (10 + 5 + 5 + 3))


def test_later_stages_lower_the_loss():
    falls = []
    for seed in range(3):
        stages, _, _ = run(attack_of(search=search([30, 20, 20], keep_skip=True)), seed)
        losses = torch.stack([stages[f"stage{i:02d}"].loss.mean() for i in range(3)])
        falls += (losses.diff() <= 0).tolist()
    assert sum(falls) >= 5  # of 6: nothing makes every one fall


def test_the_picture_of_lower_blocks_is_dropped_unless_kept():
    """The first step of a stage looks at what the stage before ended with, minus what was dropped."""
    ends = {}
    for keep in (True, False):
        stages, _, _ = run(attack_of(search=search([5, 0], keep_skip=keep)))
        ends[keep] = stages
    torch.testing.assert_close(ends[True]["stage01"].pixels, ends[True]["stage00"].pixels, atol=1, rtol=0)
    assert (ends[False]["stage01"].pixels.int() - ends[False]["stage00"].pixels.int()).abs().max() > 5


def test_radii_bound_the_way():
    """Without a ball, in a ball of nothing (which freezes), and monotonically in between."""
    moved, losses = {}, {}
    for radius in (1e-6, 0.3, 3.0, 0.0):
        attack = attack_of(search=search([0, 20], feature_radius=radius, latent_radius=radius, keep_skip=True))
        stages, _, _ = run(attack)
        moved[radius] = float((stages["stage01"].latents - stages["stage00"].latents).abs().sum(1).max())
        losses[radius] = float(stages["stage01"].loss.mean())
    assert moved[1e-6] <= 2e-6 and moved[0.3] <= 0.3 + 1e-4 and moved[3.0] <= 3.0 + 1e-3
    assert losses[1e-6] > losses[0.3] > losses[3.0] >= losses[0.0] - 1e-3


def test_no_coordinate_moves_further_than_its_steps():
    stages, state, _ = run(attack_of(search=search([10, 5])))
    moved = (stages["stage00"].latents - stages["initial"].latents).abs().max()
    assert 0.19 < moved <= 0.2 + 1e-5  # ten steps of almost .02
    # a stage that was kept does not move with the next one
    again, _, _ = run(attack_of(search=search([10])))
    assert torch.equal(stages["stage00"].latents, again["stage00"].latents)


def test_features_reach_what_styles_cannot():
    """A generator whose first block only knows the left half: the toy's entrance moves a bell that latents may not."""

    class Tied(ToyFamily):
        """Latents place the bell in the left half; features place it anywhere."""

        def decode(self, latents):
            return super().decode(torch.cat([-latents[:, :1].abs() - 0.3, latents[:, 1:]], 1))

        def at(self, block):
            return super().at(block) if block == 0 else Free(self)

    class Free:
        def __init__(self, prior):
            self.prior = prior

        def draw(self, latents, features, images=None):
            return ToyFamily.decode(self.prior, features)

    tied = Tied(channels=1, size=16)
    wanted = ToyFamily(channels=1, size=16).decode(torch.tensor([[0.5, 0.0]]))

    class Likeness(nn.Module):
        def forward(self, images, taps=()):
            like = 8 - (images - wanted).square().flatten(1).sum(1)
            return Trace(torch.stack([like, torch.full_like(like, 4.0)], 1), like[:, None])

    class Given(Part):
        def __call__(self, problem, found=None):
            from midefense.attacks.init import starts_of

            return starts_of(torch.tensor([[0.1, 0.1]]), 1, 1)

    attack = SearchAttack(init=Given(), objective=Poincare(), search=search([60, 120]), select=Everything())
    evidence = Evidence(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    stages = {}
    for found, _ in run_group(attack, {}, tied, Oracle(Likeness(), "whitebox"), evidence, seeds.generator("toy")):
        stages[found.stage] = found
    errors = [float((stages[name].pixels / 255 - wanted).square().mean()) for name in ("stage00", "stage01")]
    assert errors[1] < 0.1 * errors[0]
    assert torch.equal(stages["optimised"].pixels, stages["stage01"].pixels)


def test_more_stages_than_blocks_are_refused():
    with pytest.raises(Refused, match="at most 3 stages"):
        run(attack_of(search=search([1] * 4)))


def test_a_stage_without_a_radius_is_refused():
    with pytest.raises(Refused, match=r"attack\.search\.latent_radius: expected a radius for each of the 2 stages"):
        Layerwise(steps=[1, 1], optimizer=ALMOST_SIGN, feature_radius=[0, 0], latent_radius=[0])


# styles ----------------------------------------------------------------------------------------------------------


def test_single_styles_start_from_the_truncated_row():
    """Card ppa.md, 4.1: scored with rows behind the cutoff untruncated, started from the first row for all layers."""
    single, whole = (BestOfStyles(size=30, candidates=3, cutoff=2, single_w=one) for one in (True, False))
    scored, starts = single.draw(prior(), seeds.generator("pool"), 30)
    assert torch.equal(starts, scored[:, 0]) and scored.shape == (30, prior().config.num_ws, 16)
    assert torch.equal(whole.draw(prior(), seeds.generator("pool"), 30)[1], scored)
    free = prior().styles(30, seeds.generator("pool"))
    assert torch.equal(scored[:, 2:], free[:, 2:]) and not torch.equal(scored[:, :2], free[:, :2])


def test_both_kinds_of_styles_are_searched():
    for one in (True, False):
        init = BestOfStyles(size=30, candidates=2, single_w=one)
        stages, _, _ = run(attack_of(init=init, search=Gradient(optimizer=ALMOST_SIGN, steps=5)))
        rows = stages["optimised"].latents
        assert rows.shape == ((8, 16) if one else (8, prior().config.num_ws, 16))
        with torch.no_grad():
            losses = []
            for found in (stages["initial"], stages["optimised"]):
                logits = target()(prior().decode(found.latents)).logits
                losses.append(nn.functional.cross_entropy(logits, found.evidence).item())
        assert losses[1] < losses[0]


def test_the_discriminator_term_draws_towards_what_the_critic_likes():
    realism = {}
    for weight in (0.0, 20.0):
        terms = {
            "identity": Weighted(loss=Poincare(), weight=1.0),
            "realism": Weighted(loss=NonSaturating(), weight=weight),
        }
        attack = attack_of(objective=WeightedSum(terms=terms), search=Gradient(optimizer=ALMOST_SIGN, steps=20))
        stages, _, _ = run(attack)
        realism[weight] = float(prior().realism(prior().draw(stages["optimised"].latents)).mean())
    assert realism[20.0] > realism[0.0]


def test_clipping_comes_before_what_follows_it():
    images = torch.tensor([-1.0, 0.25, 3.0, 0.5]).view(1, 1, 2, 2).requires_grad_()
    chain = Chain(members={"clip": Clip(), "crop": RandomResizedCrop(scale=(1.0, 1.0))})
    shown = chain(images, chain.draw(1, seeds.generator("views")))
    torch.testing.assert_close(shown, images.clamp(0, 1))
    shown.sum().backward()
    assert images.grad.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


# memory ----------------------------------------------------------------------------------------------------------

MANY = """
import resource, torch
torch.set_num_threads(1)
from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.objectives import Poincare
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import TargetConfidence
from midefense.attacks.views import RandomResizedCrop
from midefense.architectures.small import CNN
from midefense.oracle import Oracle
from midefense.priors.stylegan2 import StyleGan2Trained
from midefense.types import Evidence
import functools
with seeds.isolated("many"):
    prior = StyleGan2Trained(channels=3, size=64, latent_size=16, channel_base=256, channel_max=8).eval()
    target = CNN(classes=100, channels=3, size=64, widths=[4, 4, 4], features=8)
prior.requires_grad_(False)
attack = SearchAttack(
    init=Random(candidates=100), objective=Poincare(), views=RandomResizedCrop(),
    search=Gradient(optimizer=functools.partial(torch.optim.Adam, lr=.05), steps=1),
    select=TargetConfidence(keep=50, views=RandomResizedCrop(scale=(.5, .9)), repeats=1), group=100, chunk=250)
evidence = Evidence(torch.arange(100), torch.arange(100))
for found in attack.recover({}, prior, Oracle(target, "whitebox"), evidence, seeds.generator("many")):
    pass
assert len(found) == 5000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_ten_thousand_candidates_fit():
    """10,000 candidates at 64 px through search and selection, in a process of its own: below 3 GiB, torch included."""
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 3


def test_selection_shows_what_was_found_in_pixels():
    select = TargetConfidence(keep=1, views=RandomResizedCrop(), repeats=2)
    stages, _, _ = run(attack_of(select=select))
    kept = stages["selected"]
    assert len(kept) == CLASSES and kept.pixels.dtype == torch.uint8
    whole = stages["optimised"]
    assert all((whole.pixels == picture).flatten(1).all(1).any() for picture in kept.pixels)
