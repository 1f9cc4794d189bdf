"""What a SIGKILL costs: at most the unit that was being computed, in every phase, counted piece by piece."""

import multiprocessing
import os
import signal
import sys

import killing
import pytest
import torch
from contract.listing import composed
from PIL import Image
from test_resume import FEW_UNITS, require_same

from midefense.datasets.decoding import Decoding
from midefense.datasets.files import Files

JUDGE = ("metrics=utility", "evaluators.main.architecture.widths=[4]", "evaluators.main.recipe.epochs=2")
JUDGE += ("evaluators.main.recipe.batch_size=16", "judge_at_chance=true", "evidence.classes=[0,1]", "tracking=none")
WORDS = (*FEW_UNITS, *JUDGE)
EPOCHS = 3, 2  # of the target and of the evaluator
# What is lost at most with one unit: steps of `prior.unit`, a batch of the pool (clipped twice), a group (its start,
# its steps, its selection), a row (its candidates and two anchors). An epoch is counted (`whole`).
UNIT = {"prior steps": 4, "pool views": 2, "search steps": 6, "measurements": 3}
# One kill in the midst of a unit of every phase, one right after a save of most.
FEW = [("batches", 9), ("saves", 1), ("prior steps", 6), ("saves", 1), ("pool views", 3), ("saves", 1)]
FEW += [("search steps", 8), ("saves", 1), ("measurements", 2)]


@pytest.fixture(scope="module")
def processes():
    """Starts processes from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 does not hand `sys.path` on to that process
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        yield context


def carry_out(processes, function, log, strike, *arguments, seconds=300):
    """The exit code of a process, which does not outlive its time."""
    process = processes.Process(target=function, args=(log, strike, *arguments))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    assert not late, f"it worked for more than {seconds} s; so far it began {killing.pieces(log)}"
    return process.exitcode


def evaluate(processes, log, strike, store):
    return carry_out(processes, killing.run_verb, log, strike, "evaluate", *composed("evaluate", *WORDS), WORDS, store)


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    """A store that was filled without a kill, the pieces that took, and the batches of the longer of both epochs."""
    folder = tmp_path_factory.mktemp("whole")
    assert evaluate(processes, folder / "log", (None, 0), folder / "store") == 0
    needed = killing.pieces(folder / "log")
    # the first save is that of the target's first epoch
    assert evaluate(processes, folder / "first", ("saves", 1), folder / "begun") == -signal.SIGKILL
    one = killing.pieces(folder / "first")["batches"]
    others = (needed["batches"] - EPOCHS[0] * one) / EPOCHS[1]
    assert others == int(others)
    return folder / "store", needed, max(one, int(others))


def require_little_lost(lost, kills, epoch):
    """`lost` pieces by kind; `kills` by what was being computed; `epoch`: the batches of one."""
    for name, unit in {**UNIT, "batches": epoch}.items():
        assert 0 <= lost[name] <= unit * kills.get(name, 0), f"{name}: {lost}"


def killed_again_and_again(processes, whole, tmp_path, strikes):
    """Kill one command at every strike, then let it end: what was computed more than needed, by kind."""
    store, log = tmp_path / "store", tmp_path / "log"
    for strike in strikes:
        assert evaluate(processes, log, strike, store) == -signal.SIGKILL, strike
    assert evaluate(processes, log, (None, 0), store) == 0
    require_same(store, whole[0])
    done = killing.pieces(log)
    return {name: done[name] - needed for name, needed in whole[1].items()}


def test_a_kill_costs_one_unit_at_most_in_every_phase(processes, whole, tmp_path):
    lost = killed_again_and_again(processes, whole, tmp_path, FEW)
    kills = {name: sum(what == name for what, _ in FEW) for name in UNIT | {"batches": 0}}
    require_little_lost(lost, kills, whole[2])
    assert all(lost[name] > 0 for name in UNIT), "each of them hit work that was not saved"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["batches", "prior steps", "pool views", "search steps", "measurements"])
def test_a_kill_costs_one_unit_at_most_wherever_it_strikes(processes, whole, tmp_path, what):
    """The same piece is struck at each of its numbers, in a store of its own each time."""
    needed = whole[1][what]
    for nth in range(1, needed + 1, max(1, needed // 12)):
        place = tmp_path / str(nth)
        place.mkdir()
        lost = killed_again_and_again(processes, whole, place, [(what, nth)])
        require_little_lost(lost, {what: 1}, whole[2])


@pytest.mark.slow
def test_a_kill_right_after_a_save_costs_nothing(processes, whole, tmp_path):
    for nth in range(1, sum(EPOCHS) + 3 + 3 + 2 + 1):
        place = tmp_path / str(nth)
        place.mkdir()
        lost = killed_again_and_again(processes, whole, place, [("saves", nth)])
        assert not any(lost.values()), (nth, lost)


def test_a_kill_while_decoding_costs_one_unit_at_most(processes, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("L", (8, 8), number).save(path)
    files = Files(paths, torch.zeros(12, dtype=torch.int64), torch.arange(12), ["a"])
    log, unit, strikes = tmp_path / "log", 4, [("pictures", 6), ("picture saves", 1), ("pictures", 3)]
    given = (files, Decoding(channels=1, size=4), tmp_path / "cache", unit)
    for strike in strikes:
        assert carry_out(processes, killing.run_decoding, log, strike, *given) == -signal.SIGKILL
    assert carry_out(processes, killing.run_decoding, log, (None, 0), *given) == 0
    assert 12 < killing.pieces(log)["pictures"] <= 12 + unit * len(strikes)
