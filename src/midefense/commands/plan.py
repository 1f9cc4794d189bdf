"""`midefense plan VERB KEY=VALUE ...`: the verb with `missing=measure`. Nothing is made."""

from __future__ import annotations

from collections.abc import Sequence

from midefense.commands.main import COMMANDS, run_verb
from midefense.types import Refused, refuse_unknown

VERBS = [name for name, command in COMMANDS.items() if command.verb]
USAGE = f"""usage: midefense plan {{{",".join(VERBS)}}} [KEY=VALUE ...]

Say what the verb would find and make, and what each stage that is missing costs: device-hours, queries, memory and
disk, measured over a few steps of it, and the command that makes it. Nothing is made."""


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code of the verb."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    verb, *rest = words
    if verb not in VERBS:
        raise refuse_unknown("midefense plan", verb, VERBS)
    if beside := [word for word in rest if word.startswith("missing=")]:
        raise Refused(f"midefense plan: expected no {beside[0]}, as nothing is made; leave it out")
    return run_verb(COMMANDS[verb], [*rest, "missing=measure"])
