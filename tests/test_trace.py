"""What was found by when: the trace of an attack, and accuracy against queries from one run."""

import math
import re

import numpy as np
import pytest
import torch
from report_rows import document, put

from midefense.commands.report import run as report
from midefense.metrics.against_queries import against_queries, next_line
from midefense.pipeline.joining import joined
from midefense.pipeline.trace import Trace
from midefense.priors.pixels import Pixels
from midefense.report import build, read_rows
from midefense.report.queries import lines
from midefense.report.rows import setups
from midefense.store.store import Store
from midefense.types import Evidence, Found, Refused

EVIDENCE = Evidence(torch.tensor([4, 7]), torch.tensor([40, 70]))
PRIOR = Pixels(channels=1, size=2, start="noise")


class Bill:
    """An oracle as a trace sees one."""

    def __init__(self):
        self.bill = {}


def found(first, second, stage="optimised", pixels=None, scores=None):
    """Candidates of two targets: losses by list, latents that say (target, place)."""
    losses = [*first, *second]
    owners = torch.tensor([0] * len(first) + [1] * len(second), dtype=torch.int64)
    places = [*range(len(first)), *range(len(second))]
    latents = torch.tensor([[owner, place] for owner, place in zip(owners.tolist(), places, strict=True)]).float()
    scores = None if scores is None else torch.tensor(scores)
    return Found(latents.view(-1, 2), torch.tensor(losses), owners, stage, scores, pixels)


def rows(trace):
    kept = trace.tensors()
    return [
        (int(owner), int(asked), round(float(loss), 3), latent.tolist())
        for owner, asked, loss, latent in zip(
            kept["evidence"], kept["queries"], kept["loss"], kept["latents"], strict=True
        )
    ]


def watched(*steps, pictured=False):
    """`steps`: (bill of the two targets, found); the last is the selection."""
    oracle = Bill()
    trace = Trace(oracle, EVIDENCE, PRIOR, pictured)
    for bill, one in steps:
        oracle.bill = dict(zip((40, 70), bill, strict=True))
        if one.stage == "selected":
            trace.end(one, "")
        else:
            trace.add(one)
    return trace


def test_a_better_candidate_is_kept_and_a_worse_one_is_not():
    trace = watched(
        ((1, 1), found([3.0, 2.0], [5.0])),
        ((2, 2), found([2.5], [4.0])),
        ((3, 3), found([1.0], [math.nan])),
    )
    assert rows(trace) == [
        (0, 1, 2.0, [0.0, 1.0]),
        (0, 3, 1.0, [0.0, 0.0]),
        (1, 1, 5.0, [1.0, 0.0]),
        (1, 2, 4.0, [1.0, 0.0]),
    ]


def test_nothing_measured_yet_gives_way_to_anything_measured():
    trace = watched(((0, 0), found([math.nan], [math.nan])), ((5, 5), found([9.0], [math.nan])))
    assert [row[:2] for row in rows(trace)] == [(0, 0), (0, 5), (1, 0), (1, 5)]


def test_each_target_is_looked_at_when_its_own_bill_passes_a_line():
    trace = watched(
        ((10, 100), found([9.0], [9.0])),
        ((11, 200), found([8.0], [8.0])),  # the first target's bill passed no line: 14 is the next
        ((14, 201), found([7.0], [7.0])),
    )
    assert [row[:3] for row in rows(trace)] == [(0, 10, 9.0), (0, 14, 7.0), (1, 100, 9.0), (1, 200, 8.0)]


def test_the_last_row_is_of_the_highest_score_and_of_equals_of_the_lowest_loss():
    trace = watched(
        ((10, 10), found([1.0], [1.0])),
        ((11, 11), found([2.0, 0.5], [3.0, 0.1], stage="selected", scores=[0.9, 0.2, 0.5, 0.5])),
    )
    assert [row[:3] for row in rows(trace)] == [(0, 10, 1.0), (0, 11, 2.0), (1, 10, 1.0), (1, 11, 0.1)]


