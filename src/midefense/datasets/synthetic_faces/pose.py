"""How a head is held: where its parts come to lie on the sheet, and the outlines of face and hair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midefense.datasets.synthetic_faces.shapes import Sheet, cosine_of, ellipse, glow, smooth, wave
from midefense.datasets.synthetic_faces.traits import Conditions, Traits

HEAD = 0.68  # half the face's height in half pictures, at zoom 1
REACH = 0.21  # how far shift and tilt move what is drawn beside (0, v), in half pictures, and a margin
ZOOM = 1.08  # the most that a head is enlarged


@dataclass(frozen=True, eq=False)
class Pair:
    """Both of two like parts (eyes, ears) at once: coordinates about the nearer one, mirrored.

    `side` is -1 left of the middle line and 1 right of it; `across` counts outwards and `down` downwards, in head
    units, more of them where the turned head foreshortens.
    """

    side: Tensor
    across: Tensor
    down: Tensor


@dataclass(frozen=True, eq=False)
class Pose:
    """N heads under their conditions. `depth` is how far in front of the head's axis a part lies, in head units."""

    traits: Traits
    conditions: Conditions

    def take(self, rows: Tensor) -> Pose:
        """The heads at `rows` (indices)."""
        return Pose(self.traits.take(rows), self.conditions.take(rows))

    @property
    def hat(self) -> Tensor:
        """1 where a hat is worn."""
        return self.traits.owns_hat * self.conditions.wears_hat

    def middle(self, depth: float) -> Tensor:
        """u of what lies on the middle line of the face."""
        return self.conditions.yaw * depth

    def level(self, v: Tensor | float, depth: float) -> Tensor:
        """v of what lies at height `v` while the head is upright."""
        return v * cosine_of(self.conditions.pitch) + self.conditions.pitch * depth

    def pair(self, sheet: Sheet, *, spacing: Tensor, v: Tensor | float, depth: float) -> Pair:
        """Coordinates about two points, `spacing` to either side of the middle line at height `v`."""
        offset = sheet.u - self.middle(depth)
        side = offset.sign()
        across = offset.abs_().sub_(spacing * cosine_of(self.conditions.yaw))
        across = across.mul_(1 + (0.45 * self.conditions.yaw) * side)
        return Pair(side, across, sheet.v - self.level(v, depth))


def band(sheet: Sheet, low: float, high: float) -> Sheet:
    """The rows that `low` to `high`, in head units, can reach in any pose: a layer paints no others."""
    return sheet.rows(HEAD * ZOOM * low - REACH, HEAD * ZOOM * high + REACH)


def blank(pose: Pose, size: int) -> Sheet:
    """An unpainted sheet of `size` x `size` pixels with the heads laid out on it."""
    traits, conditions = pose.traits, pose.conditions
    along = (torch.arange(size).float() + 0.5) * (2 / size) - 1
    x, y = along.expand(1, 1, size, size), along[:, None].expand(1, 1, size, size)
    unit = HEAD * conditions.zoom
    sine, cosine = conditions.roll / unit, cosine_of(conditions.roll) / unit
    right, down = along - conditions.shift_x, along[:, None] - conditions.shift_y
    u, v = right * cosine + down * sine, down * cosine - right * sine
    face, across = _face(u, v, traits)
    return Sheet(
        pixels=torch.empty(len(unit), 3, size, size),
        x=x,
        y=y,
        u=u,
        v=v,
        sharpness=unit * (size / 2),
        face=face,
        across=across,
        hair=_hair(u, v, pose),
        strands=_strands(u, v, pose),
    )


def _face(u: Tensor, v: Tensor, traits: Traits) -> tuple[Tensor, Tensor]:
    """The paraboloid, and `across`. Below the eyes the width follows cheeks and jaw."""
    height = v * v
    below = v.clamp(min=0)
    square = below * below
    across = u / (1 + traits.cheeks * below - traits.jaw * square).mul_(traits.face_width)
    box = (traits.squareness * square).mul_(1 - square)
    return (1 - across * across).sub_(height).add_(box), across


def _hair(u: Tensor, v: Tensor, pose: Pose) -> Tensor:
    """A cap drawn down to the hair's length; curls are bumps on it, a hat presses it flat."""
    traits, hat = pose.traits, pose.hat
    side, height = traits.hair_side * (1 - 0.6 * hat), 0.86 + traits.hair_height * (1 - hat)
    middle = v + 0.14
    below = middle.clamp(min=0)
    width = traits.face_width + side
    across = (u + 0.15 * pose.conditions.yaw) / (width + (traits.hair_flare * traits.long_hair) * below)
    end = traits.long_hair * (traits.hair_length - 0.10)
    above = middle.clamp(max=0) * (1 / height)
    under = (below - end).clamp_(min=0).mul_(1 / (0.42 - 0.14 * traits.long_hair))
    curl = 0.16 * smooth(2 * traits.hair_curl - 1) * (1 - hat)
    bumps = wave(across * 3.5 / (1 + middle.abs())).mul_(curl)
    return (bumps + (1 - 9 * traits.bald)).sub_(across.square_()).sub_(above.square_()).sub_(under.square_())


def _strands(u: Tensor, v: Tensor, pose: Pose) -> Tensor:
    """Brightness of the hair: strands that part at the top, and a shine."""
    bent = (u * (1 - 0.35 * v)).add_(0.22 * v).mul_(pose.traits.hair_streaks)
    shine = glow(ellipse(u + 0.4 * pose.conditions.yaw, v + 0.80, 0.62, 0.24))
    return wave(bent).mul_(0.22).add_(0.86).add_(shine.mul_(0.30))
