"""What every metric shares: the images judged, the world they are judged in, and the ritual around a measurement.

The base class checks the input, keeps one row per image, and sorts the rows by (label, candidate) before a metric
sees them, so that order and batch size never matter. A metric writes only `rows` and `measure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from midefense.metrics.intervals import SHARE, Interval, Span, mean_interval
from midefense.types import Images, Refused, Trace


@dataclass
class Judged:
    """Images to judge: `images` float [M, C, H, W] in [0, 1]; `labels` int64 [M], the class each was recovered for;
    `candidates` int64 [M], the rank among that class's candidates; `target_confidence` float [M], how sure the
    attacked target itself is of the class (None if it was not asked); `ids` int64 [M], the private image that each was
    recovered for (None where the evidence was a class). `framed`: the same pictures as images of other sizes, by their
    side, for networks that `World.shown` says are shown others. `traces` holds what each network answered,
    filled on first use so that all metrics share one forward; `sound`, whether the pixels were found to be images."""

    images: Tensor
    labels: Tensor
    candidates: Tensor
    target_confidence: Tensor | None = None
    traces: dict[str, Trace] = field(default_factory=dict, repr=False, compare=False)
    sound: bool = field(default=False, repr=False, compare=False)
    ids: Tensor | None = None
    framed: Mapping[int, Tensor] = field(default_factory=dict, repr=False, compare=False)


@dataclass
class Measured:
    """One number: `low` and `high` bound the 95 % interval over classes (None if there is none), found the way that
    `interval` names (`intervals.py`), `n` counts what was measured, `reason` says why the value is NaN or what to
    beware of ("" if nothing), `higher_leaks` tells whether a higher value means a more successful attack (None if
    neither does)."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    per_class: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    higher_leaks: bool | None = None
    interval: str = ""

    def within(self, found: Interval) -> Measured:
        """This number with the interval that was found, or with the reason why there is none."""
        self.low, self.high, self.interval = found.low, found.high, found.way
        self.reason = "; ".join(filter(None, (self.reason, found.reason)))
        return self

    @classmethod
    def undefined(cls, reason: str, n: int = 0, higher_leaks: bool | None = None) -> Measured:
        """A number that cannot be given: NaN and the reason."""
        return cls(value=math.nan, n=n, reason=reason, higher_leaks=higher_leaks)


@dataclass(frozen=True, eq=False)
class Released:
    """What left the edge of a cut target for private images, and what the rest of the network makes of it.

    `ids` int64 [N] of the images; `features` float [N, ...] as they arrived, released once each; `clean` float [N, ...]
    as the edge computed them, before any defense; `cloud` gives logits [B, outputs] of features [B, ...]. `labels`
    int64 [N], what the target is to say of each, or bool [N, K], whether it has each of the `attributes`, by name.
    `edge` gives clean features of other images [B, C, H, W] (None: nobody asks).
    `seconds` of release and `bytes` that travelled, each per image and release (NaN: not known).
    """

    ids: Tensor
    features: Tensor
    clean: Tensor
    cloud: Callable[[Tensor], Tensor]
    labels: Tensor
    attributes: Sequence[str] = ()
    seconds: float = math.nan
    bytes: float = math.nan
    edge: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Placebo:
    """What the same attack recovered from a target that was never told who is who: `batches()` goes through all of its
    selected candidates; `unreached` int64 [U], the classes of targets of which it stands by nothing, each of which
    counts as `each` failures."""

    batches: Callable[[], Iterable[Judged]]
    unreached: Tensor | None = None
    each: int = 1


