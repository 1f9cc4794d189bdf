"""PLG-MI's class-conditional generator and critic (Yuan et al., AAAI 2023; card plg_mi.md, section 4): residual blocks
whose batch norms take scale and shift from the class, and a projection critic with spectral norms.

At width 64 and 64 px RGB, with 1000 classes: 17,973,379 and 11,165,441 parameters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConditionalBatchNorm(nn.BatchNorm2d):
    """Batch norm, then a gain and a bias per class and channel, which start at 1 and 0."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, affine=False)
        self.gains = nn.Embedding.from_pretrained(torch.ones(classes, width), freeze=False)
        self.biases = nn.Embedding.from_pretrained(torch.zeros(classes, width), freeze=False)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        gain, bias = self.gains(labels)[..., None, None], self.biases(labels)[..., None, None]
        return gain * super().forward(hidden) + bias


class UpBlock(nn.Module):
    """Double the resolution (bilinear): two 3x3 convolutions behind conditional norms, beside a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.first_norm = ConditionalBatchNorm(inputs, classes)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second_norm = ConditionalBatchNorm(outputs, classes)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        residual = self.first(_double(F.relu(self.first_norm(hidden, labels))))
        residual = self.second(F.relu(self.second_norm(residual, labels)))
        return residual + self.shortcut(_double(hidden))


class Generator(nn.Module):
    """Latents [B, latent_size] and labels int64 [B] to images [B, channels, size, size] in (-1, 1) (tanh).

    The originals train it on images in [0, 1], so that what it gives lies mostly there: it is not rescaled.
    """

    def __init__(self, *, classes: int, latent_size: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        doublings = {32: 3, 64: 4}[size]  # from 4 px
        widths = [width * 2**doubling for doubling in range(doublings, -1, -1)]
        self.project = nn.Linear(latent_size, widths[0] * 16)
        self.grow = nn.ModuleList(UpBlock(a, b, classes) for a, b in zip(widths, widths[1:], strict=False))
        self.norm = nn.BatchNorm2d(width)
        self.paint = nn.Conv2d(width, channels, 1)

    @property
    def published(self) -> dict[str, str]:
        """Names of the original's `ResNetGenerator`."""
        inside = {
            "c1": "first",
            "c2": "second",
            "c_sc": "shortcut",
            "b1": "first_norm",
            "b1.weights": "first_norm.gains",
            "b1.biases": "first_norm.biases",
            "b2": "second_norm",
            "b2.weights": "second_norm.gains",
            "b2.biases": "second_norm.biases",
        }
        table = {"l1": "project"}
        for index in range(len(self.grow)):
            table |= {f"block{index + 2}.{theirs}": f"grow.{index}.{ours}" for theirs, ours in inside.items()}
        last = len(self.grow) + 2
        return {**table, f"b{last}": "norm", f"conv{last}": "paint"}

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        hidden = self.project(latents).view(len(latents), -1, 4, 4)
        for block in self.grow:
            hidden = block(hidden, labels)
        return self.paint(F.relu(self.norm(hidden))).tanh()


def _double(hidden: Tensor) -> Tensor:
    return F.interpolate(hidden, scale_factor=2, mode="bilinear")


class _SpectralNorm(nn.Module):
    """A layer whose weight is divided by its largest singular value (Miyato et al., ICLR 2018), as one step of power
    iteration per forward in train mode knows it; in eval mode the vectors stay as they are. Names and order of the two
    vectors are those of the originals (`torch.nn.utils.spectral_norm`): v first, then u.
    """

    def __init__(self, weight: Tensor, gain: float, bias: bool = True) -> None:
        super().__init__()
        self.weight_orig = nn.Parameter(nn.init.xavier_uniform_(weight, gain))
        self.bias = nn.Parameter(_uniform(weight)) if bias else None
        rows = weight.flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn(rows.shape[0]), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(rows.shape[1]), dim=0))

    def weight(self) -> Tensor:
        """The weight over its singular value; moves the vectors in train mode, so ask once per forward."""
        rows = self.weight_orig.flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(rows.T @ self.weight_u, dim=0, eps=1e-12))
                self.weight_u.copy_(F.normalize(rows @ self.weight_v, dim=0, eps=1e-12))
        u, v = self.weight_u.clone(), self.weight_v.clone()  # a second forward before the backward moves them again
        return self.weight_orig / (u @ (rows @ v))


def _uniform(weight: Tensor) -> Tensor:
    """A bias as torch draws it for a layer of this weight."""
    bound = 1 / math.sqrt(weight[0].numel())
    return torch.empty(len(weight)).uniform_(-bound, bound)


class _Convolution(_SpectralNorm):
    """A convolution that keeps the size, of an odd `kernel`."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(torch.empty(outputs, inputs, kernel, kernel), gain=math.sqrt(2) if kernel == 3 else 1.0)
        self.padding = kernel // 2

    def forward(self, hidden: Tensor) -> Tensor:
        return F.conv2d(hidden, self.weight(), self.bias, padding=self.padding)


class _Linear(_SpectralNorm):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(torch.empty(outputs, inputs), gain=1.0)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight(), self.bias)


class _Embedding(_SpectralNorm):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__(torch.empty(classes, width), gain=1.0, bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.weight())


class DownBlock(nn.Module):
    """Halve the resolution (average): two 3x3 convolutions beside a 1x1 shortcut. The `entering` block sees an image:
    it begins without a ReLU, its first convolution widens, and its shortcut pools before it convolves."""

    def __init__(self, inputs: int, outputs: int, entering: bool = False) -> None:
        super().__init__()
        self.entering = entering
        middle = outputs if entering else inputs
        self.first = _Convolution(inputs, middle, 3)
        self.second = _Convolution(middle, outputs, 3)
        self.shortcut = _Convolution(inputs, outputs, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.second(F.relu(self.first(hidden if self.entering else F.relu(hidden))))
        if self.entering:
            return F.avg_pool2d(residual, 2) + self.shortcut(F.avg_pool2d(hidden, 2))
        return F.avg_pool2d(residual, 2) + F.avg_pool2d(self.shortcut(hidden), 2)


class Critic(nn.Module):
    """Images [B, channels, size, size] and labels int64 [B] to one unbounded score each [B]: how real an image is, and
    how much it is one of its class (projection, Miyato and Koyama, ICLR 2018). Rows do not depend on each other."""

    def __init__(self, *, classes: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        halvings = {32: 4, 64: 5}[size]  # to 2 px
        widths = [channels, *(width * 2**halving for halving in range(halvings))]
        pairs = zip(widths, widths[1:], strict=False)
        self.shrink = nn.ModuleList(DownBlock(a, b, entering=index == 0) for index, (a, b) in enumerate(pairs))
        self.score = _Linear(widths[-1], 1)
        self.classes = _Embedding(classes, widths[-1])

    @property
    def published(self) -> dict[str, str]:
        """Names of the original's `SNResNetProjectionDiscriminator`."""
        inside = {"c1": "first", "c2": "second", "c_sc": "shortcut"}
        table = {f"l{len(self.shrink) + 1}": "score", "l_y": "classes"}
        for index in range(len(self.shrink)):
            table |= {f"block{index + 1}.{theirs}": f"shrink.{index}.{ours}" for theirs, ours in inside.items()}
        return table

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        hidden = images
        for block in self.shrink:
            hidden = block(hidden)
        hidden = F.relu(hidden).sum((2, 3))
        return self.score(hidden)[:, 0] + (self.classes(labels) * hidden).sum(1)
