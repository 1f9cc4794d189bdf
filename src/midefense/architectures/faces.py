"""What face recognisers need around them: aligned faces, three channels, embeddings of length 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.architectures.base import Preprocess
from midefense.resampling import Warp, resized
from midefense.types import Refused

# Where the recogniser's alignment puts eyes, nose and corners of the mouth in 96 x 112 pixels, (x, y).
TARGET_LANDMARKS = (
    (30.2946, 51.6963),
    (65.5318, 51.5014),
    (48.0252, 71.7366),
    (33.5493, 92.3655),
    (62.7299, 92.2041),
)
TARGET_WIDTH, TARGET_HEIGHT = 96, 112


class FaceWarp(nn.Module):
    """One fixed similarity from aligned photographs to the crop that a face recogniser was trained on, 96 wide and 112
    high; black outside the photograph; differentiable.

    `landmarks`: five points (x, y), in pixels of a dataset's frame, where its alignment puts eyes, nose and corners of
    the mouth. The similarity takes them to `TARGET_LANDMARKS` as closely as least squares can. `box`: left, top, right
    and bottom, in pixels of the same frame, of what the stored images show of it, whatever their resolution.
    """

    revision = 1

    def __init__(self, *, landmarks: Sequence[Sequence[float]], box: Sequence[float]) -> None:
        super().__init__()
        if [len(point) for point in landmarks] != [2] * len(TARGET_LANDMARKS):
            raise Refused(f"landmarks: expected {len(TARGET_LANDMARKS)} pairs (x, y), got {landmarks}")
        if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
            raise Refused(f"box: expected left, top, right, bottom, got {list(box)}; try [0, 0, 178, 218]")
        self.width, self.height = round(box[2] - box[0]), round(box[3] - box[1])
        with torch.device("cpu"):  # also while a network is tried without memory
            self.warp = Warp(_sampling_grid(landmarks, box), TARGET_HEIGHT, TARGET_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to faces [B, C, 112, 96], both in [0, 1]."""
        height, width = min(self.height, images.shape[2]), min(self.width, images.shape[3])
        images = resized(images, height, width)  # finer than the frame: a sample would pass over pixels
        return self.warp(images)


class AlignedFaces(Preprocess):
    """As `Preprocess`, but what the network gets is warped instead of resized."""

    def __init__(self, *, warp: FaceWarp, channels: int, mean: float, std: float) -> None:
        super().__init__(channels=channels, size=TARGET_HEIGHT, mean=mean, std=std)
        self.warp = warp

    def fit(self, images: Tensor) -> Tensor:
        return self.warp(images)


class ThreeChannels(nn.Module):
    """Images [B, C, H, W] to [B, 3, H, W]: grey ones three times."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise Refused(f"channels: expected 1 or 3 for a face recogniser, got {channels}")

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


class UnitLength(nn.Module):
    """Features [B, F] to length 1."""

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1)


def similarity(source: Sequence[Sequence[float]], target: Sequence[Sequence[float]]) -> tuple[complex, complex]:
    """Least-squares `(a, b)` of a z + b over points z = x + iy: turn and scale by a, then shift by b (Umeyama, 1991,
    without reflections)."""
    points, goals = ([complex(*point) for point in side] for side in (source, target))
    middle, goal = sum(points) / len(points), sum(goals) / len(goals)
    turned = sum((z - middle).conjugate() * (w - goal) for z, w in zip(points, goals, strict=True))
    factor = turned / sum(abs(z - middle) ** 2 for z in points)
    return factor, goal - factor * middle


def _sampling_grid(landmarks: Sequence[Sequence[float]], box: Sequence[float]) -> Tensor:
    """For each target pixel the place [112 x 96, 2] it is read from, from -1 to 1 across the stored image; float64."""
    factor, shift = similarity(landmarks, TARGET_LANDMARKS)
    y, x = torch.meshgrid(
        torch.arange(TARGET_HEIGHT, dtype=torch.float64), torch.arange(TARGET_WIDTH, dtype=torch.float64), indexing="ij"
    )
    frame = (torch.complex(x, y) - shift) / factor
    left, top, right, bottom = box
    across = 2 * (frame.real + 0.5 - left) / (right - left) - 1
    down = 2 * (frame.imag + 0.5 - top) / (bottom - top) - 1
    return torch.stack([across, down], dim=-1).flatten(0, 1)
