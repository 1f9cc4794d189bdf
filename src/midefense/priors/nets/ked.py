"""KED-MI's discriminator with minibatch discrimination (Chen et al., ICCV 2021; card ked_mi.md, section 4). Its
generator is GMI's.

At width 64: 18,888,936 parameters at 64 px RGB with 1000 classes, 14,154,949 at 32 px grey with 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNELS = 64  # similarities per image
KERNEL_SIZE = 50  # dimensions in which each is measured


def _down(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Halve the resolution: convolution, instance norm, leaky ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, 2, padding=kernel // 2)
    return nn.Sequential(convolution, nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.2))


class MinibatchDiscrimination(nn.Module):
    """How close each row of features [B, F] is to the other rows of its batch, [B, KERNELS] (Salimans et al., 2016).

    With M = features · kernel, row i and kernel k give the sum over j != i of exp(-|M_ik - M_jk|_1). A row alone in its
    batch gives 0; identical rows give B - 1. Computed in float32 at least: 1 is subtracted from a sum close to 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, KERNELS, KERNEL_SIZE))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, torch.float32)
            mapped = features.to(dtype) @ self.kernel.to(dtype).flatten(1)
            mapped = mapped.view(-1, *self.kernel.shape[1:]).transpose(0, 1)
            distances = torch.cdist(mapped, mapped, p=1)  # [KERNELS, B, B]; the differences would fill [50, 64, B, B]
            return (-distances).exp().sum(dim=2).T - 1


class Discriminator(nn.Module):
    """Images [B, channels, size, size] to features [B, F] and logits [B, classes]; the logit of "fake" is fixed at 0.

    The features (64 times `width`) are taken before minibatch discrimination, which couples the logits of a batch.
    """

    def __init__(self, *, classes: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        layers = [_down(channels, width, 5), _down(width, 2 * width, 5), _down(2 * width, 4 * width, 5)]
        layers += {32: [], 64: [_down(4 * width, 4 * width, 3)]}[size]  # either way 4 px are left
        self.shrink = nn.Sequential(*layers, nn.Flatten())
        self.closeness = MinibatchDiscrimination(64 * width)
        self.head = nn.Linear(64 * width + KERNELS, classes)

    @property
    def published(self) -> dict[str, str]:
        """Names of the originals' `MinibatchDiscriminator` (64 px) and `MinibatchDiscriminator_MNIST` (32 px)."""
        layers = {f"layer{index + 1}": f"shrink.{index}" for index in range(len(self.shrink) - 1)}
        return {**layers, "mbd1.T": "closeness.kernel", "fc_layer": "head"}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.shrink(images)
        return features, self.head(torch.cat([features, self.closeness(features)], dim=1))
