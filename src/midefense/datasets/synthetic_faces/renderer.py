"""Draws synthetic faces: layers from the background to the hat, lit from one side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from midefense.datasets.synthetic_faces import features
from midefense.datasets.synthetic_faces.pose import Pose, band, blank
from midefense.datasets.synthetic_faces.shapes import Sheet, disc, ellipse, glow, smooth, wave
from midefense.datasets.synthetic_faces.traits import Conditions, Traits


def render(traits: Traits, conditions: Conditions, size: int) -> Tensor:
    """Pictures float32 [N, 3, size, size] in [0, 1]: row i shows the i-th person under the i-th conditions.

    The same bits on every machine, for any number of threads and in any batch, see `face_shapes`.
    """
    pose = Pose(traits, conditions)
    sheet = blank(pose, size)
    for layer, shown in LAYERS:
        if shown is None:
            layer(sheet, pose)
        else:
            _paint_some(layer, shown(pose), sheet, pose)
    return sheet.pixels.clamp_(0, 1)


def _paint_some(layer: Layer, shown: Tensor, sheet: Sheet, pose: Pose) -> None:
    """A layer that few pictures show, on those alone."""
    index = shown.flatten().nonzero().flatten()
    if len(index):
        some = sheet.take(index)
        layer(some, pose.take(index))
        sheet.pixels[index] = some.pixels


def background(sheet: Sheet, pose: Pose) -> None:
    """A gradient; in two of three pictures with stripes or rings."""
    conditions = pose.conditions
    kind = conditions.background_pattern
    rings, any_pattern = (kind > 0.66).float(), (kind > 0.33).float()
    slant = conditions.background_slant
    share = smooth(slant * sheet.x + (0.45 * sheet.y + 0.5))
    place = (1 - rings) * sheet.x + (slant * sheet.y).add_(rings * (sheet.x * sheet.x + sheet.y * sheet.y))
    pattern = wave(place.mul_(conditions.background_pitch)).sub_(0.5).mul_(0.10 * any_pattern).add_(1)
    torch.mul(share, conditions.background_end - conditions.background, out=sheet.pixels)
    sheet.pixels.add_(conditions.background).mul_(pattern)


def clothes(sheet: Sheet, pose: Pose) -> None:
    """Shoulders, which follow the head half of its way."""
    sheet = sheet.rows(0.60, 1.0)
    width = 0.66 + 0.14 * pose.traits.ruggedness
    square = ((sheet.x - 0.5 * pose.conditions.shift_x) * (1 / width)).square_()
    inside = 1 - square * square - ((sheet.y - 1.22) * (1 / 0.52)).square()
    sheet.paint(sheet.cover(inside * 0.25), pose.conditions.clothes, tone=1.04 - 0.25 * square)


def hair_behind(sheet: Sheet, pose: Pose) -> None:
    """What surrounds the head."""
    sheet.paint(sheet.cover(sheet.hair * 0.45), pose.traits.hair_colour * 0.80, sheet.strands)


def bun(sheet: Sheet, pose: Pose) -> None:
    """A knot on top of the head."""
    sheet = band(sheet, -1.55, -0.70)
    knot = ellipse(sheet.u, sheet.v + (0.94 + pose.traits.hair_height), 0.30, 0.25)
    sheet.paint(sheet.cover(knot * 0.14), pose.traits.hair_colour * 0.85, tone=0.6 + 0.5 * glow(knot))


def neck(sheet: Sheet, pose: Pose) -> None:
    """From behind the chin, which shades it, down to the neckline."""
    traits, conditions = pose.traits, pose.conditions
    sheet = sheet.rows(0.25, 1.0)
    width = 0.23 + 0.08 * traits.ruggedness
    offset = (sheet.x - 0.7 * conditions.shift_x) * (1 / width)
    end = 0.80 + (0.06 + 0.12 * conditions.neckline) * (1 - offset * offset) - sheet.y
    inside = torch.minimum((1 - offset.abs()) * width, torch.minimum(end, sheet.y - 0.30))
    shadow = smooth(1.885 - 1.1 * sheet.v)
    sheet.paint(sheet.cover(inside), traits.skin, tone=0.93 - 0.34 * shadow)


def ears(sheet: Sheet, pose: Pose) -> None:
    """With a hollow in the middle."""
    size = pose.traits.ear_size
    sheet = band(sheet, -0.20, 0.36)
    pair = pose.pair(sheet, spacing=pose.traits.face_width * 1.02, v=0.08, depth=-0.12)
    ear = ellipse(pair.across, pair.down, 0.115 * size, 0.19 * size)
    hollow = glow(ellipse(pair.across, pair.down, 0.085, 0.13))
    sheet.paint(sheet.cover(ear * 0.07), pose.traits.skin, tone=0.92 - 0.32 * hollow)


def head(sheet: Sheet, pose: Pose) -> None:
    """The plain face; the layers after it give it features and light."""
    sheet = band(sheet, -1.0, 1.0)
    sheet.paint(sheet.cover(sheet.face * 0.45), pose.traits.skin)


def hair_in_front(sheet: Sheet, pose: Pose) -> None:
    """Above a hairline that falls from the parting to the temples; it casts a shadow on the forehead."""
    traits = pose.traits
    share = (sheet.u - pose.middle(0.45)) * (1 / traits.face_width)
    square = share * share
    fall = (share - traits.parting).square_().mul_(0.15 + traits.fringe)
    line = square.square_().mul_(0.34).add_(fall).add_(pose.level(traits.hairline, 0.5)).sub_(sheet.v)
    hair = sheet.hair * 0.45
    shadow = torch.minimum((line + 0.05) * 0.25, torch.minimum(sheet.face * 0.45, hair))
    sheet.scale(1 - 0.30 * sheet.cover(shadow))
    sheet.paint(sheet.cover(torch.minimum(line, hair)), traits.hair_colour, sheet.strands)


def light(sheet: Sheet, pose: Pose) -> None:
    """Lambert's law on head and hair, as if they were one egg."""
    conditions = pose.conditions
    towards = 1 - 0.6 * (conditions.light_x * conditions.light_x + conditions.light_y * conditions.light_y)
    facing = sheet.face.clamp(0, 1)
    facing = facing.mul_(2 - facing).mul_(towards)  # as the depth of an egg, which has a root
    facing.add_(sheet.across * conditions.light_x).add_(sheet.v * conditions.light_y)
    figure = sheet.cover(torch.maximum(sheet.face, sheet.hair) * 0.45).mul_(conditions.contrast)
    sheet.scale(facing.clamp_(-0.3, 1.0).sub_(0.66).mul_(figure).add_(1))


