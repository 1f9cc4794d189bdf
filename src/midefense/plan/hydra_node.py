"""What files of configuration may say of Hydra itself: nothing. Looked at before Hydra acts on it.

Hydra makes its callbacks, its launcher, its sweeper and its logging from its own node, before a verb begins, and every
file that is chosen (an experiment, a preset) could write there: a `_target_` in it would run what it names. So the node
must be that of our own `conf/`, but for what the command line sets of it; and so must `allow`, which admits modules.

Hydra has no place to look at a configuration in between, so both of its parts that do the work are replaced while a
verb composes: the loader, which is asked for every configuration (each point of a sweep is one), and the reader of
files. Their names are Hydra's own business; `tests/test_hostile_configurations.py` fails where they move.

Composing costs more than checking, and a sweep composes every point. So the reader parses a file once as long as it is
the same on disk, and what only a default like `${dataset}` would ask for is made only for one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hydra._internal import defaults_list
from hydra._internal import hydra as internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.defaults_list import Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import InputDefault
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from midefense.foreign import require_small_yaml
from midefense.plan.overrides import Override
from midefense.plan.verb_options import CONF
from midefense.types import Refused

BY_HAND = ("launcher", "sweeper", "sweep", "run", "verbose", "mode")  # what the command line may set of Hydra's node
RECORDED = ("runtime", "overrides", "searchpath")  # what Hydra notes there itself, of the command line
NAMED_AGAIN = ("name", "override_dirname", "config_name")  # what it notes in `job`
# Options of Hydra's command line that would put another configuration, or a pickle, in the place of ours.
OTHER_WORLDS = ("--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun")
READ: dict[tuple[object, ...], ConfigResult] = {}  # files that were parsed in this process, as they lay then


def refuse_other_worlds(words: Sequence[str]) -> None:
    """Refuse options of Hydra's that replace the configuration of a verb: one from elsewhere may say anything."""
    for word in words:
        name = word.partition("=")[0]
        # argparse takes every beginning of an option that is one option's only
        long = name.startswith("--") and any(len(name) > 2 and other.startswith(name) for other in OTHER_WORLDS)
        if name in OTHER_WORLDS or (long and name != "--config-dir" and not "--config-dir".startswith(name)):
            raise Refused(
                f"{name}: expected a configuration of midefense, got another in its place; files of your own are "
                "options in a folder: try --config-dir DIR experiment=NAME"
            )


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within, whatever Hydra composes is refused where a file speaks of Hydra itself, admits modules, or is none of the
    files that are read."""
    Plugins.instance()  # finds the readers, once
    sources = SourcesRegistry.instance().types
    before = internals.ConfigLoaderImpl, defaults_list._create_interpolation_map, dict(sources)
    internals.ConfigLoaderImpl = _Loader
    defaults_list._create_interpolation_map = functools.partial(_choices_if_asked, before[1])
    sources.update(file=_Files, pkg=_HydrasOwn)
    try:
        yield
    finally:
        internals.ConfigLoaderImpl, defaults_list._create_interpolation_map = before[:2]
        sources.update(before[2])


class _Loader(ConfigLoaderImpl):
    """Hydra's loader; what it composes is looked at before anybody else has it."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        _refuse_packages(overrides)
        config = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        _require_ours(_spoken_for(config), _ours(config_name, tuple(filter(_is_by_hand, overrides))))
        return config


