"""Distances in features that have no scale, read as a place between two anchors that have a meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

WITHOUT_SCALE = ("fid", "kid")  # distances whose size says nothing, unless the network is the one of all papers
SCALED = "inception"


def without_scale(name: str) -> bool:
    """Whether the size of the number called `name` says nothing by itself."""
    stem, _, network = name.partition("/")
    return stem in WITHOUT_SCALE and not network.startswith(SCALED)


def relative(
    name: str, value: float, anchors: Mapping[str, Mapping[str, float]]
) -> tuple[str, Callable[[float], float], dict[str, float]] | None:
    """What to call the distance `name` (`kid/main` becomes `kid_relative/main`) as the way from real private images (0)
    to unattacked samples of the prior (1), the map of distances to places there (NaN stays), and the places of all
    `anchors` (distances by anchor and name). None for other numbers, and for a `value` between anchors that are not
    there, or that do not lie in this order."""
    if not without_scale(name):
        return None
    real, prior = (anchors.get(kind, {}).get(name, math.nan) for kind in ("real", "prior"))
    apart = prior > real
    if math.isfinite(value) and not apart:
        return None

    def placed(distance: float) -> float:
        return (distance - real) / (prior - real) if math.isfinite(distance) else math.nan

    levels = {kind: placed(known[name]) for kind, known in anchors.items() if name in known} if apart else {}
    return name.replace("/", "_relative/", 1), placed, levels
