"""Artefacts that a configuration names: each brings parts of its own, which may not be named beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from midefense.plan.overrides import parsed
from midefense.store.artefacts import Artefact
from midefense.store.store import Store
from midefense.training.start import FromFile, FromTarget
from midefense.types import Refused

TARGET_NODES = ("dataset", "architecture", "defense", "recipe")
ATTACK_NODES = ("public", "prior", "evidence", "attack")
NAMED = ("train_on", "target", "prior_artefact")


def named_artefacts(config: dict, store: Store, overrides: Sequence[str]) -> tuple[Artefact | None, Artefact | None]:
    """The artefacts that `recovered=` and `target=` name; what they bring may not be named beside them."""
    recovered = target = None
    if config.get("recovered") is not None:
        recovered = store.open(str(config["recovered"]), "recovered")
        target = store.open(recovered.provenance["parents"]["target"], "target")
        refuse_beside("recovered", (*TARGET_NODES, *ATTACK_NODES, *NAMED, "seed", "seeds"), overrides)
    elif config.get("target") is not None:
        target = store.open(str(config["target"]), "target")
        refuse_beside("target", (*TARGET_NODES, "train_on", "seeds.target"), overrides)
    return recovered, target


def named_prior(config: dict, store: Store, overrides: Sequence[str]) -> Artefact | None:
    """The prior of the store that `prior_artefact=` names."""
    if config.get("prior_artefact") is None:
        return None
    refuse_beside("prior_artefact", ("prior", "seeds.prior"), overrides)
    return store.open(str(config["prior_artefact"]), "prior")


def named_evaluators(config: dict, store: Store, overrides: Sequence[str]) -> dict[str, Artefact]:
    """The targets of the store that `evaluators.NAME.artefact=` names, by evaluator."""
    named = {}
    for name, node in config.get("evaluators", {}).items():
        if node["artefact"] is not None:
            named[name] = store.open(str(node["artefact"]), "target")
            brought = [f"evaluators.{name}.{key}" for key in node if key != "artefact"]
            brought.append(f"evaluator@evaluators.{name}")
            refuse_beside(f"evaluators.{name}.artefact", brought, overrides)
    return named


def with_start(recipe: Mapping, path: str, store: Store) -> Mapping:
    """The node of a recipe at `path`, its `start` (a target of the store, or a file of weights) named by its content.

    Raises `Refused` for what is neither. A node that is written out, and null, are left as they are.
    """
    start = recipe.get("start") if isinstance(recipe, Mapping) else None
    if start is None or isinstance(start, Mapping):
        return recipe
    file = Path(str(start)).expanduser()
    if file.is_file():
        return {**recipe, "start": {"_target_": _name_of(FromFile), **FromFile.hashed(file)}}
    try:
        artefact = store.open(str(start), "target")
    except Refused as refusal:
        raise Refused(
            f"{path}.start={start}: expected a target of the store or a file of weights, got neither ({refusal})"
        ) from refusal
    return {**recipe, "start": {"_target_": _name_of(FromTarget), "id": artefact.id, "path": str(artefact.path)}}


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def refuse_beside(what: str, brought: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse overrides that set something which the artefact named by `what` brings."""
    for override in parsed(overrides):
        for name in brought:
            if override.sets(name):
                raise Refused(f"{what}=... brings its own {name}; leave out {override.text}")
