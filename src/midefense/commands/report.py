"""`midefense report [--store DIR] [--out report.html] [--csv results.csv]`: the page and the table of all results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from midefense.commands.parsing import add_store, refusing
from midefense.report import build, read_rows, table, write_csv


def run(words: Sequence[str]) -> int:
    """Read the store's results, write the page (and CSV), print the table. 1 if a result could not be read."""
    parser = argparse.ArgumentParser(prog="midefense report", description=__doc__.splitlines()[0])
    add_store(parser)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--csv", type=Path, help="also write one line per result and metric, and <stem>.wide.csv")
    options = parser.parse_args(words)
    return refusing(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    rows, broken = read_rows(options.store)
    for one in broken:
        print(f"skipped {one.name}: {one.reason}", file=sys.stderr)
    print(table(rows))
    print(f"\nreport: {build(rows, options.out, broken)}")
    if options.csv:
        print("csv: {}, {}".format(*write_csv(rows, options.csv)))
    return 1 if broken else 0
