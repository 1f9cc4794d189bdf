"""What a defense needs at the edge before it releases anything: a generator learned from public pictures, and what it
learns of the two once. Both are artefacts of the store, got or made as any other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from midefense import seeds
from midefense.datasets.splits import digest
from midefense.defenses.base import Defense
from midefense.pipeline.classifiers import StoredTarget
from midefense.pipeline.priors import fit_prior, frozen, load_prior
from midefense.pipeline.session import Session
from midefense.plan.bind import Node
from midefense.plan.facts import generators_of
from midefense.plan.read import name_of
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact, Draft
from midefense.store.lineage import lineage
from midefense.store.store import Work
from midefense.tracking.progress import consume
from midefense.types import Images

OWN_PUBLIC = "own"  # the defender's pictures are the public ones of the dataset


def equip(
    session: Session, target: StoredTarget, node: Node, defense: Defense, edge: nn.Module, cut: str
) -> dict[str, Artefact]:
    """Hand a defense (`node` says what it was built of) the generator that it asks for; nothing where it asks for none.

    Gives what that was made of, by role: `defense_prior`, and `defense_prepared` where the defense prepares.
    """
    found = generators_of(node)
    if not found:
        return {}
    public = session.splits(target.plan.dataset).public
    prior, recipe, stored = _prior(session, target, found[0], public)
    parents = {"defense_prior": stored} if stored else {}
    if defense.prepares:
        parents["defense_prepared"] = _prepared(session, target, node, defense, edge, cut, prior, recipe, stored)
    prepared = parents.get("defense_prepared")
    defense.equip(edge, prior, prepared.tensors() if prepared else {})
    return parents


def _prior(
    session: Session, target: StoredTarget, node: Node, public: Images
) -> tuple[Prior, Mapping[str, object], Artefact | None]:
    """The generator, its recipe, and its artefact, which an attacker who owns the same pictures shares."""
    seed = target.plan.seed
    node.target.require_some(public)
    with seeds.isolated(seed, "prior", "init"):
        prior = node.build()
    recipe: dict[str, object] = {"kind": "prior", "prior": node.recipe()}
    if not prior.learns:
        return frozen(prior, session.device), recipe, None
    recipe |= {"public": digest(public), "seed": seed}
    names = {**target.plan.names, "public": OWN_PUBLIC, "prior": node.target.__name__}
    draft = Draft(
        kind="prior",
        name=name_of(names, "dataset", "public", "prior"),
        recipe=recipe,
        names={name: names[name] for name in ("public", "prior")},
        places=node.places(),
        command=session.command(session.plan.verb, names),
    )

    def make(work: Work) -> Artefact:
        return fit_prior(session, draft, prior, public, seed, work)

    artefact = session.store.get_or_make(draft, make, session.plan.missing)
    return load_prior(prior, artefact, session.device), recipe, artefact


def _prepared(
    session: Session,
    target: StoredTarget,
    node: Node,
    defense: Defense,
    edge: nn.Module,
    cut: str,
    prior: Prior,
    prior_recipe: Mapping[str, object],
    stored_prior: Artefact | None,
) -> Artefact:
    """What the defense learned of the edge and the generator: shared by all strengths of it."""
    draft = Draft(
        kind="prepared",
        name=name_of(target.plan.names, "dataset", "architecture", "defense"),
        recipe={
            "kind": "prepared",
            "defense": defense.preparation(node.recipe()),
            "cut": cut,
            "target": target.artefact.id,
            "prior": prior_recipe,
            "seed": target.plan.seed,
        },
        names=target.plan.names,
        **lineage({"target": target.artefact, "prior": stored_prior}),
        places=node.places(),
        command=session.command(session.plan.verb, target.plan.names),
    )

    def make(work: Work) -> Artefact:
        saved = work.load("state")
        with session.run(draft, "prepare", {"target": target.artefact}) as run:
            rng = seeds.generator(target.plan.seed, "release", "prepare", cut)
            progress = defense.prepare(edge, prior, rng, saved)
            last = consume(progress, run, total=None, namespace="prepare", save=lambda _, state: work.save("state", state()))
            return session.finish(run, work, last() if last else saved, {})

    return session.store.get_or_make(draft, make, session.plan.missing)
