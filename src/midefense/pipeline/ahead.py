"""Looking ahead: the way of the pipeline, with drafts where the store has nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from midefense.pipeline.agenda import Agenda, Item
from midefense.pipeline.classifiers import job_of
from midefense.pipeline.costs import Cost
from midefense.pipeline.measuring import Probe, training
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.read import TargetPlan
from midefense.store.artefacts import Artefact, Draft


def look_ahead(pipeline: Pipeline) -> Agenda:
    """What `pipeline` will find and make; the runs that make it are told as its stages.

    Reads the images that recipes are made of, and refuses what is wrong with them. Makes nothing.
    """
    if pipeline.plan.verb != "train_target" and pipeline.plan.recovered is None:
        pipeline.check_images()
    items: dict[str, Item] = {}
    for item in _Looking(pipeline).items():
        items.setdefault(item.artefact.id, item)  # an attacker and a defense may share a generator: it is made once
    pipeline.session.agenda = Agenda(tuple(items.values()), pipeline.store, pipeline.device)
    if pipeline.placebo is not None:
        pipeline.placebo.session.agenda = pipeline.session.agenda
    return pipeline.session.agenda


class _Looking:
    """Goes the way of `Pipeline`, with drafts where the store has nothing."""

    def __init__(self, pipeline: Pipeline, remark: str = ""):
        self._pipeline, self._plan, self._store = pipeline, pipeline.plan, pipeline.store
        self._remark = remark

    def items(self) -> Iterator[Item]:
        """One item for each artefact, upstream first."""
        plan, placebo = self._plan, None
        if plan.recovered is not None:
            recovered = self._item("attacking", plan.recovered)
            parent = self._store.open(plan.recovered.provenance["parents"]["target"], "target")
            target = self._item("training the target", parent)
            judges = self._judges()
            yield from (target, recovered, *judges.values())
        else:
            target, classes = self._classifier("training the target", plan.target)
            yield target
            if plan.verb == "train_target":
                yield from self._cloud(target) if plan.cloud else ()
                return
            judges = self._judges() if plan.verb == "evaluate" else {}
            yield from judges.values()
            *before, recovered = self._attack(target, classes)
            yield from (*before, recovered)
            if self._pipeline.placebo is not None:
                *before, placebo = _Looking(self._pipeline.placebo, " (placebo)").attacked()
                yield from (*before, placebo)
        if plan.verb == "evaluate":
            yield self._result(target, recovered, judges, placebo)

    def attacked(self) -> Iterator[Item]:
        """The target and the attack alone; what was recovered comes last."""
        target, classes = self._classifier("training the target", self._plan.target)
        yield target
        yield from self._attack(target, classes)

    def _attack(self, target: Item, classes: int) -> Iterator[Item]:
        pipeline = self._pipeline
        node = pipeline.attack_node(classes)
        attack = node.build()
        on = target.artefact.recipe
        probe = functools.partial(Probe, pipeline, node, target.artefact)
        if self._plan.stored_prior is not None:
            stored = prior = self._plan.stored_prior
            yield self._item("training the prior", prior, on=on)
        else:
            prior, stored = pipeline.prior_draft(target.artefact), None
            if pipeline.blank_prior[1].learns:
                steps = pipeline.blank_prior[1].fit_steps(pipeline.public)
                asked = on if pipeline.blank_prior[1].asks else None
                item = self._item("training the prior", prior, steps, asked, lambda: probe().learned())
                stored = item.artefact
                yield item
        released = pipeline.released_draft(target.artefact)
        if released is not None:
            *before, item = self._released([released], target, pipeline.setting.evidence.cut)
            released = item.artefact
            yield from (*before, item)
        made_of = node, target.artefact, prior.recipe, stored
        prepared, attempt = None, probe(stored)
        if attack.prepares:
            draft = pipeline.prepared_draft(*made_of)
            item = self._item("preparing the attack", draft, on=on, measure=attempt.preparation)
            attempt.prepared = item.artefact
            if attack.asks_edge:
                asked = pipeline.released_draft(target.artefact, pipeline.asked_of_edge())
                yield self._item("releasing features of public images", asked, on=on)
            prepared = item.artefact
            yield item
        groups = -(-len(pipeline.collected) // attack.group)
        steps = 1 if attack.steps is None else attack.steps * groups
        draft = pipeline.recovered_draft(*made_of, prepared, released)
        yield self._item("attacking", draft, steps, on, attempt.attacked)

    def _cloud(self, target: Item) -> Iterator[Item]:
        """The cloud's half, and what the edge releases for it."""
        pipeline = self._pipeline
        training = pipeline.split_training(self._plan.target)
        names = pipeline.names_with(target.artefact)
        wanted = [pipeline.release_draft(target.artefact, request, names) for request in training.requests().values()]
        *before, train, test = self._released(wanted, target, self._plan.target.cut)
        yield from (*before, train, test)
        draft = training.draft(target.artefact, {"released_train": train.artefact, "released_test": test.artefact})
        yield self._item("training the cloud", draft, self._plan.cloud.arguments.get("epochs", 1))

    def _released(self, drafts: Sequence[Draft], target: Item, cut: str | None) -> Iterator[Item]:
        """What the edge releases, and before it what the defense there needs: it is made for the first of them."""
        on = target.artefact.recipe
        wanted = self._pipeline.equipment(target.artefact, cut)
        if wanted is not None and wanted.learned is not None:
            steps = wanted.prior.fit_steps(wanted.public)
            yield self._item("training the prior of the defense", wanted.learned, steps)
        if wanted is not None and wanted.prepared is not None:
            yield self._item("preparing the defense", wanted.prepared, on=on)
        for draft in drafts:
            yield self._item("releasing features", draft, on=on)

    def _judges(self) -> dict[str, Item]:
        """The evaluators, which are made before an attack is spent on them."""
        plans = self._plan.evaluators.items()
        return {name: self._classifier(f"training the evaluator {name}", plan)[0] for name, plan in plans}

    def _result(self, target: Item, recovered: Item, judges: Mapping[str, Item], placebo: Item | None) -> Item:
        known = {name: item.artefact for name, item in judges.items()}
        draft = self._pipeline.result_draft(recovered.artefact, target.artefact, known, placebo and placebo.artefact)
        return self._item("judging", draft, on=target.artefact.recipe)

    def _classifier(self, what: str, plan: TargetPlan) -> tuple[Item, int]:
        """A classifier, and the classes it knows."""
        job = job_of(self._pipeline.session, plan)
        measure = functools.partial(training, self._pipeline.session, job)
        item = self._item(what, job.draft, plan.recipe.arguments.get("epochs", 1), measure=measure)
        return item, item.artefact.metrics["classes"] if item.found else len(job.images.names)

    def _item(
        self,
        what: str,
        draft: Artefact | Draft,
        units: int = 1,
        on: Mapping[str, object] | None = None,
        measure: Callable[[], Cost | None] | None = None,
    ) -> Item:
        found = draft if isinstance(draft, Artefact) else self._store.find(draft)
        return Item(f"{what}{self._remark}", found or draft, units, on, found is not None, measure)
