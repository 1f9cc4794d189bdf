"""The report as one self-contained HTML page: nothing in it is fetched from anywhere."""

from __future__ import annotations

import math
import os
import string
import urllib.parse
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from midefense.report.gallery import gallery
from midefense.report.markup import Markup, join, tag
from midefense.report.plot import scatter
from midefense.report.projection import projections
from midefense.report.rows import (
    NAMES,
    Broken,
    Column,
    Row,
    Setup,
    anchor_lines,
    by_protocol,
    columns,
    setups,
    show,
    show_spread,
    spread,
    summarise,
)
from midefense.report.tradeoff import trade_offs

HEADS = ("dataset", "architecture", "defense", "prior", "attack")
BARRED = ("percent",)  # units whose cells carry a bar
LONG_NAME = 16  # characters
EMPTY = "No results yet. python evaluate.py dataset=digits architecture=cnn attack=gmi makes one."


def render(rows: Sequence[Row], broken: Sequence[Broken], place: Path, lead: str = "") -> str:
    """The page as text; links to results are relative to the folder `place`, and `lead` stands before all else."""
    groups = by_protocol(rows)
    sections = [_protocol(name, group, place, number) for number, (name, group) in enumerate(groups.items(), 1)]
    template = string.Template(resources.files("midefense.report").joinpath("page.html").read_text(encoding="utf-8"))
    counts = f"{_count(len(setups(rows)), 'setup')} · {_count(len(rows), 'result')} · {_count(len(groups), 'protocol')}"
    apart = None
    if len(groups) > 1:
        text = "The results below follow different protocols (evidence, references, evaluators, metrics). "
        apart = tag("p", text, tag("b", "They are not ranked together."), class_="notice")
    return template.substitute(
        counts=counts,
        notices=join(tag("p", tag("b", lead), class_="notice") if lead else None, _skipped(broken), apart),
        sections=join(*sections) if sections else tag("p", EMPTY, class_="notice"),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _skipped(broken: Sequence[Broken]) -> Markup | None:
    if not broken:
        return None
    items = [tag("li", tag("code", one.name), f" {one.reason}") for one in broken]
    head = tag(
        "b",
        f"{_count(len(broken), 'result')} could not be read and {'is' if len(broken) == 1 else 'are'} missing below:",
    )
    return tag("div", head, tag("ul", *items), class_="notice warning", role="alert")


def _protocol(name: str, rows: Sequence[Row], place: Path, number: int) -> Markup:
    found, shown = setups(rows), columns(rows)
    datasets = ", ".join(dict.fromkeys(row["dataset"] for row in rows))
    heading = tag("h2", datasets, " ", tag("small", "protocol ", tag("code", name)), id=f"protocol-{number}")
    parts = [_table(found, shown, rows, name)]
    by_title = {column.title: column for column in shown}
    if "Target accuracy" in by_title and "Attack accuracy" in by_title:
        figure = scatter(found, by_title["Target accuracy"], by_title["Attack accuracy"])
        parts.append(join(tag("h3", "Privacy against utility"), figure) if figure else None)
    parts.append(_trade_offs(found))
    images = gallery(found)
    if images:
        lead = (
            "Above: recovered by the attack. Below: the private image nearest to it. Shown in stored order, not picked."
        )
        parts.append(join(tag("h3", "Reconstructions"), tag("p", lead, class_="lead"), images))
    planes = projections(found)
    parts.append(join(tag("h3", "Feature space"), planes) if planes else None)
    details = [_details(setup, place) for setup in found]
    parts.append(join(tag("h3", "Configuration and provenance"), *details))
    return tag("section", heading, *parts, class_="protocol", aria_labelledby=f"protocol-{number}")


def _table(found: Sequence[Setup], shown: Sequence[Column], rows: Sequence[Row], protocol: str) -> Markup:
    heads = [_head(name) for name in HEADS]
    heads.append(_head("seeds", number=True))
    heads += [_head(column.title, column, number=True) for column in shown]
    body = [_setup_line(setup, shown) for setup in found]
    foot = [
        tag("tr", tag("th", name, scope="row", colspan=len(HEADS) + 1), *[_anchor(values, column) for column in shown])
        for name, values in anchor_lines(rows)
    ]
    caption = tag("caption", f"Results of protocol {protocol}: mean ± standard deviation over seeds", class_="unseen")
    table = tag(
        "table",
        caption,
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
        tag("tfoot", *foot) if foot else None,
        class_="results",
    )
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Results table")


def _head(title: str, column: Column | None = None, number: bool = False) -> Markup:
    hint = leaks = None
    if column is not None:
        hint = column.metric
        words = {True: "higher leaks", False: "lower leaks", None: ""}[column.higher_leaks]
        leaks = tag("small", words) if words else None
    button = tag("button", title, tag("span", class_="arrow", aria_hidden="true"), type="button", title=hint)
    return tag("th", button, leaks, scope="col", aria_sort="none", class_="number" if number else None)


def _setup_line(setup: Setup, shown: Sequence[Column]) -> Markup:
    cells = []
    for name in HEADS:
        below = None
        if name == "attack":
            early = tag("b", " · stopped early", title=setup.stopped) if setup.stopped else None
            below = tag("small", setup.note or setup["access"], early)
        elif name == "architecture" and setup.legacy:
            below = tag("small", tag("b", setup.legacy))
        elif name == "dataset" and setup["public"] not in ("", "own"):
            below = tag("small", f"public: {setup['public']}")
        text = tag("b" if name == "defense" else "span", _breakable(setup[name]))
        cells.append(tag("td", text, below, data_value=setup[name]))
    seeds = "\n".join(row.seed_text for row in setup.rows)
    cells.append(tag("td", len(setup.rows), class_="number", data_value=len(setup.rows), title=seeds))
    return tag("tr", *cells, *[_cell(setup, column) for column in shown])


def _breakable(name: str) -> Markup:
    """A name that, if long, may be broken after its underscores: it would push numbers off the page."""
    words = name.split("_") if len(name) > LONG_NAME else [name]
    return join(*[join(Markup("_<wbr>") if number else "", word) for number, word in enumerate(words)])


def _cell(setup: Setup, column: Column) -> Markup:
    found = summarise(setup.rows, column.metric)
    if not found.seen:
        return tag(
            "td", tag("span", "n/a", class_="absent", tabindex=0, title=found.reason), class_="number", data_value=""
        )
    deviation = show_spread(found.std, column.unit)
    parts: list[object] = [
        show(found.mean, column.unit),
        tag("span", f" {deviation}", class_="std") if deviation else None,
    ]
    if found.seen < found.total:
        parts.append(tag("span", f" {found.seen}/{found.total}", class_="absent", title=found.reason))
    if math.isfinite(found.low):
        bounds = f"{show(found.low, column.unit)} to {show(found.high, column.unit)}"
        hint = "95% interval over classes" + ("; outermost bounds of the seeds" if found.seen > 1 else "")
        parts.append(tag("small", bounds, title=hint))
    bar = f"--share:{min(max(found.mean, 0), 1):.3f}" if column.unit in BARRED else None
    reason = found.reason or None
    return tag(
        "td", *parts, class_="number bar" if bar else "number", style=bar, data_value=repr(found.mean), title=reason
    )


def _trade_offs(found: Sequence[Setup]) -> Markup | None:
    """What each defense takes from the attack and from the target, and the quotient; None if none has a baseline."""
    lines = []
    for one in trade_offs(found):
        who = [one.setup["defense"], one.setup["attack"], one.setup["architecture"], one.setup.note]
        lines.append(tag("li", tag("b", who[0]), f" · {' · '.join(word for word in who[1:] if word)}: {one.text}"))
    if not lines:
        return None
    lead = "Δ: points of attack accuracy taken per point of target accuracy paid, against the undefended target."
    return join(tag("h3", "Trade-off"), tag("p", lead, class_="lead"), tag("ul", *lines, class_="trade-offs"))


def _anchor(values: dict[str, list[float]], column: Column) -> Markup:
    mean, std = spread(values.get(column.metric, []))
    if math.isnan(mean):
        return tag("td", "–", class_="number")
    deviation = show_spread(std, column.unit)
    return tag(
        "td",
        show(mean, column.unit),
        tag("span", f" {deviation}", class_="std") if deviation else None,
        class_="number",
    )


def _details(setup: Setup, place: Path) -> Markup:
    name = " · ".join(setup[part] for part in (*HEADS[2:], *HEADS[:2]))
    summary = tag("summary", tag("b", name), " ", tag("small", setup.note or _count(len(setup.rows), "seed")))
    return tag("details", summary, *[_row(row, place) for row in setup.rows])


def _row(row: Row, place: Path) -> Markup:
    facts = [(name, row[name]) for name in (*NAMES, "protocol", "classes", "candidates", "date", "device") if row[name]]
    facts += [("selection", row.selection)] if row.selection else []
    facts += [("stopped", row.stopped)] if row.stopped else []
    facts += [(f"id of {role}", one) for role, one in _flat(row.about.get("ids") or {})]
    listed = tag("dl", *[tag("div", tag("dt", name), tag("dd", tag("code", value))) for name, value in facts])
    again = tag("p", "Run it again: ", tag("code", row["command"], class_="command")) if row["command"] else None
    parts = [tag("h4", row.seed_text or "result"), again, _links(row, place), listed, _metrics(row)]
    return tag("article", *parts, *[_file(row, name) for name in ("config.yaml", "provenance.json")])


def _flat(ids: Mapping[str, object]) -> list[tuple[str, str]]:
    """Identifiers by role; those of several evaluators get a role each."""
    found = []
    for role, value in ids.items():
        if isinstance(value, Mapping):
            found += [(f"{role} {name}", one) for name, one in _flat(value)]
        else:
            found.append((role, str(value)))
    return found


def _links(row: Row, place: Path) -> Markup | None:
    if row.folder is None:
        return None
    names = sorted(path.name for path in row.folder.iterdir() if path.is_file() and not path.name.startswith("."))
    base = Path(os.path.relpath(row.folder, place)).as_posix()
    links = [tag("a", name, href=urllib.parse.quote(f"{base}/{name}")) for name in names]
    return tag(
        "p", "Files: ", *[join(" " if number else "", link) for number, link in enumerate(links)], class_="files"
    )


def _metrics(row: Row) -> Markup:
    lines = []
    for name, value in sorted(row.metrics.items()):
        bounds = f"{value.low:.4g} to {value.high:.4g}" if math.isfinite(value.low) else ""
        classes = "; ".join(f"{label}: {one:.4g}" for label, one in value.per_class.items())
        number = f"{value.value:.6g}" if math.isfinite(value.value) else "n/a"
        cells = [
            (number, "number"),
            (bounds, "number"),
            (value.n or "", "number"),
            (classes, "long"),
            (value.reason, "long"),
        ]
        lines.append(tag("tr", tag("th", name, scope="row"), *[tag("td", text, class_=kind) for text, kind in cells]))
    titles = ("metric", "value", "95% interval", "n", "per class", "remark")
    heads = [tag("th", text, scope="col", class_="number" if text in titles[1:4] else None) for text in titles]
    return tag(
        "div", tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines)), class_="scroll metrics", tabindex=0
    )


def _file(row: Row, name: str) -> Markup | None:
    path = row.folder / name if row.folder else None
    if path is None or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    return tag("details", tag("summary", name), tag("pre", text, tabindex=0), class_="file")
