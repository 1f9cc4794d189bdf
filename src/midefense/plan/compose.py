"""The configuration of a verb under overrides, as plain values. Beside the entry of the verbs, the only file that
knows Hydra."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from midefense.plan.overrides import chosen_of, parsed, with_open_places
from midefense.plan.prior_options import KEY, lay_over, options_for, require_known
from midefense.store.folders import can_be_written, folders_of
from midefense.store.plain import mask_variable
from midefense.types import Refused, refuse_unknown

PACKAGE = Path(__file__).resolve().parents[1]
# Inside the installed package, or beside `src/` in a checkout.
CONF = next((path for path in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if path.is_dir()), PACKAGE / "conf")
NO_OPTION = "Config group override must be"  # what Hydra says of GROUP=null, as a plain ValueError
# What Hydra and its readers raise where a word of the command line or a file of configuration is not what it must be.
COMPLAINTS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
NULL_OPTION = "GROUP=null: expected the name of an option, got null; choices: --help; try ~GROUP"


def _environment(name: str, *default: object) -> object:
    """`${oc.env:NAME,DEFAULT}`; what it gives is masked wherever it would be written."""
    mask_variable(name)
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def compose(verb: str, overrides: Sequence[str] = ()) -> tuple[dict, dict[str, str]]:
    """The plain configuration of a verb (`train_target`, `attack`, `evaluate`), and the option chosen per group.

    Raises `Refused`, in the words of the verbs, for an override that Hydra cannot follow.
    """
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            words = with_open_places(overrides)
            config = hydra_compose(config_name=verb, overrides=words, return_hydra_config=True)
            hydra = config.hydra
            with open_dict(config):
                del config["hydra"]
            config = with_prior_options(config, hydra)
    except COMPLAINTS as error:
        raise Refused(sentence(error)) from error
    return plain_config(config), dict(hydra.runtime.choices)


def with_prior_options(config: DictConfig, hydra: DictConfig) -> DictConfig:
    """A configuration whose prior has the options that the attack's file gives it (see `plan/prior_options`).

    They are taken out of the attack. To be called while Hydra is at work: it may be asked for the prior's own file.

    Args:
        hydra: Hydra's own configuration beside it.
    Raises:
        Refused: options, or a prior, that there are not.
    """
    values = OmegaConf.to_container(config)  # interpolations as they are written
    if not isinstance(values.get("attack"), dict) or KEY not in values["attack"]:
        return config
    prior, attack = (chosen_of(hydra.runtime.choices, group) for group in ("prior", "attack"))
    where = f"attack={attack}: {KEY}"
    options = options_for(prior, values["attack"].pop(KEY), _priors(hydra), where)
    if options and isinstance(values.get("prior"), dict):
        own = _prior_alone(prior, hydra)
        require_known(options, own, f"{where}.{prior}")
        lay_over(values["prior"], options, own, parsed(hydra.overrides.task))
    return OmegaConf.create(values)


def _priors(hydra: DictConfig) -> set[str]:
    """The names of the priors in the folders that Hydra searches."""
    folders = [Path(source["path"]) / "prior" for source in hydra.runtime.config_sources if source["schema"] == "file"]
    return {
        path.relative_to(folder).with_suffix("").as_posix() for folder in folders for path in folder.rglob("*.yaml")
    }


def _prior_alone(name: str, hydra: DictConfig) -> dict:
    """What the file of a prior says."""
    searched = json.dumps(list(hydra.searchpath), ensure_ascii=False)
    config = hydra_compose(overrides=[f"hydra.searchpath={searched}", f"+prior={name}"])
    return OmegaConf.to_container(config).get("prior", {})


def plain_config(config: DictConfig) -> dict:
    """A configuration as plain dicts and lists, interpolations resolved; every missing value (???) is named.

    Where `store` names several folders, `${store}` is the one that is written to.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        values = OmegaConf.to_container(config, resolve=True) if "store" not in config else _values(config)
    except OmegaConfBaseException as error:
        raise Refused(sentence(error)) from error
    if missing:
        raise Refused(f"these options need a value: {', '.join(missing)}; give them on the command line")
    return values


