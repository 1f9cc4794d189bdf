"""What a piece of an attack declares of itself, whatever slot it stands in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from midefense.priors.base import Prior
from midefense.types import Setting


class Part:
    """A piece of an attack: what it declares is checked before any compute, and holds for the parts inside it too.

    Attributes:
        reads: what it takes from the target's answers (`types.Access`).
        needs: what it asks of the prior (`Prior.offers`).
        coupled: an image's loss depends on the others of its group (batch statistics, minibatch discrimination, sums
            over a set). The group is then one batch: `chunk` is refused, and the losses [B] sum to that of the group.
        columns: numbers in [0, 1) that an objective wants per image and look (`draw`, `Look.dice`); of a view, what it
            draws.
        rolls: a search that hands an objective its dice.
        guesses: a search that is not told the labels: what it found says which it took the pictures for.
        reshapes: what a search finds has latents of another shape than what it starts from.
        separates: it asks about some of a group's candidates without the others, which no coupled part can bear.
        compares: it compares what the target answers with what the attacker's own networks do, asked beside it.
        asks_question: its `prepare` takes the `Question`, which is then part of what the preparation is stored by.
        asks_public: its `prepare`, as an init, takes the public images.
        decides: an objective whose loss is 0 where the target gives the label wanted and 1 elsewhere, nothing between.
        asks_decisions: a search that walks by such a loss alone.
        gives: what an init knows and hands on to the search: `pool`, latents of the prior as they are drawn and what
            the target says of them (`state["pool.latents"]`, `state["pool.scores"]`); or what an objective
            prepares that a selection may go by: `signatures`.
        wants: what a search must be handed by the init, or a selection by the objective.
        ignores: slots of the attack that a search does nothing with, by what it does instead: they must be empty.
        begins_anew: a search that takes of the starts their number alone: an init that asks would do so in vain.
        prepares: an objective that has a `prepare(prior, oracle, public, rng, state)`, yielding progress; what it makes
            is handed back with every look (`Look.known`).
    """

    revision = 1
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    coupled = False
    columns = 0
    rolls = False
    guesses = False
    reshapes = False
    separates = False
    compares = False
    asks_question = False
    asks_public = False
    decides = False
    asks_decisions = False
    prepares = False
    gives: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    ignores: Mapping[str, str] = MappingProxyType({})
    begins_anew = False

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """One row of dice per image [count, columns] in [0, 1), on the CPU."""
        return torch.rand(count, self.columns, generator=rng)

    def check(self, setting: Setting) -> None:
        """Refuse a setting in which it cannot work; see `Setting` for when this is called."""

    def check_slots(self, slots: Slots, where: str = "attack") -> None:
        """Refuse other parts of the attack, by slot, that it cannot work with, when the attack is built; `where` they
        stand is for the sentence."""

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """What of this part's recipe decides what its `prepare` makes."""
        return recipe

    def chosen(self, state: Mapping[str, Tensor], labels: Tensor) -> Tensor | None:
        """Which of the targets, of these `labels` int64 [N], an init has starts for where it chooses among them, bool
        [N]; None: it does not choose."""
        return None

    def check_prior(self, prior: Prior) -> None:
        """Refuse a prior it cannot work with, as built from the plan: it knows its shapes and has no weights yet."""

    def as_published(self) -> Part:
        """The part with every habit of the authors' code that it has an option for and does without by default; itself,
        where there is none."""
        return self


Slots = Mapping[str, Part | None]  # what stands in the slots of an attack, by their names; None: nothing does
