"""`midefense store list | show | verify | relocate | rm`: look after the store of artefacts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from midefense.commands.parsing import add_store, only, refusing
from midefense.store.artefacts import KINDS, Artefact, absolute
from midefense.store.remembered import remember, remembered
from midefense.store.space import size_of
from midefense.store.store import Checked, Store
from midefense.terminal import say
from midefense.types import Refused


def run(words: Sequence[str]) -> int:
    """Run one command; returns the exit code (1: refused, or something was found broken)."""
    options = _parser().parse_args(words)
    return refusing(lambda: options.command(Store(options.store), options))


def _list(store: Store, options: argparse.Namespace) -> int:
    found, broken = store.survey(options.kind)
    for artefact in found:
        say(f"{artefact.provenance['created']}  {size_of(artefact.path) / 1e6:8.2f} MB  {artefact.reference}")
    for problem in broken.values():  # each begins with its folder
        say(f"BROKEN   {problem}")
    return 1 if broken else 0


def _show(store: Store, options: argparse.Namespace) -> int:
    artefact = _find(store, options.reference)
    say(f"# {artefact.path}\n\n# config.yaml")
    say(yaml.safe_dump(artefact.recipe, sort_keys=False))
    for name, content in (("provenance.json", artefact.provenance), ("metrics.json", artefact.metrics)):
        say(f"# {name}\n{json.dumps(content, indent=1)}\n")
    if artefact.moved:
        say(f"# moved since\n{json.dumps(artefact.moved, indent=1)}\n")
    return 0


def _verify(store: Store, options: argparse.Namespace) -> int:
    told = remembered(options.against) if options.against else None
    paths = _paths(store, options.reference, options.deep) if options.reference else store.folders()
    found = [_judged(checked, told, options.deep) for checked in store.check(paths)]
    if told is not None:
        there = {checked.reference for checked in found}
        gone = set(told) - there if not options.reference else set()
        found += [Checked(name, f"{name}: remembered in {options.against}, not here") for name in sorted(gone)]
    for checked in found:
        doubts = f"  ({'; '.join(checked.doubts)})" if checked.doubts else ""
        say(f"BROKEN   {checked.problem}" if checked.problem else f"ok       {checked.reference}{doubts}")
    broken = sum(bool(checked.problem) for checked in found)
    say(f"{len(found)} checked, {broken} broken")
    if options.remember:
        if broken:
            raise Refused(
                f"--remember {options.remember}: nothing was written, as {broken} are broken; mend them first"
            )
        remember(options.remember, {checked.reference: checked.digest for checked in found}, store.roots)
        say(f"remembered in {options.remember}: keep it where those who write in the store cannot")
    return 1 if broken else 0


def _judged(checked: Checked, told: Mapping[str, str] | None, deep: bool) -> Checked:
    """What was checked, held against what was remembered, where there is that. `deep`: what nobody can tell is taken
    for broken."""
    name = checked.reference
    if told is not None and not checked.problem:
        if name not in told:
            checked = replace(checked, doubts=(*checked.doubts, "not remembered"))
        elif told[name] != checked.digest:
            was, now = told[name][:12], checked.digest[:12]
            return replace(checked, problem=f"{name}: expected digest {was}, as it was remembered, got {now}")
    if deep and checked.doubts and not checked.problem:
        return replace(checked, problem=f"{name}: {'; '.join(checked.doubts)}")
    return checked


def _paths(store: Store, reference: str, deep: bool) -> list[Path]:
    """The folder of one artefact; `deep`: and of all that it goes back to."""
    path = only(store, reference)
    if not deep:
        return [path]
    above = (link.parent for link in store.ancestry(store.read(path)))
    return list(dict.fromkeys([path, *(parent.path for parent in above if parent is not None)]))


def _relocate(store: Store, options: argparse.Namespace) -> int:
    places = dict(_moved(word) for word in options.words if "=" in word)
    references = [word for word in options.words if "=" not in word]
    if not places or not references:
        raise Refused("store relocate: expected REF KEY=DIR, as in `midefense store relocate REF dataset.root=DIR`")
    for artefact in [_find(store, reference) for reference in references]:
        before = artefact.places
        store.relocate(artefact, places)
        for place, now in places.items():
            say(f"{artefact.reference}: {place}={now} (was {before[place]})")
    return 0


def _moved(word: str) -> tuple[str, str]:
    """The place that a word gives, and what it is called from the root on; it must be there."""
    place, _, value = word.partition("=")
    now = Path(absolute(value))
    if not value or not now.exists():
        raise Refused(f"{word}: expected the folder or file where it lies now, got nothing at {now}")
    return place, str(now)


def _remove(store: Store, options: argparse.Namespace) -> int:
    path = only(store, options.reference)
    reference = f"{path.parent.name}/{path.name}"  # the folder's name: its provenance may be broken
    dependants = store.dependants(reference)
    if dependants and not options.dependants:
        names = "\n  ".join(other.reference for other in dependants)
        say(f"{reference} is needed by\n  {names}\nnothing was removed; add --dependants to remove them too")
        return 1
    for doomed in [*(other.path for other in reversed(dependants)), path]:
        store.remove(doomed)
        say(f"removed {doomed.parent.name}/{doomed.name}")
    return 0


def _find(store: Store, reference: str) -> Artefact:
    artefact = store.read(only(store, reference))
    artefact.verify()
    return artefact


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="midefense store", description="Look after the store of artefacts.")
    add_store(parser)
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="every artefact, oldest first")
    listing.add_argument("kind", nargs="?", choices=KINDS)
    listing.set_defaults(command=_list)
    show = commands.add_parser("show", help="configuration, provenance and metrics of one artefact")
    show.set_defaults(command=_show)
    verify = commands.add_parser(
        "verify", help="compare every file with its recorded hash, and every parent with what was computed from it"
    )
    deep = "also all that one artefact goes back to; what nobody can tell (parents not recorded or not here, what was "
    verify.add_argument("--deep", action="store_true", help=f"{deep}not remembered) counts as broken")
    verify.add_argument(
        "--remember", type=Path, metavar="FILE", help="write the digests into a new file, kept elsewhere"
    )
    verify.add_argument("--against", type=Path, metavar="FILE", help="compare with the digests that were remembered")
    verify.set_defaults(command=_verify)
    relocate = commands.add_parser("relocate", help="keep where files lie now that artefacts were made from")
    relocate.add_argument(
        "words", nargs="+", metavar="REF ... KEY=DIR", help="artefacts, and places such as dataset.root=DIR"
    )
    relocate.set_defaults(command=_relocate)
    remove = commands.add_parser("rm", help="remove one artefact")
    remove.add_argument("--dependants", action="store_true", help="also remove what was made from it")
    remove.set_defaults(command=_remove)
    show.add_argument("reference")
    remove.add_argument("reference")
    verify.add_argument("reference", nargs="?", default="", help="one artefact (default: all)")
    return parser
