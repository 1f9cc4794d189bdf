"""Evidence of private images of which the attacker was shown less than all: masked or blurred (GMI's auxiliary
knowledge; Zhang et al., CVPR 2020, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from midefense import seeds
from midefense.datasets.base import Splits
from midefense.evidence.base import EvidenceSource, Release
from midefense.evidence.class_labels import ClassLabels
from midefense.obscuring import Obscuring
from midefense.ranges import Count, Seed
from midefense.types import Evidence, Images, Refused, refuse_unknown

PARTS = ("train", "test")


class AuxiliaryImages(EvidenceSource):
    """One row per private image: its class, and what `obscuring` leaves of it [N, C + 1, H, W] (see `obscuring`).

    Args:
        obscuring: what hides a part of the image. What it draws is drawn per image, by its id: an image is hidden
            alike whichever others are attacked.
        classes: "all", or the class numbers to attack.
        images: per class, the first of it.
        part: `train`, the images that the target learned from, or `test`.
        seed: of what is drawn.
    """

    revision = 1
    points_at = "image"

    def __init__(
        self,
        *,
        obscuring: Obscuring,
        classes: str | Sequence[int] = "all",
        images: Count = 1,
        part: str = "train",
        seed: Seed = 0,
    ):
        if part not in PARTS:
            raise refuse_unknown("evidence.part", part, PARTS)
        self.labels = ClassLabels(classes=classes)
        self.obscuring, self.images, self.part, self.seed = obscuring, images, part, seed

    def collect(self, splits: Splits) -> Evidence:
        """One row per image, class by class in the order of `classes`.

        Raises:
            Refused: a class that the dataset has not, or that has fewer images.
        """
        chosen = self._chosen(splits)
        return Evidence(chosen.labels, chosen.ids)

    def observe(self, evidence: Evidence, splits: Splits, release: Release) -> Evidence:
        """What is left of each image; the target is not asked."""
        chosen = self._chosen(splits)
        return Evidence(evidence.labels, evidence.ids, self.obscuring(chosen.floats(), self._dice(chosen.ids)))

    def _chosen(self, splits: Splits) -> Images:
        pool, rows = getattr(splits, f"private_{self.part}"), []
        for label in self.labels.collect(splits).labels.tolist():
            own = (pool.labels == label).nonzero()[:, 0]
            if len(own) < self.images:
                raise Refused(
                    f"evidence.images: expected at most {len(own)}, the private {self.part} images of class "
                    f"{splits.class_names[label]}, got {self.images}; try fewer, or evidence.classes without it"
                )
            rows.append(own[: self.images])
        return pool.take(torch.cat(rows))

    def _dice(self, ids: Tensor) -> Tensor:
        drawn = [self.obscuring.draw(1, seeds.generator(self.seed, "evidence", "obscuring", int(i))) for i in ids]
        return torch.cat(drawn)
