"""What the entry points share: Hydra in front, a plan checked, a pipeline run, and endings in one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import (
    CONF,
    NO_OPTION,
    NULL_OPTION,
    plain_config,
    refuse_hidden,
    sentence,
    with_prior_options,
)
from midefense.plan.overrides import as_typed, with_open_places
from midefense.plan.read import read_plan
from midefense.store.artefacts import Artefact
from midefense.store.command import command_given
from midefense.tracking.preemption import Preempted, install_signal_handlers
from midefense.types import Refused

PREEMPTED = 143  # what a shell reports of a process that SIGTERM ended
REFUSED = 2


def verb(name: str, work: Callable[[Pipeline], Artefact], say: Callable[[Artefact], str]) -> Callable[[], None]:
    """An entry point: `work` gives the artefact the verb is for, `say` what to print of it."""

    refused: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def run(config: DictConfig) -> None:
        sys.argv[1:] = as_typed(sys.argv[1:])  # Hydra has read them: further processes and sentences begin with these
        chosen = HydraConfig.get()
        try:
            refuse_hidden(chosen.runtime.config_sources)
            values = plain_config(with_prior_options(config, chosen))
            plan = read_plan(name, values, dict(chosen.runtime.choices), as_typed(chosen.overrides.task))
            artefact = work(Pipeline(plan))
        except Refused as refusal:  # here, before Hydra adds lines of its own; the rest of a sweep goes on
            refused.append(_complain(str(refusal)))
            return
        print(f"{say(artefact)}\n{artefact.reference}\n{artefact.path}", flush=True)

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
        install_signal_handlers()
        sys.argv[1:] = with_open_places(sys.argv[1:])
        try:
            run()
        except HydraException as error:
            sys.exit(_complain(sentence(error)))
        except ValueError as error:
            if not str(error).startswith(NO_OPTION):
                raise
            sys.exit(_complain(NULL_OPTION))
        except Preempted:
            print(f"preempted; continue with: {command_given()}", file=sys.stderr)
            sys.exit(PREEMPTED)
        if refused:
            sys.exit(REFUSED)

    return main


def _complain(text: str) -> int:
    print(f"refused: {text}", file=sys.stderr)
    return REFUSED
