"""The listing of `conf/` that contract tests run over, and short ways to what an entry describes."""

import functools
from pathlib import Path

import yaml

from midefense.plan.bind import Node, bind
from midefense.plan.compose import CONF, compose
from midefense.plan.whitelist import resolve

NOWHERE = "/nowhere/store"


def options(group: str) -> list[str]:
    """The names of a group's files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def files() -> list[Path]:
    """All files, relative to `conf/`."""
    return sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))


def written(group: str, name: str, key: str) -> object:
    """What the file of an option says of a key, or the last of those it is made of that does; None if none: nothing is
    composed."""
    config = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    if key in config:
        return config[key]
    said = [written(*place, key) for other in config.get("defaults", ()) for place in _made_of(group, other)]
    return next((value for value in reversed(said) if value is not None), None)


def _made_of(group: str, default: str | dict[str, str]) -> list[tuple[str, str]]:
    """The option (group, name) that a default lays under the file it stands in; none of one that is put elsewhere."""
    if isinstance(default, str):
        return [(group, default)] if default != "_self_" else []
    return [(f"{group}/{key.partition('@')[0]}", name) for key, name in default.items() if key.endswith("@_here_")]


def class_of(group: str, name: str) -> type:
    """The class that an option is of."""
    return resolve(written(group, name, "_target_"))


@functools.cache
def composed(verb: str, *overrides: str) -> tuple[dict, dict]:
    """A verb's plain configuration and the option chosen per group, composed once for all tests: not to be changed.

    Its store is nowhere; `within` says where.
    """
    return compose(verb, [*overrides, f"store={NOWHERE}"])


def within(store: Path, config: object) -> object:
    """A copy of a composed configuration, or of a part, that makes everything in `store`, its run folders too; of
    several folders, written `[A,B]`, in the first."""
    if isinstance(config, dict):
        return {key: within(store, value) for key, value in config.items()}
    if isinstance(config, list):
        return [within(store, value) for value in config]
    if not isinstance(config, str):
        return config
    first = str(store).strip("[]").partition(",")[0]
    return config.replace(f"{NOWHERE}/", f"{first}/").replace(NOWHERE, str(store))


def node(verb: str, key: str, *overrides: str) -> Node:
    """The checked node under `key` of a verb's configuration, which a dataset may tell classes, channels and size."""
    config = composed(verb, *overrides)[0]
    for part in key.split("."):
        config = config[part]
    return bind(config, key, beside_dataset=True)
