"""Split inference's evidence: what the edge released of each private picture."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.datasets.base import Splits
from midefense.evidence.base import EvidenceSource, Request
from midefense.evidence.transport import require_transport
from midefense.ranges import Count
from midefense.types import Evidence, Images, Refused, refuse_unknown

PARTS = ("test", "train")


class ReleasedFeatures(EvidenceSource):
    """The attacker sees what leaves the edge for each private picture, one row a picture: `labels` are the classes,
    `ids` those of the pictures, `observed` [N, ...] is the feature, the mean over `repeats` (Wang et al., NDSS 2024;
    averaging is attack A3 of its ladder).

    Args:
        images: "all", or how many pictures; a fixed choice without a seed, spread over the classes (`spread_over`).
        part: of the private pictures: `test`, or `train`.
        repeats: how often each picture is released, under draws of its own.
        transport: `float32`, `float16` or `uint8` (`evidence.transport`).
        cut: the stage behind which the network is cut; None: where the architecture says, else the input of the head.
    """

    revision = 1
    points_at = "image"
    releases = True
    of_the_attacker = ("repeats",)

    def __init__(
        self,
        *,
        images: str | Count = "all",
        part: str = "test",
        repeats: Count = 1,
        transport: str = "float32",
        cut: str | None = None,
    ):
        if isinstance(images, str) and images != "all":
            raise Refused(f'evidence.images: expected "all" or a number of pictures, got {images!r}; try 128')
        if part not in PARTS:
            raise refuse_unknown("evidence.part", part, PARTS)
        require_transport("evidence.transport", transport)
        self.images, self.part, self.repeats, self.transport, self.cut = images, part, repeats, transport, cut

    def collect(self, splits: Splits) -> Evidence:
        """One row per picture, in the order of the part. Refused for more pictures than there are."""
        chosen = self.chosen(splits)
        return Evidence(chosen.labels, chosen.ids)

    def request(self, splits: Splits) -> Request:
        """The same pictures."""
        return Request(self.chosen(splits), self.cut, self.repeats, self.transport)

    def chosen(self, splits: Splits) -> Images:
        """The pictures that are released."""
        part = splits.private_test if self.part == "test" else splits.private_train
        if self.images == "all":
            return part
        if self.images > len(part):
            raise Refused(f"evidence.images: expected at most {len(part)}, got {self.images}; try fewer, or all")
        return part.take(spread_over(part.labels, self.images))


def spread_over(labels: Tensor, count: int) -> Tensor:
    """`count` rows, ascending, of labels int64 [N]: as evenly over the classes as there are images, the first of each;
    where not every class gets one more, those that do lie evenly among the classes that have any left."""
    classes, sizes = labels.unique(return_counts=True)
    taken = torch.zeros_like(sizes)
    while (left := count - int(taken.sum())) > 0:
        free = (sizes > taken).nonzero()[:, 0]
        lucky = free if left >= len(free) else free[torch.arange(left) * len(free) // left]
        taken[lucky] += 1
    rows = [(labels == label).nonzero()[: int(n), 0] for label, n in zip(classes, taken, strict=True)]
    return torch.cat(rows).sort().values
