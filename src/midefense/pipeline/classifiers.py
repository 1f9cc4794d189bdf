"""Classifiers, got or made: targets and evaluators alike."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from midefense import seeds
from midefense.compute import together
from midefense.datasets.attributes import by_attributes
from midefense.datasets.placebos import PLACEBOS, placebo_images
from midefense.datasets.splits import Splits, digest
from midefense.defenses.base import Defense
from midefense.pipeline.session import Session
from midefense.pipeline.start import start_of, take_body
from midefense.plan.bind import Node
from midefense.plan.facts import assembled, drawn, reads_weights, without_weights
from midefense.plan.read import TargetPlan, name_of, stored_target
from midefense.store.artefacts import Artefact, Draft
from midefense.store.store import POLL_SECONDS, Store, Work
from midefense.tracking.progress import consume
from midefense.tracking.run import Run
from midefense.training.inference import evaluate, logits_of, mean_over_attributes, told_attributes
from midefense.training.loop import fit
from midefense.training.recipe import Imported
from midefense.types import Images, Origin, Refused

# What a target is good for: the accuracy of classes, or how well attributes are told.
UTILITY = ("test_accuracy_top1", "test_attribute_accuracy_mean", "test_attribute_auc_mean")


@dataclass
class StoredTarget:
    """A target out of the store: the deployed network and the plan that made it. It holds no image."""

    artefact: Artefact
    plan: TargetPlan
    model: nn.Module


@dataclass
class TrainingJob:
    """All that training one classifier takes, and the draft of what comes of it."""

    plan: TargetPlan
    architecture: Node
    images: Images
    test: Images
    draft: Draft
    public: Images | None = None  # where the defense learns from answers about them


def get_classifier(session: Session, plan: TargetPlan) -> Artefact:
    """Find a classifier or train it. Ranks train together only where training is the verb that was called."""
    job = job_of(session, plan)
    if session.plan.verb == "train_target" and session.plan.compute.ranks() > 1:
        with together():
            return _train_together(session, job)
    make = functools.partial(_train, session, job, ranks=False)
    return session.store.get_or_make(job.draft, make, session.plan.missing)


def open_target(session: Session, artefact: Artefact) -> StoredTarget:
    """A stored target with its network."""
    return StoredTarget(artefact, stored_target(artefact, session.plan.allow), load_classifier(session, artefact))


def load_classifier(session: Session, artefact: Artefact) -> nn.Module:
    """The deployed network of a target artefact, frozen, in eval mode, on the session's device."""
    deployed = rebuild_classifier(artefact, session.plan.allow)
    return deployed.to(session.device).eval().requires_grad_(False)


def rebuild_classifier(artefact: Artefact, allow: Sequence[str] = ()) -> nn.Module:
    """The deployed network of a target artefact on the CPU."""
    return rebuild_defended(artefact, allow)[0]


def rebuild_defended(artefact: Artefact, allow: Sequence[str] = ()) -> tuple[nn.Module, Defense]:
    """The deployed network of a target artefact on the CPU, and the defense that rebuilt and sealed it."""
    plan = stored_target(artefact, allow)
    deployed, defense = _blank_defended(plan.architecture, plan)
    deployed.load_state_dict(artefact.tensors())
    return deployed, defense


def blank_classifier(architecture: Node, plan: TargetPlan) -> nn.Module:
    """The network of a plan as deployed, ready for weights of its own: none are read to start from."""
    return _blank_defended(architecture, plan)[0]


def _blank_defended(architecture: Node, plan: TargetPlan) -> tuple[nn.Module, Defense]:
    model = drawn(without_weights(architecture), plan.seed)
    model, defense = assembled(model, plan.defense, plan.seed, Origin.LOADED)
    return defense.seal(model, None), defense


def require_start(session: Session, plan: TargetPlan) -> None:
    """Refuse a classifier that is to start from weights that are not there, or whose body does not fit it."""
    if reads_weights(plan.architecture) or plan.recipe.arguments.get("start") is not None:
        job = job_of(session, plan)
        if session.store.find(job.draft) is None:
            beginning(session.store, job.architecture, plan)


