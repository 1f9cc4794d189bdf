"""How this process was started, and how a person would start another verb the same way: what is written beside an
artefact, and said when one is missing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {"train_target": "train"}  # the subcommand of `midefense`, where it is not the verb's own name


def command_given() -> str:
    """The words that started this process."""
    if _program():
        return shlex.join(["midefense", *sys.argv[1:]])
    if _installed():
        return shlex.join(["midefense", _subcommand(Path(sys.argv[0]).stem), *sys.argv[1:]])
    return shlex.join(["python", *sys.argv])


def command_of(verb: str, words: Sequence[str]) -> str:
    """A command for `verb`: by the installed program if that is what runs, else by the script at the root."""
    program = ["midefense", _subcommand(verb)] if _installed() else ["python", f"{verb}.py"]
    return shlex.join([*program, *words])


def _installed() -> bool:
    """Whether `midefense` started this process: it runs a verb's module of `midefense.commands`, or itself."""
    return _program() or Path(sys.argv[0]).parent.name == "commands"


def _program() -> bool:
    """Whether `midefense` itself is what runs, and no verb's module of it."""
    path = Path(sys.argv[0])
    return path.stem == "midefense" or (path.stem == "__main__" and path.parent.name == "midefense")


def _subcommand(verb: str) -> str:
    return COMMANDS.get(verb, verb)
