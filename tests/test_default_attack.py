"""Where nobody names an attack, a quick one runs, whatever the dataset; a paper's runs where it is named."""

import re

import pytest
from contract.listing import composed, options

from midefense.plan.compose import CONF

DEFAULT, PRIOR = "pool_small", "gmi_gan_small"
EXPERIMENTS = sorted(path for path in (CONF / "experiment").rglob("*.yaml") if path.parent.name != "base")


def chosen(verb: str, *overrides: str) -> tuple[str, str]:
    """The attack and the prior that a command line means."""
    choices = composed(verb, *overrides)[1]
    return choices["attack"], choices["prior"]


@pytest.mark.parametrize("verb", ["attack", "evaluate"])
def test_nothing_named_is_quick(verb):
    attack = composed(verb)[0]["attack"]
    assert chosen(verb) == (DEFAULT, PRIOR)
    assert attack["init"]["candidates"] * attack["search"]["steps"] <= 2_000, "steps of rows per target: seconds"


@pytest.mark.parametrize("dataset", options("dataset"))
def test_the_default_is_the_same_on_every_dataset(dataset):
    assert chosen("attack", f"dataset={dataset}") == (DEFAULT, PRIOR)


def test_what_is_named_wins():
    assert chosen("attack", "attack=gmi") == ("gmi", "gmi_gan")
    assert chosen("evaluate", "prior=gmi_gan") == (DEFAULT, "gmi_gan")
    assert chosen("evaluate", "experiment=demo") == ("pool_cross_entropy", PRIOR)
    assert chosen("evaluate", "experiment=demo", "attack=gmi_small") == ("gmi_small", PRIOR)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_no_setup_leans_on_the_default(file):
    """A setup that names no attack would silently become another one."""
    text = file.read_text()
    names = re.findall(r"^  - /experiment/base: (\w+)", text, re.M)
    bases = [CONF / "experiment" / "base" / f"{name}.yaml" for name in names]
    assert any("override /attack" in one for one in (text, *(base.read_text() for base in bases)))
