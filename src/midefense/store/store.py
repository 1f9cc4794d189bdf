"""The store: artefacts that are there whole or not at all, and work that can be killed at any moment and goes on.

<root>/<kind>/<name>@<id>/   an artefact (artefacts.py)
<root>/work/<kind>/<id>/     what an unfinished one has so far, and the claims of those who work on it
<root>/moved/<id>.json       where the files lie now that an artefact was made from (moved.py)
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import yaml
from torch import Tensor

from midefense.foreign import path_of, resolved
from midefense.store.artefacts import (
    KINDS,
    Artefact,
    Draft,
    canonical,
    content_digest,
    provenance_of,
    read_provenance,
    savable,
    write_whole,
)
from midefense.store.claims import claim, owner_of
from midefense.store.folders import folders_of
from midefense.store.lineage import Link, OtherParents, all_links, links
from midefense.store.moved import forget_moved, moved_content, read_moved
from midefense.store.plain import plain
from midefense.store.sealed import sealed, unsealed
from midefense.terminal import shown
from midefense.types import Refused, refuse_unknown

POLL_SECONDS = 0.2
WRITING = ".writing-"  # what a folder is called before it is whole
REMOVED = ".removed-"  # and while it is being deleted
MISSING = ("make", "fail", "plan", "measure")  # what is done about what is missing
# What brings the first artefact of a kind into a store.
NONE_YET = {
    "target": "Make one with train_target.py, or bring weights in with midefense import",
    "prior": "Make one with attack.py or evaluate.py, or bring weights in with midefense import",
    "recovered": "Make one with attack.py",
    "prepared": "Make one with attack.py",
    "cloud": "Make one with train_target.py recipe@cloud=split_training",
    "released": "Make one with attack.py evidence=released_features",
    "result": "Make one with evaluate.py",
}
PARENTS = "parents"  # what the parents of unfinished work held, among the notes of its states
SPENT = "spent"  # seconds that went into a saved state, among its notes
TRIES = 3  # to save into a folder that another process clears

clock = time.monotonic


class Store:
    """Folders of artefacts as one: the first is written to, those behind it are only read.

    Opening it writes nothing, so a store that cannot be written can be read.

    Args:
        root: a folder, or several (`folders_of`). The first need not exist.
    Raises:
        Refused: a file in the place of a folder, or no folder where one is to be read.
    """

    def __init__(self, root: str | Path | Sequence[str | Path]):
        self.roots = [resolved(one) for one in folders_of(root)]
        self.root = self.roots[0]
        self._moved: dict[str, dict[str, str | None]] = {}
        self._written = False
        self._verified: dict[Path, dict[str, tuple[int, ...]]] = {}
        self._passed_over: set[Path] = set()
        if self.root.exists() and not self.root.is_dir():
            raise Refused(f"store: expected a folder, got the file {self.root}; choose another with store=DIR")
        for behind in self.roots[1:]:
            if not behind.is_dir():
                raise Refused(f"store: expected a folder to read behind {self.root}, got no folder at {behind}")

    @property
    def caches(self) -> list[Path]:
        """Where its folders keep decoded pixels: the one that is written to first."""
        return [root / "cache" for root in self.roots]

    @property
    def words(self) -> str:
        """What `store=` says of it on a command line."""
        return shlex.quote(str(self.root) if len(self.roots) == 1 else f"[{','.join(map(str, self.roots))}]")

    def require_writable(self) -> None:
        """Refuse a store whose first folder cannot be written, or made. Tried until it once could."""
        if self._written:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
            self._written = True
        except OSError as error:
            raise Refused(
                f"store: cannot write in {self.root} ({error.strerror}); choose another folder with store=DIR "
                f"or the variable MIDEFENSE_STORE, or write beside it and read both with 'store=[DIR,{self.root}]'"
            ) from error

    def find(self, draft: Draft) -> Artefact | None:
        """The complete artefact of a draft, verified; None if there is none. The id decides, whatever its name.

        What was computed from other parents than there are now is refused in the first folder, and passed over in those
        behind it: it is made anew in front of them.
        """
        for root in self.roots:
            for path in _same_id(root, draft.kind, draft.id):
                try:
                    artefact = self.verified(path)
                    _require_same_parents(artefact, draft)
                    return artefact
                except OtherParents as other:
                    if root == self.root:
                        raise
                    self._pass_over(path, other)
                except (Refused, FileNotFoundError):
                    if path.exists():
                        raise  # else another process has just removed it
        return None

    def open(self, reference: str, kind: str) -> Artefact:
        """The artefact that `reference` names: an id, a name, `name@id`, `kind/name@id`, or a path. Verified.

        Raises:
            Refused: none or several match, another kind, a changed file, or a file that is no artefact.
        """
        path = path_of(reference)
        if path.is_file():
            raise Refused(
                f"{kind}={reference}: expected an artefact of the store, got a file; a checkpoint that may be a pickle "
                "is never loaded. Name a folder of the store (midefense store list), or bring its tensors in "
                "with midefense import"
            )
        if path.is_dir() and (path / "provenance.json").exists():
            found = [path.resolve()]
        else:
            found = self.named(reference, kind) or self.named(reference)
        if not found:
            names = self._names(kind)
            raise refuse_unknown(f"{kind}={reference}", reference, names, "" if names else NONE_YET[kind])
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise Refused(f"{kind}={reference}: expected the name of one artefact, got {len(found)}; choices: {names}")
        artefact = self.verified(found[0])
        if artefact.kind != kind:
            raise Refused(
                f"{kind}={reference}: expected a {kind}, got {artefact.reference}, which is a {artefact.kind}"
            )
        return artefact

    def get_or_make(self, draft: Draft, make: Callable[[Work], Artefact], missing: str = "make") -> Artefact:
        """The artefact of a draft; if absent, `make` it under a claim, or wait for the process that does."""
        waiting = False
        while (artefact := self.find(draft)) is None:
            self.require_may_make(draft, missing)
            work = self.work(draft)
            with work.claim("all") as mine:
                if mine:
                    return self.find(draft) or make(work)
            if not waiting:
                work.say_waiting()
                waiting = True
            time.sleep(POLL_SECONDS)
        return artefact

    def require_may_make(self, draft: Draft, missing: str) -> None:
        """Refuse to make what is missing unless `missing=make` (and say what would make it), or in a store that is only
        read."""
        if missing not in MISSING:
            raise refuse_unknown("missing", missing, MISSING)
        if missing != "make":
            places = ", ".join(map(str, self.roots))
            raise Refused(f"{draft.reference} is not in {places}; make it with: {draft.command} store={self.words}")
        try:
            self.require_writable()
        except Refused as refusal:
            raise Refused(f"{draft.reference} is not there, and cannot be made: {refusal}") from refusal

    def work(self, draft: Draft) -> Work:
        """The place where a draft is worked on."""
        return Work(self, draft)

    def list(self, kind: str | None = None) -> list[Artefact]:
        """All complete artefacts, oldest first, not verified. Those without a readable provenance are `broken`."""
        return self.survey(kind)[0]

    def broken(self, kind: str | None = None) -> dict[Path, str]:
        """The folders whose provenance cannot be read, and why."""
        return self.survey(kind)[1]

    def dependants(self, reference: str) -> list[Artefact]:
        """Everything that was made from the artefact `kind/name@id`, directly or not, oldest first."""
        everything, lost, known = self.list(), {reference}, 0
        while len(lost) > known:  # until a pass finds no more: clocks are too coarse to order parents before children
            known = len(lost)
            lost |= {other.reference for other in everything if lost & set(other.provenance["parents"].values())}
        return [other for other in everything if other.reference in lost - {reference}]

    def remove(self, path: Path) -> None:
        """Delete the folder of an artefact. It vanishes at once, so no half of it can be found."""
        if path.parents[1] != self.root:
            raise Refused(f"{path}: expected a folder of {self.root}, got one of a store behind it, which is only read")
        self.require_writable()
        discard(path)
        forget_moved(self.root, _id_of(path))

    def moved(self, artefact: Artefact, places: Mapping[str, str | None]) -> Artefact:
        """The artefact with files that lie at `places` (some of its own, by option), for as long as this store is open:
        whoever opens it again finds them there too."""
        self._moved[artefact.id] = {**self._moved.get(artefact.id, {}), **places}
        return replace(artefact, moved={**artefact.moved, **places})

    def relocate(self, artefact: Artefact, places: Mapping[str, str | None]) -> Artefact:
        """The same for good: it is written down in the first folder, whichever holds the artefact.

        Raises `Refused` for a place that the artefact does not have.
        """
        for place in places:
            if place not in artefact.places:
                target = artefact.provenance["parents"].get("target")
                whose = f" The images are those of {target}." if target else ""
                raise refuse_unknown(f"{artefact.reference}: no such place", place, artefact.places, whose.strip())
        self.require_writable()
        file, content = moved_content(self.root, artefact.id, places)
        file.parent.mkdir(exist_ok=True)
        write_whole(file, content)
        return self.moved(artefact, places)

    def named(self, reference: str, kind: str | None = None) -> list[Path]:
        """The folders that a reference other than a path may mean."""
        wanted = reference.strip("/").split("/")[-1]
        return [path for path in self.folders(kind) if wanted in (path.name, *path.name.rsplit("@", 1))]

    def check(self, paths: Sequence[Path] | None = None) -> Iterator[Checked]:
        """Verify artefacts (default: all), each with what is wrong with it and what nobody can tell of it."""
        for path in self.folders() if paths is None else paths:
            reference = f"{path.parent.name}/{path.name}"
            try:
                artefact = self.verified(path)
            except Refused as refusal:
                yield Checked(reference, str(refusal))
            else:
                doubts = tuple(link.doubt for link in links(artefact, self.parent) if link.doubt)
                yield Checked(reference, "", doubts, artefact.provenance["digest"])

    def parent(self, reference: str) -> Artefact | None:
        """The artefact that stands under a reference which another one gives of its parent (`kind/name@id`, of targets
        the id alone); its provenance is checked, its other files are not. None: there is none, in no folder."""
        kind, _, name = reference.rpartition("/")
        for root in self.roots:
            exact = root / Path(kind).name / Path(name).name  # a text of a file: it may lead out of no store
            if kind in KINDS and exact.is_dir():
                return self.read(exact)
            for path in _same_id(root, kind if kind in KINDS else "target", name.rpartition("@")[2]):
                return self.read(path)
        return None

    def ancestry(self, artefact: Artefact) -> Iterator[Link]:
        """The links from an artefact to its parents, from those to theirs, and so on."""
        return all_links(artefact, self.parent)

    def read(self, path: Path) -> Artefact:
        """The artefact in a folder of the store; its provenance is checked, its other files are not."""
        if not path.name.isprintable():
            raise Refused(f"{str(path)!r}: expected a folder whose name shows every character; rename or remove it")
        artefact = Artefact(path, read_provenance(path))
        _require_own(artefact)
        moved = {**read_moved(self.roots, artefact.id), **self._moved.get(artefact.id, {})}
        return replace(artefact, moved=moved)

    def folders(self, kind: str | None = None) -> list[Path]:
        """The folders of all artefacts, complete or broken; of one that stands in several folders of the store, the
        first."""
        kinds, found = KINDS if kind is None else (kind,), []
        for root in self.roots:
            known = {(path.parent.name, _id_of(path)) for path in found}
            found += [path for path in _inside(root, kinds) if (path.parent.name, _id_of(path)) not in known]
        return found

    def survey(self, kind: str | None = None) -> tuple[list[Artefact], dict[Path, str]]:
        """`list` and `broken` in one look: of each artefact one file is read, its provenance."""
        found, problems = [], {}
        for path in self.folders(kind):
            try:
                found.append(self.read(path))
            except Refused as refusal:
                problems[path] = str(refusal)
        return sorted(found, key=lambda artefact: (artefact.provenance["created"], artefact.reference)), problems

    def verified(self, path: Path) -> Artefact:
        """The artefact in a folder, every file of it as it was written, and computed from what its parents hold now, up
        to the first. Parents that are not here, or of which nothing was recorded, do not count.

        Files are read once for as long as they stay as they are: what is planned is looked at, and opened after. Of the
        parents the provenance is read each time, which is short.

        Raises:
            OtherParents: a parent was exchanged since.
            Refused: a file was changed, or what a parent is cannot be told.
        """
        artefact = self.read(path)
        seen = _stamps(path)
        if self._verified.get(path) != seen:
            artefact.verify()
            self._verified[path] = seen
        for link in self.ancestry(artefact):
            link.require_same()
        return artefact

    def _pass_over(self, path: Path, other: OtherParents) -> None:
        """Say, once, why an artefact behind the first folder does not count."""
        if path not in self._passed_over:
            self._passed_over.add(path)
            print(f"{other.fact}; it stays in {path.parents[1]}, and does not count here", file=sys.stderr)

    def _names(self, kind: str) -> list[str]:
        return [path.name for path in self.folders(kind) if path.name.isprintable()]


def _stamps(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """By path, what changes with every file within a folder: number, size, times."""
    found = {}
    for place, _, names in os.walk(folder):
        for file in (os.path.join(place, name) for name in names):
            if os.path.isfile(file):
                told = os.stat(file)
                found[file] = told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns
    return found


@dataclass(frozen=True)
class Checked:
    """What verifying an artefact showed: the `problem` ("" if there is none), the `doubts` (what nobody can tell), and
    the `digest` that covers all of it ("" where it is broken)."""

    reference: str
    problem: str
    doubts: tuple[str, ...] = ()
    digest: str = ""


class Work:
    """An unfinished artefact: its saved state, its finished pieces, and who works on them.

    How long it took is kept with what was saved, and summed over all attempts and processes: of one that was killed it
    counts up to the last it saved.
    """

    def __init__(self, store: Store, draft: Draft):
        self.store, self.draft = store, draft
        self.folder = store.root / "work" / draft.kind / draft.id
        self._since = clock()  # when this attempt began, or last saved
        self._spent: dict[str, float] = {}  # seconds by what was saved, as far as this process knows of it

    def save(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, object] | None = None) -> None:
        """Save tensors under `name`; a kill leaves the previous ones. `notes` are JSON values kept beside them."""
        now = clock()
        spent = round(self._spent.get(name, 0.0) + now - self._since, 3)
        content = sealed(tensors, {**(notes or {}), PARENTS: self.draft.parent_contents, SPENT: spent})
        for tries_left in reversed(range(TRIES)):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_whole(self._file(name), content)
                break
            except (FileNotFoundError, FileExistsError):  # another process finished the same work and clears the folder
                if not tries_left:
                    raise
        self._spent[name], self._since = spent, now

    def load(self, name: str) -> dict[str, Tensor] | None:
        """The tensors saved under `name`, None if there are none: see `saved`."""
        saved = self.saved(name)
        return None if saved is None else saved[0]

    def notes(self, name: str) -> dict:
        """The notes saved with `name`, {} if there are none: see `saved`."""
        saved = self.saved(name)
        return {} if saved is None else saved[1]

    def saved(self, name: str) -> tuple[dict[str, Tensor], dict] | None:
        """The tensors saved under `name`, and their notes; None if there are none. A file that is not what was saved,
        or was computed from other parents than there are now, is set aside, which is said: that part of the work
        begins anew."""
        file = self._file(name)
        try:
            tensors, notes = unsealed(file)
            self._require_same_parents(file, notes.pop(PARENTS, {}))
            self._spent[name] = notes.pop(SPENT, 0.0)
            return tensors, notes
        except FileNotFoundError:
            return None
        except Refused as refusal:
            aside = file.with_name(f".spoilt-{name}-{uuid.uuid4().hex[:8]}")
            with contextlib.suppress(FileNotFoundError):  # another process has just finished the work
                file.rename(aside)
                said = f"{self.draft.reference}: {refusal}; it was set aside as {aside}, begun anew"
                print(shown(said), file=sys.stderr)
            return None

    def _require_same_parents(self, file: Path, recorded: Mapping[str, str]) -> None:
        """Refuse a state that goes back to other parents than the draft names; of before they were recorded, none."""
        for role, now in self.draft.parent_contents.items():
            if recorded.get(role, now) != now:
                raise Refused(
                    f"{file}: expected a state computed from {self.draft.parents[role]} of content {now[:12]}, got one "
                    f"of content {recorded[role][:12]}, as it was before it was exchanged"
                )

    def has(self, name: str) -> bool:
        """Whether something was saved under `name`."""
        return self._file(name).exists()

    def claim(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Whether this process got to work on `name`; given back at the end."""
        return claim(self.folder / f"{name}.claim")

    def say_waiting(self) -> None:
        """Tell who watches the terminal why nothing happens, and for whom."""
        held = [path for path in sorted(self.folder.glob("*.claim")) if not path.name.startswith("seat-")]
        whom = f": {owner_of(held[0])}" if held else ""  # none: it was given back just now
        print(shown(f"waiting for another process that makes {self.draft.reference}{whom}"), file=sys.stderr)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    @contextlib.contextmanager
    def seat(self) -> Iterator[int]:
        """A number of its own for each process that works here at the same time, from 0."""
        number = 0
        while True:
            with self.claim(f"seat-{number}") as mine:
                if mine:
                    yield number
                    return
            number += 1

    def finish(
        self,
        tensors: Mapping[str, Tensor],
        metrics: Mapping[str, object],
        *,
        bill: Mapping[str, object] | None = None,
        device: str = "cpu",
    ) -> Artefact:
        """Write the artefact under a temporary name, rename it, and clear what was unfinished.

        Args:
            bill: what it cost (`queries`, `seconds` ...).
        """
        draft = self.draft
        final = self.store.root / draft.kind / f"{draft.name}@{draft.id}"
        temporary = final.with_name(f"{WRITING}{final.name}-{uuid.uuid4().hex}")
        contents = {
            "tensors.safetensors": safetensors.torch.save(savable(tensors)),
            "config.yaml": yaml.safe_dump(json.loads(canonical(draft.recipe)), sort_keys=False).encode(),
            "metrics.json": json.dumps(plain(metrics), indent=1).encode(),
        }
        seconds = sum(self._spent.values()) + clock() - self._since
        provenance = provenance_of(draft, seconds, bill or {}, device)
        provenance["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        provenance["digest"] = content_digest(provenance)
        contents["provenance.json"] = json.dumps(provenance, indent=1).encode()
        try:
            temporary.mkdir(parents=True)
            for name, content in contents.items():
                write_whole(temporary / name, content)
            temporary.rename(final)
        except OSError:
            if not final.is_dir():  # another process may have finished the same work first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # a half of it would fill a disk that is full
        for left in final.parent.glob(f"{glob.escape(WRITING + final.name)}-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.store.verified(final)


def discard(folder: Path) -> None:
    """Delete a folder that may be taken for something whole: it is renamed first, so no half of it can be. A link is
    not followed, but an `OSError`."""
    doomed = folder.with_name(f"{REMOVED}{folder.name}-{uuid.uuid4().hex}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _inside(root: Path, kinds: Sequence[str]) -> list[Path]:
    """The folders of artefacts in one folder of a store."""
    shelves = [root / kind for kind in kinds if (root / kind).is_dir()]
    return sorted(path for shelf in shelves for path in shelf.iterdir() if path.is_dir() and path.name[0] != ".")


def _require_own(artefact: Artefact) -> None:
    """Refuse what lies in the folder of another artefact: it would be taken for that one."""
    path = artefact.path
    if (
        path.parent.name in KINDS
        and "@" in path.name
        and (path.parent.name, _id_of(path))
        != (
            artefact.kind,
            artefact.id,
        )
    ):
        raise Refused(f"{path}: expected the artefact of that kind and id, got {artefact.reference}; remove the folder")


def _same_id(root: Path, kind: str, artefact_id: str) -> list[Path]:
    """The folders of one kind and id in one folder of a store: one, but for copies under other names."""
    return [path for path in _inside(root, (kind,)) if _id_of(path) == artefact_id]


def _require_same_parents(artefact: Artefact, draft: Draft) -> None:
    """Raise `OtherParents` where an artefact was computed from other content than the parents of its draft hold. They
    may lie outside the store, where `Store.parent` does not look."""
    for role, now in draft.parent_contents.items():
        if (recorded := artefact.parent_contents.get(role, now)) != now:
            raise OtherParents(artefact.reference, role, draft.parents[role], recorded, now)


def _id_of(path: Path) -> str:
    """What stands behind the `@` of an artefact's folder."""
    return path.name.rpartition("@")[2]
