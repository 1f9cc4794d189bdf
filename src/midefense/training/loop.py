"""The one classifier loop. It owns order, randomness, precision, ranks and state; a defense bites through its hooks.

Every rank goes through the same keyed global batch and keeps its share of the rows, so the number of processes
changes nothing but the rounding: BatchNorm takes the statistics of the global batch (`batchnorm.py`). Only the coupled
terms of a defense (BiDO's) see a rank's share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.defenses.base import Defense, share_right, task_loss
from midefense.precision import mixed, rounded
from midefense.training.batchnorm import over_all_ranks
from midefense.training.inference import evaluate, features_of
from midefense.training.recipe import Recipe
from midefense.training_state import moments, put_moments, within
from midefense.types import Batch, Diverged, Images, Origin, Progress, Refused, Trace

if TYPE_CHECKING:
    from lightning_fabric import Fabric

State = dict[str, Tensor]


class Learner(nn.Module):
    """The network and what the defense learns, as one module: so ranks keep both equal, and one forward serves all."""

    def __init__(self, model: nn.Module, defense: Defense, recipe: Recipe) -> None:
        super().__init__()
        self.model = torch.compile(model) if recipe.compile else model
        self.defense = defense
        self.precision = recipe.precision
        self.auxiliary_weight = getattr(model, "auxiliary_weight", 0.0)

    def forward(self, batch: Batch) -> tuple[Trace, dict[str, Tensor]]:
        """The trace with all taps, and the loss terms, per image [B] or scalar."""
        with mixed(self.precision, batch.images.device):
            trace = self.model(batch.images, taps=self.defense.taps)
        terms = self.defense.losses(trace, batch)
        owned = "task" in self.defense.owns
        if owned != ("task" in terms):
            raise Refused(f"a 'task' term goes with owning the slot; got terms {list(terms)}, owns {self.defense.owns}")
        if self.auxiliary_weight and "aux" in trace.taps:  # a network in eval mode has none
            auxiliary = self.auxiliary_weight * task_loss(trace.taps["aux"], batch.labels)
            terms = {**terms, "auxiliary": auxiliary}
        return trace, terms if owned else {"task": task_loss(trace.logits, batch.labels), **terms}


class Trainer:
    """What a defense's `step` may use: `model`, `defense`, `optimizer`, `fabric`, `count` (of the training images; 0:
    unknown), and the parts of the default step."""

    def __init__(self, model: nn.Module, defense: Defense, recipe: Recipe, fabric: Fabric, count: int = 0) -> None:
        defense.check_training(recipe, fabric.world_size)
        self.count = count
        self.model = model
        self.defense = defense
        self.recipe = recipe
        self.fabric = fabric
        learner = Learner(model, defense, recipe)
        self.optimizer = recipe.optimizer([p for p in learner.parameters() if p.requires_grad])
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.learner, self._wrapped_optimizer = fabric.setup(learner, self.optimizer)
        self._total_weight = torch.ones((), device=fabric.device)
        self.images_per_epoch = 0  # of the epoch begun, over all ranks

    def begin_epoch(self, epoch: int) -> dict[str, float]:
        """Training mode, this epoch's learning rates, and the defense's own preparations."""
        self.learner.train()
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.recipe.rate(epoch)
        logs = self.defense.begin_epoch(self.model, epoch, self.recipe.epochs)
        return {"learning_rate": self.optimizer.param_groups[0]["lr"], **logs}

    def train(self, batch: Batch, seed: int, *step: int) -> dict[str, Tensor]:
        """One update on a global batch: hide before augmenting, augment, transform, take this rank's rows, step."""
        batch = self.defense.before_augment(batch)
        for index, augment in enumerate(self.recipe.augment):
            batch = replace(batch, images=augment(batch.images, seeds.fork(batch.rng, f"augment/{index}")))
        with seeds.isolated(seed, "train", "transform", *step):
            batch = self.defense.transform(batch)
        self._total_weight = batch.weight.sum()
        with seeds.isolated(seed, "train", "step", *step, self.fabric.global_rank):
            return self.defense.step(self, rank_share(batch, self.fabric.global_rank, self.fabric.world_size))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """The default step: one forward with all taps, backward, update. Gives detached scalars to log."""
        trace, logs = self.descend(batch)
        return {**logs, "accuracy": self.reduce(share_right(trace.logits, batch.labels), batch)}

    def descend(self, batch: Batch) -> tuple[Trace, dict[str, Tensor]]:
        """One update down all loss terms of a batch: its forward, and the loss and its terms, detached, to log."""
        trace, terms = self.learner(batch)
        reduced = {name: self.reduce(term, batch) for name, term in terms.items()}
        loss = torch.stack(list(reduced.values())).sum()
        self.update(loss)
        logs = {f"loss/{name}": value.detach() for name, value in reduced.items()}
        return trace, {"loss": loss.detach(), **logs}

    def reduce(self, term: Tensor, batch: Batch) -> Tensor:
        """A loss term as the scalar whose mean over ranks is the weighted mean over the global batch."""
        if term.dim() == 0:
            return term.float()
        return (term.float() * batch.weight).sum() / self._total_weight * self.fabric.world_size

    def update(self, loss: Tensor) -> None:
        """Backward, clip if the recipe says so, and one optimizer step."""
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.recipe.clip_norm is not None:
            self.fabric.clip_gradients(self.learner, self._wrapped_optimizer, max_norm=self.recipe.clip_norm)
        self._wrapped_optimizer.step()

    def end_epoch(self) -> None:
        """Give every rank the buffers of the first (a defense's may differ by the rows a rank saw)."""
        if self.fabric.world_size > 1:
            for buffer in self.learner.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def state(self) -> State:
        """Weights, the defense's own state and the optimizer's, as a flat dict of copies on the CPU."""
        return {
            **_flat("model", self.model.state_dict()),
            **_flat("defense", self.defense.state_dict()),
            **_flat("optimizer", moments(self.optimizer)),
        }

    def load(self, state: State) -> None:
        """Continue from what `state` gave."""
        self.model.load_state_dict(within(state, "model."))
        self.defense.load_state_dict(within(state, "defense."))
        put_moments(self.optimizer, within(state, "optimizer."))


