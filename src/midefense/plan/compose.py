"""The configuration of a verb under overrides, as plain values. Beside the entry of the verbs, and
what is in front of both (`hydra_node.py`), the only file that knows Hydra."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.resolvers import oc

from midefense.foreign import path_of
from midefense.plan.adaptive import with_adaptive
from midefense.plan.hydra_node import guarded
from midefense.plan.overrides import chosen_of, parsed, with_open_places
from midefense.plan.prior_options import KEY, lay_over, options_for, require_known
from midefense.plan.spaces import Choice, Interval, Space
from midefense.plan.verb_options import CONF, unknown_group, unknown_option
from midefense.store.folders import can_be_written, folders_of
from midefense.store.plain import mask_variable
from midefense.types import Refused, refuse_unknown

NO_OPTION = "Config group override must be"  # what Hydra says of GROUP=null, as a plain ValueError
NULL_OPTION = "GROUP=null: expected the name of an option, got null; choices: --help; try ~GROUP"
# What Hydra says, by a piece of it, and what to do about it.
ADVICE = {
    "Could not delete": "expected ~KEY of an option that is there; try --cfg job to see them all",
    "Could not append": "try the same word without +",
    "Multiple values for": "try the same word without +",
    "appears more than once": "try the same word without +",
    "Ambiguous value": "try -m for one run of each value, [1,2] for a list, or quotes for a text",
    "Sweep parameters": "try -m in front of them",
}
NO_RANGE = "range() arg 3"  # what Python says of a step of 0, through Hydra


def _environment(name: str, *default: object) -> object:
    """`${oc.env:NAME,DEFAULT}`; what it gives is masked wherever it would be written."""
    mask_variable(name)
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def compose(verb: str, overrides: Sequence[str] = ()) -> tuple[dict, dict[str, str]]:
    """The plain configuration of a verb (`train_target`, `attack`, `evaluate`), and the option chosen per group.

    Raises `Refused`, in the words of the verbs, for an override that Hydra cannot follow.
    """
    with in_one_sentence(verb), guarded(), initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        words = with_open_places(with_adaptive(overrides))
        config = hydra_compose(config_name=verb, overrides=words, return_hydra_config=True)
        hydra = config.hydra
        with open_dict(config):
            del config["hydra"]
        config = with_prior_options(config, hydra)
        return plain_config(config), dict(hydra.runtime.choices)


def spaces_of(verb: str, words: Sequence[str]) -> tuple[list[str], Space]:
    """The words that say one value, and what the others leave open, by key, in the grammar of Hydra's sweeps:
    `interval(1,2)`, `int(interval(1,9))`, `tag(log,interval(0.01,1))`, `choice(a,b)`.

    Raises `Refused` for a word that Hydra cannot read, a `range` (an interval says it), and an empty space.
    """
    with in_one_sentence(verb):
        read = OverridesParser.create().parse_overrides(list(words))
    fixed = [word for word, override in zip(words, read, strict=True) if not override.is_sweep_override()]
    space: Space = {}
    for override in (one for one in read if one.is_sweep_override()):
        key = override.get_key_element()
        space[key] = _space(key, override)
        space[key].require_sound(key)
    return fixed, space


def _space(key: str, override: Override) -> Interval | Choice:
    swept = override.value()
    if isinstance(swept, IntervalSweep):
        return Interval(swept.start, swept.end, "log" in swept.tags)
    if isinstance(swept, ChoiceSweep):
        return Choice(tuple(override.sweep_string_iterator()))
    raise Refused(f"{key}: expected interval(LOW,HIGH) or choice(A,B), got {override.input_line}; try int(interval())")


@contextlib.contextmanager
def in_one_sentence(verb: str, composing: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Whatever is raised while a configuration is composed, as `Refused` in the words of the verbs.

    Args:
        composing: whether it still is; what is raised later (in an entry point, by the work) passes.
    """
    try:
        yield
    except Refused:
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        if not composing() or (said := _in_words(verb, error)) is None:
            raise
        raise Refused(said) from error


