r"""The leading numbers as LaTeX, one table per protocol, for the package booktabs: what a paper copies.

Names of users stand in it as text: every character that LaTeX would obey is written out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from midefense.report.columns import Column, columns
from midefense.report.files import save
from midefense.report.numbers import show, show_spread
from midefense.report.rows import Row, Setup, anchor_lines, by_protocol, setups, spread, summarise, told_apart

OBEYED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"\ensuremath{\pm}",
    "–": "--",
    "→": r"\ensuremath{\rightarrow}",
    "Δ": r"\ensuremath{\Delta}",
}
HEAD = '% written by midefense report; needs \\usepackage{booktabs} and, for marks like ", \\usepackage[T1]{fontenc}\n'


def write_latex(rows: Sequence[Row], out: Path) -> Path:
    """Write `out`, whole or not at all: a `table` per protocol, a line per setup with mean ± standard deviation over
    seeds, and the anchors below. Returns `out`.

    Raises:
        Refused: `out` is no place for a file.
        OSError: the disk is full or may not be written.
    """
    return save(Path(out), HEAD + "\n".join(_table(name, own) for name, own in by_protocol(rows).items()))


def escaped(text: str) -> str:
    """A text as LaTeX sets it, and never obeys it; what ends a line or is not printed becomes a space."""
    return "".join(OBEYED.get(letter, letter if letter.isprintable() else " ") for letter in text)


def _table(protocol: str, rows: Sequence[Row]) -> str:
    shown, found = columns(rows), setups(rows)
    names = told_apart(found)
    heads = [*names, "seeds", *(column.title for column in shown)]
    body = [_line([*_names(setup, names), len(setup.rows), *_numbers(setup, shown)]) for setup in found]
    foot = [_anchor(name, values, shown, len(names) + 1) for name, values in anchor_lines(rows)]
    said = "mean ± standard deviation over seeds. Numbers of other protocols are not comparable."
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{Protocol {escaped(protocol)}: {escaped(said)}}}",
            rf"\begin{{tabular}}{{{'l' * len(names)}{'r' * (1 + len(shown))}}}",
            r"\toprule",
            _line(heads),
            r"\midrule",
            *body,
            *([r"\midrule", *foot] if foot else []),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _names(setup: Setup, names: Sequence[str]) -> list[str]:
    """What a setup is called; beside the attack stands what a reader of its numbers must know."""
    early = "stopped early" if setup.stopped else ""
    said = (setup.note, setup.ladder, setup.awareness, setup.unreached, setup.few_classes, early, setup.legacy)
    remarks = ", ".join(word for word in said if word)
    attack = setup["attack"] + (f" ({remarks})" if remarks else "")
    return [attack if name == "attack" else setup[name] for name in names]


def _numbers(setup: Setup, shown: Sequence[Column]) -> list[str]:
    found = [(summarise(setup.rows, column.metric), column.unit) for column in shown]
    return [_number(one.mean, one.std, unit) for one, unit in found]


def _number(mean: float, std: float, unit: str, absent: str = "n/a") -> str:
    return f"{show(mean, unit)} {show_spread(std, unit, mean)}".strip() if math.isfinite(mean) else absent


def _anchor(name: str, values: dict[str, list[float]], shown: Sequence[Column], span: int) -> str:
    levels = [_number(*spread(values.get(column.metric, [])), column.unit, "–") for column in shown]
    return rf"\multicolumn{{{span}}}{{l}}{{{escaped(name)}}} & " + _line(levels)


def _line(cells: Sequence[object]) -> str:
    return " & ".join(escaped(str(cell)) for cell in cells) + r" \\"
