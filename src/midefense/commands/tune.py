"""`midefense tune attack=kkt_small ... 'attack.deviation=tag(log,interval(0.01,0.5))'`: the options of an attack at
which it does best, found on a shadow model whose data the attacker owns."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from midefense.commands.parsing import add_store, count, is_override, refusing
from midefense.studies.names import METRICS, PRIVATE, SAMPLERS, SHADOW
from midefense.terminal import say

if TYPE_CHECKING:
    from midefense.studies.search import Trial

CAUTION = (
    "note: {objective} looked at the private training images: no attacker could find these values; "
    "what they give is no attack's number"
)


def run(words: Sequence[str]) -> int:
    """Run the command; returns the exit code (1: refused)."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if strange := [word for word in rest if not is_override(word)]:
        parser.error(f"expected KEY=VALUE, got {' '.join(strange)}")
    return refusing(lambda: _tune(options, rest))


def _tune(options: argparse.Namespace, words: Sequence[str]) -> int:
    from midefense.studies.tuning import read_tuning, tune

    tuning = read_tuning(words, options.shadow, options.objective, options.metric, options.seeds, options.store)
    say(f"study {tuning.id}: {tuning.metric} of " + ("the target" if options.objective == PRIVATE else "a shadow"))

    def told(trial: Trial) -> None:
        say(f"trial {trial.place}: {_outcome(trial)} at {_values(trial)}")

    report = tune(tuning, options.trials, options.sampler, options.seed, told)
    if options.objective == PRIVATE:
        say(CAUTION.format(objective=PRIVATE))
    if report.at_work:
        say(f"{report.at_work} trials are being worked on elsewhere, or were ended: the same command goes on with them")
    if report.best is None:
        last = f"; the last one: {report.trials[-1].refused}" if report.trials else ""
        say(f"no trial of {len(report.trials)} gave a number{last}")
        return 1
    say(f"best of {len(report.trials)} trials: {_outcome(report.best)} at {_values(report.best)}")
    say(report.command())
    return 0


def _outcome(trial: Trial) -> str:
    return f"refused ({trial.refused})" if math.isnan(trial.value) else f"{trial.value:.4g}"


def _values(trial: Trial) -> str:
    return " ".join(f"{key}={value}" for key, value in trial.values.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midefense tune",
        usage="midefense tune KEY=VALUE ... KEY='interval(LOW,HIGH)' ... [options]",
        description="Search for the options of an attack, such as the weights of its losses. The words are those of "
        "`midefense evaluate`; an option with interval(LOW,HIGH), int(interval(LOW,HIGH)), "
        "tag(log,interval(LOW,HIGH)) or choice(A,B) is searched over. Every trial attacks a shadow: the same network, "
        "trained the same way on other data. The last line is the command that attacks the target with the best "
        "values. The same command goes on where it ended, and may run several times at once.",
    )
    data = (
        "a word that replaces the target's in the shadow, above all of its data; may come several times (default: the "
    )
    data += "public classes of the target's dataset as its private ones)"
    parser.add_argument("--shadow", action="append", default=[], metavar="KEY=VALUE", help=data)
    parser.add_argument("--trials", type=count, default=20, help="in all, those there are counted too (default: 20)")
    how = f"what is measured: {SHADOW} (default), or {PRIVATE}: the target's own training images, which no attacker has"
    parser.add_argument("--objective", choices=tuple(METRICS), default=SHADOW, help=how)
    parser.add_argument("--metric", help=f"a number of the row (default: {METRICS[SHADOW]})")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of target and attack, a run each (default: 0)"
    )
    parser.add_argument("--sampler", choices=SAMPLERS, default=SAMPLERS[0], help="tpe (default), or random")
    parser.add_argument("--seed", type=int, default=0, help="of the values that are tried (default: 0)")
    add_store(parser)
    return parser
