"""What artefacts were computed from: each records what its parents held, so that a parent that was exchanged since is
told from it, also where it was sealed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from midefense.store.artefacts import KINDS, Artefact, Draft
from midefense.types import Refused

Find = Callable[[str], Artefact | None]  # what the store holds under a reference, its provenance checked; None: nothing


class OtherParents(Refused):
    """An artefact was computed from something else than what its parents hold now. `fact` says so, without advice."""

    def __init__(self, child: str, role: str, parent: str, recorded: str, now: str) -> None:
        self.fact = (
            f"{child}: its {role} {parent} was exchanged since: it was computed from one of content {recorded[:12]}, "
            f"there is one of content {now[:12]} now"
        )
        super().__init__(
            f"{self.fact}; put the former {role} back, or remove what was computed from it with "
            f"`midefense store rm {child} --dependants` and give the same command again"
        )


@dataclass(frozen=True)
class Link:
    """An artefact and one of its parents. `recorded`: the content it was computed from, None where it was not written
    down (artefacts of before); `parent`: what the store holds now, None where it holds none."""

    child: Artefact
    role: str
    reference: str
    recorded: str | None
    parent: Artefact | None

    def require_same(self) -> None:
        """Raise `OtherParents` where the parent is known to be another one."""
        if self.recorded is not None and self.parent is not None and self.parent.content != self.recorded:
            raise OtherParents(self.child.reference, self.role, self.reference, self.recorded, self.parent.content)

    @property
    def doubt(self) -> str:
        """Why nobody can tell whether the parent is the same, "" where one can."""
        if self.recorded is None:
            return f"what its {self.role} {self.reference} held is not recorded"
        return f"its {self.role} {self.reference} is not here" if self.parent is None else ""


def lineage(parents: Mapping[str, Artefact | Draft | None]) -> dict[str, dict[str, str]]:
    """The fields `parents` and `parent_contents` of a draft. One that is still to be made has no content; None is no
    parent."""
    known = {role: parent for role, parent in parents.items() if parent is not None}
    return {
        "parents": {role: parent.reference for role, parent in known.items()},
        "parent_contents": {role: parent.content for role, parent in known.items() if isinstance(parent, Artefact)},
    }


def links(artefact: Artefact, find: Find) -> Iterator[Link]:
    """The links from an artefact to its own parents.

    Raises `Refused` for a parent whose provenance is spoilt: then nobody knows what it is.
    """
    recorded = artefact.parent_contents
    for role, reference in artefact.provenance["parents"].items():
        try:
            parent = find(reference)
        except Refused as refusal:
            raise Refused(f"{artefact.reference}: its {role} cannot be looked at: {refusal}") from refusal
        yield Link(artefact, role, reference, recorded.get(role), parent)


def key_of(reference: str) -> tuple[str, str]:
    """Kind and id of a reference (`kind/name@id`, of targets maybe the id alone), as `Store.parent` reads it."""
    kind, _, name = reference.rpartition("/")
    return kind if kind in KINDS else "target", name.rpartition("@")[2]


def all_links(artefact: Artefact, find: Find) -> Iterator[Link]:
    """The links from an artefact to its parents, from those to theirs, and so on; each artefact is looked at once."""
    waiting, seen = [artefact], {artefact.path}
    while waiting:
        for link in links(waiting.pop(), find):
            yield link
            if link.parent is not None and link.parent.path not in seen:
                seen.add(link.parent.path)
                waiting.append(link.parent)
