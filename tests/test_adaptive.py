"""`attack=adaptive`: every defense's attack by one word, by hand, in a sweep and under an agent."""

import pytest
from contract.listing import options

from midefense.plan.adaptive import ADAPTIVE, adaptive_attack, with_adaptive
from midefense.plan.awareness import aware_attacks, known_names
from midefense.plan.compose import compose
from midefense.studies.sweep import Point, Runner
from midefense.studies.sweep_file import Sweep
from midefense.types import Refused


@pytest.mark.parametrize("defense", options("defense"))
def test_a_defense_has_the_attack_that_knows_it_or_none_does(defense):
    known, large, small = aware_attacks(defense), adaptive_attack(defense), adaptive_attack(defense, small=True)
    assert (large is None) == (not known) and {large, small} <= {None, *known}
    assert large is None or (not large.endswith("_small") and small in (large, f"{large}_small"))
    assert large is None or small != large or f"{large}_small" not in known, "its twin, where it has one"
    naming = [name for name in known if defense in known_names(name)]
    assert not naming or large in naming, "one that names it goes before one that names another of its class"


def test_words_are_put_as_the_attack_of_their_defense():
    assert with_adaptive(["defense=vib", "attack=adaptive", "seed=1"]) == ["defense=vib", "attack=vib_aware", "seed=1"]
    assert with_adaptive(["attack=adaptive_small", "defense=vib"]) == ["attack=vib_aware_small", "defense=vib"]
    assert with_adaptive(["experiment=x", "defense=vib", "attack=adaptive"])[2] == "attack=vib_aware"
    assert with_adaptive(["attack=gmi", "defense=a,b"]) == ["attack=gmi", "defense=a,b"]
    for words, said in (
        (["attack=adaptive"], "some attack was made to overcome, got none"),
        (["attack=adaptive", "defense=mixup"], r"got mixup; .* knows: \[mixup\]"),
        (["attack=adaptive", "defense=none,vib"], "expected one defense among the words, got none,vib"),
        (["attack=adaptive_small", "experiment=x"], "expected one defense among the words, got experiment"),
        (["attack=adaptive", "target=REF"], "expected one defense among the words, got target"),
    ):
        with pytest.raises(Refused, match=said):
            with_adaptive(words)


def test_it_composes_and_a_wish_that_cannot_be_met_is_a_pair_without_meaning(store):
    words = ("dataset=digits", "architecture=cnn", "attack=adaptive_small")
    assert compose("attack", [*words, "defense=vib", f"store={store}"])[1]["attack"] == "vib_aware_small"
    runner = Runner(Sweep("x", "attack", words, {}, "grid"), str(store), 1, None)
    planned = runner._plan(Point(0, ("defense=mixup",)))
    assert planned.plan is None and "knows: [mixup]" in planned.reason
    assert {key: planned.names[key] for key in ("dataset", "defense", "attack")} == {
        "dataset": "digits",
        "defense": "mixup",
        "attack": ADAPTIVE,
    }


def test_every_defense_that_an_attack_knows_has_one_for_two_cores():
    """What is called small and trains a GAN of the papers' size would take a sweep hours without saying why."""
    known = [name for name in options("defense") if adaptive_attack(name) is not None]
    assert "random_erasing_strong" in known and "vib" in known
    assert [name for name in known if not adaptive_attack(name, small=True).endswith("_small")] == []
