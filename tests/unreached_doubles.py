"""An init that finds a start for some labels alone, as attacks that ask for labels may."""

import torch

from midefense.attacks.part import Part
from midefense.types import Found


class OnlyThese(Part):
    """One draw of the prior for every target of one of `labels`, about which its target is asked, and nothing else."""

    reads, needs = ("labels",), ("sample",)

    def __init__(self, *, labels: list[int]):
        self.labels = list(labels)

    @torch.no_grad()
    def __call__(self, problem):
        drawn = problem.prior.sample(len(problem.evidence), problem.draw("init"))
        ids = problem.evidence.ids
        problem.oracle(problem.prior.decode(drawn), ids=ids, reads=("labels",))
        rows = [row for row, label in enumerate(problem.evidence.labels.tolist()) if label in self.labels]
        owners = torch.tensor(rows, dtype=torch.int64)
        return Found(drawn[owners], torch.zeros(len(owners)), owners, stage="initial")
