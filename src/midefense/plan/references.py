"""Artefacts that a configuration names: each brings parts of its own, which may not be named beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from midefense.foreign import path_of
from midefense.plan.overrides import TARGET_NODES, parsed
from midefense.store.artefacts import Artefact
from midefense.store.store import Store
from midefense.training.start import FromFile, FromTarget
from midefense.types import Refused

ATTACK_NODES = ("public", "prior", "evidence", "attack")
NAMED = ("train_on", "target", "prior_artefact", "foreign_prior")


def named_artefacts(
    config: dict, store: Store, overrides: Sequence[str], releases: bool = False
) -> tuple[Artefact | None, Artefact | None]:
    """The artefacts that `recovered=` and `target=` name. Of what they bring, places alone may be named beside them,
    and beside a target that has no defense of its own one that only `releases`."""
    recovered = target = None
    if config.get("recovered") is not None:
        recovered = store.open(str(config["recovered"]), "recovered")
        parents = {role: store.open(recovered.provenance["parents"][role], role) for role in _rebuilt(recovered)}
        brought = (*TARGET_NODES, *ATTACK_NODES, *NAMED, "seed", "seeds")
        recovered, target, *_ = _moved("recovered", [recovered, *parents.values()], brought, config, store, overrides)
    elif config.get("target") is not None:
        target = store.open(str(config["target"]), "target")
        brought = (*(node for node in TARGET_NODES if node != "defense" or not releases), "train_on", "seeds.target")
        (target,) = _moved("target", [target], brought, config, store, overrides)
    return recovered, target


def named_prior(config: dict, store: Store, overrides: Sequence[str]) -> Artefact | None:
    """The prior of the store that `prior_artefact=` names."""
    if config.get("prior_artefact") is None:
        return None
    prior = store.open(str(config["prior_artefact"]), "prior")
    (prior,) = _moved("prior_artefact", [prior], ("prior", "seeds.prior"), config, store, overrides)
    return prior


def named_evaluators(config: dict, store: Store, overrides: Sequence[str]) -> dict[str, Artefact]:
    """The targets of the store that `evaluators.NAME.artefact=` names, by evaluator."""
    named = {}
    for name, node in config.get("evaluators", {}).items():
        if node["artefact"] is not None:
            at = f"evaluators.{name}"
            artefact = store.open(str(node["artefact"]), "target")
            brought = [f"{at}.{key}" for key in node if key != "artefact"]
            brought.append(f"evaluator@{at}")
            (named[name],) = _moved(f"{at}.artefact", [artefact], brought, config, store, overrides, at=f"{at}.")
    return named


def _rebuilt(recovered: Artefact) -> list[str]:
    """The roles of the artefacts that judging needs of those that something was recovered from, the target first."""
    return ["target", *(role for role in ("prior",) if role in recovered.provenance["parents"])]


def _moved(
    what: str,
    artefacts: Sequence[Artefact],
    brought: Sequence[str],
    config: Mapping,
    store: Store,
    overrides: Sequence[str],
    at: str = "",
) -> list[Artefact]:
    """The artefacts named by `what`, whose files lie where the command line says; refused for anything else that it
    says of what they bring.

    Args:
        at: what stands before the options of the artefacts on the command line.
    """
    places = [f"{at}{place}" for artefact in artefacts for place in artefact.places]
    refuse_beside(what, brought, overrides, places)
    said = {override.key for override in parsed(overrides)}
    given = {place: _place(place, config) for place in places if place in said}
    own = [{place: given[f"{at}{place}"] for place in one.places if f"{at}{place}" in given} for one in artefacts]
    return [store.moved(one, moved) for one, moved in zip(artefacts, own, strict=True)]


def _place(path: str, config: Mapping) -> str | None:
    """The value of an option of the configuration, which must be a place."""
    value: object = config
    for key in path.split("."):
        value = value[key]
    if value is not None and not isinstance(value, str):
        raise Refused(f"{path}: expected a folder or a file, got {value!r}; try {path}=DIR")
    return value


def with_start(recipe: Mapping, path: str, store: Store) -> Mapping:
    """The node of a recipe at `path`, its `start` (a target of the store, or a file of weights) named by its content.

    Raises `Refused` for what is neither. A node that is written out, and null, are left as they are.
    """
    start = recipe.get("start") if isinstance(recipe, Mapping) else None
    if start is None or isinstance(start, Mapping):
        return recipe
    file = path_of(str(start))
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


def refuse_beside(what: str, brought: Sequence[str], overrides: Sequence[str], places: Sequence[str] = ()) -> None:
    """Refuse overrides that set something which the artefact named by `what` brings, but for where its files lie
    (`places`)."""
    for override in parsed(overrides):
        for name in brought:
            if override.sets(name) and not (override.key in places and override.gives):
                advice = f"; given anew may be where its files lie: {', '.join(places)}" if places else ""
                raise Refused(f"{what}=... brings its own {name}; leave out {override.text}{advice}")
