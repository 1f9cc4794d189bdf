"""The store: artefacts that are there whole or not at all, and work that can be killed at any moment and goes on.

<root>/<kind>/<name>@<id>/   an artefact (artefacts.py)
<root>/work/<kind>/<id>/     what an unfinished one has so far, and the claims of those who work on it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import yaml
from torch import Tensor

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
from midefense.store.claims import claim
from midefense.store.plain import plain
from midefense.types import Refused, refuse_unknown

POLL_SECONDS = 0.2
# What brings the first artefact of a kind into a store.
NONE_YET = {
    "target": "Make one with train_target.py, or bring weights in with midefense import",
    "prior": "Make one with attack.py or evaluate.py, or bring weights in with midefense import",
    "recovered": "Make one with attack.py",
    "prepared": "Make one with attack.py",
    "result": "Make one with evaluate.py",
}
TRIES = 3  # to save into a folder that another process clears


class Store:
    """A folder of artefacts. Creating it checks that it can be written."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().resolve()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise Refused(
                f"store: cannot write in {self.root} ({error.strerror}); choose another folder with store=DIR "
                "or the variable MIDEFENSE_STORE"
            ) from error

    def find(self, draft: Draft) -> Artefact | None:
        """The complete artefact of a draft, verified; None if there is none. The id decides, whatever its name."""
        same = sorted(path for path in self._paths(draft.kind) if path.name.endswith(f"@{draft.id}"))
        return self._open(same[0]) if same else None

    def open(self, reference: str, kind: str) -> Artefact:
        """The artefact that `reference` names: an id, a name, `name@id`, `kind/name@id`, or a path. Verified.

        Raises:
            Refused: none or several match, another kind, a changed file, or a file that is no artefact.
        """
        path = Path(reference).expanduser()
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
        artefact = self._open(found[0])
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
                say_waiting(draft)
                waiting = True
            time.sleep(POLL_SECONDS)
        return artefact

    def require_may_make(self, draft: Draft, missing: str) -> None:
        """Refuse to make what is missing under `missing=fail`, and say what would make it."""
        if missing not in ("make", "fail"):
            raise refuse_unknown("missing", missing, ["make", "fail"])
        if missing == "fail":
            raise Refused(f"{draft.reference} is not in {self.root}; make it with: {draft.command} store={self.root}")

    def work(self, draft: Draft) -> Work:
        """The place where a draft is worked on."""
        return Work(self, draft)

    def list(self, kind: str | None = None) -> list[Artefact]:
        """All complete artefacts, oldest first, not verified. Those without a readable provenance are `broken`."""
        found, _ = self._survey(kind)
        return sorted(found, key=lambda artefact: (artefact.provenance["created"], artefact.reference))

    def broken(self, kind: str | None = None) -> dict[Path, str]:
        """The folders whose provenance cannot be read, and why."""
        _, problems = self._survey(kind)
        return problems

    def dependants(self, reference: str) -> list[Artefact]:
        """Everything that was made from the artefact `kind/name@id`, directly or not, oldest first."""
        everything, lost, known = self.list(), {reference}, 0
        while len(lost) > known:  # until a pass finds no more: clocks are too coarse to order parents before children
            known = len(lost)
            lost |= {other.reference for other in everything if lost & set(other.provenance["parents"].values())}
        return [other for other in everything if other.reference in lost - {reference}]

    def remove(self, path: Path) -> None:
        """Delete the folder of an artefact. It vanishes at once, so no half of it can be found."""
        doomed = path.with_name(f".removed-{path.name}-{os.getpid()}")
        path.rename(doomed)
        shutil.rmtree(doomed)

    def named(self, reference: str, kind: str | None = None) -> list[Path]:
        """The folders that a reference other than a path may mean."""
        wanted = reference.strip("/").split("/")[-1]
        return [path for path in self._paths(kind) if wanted in (path.name, *path.name.rsplit("@", 1))]

    def check(self, paths: Sequence[Path] | None = None) -> Iterator[tuple[str, str]]:
        """Verify artefacts (default: all): yields the reference of each and what is wrong with it, "" if nothing."""
        for path in self._paths() if paths is None else paths:
            problem = ""
            try:
                self._open(path)
            except Refused as refusal:
                problem = str(refusal)
            yield f"{path.parent.name}/{path.name}", problem

    def read(self, path: Path) -> Artefact:
        """The artefact in a folder of the store; its provenance is checked, its other files are not."""
        return Artefact(path, read_provenance(path))

    def _survey(self, kind: str | None) -> tuple[list[Artefact], dict[Path, str]]:
        """The artefacts that can be read, and the folders that cannot, with the reason."""
        found, problems = [], {}
        for path in self._paths(kind):
            try:
                found.append(self.read(path))
            except Refused as refusal:
                problems[path] = str(refusal)
        return found, problems

    def _open(self, path: Path) -> Artefact:
        artefact = self.read(path)
        artefact.verify()
        return artefact

    def _paths(self, kind: str | None = None) -> list[Path]:
        kinds = KINDS if kind is None else (kind,)
        folders = [self.root / k for k in kinds if (self.root / k).is_dir()]
        return sorted(p for f in folders for p in f.iterdir() if p.is_dir() and not p.name.startswith("."))

    def _names(self, kind: str) -> list[str]:
        return [path.name for path in self._paths(kind)]


