"""What no row needs any more, and what killed processes left half-written or half-removed (`midefense gc`).

A row needs its own artefact, what that was computed from, and so on (the parents that each artefact records); so does a
finished point of a sweep. What others trained was brought in by hand and cannot be made again: it counts as needed.
"""

from __future__ import annotations

import graphlib
import hashlib
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from midefense.store import sweeps
from midefense.store.artefacts import KINDS, Artefact, canonical
from midefense.store.claims import owner_of, standing
from midefense.store.lineage import key_of
from midefense.store.space import size_of
from midefense.store.store import REMOVED, WRITING, Store, discard
from midefense.types import Refused

ARTEFACT, LEFT, WORK = "artefact", "left over", "unfinished"
HIDDEN = (WRITING, REMOVED)  # how the folders begin that nothing whole is called
IMPORTED = ".Imported"  # how the class ends that stands for the training of what others trained
DIGITS = 12  # of the digest that names a list
Key = tuple[str, str]  # kind and id


@dataclass(frozen=True)
class Item:
    """Something that may go: its folder, what it is (`ARTEFACT`, `LEFT` by a process that was killed, `WORK` that is
    not finished), its name in the store, its bytes, and what tells it from another of that name."""

    path: Path
    what: str
    name: str
    size: int
    seal: str


@dataclass(frozen=True)
class Garbage:
    """`items`: what may go, each before what it was made from. `kept`: what no row needs and stays, by its name in the
    store, with the reason. `parents`: of each artefact among the items, those that are among them."""

    items: tuple[Item, ...]
    kept: dict[str, str]
    parents: dict[str, frozenset[str]]

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return sum(item.size for item in self.items)

    @property
    def digest(self) -> str:
        """12 hex digits that name this list and no other."""
        told = sorted([item.name, item.seal, item.size] for item in self.items)
        return hashlib.sha256(canonical(told).encode()).hexdigest()[:DIGITS]

    def chosen(self, words: Sequence[str]) -> tuple[Item, ...]:
        """The items that `words` name: the digest for all of them, or names.

        Raises `Refused` for a digest of another list, a name that is not on it, and names that leave something there
        without what it was made from.
        """
        if list(words) == [self.digest]:
            return self.items
        by_name = {item.name: item for item in self.items}
        if unknown := [word for word in words if word not in by_name]:
            raise Refused(
                f"--delete: expected {self.digest}, which names what is listed now, or names of that list, got "
                f"{unknown[0]}; nothing was deleted. Look again with `midefense gc`: the store may have changed"
            )
        taken = set(words)
        for child, parents in self.parents.items():
            if child not in taken and (lost := sorted(parents & taken)):
                raise Refused(
                    f"--delete {lost[0]}: expected nothing that stays to need it, got {child}, which was made from it; "
                    "nothing was deleted. Name that too"
                )
        return tuple(item for item in self.items if item.name in taken)


def collect(store: Store, keep: Iterable[Artefact] = (), unfinished: bool = False) -> Garbage:
    """What no row in any folder of `store` needs; of what lies in its first folder, as the others are only read.

    Args:
        keep: artefacts that are needed too, with what they were made from.
        unfinished: whether work that is not finished, and nobody does, may go as well.
    Raises:
        Refused: an artefact or the outcome of a sweep's point cannot be read: nobody knows what it needs.
    """
    found, broken = store.survey()
    if broken:
        path = next(iter(broken))
        raise Refused(
            f"{broken[path]}. Until then nobody knows what it needs, and nothing is deleted: try `midefense store rm "
            f"{path.parent.name}/{path.name}`"
        )
    known = {_key_of(artefact): artefact for artefact in found}
    needed = _needed(known, [*_rows(store, found), *keep])
    spare = [artefact for artefact in found if _key_of(artefact) not in needed]
    kept = {artefact.reference: why for artefact in spare if (why := _stays(store, artefact))}
    going = {_key_of(artefact): artefact for artefact in spare if artefact.reference not in kept}
    stays = _needed(known, [artefact for artefact in spare if artefact.reference in kept])
    kept |= {known[key].reference: "what stays was made from it" for key in stays & set(going)}
    going = {key: artefact for key, artefact in going.items() if key not in stays}
    items = [_item(store, artefact.path, ARTEFACT, artefact.provenance["digest"]) for artefact in _in_order(going)]
    whole = {key for key, artefact in known.items() if artefact.path.parents[1] == store.root}
    items += [_item(store, path, LEFT) for path in _left(store.root, whole)]
    if unfinished:
        items += [_item(store, path, WORK) for path in works(store.root) if _work_key(path) not in whole]
    parents = {
        artefact.path.relative_to(store.root).as_posix(): frozenset(
            going[key].path.relative_to(store.root).as_posix() for key in _parents(artefact) if key in going
        )
        for artefact in going.values()
    }
    return Garbage(tuple(items), kept, parents)


