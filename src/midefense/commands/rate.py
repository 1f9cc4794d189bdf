"""`midefense rate RESULT --rater NAME`: what people see in reconstructions, on a page of this machine; pairs of a
reconstruction and a private image, of one person or of two, and nobody is told which."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from midefense.commands.parsing import add_store, count, refusing
from midefense.store.store import Store
from midefense.studies.rating import agreement, open_study, require_rater
from midefense.studies.rating_page import RatingServer
from midefense.terminal import say


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: refused)."""
    options = _parser().parse_args(words)
    return refusing(lambda: _rate(options))


def _rate(options: argparse.Namespace) -> int:
    store = Store(options.store)
    if options.rater is not None:
        store.require_writable()
    sheet, answers = open_study(store, options.result, options.pairs, options.seed)
    if answers.cut_off:
        say(f"{answers.file}: {answers.cut_off} cut off where writing ended and left out; such a pair is asked again")
    if options.rater is not None:
        with RatingServer(sheet, answers, require_rater(options.rater), options.port) as server:
            if server.left:
                say(f"{server.left} pairs for {options.rater}: {server.address}")
                say("open it in a browser of this machine; Ctrl-C ends, and the same command goes on")
                server.serve_all()
    say("\n".join(agreement(sheet.pairs, answers.read())))
    say(f"answers: {answers.file}")
    return 0


def port(text: str) -> int:
    """A port of this machine, for `argparse`; 0 takes a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midefense rate",
        description="Serves blinded pairs of a result's pictures on 127.0.0.1 to one rater, appends the answers to a "
        "file in the store, and prints how far raters agree. Only of datasets whose pictures may be shown.",
    )
    parser.add_argument("result", metavar="RESULT", help="a row of the store, as `midefense store list` names it")
    parser.add_argument("--rater", metavar="NAME", help="who answers (without: only print what was answered)")
    parser.add_argument("--pairs", type=count, default=40, help="on the sheet, half of one person (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and their order: another sheet (default: 0)")
    parser.add_argument("--port", type=port, default=0, help="to listen on (default: a free one)")
    add_store(parser)
    return parser
