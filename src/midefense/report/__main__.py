"""`python -m midefense.report [--store DIR] [--out report.html] [--csv results.csv]`"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from midefense.report import build, read_rows, table, write_csv


def main(arguments: list[str] | None = None) -> int:
    """Read the store's results, write the page (and CSV), print the table. 1 if a result could not be read."""
    parser = argparse.ArgumentParser(prog="python -m midefense.report", description=__doc__)
    store = Path(os.environ.get("MIDEFENSE_STORE", "store"))
    told = "the store's folder (default: the variable MIDEFENSE_STORE, else store)"
    parser.add_argument("--store", type=Path, default=store, help=told)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--csv", type=Path, help="also write one line per result and metric, and <stem>.wide.csv")
    options = parser.parse_args(arguments)
    rows, broken = read_rows(options.store)
    for one in broken:
        print(f"skipped {one.name}: {one.reason}", file=sys.stderr)
    print(table(rows))
    print(f"\nreport: {build(rows, options.out, broken)}")
    if options.csv:
        print("csv: {}, {}".format(*write_csv(rows, options.csv)))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
