"""What every classifier is: a preprocessing step, named stages, and a linear head.

The last stage is called `features`: its output [B, F] is the input of the head; stages that a defense puts in may
stand between them, and the features of a `Trace` are then what the last of these gives. Resizing and normalising
happen inside, so that everything outside the network speaks of images in [0, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.ranges import Deviation
from midefense.resampling import resized
from midefense.types import Refused, Trace, refuse_unknown


class Preprocess(nn.Module):
    """Resize to `size` pixels square (bilinear, antialiased, only if different), then `(images - mean) / std`.

    `mean` and `std` hold one value, or one per channel, in units of the [0, 1] image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, channels: int, size: int, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
    ) -> None:
        super().__init__()
        self.channels = channels
        self.size = size
        # Not part of the weights: both stand in the configuration.
        self.register_buffer("mean", per_channel("mean", mean, channels), persistent=False)
        self.register_buffer("std", per_channel("std", std, channels), persistent=False)
        if min([std] if isinstance(std, int | float) else std, default=1) <= 0:
            raise Refused(f"std: expected values above 0, got {std}; try 0.5, or 1 for no scaling")

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to the network's own space [B, C, size, size]."""
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise Refused(
                f"images: expected [B, {self.channels}, H, W], got {list(images.shape)}; "
                "try a dataset with this number of channels, or build the network with channels= of the images"
            )
        return (self.fit(images) - self.mean) / self.std

    def fit(self, images: Tensor) -> Tensor:
        """Images of any size to the one that the network takes, still in [0, 1]."""
        return resized(images, self.size)


def per_channel(name: str, values: float | Sequence[float], channels: int) -> Tensor:
    """`values` (one, or one per channel) as a tensor [1, channels, 1, 1]."""
    tensor = torch.as_tensor(values, dtype=torch.float32).flatten()
    if len(tensor) not in (1, channels):
        raise Refused(f"{name}: expected 1 or {channels} values for {channels} channels, got {len(tensor)}")
    return tensor.expand(channels).reshape(1, channels, 1, 1).clone()


class Classifier(nn.Module):
    """A chain of named `stages` and a linear head `classifier`, behind `preprocess`.

    `forward(images)` takes images [B, C, H, W] in [0, 1] and gives a `Trace` with logits [B, classes] and features
    [B, F]; `taps` names the stages whose outputs are wanted beside them, from the same forward.

    `architecture.cut` names the stage behind which a deployed network is cut in two (None: nowhere); it stands beside
    the constructor's options (`aside`), as it changes no weight.

    `auxiliary_weight`: above 0, the network leaves logits of an auxiliary head in `Trace.taps["aux"]` while training,
    whose cross-entropy is added to the loss so many times. `centroid_scale`: length of the weights that `set_centroids`
    gives the head.

    `output` (defenses/output.py) is put in where a defense changes what the deployed network tells; one that learned
    to (defenses/purifier.py) has weights of its own.
    It makes the logits and the probabilities of a `Trace`, of the head's logits and the images.
    """

    revision = 1
    aside: ClassVar[dict[str, tuple[object, object]]] = {"cut": (str | None, None)}
    auxiliary_weight = 0.0
    centroid_scale = 1.0

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        classifier: nn.Linear,
        *,
        channels: int,
        size: int,
        mean: float | Sequence[float],
        std: Deviation,
    ) -> None:
        super().__init__()
        if list(stages)[-1:] != ["features"]:
            raise Refused(f"stages: expected the last one to be called 'features', got {list(stages)}")
        self.preprocess = Preprocess(channels=channels, size=size, mean=mean, std=std)
        self.stages = nn.ModuleDict(stages)
        self.classifier = classifier
        self.output: nn.Module | None = None

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names of the outputs that can be tapped and of the places where the network can be split."""
        return tuple(self.stages)

    @property
    def classes(self) -> int:
        return self.classifier.out_features

    @property
    def feature_width(self) -> int:
        return self.classifier.in_features

    @property
    def channels(self) -> int:
        return self.preprocess.channels

    @property
    def size(self) -> int:
        """Side in pixels of the images the stages see."""
        return self.preprocess.size

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        """One forward. Raises `Refused` for an unknown tap or a wrong number of channels."""
        for name in taps:
            self._require_stage("tap", name)
        hidden = self.preprocess(images)
        kept = {}
        for name, stage in self.stages.items():
            hidden = stage(hidden)
            if name in taps:
                kept[name] = hidden
        logits, probs = self.classifier(hidden), None
        if self.output is not None:
            logits, probs = self.output(logits, images)
        return Trace(logits, hidden, kept, probs)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, F]: the flattened input of the head."""
        hidden = self.preprocess(images)
        for stage in self.stages.values():
            hidden = stage(hidden)
        return hidden

    def head(self, features: Tensor) -> Tensor:
        """Logits [B, classes] of features [B, F]."""
        return self.classifier(features)

    def split(self, cut: str) -> tuple[nn.Module, nn.Module]:
        """The network cut behind stage `cut`: `cloud(edge(images))` equals the logits bit for bit.

        Both halves share their weights with this network. Raises `Refused` for an unknown `cut`.
        """
        self._require_stage("cut", cut)
        stages = list(self.stages.values())
        behind = self.tap_names.index(cut) + 1
        return nn.Sequential(self.preprocess, *stages[:behind]), nn.Sequential(*stages[behind:], self.classifier)

    def with_head(self, classes: int) -> Classifier:
        """A copy of this network with a fresh head for `classes` (drawn from torch's global stream)."""
        other = copy.deepcopy(self)
        weight = self.classifier.weight
        other.classifier = nn.Linear(self.feature_width, classes, device=weight.device, dtype=weight.dtype)
        return other

    @torch.no_grad()
    def set_centroids(self, features: Tensor, labels: Tensor) -> None:
        """Make the head a nearest-centroid classifier: the weight of a class is the mean of its unit-length features
        [N, F], scaled to length `centroid_scale`; no bias. The largest logit is that of the largest cosine.

        Raises `Refused` unless `labels` [N] hold every class of the network and no other.
        """
        missing = sorted(set(range(self.classes)).symmetric_difference(labels.tolist()))
        if missing:
            raise Refused(
                f"labels: expected each of 0 to {self.classes - 1} and no other, they differ in {missing[:5]}; "
                "try the features of the whole training set of the network's classes"
            )
        weight = self.classifier.weight
        units = F.normalize(features.to(weight), dim=1)
        sums = weight.new_zeros(weight.shape).index_add_(0, labels.to(weight.device), units)
        weight.copy_(self.centroid_scale * F.normalize(sums, dim=1))
        if self.classifier.bias is not None:
            self.classifier.bias.zero_()

    def _require_stage(self, what: str, name: str) -> None:
        if name not in self.stages:
            raise refuse_unknown(what, name, self.tap_names)
