"""Defenses of the answer (card output_perturbation.md): what is told, to whom, and that attacks survive it."""

import functools
import math
import re

import pytest
import torch
from conftest import plan_for
from contract.listing import CONF, node, options
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.attacks.coarse import mapping_input
from midefense.attacks.problem import Look
from midefense.defenses.base import NoDefense, Stack
from midefense.defenses.output import Output, OutputDefense, OutputNoise, Rounding, Temperature, TopK
from midefense.oracle import Oracle
from midefense.pipeline.classifiers import load_classifier
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.whitelist import resolve
from midefense.training import inference
from midefense.types import Answer, Images, Refused

CLASSES = 12
KEEPING = {
    "temperature": Temperature(temperature=50.0),
    "towards the label": Temperature(temperature=1e-4),
    "rounding": Rounding(step=0.1),
    "coarse rounding": Rounding(step=0.9),
    "label": TopK(keep=1),
    "confidence": TopK(keep=1, rest="uniform"),
    "three": TopK(keep=3),
    "gaussian": OutputNoise(scale=0.3),
    "laplace": OutputNoise(scale=0.3, distribution="laplace"),
    "anew": OutputNoise(scale=0.3, drawn_per="answer"),
    "all": Stack(
        members={
            "a": Temperature(temperature=3.0),
            "b": OutputNoise(scale=0.1),
            "c": TopK(keep=5),
            "d": Rounding(step=0.1),
        }
    ),
}
NEUTRAL = [Temperature(temperature=1.0), Rounding(step=None), TopK(keep=None), OutputNoise(scale=0.0)]


@functools.cache
def network() -> nn.Module:
    with seeds.isolated("network"):
        return CNN(classes=CLASSES, channels=1, size=16, widths=[4], features=8).eval()


def sealed(defense: OutputDefense | Stack | NoDefense) -> nn.Module:
    """The network as a defense deploys it; the one that is shared stays as it is."""
    made = CNN(classes=CLASSES, channels=1, size=16, widths=[4], features=8)
    made.load_state_dict(network().state_dict())
    return defense.seal(defense.rebuild(made))


def pictures(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=seeds.generator("pictures"))


def logits_of_all_kinds() -> torch.Tensor:
    """Ten thousand rows: wide, flat, nearly tied and tied ones."""
    rows = torch.randn(10_000, CLASSES, generator=seeds.generator("logits"))
    scales = torch.tensor([30.0, 1.0, 1e-3, 1e-6]).repeat(2_500).view(-1, 1)
    rows = rows * scales
    rows[::7, 3] = rows[::7].amax(1)
    rows[:5] = 0
    return rows


def output_of(defense: OutputDefense | Stack) -> Output:
    return sealed(defense).output


