"""What Weights & Biases is told of a run beside its curves: keys to filter and group by, every setting, a name, tags,
and the numbers of a result.

A sweep agent locks what it varies as configuration keys of their own (`defense`, `attack.search.steps`), and W&B drops
what a run then says under such a key. So the keys to filter by hold what the agent would, the option's name alone, and
all settings stand below one key that no option of a verb has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from midefense.metrics.intervals import FEW
from midefense.metrics.relative import relative
from midefense.plan.read import setup_of, without_seeds
from midefense.store.artefacts import Artefact, Draft, content_id

SETTINGS = "settings"  # the key of every setting
PARTS = ("dataset", "public", "architecture", "defense", "prior", "attack")
PARTS_OF = {
    "target": ("dataset", "architecture", "defense"),
    "prior": ("dataset", "public", "prior"),
    "released": ("dataset", "architecture", "defense"),
    "cloud": ("dataset", "architecture", "defense"),
}
SEED_OF = {
    "target": "target",
    "prior": "prior",
    "released": "target",
    "cloud": "target",
}  # whose seed a run's own is; the attack's elsewhere
TARGET_SETTINGS = ("dataset", "architecture", "defense", "recipe", "train_on")
ATTACK_SETTINGS = ("attack", "preparation", "evidence")
EVALUATOR_SETTINGS = ("architecture", "recipe", "train_on", "seed")
BOUNDS = ("low", "high")
UTILITY, ATTACK = "utility/test_accuracy_top1", "attack_accuracy_top1/"
TRADED = "utility_minus_attack/"  # a number for searches over a defense's options, which W&B and Optuna want one of
FEW_CLASSES = f"fewer than {FEW} classes"  # the tag of results whose intervals over classes are wide


@dataclass(frozen=True)
class Told:
    """What a run says of itself: its `title`, the `group` it shares with other seeds of its setup, `tags`, and the
    `config`."""

    title: str
    group: str
    tags: tuple[str, ...]
    config: dict[str, object]


def told(draft: Draft, parents: Mapping[str, Artefact], dataset: str, resolution: int) -> Told:
    """What the run that makes `draft` says of itself.

    Args:
        parents: artefacts that it is made from, by role; those that bear no setting may be left out.
        dataset: what people call the dataset of the target, for a draft that does not say.
        resolution: height and width of its images.
    """
    chain = _Chain.of(draft, parents)
    of_the_target = parents["target"].provenance["names"] if "target" in parents else {}
    names = {"dataset": dataset, **of_the_target, **draft.names}
    parts = {part: _option(names.get(part, "own")) for part in PARTS_OF.get(draft.kind, PARTS)}
    if chain.evaluators:
        judges = [one.provenance["names"].get("architecture", "own") for one in chain.evaluators.values()]
        parts["evaluator"] = ", ".join(map(_option, judges))
    seed = chain.seeds.get(SEED_OF.get(draft.kind, "attack"))
    setup = chain.setup
    config = {
        **parts,
        **({} if chain.access is None else {"access": chain.access}),
        **({} if chain.classes is None else {"classes": chain.classes}),
        "resolution": resolution,
        "seed": seed,
        "seeds": chain.seeds,
        "setup": setup,
        **({"protocol": content_id(draft.recipe["protocol"])} if draft.kind == "result" else {}),
        "artefact": draft.reference,
        "names": names,
        SETTINGS: chain.settings,
    }
    few = (FEW_CLASSES,) if chain.classes is not None and chain.classes < FEW else ()
    tags = (*parts.values(), *few)
    return Told(f"{draft.name} {_seed_text(chain.seeds, seed)}", f"{draft.name}@{setup}", tags, config)


def numbers_of(report: Mapping, further: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The finite numbers of a result by name, and what they are read by: the bounds of their intervals and their
    anchors, as `<name>/low`, `<name>/real`. A distance without a scale (`metrics.relative`) is told beside what can be
    read of it, as `kid_relative/main`, its place among its anchors; and what is kept of the target's accuracy beyond
    the attack's as `utility_minus_attack/main`.

    Args:
        report: `metrics` and `anchors`, as a result stores them.
        further: what else belongs to the row; a number that is measured already is not said twice.
    """
    places, levels = _placed(report)
    measured = {**report["metrics"], **places}
    values = _finite({**further, **{name: number["value"] for name, number in measured.items()}})
    values |= _traded(values)
    bounds = {f"{name}/{bound}": number[bound] for name, number in measured.items() for bound in BOUNDS}
    anchors = {
        f"{name}/{anchor}": value
        for anchor, known in report["anchors"].items()
        for name, value in known.items()
        if name in values
    }
    return values, _finite({**bounds, **anchors, **levels})