class _Files(FileConfigSource):
    """Hydra's reader of files; names lead to no other folder, and a stranger's file is small."""

    def is_config(self, config_path: str) -> bool:
        _require_name(config_path)
        return super().is_config(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        _require_name(config_path)
        file = Path(self.path) / self._normalize_file_name(config_path)
        if Path(self.path) != CONF:
            require_small_yaml(file)
        return _read_once((self.provider, *_as_it_lies(file)), lambda: super(_Files, self).load_config(config_path))


class _HydrasOwn(ImportlibResourcesConfigSource):
    """Hydra's reader of the files that it brings along."""

    def load_config(self, config_path: str) -> ConfigResult:
        key = (self.provider, self.path, config_path)
        return _read_once(key, lambda: super(_HydrasOwn, self).load_config(config_path))


def _read_once(key: tuple[object, ...], read: Callable[[], ConfigResult]) -> ConfigResult:
    """What a file says, of one's own: who composes takes things out of it."""
    if key not in READ:
        READ[key] = read()
    return copy.deepcopy(READ[key])


def _as_it_lies(file: Path) -> tuple[object, ...]:
    """What tells a file from the same name with another content: where it lies, and what the disk says of it."""
    try:
        found = file.stat()
    except OSError:  # no such file: the reader says so
        return (file,)
    return file, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _choices_if_asked(
    make: Callable[..., DictConfig], overrides: Overrides, defaults: list[InputDefault], self_added: bool
) -> DictConfig:
    """What was chosen so far, as Hydra makes it for every file (a fifth of all work) and reads it where a default is an
    interpolation."""
    if any(default.is_interpolation() for default in defaults):
        return make(overrides, defaults, self_added)
    return OmegaConf.create()


def _require_name(config_path: str) -> None:
    """Refuse a choice that leads out of its group's folder."""
    if "\0" in config_path or {"", ".", ".."} & set(config_path.split("/")):
        raise Refused(
            f"{config_path!r}: expected the name of an option, got a path; try one of the names that --help lists, or "
            "--config-dir DIR for files of your own"
        )


def _refuse_packages(words: Sequence[str]) -> None:
    """Refuse to search Python packages for configurations: they are imported on the way."""
    for word in words:
        if Override.parse(word).key == "hydra.searchpath" and "pkg:" in word:
            raise Refused(f"hydra.searchpath: expected folders (file://DIR), got {word}; try --config-dir DIR")


def _is_by_hand(word: str) -> bool:
    """Whether a word of the command line sets what it alone may set. A class it may choose by a name of Hydra's
    (`hydra/launcher=joblib`), and not write out."""
    if "_target_" in word:
        return False
    top, *inside = Override.parse(word).key.partition("@")[0].replace("/", ".").split(".")
    return top == "allow" or (top == "hydra" and inside[:1] != [] and inside[0] in BY_HAND)


@functools.lru_cache(maxsize=64)
def _ours(config_name: str | None, words: tuple[str, ...]) -> dict[str, object]:
    """What our own files and such words say."""
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    return _spoken_for(loader.load_configuration(config_name, list(words), RunMode.MULTIRUN))  # which takes any word


def _spoken_for(config: DictConfig) -> dict[str, object]:
    """What no file but ours may set, interpolations as they are written."""
    hydra = OmegaConf.to_container(config.hydra)
    hydra = {name: value for name, value in hydra.items() if name not in RECORDED}
    hydra["job"] = {name: value for name, value in hydra["job"].items() if name not in NAMED_AGAIN}
    allow = OmegaConf.to_container(config).get("allow")
    return {"hydra": hydra, "allow": allow}


def _require_ours(got: Mapping[str, object], ours: Mapping[str, object]) -> None:
    if got["allow"] != ours["allow"]:
        raise Refused(
            f"allow: expected modules that the command line allows, got {got['allow']!r} from a file; if you trust "
            "them, name them there: 'allow=[...]'"
        )
    for key, value in _differences(got["hydra"], ours["hydra"], "hydra"):
        words = ", ".join(f"hydra.{name}" for name in BY_HAND)
        raise Refused(
            f"{key}: expected nothing of Hydra's own but what the command line may set ({words}), got {value!r}; leave "
            "it out: nothing of it was run"
        )


def _differences(got: object, ours: object, key: str) -> Iterator[tuple[str, object]]:
    """Where two nodes differ: the keys, and what the first has there."""
    if not (isinstance(got, dict) and isinstance(ours, dict)):
        if got != ours:
            yield key, got
        return
    for name in {**ours, **got}:
        yield from _differences(got.get(name), ours.get(name), f"{key}.{name}")
