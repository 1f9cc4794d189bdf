"""What the parts of an attack ask of each other: refused when the attack is built, before any compute."""

from __future__ import annotations

from midefense.attacks.part import Part, Slots
from midefense.types import Refused

GIVERS = {"pool": "mirror_pool", "noise": "inside_the_class"}  # an init that gives what a search may want
MEASURERS = {"signatures": "poincare_unbaited"}  # an objective that gives what a selection may want


def require_together(slots: Slots, where: str = "attack") -> None:
    """Refuse parts that do not work together, and such as would be there without any effect.

    Args:
        slots: what stands in each slot, None where nothing does; `init`, `objective` and `search` do.
        where: the node that the slots are in, for the sentences.
    """
    _require_heard(slots, where)
    _require_decisions(slots, where)
    _require_given(slots, where)
    _require_measured(slots, where)
    _require_dice(slots, where)
    _require_beside(slots, where)
    for part in slots.values():
        if part is not None:
            part.check_slots(slots, where)


def candidates_of(init: Part) -> int:
    """How many starts an init gives each target: one, where it has no such option."""
    return getattr(init, "candidates", 1)


def require_starts(init: Part, keep: int, where: str) -> None:
    """Refuse to `keep` more candidates than there are starts of a target."""
    if keep > candidates_of(init):
        raise Refused(
            f"{where}.search.keep: expected at most the starts of a target, {candidates_of(init)} "
            f"({where}.init.candidates), got {keep}; try {where}.init.candidates={keep}"
        )


def _require_heard(slots: Slots, where: str) -> None:
    """Refuse what a search does nothing with: the attack would be named after it, and pay for it, in vain."""
    search, init = slots["search"], slots["init"]
    for slot, instead in search.ignores.items():
        if slots.get(slot) is not None:
            raise Refused(
                f"{where}.{slot}: expected null, because {where}.search ({type(search).__name__}) {instead}, got "
                f"{type(slots[slot]).__name__}; try {where}.{slot}=null"
            )
    if search.begins_anew and (init.reads or hasattr(init, "prepare")):
        raise Refused(
            f"{where}.init: expected one that asks nothing, because {where}.search ({type(search).__name__}) takes of "
            f"the starts their number alone, got {type(init).__name__}; try attack/init=random"
        )


def _require_decisions(slots: Slots, where: str) -> None:
    search, objective = slots["search"], slots["objective"]
    if search.asks_decisions and not objective.decides:
        raise Refused(
            f"{where}.objective: expected one that says yes or no, because {where}.search ({type(search).__name__}) "
            f"walks by decisions, got {type(objective).__name__}; try attack/objective=wrong_label"
        )


def _require_given(slots: Slots, where: str) -> None:
    search, init = slots["search"], slots["init"]
    if missing := sorted(set(search.wants) - set(init.gives)):
        raise Refused(
            f"{where}.search ({type(search).__name__}) goes on from what the init knows ({', '.join(missing)}), got "
            f"{type(init).__name__}, which hands on {', '.join(init.gives) or 'nothing'}; "
            f"try attack/init={GIVERS[missing[0]]}"
        )


def _require_measured(slots: Slots, where: str) -> None:
    select, objective = slots.get("select"), slots["objective"]
    if select is not None and (missing := sorted(set(select.wants) - set(objective.gives))):
        raise Refused(
            f"{where}.select ({type(select).__name__}) goes by what the objective measured ({', '.join(missing)}), got "
            f"{type(objective).__name__}, which hands on {', '.join(objective.gives) or 'nothing'}; "
            f"try attack/objective={MEASURERS[missing[0]]}"
        )


def _require_dice(slots: Slots, where: str) -> None:
    search, objective = slots["search"], slots["objective"]
    if objective.columns and not search.rolls:
        raise Refused(
            f"{where}.objective ({type(objective).__name__}) draws anew in every step: expected a search that hands "
            f"it its dice, got {type(search).__name__}; try attack/search=nesterov"
        )


def _require_beside(slots: Slots, where: str) -> None:
    objective, surrogate = slots["objective"], slots.get("surrogate")
    if objective.compares and not (surrogate is not None and surrogate.beside_target):
        raise Refused(
            f"{where}.objective ({type(objective).__name__}) compares the target with a network asked beside it: "
            f"expected a surrogate that is, got {'none' if surrogate is None else type(surrogate).__name__}; "
            "try attack/surrogate=distilled_small"
        )
