"""Generators that are told a label, of network inversion (Suhail and Sethi, arXiv 2407.18002; card
network_inversion.md, section 4.2): a vector says which class is wanted, and, in two of them, a "hot" matrix does so in
every place.

All take latents [B, latent_size] and `wanted` [B, classes], how much of each class is asked for (one-hot, or a
softmax), and give images [B, channels, size, size]: in [0, 1], or in [-1, 1] for `output=tanh`, which two of the
originals have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midefense.ranges import Channels, Count, Share, Side, Width
from midefense.resampling import resized
from midefense.types import refuse_unknown

SIDE = 10  # pixels of the maps beside which the matrix is put, which the originals have of ten classes
OUTPUTS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
MATRIX_CLASSES = ("wanted", "processed")


class ConditionedGenerator(nn.Module):
    """What the generators share: how many numbers a latent has, and how many classes there are.

    `matrix_class` [B] says, of a generator with a matrix, whose row and column it sets.
    """

    def __init__(self, latent_size: int, classes: int) -> None:
        super().__init__()
        self.latent_size, self.classes = latent_size, classes

    def forward(self, latents: Tensor, wanted: Tensor) -> Tensor:
        """Images of latents [B, latent_size], of the classes `wanted` [B, classes]."""
        raise NotImplementedError


class TransposedHotGenerator(ConditionedGenerator):
    """Transposed convolutions from one pixel to 10, the matrix beside them, and on to 28 pixels (the original's
    `Generator1`, of its attack). Images of another size are those of 28 pixels, resized.

    Args:
        latent_size: numbers of a latent, and of what the label becomes beside it.
        width: channels of the first layer and of the last but one; eight times as many in the middle.
        dropout: share of maps dropped behind the matrix, a source of variety.
        output: `sigmoid`, or `tanh`.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side,
        latent_size: Count = 100,
        width: Width = 64,
        dropout: Share = 0.1,
        output: str = "sigmoid",
    ) -> None:
        super().__init__(latent_size, classes)
        self.size = size
        self.embed = nn.Linear(classes, latent_size)
        self.grow = nn.Sequential(
            *_transposed(2 * latent_size, width, stride=1, padding=0),  # 4 px
            *_transposed(width, 2 * width, stride=1, padding=0),  # 7
            *_transposed(2 * width, 4 * width, stride=1, padding=0),  # 10
        )
        self.paint = nn.Sequential(
            *_transposed(4 * width + 1, 8 * width, stride=1, padding=1, dropout=dropout),  # 11
            *_transposed(8 * width, 4 * width, stride=1, padding=1, dropout=dropout),  # 12
            *_transposed(4 * width, 2 * width, stride=2, padding=1, dropout=dropout),  # 24
            *_transposed(2 * width, width, stride=1, padding=0, dropout=dropout),  # 27
            nn.ConvTranspose2d(width, channels, 4, 1, 1),  # 28
            _output(output),
        )
        self.apply(_drawn_as_published)

    @property
    def published(self) -> dict[str, str]:
        """Names of the authors' `Generator1`."""
        return {"embedding": "embed", "layers_before_concat": "grow", "layers_after_concat": "paint"}

    def forward(self, latents: Tensor, wanted: Tensor) -> Tensor:
        maps = self.grow(torch.cat([latents, self.embed(wanted)], 1)[:, :, None, None])
        return resized(self.paint(torch.cat([maps, hot_matrix(wanted.argmax(1), self.classes)], 1)), self.size)


class UpsampledHotGenerator(ConditionedGenerator):
    """A linear layer and 3x3 convolutions between upsamplings, to 10 pixels, the matrix beside them, and to `size` (the
    original's `Generator`, of its search over loss weights).

    Args:
        latent_size: numbers of a latent.
        width: channels up to the matrix; half as many behind it.
        dropout: share of numbers dropped in every layer.
        output: `sigmoid`, or `tanh`.
        matrix_class: the matrix shows the class `wanted`; or, as in the authors' code, the largest of the label's
            numbers as `processed` by its layer, which is often another class, and while training moves with dropout.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side,
        latent_size: Count = 100,
        width: Width = 128,
        dropout: Share = 0.1,
        output: str = "sigmoid",
        matrix_class: str = "wanted",
    ) -> None:
        super().__init__(latent_size, classes)
        if matrix_class not in MATRIX_CLASSES:
            raise refuse_unknown("matrix_class", matrix_class, MATRIX_CLASSES)
        self.matrix_class, self.width = matrix_class, width
        self.start = max(1, size // 4)
        self.process = nn.Sequential(nn.Linear(classes, classes), nn.LeakyReLU(0.2), nn.Dropout(dropout))
        units = width * self.start * self.start
        self.project = nn.Sequential(nn.Linear(latent_size + classes, units), nn.LeakyReLU(0.2), nn.Dropout(dropout))
        self.grow = nn.Sequential(nn.BatchNorm2d(width), Nearest(SIDE), *_convolved(width, width, dropout))
        self.join = nn.Sequential(*_convolved(width + 1, width, dropout))
        behind = max(1, width // 2)
        self.paint = nn.Sequential(
            Nearest(size),
            *_convolved(width, behind, dropout),
            nn.Conv2d(behind, channels, 3, padding=1),
            _output(output),
        )
        self.apply(_drawn_as_published)

    @property
    def published(self) -> dict[str, str]:
        """Names of the authors' `Generator`."""
        names = {"process_labels": "process", "l1": "project", "conv_blocks1": "grow", "matrix_cond": "join"}
        return {**names, "conv_blocks2": "paint"}

    def class_of_matrix(self, wanted: Tensor, processed: Tensor) -> Tensor:
        """Whose row and column are set int64 [B], of the label [B, classes] and of what its layer makes of it."""
        return (wanted if self.matrix_class == "wanted" else processed).argmax(1)

    def forward(self, latents: Tensor, wanted: Tensor) -> Tensor:
        processed = self.process(wanted)
        flat = self.project(torch.cat([latents, processed], 1))
        maps = self.grow(flat.view(-1, self.width, self.start, self.start))
        matrix = hot_matrix(self.class_of_matrix(wanted, processed), self.classes)
        return self.paint(self.join(torch.cat([maps, matrix], 1)))