def _traded(values: Mapping[str, float]) -> dict[str, float]:
    """What a defense leaves: the target's test accuracy less the attack's accuracy, in [-1, 1], by evaluator. A target
    that has learned nothing leaks nothing, so that the second alone is no goal of a search."""
    attacks = {name.removeprefix(ATTACK): value for name, value in values.items() if name.startswith(ATTACK)}
    if UTILITY not in values:
        return {}
    return {f"{TRADED}{judge}": values[UTILITY] - value for judge, value in attacks.items()}


def _placed(report: Mapping) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """The numbers of `metrics.relative` with the bounds of their intervals, and their anchors as `<name>/real`."""
    numbers, anchors = {}, {}
    for name, number in report["metrics"].items():
        found = None if number["value"] is None else relative(name, number["value"], report["anchors"])
        if found is not None:
            known, place, levels = found
            bounds = {bound: None if number[bound] is None else place(number[bound]) for bound in BOUNDS}
            numbers[known] = {"value": place(number["value"]), **bounds}
            anchors |= {f"{known}/{anchor}": level for anchor, level in levels.items()}
    return numbers, anchors


@dataclass(frozen=True)
class _Chain:
    """The recipes that a draft stands on, its own among them; None where there is none of that kind."""

    target: Mapping | None
    prior: Mapping | None
    attack: Mapping | None
    evaluators: Mapping[str, Artefact]
    metrics: Mapping | None
    release: Mapping | None = None

    @classmethod
    def of(cls, draft: Draft, parents: Mapping[str, Artefact]) -> _Chain:
        own, kind = draft.recipe, draft.kind
        target = own if kind == "target" else parents["target"].recipe if "target" in parents else None
        attack = parents["recovered"].recipe if kind == "result" else None if kind in PARTS_OF else own
        prior = own if kind == "prior" else attack["prior"] if attack else None
        judges = {r.removeprefix("evaluator."): one for r, one in parents.items() if r.startswith("evaluator.")}
        release = (attack or own).get("release")  # a defense that the target's recipe does not name
        return cls(target, prior, attack, judges, own["protocol"]["metrics"] if kind == "result" else None, release)

    @property
    def seeds(self) -> dict[str, int]:
        recipes = {"target": self.target, "prior": self.prior, "attack": self.attack}
        seeds = {name: None if recipe is None else recipe.get("seed") for name, recipe in recipes.items()}
        return {name: seed for name, seed in seeds.items() if seed is not None}

    @property
    def setup(self) -> str:
        """The id of what is done, whatever the seeds: that of a row, where an attack is part of it."""
        if self.attack is not None:
            return setup_of(self.target, self.attack)
        recipes = [without_seeds(recipe) for recipe in (self.target, self.prior) if recipe is not None]
        return content_id(recipes if self.release is None else [*recipes, self.release])

    @property
    def access(self) -> str | None:
        """What may be read of the target; None where nobody asks it."""
        asking = self.attack or self.prior or {}
        return asking.get("access") or asking.get("attack", {}).get("access")

    @property
    def classes(self) -> int | None:
        """How many classes a result is about; None of anything else."""
        return None if self.metrics is None else len(set(self.attack["labels"]))

    @property
    def settings(self) -> dict[str, object]:
        """Every setting, by part."""
        settings = {} if self.target is None else {part: self.target[part] for part in TARGET_SETTINGS}
        settings |= {} if self.release is None else {"defense": self.release}
        if self.prior is not None:
            settings["prior"] = self.prior["prior"]
        if self.attack is not None:
            settings |= {name: self.attack[name] for name in ATTACK_SETTINGS if name in self.attack}
        if self.evaluators:
            settings["evaluators"] = {
                name: {part: one.recipe[part] for part in EVALUATOR_SETTINGS} for name, one in self.evaluators.items()
            }
        return settings if self.metrics is None else {**settings, "metrics": self.metrics}


def _option(name: str) -> str:
    """The name of an option, without the values that were changed."""
    return name.split("(")[0].strip()


def _seed_text(seeds: Mapping[str, int], own: int | None) -> str:
    """`seed 1`, or whose seed is which where those of target and attack differ."""
    told = {name: seeds[name] for name in ("target", "attack") if name in seeds}
    if len(set(told.values())) > 1:
        return ", ".join(f"{name} seed {seed}" for name, seed in told.items())
    return f"seed {own}"


def _finite(numbers: Mapping[str, object]) -> dict[str, float]:
    """Numbers without those that are missing or undefined; stored ones may be texts ("nan")."""
    known = {name: float(value) for name, value in numbers.items() if value is not None}
    return {name: value for name, value in known.items() if math.isfinite(value)}