@dataclass
class World:
    """What a metric may know: `references`, the private training images of all classes 0..classes-1; `evaluators`,
    classifiers by name whose first `classes` outputs are the private classes; `utility`, numbers of the target;
    `bill`, what the attack cost; `tests`, the private test images, and `target`, the attacked network (None where a
    judge has neither). `shown`: the references as images of another size, by the name of the network that is shown them
    (others are shown `references`); `shown_tests`: the test images likewise. `public`: the images of people who are not
    private (None: of nobody), and `shown_public` likewise. `released`: what left the edge of a target that is cut,
    where evidence points at images. `placebo`: what the attack recovered from a target that was never told who is who
    (None: none was attacked). `unreached` int64 [U]: the classes of targets of which there is no
    candidate among those that are judged (None: of each there is one); where others have `each` candidates, such a
    target counts as so many failures. `samples(count)`: unattacked samples of the prior, float
    [count, C, H, W] in [0, 1], the same each time; None where it generates nothing. `cache` keeps what the networks say
    of private images, once per network."""

    references: Images
    evaluators: dict[str, nn.Module]
    classes: int
    utility: dict[str, float] = field(default_factory=dict)
    bill: dict[str, float] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    tests: Images | None = None
    target: nn.Module | None = None
    shown: Mapping[str, Images] = field(default_factory=dict)
    shown_tests: Mapping[str, Images] = field(default_factory=dict)
    released: Released | None = None
    placebo: Placebo | None = None
    public: Images | None = None
    shown_public: Mapping[str, Images] = field(default_factory=dict)
    unreached: Tensor | None = None
    each: int = 1
    samples: Callable[[int], Tensor] | None = None
    cache: dict[object, object] = field(default_factory=dict, repr=False)

    def references_for(self, network: str) -> Images:
        """The references, as `network` is shown them."""
        return self.shown.get(network, self.references)

    @property
    def sides(self) -> tuple[int, ...]:
        """The sizes in which pictures are shown, that of the references first."""
        return tuple(dict.fromkeys(images.pixels.shape[-1] for images in (self.references, *self.shown.values())))

    def private(self, ids: Tensor) -> Tensor:
        """The private images, of training or test, with these `ids` [M]: float [M, C, H, W] in [0, 1] on the device.

        For metrics that match a reconstruction with the image it answers. Raises `Refused` for an id of no such image.
        """
        return with_ids((self.references, self.tests), ids).floats(device=self.device)

    def private_for(self, network: str, ids: Tensor) -> Tensor:
        """The private images with these `ids` [M], as `network` is shown them: float [M, C, S, S] on the device."""
        parts = self.references_for(network), self.shown_tests.get(network, self.tests)
        return with_ids(parts, ids).floats(device=self.device)

    def identities(self, ids: Tensor) -> Tensor:
        """Whom the private images with these `ids` [M] show: classes int64 [M] on the device."""
        return with_ids((self.references, self.tests), ids).labels.to(self.device)


def with_ids(parts: Sequence[Images | None], ids: Tensor) -> Images:
    """The images with these `ids` [M], in their order, out of several sets of one shape (None: none).

    Raises `Refused` for an id that none of them has.
    """
    parts = [part for part in parts if part is not None]
    known = torch.cat([part.ids for part in parts])
    order = known.argsort()
    wanted = ids.to(known.device).contiguous()
    rows = order[torch.searchsorted(known[order], wanted).clamp(max=len(known) - 1)]
    if strange := wanted[known[rows] != wanted].tolist():
        raise Refused(f"ids: expected those of private images, got {strange[:3]}; try evidence that names images")
    pixels = parts[0].pixels.new_empty((len(wanted), *parts[0].pixels.shape[1:]))
    first = 0
    for part in parts:
        mine = ((rows >= first) & (rows < first + len(part))).nonzero()[:, 0]
        pixels[mine] = part.pixels[rows[mine] - first]
        first += len(part)
    return Images(pixels, torch.cat([part.labels for part in parts])[rows], wanted, parts[0].names)