def images_of(plan: TargetPlan, splits: Splits) -> tuple[Images, Images]:
    """What a classifier is trained and tested on: the private classes, or the public ones too; or attributes, which the
    public images alone may teach as well; or what tells nothing of the private classes (`datasets.placebos`)."""
    if plan.train_on in PLACEBOS:
        parts = placebo_images(plan.train_on, splits)
    elif plan.train_on == "all":
        parts = splits.everything()
    else:
        parts = splits.public if plan.train_on == "public" else splits.private_train, splits.private_test
    if not all(map(len, parts)):
        raise Refused("train_on=public: expected a dataset with public images, got one without; try train_on=private")
    return taught(plan, parts[0]), taught(plan, parts[1])


def taught(plan: TargetPlan, images: Images) -> Images:
    """Images under the labels that a classifier is taught: classes as they are, or attributes uint8 [N, K]."""
    return by_attributes(images, plan.dataset.build()) if plan.attributes else images


def classes_of(plan: TargetPlan, splits: Splits) -> int:
    """How many classes a classifier tells apart, or how many attributes it tells: the names of the images it is trained
    on."""
    if plan.attributes:
        return len(plan.attributes)
    public = len(splits.public.names) if plan.train_on == "all" and len(splits.public) else 0
    return splits.classes + public


def job_of(session: Session, plan: TargetPlan) -> TrainingJob:
    """The images of a plan, and the draft of its classifier. Refused if a stored one learned from other images."""
    asked, plan = plan, plan.as_trained
    splits = session.splits(plan.dataset)
    images, test = images_of(plan, splits)
    content = digest(images, test)
    _require_same(plan, content)
    public = _public_of(plan, splits)
    world = {"classes": len(images.names), "channels": images.pixels.shape[1], "size": images.pixels.shape[-1]}
    architecture, defense = plan.architecture.given(**world), plan.defense.given(**world)
    recipe = {
        "kind": "target",
        "dataset": plan.dataset.recipe(),
        "images": content,
        "train_on": plan.train_on,
        "architecture": architecture.recipe(),
        "defense": defense.recipe(),
        "recipe": plan.recipe.recipe(),
        "seed": plan.seed,
        **({} if public is None else {"public": digest(public)}),
    }
    draft = Draft(
        kind="target",
        name=f"{name_of(plan.names, 'dataset', 'architecture', 'defense')}{plan.remark}",
        recipe=recipe,
        names=plan.names,
        **start_of(plan, session.store),
        places=_places(dataset=plan.dataset, architecture=architecture, defense=defense, recipe=plan.recipe),
        command=session.command("train_target" if asked is session.plan.target else session.plan.verb, plan.names),
    )
    return TrainingJob(replace(plan, defense=defense), architecture, images, test, draft, public)


def _public_of(plan: TargetPlan, splits: Splits) -> Images | None:
    """The public images that a defense learns from after training; None where it learns from none."""
    if not plan.defense.build().learns_answers:
        return None
    if not len(splits.public):
        raise Refused(
            f"defense={plan.names.get('defense', 'own')}: expected a dataset with public images, which it learns from, "
            "got one without; try another dataset, or another defense"
        )
    return splits.public


def _train_together(session: Session, job: TrainingJob) -> Artefact:
    """All ranks train one model: the first rank claims the work, saves and writes, the others follow.

    While another process holds the claim the ranks meet at every poll: one long wait would outlast a collective.
    """
    fabric = session.plan.compute.fabric(ranks=True)
    store, draft, leads = session.store, job.draft, fabric.is_global_zero
    waiting = False
    while not fabric.broadcast(leads and store.find(draft) is not None):
        store.require_may_make(draft, session.plan.missing)
        work = store.work(draft)
        with work.claim("all") if leads else contextlib.nullcontext(False) as mine:
            if fabric.broadcast(mine and store.find(draft) is None):
                _train(session, job, work, ranks=True)
            elif leads and not waiting:
                work.say_waiting()
                waiting = True
        time.sleep(POLL_SECONDS)
    return store.find(draft)


