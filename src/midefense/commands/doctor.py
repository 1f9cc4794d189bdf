"""`midefense doctor`: is all in order? Every finding comes with the command that mends it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from midefense.commands.parsing import add_store, refusing
from midefense.store.store import Store
from midefense.terminal import say, shown
from midefense.types import Refused

SECTIONS = ("versions", "devices", "variables", "W&B", "datasets", "disk", "weights", "store")


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: something was found, or the words are refused)."""
    options = _parser().parse_args(words)
    return refusing(lambda: _doctor(options))


def _doctor(options: argparse.Namespace) -> int:
    checks = [check for check in _checks(options) if not options.only or check.section in options.only]
    found = [check for check in checks if check.state == "FINDING"]
    if options.json:
        print(json.dumps({"healthy": not found, "checks": [asdict(check) for check in checks]}, indent=1))
        return 1 if found else 0
    for section in dict.fromkeys(check.section for check in checks):
        say(section)
        for check in checks:
            if check.section == section:
                say(
                    f"  {check.state:<8} {_one_line(check.what)}" + (f"\n           -> {check.mend}" * bool(check.mend))
                )
    say(f"{len(found)} findings" if found else "nothing found")
    return 1 if found else 0


def _checks(options: argparse.Namespace) -> Iterator:
    """All that is looked at, section by section; of those that are not asked for nothing is."""
    from midefense.commands.checkup import data, machine, stored

    asked = options.only or SECTIONS
    store = Store(options.store)
    datasets = data.Datasets(dict(map(_root, options.roots)))
    yield from machine.versions() if "versions" in asked else ()
    yield from machine.devices() if "devices" in asked else ()
    yield from machine.variables() if "variables" in asked else ()
    yield from [machine.login()] if "W&B" in asked else ()
    yield from datasets.checks() if {"datasets", "disk"} & set(asked) else ()
    yield from [data.disk(store, datasets.planned)] if "disk" in asked else ()
    yield from data.weights(store, options.deep) if "weights" in asked else ()
    yield from stored.stored(store, options.deep) if "store" in asked else ()


def _root(word: str) -> tuple[str, str]:
    name, equals, folder = word.partition("=")
    if not (name and equals and folder):
        raise Refused(f"midefense doctor: expected DATASET=DIR, got {word!r}; try celeba=DIR")
    return name, folder


def _sections(text: str) -> list[str]:
    """Some of the sections, for `argparse`."""
    named = text.split(",")
    if unknown := [name for name in named if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(SECTIONS)}, got {unknown[0]}")
    return named


def _one_line(text: str) -> str:
    return shown(" ".join(text.split()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midefense doctor",
        usage="midefense doctor [DATASET=DIR ...] [options]",
        description="Look at versions, devices, environment variables, the W&B login, datasets, disk, weights and the "
        "store. Nothing is written, fetched or unpickled, and nobody is asked over the network.",
    )
    parser.add_argument("roots", nargs="*", metavar="DATASET=DIR", help="where a dataset lies, as celeba=DIR")
    parser.add_argument("--deep", action="store_true", help="also hash every file of artefacts and of weights")
    parser.add_argument("--only", type=_sections, metavar="SECTION,...", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--json", action="store_true", help="print one object: healthy, and every check")
    add_store(parser)
    return parser
