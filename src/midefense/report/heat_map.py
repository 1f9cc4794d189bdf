"""Defense × attack at a glance: what each attack finds of each defense, darker where it finds more, with the target's
accuracy beside it; which pairs have no meaning, and why; and a last column for the attacks that knew the defense.

The numbers stand in the cells and lightness alone carries the scale, so that it reads in grey and without colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from midefense.plan.adaptive import ADAPTIVE
from midefense.report.columns import TARGET, Column, columns
from midefense.report.markup import Markup, breakable, join, tag
from midefense.report.numbers import show, show_spread
from midefense.report.rows import Broken, Setup, Summary, summarise
from midefense.report.worst import FINDS, UNPROTECTED
from midefense.store import sweeps
from midefense.store.store import Store
from midefense.types import Refused

WORLD = ("dataset", "architecture")  # what one map is about
DEEP = 0.57  # share of the scale from which on a cell's number is written in the light
LEAD = (
    "A row is a defense, a column an attack, a number what it finds: the mean over seeds, darker where it is more. The "
    "column adaptive has the strongest attack that knew the defense. Point at a number for its interval over classes."
)


@dataclass(frozen=True)
class Cell:
    """A pair: the `setup` that speaks for it (of several the one that finds most) with what it finds, or why there is
    none, by the `state` and the `reason` of the point of a sweep; neither where nobody tried."""

    setup: Setup | None = None
    found: Summary | None = None
    state: str = ""
    reason: str = ""


@dataclass(frozen=True)
class HeatMap:
    """One world's map: what is found, by `column`; the `defenses` and `attacks` in order; the cells of pairs."""

    world: tuple[str, ...]
    column: Column
    defenses: Sequence[str]
    attacks: Sequence[str]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)


def read_untried(store: object) -> tuple[list[sweeps.Outcome], list[Broken]]:
    """The points of sweeps in a store that gave no row, refused ones and failed ones, and files that tell of none."""
    found, broken = [], []
    for path in (path for root in Store(store).roots for path in sweeps.files(root)):
        try:
            outcome = sweeps.read(path)
        except (OSError, Refused) as error:
            broken.append(Broken(path.name, f"{type(error).__name__}: {error}"))
        else:
            found += [outcome] if outcome.state != sweeps.FINISHED else []
    return found, broken


def heat_maps(found: Sequence[Setup], untried: Sequence[sweeps.Outcome]) -> list[HeatMap]:
    """A map for each world of a protocol's setups in which two or more defenses met two or more attacks."""
    shown = {column.title: column for column in columns([row for setup in found for row in setup.rows])}
    column = next((shown[title] for title in FINDS if title in shown), None)
    if column is None:
        return []
    worlds = dict.fromkeys(_world(setup) for setup in found)
    maps = [
        _map(
            world,
            column,
            [setup for setup in found if _world(setup) == world],
            [one for one in untried if tuple(one.names.get(name, "") for name in WORLD) == world],
        )
        for world in worlds
    ]
    return [one for one in maps if len(one.defenses) > 1 and len(one.attacks) > 1]


def _world(setup: Setup) -> tuple[str, ...]:
    return tuple(setup[name] for name in WORLD)


def _map(world: tuple[str, ...], column: Column, found: Sequence[Setup], untried: Sequence[sweeps.Outcome]) -> HeatMap:
    cells: dict[tuple[str, str], Cell] = {}
    for setup in found:
        finds = summarise(setup.rows, column.metric)
        for attack in (setup["attack"], *([ADAPTIVE] if setup.awareness else [])):
            key = setup["defense"], attack
            if key not in cells or _more(finds, cells[key].found):
                cells[key] = Cell(setup, finds)
    for one in untried:
        key = one.names.get("defense", ""), one.names.get("attack", "")
        cells.setdefault(key, Cell(state=one.state, reason=one.reason))
    defenses = sorted({defense for defense, _ in cells}, key=lambda name: (name != UNPROTECTED, name))
    return HeatMap(world, column, defenses, _attacks(found, cells), cells)


def _more(one: Summary, other: Summary) -> bool:
    """Whether one setup finds more than another; what was not measured is less than any number."""
    return math.isfinite(one.mean) and not one.mean <= other.mean


def _attacks(found: Sequence[Setup], cells: Iterable[tuple[str, str]]) -> list[str]:
    """The attacks that get a column, by name: not one that was made for a defense and met no other, which the last
    column has."""
    named = sorted({attack for _, attack in cells})
    aware = {setup["attack"] for setup in found if setup.awareness}
    met = {attack: {defense for defense, one in cells if one == attack} for attack in named}
    own = [one for one in named if one != ADAPTIVE and not (one in aware and len(met[one]) == 1)]
    return [*own, *([ADAPTIVE] if ADAPTIVE in named else [])]