def test_a_budget_that_ends_it_leaves_the_best_so_far():
    oracle = Bill()
    trace = Trace(oracle, EVIDENCE, PRIOR)
    oracle.bill = {40: 10, 70: 10}
    trace.add(found([1.0], [1.0]))
    oracle.bill = {40: 11, 70: 11}
    trace.end(found([2.0, 0.5], [3.0], stage="selected"), "target 40 would reach ...")
    assert [row[:3] for row in rows(trace)] == [(0, 10, 1.0), (0, 11, 0.5), (1, 10, 1.0)]


def test_a_target_that_is_never_reached_has_no_row():
    trace = watched(((33, 33), found([], [1.0])), ((66, 66), found([], [1.0], stage="selected")))
    assert {row[0] for row in rows(trace)} == {1}
    assert watched(((33, 33), found([], []))).tensors() == {}


def test_rows_without_pixels_are_decoded_where_others_have_them():
    pixels = torch.full((2, 1, 2, 2), 7, dtype=torch.uint8)
    plain = Found(torch.full((2, 1, 2, 2), 0.2), torch.tensor([9.0, 9.0]), torch.tensor([0, 1]), "initial")
    inner = Found(torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 1.0]), torch.tensor([0, 1]), "optimised", pixels=pixels)
    kept = watched(((1, 1), plain), ((2, 2), inner)).tensors()
    assert "latents" not in kept and kept["pixels"].flatten(1)[:, 0].tolist() == [51, 7, 51, 7]
    assert "pixels" in watched(((1, 1), plain), pictured=True).tensors()


def test_eight_lines_in_a_power_of_ten():
    lines = [0]
    while lines[-1] < 10**6:
        lines.append(next_line(lines[-1]))
    assert {10**power for power in range(7)} <= set(lines)
    for power in range(2, 6):
        assert len([one for one in lines if 10**power <= one < 10 ** (power + 1)]) == 8
    assert all(next_line(asked) > asked for asked in range(2000))


def curve(hits, queries, owners, labels, shared=0):
    return against_queries(
        torch.tensor(hits), torch.tensor(queries), torch.tensor(owners), torch.tensor(labels), shared
    )


def test_the_curve_of_known_rows():
    """Target 0 is recognised from 20 queries on, target 1 from 5 to 20 alone, target 2 is never reached."""
    found = curve([False, True, True, False], [1, 20, 5, 21], [0, 0, 1, 1], [3, 4, 5])
    at = dict(zip(found.queries.tolist(), found.accuracy.tolist(), strict=True))
    assert min(at) == 1 and max(at) == 21
    assert at[1] == 0 and at[5] == at[18] == pytest.approx(1 / 3) and at[21] == pytest.approx(1 / 3)
    assert (found.low <= found.accuracy).all() and (found.accuracy <= found.high).all()
    assert (np.diff(found.queries) > 0).all()


def test_every_target_bears_its_part_of_what_was_asked_for_all():
    apart, together = curve([True], [10], [0], [3, 4]), curve([True], [10], [0], [3, 4], shared=100)
    assert apart.queries.tolist() == [10] and together.queries.tolist() == [60]
    assert together.accuracy.tolist() == [0.5]


def test_rows_in_any_order_and_several_targets_of_a_class():
    found = curve([True, False, True], [7, 3, 3], [1, 1, 0], [2, 2, 9])
    assert found.queries.tolist() == [3, 4, 5, 6, 7]
    assert found.accuracy.tolist() == pytest.approx([1 / 3] * 4 + [2 / 3])


# on the page -------------------------------------------------------------------------------------------------------


