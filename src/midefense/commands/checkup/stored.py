"""What lies in a store: whether it is whole, what it was made from, and what killed processes left."""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from midefense.commands.checkup.check import FINDING, NOTE, Check
from midefense.store.artefacts import Artefact
from midefense.store.claims import owner_of, standing
from midefense.store.garbage import half_written, works
from midefense.store.lineage import OtherParents, key_of, links
from midefense.store.provenance import CONTENTS
from midefense.store.space import size_of
from midefense.store.store import Store

# Options under which an artefact keeps where the files lie that it is opened with again.
OPENED_WITH = ("dataset.", "prior.")


def stored(store: Store, deep: bool) -> Iterator[Check]:
    """Every artefact's seal and files by name, its parents by what they hold, its data by place; `deep`: the hash of
    every file too. Then unfinished work, half-written folders and claims."""
    found, broken = store.survey()
    for path, problem in broken.items():
        yield Check("store", problem, FINDING, _remove(f"{path.parent.name}/{path.name}"))
    size = sum(size_of(artefact.path) for artefact in found)
    yield Check("store", f"{len(found)} artefacts, {size / 1e6:,.1f} MB, in {', '.join(map(str, store.roots))}")
    if deep:
        wrong = [one for one in store.check([artefact.path for artefact in found]) if one.problem]
        yield from (Check("store", one.problem, FINDING, _remove(one.reference)) for one in wrong)
    else:
        yield from filter(None, map(_shallow, found))
        yield from _exchanged(found)
    yield from _moved(found)
    yield from _left(store)
    yield from _claims(store)


def _shallow(artefact: Artefact) -> Check | None:
    """What is wrong with the files of an artefact, without reading them; None for nothing."""
    absent = [name for name in CONTENTS if not (artefact.path / name).is_file()]
    if absent:
        return Check("store", f"{artefact.reference}: {absent[0]} is not there", FINDING, _remove(artefact.reference))
    return None


def _exchanged(found: list[Artefact]) -> Iterator[Check]:
    """Artefacts that were computed from other parents than there are now."""
    known: Mapping[tuple[str, str], Artefact] = {(one.kind, one.id): one for one in found}
    for artefact in found:
        for link in links(artefact, lambda reference: known.get(key_of(reference))):
            try:
                link.require_same()
            except OtherParents as other:
                yield Check("store", other.fact, FINDING, _remove(artefact.reference))


def _moved(found: list[Artefact]) -> Iterator[Check]:
    """Places from which data are gone that artefacts are opened with."""
    gone: dict[tuple[str, str], list[str]] = defaultdict(list)
    for artefact in found:
        for option, place in artefact.places.items():
            if place is not None and option.startswith(OPENED_WITH) and not Path(place).exists():
                gone[option, place].append(artefact.reference)
    for (option, place), references in gone.items():
        mend = f"midefense store relocate {shlex.join(references)} {option}=DIR"
        what = f"{len(references)} artefacts are opened with {option}={place}, where nothing is, as {references[0]}"
        yield Check("store", what, FINDING, mend)


def _left(store: Store) -> Iterator[Check]:
    """What was begun and is not whole."""
    gc = f"midefense gc --store {store.words}"
    for path in half_written(store.root):
        yield Check("store", f"{path} was left half-written, or half-removed", FINDING, gc)
    for work in works(store.root):
        what = f"unfinished: {work}, {size_of(work) / 1e6:,.1f} MB; the command that began it goes on there"
        yield Check("store", what, NOTE, f"{gc} --unfinished")
        for path in sorted(work.glob(".spoilt-*")):
            what = f"{path} was not what had been saved, and was set aside"
            yield Check("store", what, FINDING, f"rm -r {shlex.quote(str(path))}")


def _claims(store: Store) -> Iterator[Check]:
    """Who is at work, and claims that were left behind; none that is given back while this looks."""
    for path, at_work in standing(store.root).items():
        owner = owner_of(path)
        if not os.path.lexists(path):
            continue
        if at_work:
            yield Check("store", f"at work, or stopped: {owner}")
        else:
            yield Check("store", f"a stale claim of {owner}", FINDING, f"rm -r {shlex.quote(str(path))}")


def _remove(reference: str) -> str:
    return f"midefense store rm {shlex.quote(reference)} --dependants"
