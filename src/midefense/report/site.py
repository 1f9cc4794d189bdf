"""A folder of pages that browses every result of a store: files only, opened from a disk or served by anything.

    index.html               every result: filters by any key, seeds grouped or apart, two lines side by side
    figures-N.html           of each protocol: worst cases, heat map, frontier per attack, curves against queries
    identities-N-M.html      of each dataset and class: reconstructions beside private images

Each file is whole in itself, so that a page can be sent alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from midefense.report.figures import figures
from midefense.report.files import save
from midefense.report.frame import SIGNED, TITLE, filled, framed, scripted
from midefense.report.identities import Shelf, shelves
from midefense.report.markup import Markup, join, tag
from midefense.report.page import skipped_list
from midefense.report.rows import Broken, Row, Setup, by_protocol, setups
from midefense.report.site_data import site_data
from midefense.store.sweeps import Outcome
from midefense.types import Refused

INDEX = "index.html"
FOOTER = "Files only: nothing on these pages is fetched from anywhere."
OURS = ("index.html", "figures-*.html", "identities-*.html")  # what an earlier site left and a new one replaces


def build_site(
    rows: Sequence[Row], folder: Path, broken: Sequence[Broken] = (), untried: Sequence[Outcome] = ()
) -> Path:
    """Write the site into `folder`, made if it is not there, and return its first page. Pages of an earlier site that
    this one does not have are removed; the first page is written last, and names only pages that are there.

    Raises:
        Refused: `folder` is a file, or holds what no site wrote.
        OSError: the disk is full or may not be written.
    """
    folder = Path(folder)
    refuse_odd_folder(folder)
    groups = {name: setups(own) for name, own in by_protocol(rows).items()}
    pages, links = _figure_pages(groups, untried)
    found = shelves([setup for own in groups.values() for setup in own])
    pages |= {shelf.file: _identity_page(shelf) for shelf in found}
    for name, text in pages.items():
        save(folder / name, text)
    place = folder.resolve()
    index = save(folder / INDEX, _index(groups, broken, found, links, place))
    _remove_former(folder, {INDEX, *pages})
    return index


def refuse_odd_folder(folder: Path) -> None:
    """Refuse what is no folder, and one that has pages of somebody else: an index.html that no site wrote."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"--site {folder}: expected a folder, got a file; try {folder.with_suffix('')}-site")
    index = folder / INDEX
    if index.exists() and not _is_ours(index):
        raise Refused(f"--site {folder}: expected an empty folder or an earlier site, got another index.html there")


def _is_ours(page: Path) -> bool:
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return SIGNED in file.read(4096)


def _remove_former(folder: Path, own: set[str]) -> None:
    """Remove pages that an earlier site wrote and this one did not; nobody else's, whatever they are called."""
    for path in (path for pattern in OURS for path in folder.glob(pattern)):
        if path.name not in own and _is_ours(path):
            path.unlink()


def _figure_pages(
    groups: dict[str, list[Setup]], untried: Sequence[Outcome]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Pages by file name, and by protocol the links to them."""
    pages, links = {}, {}
    for number, (name, found) in enumerate(groups.items(), 1):
        content = figures(found, untried)
        if content is not None:
            file = f"figures-{number}.html"
            back = tag("p", tag("a", "All results", href=INDEX), class_="counts")
            pages[file] = _page(f"Figures of protocol {name}", f"protocol {name}", join(back, content))
            links[name] = {"Figures": file}
    return pages, links


def _identity_page(shelf: Shelf) -> str:
    back = tag("p", tag("a", "All results", href=INDEX), class_="counts")
    return _page(shelf.title, shelf.counts, join(back, shelf.markup))


def _index(
    groups: dict[str, list[Setup]],
    broken: Sequence[Broken],
    found: Sequence[Shelf],
    links: dict[str, dict[str, str]],
    place: Path,
) -> str:
    results = sum(len(setup.rows) for own in groups.values() for setup in own)
    setups, protocols = sum(map(len, groups.values())), len(groups)
    said = f"{results:,} results · {setups:,} setups · {protocols:,} protocol{'' if protocols == 1 else 's'}"
    content = filled("browse.html", notices=_notices(broken, results), links=_shelf_links(found))
    return _page(TITLE, said, content, scripted(site_data(groups, place, links), "site.js"))


def _notices(broken: Sequence[Broken], results: int) -> Markup:
    return join(skipped_list(broken), None if results else tag("p", "No results yet.", class_="notice"))


def _shelf_links(found: Sequence[Shelf]) -> Markup:
    """Where reconstructions stand beside private images, by dataset; a class a link."""
    if not found:
        return Markup("")
    parts = []
    for dataset in dict.fromkeys(shelf.dataset for shelf in found):
        links = [tag("li", tag("a", shelf.name, href=shelf.file)) for shelf in found if shelf.dataset == dataset]
        parts.append(
            tag("details", tag("summary", f"Pictures by identity: {dataset}"), tag("ul", *links, class_="links"))
        )
    return join(*parts)


def _page(heading: str, counts: str, content: Markup, end: Markup | None = None) -> str:
    return framed(content, heading=heading, counts=counts, footer=FOOTER, styles=["page.css", "site.css"], end=end)
