"""`midefense report [--store DIR] [--out report.html] [--csv results.csv]`: the page and the table of all results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from midefense.commands.parsing import add_store, refusing
from midefense.report import build, read_rows, read_untried, refuse_odd_places, table, wide_beside, write_csv
from midefense.store.store import Store
from midefense.terminal import say, shown
from midefense.types import Refused


def run(words: Sequence[str]) -> int:
    """Read the store's results, write the page (and CSV), print the table. 1 if a result could not be read, or with a
    sentence if there is no store, or a file cannot be written."""
    parser = argparse.ArgumentParser(prog="midefense report", description=__doc__.splitlines()[0])
    add_store(parser)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--csv", type=Path, help="also write one line per result and metric, and <stem>.wide.csv")
    options = parser.parse_args(words)
    return refusing(lambda: _report(options.store, options.out, options.csv))


def _report(store: str, out: Path, tables: Path | None) -> int:
    _require_store(store)
    places = [out, *((tables, wide_beside(tables)) if tables else ())]
    refuse_odd_places(places)
    rows, broken = read_rows(store)
    untried, unread = read_untried(store)
    broken += unread
    if not rows and not broken:
        _refuse_to_replace(places, store)
    for one in broken:
        print(shown(f"skipped {one.name}: {one.reason}"), file=sys.stderr)
    say(table(rows))
    say(f"\nreport: {build(rows, out, broken, untried=untried)}")
    if tables:
        say("csv: {}, {}".format(*write_csv(rows, tables)))
    return 1 if broken else 0


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
