"""How classifiers are trained: everything that changes the numbers, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from midefense import seeds
from midefense.precision import require_precision
from midefense.ranges import Batch, InnerShare, NotNegative, Positive, Whole
from midefense.training.start import Start
from midefense.types import Images, Refused, refuse_unknown

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
Sampler = str | Mapping[str, int | str]
LEFTOVERS = ("fill", "drop")
SELECTIONS = ("last", "validation", "test_legacy")
HEADS = ("trained", "centroids")
LEAST_EXPECTED = 32  # images of a batch that is drawn by Poisson's rule: one in 10^13 is then empty


class Recipe:
    """Hyperparameters of `train.fit`.

    epochs: passes over the images; 0 only where the head is not trained.
    batch_size: images per update, over all ranks together (an identity sampler brings its own).
    optimizer: called with the parameters, gives a torch optimizer whose state is made of tensors.
    milestones: epochs at which the learning rate is multiplied by `factor`; integers, or shares of all epochs.
    warmup: epochs over which the learning rate rises linearly to its value.
    augment: augmentations, applied in order.
    sampler: `shuffle`; `poisson`, each image by itself (for DP-SGD); or `{identities: 16, images: 4}` for batches of so
        many classes and images of each; with
        `leftover: drop`, images of a class that do not fill a group are left out (see `identity_batches`).
    select: `last` keeps the last weights, `validation` those that are best on a share `validation_share` of the images
        (then not trained on), `test_legacy` those that are best on the TEST set: the low-resolution attacks publish
        such targets, whose test accuracy is too high, so every row says it.
    head: `trained`, or `centroids`: set in closed form, from the class means of the features, after the last epoch.
    precision: `32-true`, `tf32` or `bf16-mixed`, of the network while it learns; losses stay in float32.
    compile: whether the network goes through torch.compile.
    clip_norm: largest norm of the gradient; None does not clip.
    drop_last: whether a last batch that is not full is left out.
    start: the trained network whose body (all but the head) training begins with, put in place before `train.fit`; in
        YAML a target of the store (an id, a name, a path) or a file of weights. None begins with drawn weights.
    """

    revision = 1
    later: ClassVar[dict[str, object]] = {"start": None}

    def __init__(
        self,
        *,
        epochs: Whole,
        batch_size: Batch,
        optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
        milestones: Sequence[float | int] = (),
        factor: NotNegative = 0.1,
        warmup: Whole = 0,
        augment: Sequence[Augmentation] = (),
        sampler: Sampler = "shuffle",
        select: str = "last",
        head: str = "trained",
        validation_share: InnerShare = 0.1,
        precision: str = "32-true",
        compile: bool = False,
        clip_norm: Positive | None = None,
        drop_last: bool = False,
        start: Start | None = None,
    ) -> None:
        if head not in HEADS:
            raise refuse_unknown("head", head, HEADS)
        least = 0 if head == "centroids" else 1
        if epochs < least or batch_size < 2:
            raise Refused(
                f"expected epochs >= {least} and batch_size >= 2, got {epochs} and {batch_size}; try 20 and 64"
            )
        if not callable(optimizer):
            raise Refused(f"optimizer: expected a function of the parameters, got {optimizer!r}; try _partial_: true")
        if select not in SELECTIONS:
            raise refuse_unknown("select", select, SELECTIONS)
        if head == "centroids" and select != "last":
            raise Refused(
                f"select: expected last, as no epoch has the head of class means, got {select}; try select=last"
            )
        require_precision("precision", precision)
        require_sampler(sampler)
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.milestones = [_as_epoch(milestone, epochs) for milestone in milestones]
        if self.milestones != sorted(self.milestones):
            raise Refused(f"milestones: expected epochs in ascending order, got {list(milestones)}; try [0.5, 0.75]")
        self.factor = factor
        self.warmup = warmup
        self.augment = list(augment)
        self.sampler = sampler
        self.select = select
        self.head = head
        self.validation_share = validation_share
        self.precision = precision
        self.compile = compile
        self.clip_norm = clip_norm
        self.drop_last = drop_last
        self.start = start

    def rate(self, epoch: int) -> float:
        """What the learning rate is multiplied by in epoch `epoch` (from 0)."""
        passed = sum(epoch >= milestone for milestone in self.milestones)
        rising = min(1.0, (epoch + 1) / self.warmup) if self.warmup else 1.0
        return rising * self.factor**passed

    def hold_out(self, images: Images, seed: int) -> tuple[Images, Images | None]:
        """Images to train on and, if the recipe selects by it, a validation set: a keyed random share of them."""
        if self.select != "validation":
            return images, None
        count = round(self.validation_share * len(images))
        if not 0 < count < len(images):
            raise Refused(
                f"validation_share: {self.validation_share} of {len(images)} images leaves one part empty; try 0.1"
            )
        order = torch.randperm(len(images), generator=seeds.generator(seed, "train", "validation"))
        return images.take(order[count:]), images.take(order[:count])

    def batches(self, labels: Tensor, sampler: Sampler, least: int, rng: torch.Generator) -> list[Tensor]:
        """The rows of the batches of an epoch, from labels [N]; but for `poisson`, none has fewer than `least` rows."""
        if sampler == "poisson":
            return poisson_batches(len(labels), self.batch_size, rng)
        if sampler == "shuffle":
            return shuffled_batches(len(labels), self.batch_size, least, self.drop_last, rng)
        return identity_batches(
            labels, sampler["identities"], sampler["images"], Draws(rng), sampler.get("leftover", "fill")
        )


class Imported(Recipe):
    """Weights that others trained, read from a file (`midefense.published_weights`): not a training, which is refused.

    file: where it lay; no part of the id.
    sha256: of the file, in hex.
    format: what kind of file it was.
    select: how its authors chose the epoch, as in `Recipe`, or `unknown`.
    order: for each label, the row of the file's head that became its own; None left them as they were.
    entry: the state dict of the file that was taken, where it was named.
    strip: the prefix of the names that were taken, and lost it; the others were left.
    add: the prefix that all names got.
    """

    revision = 1
    places = ("file",)
    later: ClassVar[dict[str, object]] = {"entry": None, "strip": None, "add": None}

    def __init__(
        self,
        *,
        file: str | None = None,
        sha256: str,
        format: str,
        select: str = "unknown",
        order: Sequence[int] | None = None,
        entry: str | None = None,
        strip: str | None = None,
        add: str | None = None,
    ) -> None:
        if select not in (*SELECTIONS, "unknown"):
            raise refuse_unknown("select", select, (*SELECTIONS, "unknown"))
        self.file = file
        self.sha256 = sha256
        self.format = format
        self.select = select
        self.order = order
        self.entry = entry
        self.strip = strip
        self.add = add

    def refuse_training(self) -> None:
        """Say why these weights cannot be made again."""
        raise Refused(
            f"expected the weights of {self.file} (SHA-256 {self.sha256[:12]}) in the store, got none for these "
            "images: they were imported, so nothing here can train them; try `midefense import` of "
            "that file on the dataset as it is now"
        )


def require_sampler(sampler: Sampler) -> None:
    """Refuse what is neither `shuffle` nor a number of identities and of images of each."""
    if isinstance(sampler, Mapping):
        counts = [sampler.get(name) for name in ("identities", "images")]
        whole = all(isinstance(count, int) and count >= 1 for count in counts)
        if whole and set(sampler) <= {"identities", "images", "leftover"}:
            if sampler.get("leftover", "fill") not in LEFTOVERS:
                raise refuse_unknown("sampler.leftover", sampler["leftover"], LEFTOVERS)
            return
    elif sampler in ("shuffle", "poisson"):
        return
    raise Refused(f"sampler: expected 'shuffle' or {{identities: 16, images: 4}}, got {sampler!r}")


def shuffled_batches(count: int, size: int, least: int, drop_last: bool, rng: torch.Generator) -> list[Tensor]:
    """A permutation of `count` rows, cut to `size`. A last batch of fewer than `least` rows (too few for batch norm,
    or for one per rank) joins the one before it."""
    if count < least:
        raise Refused(f"training images: expected at least {least}, got {count}")
    batches = list(torch.randperm(count, generator=rng).split(size))
    if drop_last and len(batches) > 1 and len(batches[-1]) < size:
        batches.pop()
    if len(batches[-1]) < least:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches


def poisson_batches(count: int, size: int, rng: torch.Generator) -> list[Tensor]:
    """About count / size batches, into each of which every one of `count` rows comes with probability size / count,
    whatever becomes of the others; `size` is what a batch is expected to hold, and none need be full."""
    if not LEAST_EXPECTED <= size <= count:
        raise Refused(
            f"recipe.batch_size: expected {LEAST_EXPECTED} to {count} (the training images) for batches drawn by "
            f"Poisson's rule, as with defense=dp_sgd, got {size}; try 64"
        )
    rate = size / count
    return [(torch.rand(count, generator=rng) < rate).nonzero().flatten() for _ in range(round(1 / rate))]


class Draws:
    """What an epoch of identities draws, from a generator of ours."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def shuffled(self, rows: Tensor) -> Tensor:
        """`rows` in any order."""
        return rows[torch.randperm(len(rows), generator=self.rng)]

    def with_replacement(self, rows: Tensor, count: int) -> Tensor:
        """`count` of `rows`, any of them more than once."""
        return rows[torch.randint(len(rows), (count,), generator=self.rng)]

    def chosen(self, among: int, count: int) -> list[int]:
        """`count` different numbers below `among`."""
        return torch.randperm(among, generator=self.rng)[:count].tolist()


