"""What a verb was asked to do: the composed configuration, checked and bound before any compute is spent."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from midefense.architectures.base import Classifier
from midefense.attacks.base import Attack
from midefense.compute import Compute
from midefense.datasets.base import Dataset
from midefense.datasets.placebos import PLACEBOS
from midefense.defenses.base import Defense, NoDefense
from midefense.evidence.base import EvidenceSource
from midefense.metrics.base import Metric
from midefense.oracle import Oracle
from midefense.plan.attributes import attack_problems, training_problems
from midefense.plan.awareness import known_classes
from midefense.plan.bind import Node, bind, bind_all, bind_recipe
from midefense.plan.checks import check_shape, refuse_all, refuse_together
from midefense.plan.facts import architecture_facts, reads_weights
from midefense.plan.overrides import chosen_of, parsed
from midefense.plan.references import (
    ATTACK_NODES,
    NAMED,
    TARGET_NODES,
    named_artefacts,
    named_evaluators,
    named_prior,
    with_start,
)
from midefense.plan.trials import (
    learner_trials,
    optimizer_trials,
    student_trials,
    try_generators,
    try_network,
    try_prior,
)
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact, content_id
from midefense.store.names import safe_name
from midefense.store.store import Store
from midefense.tracking.settings import Settings
from midefense.training.cloud import require_recipe_of_features
from midefense.training.recipe import Imported, Recipe, require_sampler
from midefense.training.start import FromFile, FromTarget
from midefense.types import (
    DatasetFacts,
    EvidenceFacts,
    NotYetKnown,
    Refused,
    Setting,
    in_a_sentence,
    refuse_unknown,
)

JUDGED = ("recovered", "evaluators", "judge_at_chance", "metrics")
SHARED = ("compute", "tracking", "store", "missing", "allow", "seed", "seeds")
KEYS = {
    "train_target": (*TARGET_NODES, "train_on", "cloud", *SHARED),
    "attack": (*TARGET_NODES, *ATTACK_NODES, *NAMED, *SHARED),
    "evaluate": (*TARGET_NODES, *ATTACK_NODES, *NAMED, *JUDGED, *SHARED),
}
KINDS = {
    "dataset": Dataset,
    "architecture": Classifier,
    "defense": Defense,
    "recipe": Recipe,
    "cloud": Recipe,
    "evidence": EvidenceSource,
    "prior": Prior,
    "attack": Attack,
    "metrics": Metric,
    "tracking": Settings,
    "compute": Compute,
}
HEAVY = ("architecture", "prior")  # built as `trials` does, to see whether their values are right


@dataclass(frozen=True)
class TargetPlan:
    """A classifier to have: a dataset x an architecture x a defense, trained by a recipe.

    `train_on` is `private` (the private classes), `all` (the public ones too, numbered after them) or, of attributes,
    `public` (the public images alone). `names` are what people call the parts.
    `images` is the digest of those that a stored one learned from (None: any will do).
    """

    dataset: Node
    architecture: Node
    defense: Node
    recipe: Node
    train_on: str
    seed: int
    names: dict[str, str] = field(default_factory=dict)
    images: str | None = None

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that it tells, each by an output of its own; none where it tells classes apart."""
        taught = self.dataset.arguments.get("label", "identity") == "attributes"
        return tuple(self.dataset.target.attribute_names) if taught else ()

    @property
    def remark(self) -> str:
        """What stands behind the names of what is made of it: a placebo says that it is one."""
        return f"-{self.train_on}" if self.train_on in PLACEBOS else ""

    @property
    def as_trained(self) -> TargetPlan:
        """The same classifier as training sees it: a defense that only releases has no part in that, so that all its
        strengths share the target of no defense."""
        if not self.defense.build().only_releases:
            return self
        none = bind({"_target_": "midefense.defenses.base.NoDefense"}, "defense")
        return replace(self, defense=none, names={**self.names, "defense": "none"})

    @property
    def cut(self) -> str | None:
        """The stage behind which the deployed network is cut in two (None: nobody said)."""
        return self.architecture.aside.get("cut")


