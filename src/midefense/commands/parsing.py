"""What the commands' own parsers share; the verbs' words are Hydra's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from midefense.store.artefacts import KINDS
from midefense.terminal import shown
from midefense.tracking.endings import FULL, tell
from midefense.types import Refused

if TYPE_CHECKING:
    from midefense.store.store import Store


def add_store(parser: argparse.ArgumentParser) -> None:
    """The option `--store`."""
    default = os.environ.get("MIDEFENSE_STORE", "store")
    told = (
        f"folder of the store (default: the variable MIDEFENSE_STORE, else store; now {default}); "
        "'[MINE,SHARED]' writes into MINE and reads both"
    )
    parser.add_argument("--store", default=default, help=told)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that say what to take of a file of weights."""
    entry = "the state dict to take, where the file holds several, as state_dict_ema or model.ema"
    parser.add_argument("--entry", help=entry)
    parser.add_argument("--strip", metavar="PREFIX", help="take the tensors under this prefix, without it")
    parser.add_argument("--add", metavar="PREFIX", help="put this prefix in front of all names")


def count(text: str) -> int:
    """A whole number of at least 1, for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def is_override(word: str) -> bool:
    """Whether a free word is one for Hydra: KEY=VALUE, +KEY=VALUE or ~KEY."""
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def only(store: Store, reference: str) -> Path:
    """The folder of the one artefact that a reference names; `Refused` for none, and for several."""
    kind, _, name = reference.strip("/").rpartition("/")
    found = store.named(name, kind if kind in KINDS else None)
    if len(found) != 1:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in found) or "none"
        raise Refused(
            f"expected one artefact called {reference}, got {len(found)}: {names}; see `midefense store list`"
        )
    return found[0]


def refusing(act: Callable[[], int]) -> int:
    """The exit code of `act`; 1 with a sentence where it refuses, or a file does; else as `tracking.endings` says."""
    try:
        return act()
    except Exception as error:
        if not isinstance(error, Refused | OSError) or getattr(error, "errno", None) in FULL:
            return tell(error)
        print(shown(f"refused: {error}"), file=sys.stderr)
        return 1
