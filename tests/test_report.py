"""The report on fabricated rows: what is read, grouped, shown, escaped and refused."""

import csv
import html
import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from report_rows import document, put
from sealing import spoil

from midefense.commands.report import run
from midefense.pipeline.telling import numbers_of
from midefense.report import Row, build, read_rows, table, write_csv
from midefense.report.columns import columns, other_columns
from midefense.report.configuration import Configurations
from midefense.report.gallery import gallery, png
from midefense.report.markup import Markup, tag, void
from midefense.report.numbers import show, show_spread
from midefense.report.rows import Setup, anchor_lines, setups, summarise
from midefense.report.tradeoff import trade_offs
from midefense.report.verdict import verdict
from midefense.store.artefacts import Draft
from midefense.store.store import Store
from midefense.types import Refused


@pytest.fixture
def store(tmp_path):
    """A store of three seeds without a defense (none-0, none-1, none-2) and one result of random erasing."""
    for seed, accuracy in enumerate((0.9, 0.7, 0.8)):
        put(tmp_path / "store", document(seed, accuracy), f"none-{seed}")
    put(tmp_path / "store", document(0, 0.4, defense="random_erasing"), "random_erasing")
    return tmp_path / "store"


def folder_of(store, name):
    """The folder of the result called `name`."""
    (folder,) = (store / "result").glob(f"{name}@*")
    return folder