@dataclass
class Plan:
    """All that a verb needs. Nodes that the verb does not use are None or empty."""

    verb: str
    target: TargetPlan
    seeds: dict[str, int]
    store: Store
    missing: str
    tracking: Settings
    compute: Compute
    public: Node | None = None
    prior: Node | None = None
    evidence: Node | None = None
    attack: Node | None = None
    cloud: Node | None = None
    stored_prior: Artefact | None = None
    foreign_prior: bool = False
    evaluators: dict[str, TargetPlan] = field(default_factory=dict)
    metrics: dict[str, Node] = field(default_factory=dict)
    judge_at_chance: bool = False
    recovered: Artefact | None = None
    names: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()


def read_plan(verb: str, config: dict, choices: Mapping[str, str], overrides: Sequence[str] = ()) -> Plan:
    """Check a composed configuration (plain dicts) and bind it.

    Args:
        choices: the option chosen per config group, by group (Hydra's `runtime.choices`).
        overrides: what stood on the command line.
    Raises:
        Refused: every mistake found, in sentences.
    """
    config = {"cloud": None, **config} if verb == "train_target" else config
    check_shape(verb, config, KEYS[verb])
    allow, seeds = tuple(config["allow"]), config["seeds"]
    store = Store(config["store"])
    if not store.root.is_dir():  # nothing can be found in it
        store.require_writable()
    released = _released_beside(config, overrides, allow)
    recovered, target = named_artefacts(config, store, overrides, released)
    prior, judges = named_prior(config, store, overrides), named_evaluators(config, store, overrides)
    nodes = _nodes(verb, config, recovered, target, prior)
    if released:
        nodes["defense"] = config["defense"], True
    for path in [path for path in nodes if path.endswith("recipe")]:
        node, told = nodes[path]
        nodes[path] = with_start(node, path, store), told
    bound = bind_all(nodes, allow)
    if prior is not None:
        bound["prior"] = bind_recipe(prior.recipe["prior"], prior.places_within("prior"), allow)
    places = {f"{path}.{place}" for path, node in bound.items() for place in node.places()}
    names = read_names(choices, [override.text for override in parsed(overrides) if override.key not in places])
    own = {"defense": names["defense"]} if released else {}
    names |= target.provenance["names"] | own if target else {}
    names |= {"prior": prior.provenance["names"]["prior"]} if prior else {}
    refuse_all(_other_kinds(bound))
    built = [node.build for path, node in bound.items() if path.split(".")[-1] not in HEAVY]
    refuse_together([*built, *optimizer_trials(bound.values())])
    if "defense" in bound:
        _check_sampler(bound["defense"])
    plan = Plan(
        verb=verb,
        target=_planned_target(target, recovered, bound, config, seeds, names, released, allow),
        seeds=seeds,
        store=store,
        missing=config["missing"],
        tracking=bound["tracking"].build(),
        compute=bound["compute"].build(),
        cloud=bound.get("cloud"),
        recovered=recovered,
        stored_prior=prior,
        foreign_prior=bool(config.get("foreign_prior", False)),
        names=recovered.provenance["names"] if recovered else names,
        overrides=tuple(overrides),
        allow=allow,
        **{name: bound.get(name) for name in ATTACK_NODES},
    )
    if verb == "evaluate":
        plan.judge_at_chance = config["judge_at_chance"]
        plan.metrics = {name: bound[f"metrics.{name}"] for name in config["metrics"]}
        plan.evaluators = {
            name: _stored_evaluator(name, judges[name], plan.target, allow)
            if name in judges
            else _evaluator_plan(name, node, plan.target, bound, choices)
            for name, node in config["evaluators"].items()
        }
        names = tuple(plan.evaluators)
        _check_metrics(plan)
        refuse_together(functools.partial(node.build().check, names) for node in plan.metrics.values())
    refuse_together(_network_trials(plan, new_target=target is None))
    refuse_all(_attribute_problems(plan))
    if target is None:
        _require_start(plan.target)
        _check_training(plan)
    _check_halves(plan)
    if plan.attack is not None:
        _check_match(plan)
    refuse_all(_placebo_problems(plan))
    return plan


def placebo_of(plan: Plan) -> str | None:
    """What the placebo that metrics ask for learns from; None where none asks."""
    return next(iter(_placebos(plan).values()), None)


def _placebos(plan: Plan) -> dict[str, str]:
    """The placebos that metrics ask for, by metric."""
    return {name: node.build().placebo for name, node in plan.metrics.items() if node.target.wants_placebo}


