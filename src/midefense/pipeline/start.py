"""Beginning a training with the body of another network (`recipe.start`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from midefense.architectures.base import Classifier
from midefense.architectures.state_names import HEAD, body_from_published, require_match
from midefense.plan.read import TargetPlan
from midefense.store.artefacts import Artefact
from midefense.store.lineage import lineage
from midefense.store.store import Store
from midefense.training.start import FromFile, FromTarget, Start
from midefense.types import Refused


def start_of(plan: TargetPlan, store: Store) -> dict[str, dict[str, str]]:
    """The target that a classifier starts from, where it starts from one, as the parent of a draft: what it holds too,
    if it is there."""
    start = plan.recipe.arguments.get("start")
    built = None if start is None else start.build()
    if not isinstance(built, FromTarget):
        return {}
    known = store.read(Path(built.path)) if _in_its_folder(built) else store.parent(built.reference)
    return {**lineage({"start": known}), "parents": {"start": built.reference}}


def take_body(model: Classifier, start: Start, store: Store) -> None:
    """Put the body of the network that `start` names into `model`, which keeps its head.

    Raises `Refused` unless names and shapes of all but the head are exactly those of the model.
    """
    if isinstance(start, FromFile):
        model.load_state_dict({**model.state_dict(), **_body_of_file(model, start)})
        return
    artefact = _opened(start, store)
    state = {name: tensor for name, tensor in artefact.tensors().items() if not name.startswith(HEAD)}
    _require_body(model, state, artefact)
    model.load_state_dict({**model.state_dict(), **state})


def _body_of_file(model: Classifier, start: FromFile) -> Mapping[str, Tensor]:
    try:
        return body_from_published(model, start.tensors())
    except Refused as refusal:
        raise Refused(f"recipe.start={start.file}: {refusal}") from refusal


def _opened(start: FromTarget, store: Store) -> Artefact:
    """The artefact a training starts from: in the folder it was named by, or in the store, under the same id."""
    artefact = store.open(start.path if _in_its_folder(start) else start.id, "target")
    if artefact.id != start.id:
        raise Refused(f"recipe.start: expected the target {start.id} in {start.path}, got {artefact.id}; name it anew")
    return artefact


def _in_its_folder(start: FromTarget) -> bool:
    """Whether it still lies in the folder it was named by."""
    return start.path is not None and Path(start.path, "provenance.json").exists()


def _require_body(model: Classifier, state: Mapping[str, Tensor], artefact: Artefact) -> None:
    """Refuse a state that is not that of the model's body; a defense that left other parts in it is named."""
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(HEAD)}
    try:
        require_match(f"the body of {type(model).__name__}", state, body)
    except Refused as refusal:
        names = artefact.provenance["names"]
        made = f"{names.get('architecture', 'own')}, defense={names.get('defense', 'own')}"
        raise Refused(
            f"recipe.start={artefact.reference} (architecture={made}): {refusal}; a defense that changes the network "
            "leaves one that no other starts from"
        ) from refusal
