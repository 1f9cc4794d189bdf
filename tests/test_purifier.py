"""The purifier of scores (card output_perturbation.md): what it learns, from whom, and what is told then."""

import functools
from dataclasses import replace

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.datasets.splits import digest
from midefense.defenses.base import NoDefense, Stack
from midefense.defenses.output import Rounding, Temperature
from midefense.defenses.purifier import Autoencoder, Conditional, Purifier
from midefense.oracle import Oracle
from midefense.pipeline.classifiers import load_classifier
from midefense.pipeline.pipeline import Pipeline
from midefense.types import Images, Refused

CLASSES = 5
KINDS = {"conditional": {}, "autoencoder": {"kind": "autoencoder", "label": 0.1, "distance": 1.0}}
PUBLIC = Images(
    torch.randint(256, (150, 1, 8, 8), dtype=torch.uint8, generator=seeds.generator("public")),
    torch.zeros(150, dtype=torch.int64),
    torch.arange(150),
    ["a"],
)


def network() -> nn.Module:
    with seeds.isolated("network"):
        model = CNN(classes=CLASSES, channels=1, size=8, widths=[4], features=8).eval()
    with torch.no_grad():
        model.classifier.weight *= 4  # answers that differ from image to image
    return model


def purifier(**changes) -> Purifier:
    return Purifier(**{"hidden": 16, "embedding": 8, "epochs": 4, "learning_rate": 1e-2, **changes})


def learned(defense, state=None, stop=None) -> list:
    """The saved states of what it learned from a network's answers."""
    states = []
    for _, _, give in defense.learn_answers(network(), PUBLIC, seeds.generator("rng"), state):
        states.append({name: value.clone() for name, value in give().items()})
        if len(states) == stop:
            break
    return states


@functools.cache
def deployed(name: str) -> nn.Module:
    defense = purifier(**KINDS[name])
    learned(defense)
    return defense.seal(network())


def test_the_losses_are_those_of_the_card():
    told = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    away = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 0.0]])
    rewritten, labels = told + away, torch.tensor([0, 2])
    entropy = -rewritten.log_softmax(1)[torch.arange(2), labels]
    conditional = purifier(label=2.0, distance=0.1).loss(lambda told, labels: told + away, told)
    assert torch.allclose(conditional, 2 * entropy + 0.1 * away.square().sum(1) / 3)
    auto = purifier(kind="autoencoder", label=0.5, distance=3.0).loss(lambda told, labels: told + away, told)
    assert torch.allclose(auto, 0.5 * entropy + 3 * (rewritten.softmax(1) - told.exp()).square().sum(1))


def test_its_networks_have_the_shapes_of_the_card():
    conditional = Conditional(10, 256, 512)
    assert sum(p.numel() for p in conditional.parameters()) == 10 * 512 + (522 * 256 + 256) + (256 * 10 + 10)
    with torch.no_grad():
        conditional.decode.weight.zero_(), conditional.decode.bias.zero_()
    told = torch.randn(3, 10)
    assert torch.equal(conditional(told, told.argmax(1)), told), "it adds to what it is told"
    assert Autoencoder(10, 7)(told.log_softmax(1), told.argmax(1)).shape == (3, 10)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_told_is_another_distribution_with_the_same_label(name):
    images = PUBLIC.floats()
    plain, told = (Oracle(model, "scores")(images, reads=("probs", "labels")) for model in (network(), deployed(name)))
    assert torch.equal(plain.labels, told.labels) and torch.equal(told.probs.argmax(1), plain.labels)
    assert (told.probs >= 0).all() and (told.probs.sum(1) - 1).abs().max() < 1e-5
    assert (told.probs - plain.probs).abs().max() > 0.05
    inside = Oracle(deployed(name), "whitebox")(images, reads=("logits",)).logits
    assert torch.equal(inside, network()(images).logits), "who holds the weights leaves it out"


def test_scores_of_one_label_become_alike():
    """What the paper promises, and what a wrong sign of the loss would undo."""
    images = PUBLIC.floats()
    labels = network()(images).logits.argmax(1)

    def spread(model) -> float:
        probs = Oracle(model, "scores")(images).probs
        return float(torch.stack([probs[labels == label].var(0).sum() for label in labels.unique()]).mean())

    assert spread(deployed("conditional")) < 0.7 * spread(network())


