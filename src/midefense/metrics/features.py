"""What networks say of images: evaluators by their name, the attacked network as `target`, FID's as `inception`.

Every network is asked in evaluation mode, without gradients and in batches, and is left in the mode it was found in.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from midefense.metrics.base import Judged, Metric, World
from midefense.types import Refused, Trace, refuse_unknown

INCEPTION = "inception"
INCEPTION_PPA = "inception_legacy_ppa"
TARGET = "target"
RESERVED = (INCEPTION, INCEPTION_PPA, TARGET)
PIXELS = 2**21  # height x width of a batch together: what the first layers of a large network make of it fits in 1 GiB
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"


class FeatureMetric(Metric):
    """A metric of the features that one network gives private and recovered images.

    Args:
        features: `inception`, the name of an evaluator, or `auto` (see `pin_features`).
        legacy_ppa: show Inception what PPA's code shows it (see `Inception`).
    """

    unhashed = ("batch_size",)

    def __init__(self, *, features: str, batch_size: int, legacy_ppa: bool = False) -> None:
        super().__init__()
        self.features = str(self.pin({"features": features})["features"])
        self.legacy_ppa = legacy_ppa
        self.batch_size = batch_size
        if self.features == INCEPTION:
            require_inception()

    @classmethod
    def pin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments with `features: auto` made concrete for this machine."""
        return pin_features(arguments)

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse features of a network that there is not."""
        if self.features not in (INCEPTION, TARGET, *evaluators):
            raise refuse_unknown(f"{type(self).__name__}.features", self.features, ["auto", INCEPTION, *evaluators])

    @property
    def network(self) -> str:
        """The network that is asked."""
        return INCEPTION_PPA if self.legacy_ppa and self.features == INCEPTION else self.features

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {"features": judged_trace(judged, world, self.network, self.batch_size).features}


def judged_trace(judged: Judged, world: World, name: str, batch_size: int) -> Trace:
    """What network `name` says of the judged images, computed once per batch of images."""
    if name not in judged.traces:
        module, images = network(world, name), shown_to(judged, world, name)
        rows = batch_rows(batch_size, images.shape[-1], module)
        batches = (batch.to(world.device) for batch in images.split(rows))
        judged.traces[name] = ask(module, batches, name)
    return judged.traces[name]


def shown_to(judged: Judged, world: World, name: str) -> Tensor:
    """The judged images as network `name` is shown them: of a size of its own, or of the target's."""
    return judged.framed[world.shown[name].pixels.shape[-1]] if name in world.shown else judged.images


def reference_features(world: World, name: str, batch_size: int) -> Tensor:
    """Features [N, F] that network `name` gives all private training images, computed once per world."""
    key = ("references", name)
    if key not in world.cache:
        module, images = network(world, name), world.references_for(name)
        rows = batch_rows(batch_size, images.pixels.shape[-1], module)
        batches = (images.floats(slice(i, i + rows), world.device) for i in range(0, len(images), rows))
        world.cache[key] = ask_features(module, batches, name, len(images))
    return world.cache[key]


def original_features(judged: Judged, world: World, name: str, batch_size: int) -> Tensor:
    """Features [M, F] that network `name` gives the private images that the judged ones answer (`judged.ids`); each
    image is asked about once per world."""
    key = ("originals", name)
    known, features = world.cache.get(key, (judged.ids.new_empty(0), torch.empty(0)))
    asked = judged.ids.unique()
    if len(new := asked[~torch.isin(asked, known)]):
        module = network(world, name)
        rows = batch_rows(batch_size, world.references_for(name).pixels.shape[-1], module)
        batches = (world.private_for(name, part) for part in new.split(rows))
        found = ask_features(module, batches, name, len(new))
        features = torch.cat([features, found]) if len(known) else found
        known = torch.cat([known, new])
        world.cache[key] = known, features
    order = known.argsort()
    return features[order[torch.searchsorted(known[order], judged.ids.contiguous())]]


