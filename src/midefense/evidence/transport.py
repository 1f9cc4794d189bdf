"""How a released feature travels from the edge to the cloud, and what arrives.

`float32` arrives as it was sent. `float16` is rounded to half precision; `uint8` is quantised to 256 levels between the
smallest and the largest value of each feature map of each image (of the whole feature, where it has no maps), which
travel with it as two float32: value = low + level x scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from midefense.types import Refused, refuse_unknown

TRANSPORTS = ("float32", "float16", "uint8")
LEVELS = 255


def require_transport(option: str, transport: str) -> None:
    """Refuse what is no transport, naming the `option` it stood in."""
    if transport not in TRANSPORTS:
        raise refuse_unknown(option, transport, TRANSPORTS)


def pack(features: Tensor, transport: str) -> dict[str, Tensor]:
    """What travels of features float32 [N, F] or [N, C, ...]: the `payload`, and for `uint8` `low` and `scale`.

    Raises `Refused` for what is not finite, or too large for half precision.
    """
    require_transport("transport", transport)
    payload = features.half() if transport == "float16" else features.float()
    if not payload.isfinite().all():
        largest = float(features.abs().nan_to_num(posinf=torch.inf).max())
        raise Refused(
            f"evidence.transport={transport}: expected released features that are finite in it, got values up to "
            f"{largest:.4g} or none; try float32, or another defense"
        )
    if transport != "uint8":
        return {"payload": payload}
    within_a_map = tuple(range(2, payload.dim())) or (1,)
    low, high = payload.amin(within_a_map, keepdim=True), payload.amax(within_a_map, keepdim=True)
    scale = (high - low) / LEVELS
    levels = ((payload - low) / scale.where(scale > 0, torch.ones_like(scale))).round().clamp(0, LEVELS)
    return {"payload": levels.to(torch.uint8), "low": low, "scale": scale}


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """What arrives: features float32 in the shape they were sent in."""
    if "low" not in packed:
        return packed["payload"].float()
    return packed["low"] + packed["payload"].float() * packed["scale"]


def bytes_of(packed: Mapping[str, Tensor]) -> int:
    """How many bytes travel."""
    return sum(part.numel() * part.element_size() for part in packed.values())