def assemble(model: nn.Module, defense: Defense, seed: int, origin: Origin = Origin.DRAWN) -> nn.Module:
    """The network as the defense rebuilds it: called once, before `fit` and before loading stored weights."""
    with seeds.isolated(seed, "train", "rebuild"):
        return defense.rebuild(model, origin)


def fit(
    model: nn.Module,
    defense: Defense,
    images: Images,
    recipe: Recipe,
    seed: int,
    fabric: Fabric | None = None,
    state: State | None = None,
    test: Images | None = None,
) -> Iterator[Progress]:
    """Train `model`, as `assemble` gave it, in place, to tell the classes of `images`, or their attributes (labels
    uint8 [N, K]). Yields `(epochs done, logs, state)` after every epoch.

    The state given back as `state=` continues bit for bit on the same kind of device. `fabric` (launched by the
    caller) brings device and ranks; None is one process on the CPU. Run it to its end: after the last epoch the best
    weights are put back where the recipe selects, and the head is set where it is not trained. `test` is looked at by
    `select: test_legacy` alone.

    Raises:
        Refused: labels beyond the network's classes, too few images for a batch or a validation set, or no test images
            where the recipe selects by them.
        Diverged: the loss of an epoch was not finite.
    """
    fabric = _alone() if fabric is None else fabric
    _require_labels(images, model)
    images, judged = recipe.hold_out(images, seed)
    if recipe.select == "test_legacy":
        judged = _require_test(test)
    trainer = Trainer(model, defense, recipe, fabric, len(images))
    best: State = {}
    first = 0
    if state is not None:
        trainer.load(state)
        best = {name: value for name, value in state.items() if name.startswith("best")}
        first = int(state["epoch"])
    for epoch in range(first, recipe.epochs):
        logs = _epoch(trainer, images, epoch, seed)
        if judged is not None:
            accuracy = evaluate(model, judged, device=fabric.device)["accuracy"]
            logs[f"{recipe.select}/accuracy"] = accuracy = fabric.broadcast(accuracy)
            if not best or accuracy > best["best_accuracy"].item():
                weights = _flat("best", model.state_dict())
                best = {"best_accuracy": torch.tensor(accuracy, dtype=torch.float64), **weights}
        done = {"epoch": torch.tensor(epoch + 1), **best}
        yield epoch + 1, logs, lambda done=done: {**trainer.state(), **done}
    if best:
        model.load_state_dict(within(best, "best."))
    if recipe.head == "centroids":
        model.set_centroids(features_of(model, images, device=fabric.device), images.labels)