class Metric:
    """A judge of recovered images. `update` takes any number of batches of any size, `compute` gives numbers by name.

    `higher_leaks` is the direction in which the attacker wins; `best` maps the part of a name before the slash to the
    value that exact copies of private training images get, where that is known. `stages`: patterns of the attack's
    stages that are measured beside its selected candidates. `matches`: what a reconstruction is held against, the
    `class` or the one private `image` that it was recovered for (None: nothing, it looks at no reconstruction).
    `judges_release`: it looks at what left the edge (`World.released`). `compares_public`: it compares with the public
    people of the dataset (`World.public`), which are then part of the protocol. `generates`: it compares with what the
    prior makes of nothing, so that the prior must be a generator. `wants_placebo`: the attack is repeated on a target
    that was never told who is who (`World.placebo`), which its option `placebo` names.
    """

    revision = 1
    kind = "privacy"
    matches: str | None = "class"
    generates = False
    judges_release = False
    compares_public = False
    wants_placebo = False
    higher_leaks: bool | None = None
    best: dict[str, float] = {}
    stages: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.reset()

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse evaluators, by their names, that it cannot measure with; called before any compute."""

    def reset(self) -> None:
        """Forget all images."""
        self._batches: list[dict[str, Tensor]] = []

    def update(self, judged: Judged, world: World) -> None:
        """Take a batch of images; refused if it is malformed, out of range, or holds NaN."""
        require_fit(judged, world)
        rows = {"label": judged.labels, "candidate": judged.candidates, **self.rows(judged, world)}
        self._batches.append({name: row.to(world.device) for name, row in rows.items()})

    def compute(self, world: World) -> dict[str, Measured]:
        """All numbers over the images seen since `reset`, by name."""
        if not self._batches and world.unreached is not None and len(world.unreached):
            return self.nothing(world)
        return self.measure(self._sorted_rows(), world)

    def nothing(self, world: World) -> dict[str, Measured]:
        """The numbers where no target was reached, and there is no image: those of accuracies, which are 0."""
        return {}

    def chance(self, world: World) -> dict[str, float]:
        """What blind guessing scores, for those names that have a closed form."""
        return {}

    def drawings(self) -> dict[str, Tensor]:
        """Tensors by name that the report draws, stored beside the last `compute`'s numbers; none by default."""
        return {}

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        """What to keep of a batch: tensors [M, ...] by name, aligned with its images."""
        raise NotImplementedError

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        """Numbers from all rows, which come sorted and with `label` and `candidate` beside the metric's own."""
        raise NotImplementedError

    def _sorted_rows(self) -> dict[str, Tensor]:
        if not self._batches:
            raise Refused(f"{type(self).__name__}: expected images, got none; try update(judged, world) before compute")
        order = row_order(*(torch.cat([batch[name] for batch in self._batches]) for name in ("label", "candidate")))
        places = torch.argsort(order).split([len(batch["label"]) for batch in self._batches])
        rows = {name: self._sorted(name, places) for name in self._batches[0]}
        repeated = (rows["label"].diff() == 0) & (rows["candidate"].diff() == 0)
        if repeated.any():
            row = int(repeated.nonzero()[0])
            raise Refused(
                f"{type(self).__name__}: expected every (class, candidate) once, got candidate "
                f"{int(rows['candidate'][row])} of class {int(rows['label'][row])} again; try reset() before a second "
                f"set of images, and number candidates within their class"
            )
        return rows

    def _sorted(self, name: str, places: Sequence[Tensor]) -> Tensor:
        """All rows of one name, each batch put at its `places`: features may fill memory, so they are copied once."""
        first = self._batches[0][name]
        rows = first.new_empty(sum(map(len, places)), *first.shape[1:])
        for batch, place in zip(self._batches, places, strict=True):
            rows[place] = batch[name]
        return rows


def row_order(labels: Tensor, candidates: Tensor) -> Tensor:
    """The order in which metrics see rows: int64 [M] that sorts by (label, candidate)."""
    by_candidate = torch.argsort(candidates, stable=True)
    return by_candidate[torch.argsort(labels[by_candidate], stable=True)]


