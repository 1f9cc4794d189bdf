"""Networks that read what was observed of a target, such as its features at a cut: decoders, which make the image of
it, recognisers, which name whom it shows, and amortisers, which say where in a prior's latents to begin (Wang et al.,
Crafter, NDSS 2024; card crafter.md, 4.1).

All are told the shape of what is `observed` of one target, without its batch: [C, h, w], or [F] for a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from midefense.ranges import Channels, Count, Share, Side, Width, Widths
from midefense.types import Refused

SMALLEST = 4  # pixels a side from which a decoder grows its images


class FlatDecoder(nn.Module):
    """What was observed as one vector, through a linear layer and transposed convolutions, to images
    [B, channels, size, size] in [0, 1] (sigmoid): the decoder of Crafter's black-box attack.

    Its first layer alone has (numbers observed) x 128 `width` weights: 134 million for ResNet-18 at 64 px. At 128 px
    the last layer enlarges four times, as in the authors' `Baselines/disco.py`.

    Args:
        width: channels in front of the last layer; each layer before has twice as many, up to 8 times.
    Raises:
        Refused: a size other than 8, 16, 32, 64 or 128.
    """

    revision = 1

    def __init__(self, *, observed: Sequence[int], channels: Channels, size: Side, width: Width = 64) -> None:
        super().__init__()
        last = 4 if size == 128 else 2
        doublings = int(math.log2(size // last / SMALLEST)) if size >= SMALLEST * last else -1
        if doublings not in range(4) or SMALLEST * last * 2**doublings != size:
            raise Refused(f"FlatDecoder makes images of 8, 16, 32, 64 or 128 px, got {size}; set dataset.size=64")
        widths = [width * 2 ** (doublings - step) for step in range(doublings + 1)]
        inner = widths[0] * SMALLEST * SMALLEST
        self.project = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(observed), inner, bias=False), nn.BatchNorm1d(inner), nn.ReLU()
        )
        self.grow = nn.Sequential(*(_doubled(*pair) for pair in zip(widths, widths[1:], strict=False)))
        padding = {2: 2, 4: 1}[last]
        paint = nn.ConvTranspose2d(widths[-1], channels, 5, last, padding=padding, output_padding=1)
        self.paint = nn.Sequential(paint, nn.Sigmoid())
        self.deepest = widths[0]

    @property
    def published(self) -> dict[str, str]:
        """Names of the authors' `Decoder`."""
        linear = {"l1.0": "project.1", "l1.1": "project.2"}
        growing = {f"l2_5.{index}": f"grow.{index}" for index in range(len(self.grow))}
        return {**linear, **growing, f"l2_5.{len(self.grow)}": "paint.0"}

    def forward(self, observed: Tensor) -> Tensor:
        """Images of what was observed [B, ...]."""
        return self.paint(self.grow(self.project(observed).view(-1, self.deepest, SMALLEST, SMALLEST)))


class ConvDecoder(nn.Module):
    """Feature maps [B, C, h, h] to images [B, channels, size, size] in [0, 1], by convolutions alone: what is left of a
    picture lies where it lay. Ours; it has thousandths of `FlatDecoder`'s weights.

    Args:
        width: channels of every layer.
    Raises:
        Refused: no maps, or maps whose side does not go into `size` by doublings.
    """

    revision = 1

    def __init__(self, *, observed: Sequence[int], channels: Channels, size: Side, width: Width = 64) -> None:
        super().__init__()
        inputs, side = require_maps("ConvDecoder", observed, "FlatDecoder")
        doublings = round(math.log2(size / side)) if 0 < side <= size else -1
        if doublings < 0 or side * 2**doublings != size:
            raise Refused(
                f"ConvDecoder: expected maps whose side goes into {size} px by doublings, got {list(observed)}; "
                "try another evidence.cut, or FlatDecoder"
            )
        self.look = _convolved(inputs, width)
        self.grow = nn.Sequential(*(_enlarged(width) for _ in range(doublings)))
        self.paint = nn.Sequential(_convolved(width, width), nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, observed: Tensor) -> Tensor:
        """Images of feature maps."""
        return self.paint(self.grow(self.look(observed)))