def _values(config: DictConfig) -> dict:
    store = list(config.store) if isinstance(config.store, ListConfig) else config.store
    written = {"store": folders_of(store)[0]}
    return {**OmegaConf.to_container(OmegaConf.merge(config, written), resolve=True), "store": store}


def written_folder(store: object, inside: str) -> str:
    """A folder `inside` the folder of a store that is written to; where nothing can be written, one for the moment."""
    folder = Path(folders_of(store)[0]).expanduser() / inside
    return str(folder) if can_be_written(folder) else tempfile.mkdtemp(prefix="midefense-")


OmegaConf.register_new_resolver("written_folder", written_folder, replace=True, use_cache=True)


def sentence(error: Exception) -> str:
    """A complaint (`COMPLAINTS`) about the command line or a file of configuration, with the choices that are left out.
    What it cannot be is raised again."""
    if isinstance(error, OmegaConfBaseException):
        said = str(error).split("\n")[0]
        return f"{error.full_key or 'a value'}: {said}; expected a value, or ${{KEY}} of an option that has one"
    if isinstance(error, YAMLError):
        return _yaml_sentence(error)
    if isinstance(error, UnicodeDecodeError):
        return f"a file of configuration: expected YAML in UTF-8, got other bytes ({error}); is it another file's name?"
    if isinstance(error, ValueError):
        if not str(error).startswith(NO_OPTION):
            raise error
        return NULL_OPTION
    if isinstance(error, MissingConfigException) and error.options:
        chosen = str(error.missing_cfg_file).split("/")[-1]
        return str(refuse_unknown(f"{error.missing_cfg_file}: no such option", chosen, error.options))
    text = str(error).split("\n")[0]
    if isinstance(error, OverrideParseException):
        return f"expected KEY=VALUE, +KEY=VALUE or ~KEY, got {error.override!r}; try quoting the value ({text})"
    cause = error.__cause__
    if isinstance(cause, GrammarParseError):
        return sentence(cause)
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None and cause.key is not None:
        if "/" in str(cause.key):
            return str(refuse_unknown("no such config group", cause.key, sorted(groups()), "See --help."))
        known = [key for key in map(str, cause.parent_node) if key != "hydra" and not key.startswith("_")]
        return str(refuse_unknown(f"{cause.full_key}: no such option", cause.key, known))
    if "Could not override '" in text:
        group = text.split("'")[1]
        return str(refuse_unknown("no such config group", group, sorted(groups()), "See --help."))
    if "Could not delete" in text:
        return f"{text} Expected ~KEY of an option that is there; try --cfg job to see them all"
    return text


def _yaml_sentence(error: YAMLError) -> str:
    """Where a file of configuration stops being YAML, and why."""
    mark, said = getattr(error, "problem_mark", None), " ".join(str(error).split())
    if mark is None:
        return f"a file of configuration: expected YAML, got {said}"
    return f"{mark.name}, line {mark.line + 1}: expected YAML, got what is none ({error.problem})"


def groups() -> list[str]:
    """The config groups, as `attack/search`."""
    folders = (path for path in CONF.rglob("*") if path.is_dir())
    return [path.relative_to(CONF).as_posix() for path in folders if any(path.glob("*.yaml"))]


def refuse_hidden(sources: Iterable[Mapping[str, str]]) -> None:
    """Refuse files of the user's own folder (`--config-dir`) that bear the name of one of ours: Hydra would take ours
    without a word.

    Args:
        sources: Hydra's `runtime.config_sources`.
    """
    for source in sources:
        if source["provider"] != "command-line":
            continue
        folder = Path(source["path"])
        files = sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))
        if hidden := [file.as_posix() for file in files if (CONF / file).exists()]:
            raise Refused(
                f"--config-dir {folder}: expected names of your own, got {', '.join(hidden)}, which midefense has too; "
                "rename them"
            )
