"""What the entry points share: Hydra in front, a plan checked, a pipeline run, and endings in one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from midefense.compute import local_rank
from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import (
    COMPLAINTS,
    CONF,
    plain_config,
    refuse_hidden,
    sentence,
    with_prior_options,
)
from midefense.plan.overrides import as_typed, with_open_places
from midefense.plan.read import read_plan
from midefense.store.artefacts import Artefact
from midefense.tracking.endings import tell
from midefense.tracking.preemption import ending_when_asked
from midefense.types import Refused


def verb(name: str, work: Callable[[Pipeline], Artefact], say: Callable[[Artefact], str]) -> Callable[[], None]:
    """An entry point: `work` gives the artefact the verb is for, `say` what to print of it. It exits as
    `tracking.endings` says; a sweep goes through all its points, and exits as the first one that failed."""

    failed: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def run(config: DictConfig) -> None:
        sys.argv[1:] = as_typed(sys.argv[1:])  # Hydra has read them: further processes and sentences begin with these
        chosen, tell_of = HydraConfig.get(), tell
        try:
            refuse_hidden(chosen.runtime.config_sources)
            values = plain_config(with_prior_options(config, chosen))
            plan = read_plan(name, values, dict(chosen.runtime.choices), as_typed(chosen.overrides.task))
            pipeline = Pipeline(plan)
            tell_of = pipeline.session.tell
            agenda = look_ahead(pipeline)
            if plan.missing == "plan":
                print("\n".join(agenda.lines()), flush=True)
                return
            if plan.missing == "make" and agenda.missing and local_rank() == 0:
                print("\n".join(agenda.lines()), file=sys.stderr, flush=True)
            artefact = work(pipeline)
        except Exception as error:  # here, before Hydra adds lines of its own; the rest of a sweep goes on
            failed.append(tell_of(error))
            return
        print(f"{say(artefact)}\n{artefact.reference}\n{artefact.path}", flush=True)

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
        with ending_when_asked():
            try:
                sys.argv[1:] = with_open_places(sys.argv[1:])
                run()
            except COMPLAINTS as error:
                failed.append(tell(Refused(sentence(error))))
        if failed:
            sys.exit(failed[0])

    return main
