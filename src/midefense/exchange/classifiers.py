"""Classifiers and priors that others trained: files of weights into the store, and out of it again.

    midefense import FILE --as target --architecture vgg16_64 --dataset celeba
    midefense export REF FILE

Read are the files of Plug & Play Attacks (`model_state_dict`), of KED-MI, Re-thinking MI, PLG-MI and Defend_MI
(`state_dict`), of MIBench (`state_dict`, `config`, `model_name`), and plain state dicts, by torch or as safetensors.
Names are translated by `architectures.state_names`; nothing missing or left over is accepted. What comes in is a target
like any other, with an accuracy that was measured here, on the test images of its dataset.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from midefense.architectures.checkpoints import Checkpoint, read_checkpoint
from midefense.architectures.state_names import (
    from_published,
    may_lack,
    named_as,
    prefixes_of,
    published_names,
    to_published,
)
from midefense.datasets.splits import digest
from midefense.defenses.base import NoDefense
from midefense.exchange.accuracy import doubt_of, require_accuracy
from midefense.exchange.class_order import order_of, published_names_of, read_names, refuse_order, suspect_order
from midefense.exchange.roles import looks_like
from midefense.foreign import path_of, resolved
from midefense.pipeline.classifiers import TrainingJob, blank_classifier, job_of, rebuild_classifier, utility_of
from midefense.pipeline.session import Session
from midefense.plan.compose import compose
from midefense.plan.overrides import parsed
from midefense.plan.read import read_plan
from midefense.store.artefacts import Artefact, file_sha256, savable, write_whole
from midefense.store.names import require_name
from midefense.store.store import Store, Work
from midefense.training.inference import answers_of
from midefense.types import Refused, refuse_unknown

FORMATS = ("published", "plain")
SUFFIXES = (".pt", ".pth", ".tar", ".safetensors")
HEAD = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class Source:
    """A file of weights that was read: `sha256` in hex, `format` in a word, and what was `chosen` of it."""

    file: Path
    sha256: str
    format: str
    checkpoint: Checkpoint
    chosen: Mapping[str, str]

    def origin(self) -> dict[str, str]:
        """What decides which tensors they are: the file by its content, and what was chosen of it."""
        return {"sha256": self.sha256, "format": self.format, **self.chosen}


@dataclass(frozen=True)
class Choice:
    """What to take of a file that holds more than one state dict, or one under other names.

    entry: of a checkpoint, with dots for one that lies deeper; None: the only state dict there is.
    strip: a prefix; the tensors under it are taken, without it, and the others left.
    add: a prefix that all names get.
    """

    entry: str | None = None
    strip: str | None = None
    add: str | None = None

    def made(self) -> dict[str, str]:
        """The choices that were made, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read_source(file: str | Path, choice: Choice | None = None) -> Source:
    """Read a file of weights. Raises `Refused` for what is no file of tensors, and for a choice that it does not offer;
    no code of it is run."""
    choice = choice or Choice()
    file = resolved(file)
    checkpoint = read_checkpoint(file, choice.entry)
    state = renamed(checkpoint.state, choice.strip, choice.add)
    chosen = choice.made()
    return Source(file, file_sha256(file), format_of(file, checkpoint), replace(checkpoint, state=state), chosen)


