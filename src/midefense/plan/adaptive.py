"""`attack=adaptive`: the attack that was made to overcome the defense named beside it, so that one word, one column
of a sweep, means another attack for each defense."""

from __future__ import annotations

from collections.abc import Iterable

from midefense.plan.awareness import aware_attacks, known_names
from midefense.plan.overrides import parsed
from midefense.types import Refused

ADAPTIVE = "adaptive"
SMALL = "_small"  # the end of the names of attacks for two CPU cores
WISHES = {f"attack={ADAPTIVE}": "", f"attack={ADAPTIVE}{SMALL}": SMALL}
NAMING = ("defense", "target", "experiment", "recovered")  # what may bring a defense
UNDEFENDED = "none"  # what the verbs take where no defense is named
MADE = "_aware"  # the end of the names of attacks that were made for a defense


def with_adaptive(words: Iterable[str]) -> list[str]:
    """The words with `attack=adaptive` put as the attack that knows the defense among them, `attack=adaptive_small` as
    its small twin, where it has one.

    Raises `Refused` where no attack knows the defense, and where the words do not name one defense.
    """
    words = list(words)
    return [_resolved(word, words) if word in WISHES else word for word in words]


def adaptive_attack(defense: str, small: bool = False) -> str | None:
    """The attack of `conf/attack` that was made to overcome an option of `conf/defense`: of several first those
    that name it, not another of its class, then those made for defenses alone, then the first by name. None where there
    is none.

    Args:
        small: its small twin, where it has one.
    """
    known = aware_attacks(defense)
    large = [name for name in known if not name.endswith(SMALL)]
    first = min(large, key=lambda one: (defense not in known_names(one), not one.endswith(MADE), one), default=None)
    return f"{first}{SMALL}" if small and f"{first}{SMALL}" in known else first


def _resolved(wish: str, words: Iterable[str]) -> str:
    named = {word.key: word.text.partition("=")[2] for word in parsed(words) if word.key in NAMING and word.gives}
    defense = named.get("defense", UNDEFENDED if not named else "")
    if not defense or "," in defense:
        raise Refused(
            f"{wish}: expected one defense among the words, got {defense or ' '.join(named)}; try defense=NAME, or the "
            "file of a sweep"
        )
    attack = adaptive_attack(defense, small=bool(WISHES[wish]))
    if attack is None:
        raise Refused(
            f"{wish}: expected a defense that some attack was made to overcome, got {defense}; try an attack by its "
            f"name, or one of your own with knows: [{defense}]"
        )
    return f"attack={attack}"
