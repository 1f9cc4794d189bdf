"""Convex hulls of points in the plane, for what is measured in them and for what is drawn of them."""

from __future__ import annotations

import numpy as np

SLACK = 1e-9  # of the hull's extent: a corner counts as inside whatever the rounding


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners [K, 2] of the hull of points [N, 2], counter-clockwise; fewer than 3 if the points lie on a line.

    Andrew's monotone chain (Information Processing Letters, 1979).
    """
    ordered = np.unique(np.asarray(points, dtype=np.float64), axis=0)
    if len(ordered) < 3:
        return ordered
    corners = np.array(_chain(ordered)[:-1] + _chain(ordered[::-1])[:-1])
    # Points on a line may keep a third corner that rounding made of them.
    return corners if len(corners) > 2 and _area(corners) > SLACK * np.ptp(ordered, axis=0).max() ** 2 else corners[:2]


def in_hull(points: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """Whether points [N, 2] lie in a hull of at least 3 corners or on its edge, bool [N]."""
    edges = np.roll(hull, -1, axis=0) - hull
    offsets = np.asarray(points, dtype=np.float64)[:, None] - hull
    left_by = edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0]
    return (left_by >= -SLACK * np.ptp(hull, axis=0).max() ** 2).all(axis=1)


def _chain(ordered: np.ndarray) -> list[np.ndarray]:
    """The lower side of the hull of points that are ordered from left to right."""
    chain: list[np.ndarray] = []
    for point in ordered:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> float:
    """Above 0 if the way over three points turns left."""
    (x, y), (u, v) = second - first, third - first
    return x * v - y * u


def _area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