def renamed(state: Mapping[str, Tensor], strip: str | None, add: str | None) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix `strip`, without it and behind the prefix `add`."""
    strip, add = (prefix if not prefix or prefix.endswith(".") else f"{prefix}." for prefix in (strip or "", add or ""))
    taken = {add + name.removeprefix(strip): tensor for name, tensor in state.items() if name.startswith(strip)}
    if not taken:
        first = {name.split(".")[0] for name in state if "." in name}
        raise refuse_unknown("--strip", strip.removesuffix("."), sorted(first))
    return taken


def format_of(file: Path, checkpoint: Checkpoint) -> str:
    """A word for the kind of file: `safetensors`, `state_dict` (alone), or whose checkpoints look like it."""
    if checkpoint.entry is None:
        return "safetensors" if file.suffix == ".safetensors" else "state_dict"
    if checkpoint.entry == "state_dict":
        return "mibench" if "model_name" in checkpoint.others else "ked_mi"
    return {"model_state_dict": "plug_and_play_attacks"}.get(checkpoint.entry, "checkpoint")


def import_classifier(
    store: Store,
    file: str | Path,
    *,
    role: str,
    architecture: str,
    dataset: str,
    overrides: Sequence[str] = (),
    name: str | None = None,
    class_names: str | Path | None = None,
    reorder: bool = False,
    expect: float | None = None,
    select: str = "unknown",
    choice: Choice | None = None,
) -> Artefact:
    """A target of the store with the weights of `file`; found if it was imported before.

    Args:
        role: `target` or `evaluator` (a target without a defense).
        architecture, dataset: options of their groups; `overrides` are those of `train_target.py`.
        name: what the artefact is called; None calls it by its parts.
        class_names: a file with the classes in the order of the head, see `class_order.read_names`; None takes those
            in the checkpoint, if any.
        reorder: whether to put the rows of the head in the dataset's order of these names, instead of refusing another.
        expect: the accuracy that its authors report; refused if the measured one lies `accuracy.TOLERANCE` below.
        select: how its authors chose the epoch, see `Recipe`.
        choice: what to take of the file.
    Raises:
        Refused: the file, its names, shapes, role, classes or their order, or its accuracy are not those expected.
    """
    if beside := [override.text for override in parsed(overrides) if override.option == "recipe"]:
        raise Refused(f"import: expected no recipe, as nothing is trained, got {beside[0]}; leave it out")
    if expect is not None and not 0 <= expect <= 1:
        raise Refused(f"--expect: expected an accuracy in [0, 1], got {expect}; try {expect / 100}")
    if name is not None:
        require_name(name, "--name")
    source = read_source(file, choice)
    words = [f"dataset={dataset}", f"architecture={architecture}", *overrides]
    config, choices = compose("train_target", words)
    config["store"] = [str(root) for root in store.roots]
    config["recipe"] = {
        "_target_": "midefense.training.recipe.Imported",
        "file": str(source.file),
        **source.origin(),
        "select": select,
    }
    plan = read_plan("train_target", config, {**choices, "recipe": "imported"}, words)
    if plan.target.attributes:
        raise Refused("import: expected a network that tells classes apart, got dataset.label=attributes; leave it out")
    if role == "evaluator" and not issubclass(plan.target.defense.target, NoDefense):
        raise Refused("--as evaluator: expected a network without a defense, got defense=...; try --as target")
    session = Session(plan)
    names = published_names_of(source.checkpoint.others) if class_names is None else read_names(class_names)
    job = _in_order(job_of(session, plan.target), session, names, reorder)
    draft = job.draft if name is None else replace(job.draft, name=name)
    known = store.find(draft)
    if known is not None:
        require_accuracy(known.metrics["test_accuracy_top1"], len(job.test), len(job.test.names), expect, "")
        return known
    return store.get_or_make(draft, lambda work: _measured(session, work, job, source, expect))


def _in_order(job: TrainingJob, session: Session, names: Sequence[str] | None, reorder: bool) -> TrainingJob:
    """The job, with the order of the head's rows in its recipe where they are to be put in the dataset's order."""
    if names is None:
        if reorder:
            raise Refused("--reorder: expected class names, got none in the file; try --class-names FILE")
        return job
    if not reorder:
        refuse_order(names, job.images.names)
        return job
    arguments = {**job.plan.recipe.arguments, "order": order_of(names, job.images.names)}
    return job_of(session, replace(job.plan, recipe=replace(job.plan.recipe, arguments=arguments)))


def _measured(session: Session, work: Work, job: TrainingJob, source: Source, expect: float | None) -> Artefact:
    """Put the weights into the network, see what it knows of the dataset, and write the artefact."""
    deployed = blank_classifier(job.architecture, job.plan)
    state = translated(deployed, source.checkpoint.state, "classifier", len(job.images.names))
    if (order := job.plan.recipe.arguments["order"]) is not None:
        state |= reordered(state, order)
    deployed.load_state_dict(state)
    deployed.to(session.device).eval()
    answers = answers_of(deployed, job.test, device=session.device)
    accuracy, images, classes = (answers == job.test.labels).double().mean().item(), len(job.test), len(job.test.names)
    suspicion = suspect_order(answers, job.test.labels, job.test.names)
    require_accuracy(accuracy, images, classes, expect, suspicion)
    claim = {"test_accuracy_top1": accuracy, "expected": expect, "test_split": digest(job.test)}
    claim |= {"doubt": doubt} if (doubt := doubt_of(images, classes, expect)) else {}
    metrics = {**utility_of(deployed, job, session.device), "claim": claim}
    return work.finish(deployed.state_dict(), metrics, device=str(session.device))


def translated(
    module: nn.Module, state: Mapping[str, Tensor], role: str, classes: int | None = None
) -> dict[str, Tensor]:
    """`state` under the names of `module`; where it does not fit, what it seems to be instead is said first.

    Args:
        role: what is expected: `classifier`, `generator` or `critic`.
        classes: of the dataset, for a classifier.
    """
    try:
        return from_published(module, state)
    except Refused as refusal:
        found = looks_like(state)
        if found not in (role, "unknown"):
            raise Refused(f"weights: expected a {role}, got what looks like a {found}; {refusal}") from refusal
        inside = None if classes is None else head_classes(module, state)
        if inside not in (None, classes):
            raise Refused(
                f"classes: expected a head of {classes}, the classes of the dataset, got one of {inside}; try the "
                "dataset it was trained on, or train_on=all if it knows the public classes too"
            ) from refusal
        if prefixes := network_prefixes(module, state):
            names = " or ".join(f"--strip {prefix.removesuffix('.')}" for prefix in prefixes)
            raise Refused(
                f"{refusal}; the names are all there behind a prefix, beside others: try {names}"
            ) from refusal
        raise


def network_prefixes(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which `state` holds every tensor of `module`, beside others."""
    own = module.state_dict()
    names, optional = published_names(own, getattr(module, "published", {})), may_lack(module, own)
    return prefixes_of(state, [names[name] for name in own if name not in optional])


