"""The stand-in for target, evaluator and students in the recordings: TinyT, small enough to attack in a second."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.types import Trace


class TinyClassifier(nn.Module):
    """Images [B, channels, H, W] to features [B, 32] and logits [B, classes]; its state has the recorded names."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(16)
        self.emb = nn.Linear(256, 32)
        self.bn3 = nn.BatchNorm1d(32)
        self.fc = nn.Linear(32, classes)

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Trace:
        hidden = torch.relu(self.bn1(self.conv1(images)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        features = self.bn3(self.emb(F.adaptive_avg_pool2d(hidden, 4).flatten(1)))
        return Trace(self.fc(features), features)


def thumbnails(images: Tensor, side: int) -> Tensor:
    """Every k-th pixel in both directions, so that `side` are left."""
    step = images.shape[-1] // side
    return images[..., ::step, ::step]
