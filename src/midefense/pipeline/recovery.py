"""Recovering, group by group: what an attack prepares once, and what it finds for each fixed group of targets.

A group is claimed, attacked and saved by one process; whoever finds all groups saved writes the artefact. Ranks and
unrelated processes meet in the store, without talking to each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from midefense import seeds
from midefense.attacks.base import Attack, run_group
from midefense.oracle import Edge, Oracle
from midefense.pipeline.classifiers import StoredTarget
from midefense.pipeline.joining import joined
from midefense.pipeline.session import Session
from midefense.pipeline.trace import Trace
from midefense.plan.awareness import known_classes
from midefense.priors.base import Prior
from midefense.store.artefacts import Artefact, Draft
from midefense.store.store import POLL_SECONDS, Work
from midefense.tracking.progress import consume
from midefense.tracking.run import Run
from midefense.types import Evidence, Found, Images, Progress, Question

STAGE_FIELDS = ("latents", "loss", "evidence", "scores", "pixels", "pictures", "labels")
CURVE_POINTS = 64  # of a search's curves, at least 50 in any search of 50 steps or more
LOOK_EVERY = 50  # steps of a search between two looks at its curves: looking makes the device wait


def preparing_draws(seed: int) -> torch.Generator:
    """What an attack of this seed draws from while it prepares."""
    return seeds.generator(seed, "attack", "prepare")


@dataclass
class StoredPrior:
    """A prior ready to use; one that learns nothing has no artefact."""

    prior: Prior
    artefact: Artefact | None
    recipe: dict

    @property
    def parents(self) -> dict[str, str]:
        """Its reference as a parent, where there is one."""
        return {"prior": self.artefact.reference} if self.artefact else {}


@dataclass
class Recovery:
    """One attack on one target with one prior. `question` is for an attack that prepares and asks for it, `cut` is the
    stage where the oracle's features come from (None: the input of the head); `prepared` is what `prepare` made, where
    the attack prepares."""

    session: Session
    attack: Attack
    target: StoredTarget
    prior: StoredPrior
    evidence: Evidence
    seed: int
    question: Question | None = None
    cut: str | None = None
    prepared: Artefact | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int | None:
        """What the search of all groups takes; None if it cannot tell."""
        return None if self.attack.steps is None else self.attack.steps * -(-len(self.evidence) // self.attack.group)

    def prepare(self, draft: Draft, public: Images, edge: Edge | None = None) -> Artefact:
        """What the attack does once for all targets: its state, with the queries it cost, and the images that the
        `edge` was asked about, where the attack asks it."""

        def make(work: Work) -> Artefact:
            with self.session.run(draft, "prepare", {"target": self.target.artefact}) as run:
                return self._prepare(draft, public, work, run, edge)

        self.prepared = self.session.store.get_or_make(draft, make, self.session.plan.missing)
        self.state = self.prepared.tensors()
        return self.prepared

    def recover(self, draft: Draft) -> Artefact:
        """The recovered artefact: found, or made together with whoever else works on it."""
        store = self.session.store
        if (artefact := store.find(draft)) is not None:
            return artefact
        store.require_may_make(draft, self.session.plan.missing)
        work = store.work(draft)
        groups = {
            _group_name(i): rows for i, rows in enumerate(torch.arange(len(self.evidence)).split(self.attack.group))
        }
        parents = {"target": self.target.artefact}
        self.attack.targets = len(self.evidence)
        with work.seat() as seat, self.session.run(draft, "attack", parents, rank=seat) as run:
            waiting = False
            while (artefact := store.find(draft)) is None:
                advanced = False
                for index, (name, rows) in enumerate(groups.items()):
                    with work.claim(name) as mine:
                        if mine and not work.has(name) and store.find(draft) is None:
                            self._recover_group(work, index, rows, run)
                            advanced = True
                if all(map(work.has, groups)):
                    with work.claim("finish") as mine:
                        if mine and store.find(draft) is None:
                            self._join(work, list(groups))
                elif not advanced:
                    if not waiting:
                        work.say_waiting()
                        waiting = True
                    time.sleep(POLL_SECONDS)
            self.session.announce(run, artefact)
        return artefact

    def _prepare(self, draft: Draft, public: Images, work: Work, run: Run, edge: Edge | None) -> Artefact:
        saved, notes = work.saved("state") or (None, {})
        already, key = notes.get("shared_queries", 0), (self.seed, "prepare")
        oracle = Oracle(self.target.model, self.attack.access, cut=self.cut, key=key, asked=already)

        def save(step: int, state) -> None:
            work.save("state", state(), {"shared_queries": oracle.shared_bill})

        rng = preparing_draws(self.seed)
        asked = {"question": self.question} if self.question else {}
        asked |= {"edge": edge} if edge else {}
        progress = self.attack.prepare(self.prior.prior, oracle, public, rng, saved, **asked)
        last = consume(progress, run, total=None, namespace="prepare", save=save)
        bill = {"shared_queries": oracle.shared_bill}
        bill |= {"shared_releases": edge.bill} if edge else {}
        return self.session.finish(run, work, last() if last else saved, {}, bill=bill)

    def _recover_group(self, work: Work, index: int, rows: Tensor, run: Run) -> None:
        """Attack one group and save its stages, its queries and its time."""
        started = time.monotonic()
        evidence = self.evidence.take(rows)
        ids, key = evidence.ids.tolist(), (self.seed, "recover", index)
        oracle = Oracle(self.target.model, self.attack.access, self.attack.budget, self.cut, ids, key=key)
        group = _Group(self, oracle, evidence, index, run)
        consume(group.steps(), run, total=self.steps, namespace="attack")
        tensors = {}
        for stage, last in group.stages.items():
            found = last.pictured()
            fields = {name: getattr(found, name) for name in STAGE_FIELDS}
            fields["evidence"] = found.evidence + int(rows[0])
            tensors |= {f"{stage}.{name}": value for name, value in fields.items() if value is not None}
        for name, value in group.trace.tensors().items():
            tensors[f"trace.{name}"] = value + int(rows[0]) if name == "evidence" else value
        notes = {
            "queries": [oracle.bill.get(int(i), 0) for i in evidence.ids],
            "shared_queries": oracle.shared_bill,
            "stopped": group.stopped,
            "seconds": time.monotonic() - started,
        }
        work.save(_group_name(index), tensors, notes)

    def _join(self, work: Work, names: list[str]) -> Artefact | None:
        """Write the artefact: per stage aligned rows of latents, loss, evidence (and scores), sorted by evidence,
        and the `trace` (`pipeline.trace`); where the attack chose among its targets, which they are. None if a
        group was spoilt and set aside: it must be attacked again."""
        saved = [work.saved(name) for name in names]
        if None in saved:
            return None
        parts, notes = zip(*saved, strict=True)
        tensors = joined(parts, self.prior.prior, self.evidence.observed)
        queries = [asked for note in notes for asked in note["queries"]]
        tensors |= {
            "evidence.labels": self.evidence.labels,
            "evidence.ids": self.evidence.ids,
            "queries": torch.tensor(queries),
        }
        tensors |= {} if self.evidence.observed is None else {"evidence.observed": self.evidence.observed}
        chosen = self.attack.chosen(self.state, self.evidence)
        if chosen is not None:
            tensors["evidence.chosen"] = chosen
            queries = [asked for asked, taken in zip(queries, chosen.tolist(), strict=True) if taken] or [0]
        # what was asked once for all targets is charged to each user, cached or not
        once = [a.provenance["bill"].get("shared_queries", 0) for a in (self.prepared, self.prior.artefact) if a]
        bill = {
            "queries_per_target_mean": sum(queries) / len(queries),
            "queries_per_target_max": max(queries),
            "shared_queries": sum(once) + sum(note["shared_queries"] for note in notes),
            "seconds": sum(note["seconds"] for note in notes),
        }
        if self.prepared and "shared_releases" in self.prepared.provenance["bill"]:
            bill["shared_releases"] = self.prepared.provenance["bill"]["shared_releases"]
        plan = self.session.plan
        metrics = {
            "stopped": sorted({note["stopped"] for note in notes} - {""}),
            "candidates": len(tensors["selected.latents"]),
            "mean_loss": float(tensors["optimised.loss"].mean()) if len(tensors.get("optimised.loss", ())) else None,
            "knows": known_classes(plan.attack, plan.allow),
        }
        if "selected.labels" in tensors:  # those that an attack which was told none went by
            right = tensors["selected.labels"] == self.evidence.labels[tensors["selected.evidence"]]
            metrics["labels_right"] = float(right.float().mean())
        return work.finish(tensors, metrics, bill=bill, device=str(self.session.device))


class _Group:
    """Keeps the last of each stage of one group, and why it ended early ("" if it did not)."""

    def __init__(self, recovery: Recovery, oracle: Oracle, evidence: Evidence, index: int, run: Run):
        self.recovery, self.oracle, self.evidence, self.index = recovery, oracle, evidence, index
        self.curve = _Curve(run, recovery.attack)
        # what is found inside a generator has pixels alone, and latents of several shapes are no one tensor
        parts = getattr(recovery.attack, "parts", {}).values()
        pictured = "blocks" in recovery.attack.needs or any(part.reshapes for part in parts)
        self.trace = Trace(oracle, evidence, recovery.prior.prior, pictured)
        self.stages: dict[str, Found] = {}
        self.stopped = ""

    def steps(self) -> Iterator[Progress]:
        """The attack on this group as progress to look at; the newest of its numbers come now and then."""
        r = self.recovery
        rng = seeds.generator(r.seed, "attack", "recover", self.index)
        first = self.index * (r.attack.steps or 0)
        attacked = run_group(r.attack, r.state, r.prior.prior, self.oracle, self.evidence, rng)
        for step, (found, self.stopped) in enumerate(attacked, start=1):
            if self.stopped:  # what was found is kept, unselected
                found = replace(found, stage="selected", scores=torch.full((len(found),), torch.nan))
            self.stages[found.stage] = found
            if found.stage == "selected":
                self.trace.end(found, self.stopped)
            else:
                self.trace.add(found)
            yield first + step, self.curve.add(step, first + step, found), dict
        self.curve.end()


class _Curve:
    """What a search sees on its way, as curves of a run: `loss`, and the confidence of who is asked, the target or a
    surrogate. Points wait on the device, so that it is looked at only now and then, all of them in one look."""

    def __init__(self, run: Run, attack: Attack):
        self._run = run
        self._asked = "target" if getattr(attack, "asks_target", True) else "surrogate"
        self._every = max(1, (attack.steps or 0) // CURVE_POINTS)
        self._points: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, at: int, found: Found) -> dict[str, float]:
        """Keep what was seen at a `step` of the group, a point `at` that step of the run; the newest numbers, where it
        was time to look, {} elsewhere."""
        if found.stage != "optimised" or step % self._every:
            return {}
        seen = found.seen or {"loss": found.loss.detach().mean()}
        names = {"confidence": f"{self._asked}_confidence"}
        self._points.append((at, {names.get(name, name): value for name, value in seen.items()}))
        if len(self._points) * self._every < LOOK_EVERY:
            return {}
        *earlier, (_, newest) = self._look()
        self._log(earlier)
        return newest

    def end(self) -> None:
        """Log what is left."""
        self._log(self._look())

    def _look(self) -> list[tuple[int, dict[str, float]]]:
        """All points that wait, as numbers, brought from the device together."""
        values = [value.float() for _, told in self._points for value in told.values()]
        numbers = iter(torch.stack(values).tolist() if values else [])
        known = [(at, {name: next(numbers) for name in told}) for at, told in self._points]
        self._points = []
        return known

    def _log(self, points: list[tuple[int, dict[str, float]]]) -> None:
        for at, numbers in points:
            self._run.log(numbers, at, "attack")


def _group_name(index: int) -> str:
    return f"group-{index:05d}"