def _alone() -> Fabric:
    """One process on the CPU."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    return Fabric(accelerator="cpu", devices=1, plugins=[LightningEnvironment()])


def rank_share(batch: Batch, rank: int, ranks: int) -> Batch:
    """The rows of a global batch that rank `rank` trains on: neighbours, so that identity groups stay together."""
    if ranks == 1:
        return batch
    rows = torch.arange(len(batch.images), device=batch.images.device).tensor_split(ranks)[rank]
    return Batch(batch.images[rows], batch.labels[rows], batch.ids[rows], batch.weight[rows], batch.rng)


def _epoch(trainer: Trainer, images: Images, epoch: int, seed: int) -> dict[str, float]:
    """Train one epoch. Gives its mean logs, read from the device once."""
    fabric = trainer.fabric
    own_logs = trainer.begin_epoch(epoch)
    batches = _batches(trainer, images, epoch, seed)
    totals: dict[str, Tensor] = {}
    for told in _updates(trainer, images, batches, epoch, seed):
        for name, value in told.items():
            totals[name] = totals[name] + value if name in totals else value
    trainer.end_epoch()
    means = fabric.all_reduce(torch.stack(list(totals.values())) / len(batches), reduce_op="mean")
    logs = dict(zip(totals, means.tolist(), strict=True))
    if not torch.isfinite(means).all():
        raise Diverged(f"training diverged in epoch {epoch}: {logs}; try a lower learning rate or recipe.clip_norm=1")
    return {**logs, **own_logs}


def first_updates(trainer: Trainer, images: Images, seed: int) -> tuple[int, Iterator[dict[str, Tensor]]]:
    """How many updates the first epoch on `images` has, and the updates themselves, one by one, to be measured. The
    epoch is begun."""
    trainer.begin_epoch(0)
    batches = _batches(trainer, images, 0, seed)
    return len(batches), _updates(trainer, images, batches, 0, seed)


def _batches(trainer: Trainer, images: Images, epoch: int, seed: int) -> list[Tensor]:
    """The rows of the batches of an epoch that was begun."""
    recipe = trainer.recipe
    sampler = trainer.defense.sampler or recipe.sampler
    order = seeds.generator(seed, "train", "order", epoch)
    batches = recipe.batches(images.labels, sampler, 2 * trainer.fabric.world_size, order)
    batches = batches[: max(1, round(trainer.defense.epoch_share * len(batches)))]
    trainer.images_per_epoch = sum(map(len, batches))
    return batches


def _updates(
    trainer: Trainer, images: Images, batches: Sequence[Tensor], epoch: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """One update for each batch of rows; yields its logs."""
    fabric = trainer.fabric
    with over_all_ranks(trainer.model, fabric.world_size):
        for index, rows in enumerate(batches):
            batch = Batch(
                images=images.floats(rows, fabric.device),
                labels=images.labels[rows].to(fabric.device),
                ids=images.ids[rows].to(fabric.device),
                weight=torch.ones(len(rows), device=fabric.device),
                rng=seeds.generator(seed, "train", "batch", epoch, index),
            )
            with rounded(trainer.recipe.precision, fabric.device):
                told = trainer.train(batch, seed, epoch, index)
            yield told


def _require_test(test: Images | None) -> Images:
    if test is None:
        raise Refused("select: test_legacy expected test images to select by, got none; try select=validation")
    return test


def _require_labels(images: Images, model: nn.Module) -> None:
    if images.labels.dim() == 2:
        if images.labels.shape[1] != model.classes:
            raise Refused(
                f"labels: expected {model.classes} attributes, one per output of the network, got "
                f"{images.labels.shape[1]}; try building the network with the attributes of the dataset"
            )
        return
    largest = int(images.labels.max()) if len(images) else 0
    if largest >= model.classes:
        raise Refused(
            f"labels: expected values below {model.classes}, the classes of the network, got {largest}; "
            "try building the network with the classes of the dataset"
        )


def _flat(prefix: str, tensors: Mapping[str, Tensor]) -> State:
    """Copies on the CPU under `prefix.`."""
    return {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in tensors.items()}
