"""Surrogates that learn a target's scores and are searched in its place: what they learn, from what, at what cost."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import Random
from midefense.attacks.learning import Learning
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import TargetConfidence
from midefense.attacks.surrogate import Imitated, likeness
from midefense.defenses.base import NoDefense
from midefense.defenses.output import Rounding, TopK
from midefense.oracle import Oracle
from midefense.priors.toy import ToyFamily
from midefense.types import Evidence, Images, Refused, Trace

PRIOR = ToyFamily(channels=1, size=16).requires_grad_(False)
SMALL = {"classes": 3, "channels": 1, "size": 16, "widths": [4], "features": 6}
PUBLIC = Images(
    torch.randint(256, (120, 1, 16, 16), dtype=torch.uint8, generator=seeds.generator("public")),
    torch.zeros(120, dtype=torch.int64),
    torch.arange(120),
    ["a"],
)


def target(defense=None) -> nn.Module:
    with seeds.isolated("target"):
        model = CNN(**SMALL)
    with torch.no_grad():
        model.classifier.weight *= 30
    return (defense or NoDefense()).seal(model)


def imitated(steps=120, **changes) -> Imitated:
    network = functools.partial(CNN, **{**SMALL, "features": 9})
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    return Imitated(students={"student": Learning(network=network, optimizer=adam, steps=steps)}, **changes)


def taught(surrogate, model, access="scores"):
    oracle, state = Oracle(model, access), {}
    for _, _, give in surrogate.fit(PRIOR, oracle, PUBLIC, seeds.generator("fit"), None):
        state = give()
    return surrogate.oracle(state, PRIOR, oracle), oracle


class Said(nn.Module):
    """A student that says what it was made with."""

    def __init__(self, logits, features):
        super().__init__()
        self.trace = Trace(logits, features)

    def forward(self, images):
        return self.trace


def test_the_loss_is_the_divergence_from_what_was_told_and_that_of_likenesses():
    logits, features = torch.randn(4, 3), torch.randn(4, 5)
    probs, told = torch.randn(4, 3).softmax(1), torch.randn(4, 7)
    plain = imitated().loss(Said(logits, features), PUBLIC.floats(slice(0, 4)), probs)
    known = (probs * (probs.log() - logits.log_softmax(1))).sum(1)
    assert torch.allclose(plain, known, atol=1e-6)
    zeros = torch.eye(4)[:, :3]
    assert imitated().loss(Said(logits, features), zeros, zeros).isfinite().all(), "what was cut to 0 is no infinity"
    answers = torch.cat([probs, told], 1)
    both = imitated(features=2.0).loss(Said(logits, features), PUBLIC.floats(slice(0, 4)), answers)
    cosines = [F.cosine_similarity(one[:, None], one[None], dim=2) for one in (features, told)]
    assert torch.allclose(both, known + 2 * (cosines[0] - cosines[1]).square().mean(1), atol=1e-5)


def test_likeness_is_one_with_itself_and_blind_to_length_and_rotation():
    features = torch.randn(5, 6, generator=seeds.generator("features"))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=seeds.generator("turn")))[0]
    assert torch.allclose(likeness(features).diagonal(), torch.ones(5))
    assert torch.allclose(likeness(features), likeness(3 * features @ turn), atol=1e-5)


@pytest.mark.parametrize("defense", [None, Rounding(step=0.1), TopK(keep=1)])
def test_it_learns_what_changed_scores_still_tell(defense):
    surrogate, oracle = taught(imitated(), target(defense))
    images = PUBLIC.floats()
    agrees = surrogate(images, reads=("labels",)).labels == target()(images).logits.argmax(1)
    untaught, _ = taught(imitated(steps=1), target(defense))
    before = untaught(images, reads=("labels",)).labels == target()(images).logits.argmax(1)
    assert agrees.float().mean() > 0.85 and agrees.float().mean() > before.float().mean() + 0.1
    assert oracle.shared_bill == len(PUBLIC) and oracle.bill == {}


def test_features_are_read_with_the_weights_alone():
    with pytest.raises(Refused, match="this question reads features"):
        taught(imitated(features=1.0), target())
    images = PUBLIC.floats()
    wanted = likeness(target()(images).features).detach()

    def off(weight: float) -> float:
        surrogate, _ = taught(imitated(features=weight), target(), "whitebox")
        return float((likeness(surrogate(images, reads=("features",)).features).detach() - wanted).square().mean())

    assert off(10.0) < off(0.0) / 2


def test_a_search_through_it_has_gradients_and_the_selection_alone_asks_the_target():
    attack = SearchAttack(
        init=Random(candidates=4),
        objective=CrossEntropy(),
        search=Gradient(optimizer=functools.partial(torch.optim.Adam, lr=0.05), steps=5),
        select=TargetConfidence(keep=1),
        surrogate=imitated(),
        access="scores",
    )
    model, state = target(TopK(keep=1)), {}
    for _, _, give in attack.prepare(PRIOR, Oracle(model, "scores"), PUBLIC, seeds.generator("prepare"), None):
        state = give()
    oracle, evidence = Oracle(model, "scores", ids=[7, 8]), Evidence(torch.tensor([0, 2]), torch.tensor([7, 8]))
    stages = {
        found.stage: found for found, _ in run_group(attack, state, PRIOR, oracle, evidence, seeds.generator("group"))
    }
    assert oracle.bill == {7: 4, 8: 4} and not stages["initial"].latents.equal(stages["optimised"].latents)
