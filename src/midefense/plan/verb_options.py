"""What each verb can be told, read off `conf/`: the groups in its defaults list, and its other options."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

from midefense.types import Refused, refuse_unknown

PACKAGE = Path(__file__).resolve().parents[1]
# Inside the installed package, or beside `src/` in a checkout.
CONF = next((path for path in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if path.is_dir()), PACKAGE / "conf")
VERBS = ("train_target", "attack", "evaluate")
OVER_ALL = ("experiment", "debug", "local")  # files of these groups set other options; they stand under no name


def groups() -> list[str]:
    """The config groups, as `attack/search`."""
    folders = (path for path in CONF.rglob("*") if path.is_dir())
    return [path.relative_to(CONF).as_posix() for path in folders if any(path.glob("*.yaml"))]


def groups_of(verb: str) -> list[str]:
    """The config groups that a verb takes, in the order of the alphabet."""
    top = {mount.partition("@")[0] for mount in mounts(verb)}
    return sorted(group for group in groups() if group.split("/")[0] in top)


@functools.cache
def mounts(verb: str) -> tuple[str, ...]:
    """The groups of a verb's defaults list as they are named there: `dataset`, `evaluator@evaluators.main`."""
    listed = _file(verb)["defaults"]
    return tuple(key.removeprefix("optional ") for entry in listed if isinstance(entry, dict) for key in entry)


def unknown_group(verb: str, named: str, option: str | None = None) -> Refused:
    """The refusal of a group that cannot be set in this verb's command line: it is no group, it belongs to another
    verb, or it stands somewhere else.

    Args:
        named: `attack/objective`, `evaluator`, `defense@somewhere`.
        option: what was chosen of it, if anybody knows.
    """
    group, top = named.partition("@")[0], named.partition("@")[0].split("/")[0]
    if top not in {mount.partition("@")[0] for mount in mounts(verb)} and (others := takers(top)):
        return not_taken(verb, top, others)
    mine = groups_of(verb)
    if group not in mine:
        return refuse_unknown("no such config group", named, mine, "See --help.")
    places = [mount for mount in mounts(verb) if mount.partition("@")[0] == group]
    # a group within another (attack/views) stands where the file that was chosen of that one puts it
    advice = " or ".join(f"{place}={option or 'OPTION'}" for place in places) or f"+{named}={option or 'OPTION'}"
    return Refused(f"{named}: nothing that is chosen in {verb} stands there; try {advice}")


def unknown_option(verb: str, name: str, known: list[str]) -> Refused:
    """The refusal of an option at the top that this verb has not: another verb may have it."""
    if others := takers(name):
        return not_taken(verb, name, others)
    return refuse_unknown(f"{name}: no such option", name, known)


def takers(name: str) -> list[str]:
    """The verbs that have an option or a group of this name."""
    return [verb for verb in VERBS if name in _names(verb)]


def not_taken(verb: str, name: str, others: list[str]) -> Refused:
    """The refusal of an option that only other verbs have."""
    does = "does" if len(others) == 1 else "do"
    taken = ", ".join(sorted(_names(verb)))
    return Refused(
        f"{name}: expected an option of {verb}, which takes none of that name; {' and '.join(others)} {does}: "
        f"try python {others[0]}.py. {verb} takes {taken}"
    )


@functools.cache
def _names(verb: str) -> frozenset[str]:
    groups_named = {name for mount in mounts(verb) for name in mount.split("@")}
    tops = {name.split(".")[0] for name in groups_named if name != "local"}
    return frozenset({*tops, *_plain(verb), *_plain("shared")})


def _plain(name: str) -> set[str]:
    return set(_file(name)) - {"defaults", "hydra"}


@functools.cache
def _file(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())
