"""The nouns that are passed around. Nothing here imports anything else of ours.

Image contract, at every boundary: float tensors, NCHW, RGB or grey, nominally in [0, 1]. Every network
normalises (and resizes) inside itself; what is scored and saved is clipped once, by `clip_images`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


class Refused(ValueError):
    """A request that will not be served. The message says what was expected, what came, and what to try."""


class Diverged(RuntimeError):
    """Training went to numbers that are none. The message says where, and what to try."""


class RankLost(RuntimeError):
    """Another of the processes that work together has ended. The message says so, and that the work can go on."""


class NotYetKnown(Exception):
    """A fact of a `Setting` that only the images tell. Who asks too early is asked again when they were loaded."""


def in_a_sentence(name: object, longest: int = 200) -> str:
    """A name that others gave, as a refusal may say it: its own text, or, where it has lines, characters that are not
    seen, or more than `longest`, what Python would write of it."""
    text = str(name)
    if not text.isprintable():
        text = repr(text)
    return text if len(text) <= longest else f"{text[:longest]}..."


def refuse_unknown(what: str, got: object, choices: Iterable[object], try_: str = "") -> Refused:
    """Build the standard refusal of a name that is not among `choices`; near misses are suggested."""
    import difflib

    names = [in_a_sentence(choice) for choice in choices]
    near = difflib.get_close_matches(str(got), [name for name in names if name != str(got)], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    advice = f" {try_}" if try_ else ""
    said = f"{in_a_sentence(what, 400)}: got {in_a_sentence(repr(got))}"
    return Refused(f"{said}; choices: {', '.join(names) or 'none'}.{hint}{advice}")


# What one forward of a target can reveal, and who may see it. `gradient` stands for differentiating through
# the answer, `weights` for reading parameters. FEATURES is the split-inference edge: its output and no more.
class Access(enum.Enum):
    LABELS = "labels"
    SCORES = "scores"
    FEATURES = "features"
    WHITEBOX = "whitebox"

    @property
    def reveals(self) -> frozenset[str]:
        """Names of what an oracle at this level answers."""
        return _REVEALS[self]

    @classmethod
    def parse(cls, name: str | Access) -> Access:
        """Access from its YAML name (`labels`, `scores`, `features`, `whitebox`)."""
        if isinstance(name, Access):
            return name
        try:
            return cls(str(name).lower())
        except ValueError:
            raise refuse_unknown("access", name, [level.value for level in cls]) from None

    def require(self, reads: Iterable[str], who: str) -> None:
        """Refuse, with a sentence, if `who` reads more than this level reveals."""
        hidden = sorted(set(reads) - self.reveals)
        if hidden:
            enough = [level.value for level in Access if set(reads) <= level.reveals]
            raise Refused(
                f"{who} reads {', '.join(hidden)}, which access={self.value} hides "
                f"(it reveals {', '.join(sorted(self.reveals))}); "
                f"levels that would do: {', '.join(enough) or 'none'}. Pick another part or set attack.access."
            )


_REVEALS = {
    Access.LABELS: frozenset({"labels"}),
    Access.SCORES: frozenset({"labels", "probs"}),
    Access.FEATURES: frozenset({"features"}),
    Access.WHITEBOX: frozenset({"labels", "probs", "logits", "features", "batchnorm", "gradient", "weights"}),
}


class Origin(enum.Enum):
    """Where the weights of a network come from when a defense rebuilds it.

    DRAWN: nothing has been learnt. STARTED: training is about to begin with a body that was trained before
    (`recipe.start`, or published weights that the architecture asks for); the head is drawn. LOADED: nothing will be
    trained; the weights of the network as deployed are about to be put in.
    """

    DRAWN = "drawn"
    STARTED = "started"
    LOADED = "loaded"


@dataclass
class Images:
    """A set of images as stored: `pixels` uint8 [N, C, H, W], `labels` int64 [N], `ids` int64 [N].

    `names` holds one text per label (the identity), so that two sets can be compared for shared identities.
    Labels count from 0 in `names`. `known` remembers pixels and the SHA-256 of each picture, uint8 [N, 32]: it holds as
    long as they are this set's pixels, so that a changed copy cannot inherit it.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor
    names: Sequence[str]
    known: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def floats(self, rows: Tensor | slice | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Images `rows` (default: all) as float32 in [0, 1] on `device`."""
        pixels = self.pixels if rows is None else self.pixels[rows]
        return pixels.to(device).float().div_(255)

    def take(self, rows: Tensor) -> Images:
        """The images at `rows` (indices or a mask), labels unchanged."""
        pixels = self.pixels[rows]
        known = None if self.hashes is None else (pixels, self.hashes[rows])
        return replace(self, pixels=pixels, labels=self.labels[rows], ids=self.ids[rows], known=known)

    @property
    def hashes(self) -> Tensor | None:
        """SHA-256 of each picture, uint8 [N, 32], where it is known."""
        return self.known[1] if self.known is not None and self.known[0] is self.pixels else None

    def of_class(self, label: int) -> Images:
        """All images of one class."""
        return self.take(self.labels == label)


@dataclass
class Batch:
    """One training batch: images [B, C, H, W] in [0, 1]; labels int64 [B], soft [B, classes], or attributes uint8
    [B, K], 1 where the image shows one; ids int64 [B];
    weight float [B], how much each image counts in the task loss; `rng`, a CPU generator keyed by (seed, step)."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    weight: Tensor
    rng: torch.Generator


@dataclass
class Trace:
    """One forward of a classifier: logits [B, classes], features [B, F] (the input of the head), taps by name; `probs`
    [B, classes] where a defense changes what is told (None: the softmax of the logits)."""

    logits: Tensor
    features: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    probs: Tensor | None = None


@dataclass
class Moments:
    """What one BatchNorm took in during a forward, per channel [C]: the `mean` and the biased variance `var` over the
    batch and space, which gradients flow through, beside copies of the running ones it learned while training (None
    where it keeps none; `running_var` is torch's running mean of unbiased variances). `spatial`: whether it took in
    maps, and not one number per image and channel."""

    mean: Tensor
    var: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    spatial: bool = True


@dataclass
class Answer:
    """What an oracle tells; what its access level hides is None. `batchnorm` holds the moments of every BatchNorm that
    took part in the forward, in its order, by the layer's name in the deployed network (`named_modules`). `taps` are
    outputs [B, ...] of stages that were named, for a white box. `beside` are
    the logits [B, classes] of networks of the attacker's own that are asked together with the target."""

    labels: Tensor | None = None
    probs: Tensor | None = None
    logits: Tensor | None = None
    features: Tensor | None = None
    batchnorm: dict[str, Moments] | None = None
    taps: dict[str, Tensor] | None = None
    beside: tuple[Tensor, ...] = ()


@dataclass
class Evidence:
    """What the attacker is given per target: `labels` int64 [N] (the class), `observed` [N, ...] or None
    (a released feature, a masked image), `ids` int64 [N] (the class or the private image it points at)."""

    labels: Tensor
    ids: Tensor
    observed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> Evidence:
        """The evidence at `rows`."""
        observed = None if self.observed is None else self.observed[rows]
        return Evidence(self.labels[rows], self.ids[rows], observed)


@dataclass
class Found:
    """Candidates: aligned rows of `latents` [M, ...], `loss` [M] and `evidence` int64 [M], the row of the
    evidence that each candidate answers. `stage` names the moment: initial, optimised, selected, or a method's
    own. `scores` [M] are the selection's (None before it). `pixels` uint8 [M, C, H, W] are the images themselves,
    where the prior alone cannot decode them from the latents (None: it can, or `decoder`, from latents [B, ...] to
    such pixels, makes them where they are wanted: `pictured`);
    `pictures` uint8 [M, C, S, S], the same
    framed larger, for networks of other sizes than the target's (None: `pixels` will do). `noise` [M, width] is what
    the latents were made of, where an attack searches the normal noise of its prior (`Prior.of_normal`). `labels` int64
    [M] are the classes that an attack which was told none took the pictures for. A row of the evidence without a
    candidate was not reached. `seen` is for curves alone: means over the candidates of what the search saw at this
    step, by name, each a tensor of no dimension on the search's device, so that nobody waits for it before it is drawn.
    """

    latents: Tensor
    loss: Tensor
    evidence: Tensor
    stage: str
    scores: Tensor | None = None
    pixels: Tensor | None = None
    pictures: Tensor | None = None
    noise: Tensor | None = None
    labels: Tensor | None = None
    seen: Mapping[str, Tensor] | None = None
    decoder: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def pictured(self) -> Found:
        """With the pixels that its `decoder` makes of the latents, if it has one. A search yields at every step, and
        few of them are kept: nothing is decoded before."""
        if self.decoder is None or self.pixels is not None:
            return self
        return replace(self, pixels=self.decoder(self.latents), decoder=None)

    def take(self, rows: Tensor, **changes: object) -> Found:
        """The candidates at `rows` (indices on the CPU), with `changes` to other fields."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{**{name: value[rows.to(value.device)] for name, value in tensors.items()}, **changes})

    def detached(self) -> Found:
        """A copy on the CPU that later steps cannot change."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Found(**{k: v.detach().cpu().clone() if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class Question:
    """What an attack is after, for a preparation that asks for it: the `labels` int64 [N] of all targets, in the order
    of the evidence, and among how many `classes` the target tells apart they stand."""

    labels: Tensor
    classes: int

    def plain(self) -> dict[str, object]:
        """As it stands in a recipe."""
        return {"labels": self.labels.tolist(), "classes": self.classes}


@dataclass(frozen=True)
class ArchitectureFacts:
    """What is known of a target's network before it is trained or opened.

    `taps`: the outputs that can be read, which are the places where it can be cut; `batchnorm`: its BatchNorm layers,
    by their names in the deployed network; `classes`: how many it tells apart (None: not known yet); `channels` and
    `size` of the images its layers see. `taps` is empty and `channels` and `size` are None where the network is
    deployed inside another that does not tell.
    """

    taps: tuple[str, ...]
    batchnorm: tuple[str, ...]
    classes: int | None
    channels: int | None
    size: int | None


@dataclass(frozen=True)
class DatasetFacts:
    """The shape of a dataset: `channels` and `size` of its images, and how many private `classes` it has (None until
    its images were loaded)."""

    channels: int
    size: int
    classes: int | None = None


@dataclass(frozen=True)
class EvidenceFacts:
    """What an attack will be handed: the `kind`, which is the name of the class that collects it, what a row
    `points_at` (`class` or `image`) and the stage behind which the network is `cut` (None: nowhere); once images were
    loaded, the `labels` of all targets and the shape of what is `observed` of one (None: nothing, or nothing before the
    target is there to release it, where it `releases` something)."""

    kind: str
    points_at: str = "class"
    cut: str | None = None
    releases: bool = False
    labels: tuple[int, ...] | None = None
    observed: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Setting:
    """All an attack may look at before compute is spent, so that it can refuse what it cannot do. It is shown twice:
    when the configuration is read, and when the images were loaded, before anything is trained.

    `prior` is the class of the prior; `of_attributes`: whether the target tells attributes, each by an output of its
    own, and no classes. The facts of the architecture cost building its network (without memory), so they are looked
    up, by `describe`, when they are first read.
    """

    prior: type
    dataset: DatasetFacts
    evidence: EvidenceFacts
    describe: Callable[[], ArchitectureFacts]
    of_attributes: bool = False

    @functools.cached_property
    def architecture(self) -> ArchitectureFacts:
        """The target's network, as deployed. Raises `NotYetKnown` where it is built for a number of classes that only
        the images tell; a check that stops at that is made again when they were loaded."""
        return self.describe()


# Long work yields this: the step done so far, numbers to log, and a function that gives the whole state as a
# flat dict of tensors (optimisers included), called only when the state is saved.
Progress = tuple[int, dict[str, float], Callable[[], dict[str, Tensor]]]


def clip_images(images: Tensor) -> Tensor:
    """The one place where images are clipped to [0, 1] before they are scored or saved."""
    return images.detach().clamp(0, 1)


def to_pixels(images: Tensor) -> Tensor:
    """Images [M, C, H, W] as uint8, clipped and rounded."""
    return (clip_images(images) * 255).round().to(torch.uint8)