def told_by(defense: OutputDefense | Stack, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return output_of(defense)(logits, torch.rand(len(logits), 1, 2, 2, generator=seeds.generator("tiny")))


@pytest.mark.parametrize("name", KEEPING)
def test_what_is_told_is_a_distribution_with_the_same_label(name):
    logits = logits_of_all_kinds()
    told, probs = told_by(KEEPING[name], logits)
    assert told.dtype == probs.dtype == torch.float32 and told.isfinite().all()
    assert (probs >= 0).all() and (probs.sum(1) - 1).abs().max() < 1e-5
    label = logits.argmax(1)
    assert torch.equal(told.argmax(1), label) and torch.equal(probs.argmax(1), label)
    torch.testing.assert_close(told.exp(), probs.clamp_min(1e-12), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("defense", NEUTRAL, ids=lambda defense: type(defense).__name__)
def test_neutral_settings_answer_bit_for_bit_as_no_defense(defense):
    images = pictures()
    for access, reads in (("labels", "labels"), ("scores", "probs"), ("whitebox", "logits")):
        answers = [
            getattr(Oracle(sealed(each), access)(images, reads=(reads,)), reads) for each in (defense, NoDefense())
        ]
        assert torch.equal(*answers)


def test_the_nearest_settings_to_neutral_ones():
    logits = logits_of_all_kinds()
    plain = logits.softmax(1)
    near = (Temperature(temperature=1.0 + 1e-9), Rounding(step=1e-7), TopK(keep=CLASSES), OutputNoise(scale=1e-9))
    for defense in near:
        torch.testing.assert_close(told_by(defense, logits)[1], plain, rtol=0, atol=1e-5)


def test_known_answers():
    logits = torch.tensor([[0.53, 0.36, 0.07, 0.04]]).log()
    images = torch.zeros(1, 1, 2, 2)

    def told(defense: OutputDefense) -> list[float]:
        return output_of(defense)(logits, images)[1][0].tolist()

    assert told(Rounding(step=0.1)) == pytest.approx([0.5, 0.4, 0.1, 0.0], abs=1e-6)
    assert told(Rounding(step=0.25)) == pytest.approx([2 / 3, 1 / 3, 0.0, 0.0], abs=1e-5)
    assert told(TopK(keep=2)) == pytest.approx([53 / 89, 36 / 89, 0, 0], abs=1e-6)
    assert told(TopK(keep=2, rest="uniform")) == pytest.approx([0.53, 0.36, 0.055, 0.055], abs=1e-6)
    roots = [math.sqrt(p) for p in (0.53, 0.36, 0.07, 0.04)]
    assert told(Temperature(temperature=2.0)) == pytest.approx([root / sum(roots) for root in roots], abs=1e-6)
    assert told(TopK(keep=1)) == [1.0, 0.0, 0.0, 0.0]
    assert told(Temperature(temperature=1e-4)) == pytest.approx([1, 0, 0, 0], abs=1e-9)


def test_ties_of_rounded_numbers_tell_the_label_and_no_more():
    for rows, label in (([0.4, 0.42, 0.18], 1), ([0.34, 0.33, 0.33], 0)):
        probs = output_of(Rounding(step=0.9))(torch.tensor([rows]).log(), torch.zeros(1, 1, 2, 2))[1][0]
        assert probs.argmax() == label
        others = [value for index, value in enumerate(probs.tolist()) if index != label]
        assert max(others) - min(others) < 1e-7 and 0 < probs[label] - max(others) < 1e-5


def test_noise_has_its_scale_is_drawn_per_picture_and_moves_labels_only_if_asked():
    flat = torch.zeros(4000, CLASSES)
    images = torch.rand(4000, 1, 2, 2, generator=seeds.generator("many"))
    for distribution, deviation in (("gaussian", 1.0), ("laplace", math.sqrt(2))):
        change = OutputNoise(scale=1e-3, distribution=distribution, keep_label=False).change()
        moved = change(flat.double().log_softmax(1), images).exp() - 1 / CLASSES
        factor = math.sqrt(1 - 1 / CLASSES)  # what making them sum to 1 leaves
        assert moved.std().item() == pytest.approx(1e-3 * deviation * factor, rel=0.03)
    shown = pictures()
    oracle = Oracle(sealed(OutputNoise(scale=0.05)), "scores")
    first, order = oracle(shown).probs, torch.randperm(64, generator=seeds.generator("order"))
    assert torch.allclose(first[order], oracle(shown[order]).probs, atol=1e-6)
    nudged = oracle((shown * 255).round() / 255).probs
    assert (nudged - first).abs().max() < 5e-3, "what is the same picture in 8 bits gets the same noise"
    anew = Oracle(sealed(OutputNoise(scale=0.05, drawn_per="answer")), "scores", key=("a",))
    assert not torch.equal(anew(shown).probs, anew(shown).probs)
    plain = Oracle(network(), "labels")(shown, reads=("labels",)).labels
    kept, free = (
        Oracle(sealed(OutputNoise(scale=0.3, keep_label=keep)), "labels")(shown, reads=("labels",)).labels
        for keep in (True, False)
    )
    kept_probs, free_probs = (
        Oracle(sealed(OutputNoise(scale=0.3, keep_label=keep)), "scores")(shown).probs.sort(1).values
        for keep in (True, False)
    )
    torch.testing.assert_close(kept_probs, free_probs, rtol=0, atol=1e-6, msg="two classes change places, no more")
    assert torch.equal(kept, plain) and (free != plain).float().mean() > 0.3


def test_every_access_level_sees_what_is_deployed_and_the_weights_are_those_of_none():
    images, deployed = pictures(), sealed(TopK(keep=1))
    plain = Oracle(network(), "whitebox")(images, reads=("logits",)).logits
    one_hot = nn.functional.one_hot(plain.argmax(1), CLASSES).float()
    for access in ("labels", "scores"):
        assert torch.equal(Oracle(deployed, access)(images, reads=("labels",)).labels, plain.argmax(1))
    assert torch.equal(Oracle(deployed, "scores")(images, reads=("probs",)).probs, one_hot), "zeros are zeros"
    assert torch.equal(Oracle(deployed, "whitebox")(images, reads=("logits",)).logits, plain), "weights need no wrapper"
    masked = Oracle(sealed(TopK(keep=1, white_box="kept")), "whitebox")
    answer = masked(images.requires_grad_(), reads=("logits", "probs"))
    assert torch.equal(answer.probs, one_hot)
    (gradient,) = torch.autograd.grad(answer.logits.sum(), images)
    assert gradient.isfinite().all() and not gradient.any(), "gradients are hidden, not wrong"
    assert deployed.output is not None, "an oracle opens a copy"
    assert all(torch.equal(t, network().state_dict()[name]) for name, t in deployed.state_dict().items())


def test_temperature_is_invertible_by_who_knows_it():
    images = pictures()
    probs = Oracle(sealed(Temperature(temperature=10.0)), "scores")(images).probs
    plain = Oracle(network(), "scores")(images).probs
    torch.testing.assert_close((10 * probs.log()).softmax(1), plain, rtol=0, atol=1e-5)


def test_accuracy_changes_only_where_the_label_does():
    shown = (pictures() * 255).round().byte()
    labels = network()(shown.float() / 255).logits.argmax(1)
    labels[::4] = (labels[::4] + 1) % CLASSES
    images = Images(shown, labels, torch.arange(64), [str(c) for c in range(CLASSES)])
    plain = inference.evaluate(sealed(NoDefense()), images)
    for name, defense in KEEPING.items():
        told = inference.evaluate(sealed(defense), images)
        assert told["accuracy"] == plain["accuracy"] == 0.75 and math.isfinite(told["loss"]), name
    free = inference.evaluate(sealed(OutputNoise(scale=0.5, keep_label=False)), images)
    assert free["accuracy"] < 0.6


def test_refusals():
    with pytest.raises(Refused, match="defense.rest: got 'none'; choices: zero, uniform"):
        TopK(keep=1, rest="none")
    with pytest.raises(Refused, match="defense.white_box: expected the same of all members"):
        sealed(Stack(members={"a": TopK(keep=1), "b": Rounding(step=0.1, white_box="kept")}))


WORLD = ("dataset=toy", "dataset.size=16", "architecture=cnn", "architecture.size=16", "architecture.widths=[8,16]")
WORLD += ("architecture.features=16", "recipe.epochs=4", "compute=cpu", "tracking=none", "compute.threads=1")


def test_a_stored_target_answers_as_it_was_deployed(tmp_path):
    made = Pipeline(plan_for("train_target", *WORLD, "defense=label_only", store=tmp_path))
    plain = Pipeline(plan_for("train_target", *WORLD, store=tmp_path))
    again = load_classifier(made.session, made.target.artefact)
    shown = made.splits.private_test.floats()
    assert set(again(shown).probs.unique().tolist()) == {0.0, 1.0}
    tensors = plain.target.artefact.tensors()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in made.target.artefact.tensors().items())
    accuracy = [each.target.artefact.metrics["test_accuracy_top1"] for each in (made, plain)]
    assert accuracy[0] == accuracy[1]


def _loss(name: str) -> object:
    return node("attack", "attack.objective", f"attack/objective={name}").build()


def _reads(name: str) -> set[str]:
    """What a loss reads, by the classes that its file, and those it is made of, name: nothing is composed."""
    text = (CONF / "attack" / "objective" / f"{name}.yaml").read_text()
    own = [getattr(resolve(target), "reads", ()) for target in re.findall(r"_target_: ([\w.]+)", text)]
    parts = set(re.findall(r"(?<=[ :])(\w+)$", text.partition("_target_")[0], re.M)) & {*options("attack/objective")}
    return set().union(*own, *map(_reads, parts - {name}))


READS = {name: _reads(name) for name in options("attack/objective")}
OF_SCORES = [name for name, reads in READS.items() if reads and reads <= {"probs", "labels"}]


@pytest.mark.parametrize("name", OF_SCORES)
def test_losses_of_scores_survive_zeros_and_ties(name):
    """Nothing told of the label wanted, all of it told, and as much as of any other class."""
    loss = _loss(name)
    probs = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0.5, 0.5, 0]])
    answer = Answer(labels=probs.argmax(1), probs=probs)
    nothing, labels = torch.zeros(4, 1, 4, 4), torch.ones(4, dtype=torch.int64)
    look = Look(nothing, nothing, nothing, nothing, answer, labels, prior=None, known={})
    told = loss(look)
    assert told.isfinite().all() and told[1] == told.min() and told[0] > told[1]


def test_the_losses_of_scores():
    assert {"log_confidence", "doubt", "score", "reward"} <= set(OF_SCORES)


def test_a_mapping_reads_zeros():
    told = mapping_input(torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]))
    assert told.isfinite().all() and (told.norm(dim=1) - 1).abs().max() < 1e-6


def test_the_listing():
    names = [name for name in options("defense") if isinstance(_built(name), OutputDefense)]
    assert names == ["label_only", "output_noise", "output_rounding", "output_temperature", "output_top_k", "purifier"]


def _built(name: str) -> object:
    return node("train_target", "defense", f"defense={name}").given(classes=4, channels=1, size=16).build()
