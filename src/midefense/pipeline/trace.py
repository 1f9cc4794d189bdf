"""What a group's targets had cost when which candidate was their best: accuracy against queries, from one run.

A row is kept where the bill of a target passes a line of a logarithmic grid, the same for every attack, and a better
candidate is known then; the last row of a target is the one that the attack stands by: that of its highest score, of
equals the one of lowest loss. Rows hold latents, which the prior decodes when they are judged, or pixels where latents
alone do not tell the picture, or are not of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from midefense.metrics.against_queries import next_line
from midefense.oracle import Oracle
from midefense.pipeline.joining import picture_of
from midefense.priors.base import Prior
from midefense.types import Evidence, Found


@dataclass
class _Row:
    """One target's best so far: the evidence row `owner`, its `queries`, its `loss`, and the candidate itself."""

    owner: int
    queries: int
    loss: float
    latent: Tensor
    pixels: Tensor | None


class Trace:
    """Watches one group.

    Args:
        oracle: whose bills are read. It is asked nothing.
        evidence: the targets, one row each.
        prior: decodes candidates, where an attack leaves pixels of some of them alone.
        pictured: keep pixels: latents change their shape, or do not tell the picture (a search inside a generator).
    """

    def __init__(self, oracle: Oracle, evidence: Evidence, prior: Prior, pictured: bool = False):
        self._oracle, self._ids = oracle, evidence.ids.tolist()
        self._prior, self._observed, self._pictured = prior, evidence.observed, pictured
        self._due = [0] * len(evidence)
        self._rows: list[list[_Row]] = [[] for _ in self._ids]

    def add(self, found: Found) -> None:
        """Look at what was found, for the targets whose bills have passed a line since the last look. Elsewhere the
        device is not waited for."""
        asked = self._asked()
        due = [owner for owner, queries in enumerate(asked) if queries >= self._due[owner]]
        if not due:
            return
        self._keep(found, due, asked, better=True)
        for owner in due:
            self._due[owner] = next_line(asked[owner])

    def end(self, found: Found, stopped: str) -> None:
        """The last of it: the candidate that the attack stands by, or the best so far where the budget ended it. Of a
        target that an attack came to the end with, and stands by nothing, no row is left."""
        if not stopped:
            stood_by = set(found.evidence.tolist())
            self._rows = [own if owner in stood_by else [] for owner, own in enumerate(self._rows)]
        self._keep(found, range(len(self._ids)), self._asked(), better=bool(stopped))

    def tensors(self) -> dict[str, Tensor]:
        """Rows by target and cost: `evidence` int64 [R], `queries` int64 [R] of the target's own bill, `loss` float
        [R], and `latents` [R, ...] or `pixels` uint8 [R, C, H, W]. {} where no candidate was found."""
        rows = [row for own in self._rows for row in own]
        if not rows:
            return {}
        kept = {
            "evidence": torch.tensor([row.owner for row in rows]),
            "queries": torch.tensor([row.queries for row in rows]),
            "loss": torch.tensor([row.loss for row in rows]),
        }
        if self._pictured or any(row.pixels is not None for row in rows):
            return {**kept, "pixels": torch.stack([self._picture(row) for row in rows])}
        return {**kept, "latents": torch.stack([row.latent for row in rows])}

    def _asked(self) -> list[int]:
        bill = self._oracle.bill
        return [bill.get(one, 0) for one in self._ids]

    def _keep(self, found: Found, owners: Sequence[int], asked: Sequence[int], better: bool) -> None:
        """Add a row to each of `owners` that has a candidate; with `better`, only where its loss is below the last
        row's."""
        places = _best(found, owners, ranked=not better)
        if not places:
            return
        kept = found.take(torch.tensor(list(places.values())), seen=None).pictured().detached()  # one transfer for all
        for row, (owner, loss) in enumerate(zip(places, kept.loss.tolist(), strict=True)):
            own = self._rows[owner]
            if better and own and not loss < own[-1].loss and not math.isnan(own[-1].loss):
                continue
            if own and own[-1].queries == asked[owner]:
                own.pop()
            pixels = None if kept.pixels is None else kept.pixels[row].clone()
            own.append(_Row(owner, asked[owner], loss, kept.latents[row].clone(), pixels))

    def _picture(self, row: _Row) -> Tensor:
        return picture_of(row.latent, row.owner, self._prior, self._observed) if row.pixels is None else row.pixels


def _best(found: Found, owners: Sequence[int], ranked: bool) -> dict[int, int]:
    """The row of the candidate of lowest loss per evidence row in `owners`, of those that have one; where candidates
    are `ranked`, of those of the highest score. Candidates whose loss is NaN come last."""
    rows = found.evidence.cpu()
    if len(rows) == 0:
        return {}
    order = torch.argsort(found.loss.detach().float().cpu().nan_to_num(nan=torch.inf), stable=True)
    if ranked and found.scores is not None:
        scores = found.scores.detach().float().cpu().nan_to_num(nan=-torch.inf)
        order = order[torch.argsort(scores[order], dim=0, descending=True, stable=True)]
    order = order[torch.argsort(rows[order], stable=True)]
    sorted_rows = rows[order].contiguous()
    wanted = torch.tensor(list(owners), dtype=sorted_rows.dtype)
    first = torch.searchsorted(sorted_rows, wanted).clamp(max=len(rows) - 1)
    pairs = zip(wanted.tolist(), first.tolist(), strict=True)
    return {owner: int(order[place]) for owner, place in pairs if sorted_rows[place] == owner}
