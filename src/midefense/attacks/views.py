"""What the target is shown: differentiable transforms, drawn per image.

`draw(count, rng)` gives one row of numbers per image (for the whole group, before it is cut to fit memory);
calling the view applies the rows to images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.attacks.base import Part
from midefense.types import Refused


class RandomResizedCrop(Part):
    """Crop a random part, scale it back to full size (bilinear), and maybe mirror it.

    PPA's search views (scale .9 to 1) and selection views (scale .5 to .9, ratio .8 to 1.2, flip .5).

    Args:
        scale: least and largest share of the area.
        ratio: least and largest width divided by height, drawn log-uniformly.
        flip: probability of a mirror image.
        shared: one draw for all images of a call, as torchvision did in the original.
    """

    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (1.0, 1.0),
        flip: float = 0.0,
        shared: bool = False,
    ):
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1] and 0 <= flip <= 1):
            raise Refused(
                f"views: expected 0 < scale <= 1, 0 < ratio and flip in [0, 1], each pair in ascending order, "
                f"got scale={tuple(scale)}, ratio={tuple(ratio)}, flip={flip}"
            )
        self.scale, self.ratio, self.flip, self.shared = tuple(scale), tuple(ratio), flip, shared

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Affine parameters [count, 4]: half-width, half-height, centre x, centre y, in units of the image."""
        dice = torch.rand(1 if self.shared else count, 5, generator=rng)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * dice[:, 0]
        low, high = torch.tensor(self.ratio).log()
        ratio = (low + (high - low) * dice[:, 1]).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (1 - width) * (2 * dice[:, 2] - 1), (1 - height) * (2 * dice[:, 3] - 1)
        mirrored = torch.where(dice[:, 4] < self.flip, -width, width)
        return torch.stack([mirrored, height, x, y], 1).expand(count, 4)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]; `draws` [B, 4] on the images' device."""
        width, height, x, y = draws.unbind(1)
        zero = torch.zeros_like(width)
        affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        grid = F.affine_grid(affine.to(images.dtype), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