class VectorGenerator(ConditionedGenerator):
    """DCGAN's generator, told the label as a vector alone (the `Generator` of the group's earlier repository, for 64
    px). It doubles 4 pixels until `size` is reached; a size that is no such number is resized to.

    Args:
        latent_size: numbers of a latent, and of what the label becomes beside it.
        width: channels of the last layer but one; each before has twice as many.
        dropout: share of maps dropped in every layer; 0, as in the original, has no such layers.
        output: `sigmoid`, or `tanh`.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: Count,
        channels: Channels,
        size: Side,
        latent_size: Count = 100,
        width: Width = 64,
        dropout: Share = 0.0,
        output: str = "sigmoid",
    ) -> None:
        super().__init__(latent_size, classes)
        self.size = size
        self.embed = nn.Linear(classes, latent_size)
        doublings = max(1, math.ceil(math.log2(size / 4)))
        widths = [width * 2**step for step in reversed(range(doublings))]
        kept = dropout or None
        doubled = [
            _transposed(*pair, stride=2, padding=1, dropout=kept, bias=False)
            for pair in zip(widths, widths[1:], strict=False)
        ]
        self.main = nn.Sequential(
            *_transposed(2 * latent_size, widths[0], stride=1, padding=0, dropout=kept, bias=False),
            *(layer for layers in doubled for layer in layers),
            nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False),
            _output(output),
        )
        self.apply(_drawn_around_one)

    @property
    def published(self) -> dict[str, str]:
        """Names of the authors' `Generator`."""
        return {"embed": "embed", "main": "main"}

    def forward(self, latents: Tensor, wanted: Tensor) -> Tensor:
        return resized(self.main(torch.cat([latents, self.embed(wanted)], 1)[:, :, None, None]), self.size)


class Nearest(nn.Module):
    """Maps [B, C, h, h] to [B, C, side, side]: pixel i is that at floor(i h / side), as `nn.Upsample` takes it."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, maps: Tensor) -> Tensor:
        # a product: the gradient of nn.Upsample has no deterministic kernel on a GPU
        taken = torch.arange(self.side) * maps.shape[-1] // self.side
        chosen = nn.functional.one_hot(taken, maps.shape[-1]).to(maps)
        return chosen @ maps @ chosen.T


def hot_matrix(classes_wanted: Tensor, classes: int, side: int = SIDE) -> Tensor:
    """Zeros with the row and the column of the class at 1 [B, 1, side, side], for classes int64 [B].

    With other than `side` classes the matrix of [classes, classes] is averaged over the areas of the pixels (ours: the
    original works for ten alone). Where there are more classes than pixels none is lost, but neighbours may look
    alike; the vector tells them apart.
    """
    line = nn.functional.one_hot(classes_wanted, classes).float()
    matrix = (line[:, :, None] + line[:, None, :]).clamp(max=1)
    if classes != side:
        areas = overlaps(side, classes).to(matrix)
        matrix = areas @ matrix @ areas.T
    return matrix[:, None]


def overlaps(outputs: int, inputs: int) -> Tensor:
    """Which share of each of `outputs` equal parts of a line lies in each of `inputs` equal parts [outputs, inputs]."""
    # in whole parts of a line of outputs x inputs, where nothing is rounded
    low, start = inputs * torch.arange(outputs)[:, None], outputs * torch.arange(inputs)
    shared = torch.minimum(low + inputs, start + outputs) - torch.maximum(low, start)
    return shared.clamp(min=0) / inputs


def _transposed(
    inputs: int, outputs: int, *, stride: int, padding: int, dropout: float | None = None, bias: bool = True
) -> Sequence[nn.Module]:
    """A transposed 4x4 convolution, batch norm, dropout of maps where there is some, and ReLU."""
    kept = [] if dropout is None else [nn.Dropout2d(dropout)]
    convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=bias)
    return convolution, nn.BatchNorm2d(outputs), *kept, nn.ReLU()


def _convolved(inputs: int, outputs: int, dropout: float) -> Sequence[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2), nn.Dropout(dropout)


def _output(name: str) -> nn.Module:
    if name not in OUTPUTS:
        raise refuse_unknown("output", name, OUTPUTS)
    return OUTPUTS[name]()


def _drawn_as_published(layer: nn.Module) -> None:
    """Transposed convolutions from N(0, .02^2), linear layers orthogonal, biases at 0."""
    if isinstance(layer, nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=0.02)
    elif isinstance(layer, nn.Linear):
        nn.init.orthogonal_(layer.weight)
    if isinstance(layer, nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _drawn_around_one(layer: nn.Module) -> None:
    """Transposed convolutions from N(0, .02^2), batch norm's scales from N(1, .02^2)."""
    if isinstance(layer, nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, std=0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
