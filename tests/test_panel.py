"""Several evaluators: kappa of the books, the strictest with its interval, and what one evaluator alone would hide."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import plan_for
from contract.listing import composed
from torch import nn

from midefense.metrics.agreement import cohen_kappa, fleiss_kappa
from midefense.metrics.base import Judged, World
from midefense.metrics.intervals import SHARE, TAIL, mean_interval
from midefense.metrics.panel import Panel, strictest
from midefense.types import Images, Refused, Trace


class Shifted(nn.Module):
    """Sees the pixel that is brightest, `by` places on in some rows: an evaluator that errs where it is told to."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, images):
        flat = images.flatten(1)[:, :4]
        marked = images.flatten(1)[:, 4] > self.wrong
        return Trace(logits=torch.where(marked[:, None], flat.roll(1, 1), flat), features=flat)


def judged(marks, labels):
    """Images [N, 1, 1, 5]: the class is the brightest of four pixels, the fifth says who errs."""
    images = torch.zeros(len(labels), 1, 1, 5)
    images[torch.arange(len(labels)), 0, 0, labels] = 0.9
    images[:, 0, 0, 4] = torch.tensor(marks)
    counts = torch.stack([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    return Judged(images, labels, counts)


def world_of(**wrong):
    labels = torch.arange(4)
    references = Images(torch.zeros(4, 1, 1, 5, dtype=torch.uint8), labels, labels, list("abcd"))
    return World(references, {name: Shifted(value) for name, value in wrong.items()}, 4)


def measure(world, one):
    metric = Panel()
    metric.update(one, world)
    return metric.compute(world)


LABELS = torch.arange(4).repeat_interleave(3)


def test_a_panel_made_by_hand():
    """One errs where the mark is above .2, one above .5 and one never."""
    found = measure(world_of(strict=0.2, middle=0.5, mild=2.0), judged([0.0, 0.3, 0.7] * 4, LABELS))
    values = {name: number.value for name, number in found.items()}
    kappa = fleiss_kappa(np.array([[3, 0], [2, 1], [1, 2]] * 4))
    assert values == pytest.approx(
        {
            "panel_accuracy_strictest/panel": 1 / 3,
            "panel_accuracy_every/panel": 1 / 3,
            "panel_accuracy_any/panel": 1.0,
            "panel_agreement/panel": 1 / 3,
            "panel_kappa/panel": kappa,
        }
    )
    assert found["panel_accuracy_strictest/panel"].reason == "the strictest is strict"


def test_who_is_recognised_by_all_may_be_fewer_than_by_the_strictest():
    """Two evaluators that err on different images."""

    class Other(Shifted):
        def forward(self, images):
            return super().forward(torch.cat([images[..., :4], 1 - images[..., 4:]], -1))

    world = world_of(first=0.5)
    world.evaluators["second"] = Other(0.6)
    found = measure(world, judged([0.0, 0.7, 0.45] * 4, LABELS))
    assert found["panel_accuracy_strictest/panel"].value == pytest.approx(2 / 3)
    assert found["panel_accuracy_every/panel"].value == pytest.approx(1 / 3)


def test_who_all_agree_have_no_kappa_where_there_is_nothing_to_agree_about():
    found = measure(world_of(first=2.0, second=2.0), judged([0.0] * 12, LABELS))
    assert found["panel_agreement/panel"].value == 1.0
    assert math.isnan(found["panel_kappa/panel"].value) and "recognise everything" in found["panel_kappa/panel"].reason


def test_targets_that_were_never_reached_count_as_failed():
    world = world_of(first=2.0, second=2.0)
    world.unreached, world.each = torch.tensor([3]), 3
    found = measure(world, judged([0.0] * 9, LABELS[:9]))
    strict = found["panel_accuracy_strictest/panel"]
    assert strict.value == found["panel_accuracy_every/panel"].value == 0.75 and strict.low < 0.75 < strict.high
    assert Panel().nothing(world)["panel_accuracy_any/panel"].value == 0


def drawn(rng, classes, means, together):
    """Hits by evaluator, bool [classes x 4] each, of identities that are recognised by nearly all or nearly none;
    `together`: whether they err on the same identities."""
    uniform = rng.random((1 if together else len(means), classes)).repeat(len(means) if together else 1, 0)
    chances = np.where(uniform < np.array(means)[:, None], 0.98, 0.02)
    return {
        str(place): torch.from_numpy(rng.random((classes, 4)) < own[:, None]).flatten()
        for place, own in enumerate(chances)
    }


def covers(found, truth):
    return found.low <= truth <= found.high


def of_the_least(hits, labels):
    """The interval of whoever recognised least, as if nobody had been chosen."""
    counts = np.full(len(labels) // 4, 4)
    sums = [own.view(-1, 4).sum(1).numpy() for own in hits.values()]
    return mean_interval(min(sums, key=np.sum), counts, SHARE)


def simulated(together, interval, repetitions=150, classes=40, means=(0.5,) * 6):
    rng, labels = np.random.default_rng(0), torch.arange(classes).repeat_interleave(4)
    truth = 0.98 * means[0] + 0.02 * (1 - means[0])
    return np.mean([covers(interval(drawn(rng, classes, means, together), labels), truth) for _ in range(repetitions)])


@pytest.mark.parametrize("together", [True, False], ids=["errs together", "errs apart"])
def test_the_strictests_interval_allows_for_the_choice(together):
    world = world_of(first=1.0)
    found = simulated(together, lambda hits, labels: strictest(hits, labels, world), repetitions=60)
    assert found >= 0.95


def test_the_simulation_tells_an_interval_that_does_not():
    """Six alike evaluators that err apart: the least of them lies below the truth that they share."""
    assert simulated(False, of_the_least) < 0.9
    assert mean_interval([3, 1], [4, 4], SHARE, TAIL / 6).high > mean_interval([3, 1], [4, 4], SHARE).high


# ------------------------------------------------------------------------------------------------ kappa


def test_cohens_own_example():
    """Cohen 1960: shares .25 .13 .12 / .12 .02 .16 / .03 .15 .02 of three categories; kappa is -.09 by his formula."""
    table = np.array([[25, 13, 12], [12, 2, 16], [3, 15, 2]])
    first, second = (
        np.concatenate([np.full(table[i, j], k) for i in range(3) for j in range(3) for k in [(i, j)[axis]]])
        for axis in (0, 1)
    )
    expected = (0.29 - (0.5 * 0.4 + 0.3 * 0.3 + 0.2 * 0.3)) / (1 - 0.35)
    assert cohen_kappa(first, second) == pytest.approx(expected)


def test_fleiss_example_of_the_books():
    """Ten subjects, fourteen raters, five categories: .210 (Fleiss 1971's formula, the usual worked table)."""
    table = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]]
    table += [[7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    assert fleiss_kappa(np.array(table)) == pytest.approx(0.210, abs=5e-4)


def test_kappa_of_agreement_chance_and_none():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 2, 4000), rng.integers(0, 2, 4000)
    assert cohen_kappa(one, one) == 1 and abs(cohen_kappa(one, other)) < 0.05
    assert cohen_kappa(np.array([0, 1]), np.array([1, 0])) == -1
    assert math.isnan(cohen_kappa(np.ones(3), np.ones(3))) and math.isnan(cohen_kappa(np.ones(0), np.ones(0)))
    assert math.isnan(fleiss_kappa(np.array([[2, 0], [2, 0]])))
    with pytest.raises(ValueError, match="equally many"):
        fleiss_kappa(np.array([[2, 0], [1, 0]]))


# ------------------------------------------------------------------------------------------------ configuration


def test_a_panel_of_one_is_refused(store):
    with pytest.raises(Refused, match=re.escape("metrics.panel: expected two evaluators or more, got main")):
        Panel().check(["main"])
    with pytest.raises(Refused, match="names other than panel"):
        Panel().check(["main", "panel"])
    words = ("dataset=toy", "architecture=cnn", "metrics=panel", "~evaluators.coarse", "~evaluators.transformer")
    with pytest.raises(Refused, match="expected two evaluators or more, got main"):
        plan_for("evaluate", *words, store=store)


def test_a_panel_brings_evaluators_of_other_families_that_may_be_exchanged():
    families = [
        node["architecture"]["_target_"] for node in composed("evaluate", "metrics=panel")[0]["evaluators"].values()
    ]
    assert len(set(families)) == len(families) == 3
    exchanged = composed("evaluate", "metrics=[all,panel]", "evaluator@evaluators.coarse=resnet18")[0]
    assert "resnet" in exchanged["evaluators"]["coarse"]["architecture"]["_target_"].lower()
    assert list(composed("evaluate", "metrics=all")[0]["evaluators"]) == ["main"]


def test_trust_is_all_metrics_and_all_that_tells_fooling():
    config = composed("evaluate", "metrics=trust")[0]
    everything = {*composed("evaluate", "metrics=all")[0]["metrics"]}
    assert set(config["metrics"]) == everything | {"panel", "net_of_fooling", "robust", "nearest_other"}
    assert len(config["evaluators"]) == 3
