"""What a defense needs at the edge before it releases anything: a generator learned from public pictures, and what it
learns of the two once. Both are artefacts of the store, got or made as any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from midefense import seeds
from midefense.datasets.splits import digest
from midefense.defenses.base import Defense
from midefense.pipeline.classifiers import StoredTarget
from midefense.pipeline.priors import fit_prior, frozen, load_prior
from midefense.pipeline.session import Session
from midefense.plan.bind import Node
from midefense.plan.facts import generators_of
from midefense.plan.read import TargetPlan, name_of
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
    wanted = equipment(session, target.artefact, target.plan, node, cut)
    if wanted is None:
        return {}
    prior, stored = _prior(session, wanted)
    parents = {"defense_prior": stored} if stored else {}
    if wanted.prepared is not None:
        parents["defense_prepared"] = _prepared(session, target, wanted, defense, edge, cut, prior, stored)
    prepared = parents.get("defense_prepared")
    defense.equip(edge, prior, prepared.tensors() if prepared else {})
    return parents


@dataclass(frozen=True)
class Equipment:
    """What a defense needs, before anything of it is made: the `prior` as it is before it learns from the `public`
    pictures under `seed`, its `recipe`, and the drafts of the two artefacts (None: of a prior that learns nothing, of a
    defense that prepares nothing)."""

    prior: Prior
    public: Images
    seed: int
    recipe: Mapping[str, object]
    learned: Draft | None
    prepared: Draft | None


def equipment(
    session: Session, target: Artefact | Draft, plan: TargetPlan, node: Node, cut: str | None
) -> Equipment | None:
    """What the defense `node` of a target needs at a `cut`; None where it asks for no generator."""
    found = generators_of(node)
    if not found:
        return None
    generator, seed, public = found[0], plan.seed, session.splits(plan.dataset).public
    generator.target.require_some(public)
    with seeds.isolated(seed, "prior", "init"):
        prior = generator.build()
    recipe: dict[str, object] = {"kind": "prior", "prior": generator.recipe()}
    recipe |= {"public": digest(public), "seed": seed} if prior.learns else {}
    learned = _prior_draft(session, plan, generator, recipe) if prior.learns else None
    defense, prepared = node.build(), None
    if defense.prepares:
        prepared = Draft(
            kind="prepared",
            name=name_of(plan.names, "dataset", "architecture", "defense"),
            recipe={
                "kind": "prepared",
                "defense": defense.preparation(node.recipe()),
                "cut": cut,
                "target": target.id,
                "prior": recipe,
                "seed": seed,
            },
            names=plan.names,
            **lineage({"target": target, "prior": learned}),
            places=node.places(),
            command=session.command(session.plan.verb, plan.names),
        )
    return Equipment(prior, public, seed, recipe, learned, prepared)


def _prior_draft(session: Session, plan: TargetPlan, generator: Node, recipe: Mapping[str, object]) -> Draft:
    """The generator, which an attacker who owns the same pictures shares."""
    names = {**plan.names, "public": OWN_PUBLIC, "prior": generator.target.__name__}
    return Draft(
        kind="prior",
        name=name_of(names, "dataset", "public", "prior"),
        recipe=recipe,
        names={name: names[name] for name in ("public", "prior")},
        places=generator.places(),
        command=session.command(session.plan.verb, names),
    )


def _prior(session: Session, wanted: Equipment) -> tuple[Prior, Artefact | None]:
    """The generator, got or made, and its artefact where it has one."""
    prior, draft = wanted.prior, wanted.learned
    if draft is None:
        return frozen(prior, session.device), None

    def make(work: Work) -> Artefact:
        return fit_prior(session, draft, prior, wanted.public, wanted.seed, work)

    artefact = session.store.get_or_make(draft, make, session.plan.missing)
    return load_prior(prior, artefact, session.device), artefact


def _prepared(
    session: Session,
    target: StoredTarget,
    wanted: Equipment,
    defense: Defense,
    edge: nn.Module,
    cut: str,
    prior: Prior,
    stored_prior: Artefact | None,
) -> Artefact:
    """What the defense learned of the edge and the generator: shared by all strengths of it."""
    draft = replace(wanted.prepared, **lineage({"target": target.artefact, "prior": stored_prior}))

    def make(work: Work) -> Artefact:
        saved = work.load("state")
        with session.run(draft, "prepare", {"target": target.artefact}) as run:
            rng = seeds.generator(target.plan.seed, "release", "prepare", cut)
            progress = defense.prepare(edge, prior, rng, saved)
            last = consume(
                progress, run, total=None, namespace="prepare", save=lambda _, state: work.save("state", state())
            )
            return session.finish(run, work, last() if last else saved, {})

    return session.store.get_or_make(draft, make, session.plan.missing)