class Page(HTMLParser):
    """Elements of a page with their attributes, and the tags left open at its end."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ("meta", "img", "wbr", "input"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def all(self, name):
        return [attributes for found, attributes in self.elements if found == name]


def data_of(text):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def pairs_of(data, places):
    """Keys and values of a flat list of places of texts."""
    return {data["texts"][key]: data["texts"][value] for key, value in zip(places[::2], places[1::2], strict=True)}


def test_seeds_of_one_setup_are_one_line_and_undefended_comes_first(store):
    rows, broken = read_rows(store)
    assert not broken and len(rows) == 4
    first, second = setups(rows)
    assert (first["defense"], len(first.rows), second["defense"]) == ("none", 3, "random_erasing")
    found = summarise(first.rows, "attack_accuracy_top1/main")
    assert found.mean == pytest.approx(0.8) and found.std == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(0.6), pytest.approx(0.95))


def test_what_cannot_be_computed_stays_absent_with_its_reason(store):
    rows, _ = read_rows(store)
    found = summarise(rows, "fid/main")
    assert math.isnan(found.mean) and found.seen == 0 and found.reason == "10 images for 64 features"
    missing = summarise(rows, "kid/main")
    assert math.isnan(missing.mean) and missing.reason == "not measured in this row"
    assert show(math.nan, "percent") == "n/a" and show_spread(math.nan, "percent") == ""


def test_seeds_of_different_setups_are_not_averaged():
    command = "python evaluate.py attack=gmi {}seeds.attack={} seed={}"
    plain = [Row.parse(document(seed, setup="h1", command=command.format("", seed, seed))) for seed in (0, 1)]
    longer = [
        Row.parse(document(seed, setup="h2", command=command.format("recipe.epochs=9 ", seed, seed))) for seed in (2, 3)
    ]
    found = setups([plain[0], longer[0], plain[1], longer[1]])
    assert [(setup.note, list(setup.rows)) for setup in found] == [
        ("as in its files", plain),
        ("recipe.epochs=9", longer),
    ]


def test_setups_whose_commands_say_the_same_are_told_apart_by_their_hash():
    rows = [Row.parse(document(seed, setup=f"h{seed}")) for seed in (0, 1)]
    assert [(setup.note, len(setup.rows)) for setup in setups(rows)] == [("setup h0", 1), ("setup h1", 1)]
    assert "gmi (setup h1)" in table(rows)


def test_the_main_evaluator_speaks_and_units_are_readable(store):
    rows, _ = read_rows(store)
    shown = {column.title: column for column in columns(rows)}
    assert shown["Attack accuracy"].metric == "attack_accuracy_top1/main"
    assert shown["KNN distance"].higher_leaks is False and "KID" not in shown
    numbers = [(0.9333, "percent"), (12.345, "seconds"), (1500, "count"), (14.25, "number"), (0.00012, "number")]
    assert [show(*number) for number in numbers] == ["93.3%", "12.3 s", "1,500", "14.2", "0.00012"]
    assert show_spread(0.0123, "percent") == "±1.2"
    large = {999.6: "1,000", 9876: "9,876", 72631: "72.6k", 999_600: "1M", -1_234_567: "-1.23M", 2.5e9: "2,500M"}
    assert [show(value, "number") for value in large] == list(large.values())
    spreads = {0.44: "±0.44", 31.2: "±31", 240.4: "±240", 6468: "±6.5k", 56554: "±57k"}
    assert [show_spread(std, "number") for std in spreads] == list(spreads.values())


def test_durations_and_large_counts_read_in_units_of_their_size():
    durations = {12.34: "12.3 s", 599.0: "599 s", 600.0: "10.0 min", 7199.0: "120 min", 41_234.5: "11.5 h"}
    assert [show(seconds, "seconds") for seconds in durations] == list(durations.values())
    assert show_spread(1800, "seconds", 41_234.5) == "±0.5" and show_spread(6.3, "seconds", 34) == "±6.3"
    assert [show(count, "count") for count in (999_999, 1_250_000, 2e9)] == ["999,999", "1.25M", "2,000M"]
    assert show_spread(40_000, "count", 1_250_000) == "±40k"


def with_distances(kid, real=-2380.0, prior=161_197.0, name="kid/main"):
    content = document(0)
    content["metrics"][name] = {"value": kid, "low": kid, "high": kid, "higher_leaks": False, "kind": "privacy"}
    for kind, level in (("real", real), ("prior", prior)):
        if level is not None:
            content["anchors"][kind][name] = level
    return Row.parse(content)


def test_distances_without_a_scale_read_as_the_way_from_real_images_to_unattacked_samples(tmp_path):
    rows = [with_distances(-2380.0 + share * 163_577) for share in (0.25, 0.75)]
    (column,) = [column for column in columns(rows) if column.title.startswith("KID")]
    assert (column.title, column.metric, column.unit) == ("KID, relative", "kid_relative/main", "relative")
    assert summarise(rows, column.metric).mean == pytest.approx(0.5)
    assert summarise(rows, column.metric).low == pytest.approx(0.25)
    lines = table(rows).splitlines()
    assert "0.50 ±0.35" in lines[3] and "0.00" in lines[5] and "1.00" in lines[6] and "k" not in lines[3].split()[-4:]
    text = build(rows, tmp_path / "report.html").read_text()
    assert "0 is where real private images are" in text
    flat, _ = write_csv(rows, tmp_path / "rows.csv")
    assert "relative" not in flat.read_text() and "38514.25" in flat.read_text(), "data frames get what was measured"


@pytest.mark.parametrize(
    ("rows", "metric"),
    [
        ([with_distances(0.012, name="kid/inception")], "kid/inception"),
        ([with_distances(70_000.0, real=None)], None),
        ([with_distances(70_000.0, prior=-9e9)], None),
        ([with_distances(70_000.0), with_distances(70_000.0, real=None)], None),
        ([with_distances(None)], "kid/main"),
        ([with_distances(70_000.0), with_distances(None, real=None)], "kid_relative/main"),
    ],
)
def test_a_distance_with_a_scale_stays_as_it_is_and_one_without_anchors_does_not_lead(rows, metric):
    shown = columns(rows)
    leading = [column.metric for column in shown if column.title.startswith("KID")]
    assert leading == ([] if metric is None else [metric])
    everything = {column.metric for column in [*shown, *other_columns(rows, shown)]}
    assert everything >= {name for row in rows for name in row.metrics}, "the raw number is a further column"


def test_samples_truncated_as_the_starts_are_a_floor_of_their_own(tmp_path):
    def row(value, truncated):
        content = document(accuracy=value)
        content["metrics"]["kid/main"] = {"value": 50.0, "low": 50.0, "high": 50.0, "kind": "privacy"}
        content["anchors"]["real"]["kid/main"], content["anchors"]["prior"]["kid/main"] = 0.0, 100.0
        if truncated is not None:
            content["anchors"]["truncated"] = {"attack_accuracy_top1/main": truncated, "kid/main": 80.0}
        return Row.parse(content)

    rows = [row(0.5, 0.9)]
    (line,) = [line for name, line in anchor_lines(rows) if name.endswith("truncated as the attack's starts (floor)")]
    assert line == {"attack_accuracy_top1/main": [0.9], "kid/main": [80.0], "kid_relative/main": [0.8]}
    assert "truncated as the attack's starts (floor)" in table(rows)
    assert not [name for name, _ in anchor_lines([row(0.5, None)]) if "truncated" in name]
    flat, _ = write_csv(rows, tmp_path / "rows.csv")
    told = [line for line in csv.DictReader(flat.read_text().splitlines()) if line["metric"] == "kid/main"]
    assert told[0]["anchor_truncated"] == "80.0"
    assert verdict([row(0.5, None)]) != verdict(rows) and "truncated as the attack's starts 90" in verdict(rows)


def test_a_distance_without_a_scale_is_told_as_its_place():
    number = {"value": 30.0, "low": 20.0, "high": None}
    report = {"metrics": {"kid/main": number}, "anchors": {"real": {"kid/main": 10.0}, "prior": {"kid/main": 110.0}}}
    values, about = numbers_of(report, {})
    assert values == {"kid/main": 30.0, "kid_relative/main": 0.2}
    assert about["kid_relative/main/low"] == 0.1 and about["kid_relative/main/prior"] == 1.0
    assert set(numbers_of({**report, "anchors": {}}, {})[0]) == {"kid/main"}
    named = {"metrics": {"kid/inception": number}, "anchors": report["anchors"]}
    assert set(numbers_of(named, {})[0]) == {"kid/inception"}


def test_classes_have_their_names(tmp_path):
    names = {str(label): f"Ann <{label}>" for label in range(3)}
    put(tmp_path / "store", document(class_names=names), "none")
    rows, _ = read_rows(tmp_path / "store")
    text = build(rows, tmp_path / "report.html").read_text()
    headings = re.findall(r"<h5[^>]*>([^<]*)</h5>", text)
    assert headings == ["Ann &lt;0&gt;", "Ann &lt;1&gt;", "Ann &lt;2&gt;", "class 3", "class 4"]
    assert "reconstruction of class 1 (Ann &lt;1&gt;)" in text and "Ann <" not in text
    assert "Ann \\u003c0>\\nAnn" in text, "numbers by class, too"


def test_configurations_come_from_the_parents_and_say_what_is_missing(tmp_path):
    store = Store(tmp_path / "store")
    search = {"_target_": "midefense.attacks.search.gradient.Gradient", "revision": 1, "steps": 7, "box": None}
    nested = {"kind": "prior", "seed": 4, "prior": {"_target_": "midefense.priors.gmi.GmiGan", "revision": 2}}
    recipe = {"kind": "recovered", "attack": {"search": search}, "prior": nested, "seed": 5, "labels": list(range(99))}
    recovered = store.work(Draft(kind="recovered", name="r", recipe=recipe)).finish({"x": torch.zeros(1)}, {})
    parents = {"recovered": recovered.reference, "target": "target/gone@h0", "evaluator.main": "target/other@h1"}
    put(tmp_path / "store", document(), "none", parents)
    ((row,), _) = read_rows(tmp_path / "store")
    found, missing = Configurations().of(row)
    assert (
        found.items()
        >= {
            "attack.search.class": "attacks.search.gradient.Gradient",
            "attack.search.steps": "7",
            "attack.search.box": "null",
            "prior.class": "priors.gmi.GmiGan",
            "prior.revision": "2",
            "seeds.attack": "5",
            "seeds.prior": "4",
        }.items()
    )
    assert "attack.search.revision" not in found and "kind" not in found and len(found["evidence.labels"]) == 120
    assert missing == ["the configuration of target/gone@h0 is not in this store"]
    (recovered.path / "config.yaml").write_text("attack: {search: {steps: 8}}\n")
    found, missing = Configurations().of(row)
    assert "attack.search.steps" not in found and "was changed since it was written" in missing[0]
    (recovered.path / "config.yaml").write_text("attack: {search")
    assert "cannot be read (Refused)" in Configurations().of(row)[1][0]


def test_a_parent_can_lie_nowhere_but_in_the_store(tmp_path):
    outside = put(tmp_path / "other", document(), "secret")
    reference = f"../other/result/{outside.name}"
    with pytest.raises(Refused, match="expected references"):
        put(tmp_path / "store", document(), "none", {"target": reference})
    rows, (broken,) = read_rows(tmp_path / "store")
    assert rows == [] and "expected references" in broken.reason


def test_setups_that_differ_in_their_prior_alone_are_told_apart_everywhere(tmp_path):
    for prior in ("gmi_gan", "pixels"):
        put(tmp_path / "store", document(prior=prior, baseline=prior), f"none-{prior}")
        defended = document(defense="vib", prior=prior, baseline=prior, setup=f"v{prior}")
        defended["metrics"]["utility/test_accuracy_top1"]["value"] = 0.9
        put(tmp_path / "store", defended, f"vib-{prior}")
    rows, _ = read_rows(tmp_path / "store")
    said = [line for line in table(rows).splitlines() if line.startswith("trade-off")]
    assert [line.split(":")[0] for line in said] == [
        f"trade-off Δ of vib · gmi on cnn · {p}" for p in ("gmi_gan", "pixels")
    ]
    text = build(rows, tmp_path / "report.html").read_text()
    for prior in ("gmi_gan", "pixels"):
        assert text.count(f"<b>vib</b> · gmi on cnn · {prior}") == 2, "trade-off and pictures"


def test_a_page_of_many_setups_shows_fewer_pictures_of_each(tmp_path):
    put(tmp_path / "store", document(), "none")
    ((row,), _) = read_rows(tmp_path / "store")
    for count, pairs in ((1, 10), (48, 10), (60, 5), (200, 5)):
        found = [Setup([row])] * count
        assert gallery(found, range(count)).count("<figure") == pairs * count


def test_terminal_table():
    text = table([Row.parse(document(seed, accuracy)) for seed, accuracy in ((0, 0.9), (1, 0.7))])
    *lines, judges, machines, headline = text.splitlines()
    assert (judges, machines) == ("evaluators: not recorded", "computed on: cpu")
    assert headline.startswith("worst case of none: gmi (whitebox) finds 80.0% [")
    assert lines[0] == "protocol ab12cd34"
    assert lines[1].split()[:6] == ["dataset", "architecture", "defense", "prior", "attack", "seeds"]
    assert "97.0%" in lines[3] and "80.0% ±14.1" in lines[3] and "n/a" in lines[3]
    assert lines[-1].startswith("Chance") and lines[-1].endswith("10.0%")
    assert lines[-3].startswith("Real private images (ceiling)") and "99.0%" in lines[-3]
    assert lines[-1].index("10.0%") == lines[3].index("80.0% ±14.1") + len("80.0% ±14.1") - len("10.0%")
    assert table([]) == "no results"


def test_protocols_are_kept_apart(store, tmp_path):
    put(store, document(0, 0.5, protocol="ffff0000"), "other")
    rows, _ = read_rows(store)
    text = build(rows, tmp_path / "report.html").read_text()
    assert "They are not ranked together." in text
    assert len([one for one in Page(text).all("table") if one.get("class") == "results"]) == 2
    assert table(rows).count("protocol ") == 2


def test_the_page_is_well_formed_self_contained_and_sortable(store, tmp_path):
    rows, broken = read_rows(store)
    text = build(rows, tmp_path / "out" / "report.html", broken).read_text()
    page = Page(text)
    assert page.open == []
    assert not [one for one in page.all("link") + page.all("script") if one.get("src") or one.get("href")]
    assert all(one["src"].startswith("data:image/png;base64,") for one in page.all("img"))
    assert "default-src 'none'" in page.all("meta")[2]["content"]
    assert not re.search(r"url\(|@import|https?://", text)
    sortable = [one for one in page.all("th") if "aria-sort" in one]
    assert len(sortable) == 8 + len(columns(rows))
    assert [one["data-key"] for one in sortable if "hidden" not in one][:3] == ["defense", "attack", "seeds"]
    assert len(page.all("img")) == 2 * 2 * 10 and all(one["alt"] for one in page.all("img"))
    assert 'title="10 images for 64 features"' in text
    assert "Samples of gmi_gan, no attack (floor)" in text and "±10.0" in text


def test_links_lead_to_the_files(store, tmp_path):
    rows, _ = read_rows(store)
    out = build(rows, tmp_path / "deep" / "er" / "report.html")
    data = data_of(out.read_text())
    seeds = [seed for setup in data["setups"] for seed in setup["seeds"]]
    links = [f"{seed['base']}/{data['texts'][place]}" for seed in seeds for place in seed["files"]]
    assert len(links) == 4 * 4 and all((out.parent / unquote(link)).exists() for link in links)


def test_everything_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    content = document(defense=evil, command=evil)
    content["metrics"]["fid/main"]["reason"] = evil
    put(tmp_path / "store", content, "evil")
    rows, broken = read_rows(tmp_path / "store")
    text = build(rows, tmp_path / "report.html", broken).read_text()
    assert evil not in text and "&lt;script&gt;" in text
    assert len(Page(text).all("script")) == 2
    data = data_of(text)
    (setup,) = data["setups"]
    assert pairs_of(data, setup["facts"])["defense"] == evil and setup["seeds"][0]["command"] == evil
    assert pairs_of(data, setup["configuration"])["note"] == "<b>&amp;"


def test_a_row_that_cannot_be_read_is_named_and_left_out(store, tmp_path, capsys):
    content = document(7)
    del content["row"]["protocol"]
    put(store, content, "incomplete")
    spoil(put(store, document(8), "no-json"), "metrics.json", b"{broken")
    spoil(put(store, document(9), "no-tensors"), "tensors.safetensors", b"\0" * 40)
    (store / "result" / "empty@3").mkdir()
    rows, broken = read_rows(store)
    assert len(rows) == 4
    reasons = {one.name.split("@")[0]: one.reason for one in broken}
    assert set(reasons) == {"incomplete", "no-json", "no-tensors", "empty"}
    assert "row lacks protocol" in reasons["incomplete"] and "expected JSON" in reasons["no-json"]
    assert "provenance.json cannot be read" in reasons["empty"]
    assert run(["--store", str(store), "--out", str(tmp_path / "r.html")]) == 1
    assert "skipped incomplete@" in capsys.readouterr().err
    text = (tmp_path / "r.html").read_text()
    assert "4 results could not be read" in text and "row lacks protocol" in text


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "tensors.safetensors", "provenance.json"])
def test_a_row_that_was_changed_since_it_was_written_is_named_and_left_out(store, tmp_path, name):
    file = folder_of(store, "none-1") / name
    content = file.read_bytes()
    file.write_bytes(content.replace(b"0.7", b"0.1") if name == "metrics.json" else content + b"\n")
    if name == "provenance.json":  # a blank line changes nothing that it says
        assert not read_rows(store)[1]
        file.write_bytes(content.replace(b'"device": "cpu"', b'"device": "gpu"'))
    rows, (broken,) = read_rows(store)
    assert [row.seeds["target"] for row in rows if row["defense"] == "none"] == [0, 2]
    expected = "provenance.json was changed" if name == "provenance.json" else f"{name}: expected sha256"
    assert broken.name == file.parent.name and expected in broken.reason
    assert expected in build(rows, tmp_path / "report.html", [broken]).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels missing"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "expected aligned rows"),
        ({"nearest": torch.zeros(10, 1, 8, 8)}, r"nearest: expected U8 .* got F32"),
    ],
)
def test_pictures_of_a_wrong_form_are_refused(tmp_path, change, message):
    put(tmp_path, document(), "none", **change)
    rows, (broken,) = read_rows(tmp_path)
    assert not rows and re.search(message, broken.reason)


def test_csv_flat_and_wide(store, tmp_path):
    rows, _ = read_rows(store)
    flat, wide = write_csv(rows, tmp_path / "results.csv")
    lines = list(csv.DictReader(flat.read_text().splitlines()))
    assert len(lines) == 4 * 7
    one = next(line for line in lines if line["metric"] == "attack_accuracy_top1/main" and line["seed_attack"] == "1")
    assert (one["value"], one["anchor_prior"], one["result"]) == ("0.7", "0.22", folder_of(store, "none-1").name)
    absent = next(line for line in lines if line["metric"] == "fid/main")
    assert absent["value"] == "nan" and absent["reason"] == "10 images for 64 features"
    lines = list(csv.DictReader(wide.read_text().splitlines()))
    assert wide.name == "results.wide.csv" and len(lines) == 4
    assert [line["attack_accuracy_top1/main"] for line in lines] == ["0.9", "0.7", "0.8", "0.4"]


def test_an_empty_store_says_what_to_do(tmp_path, capsys):
    assert run(["--store", str(tmp_path), "--out", str(tmp_path / "r.html"), "--csv", str(tmp_path / "r.csv")]) == 0
    assert "No results yet" in (tmp_path / "r.html").read_text()
    assert "no results" in capsys.readouterr().out


def test_command_line(store, tmp_path):
    command = [sys.executable, "-m", "midefense", "report", "--store", str(store), "--out", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "random_erasing" in done.stdout and (tmp_path / "page.html").exists()


def test_the_store_of_the_environment_is_the_default(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIDEFENSE_STORE", str(store))
    assert run(["--out", str(tmp_path / "page.html")]) == 0
    assert "random_erasing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(["--help"])
    assert "MIDEFENSE_STORE" in capsys.readouterr().out


def test_names_of_anchors_at_one_height_do_not_cover_each_other(tmp_path):
    rows = [Row.parse(document(prior=prior)) for prior in ("gmi_gan", "pixels", "ked_gan")]
    text = build(rows, tmp_path / "report.html").read_text()
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="tick"><title>(?:Samples of \w+|Chance)</title>', text)
    heights = sorted(float(y) for _, y in places)
    assert len(heights) == 4 and all(above + 14 < below for above, below in itertools.pairwise(heights))


def with_accuracy(content, utility):
    content["metrics"]["utility/test_accuracy_top1"]["value"] = utility
    return Row.parse(content)


@pytest.mark.parametrize(
    ("accuracy", "utility", "said"),
    [
        (0.4, 0.97, "50.0 / 0.0 points = n/a, the target's accuracy does not drop"),
        (0.4, 0.98, "50.0 / -1.0 points = n/a, the target's accuracy does not drop"),
        (math.nan, 0.96, "n/a / 1.0 points = n/a, an accuracy is n/a"),
        (
            0.95,
            0.96,
            "-5.0 / 1.0 points = n/a, one seed, and rows that do not say of how many test images: try seed=0,1,2",
        ),
    ],
)
def test_trade_off_never_divides_by_nothing(tmp_path, accuracy, utility, said):
    rows = [Row.parse(document(0, 0.9, baseline="b1"))]
    rows.append(with_accuracy(document(0, accuracy, defense="random_erasing", baseline="b1"), utility))
    assert [one.text for one in trade_offs(setups(rows))] == [said]
    text = build(rows, tmp_path / "report.html").read_text()
    assert text.count("<h3>Trade-off</h3>") == 1 and html.escape(said) in text
    assert Page(text).open == []


def test_trade_off_needs_an_undefended_row_that_is_equal_in_everything_else(tmp_path):
    defended = document(0, 0.4, defense="random_erasing", baseline="b1")
    for other in (document(baseline="b2"), document(), document(0, 0.9, defense="vib", baseline="b1")):
        rows = [Row.parse(other), Row.parse(defended)]
        assert trade_offs(setups(rows)) == []
        assert "Trade-off" not in build(rows, tmp_path / "report.html").read_text() and "Δ" not in table(rows)
    assert trade_offs(setups([Row.parse(document()), Row.parse(document(defense="vib"))])) == [], "rows without a hash"


def test_features_are_drawn_in_a_plane_per_class(tmp_path):
    corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    planes = {
        "projection.points": torch.cat([corners, corners + 1, corners[:2], corners]),
        "projection.labels": torch.tensor([0] * 8 + [1] * 3),
        "projection.sets": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 0]),
    }
    put(tmp_path / "store", document(), "none", **planes)
    put(tmp_path / "store", document(defense="random_erasing"), "random_erasing")
    rows, broken = read_rows(tmp_path / "store")
    assert not broken and [row.projections() is None for row in rows] == [False, True]
    text = build(rows, tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and text.count("<h3>Feature space</h3>") == 1
    assert [one["aria-label"] for one in page.all("svg") if "features of" in one.get("aria-label", "")] == [
        "features of class 0: 3 private, 3 erased, 2 recovered",
        "features of class 1: 3 private, 0 erased, 0 recovered",
    ]
    hulls = [one["points"] for one in page.all("polygon") if one.get("class") == "hull"]
    assert len(hulls) == 3, "two points have no hull"
    # Class 0 spans 3 x 2 units over 220 - 2 x 14 pixels: 64 pixels a unit, upwards.
    assert {tuple(corner.split(",")) for corner in hulls[0].split()} == {
        ("14.0", "206.0"),
        ("142.0", "206.0"),
        ("14.0", "142.0"),
    }


def test_pictures_are_exact_when_small_and_reduced_when_large():
    import io

    from PIL import Image

    colour = np.random.default_rng(0).integers(0, 256, (3, 32, 20), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(colour)))).transpose(2, 0, 1), colour)
    assert Image.open(io.BytesIO(png(np.zeros((1, 224, 112), dtype=np.uint8)))).size == (48, 96)


def test_markup_escapes_children_and_attributes():
    shown = tag("td", "a<b", Markup("<i>"), None, 3, class_="x", data_value='"', hidden=True, title=None)
    assert shown == '<td class="x" data-value="&quot;" hidden>a&lt;b<i>3</td>'
    assert void("img", alt="<") == '<img alt="&lt;">'
