"""Attackers who know of Trap-MID: triggers found with public images, the signatures they leave, and who is filtered."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midefense import seeds
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy, Weighted, WeightedSum
from midefense.attacks.problem import Look, Problem
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import LowestLoss, TargetConfidence
from midefense.attacks.signatures import TriggerSignature, Unbaited, likeness_to
from midefense.attacks.views import PixelNoise, uniform_of_keys
from midefense.oracle import Oracle
from midefense.priors.pixels import Pixels
from midefense.types import Answer, Evidence, Found, Images, Refused, Trace

PUBLIC = Images(
    torch.randint(100, 156, (40, 1, 8, 8), dtype=torch.uint8, generator=seeds.generator("public")),
    torch.zeros(40, dtype=torch.int64),
    torch.arange(40),
    ["a"],
)
PRIOR = Pixels(channels=1, size=8).requires_grad_(False)


class Trapped(nn.Module):
    """A network with a trapdoor for each of two classes: features [B, 4] are the brightness of the left and the right
    half, and how far the picture goes along one secret pattern or the other, which outweighs it. The mean of a pattern
    is 0 in each half, so that brightness has no part in it."""

    def __init__(self):
        super().__init__()
        rng, rows = seeds.generator("patterns"), torch.tensor([-0.5, 0.5]).repeat(16)
        drawn = [rows[torch.randperm(32, generator=rng)].view(8, 4) for _ in range(4)]
        self.patterns = torch.stack([torch.cat(drawn[:2], 1), torch.cat(drawn[2:], 1)]).flatten(1)

    def forward(self, images, taps=()):
        halves = torch.stack([images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))], 1)
        bait = (images.flatten(1) - images.flatten(1).mean(1, keepdim=True)) @ self.patterns.T.to(images.device) / 4
        features = torch.cat([halves / 2, bait.clamp_min(0)], 1)
        return Trace(4 * halves + 8 * bait, features)


def asked(access="whitebox", **options) -> Oracle:
    return Oracle(Trapped(), access, **options)


def baited(images: torch.Tensor, opacity: float = 0.3) -> torch.Tensor:
    """Images with the true trigger of class 1."""
    return (1 - opacity) * images + opacity * (Trapped().patterns[1] + 0.5).view(1, 1, 8, 8)


def signature(**changes) -> TriggerSignature:
    options = {"opacity": 0.3, "steps": 60, "batch_size": 16, "step_size": 0.05, "images": 20, "unit": 7}
    return TriggerSignature(**{**options, **changes})


def prepared(part, state=None, stop=None, oracle=None):
    for count, (_, _, give) in enumerate(
        part.prepare(PRIOR, oracle or asked(), PUBLIC, seeds.generator("prepare"), state), start=1
    ):
        state = {name: value.clone() for name, value in give().items()}
        if count == stop:
            break
    return state


@functools.cache
def known():
    return prepared(signature())


def cosine_of(images: torch.Tensor, label: int) -> torch.Tensor:
    features = asked()(images, reads=("features",)).features
    return likeness_to(known()["signatures"], features, torch.full((len(images),), label))


def test_signatures_tell_the_secret_trigger_from_clean_pictures():
    """The attacker's triggers are not the defender's, but leave the same mark."""
    clean = PUBLIC.floats()
    assert known()["signatures"].norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (cosine_of(baited(clean), 1) > known()["threshold"]).all()
    seen = asked()(clean, reads=("logits", "features"))
    near = likeness_to(known()["signatures"], seen.features, seen.logits.argmax(1))
    assert float((near <= known()["threshold"]).float().mean()) == pytest.approx(0.95, abs=0.03)
    untrained = prepared(signature(steps=1, step_size=1e-6))["signatures"]
    features = asked()(baited(clean), reads=("features",)).features
    labels = torch.ones(len(clean), dtype=torch.int64)
    assert likeness_to(untrained, features, labels).mean() < cosine_of(baited(clean), 1).mean() - 0.05


def test_a_step_goes_against_the_sign_of_the_gradient_and_stays_in_range():
    part, oracle = signature(step_size=0.01), asked()
    triggers, images = torch.full((2, 1, 8, 8), 0.995), PUBLIC.floats(slice(0, 4))
    targets = torch.tensor([1, 1, 1, 1])
    moved = part._moved(triggers, oracle, images, targets)
    leaf = triggers.clone().requires_grad_()
    logits = Trapped()(0.7 * images + 0.3 * leaf[targets]).logits
    slope = torch.autograd.grad(F.cross_entropy(logits, targets), leaf)[0]
    assert torch.equal(moved, (triggers - 0.01 * slope.sign()).clamp(0, 1))
    assert torch.equal(moved[0], triggers[0]) and moved.max() <= 1 and (moved[1] < triggers[1]).any()


def test_what_is_prepared_goes_on_to_the_same_bits():
    for stop in (1, 3):
        half = prepared(signature(), stop=stop)
        assert int(half["step"]) == 7 * stop and set(half) == {"triggers", "step"}
        gone_on = prepared(signature(), state=half)
        assert all(torch.equal(gone_on[name], value) for name, value in known().items())
    assert list(signature().prepare(PRIOR, asked(), PUBLIC, seeds.generator("prepare"), known())) == []


def test_every_question_is_on_the_shared_bill():
    oracle = asked(budget=None)
    prepared(signature(), oracle=oracle)
    assert oracle.shared_bill == 1 + 60 * 16 + 2 * 20 + 40 and oracle.bill == {}


def look_at(images, labels, known):
    answer = asked()(images, reads=("logits", "features"))
    return Look(images, images, images, images, answer, labels, PRIOR, known)


def test_the_penalty_is_what_is_over_the_threshold():
    clean, labels = PUBLIC.floats(slice(0, 4)), torch.ones(4, dtype=torch.int64)
    known_ = {"signatures": torch.eye(4)[:2], "threshold": torch.tensor(0.5)}
    answer = Answer(features=torch.tensor([[0.0, 2, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, -3, 0, 0]]))
    look = Look(clean, clean, clean, clean, answer, labels, PRIOR, known_)
    assert signature()(look).tolist() == pytest.approx([0.5, 2**-0.5 - 0.5, 0, 0])


def problem_of(images, known):
    evidence = Evidence(torch.tensor([1]), torch.tensor([7]))
    problem = Problem.plain(PRIOR, asked(), evidence, seeds.generator("group"))
    problem.state = {f"objective.signature.{name}": value for name, value in known.items()}
    found = Found(images, torch.zeros(len(images)), torch.zeros(len(images), dtype=torch.int64), "optimised")
    return problem, found


def test_bait_is_taken_last_whatever_the_target_says_of_it():
    people = torch.cat([torch.zeros(3, 1, 8, 4), torch.linspace(0.3, 0.9, 3).view(3, 1, 1, 1).expand(3, 1, 8, 4)], 3)
    people[0, :, :, :4] = 0.8  # hardly of the class
    images = torch.cat([baited(people), people])
    problem, found = problem_of(images, known())
    plain = TargetConfidence(keep=2)(problem, found)
    scores = Unbaited(by=TargetConfidence(keep=2))(problem, found)
    assert plain[:3].min() > plain[3:].max(), "the target prefers all bait"
    assert scores[:3].max() < scores[3:].min() and torch.equal(scores[3:], plain[3:])
    assert torch.equal(scores[:3].argsort(), plain[:3].argsort()), "among its own kind as before"
    assert problem.oracle.bill == {7: 6 + 6 + 6}


def attack_of(objective, select):
    search = Gradient(optimizer=functools.partial(torch.optim.SGD, lr=0.1), steps=1)
    return SearchAttack(init=Random(candidates=2), objective=objective, search=search, select=select)


def test_a_filter_without_signatures_is_refused_before_any_compute():
    with pytest.raises(
        Refused, match=r"attack.select \(Unbaited\) goes by .*signatures.*, got CrossEntropy, .*=poincare_unbaited"
    ):
        attack_of(CrossEntropy(), Unbaited(by=LowestLoss(keep=1)))
    terms = {"identity": Weighted(loss=CrossEntropy(), weight=1.0), "mark": Weighted(loss=signature(), weight=1.0)}
    attack = attack_of(WeightedSum(terms=terms), Unbaited(by=LowestLoss(keep=1)))
    assert attack.prepares and attack.select.keep == 1


def test_noise_is_normal_and_that_of_its_key_alone():
    view, images = PixelNoise(std=0.1), torch.zeros(2000, 3, 4, 4)
    draws = view.draw(2000, seeds.generator("views"))
    noise = view(images, draws)
    assert float(noise.mean()) == pytest.approx(0, abs=0.002) and float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert float((noise.abs() < 0.1).float().mean()) == pytest.approx(0.683, abs=0.01)
    assert torch.equal(view(images[:3], draws[:3]), noise[:3]), "whoever else is in the batch"
    flat = noise.flatten(1)
    assert float(torch.corrcoef(flat.T).fill_diagonal_(0).abs().max()) < 0.12, "pixels apart"
    assert float(torch.corrcoef(flat[:200]).fill_diagonal_(0).abs().max()) < 0.7, "and images"
    assert torch.equal(PixelNoise(std=0.0)(images, draws), images)


def test_keys_give_uniform_numbers():
    told = uniform_of_keys(torch.arange(500), 100)
    assert float(told.min()) > 0 and float(told.max()) < 1 and len(told.unique()) > 49_000
    counts = torch.histc(told.float(), bins=20, min=0, max=1)
    assert float((counts - 2500).abs().max()) < 250