def identity_batches(
    labels: Tensor, identities: int, images: int, draws: Draws, leftover: str = "fill"
) -> list[Tensor]:
    """Batches of `identities` different classes with `images` rows of each, until fewer than `identities` classes have
    a group left.

    A class's images are shuffled and cut to groups. Those left over are `fill`ed up to a group with the class's first
    images, or `drop`ped, as in the training code of BiDO: there only a class of fewer images than a group is filled up,
    with draws of its own.
    """
    groups = [
        _groups((labels == label).nonzero().flatten(), images, draws, leftover) for label in labels.unique().tolist()
    ]
    if len(groups) < identities:
        raise Refused(
            f"sampler: expected at most {len(groups)} identities per batch (the classes there are), got {identities}; "
            "try sampler=shuffle"
        )
    batches = []
    while sum(map(bool, groups)) >= identities:
        available = [group for group in groups if group]
        batches.append(torch.cat([available[index].pop() for index in draws.chosen(len(available), identities)]))
    return batches


def _groups(rows: Tensor, images: int, draws: Draws, leftover: str) -> list[Tensor]:
    """Shuffled `rows` of one class in groups of exactly `images`, of which the last is taken first."""
    if leftover == "drop":
        rows = draws.shuffled(draws.with_replacement(rows, images) if len(rows) < images else rows)
        return list(rows[: len(rows) // images * images].split(images))[::-1]
    rows = draws.shuffled(rows)
    groups = -(-len(rows) // images)
    positions = torch.arange(groups * images) % len(rows)
    return list(rows[positions].split(images))


def _as_epoch(milestone: float | int, epochs: int) -> int:
    """A milestone in epochs; floats are shares of all epochs."""
    if isinstance(milestone, int):
        if milestone < 0:
            raise Refused(f"milestones: expected epochs from 0, got {milestone}; try 0.75")
        return milestone
    if not 0 < milestone < 1:
        raise Refused(f"milestones: expected integers or shares in (0, 1), got {milestone}; try 0.75")
    return round(milestone * epochs)