class Work:
    """An unfinished artefact: its saved state, its finished pieces, and who works on them."""

    def __init__(self, store: Store, draft: Draft):
        self.store, self.draft = store, draft
        self.folder = store.root / "work" / draft.kind / draft.id
        self.started = time.time()

    def save(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, object] | None = None) -> None:
        """Save tensors under `name`; a kill leaves the previous ones. `notes` are JSON values kept beside them."""
        content = safetensors.torch.save(savable(tensors), {"notes": canonical(plain(notes or {}))})
        for tries_left in reversed(range(TRIES)):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return write_whole(self.folder / f"{name}.safetensors", content)
            except (FileNotFoundError, FileExistsError):  # another process finished the same work and clears the folder
                if not tries_left:
                    raise

    def load(self, name: str) -> dict[str, Tensor] | None:
        """The tensors saved under `name`, None if there are none."""
        try:
            return safetensors.torch.load_file(self.folder / f"{name}.safetensors")
        except FileNotFoundError:
            return None

    def notes(self, name: str) -> dict:
        """The notes saved with `name`."""
        with safetensors.safe_open(self.folder / f"{name}.safetensors", "pt") as file:
            return json.loads(file.metadata()["notes"])

    def has(self, name: str) -> bool:
        """Whether something was saved under `name`."""
        return (self.folder / f"{name}.safetensors").exists()

    def claim(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Whether this process got to work on `name`; given back at the end."""
        return claim(self.folder / f"{name}.claim")

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
        temporary = final.with_name(f".writing-{final.name}-{socket.gethostname()}-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        contents = {
            "tensors.safetensors": safetensors.torch.save(savable(tensors)),
            "config.yaml": yaml.safe_dump(json.loads(canonical(draft.recipe)), sort_keys=False).encode(),
            "metrics.json": json.dumps(plain(metrics), indent=1).encode(),
        }
        for name, content in contents.items():
            write_whole(temporary / name, content)
        provenance = provenance_of(draft, time.time() - self.started, bill or {}, device)
        provenance["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        provenance["digest"] = content_digest(provenance)
        write_whole(temporary / "provenance.json", json.dumps(provenance, indent=1).encode())
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            shutil.rmtree(temporary)  # another process finished the same work first
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.store._open(final)


def say_waiting(draft: Draft) -> None:
    """Tell who watches the terminal why nothing happens."""
    print(f"waiting for another process that makes {draft.reference}", file=sys.stderr)
