"""The four numbers that code of the low-resolution benchmark prints as FID. No two of them can be compared, nor any
with `fid/inception` (card low_res_benchmark.md, section 5); each stands under its own name.

- `plg`: PLG-MI (Yuan et al., AAAI 2023). ImageNet's Inception-v3 of torchvision instead of FID's; images that the
  evaluator recognises alone, each stretched to its own darkest and brightest pixel; against all private images.
- `rethinking`: Re-thinking MI (Nguyen et al., CVPR 2023). FID's Inception; images that the evaluator recognises alone,
  shown as x/2 + 1/2 although they are in [0, 1] already (washed out); against the attacked classes.
- `dmi`: Defend_MI (Peng et al., KDD 2022: BiDO). No Inception: the evaluator's features of all images, against the
  first few private ones of each attacked class.
- `toolbox`: MIBench (Qiu et al.). FID's Inception, all images, at their own size against private ones of 112 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from midefense.architectures.inception import InceptionV3
from midefense.architectures.official import IMAGENET_CLASSES, weights_of
from midefense.metrics.base import Judged, Measured, Metric, World
from midefense.metrics.features import (
    INCEPTION,
    ask_features,
    batch_rows,
    judged_trace,
    network,
    reference_features,
    require_inception,
    require_names,
)
from midefense.metrics.fid import measured_distance
from midefense.ranges import Count
from midefense.types import Images, Refused, Trace, refuse_unknown

IMAGENET = "imagenet_inception"
EVALUATOR = "evaluator"


@dataclass(frozen=True)
class Version:
    """Which network is asked, whether only images that the evaluator recognises count, whether recovered images are
    `stretched` or `washed_out` before, and what they are held against: `all_classes`, the first `per_class` images of
    the attacked ones, or their images of another `side`."""

    network: str
    successful: bool = False
    stretched: bool = False
    washed_out: bool = False
    all_classes: bool = False
    first: bool = False
    side: int | None = None

    def shown(self, images: Tensor) -> Tensor:
        """Recovered images [B, C, H, W] in [0, 1] as the network is shown them."""
        if self.stretched:
            low, high = images.flatten(1).aminmax(dim=1)
            shape = (-1, 1, 1, 1)
            return (images - low.view(shape)) / (high - low).clamp(min=1e-5).view(shape)
        return images / 2 + 0.5 if self.washed_out else images


VERSIONS = {
    "plg": Version(IMAGENET, successful=True, stretched=True, all_classes=True),
    "rethinking": Version(INCEPTION, successful=True, washed_out=True),
    "dmi": Version(EVALUATOR, first=True),
    "toolbox": Version(INCEPTION, side=112),
}


class BenchmarkFid(Metric):
    """`fid_<version>/<network>`, lower means closer to the private images; NaN where no more images than features are
    left, or none of the size wanted.

    Args:
        version: whose: `plg`, `rethinking`, `dmi` or `toolbox`. There is none that is meant by "fid" alone.
        evaluator: by its name, who recognises images, and whose features `dmi` compares.
        per_class: private images of each class that `dmi` compares with (5 of CelebA, 100 of MNIST).
    """

    higher_leaks = False
    unhashed = ("batch_size",)

    def __init__(self, *, version: str, evaluator: str = "main", per_class: Count = 5, batch_size: Count = 256) -> None:
        super().__init__()
        if version not in VERSIONS:
            raise refuse_unknown("BenchmarkFid.version", version, VERSIONS, "They cannot be compared with one another.")
        self.version, self.named = VERSIONS[version], version
        self.evaluator, self.per_class, self.batch_size = evaluator, per_class, batch_size
        if self.version.network == INCEPTION:
            require_inception()
        if self.version.network == IMAGENET:
            require_imagenet_inception()

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse an evaluator that there is not."""
        require_names(evaluators)
        if self.evaluator not in evaluators:
            raise refuse_unknown("BenchmarkFid.evaluator", self.evaluator, evaluators)

    @property
    def name(self) -> str:
        """The number's name, with the network's."""
        asked = self.evaluator if self.version.network == EVALUATOR else self.version.network
        return f"fid_{self.named}/{asked}"

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        logits = judged_trace(judged, world, self.evaluator, self.batch_size).logits
        hits = logits.argmax(1) == judged.labels.to(world.device)
        if self.version.network == EVALUATOR:
            features = judged_trace(judged, world, self.evaluator, self.batch_size).features
        else:
            features = self._ask(world, self.version.shown(judged.images).split(self.batch_size), len(judged.images))
        return {"features": features, "counts": hits if self.version.successful else torch.ones_like(hits)}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        recovered = rows["features"][rows["counts"]]
        if self.version.successful and not len(recovered):
            reason = f"evaluator {self.evaluator!r} recognises none of the {len(rows['features'])} images"
            return {self.name: Measured.undefined(reason, len(rows["features"]), higher_leaks=False)}
        held_against = self._references(world)
        if held_against is None:
            side = self.version.side
            reason = f"expected private images of {side} px; an evaluator brings them: evaluators.main.size={side}"
            return {self.name: Measured.undefined(reason, len(recovered), higher_leaks=False)}
        rows_of = self._chosen(held_against, rows["label"])
        private = self._reference_features(world, held_against)[rows_of.to(world.device)]
        return {self.name: measured_distance(private, recovered)}

    def _references(self, world: World) -> Images | None:
        """The private images that it compares with, of the size wanted; None where there are none of it."""
        if self.version.network == EVALUATOR:
            return world.references_for(self.evaluator)
        if self.version.side is None:
            return world.references
        every = (world.references, *world.shown.values())
        return next((images for images in every if images.pixels.shape[-1] == self.version.side), None)

    def _chosen(self, images: Images, labels: Tensor) -> Tensor:
        """Rows of the private images that count, for attacked `labels` [M]."""
        rows = torch.arange(len(images))
        if not self.version.all_classes:
            rows = rows[torch.isin(images.labels, labels.unique().cpu())]
        if self.version.first:
            owned = images.labels[rows]
            rows = torch.cat([rows[owned == label][: self.per_class] for label in owned.unique()])
        return rows

    def _reference_features(self, world: World, images: Images) -> Tensor:
        if self.version.network == EVALUATOR:
            return reference_features(world, self.evaluator, self.batch_size)
        key = ("references", self.version.network, images.pixels.shape[-1])
        if key not in world.cache:
            rows = batch_rows(self.batch_size, images.pixels.shape[-1])
            batches = (images.floats(slice(i, i + rows), world.device) for i in range(0, len(images), rows))
            world.cache[key] = self._ask(world, batches, len(images))
        return world.cache[key]

    def _ask(self, world: World, batches: Sequence[Tensor], count: int) -> Tensor:
        """Features [count, F] of images as they are."""
        if self.version.network == INCEPTION:
            return ask_features(network(world, INCEPTION), batches, INCEPTION, count)
        if IMAGENET not in world.cache:
            world.cache[IMAGENET] = ImagenetInception().to(world.device)
        return ask_features(world.cache[IMAGENET], batches, IMAGENET, count)


class ImagenetInception(nn.Module):
    """torchvision's Inception-v3 with its ImageNet weights: images in [0, 1], grey or RGB, to features [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        require_imagenet_inception()
        shape = {"classes": IMAGENET_CLASSES, "channels": 3}
        self.network = InceptionV3(**shape, auxiliary_weight=0.0, pretrained=True).eval()

    def forward(self, images: Tensor) -> Trace:
        return self.network(images.expand(-1, 3, -1, -1))


def require_imagenet_inception() -> None:
    """Refuse if torchvision's weights are absent; they are never downloaded."""
    address = weights_of("inception_v3").IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[1]
    if not path.is_file():
        raise Refused(
            f"version=plg: expected the weights at {path}, got no such file; choices: put {address} there, or another "
            "version"
        )