def _train(session: Session, job: TrainingJob, work: Work, ranks: bool) -> Artefact | None:
    fabric = session.plan.compute.fabric(ranks=ranks)
    # what does not fit is refused before a run opens
    model, origin = beginning(session.store, job.architecture, job.plan)
    model, defense = assembled(model, job.plan.defense, job.plan.seed, origin)
    recipe = job.plan.recipe.build()
    if isinstance(recipe, Imported):
        recipe.refuse_training()
    with session.run(job.draft, "train_target", rank=fabric.global_rank) as run:
        model.to(fabric.device)
        state = work.load("state")
        fabric.barrier()  # nobody saves before everybody has read
        progress = fit(model, defense, job.images, recipe, job.plan.seed, fabric, state, job.test)
        save = (lambda step, state: work.save("state", state())) if fabric.is_global_zero else None
        consume(progress, run, total=recipe.epochs, namespace="train", save=save)
        if job.public is not None and fabric.is_global_zero:
            _learn_answers(defense, model, job, work, run)
        deployed = defense.seal(model, None)
        if not fabric.is_global_zero:
            return None
        metrics = {**utility_of(deployed, job, fabric.device), **defense.told()}
        trained = evaluate(deployed, job.images, device=fabric.device)["accuracy"]
        metrics["train_attribute_accuracy_mean" if job.plan.attributes else "train_accuracy_top1"] = trained
        return session.finish(run, work, deployed.state_dict(), metrics)


def _learn_answers(defense: Defense, model: nn.Module, job: TrainingJob, work: Work, run: Run) -> None:
    """What a defense learns of the trained network's answers to public images, saved as it goes."""
    rng = seeds.generator(job.plan.seed, "answers")
    progress = defense.learn_answers(model, job.public, rng, work.load("answers"))
    consume(progress, run, total=None, namespace="prepare", save=lambda step, state: work.save("answers", state()))


def utility_of(deployed: nn.Module, job: TrainingJob, device: torch.device) -> dict[str, object]:
    """What a target's artefact says of the network: test accuracy, classes, and how its weights were selected; of one
    that tells attributes, how well it tells each."""
    tested = evaluate(deployed, job.test, device=device)
    if job.plan.attributes:
        told = told_attributes(logits_of(deployed, job.test, device=device), job.test.labels, job.test.names)
        means = {f"test_attribute_{number}_mean": mean_over_attributes(told, number) for number in ("accuracy", "auc")}
        accuracy = {**means, "attributes": told}
    else:
        top5 = {"test_accuracy_top5": tested["accuracy_top5"]} if "accuracy_top5" in tested else {}
        accuracy = {"test_accuracy_top1": tested["accuracy"], **top5}
    return {
        **accuracy,
        "test_loss": tested["loss"],
        "classes": len(job.images.names),
        "selection": selection_of(job.plan),
    }


def utility_in(metrics: Mapping[str, object]) -> dict[str, float]:
    """The numbers among a target's metrics that say what it is good for."""
    return {name: metrics[name] for name in UTILITY if name in metrics}


def selection_of(plan: TargetPlan) -> str:
    """How the weights of a classifier were chosen: `last`, `validation`, `test_legacy`, or `unknown`."""
    return plan.recipe.arguments["select"]


def beginning(store: Store, architecture: Node, plan: TargetPlan) -> tuple[nn.Module, Origin]:
    """The network that training begins with, not yet rebuilt by the defense, and where its weights come from.

    Under `recipe.start` the body is that of another network, instead of the one the architecture would draw or read;
    the head is the one that was drawn for the classes of the dataset, under the target's own seed.
    """
    start = plan.recipe.arguments.get("start")
    if start is not None:
        model = drawn(without_weights(architecture), plan.seed)
        take_body(model, start.build(), store)
        return model, Origin.STARTED
    return drawn(architecture, plan.seed), Origin.STARTED if reads_weights(architecture) else Origin.DRAWN


def _require_same(plan: TargetPlan, content: str) -> None:
    """Refuse images other than those that a stored classifier learned from: there may be others in their place now."""
    if plan.images not in (None, content):
        places = {f"dataset.{path}": place for path, place in plan.dataset.places().items() if place is not None}
        where = ", ".join(f"{path}={place}" for path, place in places.items()) or "its dataset"
        raise Refused(
            f"{name_of(plan.names, 'dataset', 'architecture', 'defense')}: expected the images that it learned from "
            f"(digest {plan.images[:12]}), got others (digest {content[:12]}) in {where}; try the folder they were "
            "moved to, or name the dataset and the architecture instead, to train it anew"
        )


def _places(**nodes: Node) -> dict[str, str | None]:
    """File locations of several nodes, by path."""
    places = {f"{name}.{path}": value for name, node in nodes.items() for path, value in node.places().items()}
    return {path: None if value is None else str(value) for path, value in places.items()}
