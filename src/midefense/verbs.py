"""What the three entry points share: Hydra in front, a plan checked, a pipeline run, and endings in one sentence."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from midefense.artefacts import Artefact
from midefense.build import CONF, plain_config
from midefense.pipeline import Pipeline
from midefense.plan import read_plan
from midefense.tracking import Preempted, install_signal_handlers
from midefense.types import Refused, refuse_unknown

PREEMPTED = 143  # what a shell reports of a process that SIGTERM ended
REFUSED = 2
NO_OPTION = "Config group override must be"  # what Hydra says of GROUP=null, as a plain ValueError


def verb(name: str, work: Callable[[Pipeline], Artefact], say: Callable[[Artefact], str]) -> Callable[[], None]:
    """An entry point: `work` gives the artefact the verb is for, `say` what to print of it."""

    refused: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def run(config: DictConfig) -> None:
        chosen = HydraConfig.get()
        try:
            plan = read_plan(name, plain_config(config), dict(chosen.runtime.choices), list(chosen.overrides.task))
            artefact = work(Pipeline(plan))
        except Refused as refusal:  # here, before Hydra adds lines of its own; the rest of a sweep goes on
            refused.append(_complain(str(refusal)))
            return
        print(f"{say(artefact)}\n{artefact.reference}\n{artefact.path}", flush=True)

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
        install_signal_handlers()
        try:
            run()
        except HydraException as error:
            sys.exit(_complain(_sentence(error)))
        except ValueError as error:
            if not str(error).startswith(NO_OPTION):
                raise
            sys.exit(_complain("GROUP=null: expected the name of an option, got null; choices: --help; try ~GROUP"))
        except Preempted:
            print(f"preempted; continue with: {shlex.join(['python', *sys.argv])}", file=sys.stderr)
            sys.exit(PREEMPTED)
        if refused:
            sys.exit(REFUSED)

    return main


def configured(name: str, overrides: Sequence[str]) -> tuple[dict, dict[str, str]]:
    """The plain configuration of a verb and the option chosen per group, for a command that is no verb itself.

    Raises `Refused`, in the words of the verbs, for an override that Hydra cannot follow.
    """
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            config = compose(config_name=name, overrides=list(overrides), return_hydra_config=True)
    except HydraException as error:
        raise Refused(_sentence(error)) from error
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return plain_config(config), choices


def _complain(text: str) -> int:
    print(f"refused: {text}", file=sys.stderr)
    return REFUSED


def _sentence(error: HydraException) -> str:
    """Hydra's complaint about the command line, with the choices it leaves out."""
    if isinstance(error, MissingConfigException) and error.options:
        return str(refuse_unknown(f"{error.missing_cfg_file}: no such option", _last(error), error.options))
    text = str(error).split("\n")[0]
    if isinstance(error, OverrideParseException):
        return f"expected KEY=VALUE, +KEY=VALUE or ~KEY, got {error.override!r}; try quoting the value ({text})"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None and cause.key is not None:
        if "/" in str(cause.key):
            return str(refuse_unknown("no such config group", cause.key, sorted(_groups()), "See --help."))
        known = [str(key) for key in cause.parent_node if key != "hydra"]
        return str(refuse_unknown(f"{cause.full_key}: no such option", cause.key, known))
    if "Could not override '" in text:
        group = text.split("'")[1]
        return str(refuse_unknown("no such config group", group, sorted(_groups()), "See --help."))
    if "Could not delete" in text:
        return f"{text} Expected ~KEY of an option that is there; try --cfg job to see them all"
    return text


def _last(error: MissingConfigException) -> str:
    return str(error.missing_cfg_file).split("/")[-1]


def _groups() -> list[str]:
    folders = (path for path in CONF.rglob("*") if path.is_dir())
    return [path.relative_to(CONF).as_posix() for path in folders if any(path.glob("*.yaml"))]
