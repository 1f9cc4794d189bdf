"""The tables of `docs/*.md`, written from the headers of `conf/` and from `benchmarks/`.

    python docs/tables.py            # names the pages that are out of date, and exits 1 if there are any
    python docs/tables.py --write    # brings them up to date (make docs)

A page says `<!-- table: conf/defense -->` or `<!-- table: benchmarks/targets.md -->`; what stands between that line and
`<!-- end -->` is written here. A header is the comment at the top of a YAML file:

    # NAME · SOURCE · ACCESS           (an attack's last piece is its access)
    # python evaluate.py ...           a command that uses the file
    # published: ...                   fields, each on a line of its own; a field may come twice,
    #   and goes on in lines that are indented
    # Anything else is a note for who reads the file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BLOCK = re.compile(r"(?<=^<!-- table: )(\S+) -->\n.*?(?=^<!-- end -->$)", re.M | re.S)

Header = dict[str, str]  # "name", "title", "source", "access", and the fields


def header(file: Path) -> Header:
    """What the header of a YAML file says."""
    lines: list[str] = []
    for line in file.read_text().removeprefix("# @package _global_\n").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:].removeprefix(" ")
        if text.startswith("  ") and lines:
            lines[-1] += f" {text.strip()}"
        else:
            lines.append(text.strip())
    title, *source = lines[0].split(" · ")
    access = source.pop() if file.parent.name == "attack" and len(source) > 1 else ""
    read = {"name": file.stem, "title": title, "source": ", ".join(source), "access": access}
    for key, value in re.findall(r"^([a-z ]+): (\S.*)$", "\n".join(lines[1:]), re.M):
        read[key] = f"{read[key]}; {value}" if key in read else value
    return read


def name(read: Header) -> str:
    return f"`{read['name']}`"


def what(read: Header) -> str:
    return "; ".join(read[key] for key in ("title", "what") if key in read)


def field(key: str) -> Callable[[Header], str]:
    return lambda read: read.get(key, "-")


PUBLISHED = {"published": field("published"), "measured": field("measured")}
NAMED = {"what": what, "source": field("source")}
SPLIT = {"private train / test, public": field("images"), "files": field("files")}
COLUMNS: dict[str, dict[str, Callable[[Header], str]]] = {
    "dataset": {"dataset": name, **NAMED, **SPLIT, **PUBLISHED},
    "public": {"public images": name, **NAMED, "published": field("published")},
    "architecture": {"architecture": name, **NAMED, **PUBLISHED},
    "recipe": {"recipe": name, **NAMED, **PUBLISHED},
    "defense": {"defense": name, **NAMED, "bites at": field("bites at"), **PUBLISHED},
    "attack": {"attack": name, **NAMED, "access": field("access"), **PUBLISHED},
    "prior": {"prior": name, **NAMED, "learns from": field("learns from"), **PUBLISHED},
    "evaluator": {"evaluator": name, **NAMED, **PUBLISHED},
    "metrics": {"metrics": name, **NAMED, **PUBLISHED},
    "experiment": {"experiment": name, "what": field("title"), **PUBLISHED},
}


def listing(group: str) -> str:
    """The table of the files of `conf/<group>`; of a group that is not in `COLUMNS`, names, titles and sources."""
    kind, _, folder = group.partition("/")
    columns = COLUMNS.get(kind if kind == "experiment" else group, {folder or kind: name, **NAMED})
    files = sorted((ROOT / "conf" / group).glob("*.yaml"), key=lambda file: (file.stem != "none", file.stem))
    if not files:
        raise SystemExit(f"conf/{group}: expected YAML files, got none; see the line `table: conf/{group}` in docs/")
    rows = [[column(header(file)) for column in columns.values()] for file in files]
    return "\n".join(map(row, [list(columns), ["---"] * len(columns), *rows]))


def row(cells: list[str]) -> str:
    return f"| {' | '.join(linked(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def linked(text: str) -> str:
    """Text in which the pages it names are links from `docs/`."""
    text = re.sub(r"\bbenchmarks/(\w+)\.md", r"[\1](../benchmarks/\1.md)", text)
    return re.sub(r"\bdocs/(\w+)\.md", r"[\1](\1.md)", text)


def benchmark(path: str) -> str:
    """A benchmark's page without its title."""
    return (ROOT / path).read_text().partition("\n")[2].strip()


def filled(page: str) -> str:
    """A page with all its tables as they should be."""

    def fill(block: re.Match) -> str:
        place = block[1]
        table = listing(place.removeprefix("conf/")) if place.startswith("conf/") else benchmark(place)
        return f"{place} -->\n{table}\n"

    return BLOCK.sub(fill, page)


def main(arguments: list[str]) -> int:
    """Compare, or write with `--write`."""
    if arguments not in ([], ["--write"]):
        print(f"expected nothing or --write, got {' '.join(arguments)}", file=sys.stderr)
        return 2
    old = {page: page.read_text() for page in sorted(DOCS.glob("*.md"))}
    stale = {page: filled(text) for page, text in old.items() if filled(text) != text}
    for page, text in stale.items():
        if arguments:
            page.write_text(text)
        print(f"{'wrote' if arguments else 'out of date:'} {page.relative_to(ROOT)}")
    if stale and not arguments:
        print("bring them up to date with: python docs/tables.py --write")
    return 1 if stale and not arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
