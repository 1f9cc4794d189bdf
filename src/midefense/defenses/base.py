"""The hooks of a defense, the absence of one, and several at once.

A defense never calls the network: it says through `taps` what it reads of the one forward, gets a `Trace`, and gives
loss terms back. What only one defense may do is a slot that it claims in `owns`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.types import Batch, Images, Origin, Progress, Refused, Trace, refuse_unknown

SLOTS = ("task", "sampler", "step", "release")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per image [B] in float32; labels int64 [B] or soft [B, classes]."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """What a target is trained on, per image [B] in float32: `cross_entropy` of classes; of attributes (labels uint8
    [B, K]) their binary cross-entropy, the mean over the K of them."""
    if labels.dtype != torch.uint8:
        return cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(1)


def share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """How much of each image is answered rightly [B]: 0 or 1 for a class (the likeliest of soft labels), the share of
    right ones for attributes (labels uint8 [B, K])."""
    if labels.dtype == torch.uint8:
        return ((logits > 0) == labels.bool()).float().mean(1)
    return (logits.argmax(1) == (labels.argmax(1) if labels.is_floating_point() else labels)).float()


class Defense(nn.Module):
    """Eight hooks that do nothing; a defense overrides those it needs.

    Class attributes: `taps`, names of the stages it reads; `owns`, the slots it claims (`task` replaces the
    cross-entropy, `sampler` the recipe's, `step` the update rule, `release` what leaves the edge); `neutral`,
    constructor settings at which the trained weights equal those without a defense bit for bit (None: there are none);
    `coupled`, whether a loss term ties the images of a batch; `adds_images`, whether its step trains on images of its
    own beside those of the batch, which no coupled term may meet; `stochastic_when_deployed`; `sampler`, what it asks
    of the recipe's slot of that name (None: nothing); `epoch_share`, the share of an epoch's batches trained on;
    `mixes`, whether it makes images of several; `private`, whether it needs every image of a batch on its own, so that
    nothing `coupled` and nothing that mixes may stand beside it; `needs_classes`, whether it works on labels that are
    classes alone, and not on attributes; `needs_start`, whether it is worth nothing unless training begins with the
    weights of another network; `one_process`, whether it cannot be trained by several together.

    `learns_answers`: it learns something of the trained network's answers to public images (`learn_answers`), before it
    seals.

    Of what it does at release: `only_releases`, whether it has no part in training, which is then that of no defense;
    `group`, how many images it wants together; `asks_of_prior`, what it needs of a generator's `offers`. One that needs
    a generator has a partial of it among its arguments (a `prior` node in its YAML); the generator is learned, or
    found, and handed over by `equip`. `cut`: the stage behind which it protects features (None: any).
    """

    revision = 1
    taps: tuple[str, ...] = ()
    owns: tuple[str, ...] = ()
    neutral: ClassVar[dict[str, Any] | None] = None
    coupled = False
    adds_images = False
    stochastic_when_deployed = False
    sampler: str | dict[str, int] | None = None
    epoch_share: float = 1.0
    mixes = False
    private = False
    needs_classes = False
    needs_start = False
    one_process = False
    learns_answers = False
    only_releases = False
    group = 128
    asks_of_prior: tuple[str, ...] = ()
    cut: str | None = None

    def check_training(self, recipe: Any, processes: int) -> None:
        """Refuse a recipe (`midefense.training.recipe.Recipe`) or a number of processes that it cannot be trained with,
        when the plan is read and before the first step."""
        if self.one_process and processes > 1:
            raise Refused(
                f"compute: expected one process, as what {type(self).__name__} learns is not shared among several, got "
                f"{processes}; try compute.devices=1, without torchrun"
            )

    def rebuild(self, model: nn.Module, origin: Origin = Origin.DRAWN) -> nn.Module:
        """Change the network before training and before loading weights, and look up what the defense needs of it.

        `origin` says which of them it is, and whether training begins with weights that are worth keeping: what only
        training needs (freezing a prefix, copying the body) is left alone where it is `Origin.LOADED`. The names and
        shapes of the network's tensors must not depend on it.
        """
        return model

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        """Called before epoch `epoch` (from 0) of `epochs`, in training mode. Gives numbers to log."""
        return {}

    def before_augment(self, batch: Batch) -> Batch:
        """As `transform`, but before the recipe augments the batch: what is hidden here moves with the picture."""
        return batch

    def transform(self, batch: Batch) -> Batch:
        """Change the whole batch, on its device, images in [0, 1]; draws come from `batch.rng`."""
        return batch

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        """Terms to add to the loss: per image [B] (weighted by `batch.weight` and averaged), or coupled scalars."""
        return {}

    def step(self, trainer: Any, batch: Batch) -> dict[str, Tensor]:
        """One update of the weights (`midefense.train.Trainer`). Gives detached scalars to log."""
        return trainer.step(batch)

    def told(self) -> dict[str, float]:
        """Numbers of the training that stand beside the target's metrics, asked for after it."""
        return {}

    def learn_answers(
        self, model: nn.Module, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn what `seal` needs of the trained `model` and public images; yields progress, and goes on from a saved
        `state`. Called after training, where it `learns_answers`."""
        return iter(())

    def seal(self, model: nn.Module, public: Images | None = None) -> nn.Module:
        """The network as deployed, called once after training."""
        return model.eval()

    def release(self, edge: nn.Module, images: Tensor, ids: Tensor, rng: torch.Generator) -> Tensor:
        """What leaves the edge for images [B, C, H, W] with `ids` [B]: the output of `edge`, the network up to its cut,
        or what the defense makes of it. It is asked of the network as deployed; what the defense has learnt for it must
        be a part of that network, which alone is stored.

        `rng` is the same whichever images are released together, so that none depends on its neighbours: what is drawn
        for an image comes from `seeds.by_row(rng, ids)`. A defense that ties a group together forks `rng` by its ids.
        """
        return edge(images)

    @property
    def prepares(self) -> bool:
        """Whether it learns something of the edge once, before anything is released."""
        return False

    def preparation(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The part of its `recipe` that decides what `prepare` makes."""
        return {}

    def prepare(
        self, edge: nn.Module, prior: Any, rng: torch.Generator, state: dict[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Learn what `release` needs of this edge and this generator; yields progress, and goes on from a saved
        `state`. The last state is stored, and handed back by `equip`."""
        return iter(())

    def equip(self, edge: nn.Module, prior: Any, state: dict[str, Tensor]) -> None:
        """Take the generator (`midefense.priors.base.Prior`, frozen, in eval mode) and what `prepare` learned, both on
        the edge's device; called before `release`, where there is a generator."""


class NoDefense(Defense):
    """Plain training: the baseline every defense is compared with."""

    revision = 1
    neutral: ClassVar[dict[str, Any] | None] = {}


class Stack(Defense):
    """Several defenses at once, in the order of `members` (name to defense).

    `rebuild`, `before_augment`, `transform` and `seal` chain, losses merge over one forward, shares of an epoch
    multiply, and every member draws from a generator of its own. Raises `Refused` if two members own one slot.
    """

    revision = 1

    def __init__(self, *, members: Mapping[str, Defense]) -> None:
        super().__init__()
        if not members:
            raise Refused("members: expected one or more defenses, got none; try defense=none")
        owners = _owners(members)
        _require_batches_apart(members)
        _refuse_tied(members)
        self.members = nn.ModuleDict(members)
        self.owns = tuple(owners)
        self.coupled = any(member.coupled for member in members.values())
        self.adds_images = any(member.adds_images for member in members.values())
        self.mixes = any(member.mixes for member in members.values())
        self.private = any(member.private for member in members.values())
        self.stochastic_when_deployed = any(member.stochastic_when_deployed for member in members.values())
        self.sampler = members[owners["sampler"]].sampler if "sampler" in owners else None
        self.epoch_share = math.prod(member.epoch_share for member in members.values())
        self.needs_classes = any(member.needs_classes for member in members.values())
        self.needs_start = any(member.needs_start for member in members.values())
        self.learns_answers = any(member.learns_answers for member in members.values())

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(tap for member in self.members.values() for tap in member.taps))

    def check_training(self, recipe: Any, processes: int) -> None:
        for member in self.members.values():
            member.check_training(recipe, processes)

    def rebuild(self, model: nn.Module, origin: Origin = Origin.DRAWN) -> nn.Module:
        for member in self.members.values():
            model = member.rebuild(model, origin)
        return model

    def begin_epoch(self, model: nn.Module, epoch: int, epochs: int) -> dict[str, float]:
        logs = {}
        for name, member in self.members.items():
            logs |= _prefixed(name, member.begin_epoch(model, epoch, epochs))
        return logs

    def before_augment(self, batch: Batch) -> Batch:
        for name, member in self.members.items():
            # the purpose keeps the hook's former name: it decides the draws of stored targets
            batch = replace(member.before_augment(_own_draws(batch, f"{name}/conceal")), rng=batch.rng)
        return batch

    def transform(self, batch: Batch) -> Batch:
        for name, member in self.members.items():
            batch = replace(member.transform(_own_draws(batch, name)), rng=batch.rng)
        return batch

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        terms = {}
        for name, member in self.members.items():
            terms |= _prefixed(name, member.losses(trace, _own_draws(batch, name)), keep=SLOTS)
        return terms

    def step(self, trainer: Any, batch: Batch) -> dict[str, Tensor]:
        owner = self._owner("step")
        return trainer.step(batch) if owner is None else owner.step(trainer, batch)

    def told(self) -> dict[str, float]:
        return {name: value for member in self.members.values() for name, value in member.told().items()}

    def learn_answers(
        self, model: nn.Module, public: Images, rng: torch.Generator, state: Mapping[str, Tensor] | None
    ) -> Iterator[Progress]:
        """The one member that learns; of two, `seal` takes none."""
        name = next(name for name, member in self.members.items() if member.learns_answers)
        return self.members[name].learn_answers(model, public, seeds.fork(rng, name), state)

    def seal(self, model: nn.Module, public: Images | None = None) -> nn.Module:
        for member in self.members.values():
            model = member.seal(model, public)
        return model

    def release(self, edge: nn.Module, images: Tensor, ids: Tensor, rng: torch.Generator) -> Tensor:
        return self._releaser.release(edge, images, ids, rng)

    @property
    def only_releases(self) -> bool:
        return all(member.only_releases or isinstance(member, NoDefense) for member in self.members.values())

    @property
    def cut(self) -> str | None:
        return next((member.cut for member in self.members.values() if member.cut is not None), None)

    @property
    def group(self) -> int:
        return self._releaser.group

    @property
    def asks_of_prior(self) -> tuple[str, ...]:
        return self._releaser.asks_of_prior

    @property
    def prepares(self) -> bool:
        return self._releaser.prepares

    def preparation(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        owner = next((name for name, member in self.members.items() if "release" in member.owns), None)
        return {} if owner is None else self.members[owner].preparation(recipe["members"][owner])

    def prepare(
        self, edge: nn.Module, prior: Any, rng: torch.Generator, state: dict[str, Tensor] | None
    ) -> Iterator[Progress]:
        return self._releaser.prepare(edge, prior, rng, state)

    def equip(self, edge: nn.Module, prior: Any, state: dict[str, Tensor]) -> None:
        self._releaser.equip(edge, prior, state)

    @property
    def _releaser(self) -> Defense:
        """Who releases: the owner of the slot, or a member that leaves the features as they are."""
        return self._owner("release") or next(iter(self.members.values()))

    def _owner(self, slot: str) -> Defense | None:
        return next((member for member in self.members.values() if slot in member.owns), None)


def _owners(members: Mapping[str, Defense]) -> dict[str, str]:
    """The member that owns each slot; refuses two for one."""
    owners: dict[str, str] = {}
    for name, member in members.items():
        for slot in member.owns:
            if slot not in SLOTS:
                raise refuse_unknown(f"slot of {name}", slot, SLOTS)
            if slot in owners:
                raise Refused(
                    f"members: expected one owner of slot {slot!r}, got {owners[slot]!r} and {name!r}; "
                    "try leaving one out"
                )
            owners[slot] = name
    return owners


def _require_batches_apart(members: Mapping[str, Defense]) -> None:
    """Refuse a member that ties the images of a batch beside one that adds images to it."""
    adds = [name for name, member in members.items() if member.adds_images]
    ties = [name for name, member in members.items() if member.coupled]
    if adds and ties:
        raise Refused(
            f"members: expected the images of a batch alone for {ties[0]!r}, whose loss ties them together, got those "
            f"that {adds[0]!r} adds; try leaving one out"
        )


def _refuse_tied(members: Mapping[str, Defense]) -> None:
    """Refuse what ties images of a batch together beside what takes each for itself."""
    private = [name for name, member in members.items() if member.private]
    tied = [name for name, member in members.items() if member.coupled or member.mixes]
    if private and tied:
        raise Refused(
            f"members: expected images apart from each other beside {private[0]!r}, got {tied[0]!r}, which ties those "
            "of a batch together; try leaving one out"
        )


def _own_draws(batch: Batch, name: str) -> Batch:
    """The batch with a generator for member `name` alone, so that its draws do not move those of the others."""
    return replace(batch, rng=seeds.fork(batch.rng, name))


def _prefixed(name: str, values: Mapping[str, Any], keep: Iterable[str] = ()) -> dict[str, Any]:
    """`values` under `name/...`, except those called as a slot."""
    return {key if key in keep else f"{name}/{key}": value for key, value in values.items()}