def heat_map(found: Sequence[Setup], numbered: Sequence[int], untried: Sequence[sweeps.Outcome]) -> Markup | None:
    """The maps of a protocol, with the reasons of the pairs that have no number below each; None if there is none.
    `numbered`: the number of each setup on the page."""
    number = {id(setup): one for setup, one in zip(found, numbered, strict=True)}
    utility = next(
        (one for one in columns([row for setup in found for row in setup.rows]) if one.title == TARGET), None
    )
    maps = [_drawn(one, number, utility) for one in heat_maps(found, untried)]
    return join(tag("p", LEAD, class_="lead"), *maps) if maps else None


def _drawn(one: HeatMap, number: dict[int, int], utility: Column | None) -> Markup:
    means = [cell.found.mean for cell in one.cells.values() if cell.found is not None]
    most = 1.0 if one.column.unit == "percent" else max((mean for mean in means if mean > 0), default=1.0)
    reasons: list[str] = []
    body = []
    for defense in one.defenses:
        cells = [_cell(one, (defense, attack), number, most, reasons) for attack in one.attacks]
        speaking = [cell.setup for (own, _), cell in one.cells.items() if own == defense and cell.setup is not None]
        useful = [] if utility is None else [_useful(speaking, utility)]
        body.append(tag("tr", tag("th", breakable(defense), scope="row"), *useful, *cells))
    heads = ["defense", *([] if utility is None else [utility.title.lower()]), *one.attacks]
    caption = f"{one.column.title} of {' · '.join(one.world)}: {one.column.leaks}"
    table = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", breakable(head), scope="col") for head in heads))),
        tag("tbody", *body),
        class_="heat",
    )
    notes = [tag("li", reason) for reason in reasons]
    return join(
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption),
        tag("ol", *notes, class_="reasons") if notes else None,
    )


def _useful(speaking: Sequence[Setup], utility: Column) -> Markup:
    """What the target under a defense is good for, over the targets that its cells speak of, each once."""
    by_target = {(row["deployed"], row.seeds.get("target")): row for setup in speaking for row in setup.rows}
    seen = summarise(list(by_target.values()), utility.metric)
    spread = show_spread(seen.std, utility.unit, seen.mean)
    return tag("td", show(seen.mean, utility.unit), tag("span", f" {spread}", class_="std") if spread else None)


def _cell(one: HeatMap, key: tuple[str, str], number: dict[int, int], most: float, reasons: list[str]) -> Markup:
    cell, pair = one.cells.get(key, Cell()), " · ".join(key)
    if cell.setup is None:
        if not cell.state:
            return tag("td", tag("span", "–", title=f"{pair}: not tried"))
        if cell.reason not in reasons:
            reasons.append(cell.reason)
        mark = tag("sup", reasons.index(cell.reason) + 1)
        return tag("td", tag("span", cell.state, mark, class_="without", title=f"{pair}: {cell.reason}"))
    mean = cell.found.mean
    if not math.isfinite(mean):
        return tag("td", tag("span", "n/a", title=f"{pair}: {cell.found.reason}", data_setup=number[id(cell.setup)]))
    share = min(max(mean / most, 0.0), 1.0)
    who = tag("small", breakable(cell.setup["attack"])) if key[1] == ADAPTIVE else None
    return tag(
        "td",
        tag(
            "div",
            show(mean, one.column.unit),
            who,
            class_="warm deep" if share > DEEP else "warm",
            style=f"--share:{100 * share:.0f}%",
            title=_title(cell, pair, one.column),
            data_setup=number[id(cell.setup)],
        ),
    )


def _title(cell: Cell, pair: str, column: Column) -> str:
    """What a cell says when it is pointed at: its pair, mean, spread, interval over classes, seeds, and who knew."""
    found, unit = cell.found, column.unit
    number = " ".join(filter(None, (show(found.mean, unit), show_spread(found.std, unit, found.mean))))
    bounds = f", 95% interval over classes {show(found.low, unit)} to {show(found.high, unit)}"
    seeds = f"{found.seen} seed{'' if found.seen == 1 else 's'}"
    said = [f"{pair}: {number}{bounds if math.isfinite(found.low) else ''}, {seeds}", cell.setup["attack"]]
    said = said[:1] if pair.endswith(cell.setup["attack"]) else said
    return "; ".join([*said, *filter(None, (cell.setup.awareness, cell.setup.few_classes, cell.setup.note))])
