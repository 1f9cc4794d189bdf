"""What an attack is, and the engine that most are composed on.

`SearchAttack` owns the ritual (access, charging, chunks, ranking, the budget); its slots hold the method:
init -> search over latents, guided by an objective on what the target says of the views it is shown -> select.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.chunks import AUTO
from midefense.attacks.part import Part
from midefense.attacks.problem import OBJECTIVE, Problem
from midefense.attacks.progress import passed_on
from midefense.attacks.slots import require_together
from midefense.channels_last import channels_last
from midefense.compiling import Compiled, Compiler
from midefense.oracle import BudgetExceeded, Oracle
from midefense.precision import require_precision, rounded, stepwise
from midefense.priors.base import Prior
from midefense.ranges import Count
from midefense.training_state import within
from midefense.types import (
    Access,
    Evidence,
    Found,
    Images,
    Progress,
    Question,
    Refused,
    Setting,
    refuse_unknown,
)

# The ladder of card split_inference.md, section 3: what an attacker does beyond the plain attack (A0, who knows of no
# defense): A1 learns on from what the defense releases of public images, A2 takes another prior, A3 averages repeated
# releases, A4 purifies what was released first, A5 searches longer, from several starts, and by the match alone.
RUNGS = ("A0", "A1", "A2", "A3", "A4", "A5")
OF_THE_TARGET = ("select", "surrogate", "purify")  # slots that ask the target even where the others ask a surrogate
SURROGATE = "surrogate."  # what a prepared state holds of the surrogate has names that begin so
OF_CLASSES = frozenset({"labels", "probs", "logits"})  # what a target of attributes has none of
UNKNOWN = -1  # the label of a target whose class the attacker was not told


class Attack:
    """Prepare once per (target, prior), then recover what each fixed group of evidence points at.

    Args:
        access: what the attacker may read of the target.
        budget: images that may be asked per target; None is unlimited.
        group: targets per group. A group has its own seed and is the unit that is saved, resumed and distributed.
        rung: of the ladder of attacks that a defense at release must bear, one of `RUNGS`; None: it is on no ladder.
            Rows say it, and the headline of a defense is its worst case over all rungs.

    `knows`, in its file, names the defenses that it was made for (`plan/awareness.py`); no number depends on it.

    `asks_question`: `prepare` is handed the `Question`, and what it makes is stored by it; others never see it.
    `asks_edge`: `prepare` is handed the deployed `Edge`, as `edge`, to ask about public images.
    """

    revision = 1
    aside: ClassVar[dict[str, tuple[object, object]]] = {"knows": (Sequence[str], ())}
    prepares = False
    asks_question = False
    asks_edge = False
    coupled = False
    needs: tuple[str, ...] = ()
    steps: int | None = None
    targets: int | None = None  # how many there are in all, told before the first group is attacked

    def __init__(self, *, access: str, budget: Count | None, group: Count, rung: str | None = None):
        if rung is not None and rung not in RUNGS:
            raise refuse_unknown("attack.rung", rung, RUNGS)
        self.access = Access.parse(access)
        self.budget, self.group, self.rung = budget, group, rung

    def check(self, setting: Setting) -> None:
        """Refuse a setting in which the attack cannot work, such as a prior that lacks what it asks of one."""
        self._require_offers(setting.prior)
        cut = setting.evidence.cut
        if cut is not None and cut not in setting.architecture.taps:
            raise refuse_unknown("evidence.cut", cut, setting.architecture.taps, "It is a stage of the architecture.")

    def check_prior(self, prior: Prior) -> None:
        """Refuse a prior the attack cannot work with, as built from the plan (see `Part.check_prior`)."""
        self._require_offers(type(prior))

    def _require_offers(self, prior: type[Prior]) -> None:
        if missing := sorted(set(self.needs) - prior.offers):
            raise Refused(
                f"this attack needs a prior that offers {', '.join(missing)}, {prior.__name__} offers "
                f"{', '.join(sorted(prior.offers))}; choose another prior (gmi_gan has a critic) or attack/objective"
            )

    def prepare(
        self,
        prior: Prior,
        oracle: Oracle,
        public: Images,
        rng: torch.Generator,
        state: dict[str, Tensor] | None,
        question: Question | None = None,
    ) -> Iterator[Progress]:
        """What is done once for all targets; its last state is stored and handed to `recover`."""
        return iter(())

    def asked_of_edge(self, public: Images, rng: torch.Generator) -> Images:
        """The public images that `prepare` asks the edge about, where the attack asks it (`asks_edge`); `rng` as
        `prepare` is handed it."""
        raise NotImplementedError(type(self).__name__)

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """The part of this attack's recipe that decides what `prepare` makes, so that attacks share it."""
        return recipe

    def chosen(self, state: Mapping[str, Tensor], evidence: Evidence) -> Tensor | None:
        """Which of the targets it takes up, bool [N], where it chooses among them (None: all). The others are in no
        mean; one that it takes up and has no candidate of is a failure."""
        return None

    def recover(
        self, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
    ) -> Iterator[Found]:
        """Candidates for one group of evidence; every yield is worth keeping, the last of each stage counts."""
        raise NotImplementedError


