"""Decoders: an inverse network against a known answer, its bill, going on, and what it leaves in the store."""

import functools

import pytest
import torch
from contract.listing import composed, within
from learned_doubles import Inverse, Quarters

from midefense import seeds
from midefense.attacks.decoder import Decoder
from midefense.attacks.learning import Learning
from midefense.oracle import Oracle
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.read import read_plan
from midefense.priors.gmi import GmiGan
from midefense.priors.pixels import Pixels
from midefense.types import DatasetFacts, Evidence, EvidenceFacts, Images, Refused, Setting, to_pixels

PRIOR = Pixels(channels=1, size=4).requires_grad_(False)  # the target's features are a rotation of 4x4 pixels
PUBLIC = Images(
    torch.randint(256, (200, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.zeros(200, dtype=torch.int64),
    torch.arange(200),
    ["anyone"],
)


def decoder(**changes):
    options = {"optimizer": functools.partial(torch.optim.Adam, lr=0.02), "steps": 400, "batch_size": 64, "unit": 70}
    network = functools.partial(Inverse, features=16, channels=1, size=4)
    return Decoder(learning=Learning(network=network, **{**options, **changes}))


def prepare(attack, state=None, stop=None):
    oracle = Oracle(Quarters(), attack.access)
    for done, (_, _, give) in enumerate(
        attack.prepare(PRIOR, oracle, PUBLIC, seeds.generator("prepare"), state), start=1
    ):
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    return state, oracle


@functools.cache
def whole():
    return prepare(decoder())[0]


def observed(count=5):
    """Private images [N, 1, 4, 4], and the evidence of what the target released of them."""
    images = torch.rand(count, 1, 4, 4, generator=seeds.generator("private"))
    rows = torch.arange(count)
    return images, Evidence(rows, rows, Quarters()(images).features)


def test_a_rotation_is_undone():
    images, evidence = observed()
    oracle = Oracle(Quarters(), "features")
    (found,) = decoder().recover(whole(), PRIOR, oracle, evidence, seeds.generator("group"))
    assert found.pixels.dtype == torch.uint8 and found.pixels.shape == (5, 1, 4, 4) and found.stage == "selected"
    assert (found.pixels.float() / 255 - images).square().mean() < 0.003 < (0.5 - images).square().mean() / 10
    assert torch.equal(found.evidence, torch.arange(5)) and len(found.latents) == 5
    assert oracle.bill == {} and oracle.shared_bill == 0, "what it learned from was paid for once"
    pieces = decoder(batch_size=2).recover(whole(), PRIOR, oracle, evidence, seeds.generator("group"))
    assert (next(iter(pieces)).pixels.int() - found.pixels.int()).abs().max() <= 1


def test_every_public_image_is_charged_once():
    assert prepare(decoder())[1].shared_bill == len(PUBLIC)


@pytest.mark.parametrize("stop", range(1, 8))
def test_killed_and_resumed_it_is_the_same_to_the_bit(stop):
    partly, first = prepare(decoder(), stop=stop)
    resumed, second = prepare(decoder(), partly)
    assert resumed.keys() == whole().keys() and all(torch.equal(resumed[name], whole()[name]) for name in resumed)
    assert first.shared_bill + second.shared_bill == len(PUBLIC)


def test_what_it_cannot_use_is_refused():
    _, evidence = observed()
    blind = Evidence(evidence.labels, evidence.ids)
    with pytest.raises(
        Refused, match="Decoder decodes what was observed of each target, got evidence of classes alone"
    ):
        next(decoder().recover(whole(), PRIOR, Oracle(Quarters(), "features"), blind, seeds.generator("group")))
    with pytest.raises(Refused, match="needs a prior that offers pixels"):
        decoder().check(Setting(GmiGan, DatasetFacts(1, 28), EvidenceFacts("Released"), describe=None))
    with pytest.raises(Refused, match=r"attack \(Decoder\) reads features, which access=scores hides"):
        Decoder(learning=decoder().learning, access="scores")


def test_it_runs_end_to_end(store):
    overrides = (
        "dataset=toy",
        "dataset.size=16",
        "architecture=mlp",
        "architecture.widths=[8]",
        "architecture.size=16",
        "recipe.epochs=1",
        "attack=gmi",
        "prior=pixels",
        "compute=cpu",
        "tracking=none",
        "allow=[learned_doubles]",
        "evaluators.main.architecture.widths=[4,4]",
        "evaluators.main.recipe.epochs=1",
        "judge_at_chance=true",
    )
    config, choices = composed("evaluate", *overrides)
    config = within(store, config)
    learning = {
        "_target_": "midefense.attacks.learning.Learning",
        "network": {"_target_": "learned_doubles.Inverse", "_partial_": True, "features": 8, "channels": 1, "size": 16},
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True},
        "steps": 5,
        "batch_size": 16,
    }
    config["attack"] = {"_target_": "midefense.attacks.decoder.Decoder", "learning": learning, "group": 2}
    config["evidence"] = {"_target_": "learned_doubles.Released", "width": 8}
    done = Pipeline(read_plan("evaluate", config, choices, overrides))
    recovered = done.recovered
    assert recovered.provenance["bill"]["shared_queries"] == len(done.public)
    tensors = recovered.tensors()
    assert tensors["selected.pixels"].shape == (done.splits.classes, 1, 16, 16) and (tensors["queries"] == 0).all()
    state = done.store.open(recovered.provenance["parents"]["prepared"], "prepared").tensors()
    inverse = Inverse(features=8, channels=1, size=16)
    inverse.load_state_dict(
        {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
    )
    with torch.no_grad():
        assert torch.equal(tensors["selected.pixels"], to_pixels(inverse(done.evidence.observed)))
    assert done.result.metrics["row"]["candidates"] == 1, "one per target, and judged"