def delete(store: Store, items: Sequence[Item]) -> Iterator[Item]:
    """Delete items, and yield each once it is gone. Each vanishes at once: of one that a crash or a full disk leaves
    half-deleted, only a folder that nothing looks for is there, and is `LEFT` the next time.

    Raises `Refused` where somebody works in the store, before the next one goes.
    """
    store.require_writable()
    for item in items:
        refuse_while_claimed(store.root)
        if not _is_own(store.root, item.path):
            raise Refused(f"{item.path}: expected a folder of the store, got a link; it stays, look again")
        if item.what == ARTEFACT:
            store.remove(item.path)
        elif item.path.name.startswith(HIDDEN):
            shutil.rmtree(item.path)
        else:
            discard(item.path)
        yield item


def refuse_while_claimed(root: Path) -> None:
    """Refuse to delete while somebody works in the store at `root`, or was stopped: what was found there is in use,
    maybe."""
    for path, at_work in standing(root).items():
        if at_work:
            raise Refused(
                f"expected a store in which nobody works, got a claim of {owner_of(path)}; wait for its end (a stopped "
                "process goes on with `kill -CONT`), and give the same command again. Only if that number is another "
                f"program's by now: rm -r {shlex.quote(str(path))}"
            )


def half_written(root: Path) -> list[Path]:
    """Folders that a killed process left while it wrote or removed an artefact; nothing else looks for them."""
    shelves = [root / kind for kind in KINDS] + [root / "work" / kind for kind in KINDS]
    return [path for shelf in shelves for path in _folders(root, shelf) if path.name.startswith(HIDDEN)]


def _rows(store: Store, found: Iterable[Artefact]) -> list[Artefact]:
    """The result rows, and what finished points of sweeps are there for."""
    there = {(one.kind, one.id): one for one in found}
    outcomes = [sweeps.read(file) for root in store.roots for file in sweeps.files(root)]
    ends = [key_of(one.reference) for one in outcomes if one.state == sweeps.FINISHED and one.reference]
    return [one for one in there.values() if one.kind == "result"] + [there[key] for key in ends if key in there]


def _needed(known: dict[Key, Artefact], rows: Iterable[Artefact]) -> set[Key]:
    """The rows, what they were made from, and so on, as far as it is known."""
    waiting = list(rows)
    needed = {_key_of(artefact) for artefact in waiting}
    while waiting:
        for key in _parents(waiting.pop()):
            if key in known and key not in needed:
                needed.add(key)
                waiting.append(known[key])
    return needed


def _stays(store: Store, artefact: Artefact) -> str:
    """Why an artefact that no row needs stays; "" if it may go."""
    if artefact.path.parents[1] != store.root:
        return "lies in a folder that is only read"
    if not _is_own(store.root, artefact.path):
        return "a link leads to it, which is not followed"
    recipe = artefact.recipe
    training = recipe.get("recipe")
    if "imported" in recipe or (isinstance(training, dict) and str(training.get("_target_")).endswith(IMPORTED)):
        return f"was brought in by hand; remove it with `midefense store rm {artefact.reference}`"
    return ""


def _in_order(going: dict[Key, Artefact]) -> list[Artefact]:
    """Artefacts, each before those it was made from: what is there at any moment has what it was made from.

    Raises `Refused` for artefacts that say of each other that they were made from the other.
    """
    above = {key: sorted(_parents(artefact) & set(going)) for key, artefact in sorted(going.items())}
    try:
        order = list(graphlib.TopologicalSorter(above).static_order())
    except graphlib.CycleError as error:
        first = going[error.args[1][0]]
        raise Refused(
            f"{first.reference}: expected an artefact made from others, got one that goes back to itself; try "
            f"`midefense store rm {first.reference} --dependants`"
        ) from error
    return [going[key] for key in reversed(order)]


def _left(root: Path, whole: set[Key]) -> list[Path]:
    """What killed processes left: half-written folders, and the work on artefacts that are whole."""
    return [*half_written(root), *(path for path in works(root) if _work_key(path) in whole)]


def works(root: Path) -> list[Path]:
    """The folders of unfinished artefacts, `work/<kind>/<id>`."""
    shelves = [root / "work" / kind for kind in KINDS]
    return [path for shelf in shelves for path in _folders(root, shelf) if not path.name.startswith(".")]


def _work_key(path: Path) -> Key:
    return path.parent.name, path.name


def _folders(root: Path, shelf: Path) -> list[Path]:
    """The folders in a folder of the store; none where a link leads there, and no link."""
    if not shelf.is_dir() or not _is_own(root, shelf):
        return []
    return sorted(path for path in shelf.iterdir() if path.is_dir() and not path.is_symlink())


def _is_own(root: Path, path: Path) -> bool:
    """Whether a path below `root` lies there itself: no part of it is a link."""
    below = [path, *path.parents]
    return not any(part.is_symlink() for part in below[: below.index(root)])


def _item(store: Store, path: Path, what: str, seal: str = "") -> Item:
    return Item(path, what, path.relative_to(store.root).as_posix(), size_of(path), seal)


def _key_of(artefact: Artefact) -> Key:
    return artefact.kind, artefact.id


def _parents(artefact: Artefact) -> set[Key]:
    return set(map(key_of, artefact.provenance["parents"].values()))