class SearchAttack(Attack):
    """The engine: start somewhere, search for latents of low loss, keep the best of each target.

    With a surrogate, `init`, `objective` and `search` ask that instead of the target: what they read is checked against
    the surrogate's access, and costs nothing of the budget. `select` asks the target itself, and is charged. A
    surrogate `beside_target` is asked together with the target, which is charged for every look.

    Args:
        init: starts; `init(problem) -> Found`.
        objective: loss per image of a `Look` [B].
        search: yields `Found` after every step.
        select: score per candidate [M], and how many to keep per target.
        views: what the target is shown during the search (None: the image itself).
        surrogate: what is asked in the target's place (`attacks.surrogate`); None asks the target.
        access, budget, group: see `Attack`.
        chunk: images per forward, to fit memory (None: the whole group at once, which coupled parts insist on;
            `auto`: as many as a GPU holds, by measurement, or 25 on a CPU).
        legacy: every part as the authors' code runs it (`Part.as_published`): views that all images of a step share,
            selection among images that are not cut to [0, 1], crops that do not fit drawn again.
        precision: of the networks that the search looks through (`midefense.precision`). Losses are taken of float32,
            and starts, the selection and stages of a search are judged in float32.
        compile: the generator and who is asked go through torch.compile while the search looks: for one number of
            rows, that of a full chunk. Where that fails, a sentence says so, and they run as they are.
        channels_last: the search runs copies of them that are laid out for tensor cores (`midefense.channels_last`):
            other rounding, and faster there for small networks.
        purify: what is made of what was observed, before anything starts (`attacks.purify`); None: nothing.
        rung: see `Attack`.
    """

    later = {
        "surrogate": None,
        "legacy": False,
        "precision": "32-true",
        "compile": False,
        "channels_last": False,
        "purify": None,
        "rung": None,
    }

    def __init__(
        self,
        *,
        init: Part,
        objective: Part,
        search: Part,
        select: Part,
        views: Part | None = None,
        surrogate: Part | None = None,
        access: str = "whitebox",
        budget: Count | None = None,
        group: Count = 60,
        chunk: Count | Literal["auto"] | None = None,
        legacy: bool = False,
        precision: str = "32-true",
        compile: bool = False,
        channels_last: bool = False,
        purify: Part | None = None,
        rung: str | None = None,
    ):
        super().__init__(access=access, budget=budget, group=group, rung=rung)
        slots = {"init": init, "objective": objective, "search": search, "select": select, "views": views}
        slots |= {"surrogate": surrogate, "purify": purify}
        if legacy:
            slots = _as_published(slots)
        self.parts = {slot: part for slot, part in slots.items() if part is not None}
        searched = self.access if surrogate is None or surrogate.access is None else surrogate.access
        # where the objective takes nothing of an answer, a gradient does not go through who is asked
        own = {"gradient"} if set(objective.reads) <= {"gradient"} else set()
        for slot, part in self.parts.items():
            access, free = (self.access, set()) if slot in OF_THE_TARGET else (searched, own)
            access.require([read for read in part.reads if read not in free], f"attack.{slot} ({type(part).__name__})")
        require_together(slots)
        self.needs = tuple({need for part in self.parts.values() for need in part.needs})
        self.init, self.objective, self.search, self.select, self.views, self.surrogate, self.purify = slots.values()
        self.chunk, self.precision = chunk, require_precision("attack.precision", precision)
        self.compiler = Compiler("attack.compile") if compile else None
        # copies that are laid out, of networks that are still there: the same for all groups
        self.laid_out: WeakKeyDictionary[nn.Module, nn.Module] | None = WeakKeyDictionary() if channels_last else None
        self.pools = hasattr(init, "prepare")
        self.prepares = self.pools or (surrogate is not None and surrogate.learns) or objective.prepares
        self.asks_question = init.asks_question
        self.coupled = any(part.coupled for part in self.parts.values())
        if self.coupled:
            self._refuse_to_split(self._coupling())

    @classmethod
    def pin(cls, arguments: dict[str, object]) -> dict[str, object]:
        """The arguments; a chunk that is left to the machine is no number of the recipe."""
        return {**arguments, "chunk": None} if arguments["chunk"] == AUTO else arguments

    @property
    def steps(self) -> int | None:
        """What `recover` yields per group, for a progress bar; None if the search cannot tell."""
        steps = getattr(self.search, "steps", None)
        return None if steps is None else steps + 2

    @property
    def asks_target(self) -> bool:
        """Whether the search asks the target, alone or beside others."""
        return self.surrogate is None or self.surrogate.beside_target

    def check(self, setting: Setting) -> None:
        """As `Attack.check`, and whatever a part refuses."""
        super().check(setting)
        if self._couples(setting.prior):
            self._refuse_to_split(self._coupling() or f"the realism of {setting.prior.__name__}")
        of_the_target = self.parts if self.asks_target else OF_THE_TARGET
        readers = [slot for slot, part in self.parts.items() if "batchnorm" in part.reads and slot in of_the_target]
        if readers and not setting.architecture.batchnorm:
            raise Refused(
                f"attack.{readers[0]} reads batchnorm: expected a target with BatchNorm layers, got one without; "
                f"try another architecture (cnn and resnet18 have them) or attack/{readers[0]}"
            )
        for slot, part in self.parts.items():
            if setting.of_attributes and slot in of_the_target and (asked := OF_CLASSES & set(part.reads)):
                raise Refused(
                    f"attack.{slot} reads {', '.join(sorted(asked))} of classes: expected a target that tells them "
                    "apart, got one of attributes (dataset.label); try a part that reads features, or "
                    "dataset.label=identity"
                )
            part.check(setting)

    def check_prior(self, prior: Prior) -> None:
        """As `Attack.check_prior`, and whatever a part refuses."""
        super().check_prior(prior)
        for part in self.parts.values():
            part.check_prior(prior)

    def prepare(
        self,
        prior: Prior,
        oracle: Oracle,
        public: Images,
        rng: torch.Generator,
        state: dict[str, Tensor] | None,
        question: Question | None = None,
    ) -> Iterator[Progress]:
        """The surrogate learns, the objective measures, then the init draws a pool for all targets: the slots that may
        need to. The steps of each count on."""
        saved, done, made = state or {}, 0, {}
        if self.surrogate is not None:
            known = within(saved, SURROGATE)
            work = self.surrogate.fit(prior, oracle, public, seeds.fork(rng, "surrogate"), known or None)
            done, made = yield from passed_on(work, SURROGATE, known, done, made)
            oracle = self.surrogate.oracle(within(made, SURROGATE), prior, oracle)
        if self.objective.prepares:
            known = within(saved, OBJECTIVE)
            work = self.objective.prepare(prior, oracle, public, seeds.fork(rng, "objective"), known or None)
            done, made = yield from passed_on(work, OBJECTIVE, known, done, made)
        if self.pools:
            asked = {"question": question} if self.asks_question else {}
            asked |= {"public": public} if self.init.asks_public else {}
            drawn = {name: value for name, value in saved.items() if not name.startswith((SURROGATE, OBJECTIVE))}
            work = self.init.prepare(prior, oracle, rng, drawn or None, **asked)
            yield from passed_on(work, "", drawn, done, made)

    def chosen(self, state: Mapping[str, Tensor], evidence: Evidence) -> Tensor | None:
        """As `Attack.chosen`: those that the init has starts for, where it chooses."""
        return self.init.chosen(state, evidence.labels)

    def preparation(self, recipe: Mapping[str, object]) -> object:
        """The recipes of the slots that prepare; the init's alone, where no other does."""
        others = {}
        if self.objective.prepares:
            others["objective"] = self.objective.preparation(recipe["objective"])
        if self.surrogate is not None:
            others["surrogate"] = recipe["surrogate"]
        if not others:
            return recipe["init"]
        return {"init": recipe["init"], **others} if self.pools else others

    def recover(
        self, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
    ) -> Iterator[Found]:
        """Yields the stages initial, optimised (after every step) and selected.

        Raises:
            BudgetExceeded: passed on; what was yielded before stands.
        """
        target, prior = oracle, prior.given(evidence.observed)
        if self.search.guesses:  # nobody reads by mistake what it was not told
            evidence = replace(evidence, labels=torch.full_like(evidence.labels, UNKNOWN))
        if self.surrogate is not None:
            oracle = self.surrogate.oracle(within(state, SURROGATE), prior, target)
        reads = tuple(dict.fromkeys(r for r in self.objective.reads if r not in ("gradient", "weights")))
        problem = Problem(
            prior=prior,
            oracle=oracle,
            evidence=evidence,
            state=state,
            rng=rng,
            objective=self.objective,
            views=self.views,
            reads=reads,
            chunk=None if self._couples(prior) else self.chunk,
            device=prior.device,
        )
        if self.purify is not None:
            cleaned = self.purify(replace(problem, oracle=target))
            problem = replace(problem, evidence=replace(evidence, observed=cleaned))
        found = self.init(problem)
        yield found
        looking = self._looking(problem, len(found))
        work = stepwise(self.search(looking, found), lambda: rounded(self.precision, prior.device))
        for found in work:  # noqa: B020 -- each step replaces what was found
            yield found
        chosen_by = replace(problem, oracle=target, chunk=looking.cut.width or self.chunk)
        if found.labels is not None:
            chosen_by = replace(chosen_by, evidence=believed(problem.evidence, found))
        scores = self.select(chosen_by, found)
        yield best_of_each(found, scores, self.select.keep)

    def _looking(self, problem: Problem, candidates: int) -> Problem:
        """The problem as the search sees it: the same, in its precision, laid out and compiled where the attack says
        so."""
        oracle = problem.oracle
        if self.laid_out is not None or self.compiler is not None:
            oracle = oracle.run_by(self._run)
        prior = problem.prior if self.laid_out is None else self._lay_out(problem.prior)
        if self.compiler is not None:
            self.compiler.begin_group(min(self.group, self.targets or self.group))
        return replace(problem, precision=self.precision, compiler=self.compiler, oracle=oracle, prior=prior)

    def _run(self, network: nn.Module) -> Callable:
        """How the search runs who is asked."""
        network = network if self.laid_out is None else self._lay_out(network)
        return network if self.compiler is None else Compiled(self.compiler, network)

    def _lay_out(self, network: nn.Module) -> nn.Module:
        if network not in self.laid_out:
            self.laid_out[network] = channels_last(network)
        return self.laid_out[network]

    def _couples(self, prior: Prior | type[Prior]) -> bool:
        """Whether candidates depend on the others of their group: through a part, or through the prior's critic."""
        return self.coupled or (prior.coupled and "realism" in self.needs)

    def _coupling(self) -> str:
        """The parts that couple, for a sentence; "" if none does."""
        return ", ".join(f"attack.{slot}" for slot, part in self.parts.items() if part.coupled)

    def _refuse_to_split(self, who: str) -> None:
        """Coupled parts see a group as one batch, or their losses are others."""
        if self.chunk is not None:
            raise Refused(
                f"attack.chunk: expected null, because {who} is coupled and takes a group as one batch, got "
                f"{self.chunk}; try a smaller attack.group where memory is short"
            )
        for slot, part in self.parts.items():
            if part.separates:
                raise Refused(
                    f"attack.{slot} ({type(part).__name__}): expected all candidates of a group in every look, because "
                    f"{who} is coupled, got a part that leaves some out; try attack.search.stop=null"
                )