def reordered(state: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of the head, a bias only where it has one, with row `order[label]` as the row of each label."""
    if HEAD[0] not in state:
        raise Refused(f"--reorder: expected a head called {HEAD[0]}, got a deployed network without; try defense=none")
    return {name: state[name][list(order)] for name in HEAD if name in state}


def head_classes(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """How many classes the head in `state` has; None where no tensor has the name of the head of `module`."""
    names, adapted = named_as(module, state)
    head = adapted.get(names.get(HEAD[0], ""))
    return None if head is None else len(head)


def export_classifier(
    store: Store, reference: str, file: str | Path, format: str = "published", allow: Sequence[str] = ()
) -> Path:
    """Write the weights of a target to `file` (`.safetensors`, or torch's `.pt`, `.pth`, `.tar`): tensors and their
    names, nothing else. `published` names are those of the original implementation, where there is one; `plain` ours.
    `allow` names modules of the user's own that the target's network may be of.

    Raises `Refused` for another ending, and rather than overwrite a file.
    """
    file = path_of(file)
    if format not in FORMATS:
        raise refuse_unknown("--format", format, FORMATS)
    if file.suffix not in SUFFIXES:
        raise refuse_unknown("export: the ending of the file", file.suffix, SUFFIXES)
    if file.exists():
        raise Refused(f"export: expected a new file, got {file}, which exists; try another name")
    model = rebuild_classifier(store.open(reference, "target"), allow)
    state = savable(to_published(model) if format == "published" else model.state_dict())
    content = io.BytesIO()
    if file.suffix == ".safetensors":
        content.write(safetensors.torch.save(state))
    else:
        torch.save(state, content)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content.getvalue())
    return file
