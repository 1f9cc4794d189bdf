"""Black-box attacks by SIGKILL in each of their phases: what goes on ends at the same bits, each query counted once."""

import signal

import killing
import pytest
import torch
from contract.listing import composed
from test_work_lost import carry_out, processes  # noqa: F401 -- a fixture

from midefense.store.store import Store

TOY = ("dataset=toy", "prior=toy", "architecture=mlp", "architecture.widths=[16]", "recipe.epochs=1", "tracking=none")
WORLD = (*TOY, "attack.group=2", "compute=cpu")
SMALL_SPHERES = ("attack.search.radius=0.1", "attack.search.patience=8", "attack.search.max_rounds=20")
FEW_DRAWS = ("attack.init.batch_size=3", "attack.init.draws=30")  # a class that they never meet is a failure
FEW_EPISODES = ("attack.search.episodes=12", "attack.search.hidden=8", "attack.search.batch_size=4")
# The words of an attack, and moments at which one command is killed: as a save is done, or a step of a search begun.
ATTACKS = {
    "brep_mi": (
        (*SMALL_SPHERES, *FEW_DRAWS),
        [("saves", 2), ("saves", 1), ("search steps", 5), ("saves", 1), ("search steps", 7)],
    ),
    "rlb_mi": (FEW_EPISODES, [("saves", 1), ("search steps", 6), ("saves", 1), ("search steps", 9)]),
}


def recovered(store):
    """The one recovered artefact of a store."""
    artefacts = Store(store).list("recovered")
    assert len(artefacts) == 1
    return artefacts[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_killed_in_every_phase_it_ends_at_the_same_bits(name, processes, tmp_path):  # noqa: F811
    own, strikes = ATTACKS[name]
    words = (*WORLD, f"attack={name}", *own)

    def attack(strike, folder):
        given = ("attack", *composed("attack", *words), words, folder / "store")
        return carry_out(processes, killing.run_verb, folder / "log", strike, *given)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert attack((None, 0), whole) == 0
    for strike in strikes:
        assert attack(strike, killed) == -signal.SIGKILL, strike
    assert attack((None, 0), killed) == 0
    left, right = (recovered(folder / "store") for folder in (whole, killed))
    torch.testing.assert_close(left.tensors(), right.tensors(), rtol=0, atol=0, equal_nan=True)
    bills = [{k: v for k, v in one.provenance["bill"].items() if k != "seconds"} for one in (left, right)]
    assert bills[0] == bills[1] and bills[0]["queries_per_target_max"] > 0