def earrings(sheet: Sheet, pose: Pose) -> None:
    """A bead below each ear, in front of the hair."""
    radius = pose.traits.earring_size
    sheet = band(sheet, 0.20, 0.50)
    pair = pose.pair(sheet, spacing=pose.traits.face_width * 1.05, v=0.36, depth=-0.12)
    mask = sheet.cover(disc(pair.across * pair.across + pair.down * pair.down, radius))
    shine = glow(ellipse(pair.across + 0.02, pair.down + 0.02, 0.5 * radius, 0.5 * radius))
    sheet.paint(mask, pose.traits.earring_colour, tone=shine.mul_(0.6).add_(0.9))


def hat(sheet: Sheet, pose: Pose) -> None:
    """A dome and a brim, which may be as narrow as a beanie's fold."""
    traits, conditions = pose.traits, pose.conditions
    sheet = band(sheet, -1.40, -0.18)
    width = traits.face_width + 0.4 * traits.hair_side + 0.05
    above = sheet.v - pose.level(-0.46, 0.35)
    dome = torch.minimum(ellipse(sheet.u, above, width, traits.hat_height) * 0.4, -above)
    lit = (0.25 + conditions.contrast) * conditions.light_x * sheet.u
    sheet.paint(sheet.cover(dome), traits.hat_colour, tone=0.90 + 0.14 * wave(sheet.u * 2.2) + 0.45 * lit)
    brim = ellipse(sheet.u, above + 0.10 * (sheet.u * (1 / width)).square_(), width * traits.hat_brim, 0.15)
    sheet.paint(sheet.cover(brim * 0.075), traits.hat_band_colour, tone=1 + 0.35 * lit)


def exposure(sheet: Sheet, pose: Pose) -> None:
    """Brightness and colour temperature of the whole picture."""
    bright, warmth = pose.conditions.exposure, pose.conditions.warmth
    sheet.pixels.mul_(torch.cat([bright * (1 + warmth), bright, bright * (1 - warmth)], dim=1))


Layer = Callable[[Sheet, Pose], None]
# From back to front, each with who shows it (None: everyone).
LAYERS: tuple[tuple[Layer, Callable[[Pose], Tensor] | None], ...] = (
    (background, None),
    (clothes, None),
    (hair_behind, None),
    (bun, lambda pose: pose.traits.bun * (1 - pose.hat)),
    (neck, None),
    (ears, None),
    (head, None),
    (features.blush, None),
    (features.eyes, None),
    (features.brows, None),
    (features.nose, None),
    (features.beard, lambda pose: pose.traits.beard),
    (features.mouth, None),
    (features.moustache, lambda pose: pose.traits.moustache),
    (hair_in_front, None),
    (light, None),
    (earrings, lambda pose: pose.traits.earrings),
    (features.eyeglasses, lambda pose: pose.traits.has_eyeglasses),
    (hat, lambda pose: pose.hat),
    (exposure, None),
)
