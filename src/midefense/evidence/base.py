"""What every source of evidence is: the victim's side of an attack, and all of it that may read private images.

A source says in two steps what an attacker is handed. `collect` names the targets, one row each, and is asked before
anything is trained; `observe` adds what the attacker sees of each, which may need the target that was trained.
Weights are evidence that needs no source: a white-box attack reads them itself (`Oracle.weights`), `observed` is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from midefense.datasets.base import Splits
from midefense.types import Evidence, Images


@dataclass(frozen=True, eq=False)
class Request:
    """What is to leave the edge of the deployed target: something of each of `images` [N], `repeats` times over with
    draws of its own, of the network cut behind stage `cut` (None: where the architecture says, else the input of the
    head), sent by `transport` (`evidence.transport`)."""

    images: Images
    cut: str | None = None
    repeats: int = 1
    transport: str = "float32"


# What arrives of a request, on the CPU, float32 [repeats, N, ...].
Release = Callable[[Request], Tensor]


class EvidenceSource:
    """What is collected of the victim, for which targets.

    Class attribute `points_at`: what the ids of a row name, a `class` (then they are the labels) or one private `image`
    (then they are `Images.ids`, and metrics may match a reconstruction with the image it answers).
    `of_the_attacker`: constructor arguments that say how much an attacker sees of the same targets. They are no part of
    the protocol, so that who saw more is ranked beside who saw less.
    `releases`: whether rows are what the edge of the target released; `cut` is then the stage behind which it is cut
    (None: where the architecture says, else the input of the head), and the attacker's oracle answers `features` there.
    """

    revision = 1
    points_at = "class"
    of_the_attacker: tuple[str, ...] = ()
    releases = False
    cut: str | None = None

    def collect(self, splits: Splits) -> Evidence:
        """One row per target, with nothing observed yet. Refused for what the dataset has not."""
        raise NotImplementedError

    def request(self, splits: Splits) -> Request | None:
        """What the edge is asked to release, a row for each row of `collect`; None where nothing is."""
        return None

    def observe(self, evidence: Evidence, splits: Splits, release: Release) -> Evidence:
        """The collected evidence with what is observed of each row; calling `release` is what makes the target
        necessary. Of what is released several times over, the attacker takes the mean."""
        request = self.request(splits)
        return evidence if request is None else replace(evidence, observed=release(request).mean(0))
