"""`midefense plan VERB KEY=VALUE ...`: the verb with `missing=measure`. Nothing is made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from midefense.commands.main import COMMANDS, run_verb
from midefense.types import Refused, refuse_unknown

VERBS = [name for name, command in COMMANDS.items() if command.verb]


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code of the verb."""
    options = _parser().parse_args(words)
    if options.verb not in VERBS:
        raise refuse_unknown("midefense plan", options.verb, VERBS)
    if beside := [word for word in options.words if word.startswith("missing=")]:
        raise Refused(f"midefense plan: expected no {beside[0]}, as nothing is made; leave it out")
    return run_verb(COMMANDS[options.verb], [*options.words, "missing=measure"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midefense plan",
        usage="midefense plan VERB [KEY=VALUE ...]",
        description="Say what a verb would find and make, and what each stage that is missing costs: device-hours, "
        "queries, memory and disk, measured over a few steps of it, and the command that makes it. Nothing is made.",
    )
    parser.add_argument("verb", metavar="VERB", help=", ".join(VERBS))
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="KEY=VALUE", help="as the verb takes them")
    return parser
