"""The one picture family whose every answer is known: a bright bell on a dark ground, placed by two numbers.

The `toy` dataset draws its classes from it and the `toy` prior decodes with it, so that what an attack recovers can
be compared with the truth. Imports torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 0.35  # latents of 1 put the bell this far from the centre, as a share of the image's side
WIDTH = 0.12  # standard deviation of the bell, as a share of the image's side
GROUND = 0.1  # value far from the bell; its peak is 1 - GROUND, which leaves room for pixel noise


def render(latents: Tensor, size: int) -> Tensor:
    """Pictures [N, 1, size, size] in [GROUND, 1 - GROUND] of the bells at `latents` [N, 2] (x to the right, y down).

    Latents within [-1, 1] keep the bell's peak inside the picture. Differentiable; computed in the latents' dtype.
    """
    pixels = (torch.arange(size, dtype=latents.dtype, device=latents.device) + 0.5) / size
    centres = 0.5 + REACH * latents
    bells = torch.exp(-((pixels - centres[:, :, None]) ** 2) / (2 * WIDTH**2))  # [N, 2, size]
    across, down = bells.unbind(dim=1)
    bell = down[:, :, None] * across[:, None, :]
    return (GROUND + (1 - 2 * GROUND) * bell)[:, None]
