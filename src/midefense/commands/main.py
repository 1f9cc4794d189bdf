"""`midefense COMMAND ...`: one command line. A command's module is imported when it is asked for, so that help costs
no torch."""

from __future__ import annotations

import importlib
import runpy
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from midefense import __version__
from midefense.tracking.preemption import ending_when_asked


@dataclass(frozen=True)
class Command:
    """A subcommand: its module in this package, what it does, and whether Hydra reads its words."""

    module: str
    does: str
    verb: bool = False


COMMANDS = {
    "audit": Command("audit", "a checkpoint and a folder of private images: does it leak?"),
    "train": Command("train_target", "train a classifier with a defense", verb=True),
    "attack": Command("attack", "attack a target through its oracle", verb=True),
    "evaluate": Command("evaluate", "judge what an attack recovered; makes what is missing upstream", verb=True),
    "plan": Command("plan", "what a verb would make and what each stage costs, measured over a few steps"),
    "tune": Command("tune", "search for an attack's options on a shadow model of the attacker's own"),
    "sweep": Command("sweep", "a W&B sweep's file without W&B: many setups on this machine"),
    "report": Command("report", "result rows as a page, a table and CSV"),
    "rate": Command("rate", "pairs of a result's pictures, blinded, for people to judge on a page of this machine"),
    "store": Command("store", "look after the store: list, show, verify, relocate, rm"),
    "gc": Command("gc", "what no row needs any more, with sizes; deletes what is named"),
    "doctor": Command("doctor", "is all in order? versions, devices, disk, datasets, weights, W&B, the store"),
    "datasets": Command("datasets", "look at datasets on disk: list, check"),
    "import": Command("imports", "weights that others trained, into the store"),
    "export": Command("export", "the weights of a target as one file"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: no such command). Ctrl-C and SIGTERM end it in one sentence."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"midefense {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        print(f"midefense: expected a command, got {words[0]!r}\n\n{_help()}", file=sys.stderr)
        return 2
    with ending_when_asked(shlex.join(["midefense", *words])):
        if command.verb:
            return run_verb(command, words[1:])
        module = importlib.import_module(f"midefense.commands.{command.module}")
        from midefense.commands.parsing import refusing

        return refusing(lambda: module.run(words[1:]))


def run_verb(command: Command, words: Sequence[str]) -> int:
    """Run a verb's module as the main one: what starts further processes (ranks) then starts this verb."""
    sys.argv = [sys.argv[0], *words]
    runpy.run_module(f"midefense.commands.{command.module}", run_name="__main__", alter_sys=True)
    return 0


def _help() -> str:
    lines = [f"  {name:<10} {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "midefense COMMAND ...: train a classifier with a defense, attack it, measure what leaks.",
            "",
            *lines,
            "",
            "midefense COMMAND --help says more. train, attack and evaluate take KEY=VALUE words, and --config-dir DIR "
            "for configurations of your own.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
