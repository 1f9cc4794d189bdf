"""The report as one self-contained HTML page: nothing in it is fetched from anywhere.

Table, plot and pictures are HTML; page.js filters, sorts and compares them, and shows what script_data holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from midefense.report.columns import Column, axes, columns
from midefense.report.data import numbers, script_data
from midefense.report.frame import TITLE, filled, framed, scripted
from midefense.report.gallery import gallery
from midefense.report.heat_map import heat_map
from midefense.report.markup import Markup, breakable, join, tag, void
from midefense.report.numbers import show, show_spread
from midefense.report.plot import scatter
from midefense.report.projection import projections
from midefense.report.queries import against_queries
from midefense.report.rows import Broken, Row, Setup, anchor_lines, by_protocol, notes_on, setups, spread, told_apart
from midefense.report.tradeoff import trade_offs
from midefense.report.worst import worst_cases
from midefense.store.sweeps import Outcome

HEADS = ("defense", "attack", "architecture", "dataset", "prior", "public", "access")
BARRED = ("percent",)  # units whose cells carry a bar
UNREACHED = "targets of which the attack stands by nothing; they count as failed"
AWARENESS = "an attack that was made to overcome this defense; those without this mark were not"
FEW_CLASSES = "so few classes tell little of others: mind the intervals"
HEADLINE = "Worst case over attacks"
WORST = (
    "A defense is as private as the strongest attack leaves it, be it one that knew the defense or not: what this one "
    "finds, with its interval over classes."
)
WORST_OF_RELEASES = (
    " Of releases also how many images at least one of the attacks finds. What a network that learned from "
    "private labels makes of features, oracle-assisted, is no attack and told apart."
)
EMPTY = "No results yet. python evaluate.py dataset=digits architecture=cnn attack=pool_small makes one."
APART = "The results below follow different protocols (evidence, references, evaluators, metrics). "

PICKED = join(
    tag("div", id="picked", class_="picked", role="status", hidden=True),
    tag("dialog", id="compare", aria_label="Two setups side by side"),
)


def render(
    rows: Sequence[Row], broken: Sequence[Broken], place: Path, lead: str = "", untried: Sequence[Outcome] = ()
) -> str:
    """The page as text; links to results are relative to the folder `place`, `lead` stands before all else, and
    `untried` are the points of sweeps that gave no row."""
    groups = {name: (own, setups(own)) for name, own in by_protocol(rows).items()}
    everyone = [setup for _, found in groups.values() for setup in found]
    numbered = {id(setup): number for number, setup in enumerate(everyone)}
    sections = [
        _protocol(name, own, found, [numbered[id(setup)] for setup in found], number, untried)
        for number, (name, (own, found)) in enumerate(groups.items(), 1)
    ]
    counts = [(len(everyone), "setup"), (len(rows), "result"), (len(groups), "protocol")]
    apart = tag("p", APART, tag("b", "They are not ranked together."), class_="notice") if len(groups) > 1 else None
    first = tag("p", tag("b", lead), class_="notice") if lead else None
    content = filled(
        "page.html",
        notices=join(first, skipped_list(broken), apart),
        sections=join(*sections) if sections else tag("p", EMPTY, class_="notice"),
    )
    return framed(
        content,
        heading=TITLE,
        counts=" · ".join(_count(*count) for count in counts),
        footer="The page is complete in itself; file links need the store beside it.",
        styles=["page.css"],
        end=join(PICKED, scripted(script_data(groups, place), "page.js")),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def skipped_list(broken: Sequence[Broken]) -> Markup | None:
    """Which results could not be read, and why; None if all could."""
    if not broken:
        return None
    items = [tag("li", tag("code", one.name), f" {one.reason}") for one in broken]
    head = tag(
        "b",
        f"{_count(len(broken), 'result')} could not be read and {'is' if len(broken) == 1 else 'are'} missing below:",
    )
    return tag("div", head, tag("ul", *items), class_="notice warning", role="alert")


def _protocol(
    name: str,
    rows: Sequence[Row],
    found: Sequence[Setup],
    numbered: Sequence[int],
    number: int,
    untried: Sequence[Outcome],
) -> Markup:
    """One protocol's section. `numbered`: the numbers of its setups on the page, by which the script knows them."""
    shown = columns(rows)
    datasets = ", ".join(dict.fromkeys(row["dataset"] for row in rows))
    heading = tag("h2", datasets, " ", tag("small", "protocol ", tag("code", name)), id=f"protocol-{number}")
    notes = [tag("p", note, class_="lead") for note in notes_on(rows)]
    parts = [part(HEADLINE, worst_case_list(found, numbered)), _alike(found)]
    parts += [_table(found, numbered, shown, rows, name), *notes]
    parts.append(part("Defense × attack", heat_map(found, numbered, untried)))
    if (held := axes(shown)) is not None:
        parts.append(part("Privacy against utility", scatter(found, numbered, *held)))
    parts.append(part("Accuracy against queries", against_queries(found, numbered)))
    parts.append(part("Trade-off", trade_off_list(found, numbered)))
    below = "the private image that it answers" if rows[0].matched else "the private image nearest to it"
    lead = tag(
        "p", f"Above: recovered by the attack. Below: {below}. Shown in stored order, not picked.", class_="lead"
    )
    parts.append(part("Reconstructions", gallery(found, numbered), lead))
    parts.append(part("Feature space", projections(found, numbered)))
    details = [_details(setup, one) for setup, one in zip(found, numbered, strict=True)]
    parts.append(part("Configuration and provenance", join(*details)))
    return tag("section", heading, *parts, class_="protocol", aria_labelledby=f"protocol-{number}", data_protocol=name)