def test_labels_move_only_if_asked():
    images = PUBLIC.floats()
    plain = network()(images).logits.argmax(1)
    for keep_label in (True, False):
        defense = purifier(epochs=1, keep_label=keep_label)
        learned(defense)
        with torch.no_grad():
            defense.network.decode.bias[2] += 100  # a purifier gone wrong
        labels = Oracle(defense.seal(network()), "labels")(images, reads=("labels",)).labels
        assert torch.equal(labels, plain) == keep_label and (keep_label or labels.eq(2).all())


@pytest.mark.parametrize("name", KINDS)
def test_it_goes_on_to_the_same_bits(name):
    whole = purifier(**KINDS[name])
    states = learned(whole)
    half = learned(purifier(**KINDS[name]), stop=2)[-1]
    gone_on = purifier(**KINDS[name])
    assert len(learned(gone_on, state=half)) == 2 and int(half["step"]) == 2 and len(states) == 4
    done = purifier(**KINDS[name])
    assert learned(done, state=states[-1]) == []
    for other in (gone_on, done):
        pairs = zip(whole.network.state_dict().values(), other.network.state_dict().values(), strict=True)
        assert all(torch.equal(left, right) for left, right in pairs)


def test_no_epochs_answer_bit_for_bit_as_no_defense():
    defense, images = purifier(epochs=0), PUBLIC.floats()
    assert not defense.learns_answers and defense.seal(network()).output is None
    assert torch.equal(defense.seal(network())(images).logits, NoDefense().seal(network())(images).logits)


def test_in_a_stack_it_stands_before_other_changes():
    first = Stack(members={"purify": purifier(), "round": Rounding(step=0.1)})
    assert first.learns_answers and len(learned(first)) == 4
    probs = Oracle(first.seal(network()), "scores")(PUBLIC.floats()).probs
    assert len(probs.mul(1000).round().unique()) < 40, "what it tells is rounded"
    with pytest.raises(Refused, match="members: expected the purifier before all others .* try it as the first member"):
        Stack(members={"warm": Temperature(temperature=2.0), "purify": purifier()}).seal(network())
    with pytest.raises(Refused, match="members: expected the purifier before all others"):
        Stack(members={"a": purifier(), "b": purifier()}).seal(network())
    neutral = Stack(members={"warm": Temperature(temperature=2.0), "purify": purifier(epochs=0)})
    assert len(neutral.seal(network()).output.changes) == 1 and not neutral.learns_answers


WORLD = ("dataset=toy", "dataset.size=8", "architecture=cnn", "architecture.size=8", "architecture.widths=[4]")
WORLD += ("architecture.features=8", "recipe.epochs=1", "tracking=none", "defense=purifier", "defense.hidden=8")
WORLD += ("defense.embedding=4", "defense.epochs=2", "compute=cpu", "compute.threads=1")


def test_a_stored_target_answers_as_it_was_deployed(tmp_path, monkeypatch):
    made = Pipeline(plan_for("train_target", *WORLD, store=tmp_path))
    shown = made.splits.private_test.floats()
    told = made.target.model(shown)
    again = load_classifier(made.session, made.target.artefact)(shown)
    assert torch.equal(told.logits, again.logits) and torch.equal(told.probs, again.probs)
    bare = Oracle(made.target.model, "whitebox")(shown).probs
    assert (told.probs - bare).abs().max() > 1e-3 and torch.equal(told.probs.argmax(1), bare.argmax(1))
    assert {name.split(".")[0] for name in made.target.artefact.tensors()} == {"stages", "classifier", "output"}
    assert made.target.artefact.recipe["public"] == digest(made.splits.public), "another public set, another target"
    nobody = replace(made.splits, public=made.splits.public.take(torch.arange(0)))
    lonely = Pipeline(plan_for("train_target", *WORLD, "seed=1", store=tmp_path))
    monkeypatch.setattr(type(lonely.session), "splits", lambda session, node: nobody)
    with pytest.raises(Refused, match="defense=purifier.*: expected a dataset with public images, .* got one without"):
        lonely.target  # noqa: B018


def test_kinds_that_there_are_not_are_refused():
    with pytest.raises(Refused, match="defense.kind: got 'mlp'; choices: autoencoder, conditional"):
        Purifier(kind="mlp")
