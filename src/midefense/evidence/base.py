"""What every source of evidence is: the victim's side of an attack, and all of it that may read private images.

A source says in two steps what an attacker is handed. `collect` names the targets, one row each, and is asked before
anything is trained; `observe` adds what the attacker sees of each, which may need the target that was trained.
Weights are evidence that needs no source: a white-box attack reads them itself (`Oracle.weights`), `observed` is None.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from midefense.datasets.base import Splits
from midefense.types import Evidence, Images

# What leaves the edge of the deployed target, on the CPU [N, ...], for images [N] and the stage behind which it is cut.
Release = Callable[[Images, str], Tensor]


class EvidenceSource:
    """What is collected of the victim, for which targets.

    Class attribute `points_at`: what the ids of a row name, a `class` (then they are the labels) or one private `image`
    (then they are `Images.ids`, and metrics may match a reconstruction with the image it answers).
    `cut`: the stage of the target behind which features are released; the attacker's oracle answers `features` there
    (None: the input of the head).
    """

    revision = 1
    points_at = "class"
    cut: str | None = None

    def collect(self, splits: Splits) -> Evidence:
        """One row per target, with nothing observed yet. Refused for what the dataset has not."""
        raise NotImplementedError

    def observe(self, evidence: Evidence, splits: Splits, release: Release) -> Evidence:
        """The collected evidence with what is observed of each row. `release(images, cut)` asks the deployed target and
        its defense what leaves the edge; calling it is what makes the target necessary."""
        return evidence
