"""What a stage will cost, measured over a few steps of it: nothing is stored, and nothing upstream is made.

Time, memory and queries of a step do not depend on what networks have learned. So a stage is measured with networks as
they are drawn where the trained ones are not there, on the images, batches and groups that it will have.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.attacks.base import Attack, SearchAttack, run_group
from midefense.oracle import Oracle
from midefense.pipeline.classifiers import TrainingJob, beginning, blank_classifier, job_of, load_classifier
from midefense.pipeline.costs import Cost
from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.priors import frozen, load_prior
from midefense.pipeline.recovery import STAGE_FIELDS, preparing_draws
from midefense.pipeline.session import Session
from midefense.plan.bind import Node
from midefense.plan.facts import assembled
from midefense.plan.read import cut_of
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact, Draft
from midefense.store.sealed import sealed
from midefense.training.inference import evaluate
from midefense.training.loop import Trainer, first_updates
from midefense.types import Evidence, Found, Images, Progress, Question

SECONDS = 4.0  # how long a stage is measured, unless its LEAST steps take longer
LEAST = 4  # steps that are measured, the first of which counts as the beginning
LOOKED_AT = 512  # images that an evaluation is measured on
PEAK, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Pace:
    """Times of steps, as they were looked at.

    Args:
        device: is waited for before a clock is read.
        marks: (step reached, seconds since the beginning, images asked) of each look.
    """

    device: torch.device
    asked: Callable[[], int] = lambda: 0
    marks: list[tuple[int, float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._peak = _Peak(self.device)
        self._started = time.monotonic()

    def mark(self, step: int) -> None:
        """`step` was reached."""
        self.marks.append((step, self.now(), self.asked()))

    def now(self) -> float:
        """Seconds since the beginning."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic() - self._started

    @property
    def enough(self) -> bool:
        """Whether more steps would take longer than measuring may."""
        return len(self.marks) >= LEAST and self.marks[-1][1] >= SECONDS

    def watch(self, steps: Iterable[object], number: Callable[[int, object], int] = lambda at, _: at) -> bool:
        """Let steps happen until there are `enough`; whether they came to their end. `number`: which step was reached,
        of how many came, and of what was yielded."""
        for at, step in enumerate(steps, start=1):
            self.mark(number(at, step))
            if self.enough:
                return False
        return True

    def seconds(self, total: int) -> float:
        """What `total` steps take: the first as it was, which warms up, the others at the pace of those after it."""
        return self._carried_on(total, 1)

    def queries(self, total: int) -> int:
        """How many images `total` steps ask."""
        return round(self._carried_on(total, 2))

    def _carried_on(self, total: int, what: int) -> float:
        first, last = self.marks[0], self.marks[-1]
        if last[0] == first[0]:
            return first[what] * total / first[0]
        return first[what] + (total - first[0]) * (last[what] - first[what]) / (last[0] - first[0])

    @property
    def memory(self) -> int:
        """Bytes at the peak since the beginning."""
        return self._peak.bytes


