"""What does not go together with a target of attributes (`dataset.label=attributes`), whose outputs are no classes: in
sentences, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from midefense.plan.bind import Node

OF_ATTRIBUTES = "of the attributes that dataset.label asks for"


def training_problems(defense: Node, recipe: Node, names: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with how such a target is to be trained; `names` are what people call its parts."""
    built = defense.build()
    if built.needs_classes:
        yield (
            f"defense={names.get('defense', 'own')}: expected one that works without classes, as the target is one "
            f"{OF_ATTRIBUTES}, got {defense.target.__name__}; try defense=none, or dataset.label=identity"
        )
    head = recipe.arguments.get("head", "trained")
    if head != "trained":
        yield f"recipe.head: expected trained, as a target {OF_ATTRIBUTES} has no centres of classes, got {head!r}"
    sampler = built.sampler or recipe.arguments.get("sampler", "shuffle")
    if sampler != "shuffle":
        yield f"recipe.sampler: expected shuffle for a target {OF_ATTRIBUTES}, got {sampler!r}; try sampler=shuffle"


def attack_problems(evidence: Node, prior: Node, names: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with what an attack on such a target starts from."""
    if evidence.target.points_at == "class":
        yield (
            f"evidence={names.get('evidence', 'own')}: expected what points at images, as the target tells attributes "
            f"and no classes that could be recovered, got {evidence.target.__name__}; try evidence=released_features, "
            "or dataset.label=identity"
        )
    if getattr(prior.target, "asks", None) is not None:
        yield (
            f"prior={names.get('prior', 'own')}: expected one that learns without the target, which tells attributes "
            f"and no classes, got {prior.target.__name__}; try prior=gmi_gan"
        )