def batch_rows(batch_size: int, size: int, module: nn.Module | None = None) -> int:
    """How many images of `size` pixels a side to hold, or to show `module`, at once: at most `batch_size`, fewer of
    large ones (what counts is the size that the network brings them to)."""
    side = max(size, getattr(module, "size", 0))
    return max(1, min(batch_size, PIXELS // side**2))


def evaluator_names(world: World) -> list[str]:
    """Names of the world's evaluators; refused if there is none to judge by."""
    if not world.evaluators:
        raise Refused("evaluators: expected at least one, got none; try evaluator=... on the command line")
    require_names(world.evaluators)
    return list(world.evaluators)


def require_names(evaluators: Iterable[str]) -> None:
    """Refuse evaluators that bear the name of a network of ours."""
    if taken := sorted(set(RESERVED) & set(evaluators)):
        raise Refused(f"evaluators: expected names other than {', '.join(RESERVED)}, got {taken[0]!r}; try main")


def class_count(world: World, name: str) -> int:
    """How many classes evaluator `name` knows; at least the private ones, which are its first."""
    key = ("classes", name)
    if key not in world.cache:
        one = world.references_for(name).floats(slice(0, 1), world.device)
        world.cache[key] = ask(network(world, name), [one], name).logits.shape[1]
    if world.cache[key] < world.classes:
        raise Refused(
            f"evaluator {name!r}: expected at least the {world.classes} private classes, got {world.cache[key]}; "
            f"try an evaluator trained on the whole private set"
        )
    return world.cache[key]


def network(world: World, name: str) -> nn.Module:
    """The network called `name`: `inception`, the `target`, or one of the world's evaluators."""
    if name in (INCEPTION, INCEPTION_PPA):
        if name not in world.cache:
            world.cache[name] = Inception(legacy_ppa=name == INCEPTION_PPA).to(world.device)
        return world.cache[name]
    if name == TARGET and world.target is not None:
        return world.target
    if name not in world.evaluators:
        raise refuse_unknown("feature network", name, [INCEPTION, *world.evaluators])
    return world.evaluators[name]


@torch.no_grad()
def ask(module: nn.Module, batches: Iterable[Tensor], name: str) -> Trace:
    """Logits [N, classes] and features [N, F], float32, of all batches; refused if any is not finite."""
    with evaluating(module):
        traces = [module(batch) for batch in batches]
    logits = torch.cat([trace.logits.float() for trace in traces])
    features = torch.cat([trace.features.float() for trace in traces])
    broken = ~(logits.isfinite().all(1) & features.isfinite().all(1))
    if broken.any():
        raise Refused(
            f"network {name!r}: expected finite answers, got NaN or infinity for {int(broken.sum())} of "
            f"{len(broken)} images; try to retrain it"
        )
    return Trace(logits=logits, features=features)


def ask_features(module: nn.Module, batches: Iterable[Tensor], name: str, count: int) -> Tensor:
    """The features [count, F] alone, each batch's put in its place: they may fill memory and never lie there twice."""
    features, done = torch.empty(0), 0
    for batch in batches:
        part = ask(module, [batch], name).features
        if not done:
            features = part.new_empty(count, part.shape[1])
        features[done : done + len(part)] = part
        done += len(part)
    return features


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being; each submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class Inception(nn.Module):
    """The Inception-v3 of FID (Heusel et al., NeurIPS 2017) as ported by pytorch-fid, features [N, 2048] of its last
    pooling. Takes images in [0, 1], grey or RGB; resizes to 299 by bilinear interpolation and normalises inside.

    `legacy_ppa`: show it what PPA's code shows it, images in [-1, 1] where the port expects [0, 1], so that it sees
    values in [-3, 1]. Distances are then of no use but for comparison with numbers measured the same way.
    """

    size = 299

    def __init__(self, *, legacy_ppa: bool = False) -> None:
        super().__init__()
        require_inception()
        from pytorch_fid.inception import InceptionV3

        self.blocks = InceptionV3(resize_input=True, normalize_input=True).eval()
        self.legacy_ppa = legacy_ppa

    def forward(self, images: Tensor) -> Trace:
        images = 2 * images - 1 if self.legacy_ppa else images
        features = self.blocks(images.expand(-1, 3, -1, -1))[0].flatten(1)
        return Trace(logits=features.new_zeros(len(features), 0), features=features)


def inception_file() -> Path:
    """Where pytorch-fid looks for its weights before it would download them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def require_inception() -> None:
    """Refuse if the Inception weights are absent (they are never downloaded) or are not what their name says."""
    path = inception_file()
    if not path.is_file():
        raise Refused(
            f"features=inception: expected the weights at {path}, got no such file; choices: put {INCEPTION_ADDRESS} "
            f"there, or features=main for the evaluator's features"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(path.stem.rsplit("-", 1)[1]):
        raise Refused(
            f"features=inception: expected SHA-256 as in the name of {path}, got {digest[:8]}; try {INCEPTION_ADDRESS}"
        )


def pin_features(arguments: dict[str, object]) -> dict[str, object]:
    """Replace `features: auto` by the network it means here: Inception where its weights are present, else the
    evaluator called `main`. Done when a configuration is bound, so that the choice is part of its hash."""
    if arguments.get("features", "auto") != "auto":
        return dict(arguments)
    return {**arguments, "features": INCEPTION if inception_file().is_file() else "main"}


def feature_sets(rows: dict[str, Tensor], world: World, name: str, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Private training features of the attacked classes [N, F], their labels [N], and the judged features [M, F].
    All float32: what sums over many images converts a few rows at a time, as both sets may fill memory."""
    labels = world.references.labels.to(world.device)
    attacked = torch.isin(labels, rows["label"])
    private = reference_features(world, name, batch_size)
    if not attacked.all():
        private, labels = private[attacked], labels[attacked]
    return private, labels, rows["features"]
