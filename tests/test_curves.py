"""Curves of a search: enough points of what the target said, and few looks at the device."""

import types

import pytest
import torch

from midefense.pipeline import recovery
from midefense.types import Found


class Told:
    """A run that keeps what it is told."""

    def __init__(self):
        self.points = []

    def log(self, values, step, namespace):
        assert namespace == "attack"
        self.points.append((step, values))


def found(step, stage="optimised", **changes):
    seen = {"loss": torch.tensor(float(step)), "confidence": torch.tensor(0.5)}
    return Found(torch.zeros(2, 1), torch.ones(2), torch.tensor([0, 1]), stage, **{"seen": seen, **changes})


def searched(steps, monkeypatch, surrogate=None, each=found):
    """The points of a search of so many steps, as `_Group.steps` tells them, and how often they were looked at."""
    run, looks = Told(), []
    curve = recovery._Curve(run, types.SimpleNamespace(steps=steps + 2, asks_target=surrogate is None))
    look = curve._look
    monkeypatch.setattr(curve, "_look", lambda: looks.append(1) or look())
    stages = ["initial", *["optimised"] * steps, "selected"]
    for step, stage in enumerate(stages, start=1):
        if newest := curve.add(step, 1000 + step, each(step, stage)):
            run.log(newest, 1000 + step, "attack")
    curve.end()
    return run.points, len(looks)


@pytest.mark.parametrize("steps", [50, 62, 63, 100, 126, 127, 191, 2400, 6400])
def test_at_least_fifty_points_in_order_and_few_looks(steps, monkeypatch):
    points, looks = searched(steps, monkeypatch)
    assert 50 <= len(points) <= 128
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert all(values == {"loss": step - 1000, "target_confidence": 0.5} for step, values in points)
    assert looks <= steps // recovery.LOOK_EVERY + 1, "the device is not waited for more often than it was"


def test_who_is_asked_in_the_targets_place_is_named(monkeypatch):
    points, _ = searched(60, monkeypatch, surrogate=object())
    assert all(set(values) == {"loss", "surrogate_confidence"} for _, values in points)


def test_a_search_that_tells_nothing_is_drawn_by_its_loss(monkeypatch):
    points, _ = searched(60, monkeypatch, each=lambda step, stage: found(step, stage, seen=None))
    assert [values for _, values in points] == [{"loss": 1.0}] * 60
