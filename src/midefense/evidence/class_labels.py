"""Class inversion's evidence: the number of a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from midefense.datasets.base import Splits
from midefense.evidence.base import EvidenceSource
from midefense.types import Evidence, Refused


class ClassLabels(EvidenceSource):
    """Class inversion: the attacker knows the numbers of the classes and nothing else.

    Args:
        classes: "all", or the class numbers to attack.
    """

    revision = 1

    def __init__(self, *, classes: str | Sequence[int] = "all"):
        if isinstance(classes, str) and classes != "all":
            raise Refused(f'evidence.classes: expected "all" or a list of class numbers, got {classes!r}')
        self.classes = classes

    def collect(self, splits: Splits) -> Evidence:
        """One row per attacked class, in the order of `classes`.

        Raises:
            Refused: a class number the dataset has not, or one named twice.
        """
        known = splits.classes
        wanted = list(range(known)) if self.classes == "all" else [int(c) for c in self.classes]
        if unknown := [c for c in wanted if not 0 <= c < known]:
            raise Refused(
                f"evidence.classes: expected class numbers from 0 to {known - 1} ({', '.join(splits.class_names[:8])}"
                f"{', ...' if known > 8 else ''}), got {unknown}"
            )
        if not wanted or len(set(wanted)) != len(wanted):
            raise Refused(f"evidence.classes: expected distinct class numbers, at least one, got {wanted}")
        labels = torch.tensor(wanted)
        return Evidence(labels=labels, ids=labels.clone())