def _placebo_problems(plan: Plan) -> Iterator[str]:
    """Why the attack of a plan cannot be repeated on a placebo, where a metric asks for that; and why a target cannot
    be one."""
    asked, target = _placebos(plan), plan.target
    if target.train_on in PLACEBOS and target.attributes:
        yield f"train_on={target.train_on}: expected a target of identities, got one of attributes; try label=identity"
    if not asked:
        return
    name = next(iter(asked))
    if len(set(asked.values())) > 1:
        yield f"metrics: expected one placebo for all, got {', '.join(asked.values())} ({', '.join(asked)})"
    if plan.recovered is not None:
        yield (
            f"metrics.{name}: expected an attack to repeat on a placebo, got recovered=, which is one that was done; "
            "try target= and attack=, or other metrics"
        )
    elif plan.evidence.target.releases or plan.evidence.target.points_at == "training_set":
        yield (
            f"metrics.{name}: expected an attack on classes, got evidence ({plan.evidence.target.__name__}) that "
            "another target would have given otherwise; try evidence=class_labels, or other metrics"
        )
    if target.attributes or target.train_on != "private":
        got = "attributes" if target.attributes else f"train_on={target.train_on}"
        yield f"metrics.{name}: expected a target of the private identities, got {got}; try train_on=private"
    yield from _start_problems(name, target, plan.store)
    if issubclass(target.recipe.target, Imported):
        yield (
            f"metrics.{name}: expected a target whose training can be repeated without the identities, got weights "
            "that others trained; try one trained here, or other metrics"
        )


def _start_problems(metric: str, target: TargetPlan, store: Store) -> Iterator[str]:
    """Why the training of a target cannot be repeated without the identities, where it begins with another network that
    knows them, or may (itself, or what it began with): a placebo would begin with the same."""
    begins = target.recipe.arguments.get("start")
    start = None if begins is None else begins.build()
    if isinstance(start, FromFile):
        knows, said = True, f"{start.file}, a file of weights that may know them"
    elif isinstance(start, FromTarget):
        here = start.path is not None and Path(start.path, "provenance.json").is_file()
        known = store.read(Path(start.path)) if here else store.parent(start.reference)
        knows = _may_know(known, target.dataset.recipe()["_target_"], store)
        said = f"{start.reference}, which learned from the same dataset, or began with what may have"
    else:
        knows, said = False, ""
    if knows:
        yield (
            f"metrics.{metric}: expected a target whose training begins without the identities, got recipe.start="
            f"{said}; try recipe.start=null, or other metrics"
        )


def _may_know(known: Artefact | None, dataset: str, store: Store) -> bool:
    """Whether a stored target (None: it is gone) may know the people of the dataset class named `dataset`, whatever the
    options, which cut it otherwise."""
    if known is None or known.recipe["dataset"]["_target_"] == dataset:
        return True
    if known.recipe["recipe"].get("start") is None:
        return False
    parent = known.provenance["parents"].get("start")  # a file of weights is no parent
    return parent is None or _may_know(store.parent(parent), dataset, store)


def stored_target(artefact: Artefact, allow: Sequence[str] = ()) -> TargetPlan:
    """The plan that made a stored target, read from its recipe."""
    recipe = artefact.recipe
    nodes = {name: bind_recipe(recipe[name], artefact.places_within(name), allow) for name in TARGET_NODES}
    return TargetPlan(
        **nodes,
        train_on=recipe["train_on"],
        seed=recipe["seed"],
        names=artefact.provenance["names"],
        images=recipe["images"],
    )


def _released_beside(config: Mapping, overrides: Sequence[str], allow: Sequence[str]) -> bool:
    """Whether a defense is named beside `target=` that has no part in training: any target without one may have it."""
    if config.get("target") is None or not any(override.sets("defense") for override in parsed(overrides)):
        return False
    return bind(config["defense"], "defense", allow, True).build().only_releases


def _planned_target(
    stored: Artefact | None,
    recovered: Artefact | None,
    bound: dict[str, Node],
    config: dict,
    seeds: dict[str, int],
    names: dict[str, str],
    released: bool,
    allow: Sequence[str],
) -> TargetPlan:
    """The target of a plan: a new one, or a `stored` one, maybe with a defense beside it that only releases."""
    if stored is None:
        return _target_plan(bound, config, seeds, names)
    plan = _stored_plan(stored, recovered, allow)
    if not released:
        return plan
    if not issubclass(plan.defense.target, NoDefense):
        raise Refused(
            f"defense={names['defense']}: expected a target without a defense beside one that only releases, got "
            f"{stored.reference}, which was trained with {plan.names.get('defense', 'its own')}; leave out defense=, "
            "or name a target trained with defense=none"
        )
    return replace(plan, defense=bound["defense"], names={**plan.names, "defense": names["defense"]})


