"""What groups of targets found, as one: a row for every candidate, each field as long as the others of its stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from midefense.attacks.base import UNKNOWN
from midefense.priors.base import Prior
from midefense.types import Refused, to_pixels

TRACE = "trace"  # whose rows hold latents or pixels, where those of a stage hold latents in any case


def joined(groups: Sequence[Mapping[str, Tensor]], prior: Prior, observed: Tensor | None) -> dict[str, Tensor]:
    """The tensors of all groups by `<stage>.<field>`, one after the other. A group that the budget ended early may lack
    a stage; one that lacks a field of a stage gets it, so that no row takes that of another: pixels are decoded of its
    latents, scores that nobody gave are NaN, labels that it was not told are -1.

    Args:
        groups: with `<stage>.evidence`, the rows of all.
        prior: decodes latents.
        observed: of all targets, for a prior that completes it (None: nothing was).
    Raises:
        Refused: of a field that some have, others have nothing to make it from.
    """
    tensors = {}
    for stage in sorted({name.rpartition(".")[0] for group in groups for name in group}):
        parts = [_of_stage(group, stage) for group in groups]
        parts = [part for part in parts if part]
        fields = set().union(*parts) - _replaced(stage, parts)
        whole = [{**part, **_lacking(stage, part, fields - set(part), prior, observed)} for part in parts]
        tensors |= {f"{stage}.{field}": torch.cat([part[field] for part in whole]) for field in sorted(fields)}
    return tensors


def _of_stage(group: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
    named = ((name.rpartition("."), value) for name, value in group.items())
    return {field: value for (own, _, field), value in named if own == stage}


def _replaced(stage: str, parts: Iterable[Mapping[str, Tensor]]) -> set[str]:
    """Fields that no group keeps: latents of a trace of which a group left pixels."""
    return {"latents"} if stage == TRACE and any("pixels" in part for part in parts) else set()


def _lacking(
    stage: str, part: Mapping[str, Tensor], fields: Iterable[str], prior: Prior, observed: Tensor | None
) -> dict[str, Tensor]:
    """The fields of a stage that a group does not have."""
    made, count = {}, len(part["evidence"])
    for field in fields:
        if field == "pixels" and "latents" in part:
            rows = zip(part["latents"], part["evidence"].tolist(), strict=True)
            made[field] = torch.stack([picture_of(latent, owner, prior, observed) for latent, owner in rows])
        elif field == "scores":
            made[field] = torch.full((count,), torch.nan)
        elif field == "labels":
            made[field] = torch.full((count,), UNKNOWN)
        else:
            raise Refused(
                f"{stage}.{field}: expected it of every group of targets, or of none, got it of some; try a "
                "larger attack.budget, or one group: attack.group=N"
            )
    return made


@torch.no_grad()
def picture_of(latent: Tensor, owner: int, prior: Prior, observed: Tensor | None) -> Tensor:
    """Pixels uint8 [C, H, W] of a latent [...] that answers the row `owner` of the evidence, of which something may
    have been `observed`."""
    prior, row = prior.given(observed), torch.tensor([owner], device=prior.device)
    return to_pixels(prior.decode(prior.of_rows(latent[None].to(prior.device), row)))[0].cpu()