def told(store, name, seed, queries, accuracy, **names):
    """A row with a curve, in a store."""
    judge = {"main": {"name": "cnn_wide", "accuracy": 1.0, "images": 40, "guessed": False}}
    points = {"queries": queries, "accuracy": accuracy, "low": [0.0] * len(queries), "high": [1.0] * len(queries)}
    drawn = {f"curve.main.{field}": torch.tensor(value, dtype=torch.float64) for field, value in points.items()}
    return put(store, document(seed, evaluators=judge, **names), name, **drawn)


def test_seeds_are_averaged_where_each_of_them_stands(store):
    told(store, "a", 0, [10.0, 100.0], [0.0, 1.0])
    told(store, "b", 1, [40.0], [0.5])
    (line,) = lines(setups(read_rows(store)[0]), [0])
    assert line.queries.tolist() == [10, 40, 100] and line.accuracy.tolist() == [0, 0.25, 0.75]
    assert line.at(9) is None and line.at(10)[0] == 0 and line.at(99)[0] == 0.25
    assert line.at(10**6)[0] == 0.75, "behind its end an attack has what it had"


def test_the_page_draws_lines_on_a_logarithmic_axis_and_tells_their_numbers(store, tmp_path):
    told(store, "a", 0, [10.0, 1000.0, 100000.0], [0.0, 0.5, 1.0])
    page = build(read_rows(store)[0], tmp_path / "page.html").read_text()
    assert "Accuracy against queries" in page
    path = re.search(r'class="curve"></path>|d="M([0-9.]+) ([0-9.]+)H([0-9.]+)V([0-9.]+)H([0-9.]+)V([0-9.]+)"', page)
    first, _, second, _, third, _ = map(float, path.groups())
    assert second - first == pytest.approx(third - second, abs=0.3), "a factor of a hundred is as wide anywhere"
    for text in (">10k<", ">100k<", "50.0%", "after 100,000"):
        assert text in page


def test_rows_without_a_trace_have_no_such_figure(store, tmp_path):
    put(store, document(), "old")
    assert "Accuracy against queries" not in build(read_rows(store)[0], tmp_path / "page.html").read_text()


# through the pipeline ---------------------------------------------------------------------------------------------

TOY = (
    "dataset=toy",
    "prior=toy",
    "architecture=mlp",
    "architecture.widths=[16]",
    "recipe.epochs=2",
    "compute.threads=1",
    "evaluators.main.architecture.widths=[8,16]",
    "evaluators.main.recipe.epochs=4",
)
LOST = (
    *TOY,
    "allow=[unreached_doubles]",
    "attack=gmi",
    "attack.search.steps=2",
    "attack.access=whitebox",
    "~attack.init",
)


def only(*labels):
    return "+attack.init={_target_: unreached_doubles.OnlyThese, labels: [" + ",".join(map(str, labels)) + "]}"


def test_the_trace_ends_where_the_attack_does_and_is_judged(run_verb, store):
    asked = (*TOY, "attack=gmi", "attack/select=confidence", "attack.init.candidates=3", "attack.search.steps=40")
    asked += ("attack.group=3",)
    result = run_verb("evaluate", *asked)
    kept = Store(store).open(result.provenance["parents"]["recovered"], "recovered").tensors()
    owners, queries = kept["trace.evidence"], kept["trace.queries"]
    assert owners.unique().tolist() == [0, 1, 2, 3], "rows of both groups"
    for target in range(4):
        own = queries[owners == target]
        assert (own.diff() > 0).all() and int(own[-1]) == int(kept["queries"][target]) == 40 * 3 + 3
        first = int((kept["selected.evidence"] == target).nonzero()[0])
        assert torch.equal(kept["trace.latents"][owners == target][-1], kept["selected.latents"][first])
        losses = kept["trace.loss"][owners == target][:-1]
        assert (losses[1:].diff() < 0).all(), "each row but the last is better than the one before"
        assert len(own) <= 1 + 8 * 3, "no more than a logarithmic curve needs"
    drawn = result.tensors()
    assert drawn["curve.main.queries"][-1] == 123
    every = {name: number for name, number in result.metrics["metrics"].items() if name == "attack_accuracy_top1/main"}
    assert drawn["curve.main.accuracy"][-1] == every["attack_accuracy_top1/main"]["value"], "one candidate per target"


