"""`midefense gc`: what no row needs any more, with sizes; deleted only where it is named."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from midefense.commands.parsing import add_store, only, refusing
from midefense.store.garbage import Garbage, collect, delete, refuse_while_claimed
from midefense.store.store import Store
from midefense.terminal import say


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: refused, nothing was deleted, or not all)."""
    options = _parser().parse_args(words)
    return refusing(lambda: _gc(Store(options.store), options))


def _gc(store: Store, options: argparse.Namespace) -> int:
    keep = [store.read(only(store, reference)) for reference in options.keep]
    garbage = collect(store, keep, options.unfinished)
    if options.delete:
        items = garbage.chosen(options.delete)
        refuse_while_claimed(store.root)
        for item in delete(store, items):
            say(f"deleted  {_size(item.size)}  {item.name}")
        say(f"{len(items)} deleted, {_size(sum(item.size for item in items)).strip()}")
        return 0
    for item in garbage.items:
        say(f"{item.what:<10}  {_size(item.size)}  {item.name}")
    for name, why in garbage.kept.items():
        say(f"stays                   {name}: {why}")
    say(_end(garbage, store, options))
    return 0


def _end(garbage: Garbage, store: Store, options: argparse.Namespace) -> str:
    """How much could go, and the command that lets exactly that go."""
    if not garbage.items:
        return "nothing that no row needs; nothing was deleted"
    kept = f" --keep {shlex.join(options.keep)}" if options.keep else ""
    unfinished = " --unfinished" if options.unfinished else ""
    return (
        f"{len(garbage.items)} that no row needs, {_size(garbage.size).strip()}; nothing was deleted. To delete all of "
        f"them: midefense gc --store {store.words}{kept}{unfinished} --delete {garbage.digest}"
    )


def _size(size: int) -> str:
    return f"{size / 1e6:8.2f} MB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midefense gc",
        description="List what no result row and no finished point of a sweep needs any more, and what killed "
        "processes left behind. Nothing is deleted without --delete.",
    )
    add_store(parser)
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="REF", help="needed too, with all that it was made from"
    )
    parser.add_argument(
        "--unfinished", action="store_true", help="also work that is not finished: without it, it begins anew"
    )
    parser.add_argument(
        "--delete",
        nargs="+",
        metavar="DIGEST|NAME",
        help="delete exactly what the list with this digest named, or what is named of it; refused while somebody "
        "works in the store",
    )
    return parser
