"""Populations of latents, one per target, as searches that breed them hold them."""

from __future__ import annotations

import torch
from torch import Tensor


def taken(populations: Tensor, places: Tensor) -> Tensor:
    """The members of populations [T, N, ...] at their `places` int64 [T, C]: [T, C, ...]. Whole rows are copied, which
    is several times as fast as gathering their numbers."""
    targets, count = populations.shape[:2]
    first = count * torch.arange(targets, device=places.device)[:, None]
    rows = populations.flatten(0, 1).index_select(0, (places + first).flatten())
    return rows.view(*places.shape, *populations.shape[2:])


def held_back(changed: Tensor, before: Tensor, entries: int) -> Tensor:
    """`changed` latents [..., width] with the last `entries` of `before`: those that no search moves."""
    return torch.cat([changed[..., :-entries], before[..., -entries:]], -1) if entries else changed
