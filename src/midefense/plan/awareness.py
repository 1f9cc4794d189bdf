"""Which defenses an attack was made to overcome: `knows` in its file, a list of options of `conf/defense`.

A defense is worth what the attacker who knows of it leaves (Athalye et al., ICML 2018; Tramer et al., NeurIPS 2020;
card defense_matrix.md, section 5). What an attack knows decides no number, so that no recipe holds it: it stands beside
what was recovered, and every row says whether its attack knew the defense. A defense is known by its class: whoever
knows `random_erasing` knows `random_erasing_strong` too, and whoever knows it within a stack.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

import yaml

from midefense.plan.bind import Node
from midefense.plan.stored_names import stored_name
from midefense.plan.verb_options import CONF
from midefense.plan.whitelist import resolve
from midefense.types import Refused, refuse_unknown

STACK = "midefense.defenses.base.Stack"
NONE = "midefense.defenses.base.NoDefense"
KNEW = {True: "yes", False: "no", None: "partly"}


def known_classes(attack: Node, allow: Sequence[str] = ()) -> dict[str, str]:
    """The stored class of every defense that an attack knows, by the name its file gives it: an option of
    `conf/defense`, or the class of a defense of the user's own, `module.Class`.

    Raises:
        Refused: a name that is neither.
    """
    return {name: _class_of(name, f"{attack.path}.knows", allow) for name in attack.aside.get("knows", ())}


def deployed_classes(*defenses: Mapping | None) -> list[str]:
    """The classes of recipes of defenses, those of a stack one by one, without those that defend nothing."""
    found = []
    for recipe in defenses:
        if recipe is None or recipe["_target_"] == NONE:
            continue
        members = recipe["members"].values() if recipe["_target_"] == STACK else ()
        found += deployed_classes(*members) if members else [recipe["_target_"]]
    return list(dict.fromkeys(found))


def knew(known: Collection[str], deployed: Sequence[str]) -> str:
    """Whether an attack that knows the classes `known` knew what was `deployed`: `yes`, `no`, `partly` (some members of
    a stack), or "" where nothing was."""
    if not deployed:
        return ""
    hits = [name in known for name in deployed]
    return KNEW[all(hits) if all(hits) or not any(hits) else None]


def aware_attacks(defense: str) -> list[str]:
    """The attacks of `conf/attack` that know a defense of `conf/defense`, in the order of the alphabet, `_small` twins
    beside their own; of a stack, those that know one of its members or more. [] where none does."""
    wanted = set(_members(defense))
    return [name for name in _options("attack") if wanted & {_class_of(known, name) for known in _knows(name)}]


def known_names(attack: str) -> tuple[str, ...]:
    """The defenses that an attack of `conf/attack` knows, as its file, or one that it builds on, names them."""
    return _knows(attack)


def _members(defense: str) -> Iterator[str]:
    """The class of an option of `conf/defense`, or those of a stack's members."""
    if (stored := _class_of(defense, "defense")) != STACK:
        yield stored
        return
    for entry in _file("defense", defense)["defaults"]:
        if isinstance(entry, dict):
            yield from (_class_of(member, "defense") for member in entry.values())


def _class_of(name: str, where: str, allow: Sequence[str] = ()) -> str:
    if "." in name:
        return stored_name(resolve(name, allow))
    if name not in _options("defense"):
        raise refuse_unknown(where, name, _options("defense"), "Or the class of one of your own, as module.Class.")
    return stored_name(resolve(_inherited("defense", name, "_target_")))


@functools.cache
def _knows(attack: str) -> tuple[str, ...]:
    return tuple(_inherited("attack", attack, "knows") or ())


def _inherited(group: str, name: str, key: str) -> object:
    """What the file of an option says under `key`, or the last of those that it builds on; None if none does."""
    said = _file(group, name)
    if key in said:
        return said[key]
    bases = [entry for entry in said.get("defaults", ()) if isinstance(entry, str) and entry != "_self_"]
    found = (_inherited(group, base, key) for base in reversed(bases))
    return next((value for value in found if value is not None), None)


@functools.cache
def _file(group: str, name: str) -> dict:
    path = CONF / group / f"{name}.yaml"
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(said, dict):
        raise Refused(f"{path}: expected a mapping, got another value; try git checkout of this file")
    return said


@functools.cache
def _options(group: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