def part(title: str, content: Markup | None, lead: Markup | None = None) -> Markup | None:
    """A titled part of a protocol, which goes when nothing in it is left to show; None without content."""
    return tag("section", tag("h3", title), lead, content, class_="part") if content else None


def _alike(found: Sequence[Setup]) -> Markup | None:
    """What all setups share, which would fill columns with one word."""
    varied = told_apart(found)
    said = [(name, found[0][name]) for name in HEADS if name not in varied and found[0][name]]
    words = [join(" · " if number else "", name, " ", tag("b", value)) for number, (name, value) in enumerate(said)]
    return tag("p", "All setups below: ", *words, class_="lead alike") if said else None


def _table(
    found: Sequence[Setup], numbered: Sequence[int], shown: Sequence[Column], rows: Sequence[Row], protocol: str
) -> Markup:
    varied = told_apart(found)
    heads = [_head(name, key=name, hidden=name not in varied) for name in HEADS]
    heads.append(_head("seeds", key="seeds", number=True))
    heads += [_head(column.title, column=column, key=column.metric, number=True) for column in shown]
    body = [_setup_line(setup, number, shown, varied) for setup, number in zip(found, numbered, strict=True)]
    span = len(varied) + 1
    foot = [
        tag("tr", tag("th", name, scope="row", colspan=span), *[_anchor(values, column) for column in shown])
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


def _head(title: str, *, key: str, column: Column | None = None, number: bool = False, hidden: bool = False) -> Markup:
    """A head that sorts. `key`: by which the script and the reader's choice of columns know it."""
    hint = f"{column.metric}: {column.meaning}".removesuffix(": ") if column else None
    leaks = tag("small", column.leaks) if column and column.leaks else None
    button = tag("button", title, tag("span", class_="arrow", aria_hidden="true"), type="button", title=hint)
    style = "number" if number else None
    return tag("th", button, leaks, scope="col", aria_sort="none", class_=style, data_key=key, hidden=hidden)


def _setup_line(setup: Setup, number: int, shown: Sequence[Column], varied: Sequence[str]) -> Markup:
    cells = [_name_cell(setup, name, varied, number) for name in HEADS]
    seeds = "\n".join(row.seed_text for row in setup.rows)
    cells.append(tag("td", len(setup.rows), class_="number", data_value=len(setup.rows), title=seeds))
    return tag("tr", *cells, *[_cell(setup, column) for column in shown], data_setup=number)


def _name_cell(setup: Setup, name: str, varied: Sequence[str], number: int) -> Markup:
    value, below = setup[name], []
    if name == "attack":
        early = tag("b", " · stopped early", title=setup.stopped) if setup.stopped else None
        below.append(tag("small", setup.note, early) if setup.note or early else None)
        below.append(tag("small", tag("b", setup.ladder)) if setup.ladder else None)
        below.append(tag("small", tag("b", setup.awareness), title=AWARENESS) if setup.awareness else None)
        below.append(tag("small", tag("b", setup.unreached), title=UNREACHED) if setup.unreached else None)
        below.append(tag("small", tag("b", setup.few_classes), title=FEW_CLASSES) if setup.few_classes else None)
    if name == "architecture" and setup.legacy:
        below.append(tag("small", tag("b", setup.legacy)))
    if name != "defense":
        return tag("td", tag("span", breakable(value)), *below, data_value=value, hidden=name not in varied)
    # The first column stays in sight while numbers scroll; on a narrow screen it speaks for the other names too.
    others = " · ".join(setup[one] for one in HEADS[1:] if one in varied and setup[one])
    early = tag("b", " · stopped early") if setup.stopped else None
    said = (others, setup.note, setup.ladder, setup.awareness, setup.unreached, setup.few_classes, setup.legacy)
    narrow = tag("small", " · ".join(word for word in said if word), early, class_="narrow")
    box = void("input", type="checkbox", class_="pick", aria_label=f"Compare {_title(setup)}", value=number)
    who = tag("label", box, tag("b", breakable(value)))
    return tag("td", who, narrow, data_value=value)


def _title(setup: Setup) -> str:
    words = (setup["defense"], setup["attack"], setup["architecture"], setup["dataset"], setup["prior"], setup.note)
    return " · ".join(word for word in words if word)


def _cell(setup: Setup, column: Column) -> Markup:
    """A number with its spread, its interval and its remark. page.js builds the cells of further columns alike."""
    text, deviation, bounds, remark, value = numbers(setup, column)
    if value is None:
        absent = tag("span", text, class_="absent", tabindex=0, title=remark)
        return tag("td", absent, class_="number", data_value="")
    barred = column.unit in BARRED
    return tag(
        "td",
        text,
        tag("span", f" {deviation}", class_="std") if deviation else None,
        tag("small", bounds) if bounds else None,
        class_="number bar" if barred else "number",
        style=f"--share:{min(max(value, 0), 1):.3f}" if barred else None,
        data_value=value,
        title=remark or None,
    )


def trade_off_list(found: Sequence[Setup], numbered: Sequence[int]) -> Markup | None:
    """What each defense takes from the attack and from the target, and the quotient; None if none has a baseline."""
    number = {id(setup): one for setup, one in zip(found, numbered, strict=True)}
    varied, lines = told_apart(found), []
    for one in trade_offs(found):
        note = f" · {one.setup.note}" if one.setup.note else ""
        words = f" · {one.setup.described(varied)}{note}: {one.text}"
        lines.append(tag("li", tag("b", one.setup["defense"]), words, data_setup=number[id(one.setup)]))
    if not lines:
        return None
    lead = (
        "Δ: points of attack accuracy taken per point of target accuracy paid, against the undefended target, with its "
        "95% interval; n/a where the target may have paid nothing. Attack accuracy at equal target accuracy lies on "
        "the line between two strengths of a defense; n/a beyond them. Of split inference: points of identity accuracy "
        "per point of released utility."
    )
    return join(tag("p", lead, class_="lead"), tag("ul", *lines, class_="trade-offs"))


def worst_case_list(found: Sequence[Setup], numbered: Sequence[int]) -> Markup | None:
    """What the best of all attacks finds of each defense; None where no attack was measured by what it finds."""
    number = {id(setup): one for setup, one in zip(found, numbered, strict=True)}
    lines = [
        tag("li", tag("b", one.defense), f" · {one.text}", data_setup=number[id(one.worst)])
        for one in worst_cases(found)
    ]
    lead = WORST + (WORST_OF_RELEASES if found[0].rows[0].matched else "")
    return join(tag("p", lead, class_="lead"), tag("ul", *lines, class_="trade-offs")) if lines else None


def _anchor(values: dict[str, list[float]], column: Column) -> Markup:
    mean, std = spread(values.get(column.metric, []))
    if math.isnan(mean):
        return tag("td", "–", class_="number")
    deviation = show_spread(std, column.unit, mean)
    shown = tag("span", f" {deviation}", class_="std") if deviation else None
    return tag("td", show(mean, column.unit), shown, class_="number")


def _details(setup: Setup, number: int) -> Markup:
    """A closed box that the script fills when it is opened."""
    seeds = tag("small", _count(len(setup.rows), "seed"))
    return tag("details", tag("summary", tag("b", _title(setup)), " ", seeds), class_="setup", data_setup=number)
