"""Crops, resizes, turns and warps whose gradient is the same twice, on a GPU too.

There torch's own `grid_sample` and resizes add up their gradients in whatever order the threads arrive: the same
command twice gives other bits. So on a GPU each output reads a fixed number of inputs ("taps") and, for the gradient,
each input reads a fixed number of outputs, both in a fixed order. Axis-aligned crops and resizes are separable: one
axis after the other. On a CPU torch's own repeat themselves, and small images are done sooner by them
(`benchmarks/resampling.py`): they are used.

Pixels are areas: pixel i of a side of n covers [i, i + 1] of it, as with `align_corners=False`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Taps(NamedTuple):
    """What each of N outputs reads, and what reads each of M inputs: indices and weights, [..., N, K] and [..., M, L].

    A place that is not needed has weight 0. Leading dimensions, where there are any, are images.
    """

    indices: Tensor
    weights: Tensor
    back_indices: Tensor
    back_weights: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Taps:
        """The same with indices on `device` and weights as `dtype` there."""
        return Taps(
            self.indices.to(device),
            self.weights.to(device, dtype),
            self.back_indices.to(device),
            self.back_weights.to(device, dtype),
        )


class _WeightedRows(torch.autograd.Function):
    """Rows [N, W]: sums of K rows each of a table [M, W]; differentiable as often as wanted."""

    @staticmethod
    def forward(table: Tensor, taps: Taps) -> Tensor:
        return F.embedding_bag(taps.indices, table, per_sample_weights=taps.weights, mode="sum")

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.taps = inputs[1]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        taps = ctx.taps
        return _WeightedRows.apply(gradient.contiguous(), Taps(*taps[2:], *taps[:2])), None


def resized(images: Tensor, height: int, width: int | None = None) -> Tensor:
    """Images [B, C, H, W] resized to [B, C, height, width] (None: square), bilinear and antialiased."""
    size = (height, height if width is None else width)
    if images.shape[-2:] == size:
        return images
    if images.device.type == "cuda":
        return resized_by_taps(images, *size)
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def resized_by_taps(images: Tensor, height: int, width: int) -> Tensor:
    """As `resized`, on any device in a fixed order; equal up to the rounding of torch's weights."""
    for side in (height, width):
        if images.shape[2] != side:
            images = _rows(images, _shared(_resize_taps(images.shape[2], side, images.device, images.dtype), images))
        images = images.mT
    return images.contiguous()


