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

from midefense.compute import local_rank
from midefense.pipeline.ahead import look_ahead
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.prices import priced
from midefense.plan.adaptive import with_adaptive
from midefense.plan.compose import in_one_sentence, plain_config, refuse_hidden, with_prior_options
from midefense.plan.hydra_node import guarded, refuse_other_worlds
from midefense.plan.overrides import as_swept, as_typed, with_open_places
from midefense.plan.read import read_plan
from midefense.plan.verb_options import CONF, groups, groups_of
from midefense.store.artefacts import Artefact
from midefense.terminal import shown
from midefense.tracking.endings import tell
from midefense.tracking.preemption import ending_when_asked
from midefense.tracking.wandb_mirror import agent_parameters
from midefense.types import Refused


def verb(name: str, work: Callable[[Pipeline], Artefact], say: Callable[[Artefact], str]) -> Callable[[], None]:
    """An entry point: `work` gives the artefact the verb is for, `say` what to print of it. It exits as
    `tracking.endings` says; a sweep goes through all its points, and exits as the first one that failed."""

    failed: list[int] = []
    composing = [True]  # until a run begins, and again between the runs of a sweep

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def run(config: DictConfig) -> None:
        sys.argv[1:] = as_typed(sys.argv[1:])  # Hydra has read them: further processes and sentences begin with these
        chosen, tell_of, composing[0] = HydraConfig.get(), tell, False
        try:
            refuse_hidden(chosen.runtime.config_sources)
            with in_one_sentence(name):
                values = plain_config(with_prior_options(config, chosen))
            plan = read_plan(name, values, dict(chosen.runtime.choices), as_typed(chosen.overrides.task))
            pipeline = Pipeline(plan)
            tell_of = pipeline.session.tell
            agenda = look_ahead(pipeline)
            if plan.missing in ("plan", "measure"):
                told = agenda.lines() if plan.missing == "plan" else priced(agenda, agenda.measured())
                print(shown("\n".join(told)), flush=True)
                return
            if plan.missing == "make" and agenda.missing and local_rank() == 0:
                print(shown("\n".join(agenda.lines())), file=sys.stderr, flush=True)
            artefact = work(pipeline)
        except Exception as error:  # here, before Hydra adds lines of its own; the rest of a sweep goes on
            failed.append(tell_of(_at_point(chosen, error)))
            return
        finally:
            composing[0] = True
        print(shown(f"{say(artefact)}\n{artefact.reference}\n{artefact.path}"), flush=True)

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
        with ending_when_asked():
            try:
                with in_one_sentence(name, lambda: composing[0]), guarded(), _own_groups_in_help(name):
                    refuse_other_worlds(sys.argv[1:])
                    sys.argv[1:] = with_open_places(with_adaptive(as_swept(sys.argv[1:], agent_parameters())))
                    run()
            except Refused as refusal:
                failed.append(tell(refusal))
        if failed:
            sys.exit(failed[0])

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


def _at_point(hydra_config: DictConfig, error: Exception) -> Exception:
    """A refusal that says which point of a sweep it is about; whatever else ended a run as it is."""
    if hydra_config.mode != RunMode.MULTIRUN or not isinstance(error, Refused):
        return error
    swept = [word for word in hydra_config.overrides.task if word not in sys.argv]
    return Refused(f"point {hydra_config.job.num + 1} ({' '.join(swept) or 'the only one'}): {error}")
