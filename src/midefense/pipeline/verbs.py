"""What the entry points share: Hydra in front, a plan checked, a pipeline run, and endings in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import in_one_sentence, plain_config, refuse_hidden, with_prior_options
from midefense.plan.read import read_plan
from midefense.plan.verb_options import CONF, groups, groups_of
from midefense.store.artefacts import Artefact
from midefense.store.command import command_given
from midefense.tracking.preemption import Preempted, install_signal_handlers
from midefense.types import Refused

PREEMPTED = 143  # what a shell reports of a process that SIGTERM ended
REFUSED = 2


def verb(name: str, work: Callable[[Pipeline], Artefact], say: Callable[[Artefact], str]) -> Callable[[], None]:
    """An entry point: `work` gives the artefact the verb is for, `say` what to print of it."""

    refused: list[int] = []
    composing = [True]  # until a run begins, and again between the runs of a sweep

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def run(config: DictConfig) -> None:
        chosen, composing[0] = HydraConfig.get(), False
        try:
            refuse_hidden(chosen.runtime.config_sources)
            with in_one_sentence(name):
                values = plain_config(with_prior_options(config, chosen))
            plan = read_plan(name, values, dict(chosen.runtime.choices), list(chosen.overrides.task))
            artefact = work(Pipeline(plan))
        except Refused as refusal:  # here, before Hydra adds lines of its own; the rest of a sweep goes on
            refused.append(_complain(f"{_point(chosen)}{refusal}"))
            composing[0] = True
            return
        print(f"{say(artefact)}\n{artefact.reference}\n{artefact.path}", flush=True)
        composing[0] = True

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
        install_signal_handlers()
        try:
            with in_one_sentence(name, lambda: composing[0]), _own_groups_in_help(name):
                run()
        except Refused as refusal:
            sys.exit(_complain(str(refusal)))
        except Preempted:
            print(f"preempted; continue with: {command_given()}", file=sys.stderr)
            sys.exit(PREEMPTED)
        if refused:
            sys.exit(REFUSED)

    return main


@contextlib.contextmanager
def _own_groups_in_help(name: str) -> Iterator[None]:
    """Of the groups that Hydra's help lists, which are all of `conf/`, those that the verb takes and the user's own."""
    if not {"--help", "-h"} & set(sys.argv[1:]):
        yield
        return
    others = set(groups()) - set(groups_of(name))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            yield
    finally:
        lines = said.getvalue().splitlines(keepends=True)
        sys.stdout.write("".join(line for line in lines if line.partition(":")[0] not in others))


def _point(hydra_config: DictConfig) -> str:
    """Which point of a sweep a run is, for messages; "" for a run alone."""
    if hydra_config.mode != RunMode.MULTIRUN:
        return ""
    swept = [word for word in hydra_config.overrides.task if word not in sys.argv]
    return f"point {hydra_config.job.num + 1} ({' '.join(swept) or 'the only one'}): "


def _complain(text: str) -> int:
    print(f"refused: {text}", file=sys.stderr)
    return REFUSED