def _as_published(slots: Mapping[str, Part | None]) -> dict[str, Part | None]:
    """Every part as the authors' code runs it; refused where that is how all of them run already."""
    published = {slot: part if part is None else part.as_published() for slot, part in slots.items()}
    if all(published[slot] is part for slot, part in slots.items()):
        raise Refused(
            "attack.legacy: expected an attack with parts that can be run as published or not, as the views of "
            "ppa and if_gmi, got one without; try attack.legacy=false"
        )
    return published


def believed(evidence: Evidence, found: Found) -> Evidence:
    """The evidence with the labels that an attack took its targets for."""
    labels = evidence.labels.clone()
    labels[found.evidence] = found.labels.to(labels.device)
    return replace(evidence, labels=labels)


def best_of_each(found: Found, scores: Tensor, keep: int | None) -> Found:
    """The `keep` highest-scored candidates of each target (None: all), best first; ties keep their order."""
    scores = scores.detach().cpu()
    # a candidate that diverged is the last to be chosen
    by_score = torch.argsort(scores.nan_to_num(nan=-torch.inf), descending=True, stable=True)
    order = by_score[torch.argsort(found.evidence[by_score], stable=True)]
    if keep is not None:
        owners = found.evidence[order]
        first = torch.searchsorted(owners, owners)  # position where each target's rows begin
        order = order[torch.arange(len(order)) - first < keep]
    return replace(found, latents=found.latents.detach(), scores=scores).take(order, stage="selected")


def run_group(
    attack: Attack, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
) -> Iterator[tuple[Found, str]]:
    """`attack.recover`, ending quietly when the budget does: yields (found, "") and at last (found, why)."""
    found = None
    try:
        for found in attack.recover(state, prior, oracle, evidence, rng):
            yield found, ""
    except BudgetExceeded as why:
        if found is None:
            raise Refused(f"the budget did not allow a single candidate: {why}; raise attack.budget") from why
        yield found, str(why)