def test_labels_that_are_never_reached_count_as_failed_and_are_listed(run_verb, store, capsys):
    row = run_verb("evaluate", *LOST, only(0, 2))
    accuracy = row.metrics["metrics"]["attack_accuracy_top1/main"]
    reached = [accuracy["per_class"][label] for label in ("0", "2")]
    assert row.metrics["row"]["unreached"] == [1, 3]
    assert accuracy["per_class"]["1"] == accuracy["per_class"]["3"] == 0 and accuracy["n"] == 4
    assert accuracy["value"] == sum(reached) / 4
    assert "2 targets were never reached and count as failed" in accuracy["reason"]
    assert row.metrics["anchors"]["prior"]["attack_accuracy_top1/main"] >= 0
    curve = row.tensors()["curve.main.accuracy"]
    assert curve[-1] == accuracy["value"]
    report(["--store", str(store), "--out", str(store.parent / "report.html")])
    assert "never reached: " in capsys.readouterr().out


def test_where_no_label_is_reached_the_accuracy_is_none(run_verb, store, capsys):
    row = run_verb("evaluate", *LOST, only())
    numbers = row.metrics["metrics"]
    assert numbers["attack_accuracy_top1/main"]["value"] == 0 and row.metrics["row"]["unreached"] == [0, 1, 2, 3]
    assert "knn_distance/main" not in numbers and numbers["cost/queries_per_target_mean"]["value"] == 1
    report(["--store", str(store), "--out", str(store.parent / "report.html")])
    assert "never reached: " in capsys.readouterr().out


# groups that left different things --------------------------------------------------------------------------------


def group(first, count, **fields):
    """What a group of `count` targets found, the first of them the row `first` of the evidence, by stage and field."""
    rows = torch.arange(first, first + count)
    latents = rows.float().div(10).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return {"evidence": rows, "latents": latents, **fields}


def of_stage(stage, fields):
    return {f"{stage}.{name}": value for name, value in fields.items() if value is not None}


def test_a_group_of_latents_beside_one_of_pixels_is_joined_row_by_row():
    pixels = torch.full((2, 1, 2, 2), 200, dtype=torch.uint8)
    for stage, latents in (("trace", None), ("selected", group(3, 2)["latents"])):
        pictured = of_stage(stage, group(3, 2, latents=latents, pixels=pixels))
        whole = joined([of_stage(stage, group(0, 3)), pictured, {}], PRIOR, None)
        assert (f"{stage}.latents" in whole) == (stage == "selected")
        assert {len(value) for value in whole.values()} == {5}
        levels = whole[f"{stage}.pixels"][:, 0, 0, 0].tolist()
        assert levels == [*(round(255 * row / 10) for row in range(3)), 200, 200], "the last two keep their own"
    assert set(joined([of_stage("trace", group(0, 3)), of_stage("trace", group(3, 1))], PRIOR, None)) == {
        "trace.evidence",
        "trace.latents",
    }


def test_what_nobody_said_of_a_group_is_not_taken_from_another():
    ended, told = group(0, 1), group(1, 2, scores=torch.tensor([3.0, 4.0]), labels=torch.tensor([5, 6]))
    whole = joined([of_stage("selected", ended), of_stage("selected", told)], PRIOR, None)
    assert whole["selected.labels"].tolist() == [-1, 5, 6]
    assert whole["selected.scores"].isnan().tolist() == [True, False, False]
    strange = of_stage("selected", group(1, 2, pictures=torch.zeros(2, 1, 4, 4)))
    with pytest.raises(
        Refused, match="selected.pictures: expected it of every group of targets, or of none, got it of"
    ):
        joined([of_stage("selected", ended), strange], PRIOR, None)