def _stored_plan(target: Artefact, recovered: Artefact | None, allow: Sequence[str]) -> TargetPlan:
    """The plan of a stored target, with the defense that released what something was recovered from, where that is none
    of the target's own."""
    plan, release = stored_target(target, allow), {} if recovered is None else recovered.recipe.get("release", {})
    if not release:
        return plan
    defense = bind_recipe(release, recovered.places_within("defense"), allow)
    return replace(plan, defense=defense, names={**plan.names, "defense": recovered.provenance["names"]["defense"]})


def read_names(choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """What people call the parts: the option chosen per group, with the values changed on the command line."""
    names = {}
    for group in (*TARGET_NODES, *ATTACK_NODES):
        if (chosen := chosen_of(choices, group)) is None:
            continue
        changes = [change for override in parsed(overrides) if (change := override.inside(group)) is not None]
        names[group] = f"{chosen}({', '.join(sorted(changes))})" if changes else str(chosen)
    return names


def _nodes(
    verb: str, config: dict, recovered: Artefact | None, target: Artefact | None, prior: Artefact | None
) -> dict[str, tuple[Mapping, bool]]:
    """Every node to bind, by path, and whether it may be told the dataset's shape."""
    nodes: dict[str, tuple[Mapping, bool]] = {name: (config[name], False) for name in ("tracking", "compute")}
    if config.get("cloud") is not None:
        nodes["cloud"] = (config["cloud"], False)
    if target is None:
        nodes |= {name: (config[name], name in ("architecture", "defense")) for name in TARGET_NODES}
    if verb != "train_target" and recovered is None:
        own = [name for name in ATTACK_NODES if name != "prior" or prior is None]
        nodes |= {name: (config[name], name in ("prior", "attack")) for name in own}
    if verb == "evaluate":
        for name, node in config["evaluators"].items():
            if node["artefact"] is not None:
                continue
            nodes[f"evaluators.{name}.architecture"] = (node["architecture"], True)
            nodes[f"evaluators.{name}.recipe"] = (node["recipe"], False)
        nodes |= {f"metrics.{name}": (node, False) for name, node in config["metrics"].items()}
    return nodes


def _target_plan(bound: dict[str, Node], config: dict, seeds: dict[str, int], names: dict[str, str]) -> TargetPlan:
    nodes = {name: bound[name] for name in TARGET_NODES}
    own_names = {name: names[name] for name in TARGET_NODES if name in names}
    return TargetPlan(**nodes, train_on=config["train_on"], seed=seeds["target"], names=own_names)


def _evaluator_plan(
    name: str, node: Mapping, target: TargetPlan, bound: dict[str, Node], choices: Mapping[str, str]
) -> TargetPlan:
    """An evaluator is a target without a defense, on the pictures of the target it judges, maybe in another size."""
    dataset_name = target.names.get("dataset", "dataset")
    chosen = str(choices.get(f"evaluator@evaluators.{name}", name))
    return TargetPlan(
        dataset=_of_size(by_identity(target.dataset), node.get("size"), name),
        architecture=bound[f"evaluators.{name}.architecture"],
        defense=bind({"_target_": "midefense.defenses.base.NoDefense"}, f"evaluators.{name}.defense"),
        recipe=bound[f"evaluators.{name}.recipe"],
        train_on=node["train_on"],
        seed=node["seed"],
        names={"dataset": dataset_name, "architecture": f"{chosen} (evaluator)", "defense": "none"},
    )


def _stored_evaluator(name: str, artefact: Artefact, target: TargetPlan, allow: Sequence[str]) -> TargetPlan:
    """An evaluator out of the store: it must know the dataset of the target, undefended."""
    plan = stored_target(artefact, allow)
    if not issubclass(plan.defense.target, NoDefense):
        raise Refused(
            f"evaluators.{name}.artefact: expected a target without a defense, got {artefact.reference}; "
            "try one trained with defense=none"
        )
    size = plan.dataset.arguments.get("size")
    own, dataset = plan.dataset.recipe(), _of_size(by_identity(target.dataset), size, name)
    if own != dataset.recipe():
        raise Refused(
            f"evaluators.{name}.artefact: expected an evaluator of the target's dataset, got {artefact.reference}, "
            "which knows another (or the same under other options); try one trained on, or imported for, the same"
        )
    return replace(plan, dataset=dataset)


def by_identity(dataset: Node) -> Node:
    """The same pictures for a classifier that is taught whose they are."""
    if "label" not in dataset.arguments:
        return dataset
    return replace(dataset, arguments={**dataset.arguments, "label": "identity"})


def _of_size(dataset: Node, size: int | None, name: str) -> Node:
    """The same pictures as images of another `size` (None: as they are), for the evaluator called `name`."""
    if size is None or size == dataset.arguments.get("size"):
        return dataset
    if "size" not in dataset.arguments:
        raise Refused(
            f"evaluators.{name}.size: expected null, because {dataset.target.__name__} has images of one size, got "
            f"{size}; try evaluators.{name}.size=null"
        )
    resized = replace(dataset, arguments={**dataset.arguments, "size": size})
    try:
        resized.build()
    except Refused as refusal:
        raise Refused(f"evaluators.{name}.size={size}: {refusal}; or try evaluators.{name}.size=null") from refusal
    return resized


def _other_kinds(bound: Mapping[str, Node]) -> list[str]:
    """Nodes that name a class of another kind than their place is for."""
    problems = []
    for path, node in bound.items():
        parts = path.split(".")
        wanted = KINDS.get(parts[-1] if parts[0] == "evaluators" else parts[0])
        if wanted is not None and not issubclass(node.target, wanted):
            got = node.target.__name__
            problems.append(f"{path}: expected a {wanted.__name__}, got {got}; try an option of its group, see --help")
    return problems


def read_setting(plan: Plan) -> Setting:
    """What the configuration of an attack tells of the world around it, before any image is read."""
    dataset, source, target = plan.target.dataset.build(), plan.evidence.build(), plan.target
    shape = {"channels": dataset.channels, "size": dataset.size}
    known = {"classes": len(target.attributes)} if target.attributes else {}
    describe = functools.partial(architecture_facts, target.architecture, target.defense, **shape, **known)
    evidence = EvidenceFacts(type(source).__name__, source.points_at, cut_of(plan), source.releases)
    return Setting(plan.prior.target, DatasetFacts(**shape), evidence, describe, bool(target.attributes))


def _check_halves(plan: Plan) -> None:
    """Refuse an `architecture.cut` that is no stage of the network, and a cloud that cannot learn from features, or of
    a network that is not cut."""
    target = plan.target
    if plan.cloud is not None:
        require_recipe_of_features(plan.cloud.build())
    if target.cut is None:
        if plan.cloud is not None:
            raise Refused("cloud: expected a target that is cut, got none; try architecture.cut=STAGE")
        return
    dataset = target.dataset.build()
    known = {"classes": len(target.attributes)} if target.attributes else {}
    shape = {"channels": dataset.channels, "size": dataset.size}
    with contextlib.suppress(NotYetKnown):
        taps = architecture_facts(target.architecture, target.defense, **shape, **known).taps
        if target.cut not in taps:
            raise refuse_unknown("architecture.cut", target.cut, taps, "It is a stage of the architecture.")


def cut_of(plan: Plan) -> str | None:
    """The stage behind which what the attacker sees leaves the target; None: the input of the head."""
    source = plan.evidence.build()
    return source.cut or (plan.target.cut if source.releases else None)


def _require_start(target: TargetPlan) -> None:
    """Refuse a defense that keeps what was learned before where training begins with drawn weights."""
    begins = target.recipe.arguments.get("start") is not None or reads_weights(target.architecture)
    if target.defense.build().needs_start and not begins:
        raise Refused(
            f"defense={target.names.get('defense', 'own')}: expected a training that begins with the weights of "
            "another network, as it keeps some of them, got one from drawn weights; try recipe.start=TARGET (or a "
            "file), or published weights of the architecture (pretrained=true, weights=FILE), or defense=none"
        )


def _check_training(plan: Plan) -> None:
    """Refuse a recipe, or more processes than one, that the defense cannot be trained with. Several train a target
    together only where that is what was asked."""
    processes = plan.compute.ranks() if plan.verb == "train_target" else 1
    target, recipe = plan.target.as_trained, plan.target.recipe.build()
    if not isinstance(recipe, Imported):  # of what others trained nothing is known, and nothing to be done
        target.defense.build().check_training(recipe, processes)


def _attribute_problems(plan: Plan) -> list[str]:
    """What does not go together with what the target is taught, in sentences."""
    target = plan.target
    if target.attributes:
        of_attack = () if plan.attack is None else attack_problems(plan.evidence, plan.prior, plan.names)
        return [*training_problems(target.defense, target.recipe, target.names), *of_attack]
    if target.train_on != "public":
        return []
    return [
        "train_on=public: expected a target that is taught attributes, got one of identities, which would know no "
        "private class; try dataset.label=attributes, or train_on=private"
    ]


def _network_trials(plan: Plan, new_target: bool) -> Iterator[Callable[[], None]]:
    """A trial of every classifier that may have to be trained, and of those that metrics teach."""
    for classifier in [*([plan.target] if new_target else []), *plan.evaluators.values()]:
        dataset = classifier.dataset.build()
        images = DatasetFacts(dataset.channels, dataset.size, len(classifier.attributes) or None)
        yield functools.partial(try_network, classifier.architecture, classifier.defense, images)
    yield functools.partial(try_generators, plan.target.defense, _shape_of(plan))
    yield from student_trials(plan.metrics.values(), _shape_of(plan))


def _shape_of(plan: Plan) -> DatasetFacts:
    dataset = plan.target.dataset.build()
    return DatasetFacts(dataset.channels, dataset.size)


def _check_match(plan: Plan) -> None:
    """Refuse a prior that cannot make the target's images, a setting in which the attack cannot work, and a prior that
    asked for more than a weak attack may see."""
    attack = plan.attack.build()
    known_classes(plan.attack, plan.allow)
    _check_prior(plan, attack)
    _check_cut(plan)
    with contextlib.suppress(NotYetKnown):
        setting = read_setting(plan)
        attack.check(setting)
        target = (plan.target.architecture, plan.target.defense)
        ask = functools.partial(Oracle, access=attack.access, cut=setting.evidence.cut)
        refuse_together(learner_trials(plan.attack, target, ask, _shape_of(plan)))
    asks = getattr(plan.prior.target, "asks", None)
    if asks is not None and not asks.reveals <= attack.access.reveals:
        raise Refused(
            f"prior {plan.names.get('prior', '')} learned with access={asks.value}, more than attack.access="
            f"{attack.access.value} reveals; choose a prior that asks less, or a stronger access"
        )


def _check_cut(plan: Plan) -> None:
    """Refuse features that are released behind another stage than the one the defense was trained to protect."""
    protected, cut = plan.target.defense.build().cut, cut_of(plan)
    if plan.evidence.target.releases and protected not in (None, cut):
        raise Refused(
            f"evidence.cut: expected {protected}, where the defense ({plan.target.defense.target.__name__}) protects "
            f"features, got {cut}; try evidence.cut={protected}, or another defense.cut"
        )


def _check_prior(plan: Plan, attack: Attack) -> None:
    """Refuse a prior for other images than the target's, one that cannot be built, and one the attack cannot enter."""
    dataset = plan.target.dataset.build()
    plan.prior.target.require_world(plan.target.dataset.target)
    _check_obscuring(plan)
    if plan.stored_prior is not None:
        made, wanted = (
            (plan.prior.arguments["channels"], plan.prior.arguments["size"]),
            (dataset.channels, dataset.size),
        )
        if made != wanted:
            raise Refused(
                f"prior_artefact={plan.stored_prior.reference}: expected a prior of images with (channels, size) = "
                f"{wanted}, those of the dataset, got {made}; try another prior, or dataset.size={made[1]}"
            )
        return
    prior = try_prior(plan.prior, _shape_of(plan))
    if prior is not None:
        attack.check_prior(prior)


def _check_sampler(defense: Node) -> None:
    """Refuse batches that a defense asks for and no recipe can make."""
    sampler = defense.build().sampler
    if sampler is not None:
        try:
            require_sampler(sampler)
        except Refused as refusal:
            raise Refused(f"{defense.path}.{refusal}") from refusal


def _check_obscuring(plan: Plan) -> None:
    """Refuse evidence that a prior which completes pictures has not learned to complete."""
    if not plan.prior.target.completes:
        return
    practised, shown = (node.arguments.get("obscuring") for node in (plan.prior, plan.evidence))
    if shown is None:
        raise Refused(
            f"evidence: expected obscured images, because {plan.prior.target.__name__} completes pictures, got "
            f"{plan.evidence.target.__name__}; try evidence=masked_images or evidence=auxiliary_images"
        )
    if practised.recipe() != shown.recipe():
        raise Refused(
            f"evidence.obscuring: expected what the prior learned to complete, {in_a_sentence(practised.recipe())}, "
            f"got {in_a_sentence(shown.recipe())}; try the same values of prior.obscuring and evidence.obscuring"
        )


def _check_metrics(plan: Plan) -> None:
    """Refuse metrics that cannot say what the evidence asks: what was released of a private image is to be held against
    that image, and what stands for a class against nothing but its class."""
    if plan.recovered is None:
        evidence, prior = plan.evidence.target, plan.prior.target
    else:
        evidence = bind_recipe(plan.recovered.recipe["evidence"], {}, plan.allow).target
        stored = plan.recovered.recipe["prior"]["prior"]
        prior = bind_recipe(stored, plan.recovered.places_within("prior"), plan.allow).target
    classes = {name: node.target for name, node in plan.metrics.items()}
    pairs = [name for name, metric in classes.items() if metric.matches == "image"]
    problems = []
    by_image = evidence.points_at == "image"
    if evidence.releases and not pairs and any(metric.matches for metric in classes.values()):
        problems.append(
            "metrics: expected some that hold each reconstruction against the private image it answers, as the "
            f"evidence points at images, got {', '.join(classes)}, which know classes alone; try metrics=paired"
        )
    of_sets = any(metric.matches == "training_set" for metric in classes.values())
    if evidence.points_at == "training_set" and not of_sets and any(metric.matches for metric in classes.values()):
        problems.append(
            "metrics: expected some that match reconstructions with training images one to one, as the evidence is the "
            f"weights, got {', '.join(classes)}, which know classes alone; try metrics=matched"
        )
    if pairs and not by_image:
        problems.append(
            f"metrics.{pairs[0]}: expected evidence that points at private images, got classes; try "
            "evidence=released_features, or metrics=all"
        )
    generating = [name for name, metric in classes.items() if metric.generates]
    if generating and "pixels" in prior.offers:
        problems.append(
            f"metrics.{generating[0]}: expected a prior that generates images to compare with, got {prior.__name__}; "
            "try an attack with another prior, or metrics=paired"
        )
    refuse_all(problems)


def name_of(names: Mapping[str, str], *parts: str) -> str:
    """A readable artefact name: the options alone, without the values changed."""
    options = (names.get(part, "own").split("(")[0].strip() for part in parts)
    return safe_name("-".join(option.replace(" ", "_") for option in options))


def setup_of(target: Mapping, recovered: Mapping) -> str:
    """The id of a setup whatever its seeds: rows that share it are repetitions of one experiment. One whose prior
    learned from another target than it attacks is a setup of its own."""
    prior = without_seeds(recovered["prior"])
    if recovered["prior"].get("target", recovered["target"]) != recovered["target"]:
        prior["foreign"] = True
    recipes = {"target": target, "recovered": {**recovered, "prior": prior}}
    return content_id({name: without_seeds(recipe) for name, recipe in recipes.items()})


def without_seeds(recipe: Mapping) -> dict:
    """A recipe without its seed and the ids of artefacts that hold one."""
    return {name: value for name, value in recipe.items() if name not in ("seed", "target", "prepared")}


def baseline_of(target: Mapping, recovered: Mapping) -> str:
    """The id of a setup whatever its defense, be it of the training or of the release."""
    bare = [
        {name: value for name, value in one.items() if name not in of}
        for one, of in ((target, ("defense",)), (recovered, ("release",)))
    ]
    return setup_of(*bare)


def deployed_of(target: Mapping, recovered: Mapping) -> str:
    """The id of what is deployed whatever its seed: a network, and how its edge releases features."""
    release = recovered.get("release")
    return content_id(without_seeds(target) if release is None else [without_seeds(target), release])
