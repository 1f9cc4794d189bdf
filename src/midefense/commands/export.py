"""`midefense export REF FILE`: the weights of a target as one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from midefense.commands.parsing import add_store, refusing


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: refused)."""
    parser = argparse.ArgumentParser(prog="midefense export", description=__doc__.splitlines()[0])
    add_store(parser)
    parser.add_argument("reference", help="a target of the store")
    parser.add_argument("file", help="a new .pt, .pth, .tar or .safetensors")
    names = "names of the original implementation, or ours (default: published)"
    parser.add_argument("--format", choices=("published", "plain"), default="published", help=names)
    allow = "a module of your own that the network is of (more than once for several)"
    parser.add_argument("--allow", action="append", default=[], metavar="MODULE", help=allow)
    options = parser.parse_args(words)
    return refusing(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    from midefense.exchange.classifiers import export_classifier
    from midefense.store.store import Store

    print(export_classifier(Store(options.store), options.reference, options.file, options.format, options.allow))
    return 0
