"""What the making of every artefact shares: the store, the device, images loaded once, tracked runs, commands."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from midefense.datasets.splits import Splits
from midefense.pipeline.agenda import Agenda
from midefense.pipeline.telling import told
from midefense.plan.bind import Node
from midefense.plan.overrides import parsed
from midefense.plan.read import KEYS, Plan, by_identity
from midefense.plan.references import TARGET_NODES
from midefense.store.artefacts import Artefact, Draft, content_id
from midefense.store.command import command_of
from midefense.store.store import Work
from midefense.tracking.endings import tell
from midefense.tracking.run import Run

OWN_KIND = {"train_target": "target", "attack": "recovered", "evaluate": "result"}
ELSEWHERE = ("store", "missing", "tracking", "compute")  # options of a call that change nothing it makes


class Session:
    """One call of a verb. Created once per plan; sets this process's threads."""

    def __init__(self, plan: Plan):
        self.plan, self.store = plan, plan.store
        plan.compute.prepare()
        # float32 is float32, whatever the card: TF32 would change numbers without standing in any recipe
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.device = plan.compute.device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # `seeds.isolated` covers the current device
        self.cache = self.store.caches  # of decoded pixels
        self.agenda: Agenda | None = None  # what is ahead, once somebody looked
        self._whole: str | None = None  # the command that makes all, where there is none for a part
        self._opened: list[Run] = []
        self._splits: dict[str, Splits] = {}

    @property
    def latest(self) -> Run | None:
        """The run that was opened last."""
        return self._opened[-1] if self._opened else None

    def beside(self, plan: Plan, command: str) -> Session:
        """A session of another plan within the same call, whose parts no `command` makes but the one of the call."""
        other = copy.copy(self)  # images and runs stay shared
        other.plan, other._whole = plan, command
        return other

    def splits(self, dataset: Node) -> Splits:
        """The images of a dataset, loaded once, whatever a target is taught of them."""
        dataset = by_identity(dataset)
        key = content_id({"recipe": dataset.recipe(), "places": {k: str(v) for k, v in dataset.places().items()}})
        if key not in self._splits:
            self._splits[key] = dataset.build().load(self.cache)
        return self._splits[key]

    def run(self, draft: Draft, job_type: str, parents: Mapping[str, Artefact] | None = None, rank: int = 0) -> Run:
        """The tracked run that makes a draft. The verb's own is the outermost; runs upstream close before it opens.

        Args:
            parents: what it is made from, by role, to be told of: target, recovered, evaluators.
        """
        target = self.plan.target
        known = told(draft, parents or {}, target.names.get("dataset", "own"), target.dataset.build().size)
        run = Run(
            self.plan.tracking,
            job_type=job_type,
            name=draft.name,
            id=draft.id,
            config=known.config,
            inputs=[{"role": role, "artefact": reference} for role, reference in draft.parents.items()],
            tags=known.tags,
            title=known.title,
            group=known.group,
            outermost=draft.kind == OWN_KIND[self.plan.verb],
            rank=rank,
            stage=self._title(draft, job_type, rank),
        )
        self._opened[:] = [run]
        return run

    def _title(self, draft: Draft, job_type: str, rank: int) -> str:
        """What a person is told is going on; ranks that train with the first one say nothing."""
        if self.agenda is None or (rank and job_type != "attack"):
            return ""
        title = self.agenda.title(draft)
        return f"{title} (process {rank + 1})" if rank and title else title

    def tell(self, error: Exception) -> int:
        """Say on stderr how the call ends at an error, with the work it happened in; returns the exit code."""
        run = self.latest
        if run is None or run.error is not error:  # between two runs
            return tell(error)
        return tell(error, run.record.job_type, run.folder)

    def finish(
        self, run: Run, work: Work, tensors: Mapping[str, Tensor], metrics: Mapping, bill: Mapping | None = None
    ) -> Artefact:
        """Write the artefact that a run has made, and record it with the run."""
        artefact = work.finish(tensors, metrics, bill=bill, device=str(self.device))
        self.announce(run, artefact)
        return artefact

    def announce(self, run: Run, artefact: Artefact) -> None:
        """Record an artefact with its inputs, its plain numbers, and what it cost (a result says that by itself)."""
        if self.agenda is not None and run.rank == 0:
            self.agenda.keep_pace(artefact, run.stage)
        told, made = dict(artefact.metrics), artefact.provenance
        if artefact.kind != "result":
            told = {"seconds": made["seconds"], **made["bill"], **told}
        run.summary({name: value for name, value in told.items() if isinstance(value, int | float)})
        run.artefact(
            artefact.path,
            kind=artefact.kind,
            name=artefact.name,
            id=artefact.id,
            inputs=list(artefact.provenance["parents"].values()),
            metadata={"bill": artefact.provenance["bill"], "names": artefact.provenance["names"]},
        )

    def command(self, verb: str, names: Mapping[str, str]) -> str:
        """A command that makes what `names` describes: the one that was given, or its share that `verb` understands."""
        if self._whole is not None:
            return self._whole
        given = parsed(self.plan.overrides)
        if verb == self.plan.verb:
            return command_of(verb, [override.text for override in given if override.key not in ELSEWHERE])
        keys = {override.key for override in given}
        brought = (*(TARGET_NODES if "target" in keys else ()), *(("prior",) if "prior_artefact" in keys else ()))
        words = [f"{group}={name.split('(')[0]}" for group, name in names.items() if name and group not in brought]
        known = set(KEYS[verb]) - set(ELSEWHERE)
        words += [override.text for override in given if override.key not in names and override.option in known]
        return command_of(verb, words)