def require_fit(judged: Judged, world: World) -> None:
    """Refuse images that would give a number without meaning."""
    images, labels, candidates = judged.images, judged.labels, judged.candidates
    channels = world.references.pixels.shape[1]
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        raise Refused(
            f"images: expected float [M, {channels}, H, W] as the private images, "
            f"got {images.dtype} {list(images.shape)}"
        )
    if labels.shape != (len(images),) or candidates.shape != (len(images),) or len(images) == 0:
        raise Refused(
            f"labels and candidates: expected one each for at least one image, got {list(labels.shape)} and "
            f"{list(candidates.shape)} for {len(images)} images"
        )
    unknown = sorted({int(label) for label in labels.unique()} - set(range(world.classes)))
    if unknown:
        raise Refused(f"labels: expected classes 0..{world.classes - 1}, got {unknown}")
    if not judged.sound:
        _check_pixels(judged)
        judged.sound = True
    confidence = judged.target_confidence
    if confidence is not None and not (confidence.shape == labels.shape and confidence.isfinite().all()):
        raise Refused(f"target_confidence: expected {len(images)} finite values, got {confidence}; try None")


def _check_pixels(judged: Judged) -> None:
    broken = ~judged.images.isfinite().flatten(1).all(1)
    if broken.any():
        first = int(broken.nonzero()[0])
        raise Refused(
            f"images: expected finite pixels, got NaN or infinity in {int(broken.sum())} of {len(broken)} images, "
            f"first in candidate {int(judged.candidates[first])} of class {int(judged.labels[first])}"
        )
    low, high = float(judged.images.min()), float(judged.images.max())
    if low < 0 or high > 1:
        raise Refused(f"images: expected pixels in [0, 1], got [{low:.4g}, {high:.4g}]; try types.clip_images")


def over_classes(values: Tensor, labels: Tensor, higher_leaks: bool | None, span: Span) -> Measured:
    """Mean of `values` [M] over images, per class, and with its interval over classes (see `intervals.py`).

    `span`: between which bounds every value lies: `SHARE`, `POSITIVE` or `REAL`.
    """
    classes, owner, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    sums = np.bincount(owner, weights=values.double().cpu().numpy())
    measured = Measured(
        value=float(sums.sum() / counts.sum()),
        n=len(values),
        per_class={int(label): float(mean) for label, mean in zip(classes, sums / counts, strict=True)},
        higher_leaks=higher_leaks,
    )
    return measured.within(mean_interval(sums, counts, span))


def share_of_hits(hits: Tensor, labels: Tensor, world: World, each: int | None = None) -> Measured:
    """The share of `hits` bool [M], per class `labels` int64 [M], and with its interval over classes; a target that was
    never reached (`World.unreached`) counts as `each` failures (None: as many as others have candidates)."""
    if world.unreached is None or len(world.unreached) == 0:
        return over_classes(hits, labels, True, SHARE)
    lost = world.unreached.to(labels.device).repeat_interleave(world.each if each is None else each)
    failed = torch.zeros(len(lost), dtype=torch.bool, device=labels.device)
    measured = over_classes(torch.cat([hits, failed]), torch.cat([labels, lost]), True, SHARE)
    count = len(world.unreached)
    told = f"{count} target{' was' if count == 1 else 's were'} never reached and count{'s' * (count == 1)} as failed"
    measured.reason = "; ".join(filter(None, (measured.reason, told)))
    return measured


def recorded(group: str, numbers: dict[str, float], expects: Sequence[str]) -> dict[str, Measured]:
    """Numbers that were written down elsewhere, as `<group>/<name>`; an expected one that is missing is NaN."""
    measured = {f"{group}/{name}": Measured.undefined(f"{name} was not recorded") for name in expects}
    for name, number in numbers.items():
        value = float(number)
        measured[f"{group}/{name}"] = (
            Measured(value=value, n=1) if math.isfinite(value) else Measured.undefined(f"recorded as {value}")
        )
    return measured
