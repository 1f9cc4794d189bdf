"""Every network that an attacker teaches by SIGKILL while it learns: the same command ends at the same bits.

Read off the listing: the priors of `conf/prior` that learn, and the surrogates of `conf/attack/surrogate`, each put
into the attack that its own header names.
"""

import shutil
import signal
from pathlib import Path

import conftest
import killing
import pytest
from contract.listing import composed, options
from contract.test_configs import commands
from contract.test_priors import SHORT
from test_resume import require_same
from test_work_lost import carry_out, processes  # noqa: F401 -- a fixture

from midefense.pipeline.pipeline import Pipeline
from midefense.store.store import Store

PRIORS = [name for name in options("prior") if name in SHORT and name.endswith("_small")]
SURROGATES = [name for name in options("attack/surrogate") if name.endswith("_small")]
WORLD = ("architecture=mlp", "architecture.widths=[8]", "recipe.epochs=1", "evidence.classes=[0,1]")
WORLD = ("dataset=toy", *WORLD, "compute=cpu", "tracking=none")
SEARCH = ("attack.search.steps=2", "attack.init.candidates=2")
BRIEF = ("steps=6", "unit=2")
# Right after the first state is there, and twice within what it goes on with.
STRIKES = [("saves", 1), ("updates", 2), ("updates", 5)]


def named(group, name):
    """The words of a header's command, without its dataset."""
    ((_, words), *_) = commands(Path(group) / f"{name}.yaml")
    return [word for word in words if not word.startswith(("dataset", "architecture"))]


def words_of_prior(name):
    lessons = ["prior.lessons=4"] if any(word.startswith("prior.lessons") for word in SHORT[name]) else []
    return (*WORLD, *named("prior", name), *SHORT[name], *(f"prior.{word}" for word in BRIEF), *lessons)


def words_of_surrogate(name):
    words = (
        *WORLD,
        *SEARCH,
        *named("attack/surrogate", name),
        "prior=gmi_gan_small",
        *SHORT["gmi_gan_small"],
        "prior.steps=2",
    )
    surrogate = composed("attack", *words)[0]["attack"]["surrogate"]
    each = ["attack.surrogate.each=4"] if "each" in surrogate else []
    brief = (f"attack.surrogate.students.{student}.{word}" for student in surrogate["students"] for word in BRIEF)
    return (*words, *brief, *each)


def killed_while_it_learns(kind, words, before, learn, tmp_path):
    """Make what stands `before`, then let `learn(strike, folder, words)` go on: at once, and killed at every strike."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    before(Pipeline(conftest.plan_for("attack", *words, store=whole)))
    shutil.copytree(whole, killed)
    assert learn((None, 0), whole, words) == 0
    for strike in STRIKES:
        assert learn(strike, killed, words) == -signal.SIGKILL, f"{strike}: there was less to do"
        assert list((killed / "work" / kind).glob("*/state.safetensors")), f"{strike}: it was not learning"
        assert not Store(killed).list(kind), f"{strike}: it had learned"
    assert learn((None, 0), killed, words) == 0
    require_same(killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_a_prior(name, processes, tmp_path):  # noqa: F811
    def learn(strike, folder, words):
        given = (*composed("attack", *words), words, folder)
        return carry_out(processes, killing.teach_prior, tmp_path / "log", strike, *given)

    killed_while_it_learns("prior", words_of_prior(name), lambda p: p.target, learn, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate(name, processes, tmp_path):  # noqa: F811
    def learn(strike, folder, words):
        given = ("attack", *composed("attack", *words), words, folder)
        return carry_out(processes, killing.run_verb, tmp_path / "log", strike, *given)

    killed_while_it_learns("prepared", words_of_surrogate(name), lambda p: p.prior, learn, tmp_path)
