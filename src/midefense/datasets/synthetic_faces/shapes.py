"""The sheet that faces are painted on, and the soft masks that are painted.

A shape is a field that is positive inside and falls by about 1 per head unit across its border; its mask is widened
to one pixel there, which antialiases it. Everything here and in the layers is made of single sums, products,
quotients and comparisons. IEEE 754 rounds each of these in one way only, so float32 gives the same bits on every
machine. Roots, exponentials and angles (each library has its own), fused products (`lerp`, `addcmul`) and sums over a
dimension do not: none here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sheet:
    """Rows of pixels of N pictures under work, `pixels` [N, 3, h, W], which layers paint in place.

    `x`, `y` [1, 1, h, W] run from -1 to 1 over the whole picture, `u`, `v` [N, 1, h, W] are head units, `sharpness`
    [N, 1, 1, 1] is pixels per head unit. What several layers use: `face`, a paraboloid that is 1 in its middle and 0
    on its outline; `across`, u in half widths of the face at that height; `hair`, a paraboloid over all of the hair;
    `strands`, its brightness.
    """

    pixels: Tensor
    x: Tensor
    y: Tensor
    u: Tensor
    v: Tensor
    sharpness: Tensor
    face: Tensor
    across: Tensor
    hair: Tensor
    strands: Tensor

    def rows(self, top: float, bottom: float) -> Sheet:
        """The rows from y = `top` to `bottom`, sharing their pixels."""
        size = self.x.shape[-1]
        kept = slice(max(0, int((top + 1) / 2 * size)), min(size, int((bottom + 1) / 2 * size) + 1))
        fields = ("pixels", "x", "y", "u", "v", "face", "across", "hair", "strands")
        return replace(self, **{name: getattr(self, name)[:, :, kept] for name in fields})

    def take(self, index: Tensor) -> Sheet:
        """A copy of the pictures at `index` (int64)."""
        fields = ("pixels", "u", "v", "sharpness", "face", "across", "hair", "strands")
        return replace(self, **{name: getattr(self, name)[index] for name in fields})

    def cover(self, inside: Tensor) -> Tensor:
        """The share of every pixel that lies inside a shape, [N, 1, h, W]."""
        return inside.mul(self.sharpness).add_(0.5).clamp_(0, 1)

    def paint(self, mask: Tensor, colour: Tensor | float, tone: Tensor | None = None) -> None:
        """Lay `colour` [N, 3, 1, 1], times `tone` [N, 1, h, W], over the picture where `mask` [N, 1, h, W] says so."""
        laid = colour * (mask if tone is None else mask * tone)
        self.pixels.mul_(1 - mask).add_(laid)

    def scale(self, factor: Tensor) -> None:
        """Multiply every colour by a factor [N, 1, h, W]."""
        self.pixels.mul_(factor)


def cosine_of(sine: Tensor) -> Tensor:
    """The cosine of an angle that is known by its sine: its series, off by less than 0.001 for sines up to 0.45."""
    square = sine * sine
    return 1 - square * (0.5 + 0.125 * square)


def ellipse(u: Tensor, v: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """A paraboloid: 1 in the middle, 0 on the border `width` and `height` away, negative outside."""
    return (1 - (u * (1 / width)).square_()).sub_((v * (1 / height)).square_())


def disc(squared: Tensor, radius: Tensor) -> Tensor:
    """A disc from squared distances to its middle, as a field whose border is sharp at every radius."""
    return (radius * radius - squared).mul_(0.5 / radius)


def glow(field: Tensor) -> Tensor:
    """A paraboloid as a mask without an edge: its positive part, squared. Overwrites the field."""
    return field.clamp_(min=0).square_()


def wave(position: Tensor) -> Tensor:
    """A smooth wave of period 1 between 0 and 1: a row of parabolas, no sine."""
    share = (position - position.floor()).mul_(2).sub_(1)
    return 1 - share.square_()


def smooth(position: Tensor) -> Tensor:
    """0 below 0, 1 above 1, and a cubic between them."""
    share = position.clamp(0, 1)
    return (share * share).mul_(3 - 2 * share)
