"""`midefense report [--store DIR] [--out FILE] [--site DIR] [--csv F] [--latex F] [--parquet F]`: all results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from midefense.commands.parsing import add_store, refusing
from midefense.report import (
    Row,
    build,
    build_site,
    read_rows,
    read_untried,
    refuse_odd_folder,
    refuse_odd_places,
    require_pyarrow,
    table,
    wide_beside,
    write_csv,
    write_latex,
    write_parquet,
)
from midefense.report.site import INDEX
from midefense.store.store import Store
from midefense.terminal import say, shown
from midefense.types import Refused

PAGE = Path("report.html")


def run(words: Sequence[str]) -> int:
    """Read the store's results, write the page or the site (and tables), print the table. 1 if a result could not be
    read, or with a sentence if there is no store, or a file cannot be written."""
    parser = argparse.ArgumentParser(prog="midefense report", description=__doc__.splitlines()[0])
    add_store(parser)
    parser.add_argument("--out", type=Path, help="the page (default: report.html, and none beside --site)")
    parser.add_argument("--site", type=Path, help="a folder of pages to browse: for thousands of results")
    parser.add_argument("--csv", type=Path, help="also write one line per result and metric, and <stem>.wide.csv")
    parser.add_argument("--latex", type=Path, help="also write the leading numbers as tables for LaTeX (booktabs)")
    parser.add_argument("--parquet", type=Path, help="also write what --csv does as one Parquet file (needs pyarrow)")
    options = parser.parse_args(words)
    if options.out is None and options.site is None:
        options.out = PAGE
    return refusing(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    _require_store(options.store)
    if options.parquet:
        require_pyarrow()
    if options.site:
        refuse_odd_folder(options.site)
    places = _places(options)
    refuse_odd_places(places)
    rows, broken = read_rows(options.store)
    untried, unread = read_untried(options.store)
    broken += unread
    if not rows and not broken:
        _refuse_to_replace([*places, *([options.site / INDEX] if options.site else [])], options.store)
    for one in broken:
        print(shown(f"skipped {one.name}: {one.reason}"), file=sys.stderr)
    if options.out:
        say(table(rows))
        say(f"\nreport: {build(rows, options.out, broken, untried=untried)}")
    if options.site:
        say(f"site: {build_site(rows, options.site, broken, untried)}")
    _write_tables(rows, options)
    return 1 if broken else 0


def _places(options: argparse.Namespace) -> list[Path]:
    """Every single file that is asked for."""
    tables = [options.csv, wide_beside(options.csv)] if options.csv else []
    return [place for place in (options.out, *tables, options.latex, options.parquet) if place is not None]


def _write_tables(rows: Sequence[Row], options: argparse.Namespace) -> None:
    if options.csv:
        say("csv: {}, {}".format(*write_csv(rows, options.csv)))
    if options.latex:
        say(f"latex: {write_latex(rows, options.latex)}")
    if options.parquet:
        say(f"parquet: {write_parquet(rows, options.parquet)}")


def _require_store(store: str) -> None:
    roots = Store(store).roots
    if not any(root.is_dir() for root in roots):
        got = "a file" if any(root.exists() for root in roots) else "a path where nothing is"
        raise Refused(
            f"--store {store}: expected the folder of a store, got {got}; name the one that `store=` named for the "
            "verbs, or set MIDEFENSE_STORE"
        )


def _refuse_to_replace(places: Sequence[Path], store: str) -> None:
    """A page of results is not replaced by one of none: more likely another store was meant."""
    there = [str(place) for place in places if place.exists()]
    if there:
        raise Refused(
            f"--store {store}: expected results, got none, and {', '.join(there)} would be replaced; name the store "
            "that has them, or another --out"
        )
