"""Options of a prior in an attack's file, for the priors that it names:

    defaults: [gmi, override /prior@_global_.prior: gmi_gan_small, _self_]
    prior_options:
      gmi_gan_small: {width: 8}

They are laid over the prior's own file and under experiments and the command line, if that prior is the one chosen.
Hydra has no such place: an attack's file says what lies inside `attack`, or what lies outside whichever prior is
chosen. So the configurations that it merges are given one more, in Hydra's own order; `--cfg job` shows the outcome.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict

from midefense.types import refuse_unknown

KEY = "prior_options"
LAYER = f"attack/{KEY}"  # the name under which the added configuration is asked for

Merge = Callable[[ConfigLoaderImpl, list[ResultDefault], object], DictConfig]


class Repository:
    """Hydra's repository of configurations, some of them replaced."""

    def __init__(self, repository: object, replaced: dict) -> None:
        self._repository, self._replaced = repository, replaced

    def __getattr__(self, name: str) -> object:
        return getattr(self._repository, name)

    def load_config(self, config_path: str) -> object:
        """The configuration at a path, a copy of it where it was replaced."""
        if config_path in self._replaced:
            return copy.deepcopy(self._replaced[config_path])
        return self._repository.load_config(config_path)


def install() -> None:
    """Let every composition in this process know `prior_options`; once is enough."""
    if not hasattr(ConfigLoaderImpl._compose_config_from_defaults_list, "__wrapped__"):
        ConfigLoaderImpl._compose_config_from_defaults_list = with_prior_options(
            ConfigLoaderImpl._compose_config_from_defaults_list
        )


def with_prior_options(merge: Merge) -> Merge:
    """Hydra's merging of configurations, which adds the chosen prior's options behind the attack's files."""

    @functools.wraps(merge)
    def merged(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: object) -> DictConfig:
        attacks = [default for default in defaults if _lies_in(default, "attack")]
        files = {d.config_path: repo.load_config(d.config_path) for d in attacks if d.package == "attack"}
        files = {path: file for path, file in files.items() if KEY in file.config}
        if not files:
            return merge(loader, defaults, repo)
        bare = Repository(repo, {path: _without_options(file) for path, file in files.items()})
        above = defaults.index(attacks[-1]) + 1
        prior = merge(loader, defaults[:above], bare).get("prior", {})
        options = _options(files, _chosen(defaults), prior, repo.get_group_options("prior", ObjectType.CONFIG))
        layer = replace(next(iter(files.values())), config=options, defaults_list=None)
        added = ResultDefault(config_path=LAYER, package="prior", parent=attacks[-1].parent)
        return merge(loader, [*defaults[:above], added, *defaults[above:]], Repository(bare, {LAYER: layer}))

    return merged


def _options(files: Mapping, chosen: str | None, prior: DictConfig, priors: Sequence[str]) -> DictConfig:
    """What an attack's files, read in order, say of the chosen prior; refused where they name what there is not."""
    options = OmegaConf.create()
    for path, file in files.items():
        for name, own in _mapping(OmegaConf.to_container(file.config[KEY]), f"{path}: {KEY}").items():
            if name not in priors:
                raise _unknown(f"{path}: {KEY}.{name}: no such prior", name, priors)
            if name == chosen:
                _require_known(own, prior, f"{path}: {KEY}.{name}")
                options.merge_with(own)
    return options


def _lies_in(default: ResultDefault, group: str) -> bool:
    """Whether a configuration is one of a group, or of a group within it, at its usual place."""
    inside = (default.package or "").split(".")[0] == group
    return inside and default.config_path is not None and default.config_path.startswith(f"{group}/")


def _chosen(defaults: Sequence[ResultDefault]) -> str | None:
    """The option chosen of the group `prior`: not one that another of them builds on."""
    outermost = (d for d in defaults if _lies_in(d, "prior") and not (d.parent or "").startswith("prior/"))
    return next((default.config_path.removeprefix("prior/") for default in outermost), None)


def _without_options(file):
    """A configuration file as Hydra loaded it, without the options for priors."""
    config = copy.deepcopy(file.config)
    with open_dict(config):
        del config[KEY]
    return replace(file, config=config)


def _mapping(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ConfigCompositionException(f"{where}: expected options by prior, got {value!r}; try {{gmi_gan: {{...}}}}")
    return value


def _require_known(options: object, prior: DictConfig, where: str) -> None:
    """Refuse options that the prior's file does not have, at every depth."""
    for name, value in _mapping(options, where).items():
        if name not in prior:
            raise _unknown(f"{where}.{name}: no such option", name, [str(key) for key in prior])
        if isinstance(value, dict) and isinstance(prior._get_node(name), DictConfig):
            _require_known(value, prior[name], f"{where}.{name}")


def _unknown(what: str, got: str, choices: Sequence[str]) -> ConfigCompositionException:
    return ConfigCompositionException(str(refuse_unknown(what, got, choices)))
