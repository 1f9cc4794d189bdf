"""How well a network's answers fit the labels wanted, per image: what attacks descend on, and what priors learn by that
are made for one target."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y for logits [B, K] and labels int64 [B]; [B], from 0, in float32 at least."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="none")


def max_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """-o_y + max over j != y of o_j, for logits o [B, K] and labels int64 [B]; [B], without a lower bound (PLG-MI, Yuan
    et al., AAAI 2023, equation 6). Its gradient does not fade where the network is sure."""
    wanted = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - wanted


def poincare(logits: Tensor, labels: Tensor, xi: float = 1e-4) -> Tensor:
    """The distance that `attacks.objectives.Poincare` is, for logits [B, K] and labels int64 [B]; [B] in their
    dtype."""
    u = F.normalize(logits.double(), p=1, dim=1)
    v = (F.one_hot(labels, logits.shape[1]).to(u) - xi).clamp(0, 1)
    shrink = (1 - u.square().sum(1)) * (1 - v.square().sum(1))
    distance = torch.acosh(1 + 2 * (u - v).square().sum(1) / shrink)
    return distance.to(logits.dtype)


IDENTITY_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": max_margin,
    "cross_entropy": cross_entropy,
    "poincare": poincare,
}
