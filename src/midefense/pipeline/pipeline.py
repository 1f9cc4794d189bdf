"""What happens when a verb runs: every artefact is found in the store or made, upstream first, each as its own run.

`Pipeline.target`, `.prior`, `.recovered` and `.result`: asking for one asks for what it needs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from midefense import seeds
from midefense.compute import machine_of
from midefense.datasets.roles import manifest_of, roles_of
from midefense.datasets.splits import Splits, digest, require_same_pictures
from midefense.evidence.base import Request
from midefense.metrics.base import Released
from midefense.oracle import Edge
from midefense.pipeline import judge
from midefense.pipeline.classifiers import (
    StoredTarget,
    classes_of,
    get_classifier,
    images_of,
    job_of,
    load_classifier,
    open_target,
    require_start,
    selection_of,
    utility_in,
)
from midefense.pipeline.cloud import judged_release
from midefense.pipeline.equipment import Equipment, equipment
from midefense.pipeline.evaluators import refuse_guessers, stored_judge, tested_judge
from midefense.pipeline.priors import fit_prior, frozen, load_prior
from midefense.pipeline.recovery import Recovery, StoredPrior, preparing_draws
from midefense.pipeline.release import draft_of, release
from midefense.pipeline.session import Session
from midefense.pipeline.split_training import SplitTraining
from midefense.pipeline.telling import numbers_of
from midefense.plan.awareness import deployed_classes, knew, known_classes
from midefense.plan.bind import Node, bind_recipe
from midefense.plan.read import (
    Plan,
    TargetPlan,
    baseline_of,
    cut_of,
    deployed_of,
    name_of,
    placebo_of,
    read_setting,
    setup_of,
)
from midefense.plan.whitelist import resolve
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact, Draft, content_id
from midefense.store.lineage import lineage
from midefense.store.store import Work
from midefense.tracking.run import Run
from midefense.tracking.wandb_mirror import under_sweep_agent
from midefense.types import Evidence, Images, Question, Refused, Setting

ROW_NAMES = ("dataset", "public", "architecture", "defense", "prior", "attack")
# What evaluators make of the private images, by evaluator and images: the last run's, for the next in this process.
KNOWN: dict[tuple[str, str], torch.Tensor] = {}
RECOVERED_NAME = ("dataset", "architecture", "defense", "prior", "attack")


class Pipeline:
    """Carries out one plan. What was found or made is kept for the length of the call."""

    def __init__(self, plan: Plan, session: Session | None = None):
        self.plan, self.session = plan, Session(plan) if session is None else session
        self.store, self.device = self.session.store, self.session.device
        self._images_checked = False

    @functools.cached_property
    def target(self) -> StoredTarget:
        """The target of the plan: got or made."""
        if self.plan.recovered is not None:
            artefact = self.store.open(self.plan.recovered.provenance["parents"]["target"], "target")
            job_of(self.session, self.plan.target)  # refuses other images than it learned from
        else:
            artefact = get_classifier(self.session, self.plan.target)
        found = open_target(self.session, artefact)
        if not self._only_releases:
            return found
        names = {**found.plan.names, "defense": self.plan.target.names.get("defense", "own")}
        return replace(found, plan=replace(found.plan, defense=self.release_node, names=names))

    @functools.cached_property
    def placebo(self) -> Pipeline | None:
        """The same attack on a target that was never told who is who, where a metric asks for it: all is made under the
        same seeds, from the same configuration, but for what that target is trained on."""
        train_on = placebo_of(self.plan)
        if train_on is None:
            return None
        target = replace(self.plan.target, train_on=train_on, images=None)
        plan = replace(self.plan, target=target, metrics={}, evaluators={})
        return Pipeline(plan, self.session.beside(plan, self.session.command("evaluate", self.plan.names)))

    @functools.cached_property
    def cloud(self) -> Artefact:
        """The cloud's half, trained on what the edge of the plan's target releases: got or made."""
        cut = replace(self.target.plan.architecture, aside=self.plan.target.architecture.aside)
        target = replace(self.target, plan=replace(self.target.plan, architecture=cut))
        return self.split_training(target.plan).artefact(target)

    def split_training(self, target: TargetPlan) -> SplitTraining:
        """How the cloud's half is trained on what the edge of a target releases, by the defense of the plan."""
        released = replace(target, defense=self.release_node) if self._only_releases else target
        return SplitTraining(self.session, released, self.plan.cloud)

    @property
    def _only_releases(self) -> bool:
        """Whether the defense of the plan has no part in the training of its target."""
        return self.plan.target.defense.build().only_releases

    @functools.cached_property
    def release_node(self) -> Node:
        """The defense of the plan, told what the dataset is like."""
        dataset = self.plan.target.dataset.build()
        classes = classes_of(self.plan.target, self.splits)
        return self.plan.target.defense.given(classes=classes, channels=dataset.channels, size=dataset.size)

    @functools.cached_property
    def splits(self) -> Splits:
        """The images of the target's dataset. An attack is handed `public` and `evidence` of them, and no more."""
        return self.session.splits(self.plan.target.dataset)

    @functools.cached_property
    def shown(self) -> dict[str, Splits]:
        """The pictures of the target's dataset as each evaluator is shown them: maybe of another size."""
        shown = {name: self.session.splits(plan.dataset) for name, plan in self.plan.evaluators.items()}
        for name, splits in shown.items():
            require_same_pictures(f"evaluators.{name}.size", self.splits, splits)
        return shown

    @functools.cached_property
    def public(self) -> Images:
        """The attacker's public images, in the shape of the private ones."""
        dataset = self.plan.target.dataset.build()
        return self.plan.public.build().public(self.splits, dataset.channels, dataset.size, self.session.cache)

    @functools.cached_property
    def collected(self) -> Evidence:
        """Whom the attack is to attack, one row each, before anything is observed of them or trained."""
        return self.plan.evidence.build().collect(self.splits)

    @functools.cached_property
    def evidence(self) -> Evidence:
        """What the attacker is handed, one row per target of the attack."""

        def released(request: Request) -> torch.Tensor:
            return release(self.session, self.target, replace(request, cut=cut_of(self.plan)))

        return self.plan.evidence.build().observe(self.collected, self.splits, released)

    def released_draft(self, target: Artefact | Draft, images: Images | None = None) -> Draft | None:
        """What the edge releases of the private images attacked, or of `images` of the attacker's own; None where the
        evidence is no such thing."""
        request = self.plan.evidence.build().request(self.splits)
        if request is None:
            return None
        request = replace(request, cut=cut_of(self.plan), images=request.images if images is None else images)
        return self.release_draft(target, request, self.names_with(target))

    def release_draft(self, target: Artefact | Draft, request: Request, names: Mapping[str, str]) -> Draft:
        """What the edge of the target gets asked."""
        release_only = self.release_node if self._only_releases else None
        return draft_of(self.session, target, self.plan.target, request, names, release_only)

    def equipment(self, target: Artefact | Draft, cut: str | None) -> Equipment | None:
        """What the defense of the plan needs before it releases anything at a cut."""
        if not self._only_releases:
            return None
        return equipment(self.session, target, self.plan.target, self.release_node, cut)

    def asked_of_edge(self) -> Images:
        """The public images that the attack of the plan asks the edge about while it prepares."""
        return self.plan.attack.build().asked_of_edge(self.public, preparing_draws(self.plan.seeds["attack"]))

    @functools.cached_property
    def edge(self) -> Edge:
        """The deployed edge for the attacker's own images: as it is asked for the evidence, under the same draws."""
        asked = self.plan.evidence.build().request(self.splits)
        if asked is None:
            raise Refused(
                f"attack ({self.plan.attack.target.__name__}) asks what leaves the edge, got evidence of which nothing "
                "is released; try evidence=released_features"
            )

        def released(images: Images) -> torch.Tensor:
            request = replace(asked, images=images, cut=cut_of(self.plan))
            return release(self.session, self.target, request).mean(0)

        return Edge(released)

    @property
    def question(self) -> Question:
        """What the attack is after, for a preparation that asks."""
        return Question(self.collected.labels, classes_of(self.plan.target, self.splits))

    @property
    def setting(self) -> Setting:
        """What is known now that the images were loaded, and nothing was trained: facts, and no image."""
        planned, evidence = read_setting(self.plan), self.collected
        observed = None if evidence.observed is None else tuple(evidence.observed.shape[1:])
        return replace(
            planned,
            dataset=replace(planned.dataset, classes=self.splits.classes),
            evidence=replace(planned.evidence, labels=tuple(evidence.labels.tolist()), observed=observed),
            describe=functools.partial(planned.describe, classes=classes_of(self.plan.target, self.splits)),
        )

    def check_images(self) -> None:
        """Look at all images that will be needed, so that wrong ones are refused before anything is trained."""
        if self._images_checked:
            return
        self._images_checked = True
        self.plan.attack.build().check(self.setting)
        if self.plan.evidence.target.points_at == "image":
            manifest_of(roles_of(self.splits, self.public))
        if self.plan.stored_prior is not None:
            self._require_own_prior(self.plan.stored_prior)
        else:
            self.plan.prior.target.require_files(self.plan.prior.arguments, self.plan.attack.build().needs)
            self.plan.prior.target.require_some(self.public)
        if self._compares_public:
            self._require_public_people()
        if self.placebo is not None:
            job_of(self.placebo.session, self.placebo.plan.target)
            self.placebo.check_images()
        for name, plan in self.plan.evaluators.items():
            images_of(plan, self.shown[name])
            require_start(self.session, plan)

    def _require_public_people(self) -> None:
        """Refuse a dataset without people to compare with, and one that has others at the size of an evaluator."""
        asking = next(name for name, node in self.plan.metrics.items() if node.target.compares_public)
        if not len(self.splits.public):
            raise Refused(
                f"metrics.{asking}: expected a dataset with public people, to compare with those attacked, got one "
                "without; try a dataset that keeps some of its people public, or other metrics"
            )
        for name, splits in self.shown.items():
            if not torch.equal(splits.public.ids, self.splits.public.ids):
                raise Refused(
                    f"evaluators.{name}.size: expected the public pictures of the target's dataset in their order, got "
                    f"others; try evaluators.{name}.size=null"
                )

    @functools.cached_property
    def prior(self) -> StoredPrior:
        """The prior of the plan: trained on public images, or found, or in no need of training."""
        if self.plan.stored_prior is not None:
            return self._named_prior(self.plan.stored_prior)
        (_, prior), draft = self.blank_prior, self.prior_draft(self.target.artefact)
        if not prior.learns:
            return StoredPrior(frozen(prior, self.device), None, draft.recipe)
        artefact = self.store.get_or_make(draft, functools.partial(self._fit, draft, prior), self.plan.missing)
        return StoredPrior(load_prior(prior, artefact, self.device), artefact, draft.recipe)

    @functools.cached_property
    def blank_prior(self) -> tuple[Node, Prior]:
        """The prior of the plan as it is before it learns, and what it was built from."""
        dataset = self.plan.target.dataset.build()
        classes = classes_of(self.plan.target, self.splits)
        node = self.plan.prior.given(channels=dataset.channels, size=dataset.size, classes=classes)
        with seeds.isolated(self.plan.seeds["prior"], "prior", "init"):
            return node, node.build()

    def prior_draft(self, target: Artefact | Draft) -> Draft:
        """The prior of the plan; one that learns nothing is never stored."""
        node, prior = self.blank_prior
        recipe, asked, names = {"kind": "prior", "prior": node.recipe()}, None, self.names_with(target)
        if prior.learns:
            recipe |= {"public": digest(self.public), "seed": self.plan.seeds["prior"]}
        if prior.asks is not None:
            recipe |= {"target": target.id, "access": prior.asks.value}
            asked = target
        return Draft(
            kind="prior",
            name=name_of(names, "dataset", "public", "prior"),
            recipe=recipe,
            names={k: v for k, v in self.plan.names.items() if k in ("public", "prior")},
            **lineage({"target": asked}),
            places=node.places(),
            command=self.session.command("attack", names),
        )

    @functools.cached_property
    def recovered(self) -> Artefact:
        """What the attack of the plan recovered: got or made."""
        if self.plan.recovered is not None:
            return self.plan.recovered
        self.check_images()
        plan, target, prior = self.plan, self.target, self.prior
        node = self.attack_node(target.artefact.metrics["classes"])
        attack = node.build()
        question = self.question if attack.asks_question else None
        recovery = Recovery(
            self.session, attack, target, prior, self.evidence, plan.seeds["attack"], question, cut_of(plan)
        )
        made_of = target.artefact, prior.recipe, prior.artefact
        released = self.released_draft(target.artefact)
        released = released and self.store.find(released)
        if attack.prepares:
            edge = self.edge if attack.asks_edge else None
            recovery.prepare(self.prepared_draft(node, *made_of), self.public, edge)
        return recovery.recover(self.recovered_draft(node, *made_of, recovery.prepared, released))

    def attack_node(self, classes: int) -> Node:
        """The attack of the plan; networks of its own are told the classes the target knows, and its images' shape."""
        dataset = self.plan.target.dataset.build()
        return self.plan.attack.given(channels=dataset.channels, size=dataset.size, classes=classes)

    def prepared_draft(
        self, node: Node, target: Artefact | Draft, prior: Mapping[str, object], stored_prior: Artefact | Draft | None
    ) -> Draft:
        """What an attack (`node`) does once for all targets. `prior` is the prior's recipe."""
        attack = node.build()
        recipe = {"preparation": attack.preparation(node.recipe()), "access": attack.access.value}
        recipe |= {"public": digest(self.public)}
        recipe |= {"question": self.question.plain()} if attack.asks_question else {}
        source = self.plan.evidence.build()
        recipe |= {"cut": cut_of(self.plan)} if source.releases else {}
        asked = source.request(self.splits) if attack.asks_edge else None
        recipe |= {"edge": {"repeats": asked.repeats, "transport": asked.transport}} if asked else {}
        recipe |= self._release_recipe() if asked else {}
        return self._attack_draft("prepared", recipe, target, prior, {"prior": stored_prior})

    def recovered_draft(
        self,
        node: Node,
        target: Artefact | Draft,
        prior: Mapping[str, object],
        stored_prior: Artefact | Draft | None,
        prepared: Artefact | Draft | None,
        released: Artefact | Draft | None = None,
    ) -> Draft:
        """What an attack (`node`) recovers, of what was `released` if that is its evidence. `prior` is the prior's
        recipe."""
        evidence = {"evidence": self.plan.evidence.recipe(), "labels": self.collected.labels.tolist()}
        # what is observed follows from the target, the evidence and the ids: its own hash would differ by device
        by_image = self.plan.evidence.build().points_at == "image"
        evidence |= {"ids": self.collected.ids.tolist()} if by_image else {}
        evidence |= {"cut": cut_of(self.plan)} if self.plan.evidence.target.releases else {}
        evidence |= self._release_recipe()
        recipe = {"attack": node.recipe(), **evidence, "prepared": prepared.id if prepared else None}
        parents = {"prior": stored_prior, "prepared": prepared, "released": released}
        return self._attack_draft("recovered", recipe, target, prior, parents)

    def _release_recipe(self) -> dict[str, object]:
        """The defense, where evidence is released by one that the target's own recipe does not name."""
        released = self.plan.evidence.target.releases and self._only_releases
        return {"release": self.release_node.recipe()} if released else {}

    @functools.cached_property
    def result(self) -> Artefact:
        """The row of numbers of one recovered artefact: got or made."""
        if self.plan.recovered is None and self.plan.missing == "make":
            self.check_images()
            _ = self.target, self.evaluators  # before the attack, which may take hours: a guesser is refused first
        recovered, target, evaluators = self.recovered, self.target, self.evaluators
        placebo = None if self.placebo is None else self.placebo.recovered
        draft = self.result_draft(recovered, target.artefact, evaluators, placebo)
        known = under_sweep_agent() and self.store.find(draft)
        if known:  # an agent waits for a run of its own, also where the store has the row already
            with self._judging(draft, evaluators) as run:
                self._tell(run, known.metrics, evaluators)
        make = functools.partial(self._judge, draft, evaluators, content_id(draft.recipe["protocol"]))
        return self.store.get_or_make(draft, make, self.plan.missing)

    def result_draft(
        self,
        recovered: Artefact | Draft,
        target: Artefact | Draft,
        evaluators: Mapping[str, Artefact | Draft],
        placebo: Artefact | Draft | None = None,
    ) -> Draft:
        """The row of numbers of one recovered artefact, less what was recovered from a `placebo`."""
        evidence = recovered.recipe["evidence"]
        seen = resolve(evidence["_target_"], self.plan.allow).of_the_attacker
        matched = {"ids": recovered.recipe["ids"], "originals": self._originals} if "ids" in recovered.recipe else {}
        if "cut" in recovered.recipe:  # wherever it was said
            seen, matched = (*seen, "cut"), {**matched, "cut": recovered.recipe["cut"]}
        protocol = {
            "evidence": {name: value for name, value in evidence.items() if name not in seen},
            "labels": recovered.recipe["labels"],
            **matched,
            "references": self.splits.references_hash,
            **({"public": digest(self.splits.public)} if self._compares_public else {}),
            "evaluators": {name: artefact.id for name, artefact in evaluators.items()},
            "metrics": {name: node.recipe() for name, node in self.plan.metrics.items()},
        }
        judges = {f"evaluator.{name}": artefact for name, artefact in evaluators.items()}
        names = _names_of(recovered)
        return Draft(
            kind="result",
            name=recovered.name,
            recipe={
                "kind": "result",
                "recovered": recovered.id,
                **({"placebo": placebo.id} if placebo else {}),
                "protocol": protocol,
            },
            names=names,
            **lineage({"recovered": recovered, "target": target, **judges, "placebo": placebo}),
            command=self.session.command("evaluate", names),
        )

    @property
    def _judges_release(self) -> bool:
        """Whether a metric asks what was released, which may take long to do again."""
        return any(node.target.judges_release for node in self.plan.metrics.values())

    @property
    def _compares_public(self) -> bool:
        """Whether a metric compares with the public people of the dataset."""
        return any(node.target.compares_public for node in self.plan.metrics.values())

    @property
    def _originals(self) -> str:
        """SHA-256 of all private images: which one an id names follows from them."""
        return digest(self.splits.private_train, self.splits.private_test)

    def names_with(self, target: Artefact | Draft) -> dict[str, str]:
        """What people call the parts of the plan and of its target; one that learned from another target says so."""
        names = {**_names_of(target), **self.plan.names}
        if other := learned_elsewhere(self.plan.stored_prior, target):
            names["prior"] += f" (learned from {other})"
        return names

    @functools.cached_property
    def evaluators(self) -> dict[str, Artefact]:
        """The classifiers that judge: got or made. One that only guesses is refused, before an attack is spent on it;
        where a stored row was judged by it, that row may still be read."""
        found = {name: get_classifier(self.session, plan) for name, plan in self.plan.evaluators.items()}
        judges = {}
        for name, artefact in found.items():
            plan = self.plan.evaluators[name]
            judges[name] = stored_judge(artefact, images_of(plan, self.shown[name])[1])
        if any(judge.trial.guessed for judge in judges.values()) and not self._judged_before(found):
            refuse_guessers(judges, self.plan.judge_at_chance)
        return found

    def _judged_before(self, evaluators: Mapping[str, Artefact]) -> bool:
        wanted = {artefact.reference for artefact in evaluators.values()}
        return any(wanted <= set(row.provenance["parents"].values()) for row in self.store.list("result"))

    def _attack_draft(
        self,
        kind: str,
        recipe: Mapping[str, object],
        target: Artefact | Draft,
        prior: Mapping[str, object],
        parents: Mapping[str, Artefact | Draft | None],
    ) -> Draft:
        names = self.names_with(target)
        common = {"target": target.id, "prior": prior, "seed": self.plan.seeds["attack"]}
        return Draft(
            kind=kind,
            name=f"{name_of(names, *RECOVERED_NAME)}{self.plan.target.remark}",
            recipe={"kind": kind, **recipe, **common},
            names=names,
            **lineage({"target": target, **parents}),
            places=self.plan.prior.places(),
            command=self.session.command("attack", names),
        )

    def _fit(self, draft: Draft, prior: Prior, work: Work) -> Artefact:
        target = None if prior.asks is None else self.target
        return fit_prior(self.session, draft, prior, self.public, self.plan.seeds["prior"], work, target)

    def _judge(self, draft: Draft, evaluators: dict[str, Artefact], protocol: str, work: Work) -> Artefact:
        recovered, target = self.recovered, self.target
        with self._judging(draft, evaluators) as run:
            by_content = {
                name: (artefact.content, self.shown[name].references_hash) for name, artefact in evaluators.items()
            }
            known = {name: KNOWN[content] for name, content in by_content.items() if content in KNOWN}
            networks = {name: load_classifier(self.session, artefact) for name, artefact in evaluators.items()}
            judges = {
                name: tested_judge(artefact, networks[name], self.shown[name].private_test, self.device)
                for name, artefact in evaluators.items()
            }
            refuse_guessers(judges, self.plan.judge_at_chance)
            prior = self._prior_of(recovered)
            judgement = judge.judge(
                recovered=recovered,
                prior=prior,
                target=target.model,
                splits=self.splits,
                evaluators=networks,
                metrics={name: node.build() for name, node in self.plan.metrics.items()},
                utility=utility_in(target.artefact.metrics),
                tells_classes=not target.plan.attributes,
                device=self.device,
                known=known,
                shown=self.shown,
                truncated=self._truncated(recovered, prior),
                released=self._released(recovered) if self._judges_release else None,
                placebo=self._placebo_recovered(),
            )
            KNOWN.clear()  # the runs of a sweep share an evaluator; another's features would only take memory
            KNOWN.update({by_content[name]: features for name, features in known.items()})
            row = {
                **{name: draft.names.get(name, "own") for name in ROW_NAMES},
                **self._row(recovered, evaluators),
                "protocol": protocol,
                "candidates": judgement.candidates,
                **({"unreached": list(judgement.unreached)} if judgement.unreached else {}),
                "date": time.strftime("%Y-%m-%d"),
                "device": str(self.device),
                "command": draft.command,
                "evaluators": {name: one.plain() for name, one in judges.items()},
                "made_on": self._made_on(recovered, evaluators),
            }
            self._tell(run, judgement.report(), evaluators)
            run.pictures("recovered", judgement.picture_rows(self.splits.class_names), judgement.picture_columns)
            return self.session.finish(run, work, judgement.tensors, {"row": row, **judgement.report()})

    def _placebo_recovered(self) -> tuple[Artefact, Prior] | None:
        """What was recovered from the placebo, and the prior that decodes it."""
        if self.placebo is None:
            return None
        return self.placebo.recovered, self._prior_of(self.placebo.recovered)

    def _released(self, recovered: Artefact) -> Released | None:
        """What the edge of the target released of the private images attacked; None where it released nothing."""
        source = bind_recipe(recovered.recipe["evidence"], {}, self.plan.allow).build()
        request = source.request(self.splits)
        if request is None:
            return None
        return judged_release(self.session, self.target, replace(request, cut=recovered.recipe["cut"]))

    def _judging(self, draft: Draft, evaluators: Mapping[str, Artefact]) -> Run:
        """The run that judges, or says again what was judged."""
        judges = {f"evaluator.{name}": artefact for name, artefact in evaluators.items()}
        return self.session.run(
            draft, "evaluate", {"recovered": self.recovered, "target": self.target.artefact, **judges}
        )

    def _tell(self, run: Run, report: Mapping, evaluators: Mapping[str, Artefact]) -> None:
        """The numbers of a result, with the target's, the attack's and the evaluators' own."""
        bill = self.recovered.provenance["bill"]
        further = {f"cost/{name}": value for name, value in bill.items() if isinstance(value, int | float)}
        further |= {f"utility/{name}": value for name, value in utility_in(self.target.artefact.metrics).items()}
        for name, artefact in evaluators.items():
            further[f"evaluator_test_accuracy_top1/{name}"] = artefact.metrics["test_accuracy_top1"]
        run.result(*numbers_of(report, further))

    def _named_prior(self, artefact: Artefact) -> StoredPrior:
        """The prior of the store that the plan names."""
        self._require_own_prior(artefact)
        return StoredPrior(load_prior(self.plan.prior.build(), artefact, self.device), artefact, artefact.recipe)

    def _require_own_prior(self, prior: Artefact) -> None:
        """Refuse a named prior that learned from another target than that of the plan, unless that is asked for."""
        target = job_of(self.session, self.plan.target).draft
        if (other := learned_elsewhere(prior, target)) and not self.plan.foreign_prior:
            raise Refused(
                f"prior_artefact={prior.reference}: expected a prior of {target.reference}, or of no target, got one "
                f"that learned from {other}; try that as target=, or foreign_prior=true, which every row then says"
            )

    def _row(self, recovered: Artefact, evaluators: dict[str, Artefact]) -> dict:
        """What a row says of the artefacts it judges."""
        target, recipe = self.target, recovered.recipe
        return {
            "access": recipe["attack"]["access"],
            **self._learned_from(recovered),
            "seeds": {"target": target.plan.seed, "prior": recipe["prior"].get("seed"), "attack": recipe["seed"]},
            "setup": setup_of(target.artefact.recipe, recipe),
            "baseline": baseline_of(target.artefact.recipe, recipe),
            "deployed": deployed_of(target.artefact.recipe, recipe),
            "selection": selection_of(target.plan),
            **self._ladder(recipe),
            **self._awareness(recovered),
            "classes": len(set(recipe["labels"])),
            "class_names": {str(label): self.splits.class_names[label] for label in sorted(set(recipe["labels"]))},
            "stopped": recovered.metrics["stopped"],
            "ids": {
                "target": target.artefact.id,
                "prior": recovered.provenance["parents"].get("prior", ""),
                "recovered": recovered.id,
                "evaluators": {name: artefact.id for name, artefact in evaluators.items()},
            },
        }

    def _ladder(self, recipe: Mapping) -> dict[str, object]:
        """What a row says of an attack on private images: how many, and at which rung of the ladder it stands."""
        if "ids" not in recipe:
            return {}
        rung = {"rung": recipe["attack"]["rung"]} if recipe["attack"].get("rung") else {}
        return {"matched": "image", "images": len(set(recipe["ids"])), **rung}

    def _awareness(self, recovered: Artefact) -> dict[str, object]:
        """What a row says of the defenses that its attack was made to overcome, and whether what is deployed is among
        them. Of what was recovered before that was kept, the words that led to it say it; {} where none did."""
        known = recovered.metrics.get("knows")
        if known is None and self.plan.recovered is not None:
            return {}
        if known is None:
            known = known_classes(self.plan.attack, self.plan.allow)
        deployed = deployed_classes(self.target.artefact.recipe["defense"], recovered.recipe.get("release"))
        return {"knows": sorted(known), "knew": knew(known.values(), deployed)}

    def _learned_from(self, recovered: Artefact) -> dict[str, str]:
        """What a row says of a prior that learned from another target than the one attacked."""
        prior = recovered.provenance["parents"].get("prior")
        other = learned_elsewhere(self.store.open(prior, "prior") if prior else None, self.target.artefact)
        return {"prior_learned_from": other} if other else {}

    def _made_on(self, recovered: Artefact, evaluators: Mapping[str, Artefact]) -> dict[str, str]:
        """On which machine each part of a row was computed: numbers depend on its threads or its kind."""
        parts = {"target": self.target.artefact, "attack": recovered}
        if prior := recovered.provenance["parents"].get("prior"):
            parts["prior"] = self.store.open(prior, "prior")
        parts |= {f"evaluator {name}": artefact for name, artefact in evaluators.items()}
        machines = {part: made_on(artefact.provenance) for part, artefact in parts.items()}
        return {**machines, "evaluate": machine_of(self.device)}

    def _truncated(self, recovered: Artefact, prior: Prior) -> Callable[[int, torch.Generator], torch.Tensor] | None:
        """How the attack that recovered an artefact draws its starts, where it draws them nearer to the mean than the
        prior does: unattacked samples must be drawn so too, to be held against what it found."""
        recipe = recovered.recipe["attack"].get("init", {})
        if "psi" not in recipe:
            return None
        init = bind_recipe(recipe, {}, self.plan.allow).build()
        return (lambda count, rng: init.draw(prior, rng, count)[1]) if init.truncated else None

    def _prior_of(self, recovered: Artefact) -> Prior:
        """The prior that decodes a recovered artefact, rebuilt from what the artefact says of it."""
        reference = recovered.provenance["parents"].get("prior")
        artefact = self.store.open(reference, "prior") if reference else None
        places = (artefact or recovered).places_within("prior")
        prior = bind_recipe(recovered.recipe["prior"]["prior"], places, self.plan.allow).build()
        return load_prior(prior, artefact, self.device) if artefact else frozen(prior, self.device)


def learned_elsewhere(prior: Artefact | None, target: Artefact | Draft) -> str:
    """The target that a stored prior learned from, by its reference; "" if it is `target`, or none."""
    if prior is None or prior.recipe.get("target", target.id) == target.id:
        return ""
    return prior.provenance["parents"]["target"]


def _names_of(artefact: Artefact | Draft) -> dict[str, str]:
    return artefact.names if isinstance(artefact, Draft) else artefact.provenance["names"]


def made_on(provenance: Mapping[str, object]) -> str:
    """On which machine an artefact was made; before it was recorded in words, device and threads were."""
    return provenance.get("machine") or f"{provenance['device']}, {provenance['threads']} threads"