def cropped(images: Tensor, boxes: Tensor, smallest: float, *, apart: bool = False) -> Tensor:
    """A box of each image [B, C, H, W], enlarged to the image's size: bilinear.

    Args:
        boxes: [B, 4] half width, half height, centre x and centre y, where the image reaches from -1 to 1 along both
            axes; a negative half mirrors. On the images' device.
        smallest: the least half (without its sign) of all boxes that may come, above 0 and at most 1. It bounds how
            many outputs read one pixel, and is a number of the caller's so that no device must be waited for.
    """
    if images.device.type == "cuda":
        return cropped_by_taps(images, boxes, smallest, apart=apart)
    if apart:
        width, height, x, y = boxes.double().unbind(1)
        rows = _positions(height, y, images.shape[2], apart)
        columns = _positions(width, x, images.shape[3], apart)
        across = ((2 * columns + 1) / images.shape[3] - 1)[:, None].expand(-1, images.shape[2], -1)
        down = ((2 * rows + 1) / images.shape[2] - 1)[:, :, None].expand(-1, -1, images.shape[3])
        grid = torch.stack([across, down], 3).to(images.dtype)
    else:
        width, height, x, y = boxes.unbind(1)
        zero = torch.zeros_like(width)
        affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        grid = F.affine_grid(affine.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def cropped_by_taps(images: Tensor, boxes: Tensor, smallest: float, *, apart: bool = False) -> Tensor:
    """As `cropped`, on any device in a fixed order."""
    half_width, half_height, x, y = boxes.double().unbind(1)
    for half, centre in ((half_height, y), (half_width, x)):
        taps = _crop_taps(half, centre, images.shape[2], smallest, apart)
        images = _rows(images, taps.to(images.device, images.dtype)).mT
    return images.contiguous()


def stretched(images: Tensor, corners: Tensor, smallest: float) -> Tensor:
    """A box of each square image [B, C, S, S], enlarged to the image's size, its corner pixels on those of the image:
    bilinear.

    Args:
        corners: [B, 4] left, top, right and bottom pixel, the last included; left beyond right mirrors.
        smallest: the least distance of two corners along an axis, as a share of S - 1 (see `cropped`). On a GPU a box
            of a single pixel is taken for one of this size.
    """
    if images.device.type == "cuda":
        return stretched_by_taps(images, corners, smallest)
    side = images.shape[2]
    left, top, right, bottom = corners.unbind(1)
    width, height = (right - left) / (side - 1), (bottom - top) / (side - 1)
    zero = torch.zeros_like(width)
    x, y = (left + right) / (side - 1) - 1, (top + bottom) / (side - 1) - 1
    affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def stretched_by_taps(images: Tensor, corners: Tensor, smallest: float) -> Tensor:
    """As `stretched`, on any device in a fixed order."""
    side = images.shape[2]
    first, last = corners.double().unflatten(1, (2, 2)).unbind(1)
    half = (last - first) / (side - 1)
    half = torch.where(half.abs() < smallest, smallest, half)
    centre = (2 * first + 1 - half) / side + half - 1  # output 0 reads the first corner: `_first`
    return cropped_by_taps(images, torch.cat([half, centre], 1), smallest)


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Square images [B, C, S, S] turned about their middle by angles [B] in radians, counter-clockwise where y points
    down: bilinear, 0 around."""
    if images.device.type == "cuda":
        return turned_by_taps(images, angles)
    sine, cosine, zero = angles.sin(), angles.cos(), torch.zeros_like(angles)
    affine = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def turned_by_taps(images: Tensor, angles: Tensor) -> Tensor:
    """As `turned`, on any device in a fixed order."""
    batch, channels, side = images.shape[:3]
    taps = _turn_taps(angles.double(), side).to(images.device, images.dtype)
    pixels = torch.arange(batch, device=images.device)[:, None, None] * side**2
    table = images.permute(0, 2, 3, 1).reshape(-1, channels)
    spread = Taps(
        (taps.indices + pixels).flatten(0, 1),
        taps.weights.flatten(0, 1),
        (taps.back_indices + pixels).flatten(0, 1),
        taps.back_weights.flatten(0, 1),
    )
    rows = _WeightedRows.apply(table, spread)
    return rows.view(batch, side, side, channels).permute(0, 3, 1, 2).contiguous()


class Warp:
    """Reads images at the fixed places `grid` [height * width, 2] (x, y), where an image reaches from -1 to 1 along
    both axes: images [B, C, H, W] to [B, C, height, width], bilinear, 0 outside."""

    def __init__(self, grid: Tensor, height: int, width: int) -> None:
        self.grid, self.height, self.width = grid, height, width
        self._taps: dict[tuple, Taps] = {}  # by size and kind of images, made when first needed

    def __call__(self, images: Tensor) -> Tensor:
        if images.device.type == "cuda":
            return self.by_taps(images)
        grid = self.grid.to(images).view(1, self.height, self.width, 2).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, align_corners=False)

    def by_taps(self, images: Tensor) -> Tensor:
        """The same on any device in a fixed order."""
        kind = (images.shape[2], images.shape[3], images.device, images.dtype)
        if kind not in self._taps:
            self._taps[kind] = grid_taps(self.grid, *images.shape[2:]).to(images.device, images.dtype)
        pixels = images.flatten(2).permute(2, 0, 1)
        rows = _WeightedRows.apply(pixels.flatten(1).contiguous(), self._taps[kind])
        return rows.unflatten(1, images.shape[:2]).permute(1, 2, 0).unflatten(2, (self.height, self.width))


def _rows(images: Tensor, taps: Taps) -> Tensor:
    """Weighted sums of the rows of images [B, C, H, W]; `taps` [B, N, K] and [B, H, L] per image."""
    batch, channels, height, width = images.shape
    table = images.reshape(batch * channels * height, width)
    spread = Taps(
        _of_every_channel(taps.indices, height, channels),
        taps.weights[:, None].expand(-1, channels, -1, -1).flatten(0, 2),
        _of_every_channel(taps.back_indices, taps.indices.shape[1], channels),
        taps.back_weights[:, None].expand(-1, channels, -1, -1).flatten(0, 2),
    )
    return _WeightedRows.apply(table, spread).view(batch, channels, -1, width)


def _of_every_channel(indices: Tensor, height: int, channels: int) -> Tensor:
    """Indices [B, N, K] of rows of an image as rows of the table of all channels of all images [B C N, K]."""
    planes = torch.arange(len(indices) * channels, device=indices.device).view(len(indices), channels, 1, 1)
    return (indices[:, None] + planes * height).flatten(0, 2)


def _shared(taps: Taps, images: Tensor) -> Taps:
    """Taps of one axis [N, K] for every image of a batch."""
    return Taps(*(part.expand(len(images), *part.shape) for part in taps))


def _first(half: Tensor, centre: Tensor, side: int) -> Tensor:
    """Where output 0 of crops reads [B], in pixels; its neighbours read `half` apart."""
    return ((centre - half + 1) * side + half - 1) / 2


def _positions(half: Tensor, centre: Tensor, side: int, apart: bool) -> Tensor:
    """Where the outputs of crops read along one axis [B, side], in pixels, within the image or (`apart`) the box."""
    places = torch.arange(side, dtype=half.dtype, device=half.device)
    least, most = torch.zeros_like(half), torch.full_like(half, side - 1)
    if apart:
        least, most = ((centre + way * half.abs() + 1) * side / 2 for way in (-1, 1))
        most = most - 1
    reading = _first(half, centre, side)[:, None] + half[:, None] * places
    return torch.minimum(reading.clamp(min=least[:, None]), most[:, None])


def _crop_taps(half: Tensor, centre: Tensor, side: int, smallest: float, apart: bool) -> Taps:
    """Taps [B, side, 2] and back [B, side, L] of crops along one axis, float64."""
    places = torch.arange(side, dtype=half.dtype, device=half.device)
    position = _positions(half, centre, side, apart)
    half, first = half[:, None], _first(half, centre, side)[:, None]
    low = position.floor().clamp(max=max(side - 2, 0))
    share = position - low
    indices = torch.stack([low, (low + 1).clamp(max=side - 1)], 2).long()
    # output i reads input j where they are less than a pixel apart: a window of outputs around (j - first) / half
    reach = math.ceil(1 / smallest + 0.5) - 1
    nearest = ((places - first) / half).round()
    readers = nearest[:, :, None] + torch.arange(-reach, reach + 1, device=half.device)
    there = (readers >= 0) & (readers < side)
    readers = readers.clamp(0, side - 1).long()
    distance = (position.gather(1, readers.flatten(1)).view_as(readers) - places[:, None]).abs()
    return Taps(indices, torch.stack([1 - share, share], 2), readers, (1 - distance).clamp(min=0) * there)


def _turn_taps(angles: Tensor, side: int) -> Taps:
    """Taps [B, S * S, 4] and back [B, S * S, 9] of turns by angles [B], of the angles' kind."""
    places = torch.arange(side, dtype=angles.dtype, device=angles.device)
    pixels = torch.stack(torch.meshgrid(places, places, indexing="xy"), 2).flatten(0, 1)
    position = _about_the_middle(pixels, angles, side)
    square = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=angles.device)
    read = position.floor()[:, :, None] + square
    weights = (1 - (position[:, :, None] - read).abs()).prod(3)
    # who reads a pixel is less than a pixel's diagonal away from where the pixel came from
    around = torch.cartesian_prod(*[torch.arange(-1, 2, device=angles.device)] * 2)
    readers = _about_the_middle(pixels, -angles, side).round()[:, :, None] + around
    back_indices, there = _numbered(readers, side)
    at = position.gather(1, back_indices.flatten(1)[:, :, None].expand(-1, -1, 2)).view_as(readers)
    back_weights = (1 - (at - pixels[:, None]).abs()).clamp(min=0).prod(3) * there
    indices, inside = _numbered(read, side)
    return Taps(indices, weights * inside, back_indices, back_weights)


