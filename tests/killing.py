"""A verb in a process that counts what it computes, and may be killed by SIGKILL at a moment of its work."""

import functools
import itertools
import os
import signal
from pathlib import Path

import conftest
import torch
from contract.listing import within

from midefense.attacks import init
from midefense.datasets import cache, decoding
from midefense.pipeline import judge, recovery
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.read import read_plan
from midefense.priors import gan
from midefense.store.store import Work
from midefense.training import loop

COUNTED = {  # what is computed, by the function that one piece of it goes through
    "batches": (loop.Trainer, "train"),
    "prior steps": (gan, "_critic_step"),
    "updates": (torch.Tensor, "backward"),
    "pool views": (init, "clip_images"),
    "search steps": (recovery._Curve, "add"),
    "measurements": (judge, "_measure"),
    "pictures": (decoding, "_read_image"),
}
SAVED = {"saves": (Work, "save"), "picture saves": (cache._Saved, "_save")}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch(log, what, nth):
    """Write a line to `log` for every piece, which outlives this process; die as piece `nth` of `what` is begun, or
    once save `nth` is done."""
    file, met = (
        os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        {name: itertools.count(1) for name in (*COUNTED, *SAVED)},
    )

    def watched(name, function):
        @functools.wraps(function)
        def call(*arguments, **options):
            number = next(met[name])  # threads count, too
            if name in COUNTED:
                os.write(file, f"{name}\n".encode())
                if (name, number) == (what, nth):
                    die()
            given = function(*arguments, **options)
            if name in SAVED and (name, number) == (what, nth):
                die()
            return given

        return call

    for name, (owner, function) in {**COUNTED, **SAVED}.items():
        setattr(owner, function, watched(name, getattr(owner, function)))


def run_verb(log, strike, verb, config, choices, words, store):
    """Carry out a composed verb; `strike` is (what, nth), or (None, 0) to live."""
    torch.set_num_threads(1)
    watch(log, *strike)
    conftest.DONE_BY[verb](Pipeline(read_plan(verb, within(store, config), choices, words)))


def teach_prior(log, strike, config, choices, words, store):
    """Carry out a composed attack as far as its prior."""
    torch.set_num_threads(1)
    watch(log, *strike)
    Pipeline(read_plan("attack", within(store, config), choices, words)).prior  # noqa: B018


def run_decoding(log, strike, files, how, folder, unit):
    """Decode files into a cache that is saved every `unit` pictures."""
    cache.UNIT = unit
    watch(log, *strike)
    decoding.decode((files,), how, folder)


def pieces(log):
    """How many pieces of each kind all processes began that wrote to `log`."""
    lines = Path(log).read_text().splitlines()
    return {name: lines.count(name) for name in COUNTED}
