"""Split training, carried out: the edge releases the private training pictures once, and the cloud's half, drawn anew,
learns from what arrives. It is tested twice: on features as they are released, and on features as the edge computed
them, because a head that learned from protected features may say little of clean ones (card split_inference.md)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from midefense.datasets.splits import digest
from midefense.evidence.base import Request
from midefense.pipeline.classifiers import StoredTarget, rebuild_classifier, taught
from midefense.pipeline.release import released_artefact, released_of
from midefense.pipeline.session import Session
from midefense.plan.bind import Node
from midefense.plan.facts import drawn
from midefense.plan.read import TargetPlan, name_of
from midefense.store.artefacts import Artefact, Draft
from midefense.store.lineage import lineage
from midefense.store.store import Work
from midefense.tracking.progress import consume
from midefense.training.cloud import cloud_logits, fit_cloud, mean_right
from midefense.training.inference import mean_over_attributes, told_attributes
from midefense.types import Images

TOGETHER = 128


class SplitTraining:
    """One cloud to have: the `plan` of a target whose edge releases, the recipe of the cloud, and the pictures."""

    def __init__(self, session: Session, plan: TargetPlan, recipe: Node) -> None:
        self.session, self.plan, self.recipe = session, plan, recipe
        splits = session.splits(plan.dataset)
        self.images = taught(plan, splits.private_train)
        self.test = taught(plan, splits.private_test)

    def artefact(self, target: StoredTarget) -> Artefact:
        """The trained cloud: found, or made of what the edge of the target releases."""
        store, draft = self.session.store, self.draft(target.artefact, {})
        if (found := store.find(draft)) is not None:
            return found
        store.require_may_make(draft, self.session.plan.missing)
        released = {role: released_artefact(self.session, target, request) for role, request in self.requests().items()}
        draft = self.draft(target.artefact, {f"released_{role}": artefact for role, artefact in released.items()})

        def make(work: Work) -> Artefact:
            return self._train(target, draft, work, released)

        return store.get_or_make(draft, make, self.session.plan.missing)

    def requests(self) -> dict[str, Request]:
        """What the edge is asked of the pictures to learn from and to test on, by role."""
        splits = self.session.splits(self.plan.dataset)
        known = {"train": (splits.private_train, self.images), "test": (splits.private_test, self.test)}
        return {
            role: Request(part.take(torch.isin(part.ids, images.ids).nonzero()[:, 0]), self.plan.cut)
            for role, (part, images) in known.items()
        }

    def draft(self, target: Artefact | Draft, released: Mapping[str, Artefact | Draft]) -> Draft:
        """What decides the cloud; `released` are the features it is made of, by role, where they are known already."""
        plan = self.plan
        own = plan.defense.build().only_releases
        recipe = {
            "kind": "cloud",
            "target": target.id,
            "cut": plan.cut,
            "recipe": self.recipe.recipe(),
            "images": digest(self.images, self.test),
            "seed": plan.seed,
        }
        recipe |= {"release": plan.defense.recipe()} if own else {}
        return Draft(
            kind="cloud",
            name=name_of(plan.names, "dataset", "architecture", "defense"),
            recipe=recipe,
            names=plan.names,
            **lineage({"target": target, **released}),
            command=self.session.command("train_target", plan.names),
        )

    def _train(self, target: StoredTarget, draft: Draft, work: Work, released: dict[str, Artefact]) -> Artefact:
        plan, device = self.plan, self.session.device
        cloud = drawn(plan.architecture, plan.seed).split(plan.cut)[1]
        recipe = self.recipe.build()
        with self.session.run(draft, "train_cloud", {"target": target.artefact}) as run:
            learned = released_of(released["train"], self.images.ids)
            progress = fit_cloud(cloud, learned, self.images.labels, recipe, plan.seed, device, work.load("state"))
            save = lambda step, state: work.save("state", state())  # noqa: E731 -- as `consume` takes it
            consume(progress, run, total=recipe.epochs, namespace="cloud", save=save)
            metrics = {}
            tested = {"released": released_of(released["test"], self.test.ids), "clean": self._clean(target, self.test)}
            for name, features in tested.items():
                metrics |= self._judged(name, cloud_logits(cloud, features, device))
            return self.session.finish(run, work, cloud.state_dict(), metrics)

    def _judged(self, name: str, logits: Tensor) -> dict[str, object]:
        """What the cloud makes of the test pictures' features."""
        right = mean_right(logits, self.test.labels)
        if not self.plan.attributes:
            return {f"{name}_test_accuracy_top1": right}
        told = told_attributes(logits, self.test.labels, self.test.names)
        auc = mean_over_attributes(told, "auc")
        means = {f"{name}_test_attribute_accuracy_mean": right, f"{name}_test_attribute_auc_mean": auc}
        return {**means, f"{name}_attributes": told}

    @torch.no_grad()
    def _clean(self, target: StoredTarget, images: Images) -> Tensor:
        """What the edge computes of pictures, before any defense."""
        model, device = rebuild_classifier(target.artefact, self.session.plan.allow), self.session.device
        edge = model.eval().split(self.plan.cut)[0].to(device)
        parts = torch.arange(len(images)).split(TOGETHER)
        return torch.cat([edge(images.floats(rows, device)).float().cpu() for rows in parts])