class Amortiser(nn.Module):
    """Feature maps [B, C, h, h], or vectors [B, F], to latents [B, *latents]: Crafter's amortiser, of maps of 16 px.

    Args:
        latents: the shape of one latent of the prior.
        widths: channels of the convolutions that halve the maps, as many of them as it takes to reach 2 px.
        hidden: channels in front of the last layer.
    Raises:
        Refused: maps that are not square.
    """

    revision = 1

    def __init__(
        self,
        *,
        observed: Sequence[int],
        latents: Sequence[int],
        widths: Widths = (128, 512, 1024),
        hidden: Width = 512,
    ) -> None:
        super().__init__()
        maps = [*observed, 1, 1] if len(observed) == 1 else observed
        inputs, side = require_maps("Amortiser", maps, "another evidence.cut")
        self.maps = tuple(maps)
        layers: list[nn.Module] = []
        for width in widths:
            if side < 4:
                break
            layers += [nn.Conv2d(inputs, width, 4, 2, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
            inputs, side = width, side // 2
        self.shrink = nn.Sequential(*layers)
        self.output = nn.Sequential(
            nn.Conv2d(inputs, hidden, side, bias=False),
            nn.BatchNorm2d(hidden),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, math.prod(latents), 1),
        )
        self.latents = tuple(latents)

    @property
    def published(self) -> dict[str, str]:
        """Names of the authors' `Amortizer`."""
        return {"main": "shrink", "output": "output"}

    def forward(self, observed: Tensor) -> Tensor:
        """Latents to begin with, of what was observed."""
        return self.output(self.shrink(observed.reshape(-1, *self.maps))).view(-1, *self.latents)


class Recogniser(nn.Module):
    """What was observed [B, ...] to logits [B, classes]: of maps, two 3x3 convolutions of stride 2 with batch norm, the
    mean over places and a linear layer; of vectors, two linear layers.

    Args:
        width: channels of the first convolution, the second has twice as many; units of the hidden layer.
    """

    revision = 1

    def __init__(self, *, observed: Sequence[int], classes: Count, width: Width = 64) -> None:
        super().__init__()
        if len(observed) == 1:
            self.layers = nn.Sequential(nn.Linear(observed[0], width), nn.ReLU(), nn.Linear(width, classes))
            return
        inputs, _ = require_maps("Recogniser", observed, "another evidence.cut")
        layers: list[nn.Module] = []
        for outputs in (width, 2 * width):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, observed: Tensor) -> Tensor:
        """Logits."""
        return self.layers(observed)


def require_maps(who: str, observed: Sequence[int], instead: str) -> tuple[int, int]:
    """Channels and side of square feature maps; refuses any other shape."""
    if len(observed) != 3 or observed[1] != observed[2]:
        raise Refused(f"{who}: expected square maps [C, h, h] of each target, got {list(observed)}; try {instead}")
    return observed[0], observed[1]


def _doubled(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=2, output_padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _convolved(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _Twice(nn.Module):
    """Every pixel as four."""

    def forward(self, maps: Tensor) -> Tensor:
        # not F.interpolate, whose gradient has no deterministic kernel on a GPU
        wide = maps[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return wide.reshape(*maps.shape[:2], 2 * maps.shape[2], 2 * maps.shape[3])


def _enlarged(width: int) -> nn.Sequential:
    return nn.Sequential(_Twice(), _convolved(width, width))


class ScoreMapping(nn.Module):
    """What the target says of an image, as a vector [B, K], to what another network makes of the image [B, ...]:
    C2FMI's inverse network (Ye et al., TDSC 2023; card c2f_mi.md, section 4).

    Args:
        embedded: the shape of what the other network makes of one image.
        hidden: width of both layers in between; 4,096 in the paper.
        dropout: in front of the last layer.
    """

    revision = 1

    def __init__(
        self, *, observed: Sequence[int], embedded: Sequence[int], hidden: Width = 4096, dropout: Share = 0.25
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(math.prod(observed), hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(hidden, math.prod(embedded)),
        )
        self.embedded = tuple(embedded)

    @property
    def published(self) -> dict[str, str]:
        """Names of the authors' `predict2feature`."""
        return {"map": "layers"}

    def forward(self, observed: Tensor) -> Tensor:
        """What the other network would make of the images of which this was observed [B, ...]."""
        return self.layers(observed.flatten(1)).unflatten(1, self.embedded)