def _about_the_middle(pixels: Tensor, angles: Tensor, side: int) -> Tensor:
    """Pixels [N, 2] (x, y) turned by angles [B]: [B, N, 2]."""
    middle, sine, cosine = (side - 1) / 2, angles.sin()[:, None], angles.cos()[:, None]
    x, y = (pixels - middle).unbind(1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], 2) + middle


def _numbered(pixels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Numbers of pixels [..., 2] (x, y) in rows of an image, 0 for those outside, and which lie inside [...]."""
    inside = ((pixels >= 0) & (pixels < side)).all(-1)
    x, y = torch.where(inside[..., None], pixels, 0).long().unbind(-1)
    return y * side + x, inside


@functools.lru_cache(maxsize=64)
def _resize_taps(inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> Taps:
    """Taps of a resize along one axis: a triangle as wide as a pixel of the coarser side, of sum 1 within the image."""
    scale = inputs / outputs
    with torch.device("cpu"):
        centres = (torch.arange(outputs, dtype=torch.float64) + 0.5) * scale
        pixels = torch.arange(inputs, dtype=torch.float64) + 0.5
        weights = (1 - (pixels - centres[:, None]).abs() / max(scale, 1)).clamp(min=0)
        weights /= weights.sum(1, keepdim=True)
        return Taps(*_densest(weights), *_densest(weights.T)).to(device, dtype)


def _densest(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The places and values [N, K] of a matrix [N, M] that are not 0, K the most in a row."""
    most = max(int((matrix != 0).sum(1).max()), 1)
    values, indices = matrix.topk(most, dim=1)
    return indices, values


def grid_taps(grid: Tensor, height: int, width: int) -> Taps:
    """Taps of reading images of height x width at the places `grid` [N, 2] (x, y), where the image reaches from -1 to 1
    along both axes: bilinear, 0 outside; float64."""
    place = (grid.double() + 1) * torch.tensor([width, height]) / 2 - 0.5
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    pixel = place.floor()[:, None] + corners
    weights = (1 - (place[:, None] - pixel).abs()).prod(2)
    inside = ((pixel >= 0) & (pixel < torch.tensor([width, height]))).all(2)
    pixel = torch.where(inside[..., None], pixel, 0).long()
    indices, weights = pixel[..., 1] * width + pixel[..., 0], weights * inside
    return Taps(indices, weights, *_turned(indices, weights, height * width))


def _turned(indices: Tensor, weights: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """For each of `inputs` who reads it and how much [inputs, L], from what each output reads [N, K]."""
    needed = weights.flatten() != 0
    read = indices.flatten()[needed]
    order = read.argsort(stable=True)
    read = read[order]
    counts = read.bincount(minlength=inputs)
    slot = torch.arange(len(read)) - (counts.cumsum(0) - counts)[read]
    most = max(int(counts.max()), 1)
    readers = torch.zeros(inputs, most, dtype=torch.long)
    amounts = torch.zeros(inputs, most, dtype=weights.dtype)
    outputs = torch.arange(len(indices)).repeat_interleave(indices.shape[1])[needed][order]
    readers[read, slot] = outputs
    amounts[read, slot] = weights.flatten()[needed][order]
    return readers, amounts