def _in_words(verb: str, error: Exception) -> str | None:
    """What is wrong with a configuration, by the exception it ended in; None for what is none of its mistakes."""
    if isinstance(error, HydraException):
        return sentence(verb, error)
    if isinstance(error, OmegaConfBaseException):
        where = f"{error.full_key}: " if error.full_key else ""
        return f"{where}expected an interpolation that can be resolved, got: {_first_line(error)}; see --cfg job"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a configuration file"
        return f"{where}: expected YAML, got: {error.problem}; try blanks instead of tabs, or quotes around the value"
    if isinstance(error, UnicodeDecodeError | yaml.YAMLError):
        name = getattr(error, "name", None) or _file_being_read(error) or "a configuration file that was named"
        return (
            f"{name}: expected YAML as UTF-8 text, got another file: {' '.join(str(error).split())}; try another name"
        )
    if isinstance(error, RecursionError):
        return (
            "expected configuration files whose `defaults` end somewhere, got some that name each other in a circle; "
            "look at the `defaults` of the file you wrote"
        )
    if str(error).startswith(NO_OPTION):
        return NULL_OPTION if "NoneType" in str(error) else f"GROUP=OPTION: expected the names of both; got: {error}"
    return f"range: expected a step other than 0, got 0 ({error}); try range(0,3)" if NO_RANGE in str(error) else None


def _file_being_read(error: Exception) -> str | None:
    """The file that was open where an error was raised: of bytes that are no text Python does not say whose."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, io.TextIOWrapper) and isinstance(value.name, str):
                return value.name
    return None


def with_prior_options(config: DictConfig, hydra: DictConfig) -> DictConfig:
    """A configuration whose prior has the options that the attack's file gives it (see `plan/prior_options`).

    They are taken out of the attack. To be called while Hydra is at work: it may be asked for the prior's own file.

    Args:
        hydra: Hydra's own configuration beside it.
    Raises:
        Refused: options, or a prior, that there are not.
    """
    if not isinstance(attack := config.get("attack"), DictConfig) or KEY not in attack:
        return config
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
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise Refused(f"these options need a value: {', '.join(missing)}; give them on the command line")
    if "store" not in config:
        return OmegaConf.to_container(config, resolve=True)
    store = list(config.store) if isinstance(config.store, ListConfig) else config.store
    written = folders_of(store)[0]
    one = config if written == store else OmegaConf.merge(config, {"store": written})
    return {**OmegaConf.to_container(one, resolve=True), "store": store}


def written_folder(store: object, inside: str) -> str:
    """A folder `inside` the folder of a store that is written to; where nothing can be written, one for the moment."""
    folder = path_of(folders_of(store)[0]) / inside
    return str(folder) if can_be_written(folder) else tempfile.mkdtemp(prefix="midefense-")


OmegaConf.register_new_resolver("written_folder", written_folder, replace=True, use_cache=True)


def sentence(verb: str, error: HydraException) -> str:
    """Hydra's complaint about the command line, with the choices it leaves out."""
    if isinstance(error, MissingConfigException) and error.options:
        chosen = str(error.missing_cfg_file).split("/")[-1]
        return str(refuse_unknown(f"{error.missing_cfg_file}: no such option", chosen, error.options))
    text = _first_line(error)
    if isinstance(error, OverrideParseException):
        return f"expected KEY=VALUE, +KEY=VALUE or ~KEY, got {error.override!r}; try quoting the value ({text})"
    cause = error.__cause__
    if isinstance(cause, GrammarParseError):
        return _in_words(verb, cause)
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None and cause.key is not None:
        return str(_unknown_key(verb, cause))
    if match := re.match(r"(?:In '(?P<file>.+?)': )?Could not override '(?P<group>.+?)'", text):
        option = re.search(rf"{re.escape(match['group'])}=(\S+)", str(error))
        refusal = unknown_group(verb, match["group"], option and option[1])
        return f"{match['file']} sets what {verb} cannot be told. {refusal}" if match["file"] else str(refusal)
    for piece, advice in ADVICE.items():
        if piece in text:
            return f"{text.rstrip('.')}; {advice}"
    return text


def _unknown_key(verb: str, error: OmegaConfBaseException) -> Refused:
    """The refusal of a key that is not there."""
    key = str(error.key)
    if "/" in key:
        return unknown_group(verb, key)
    known = [name for name in map(str, error.parent_node) if name != "hydra" and not name.startswith("_")]
    if str(error.full_key) == key:
        return unknown_option(verb, key, known)
    return refuse_unknown(f"{error.full_key}: no such option", key, known)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


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