class _Peak:
    """The most memory since it was made; of a process whose peak the system does not let us begin anew, ever."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                RESET.write_text("5", encoding="ascii")

    @property
    def bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not PEAK.is_file():
            return 0
        told = dict(line.split(":", 1) for line in PEAK.read_text(encoding="ascii").splitlines())
        return int(told["VmHWM"].split()[0]) * 1024


def training(session: Session, job: TrainingJob) -> Cost:
    """A classifier: some updates of its first epoch, one evaluation, one saved state."""
    fabric = session.plan.compute.fabric(ranks=False)
    model, origin = beginning(session.store, job.architecture, job.plan)
    model, defense = assembled(model, job.plan.defense, job.plan.seed, origin)
    recipe = job.plan.recipe.build()
    model.to(fabric.device)
    images, judged = recipe.hold_out(job.images, job.plan.seed)
    judged = job.test if recipe.select == "test_legacy" else judged
    pace = Pace(fabric.device)
    trainer = Trainer(model, defense, recipe, fabric, len(images))
    begun = pace.now()
    updates, steps = first_updates(trainer, images, job.plan.seed)
    each_epoch = pace.now() - begun
    pace.watch(steps)
    looked_at = images.take(torch.arange(min(LOOKED_AT, len(images))))
    before = pace.now()
    evaluate(model, looked_at, device=fabric.device)
    per_image = (pace.now() - before) / len(looked_at)
    before = pace.now()
    saved = len(sealed(trainer.state(), {}))
    each_epoch += pace.now() - before + per_image * (0 if judged is None else len(judged))
    at_the_end = len(job.test) + len(job.images) * (2 if recipe.head == "centroids" else 1)
    return Cost(
        seconds=pace.seconds(updates * recipe.epochs) + recipe.epochs * each_epoch + per_image * at_the_end,
        memory=pace.memory,
        disk=_bytes(model.state_dict()),
        meanwhile=saved,
        steps=len(pace.marks),
        least=job.public is not None,  # what the defense then learns of its answers is not measured
    )


def learning(prior: Prior, public: Images, seed: int, target: nn.Module | None, device: torch.device) -> Cost:
    """A prior: some steps. `target` is the network that it asks, if it asks one."""
    oracle = None if prior.asks is None else Oracle(target, prior.asks, mode=prior.target_mode)
    prior.to(device)
    pace = Pace(device, (lambda: oracle.shared_bill) if oracle else (lambda: 0))
    sizes: list[int] = []

    def saved(progress: Iterable[Progress]) -> Iterator[Progress]:
        for step, logs, state in progress:
            sizes.append(len(sealed(state(), {})))  # as each step that is yielded is saved
            yield step, logs, state

    pace.watch(saved(prior.fit(public, seed=seed, oracle=oracle, state=None)), lambda _, progress: progress[0])
    total = prior.fit_steps(public)
    return Cost(
        seconds=pace.seconds(total),
        queries=pace.queries(total),
        memory=pace.memory,
        disk=_bytes(prior.state_dict()),
        meanwhile=max(sizes),
        steps=len(pace.marks),
    )


def preparing(
    attack: Attack,
    prior: Prior,
    target: nn.Module,
    public: Images,
    seed: int,
    question: Question | None = None,
    cut: str | None = None,
) -> tuple[Cost, Mapping[str, Tensor] | None]:
    """What an attack does once for all targets, and what it made; None where that takes longer than measuring may, as
    it does not say how many steps it has."""
    oracle = Oracle(target, attack.access, cut=cut, key=(seed, "prepare"))
    pace = Pace(prior.device, lambda: oracle.shared_bill)
    asked = {"question": question} if question else {}
    last: list[Callable[[], Mapping[str, Tensor]]] = []

    def kept(progress: Iterable[Progress]) -> Iterator[int]:
        for step, _, state in progress:
            last[:] = [state]
            yield step

    whole = pace.watch(kept(attack.prepare(prior, oracle, public, preparing_draws(seed), None, **asked)))
    made = dict(last[0]()) if last else {}
    seconds, queries = pace.now(), oracle.shared_bill
    cost = Cost(seconds, queries, pace.memory, _bytes(made), _bytes(made), len(pace.marks), least=not whole)
    return cost, made if whole else None


def attacking(
    attack: Attack,
    state: Mapping[str, Tensor],
    prior: Prior,
    target: nn.Module,
    evidence: Evidence,
    seed: int,
    cut: str | None = None,
) -> Cost:
    """An attack: one group, with some steps of its search, and the selection as it will be."""
    rows = torch.arange(min(attack.group, len(evidence)))
    group = evidence.take(rows)
    oracle = Oracle(target, attack.access, attack.budget, cut, group.ids.tolist(), key=(seed, "recover", 0))
    pace = Pace(prior.device, lambda: oracle.shared_bill + sum(oracle.bill.values()))
    attack.targets = len(evidence)
    short = isinstance(attack, SearchAttack) and attack.steps is not None
    if short:
        attack.search = _Shortened(attack.search, pace)
    stages: dict[str, Found] = {}
    searched: list[int] = []  # the looks at the search
    rng = seeds.generator(seed, "attack", "recover", 0)
    for at, (found, stopped) in enumerate(run_group(attack, state, prior, oracle, group, rng), start=1):
        pace.mark(at)
        stages["selected" if stopped else found.stage] = found
        searched += [len(pace.marks) - 1] if found.stage == "optimised" and not stopped else []
        if stopped:  # the budget: it takes no more than what was seen
            short = False
        if not short and pace.enough:
            break
    seconds, queries = pace.marks[-1][1:]
    if short and len(searched) > 1:
        left = attack.search.steps - len(searched)
        first, last = pace.marks[searched[0]], pace.marks[searched[-1]]
        seconds += left * (last[1] - first[1]) / (len(searched) - 1)
        queries += left * (last[2] - first[2]) / (len(searched) - 1)
    share = len(evidence) / len(rows)
    size = sum(_bytes_of(found.pictured()) for found in stages.values())
    return Cost(
        seconds=seconds * share,
        queries=round(queries * share),
        memory=pace.memory,
        disk=round(size * share),
        meanwhile=round(size * share),
        steps=len(searched) or len(pace.marks),
        least="selected" not in stages,
    )


class Probe:
    """Measures the stages of one attack: the prior, what is prepared, and the search.

    Args:
        node: the attack, told the shape of the images.
        target, prior, prepared: as the store has them, or drafts; `prior` is None where it learns nothing, `prepared`
            where the attack does not prepare.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        node: Node,
        target: Artefact | Draft,
        prior: Artefact | Draft | None = None,
        prepared: Artefact | Draft | None = None,
    ) -> None:
        self._pipeline, self._plan, self._node = pipeline, pipeline.plan, node
        self._target, self._prior, self.prepared = target, prior, prepared

    def learned(self) -> Cost:
        """Training the prior."""
        prior = self._fresh()
        target = None if prior.asks is None else self._network
        return learning(prior, self._pipeline.public, self._plan.seeds["prior"], target, self._pipeline.device)

    def preparation(self) -> Cost | None:
        """Preparing the attack; None where it asks what leaves an edge, which is not there."""
        return None if self._prepared is None else self._prepared[0]

    def attacked(self) -> Cost | None:
        """Attacking; None where it needs what was released, or what takes long to prepare."""
        plan, attack = self._plan, self._node.build()
        state: Mapping[str, Tensor] | None = {}
        if isinstance(self.prepared, Artefact):
            state = self.prepared.tensors()
        elif attack.prepares:
            state = None if self._prepared is None else self._prepared[1]
        if state is None or plan.evidence.target.releases:
            return None
        evidence = plan.evidence.build().observe(self._pipeline.collected, self._pipeline.splits, _nothing_released)
        return attacking(attack, state, self._ready, self._network, evidence, plan.seeds["attack"], cut_of(plan))

    @functools.cached_property
    def _prepared(self) -> tuple[Cost, Mapping[str, Tensor] | None] | None:
        attack = self._node.build()
        if attack.asks_edge:
            return None
        question = self._pipeline.question if attack.asks_question else None
        told = self._pipeline.public, self._plan.seeds["attack"], question, cut_of(self._plan)
        return preparing(attack, self._ready, self._network, *told)

    @functools.cached_property
    def _network(self) -> nn.Module:
        """The target, with the weights that are drawn where the trained ones are not there."""
        session = self._pipeline.session
        if isinstance(self._target, Artefact):
            return load_classifier(session, self._target)
        job = job_of(session, self._plan.target)
        return blank_classifier(job.architecture, job.plan).to(session.device).eval().requires_grad_(False)

    @functools.cached_property
    def _ready(self) -> Prior:
        prior = self._fresh()
        if isinstance(self._prior, Artefact):
            return load_prior(prior, self._prior, self._pipeline.device)
        return frozen(prior, self._pipeline.device)

    def _fresh(self) -> Prior:
        if self._plan.stored_prior is not None:
            return self._plan.prior.build()
        with seeds.isolated(self._plan.seeds["prior"], "prior", "init"):
            return self._pipeline.blank_prior[0].build()


def _nothing_released(request: object) -> Tensor:
    raise AssertionError("evidence that is released is not measured")


class _Shortened:
    """A search that ends as soon as enough of it was seen; what else it is asked, the search itself answers."""

    def __init__(self, search: object, pace: Pace) -> None:
        self._search, self._pace = search, pace

    def __getattr__(self, name: str) -> object:
        return getattr(self._search, name)

    def __call__(self, problem: object, found: Found) -> Iterator[Found]:
        for number, step in enumerate(self._search(problem, found), start=1):
            yield step
            if number >= LEAST and self._pace.now() >= SECONDS:
                return


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _bytes_of(found: Found) -> int:
    values = (getattr(found, name) for name in STAGE_FIELDS)
    return sum(value.numel() * value.element_size() for value in values if value is not None)
