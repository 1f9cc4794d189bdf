"""The layers on a face: eyes, brows, nose, mouth, facial hair, eyeglasses. Each paints one band of the sheet."""

from __future__ import annotations

import torch
from torch import Tensor

from midefense.datasets.synthetic_faces.pose import Pose, band
from midefense.datasets.synthetic_faces.shapes import Sheet, disc, ellipse, glow, wave

EYES, NOSE, MOUTH = 0.62, 0.92, 0.70  # depths


def blush(sheet: Sheet, pose: Pose) -> None:
    """Cheeks, redder than the skin."""
    sheet = band(sheet, 0.10, 0.65)
    pair = pose.pair(sheet, spacing=pose.traits.face_width * 0.58, v=0.36, depth=0.55)
    colour = pose.traits.skin * torch.tensor([1.0, 0.62, 0.58]).view(1, 3, 1, 1)
    sheet.paint(pose.traits.blush * glow(ellipse(pair.across, pair.down, 0.24, 0.19)), colour)


def eyes(sheet: Sheet, pose: Pose) -> None:
    """Shaded sockets, almonds, irises with a light in them, lashes."""
    traits, conditions = pose.traits, pose.conditions
    sheet = band(sheet, -0.32, 0.38)
    pair = pose.pair(sheet, spacing=traits.eye_spacing, v=traits.eye_level, depth=EYES)
    down = pair.down + traits.eye_slant * pair.across
    share = pair.across * (1 / traits.eye_width)
    bow = 1 - share * share
    lid = (traits.eye_height * conditions.eye_openness * bow).add_(down)  # below the upper lid
    ends = (1.12 - share.abs()).mul_(traits.eye_width)

    socket = glow(ellipse(pair.across, down + 0.03, traits.eye_width * 1.7, traits.eye_height * 2.6))
    crease = sheet.cover(torch.minimum(0.022 - (lid + 0.055).abs_(), ends))
    sheet.scale((1 - 0.22 * socket).mul_(1 - 0.28 * crease))
    almond = sheet.cover(torch.minimum(lid, (0.62 * traits.eye_height * bow).sub_(down)))
    sheet.paint(almond, 0.97, tone=(lid * 9).clamp_(0, 1).mul_(0.14).add_(0.86))
    _irises(sheet, pose, right=pair.side * pair.across, down=down, almond=almond)
    thickness = traits.lashes * (0.75 + 0.35 * share)
    lashes = torch.minimum(thickness - (lid - 0.3 * thickness).abs_(), ends)
    sheet.paint(sheet.cover(lashes), traits.hair_colour * 0.25)


def _irises(sheet: Sheet, pose: Pose, *, right: Tensor, down: Tensor, almond: Tensor) -> None:
    """A dark ring, the colour, the pupil, and a spot of light to the upper left."""
    radius = pose.traits.iris_size
    right, down = right - pose.conditions.gaze_x, down - pose.conditions.gaze_y + 0.012
    squared = right * right + down * down
    ring, inner, pupil = (sheet.cover(disc(squared, radius * share)) for share in (1.0, 0.84, 0.46))
    sheet.paint(ring.mul_(almond), pose.traits.eye_colour, tone=(0.45 + 0.70 * inner).mul_(1 - 0.94 * pupil))
    spot = right.add_(0.36 * radius).square_() + down.add_(0.40 * radius).square_()
    sheet.paint(sheet.cover(disc(spot, radius * 0.34)).mul_(almond), 1.0)


def brows(sheet: Sheet, pose: Pose) -> None:
    """Arches that thin outwards."""
    traits = pose.traits
    sheet = band(sheet, -0.52, -0.02)
    level = traits.eye_level - traits.brow_gap - pose.conditions.brow_raise
    pair = pose.pair(sheet, spacing=traits.eye_spacing + 0.015, v=level, depth=0.66)
    share = pair.across * (1 / traits.brow_width)
    line = (traits.brow_slant * pair.across).add_(pair.down).add_(traits.brow_arch * (0.6 - share * share))
    thickness = traits.brow_thickness * (0.8 + 0.7 * traits.ruggedness) * (1 - 0.45 * share)
    inside = torch.minimum(thickness - line.abs_(), (1 - share.abs()) * traits.brow_width)
    sheet.paint(sheet.cover(inside) * 0.92, traits.hair_colour * 0.65)


def nose(sheet: Sheet, pose: Pose) -> None:
    """No outline: a ridge shaded away from the light, a bright tip, the shadow below it, nostrils."""
    traits, light = pose.traits, pose.conditions.light_x
    sheet = band(sheet, -0.08, 0.72)
    length, width = traits.nose_length, traits.nose_width
    tip = sheet.v - pose.level(traits.eye_level + length, NOSE)
    along = (tip * (1 / length)).add_(1).clamp_(0, 1)  # 0 between the eyes, 1 at the tip
    offset = sheet.u - pose.middle(EYES) - along.mul_(pose.middle(NOSE - EYES))
    away = 0.06 * (light + light.sign())
    ridge = glow(ellipse(offset + away, tip + 0.5 * length, 0.7 * width, 0.75 * length))
    below = glow(ellipse(offset, tip - 0.055, 1.25 * width, 0.10))
    shine = glow(ellipse(offset - 0.3 * away, tip + 0.04, 0.75 * width, 0.12))
    nostrils = sheet.cover(ellipse(offset.abs_() - 0.52 * width, tip - 0.045, 0.34 * width, 0.026) * 0.013)
    shade = (1 - 0.30 * traits.nose_bridge * ridge).mul_(1 - 0.42 * below).mul_(1 - 0.55 * nostrils)
    sheet.scale(shade.add_(shine.mul_(0.16)))


def mouth(sheet: Sheet, pose: Pose) -> None:
    """Lips about a line that a smile bends up at its ends; an open mouth shows teeth."""
    traits, conditions = pose.traits, pose.conditions
    sheet = band(sheet, 0.34, 1.05)
    smile, thickness = conditions.smile, traits.lip_thickness
    width = traits.mouth_width * (1 + 0.22 * smile)
    share = (sheet.u - pose.middle(MOUTH)) * (1 / width)
    square = share * share
    bow = 1 - square
    line = sheet.v - pose.level(traits.mouth_level, MOUTH) + smile * (0.20 * square - 0.06)
    gap = (conditions.mouth_open * (0.15 + 0.05 * smile)) * bow
    ends = (1 - share.abs()).mul_(width)
    below = line - gap

    sheet.scale(1 - 0.25 * glow(ellipse(share, below - 2.3 * thickness - 0.02, 0.75, 0.07)))
    lips = sheet.cover(torch.minimum((0.85 * thickness * bow).add_(line), (1.15 * thickness * bow).sub_(below)))
    closed = sheet.cover(torch.minimum(0.014 + 0.005 * bow - line.abs(), ends)) * 0.75
    inner = sheet.cover(torch.minimum(torch.minimum(line, -below), ends)) * conditions.has_open_mouth
    shine = glow(ellipse(share, below - 0.55 * thickness, 0.45, 0.55 * thickness))
    colour = traits.skin + traits.lip_strength * (traits.lip_colour * (0.45 + 0.55 * traits.skin) - traits.skin)
    tone = shine.mul_(0.30).add_(1).mul_(1 - 0.70 * closed).mul_(1 - 0.72 * inner)
    sheet.paint(torch.maximum(lips, closed), colour, tone)
    sheet.paint(sheet.cover(0.48 * gap - line).mul_(inner), 0.95)


def beard(sheet: Sheet, pose: Pose) -> None:
    """From ear to ear along the jaw and below the chin; the lips stay free."""
    traits = pose.traits
    sheet = band(sheet, -0.12, 1.26)
    share = (sheet.u - pose.middle(0.15)) * (1 / (traits.face_width * (1.0 + 0.3 * traits.beard_length)))
    square = share * share
    down = (sheet.v * (1 / (1.0 + traits.beard_length))).square_()
    jaw = 1 - square * (1 + 0.9 * traits.jaw * down) - down * (1 - traits.squareness * (1 - down))
    edge = sheet.v - pose.level(0.64, 0.3) + square * (0.24 + 0.52 * square)
    offset = sheet.u - pose.middle(MOUTH)
    lips = ellipse(offset, sheet.v - pose.level(traits.mouth_level, MOUTH), 0.36, 0.22)
    free = torch.minimum(lips * 0.12, sheet.face * 0.45)
    mask = sheet.cover(torch.minimum(torch.minimum(jaw * 0.45, edge), -free))
    strands = 0.62 + 0.22 * wave((1 + 0.25 * sheet.v) * offset * (1.4 * traits.hair_streaks))
    sheet.paint(mask * 0.94, traits.hair_colour, strands)


def moustache(sheet: Sheet, pose: Pose) -> None:
    """Between nose and mouth, parted in the middle; a smile lifts its ends."""
    traits = pose.traits
    sheet = band(sheet, 0.28, 0.85)
    share = (sheet.u - pose.middle(0.78)) * (1 / (traits.mouth_width * 1.18))
    square = share * share
    line = sheet.v - pose.level(traits.mouth_level - 0.13, 0.78) - (0.10 - 0.10 * pose.conditions.smile) * square
    thickness = traits.moustache_size * (1 - square) * (0.75 + 0.25 * (square * 9).clamp_(0, 1))
    mask = sheet.cover(torch.minimum(thickness - line.abs_(), (1 - share.abs()) * 0.3))
    sheet.paint(mask * 0.95, traits.hair_colour * 0.42)


def eyeglasses(sheet: Sheet, pose: Pose) -> None:
    """Two rims between round and square, bridge and temples, and a glint on the glass."""
    traits = pose.traits
    sheet = band(sheet, -0.40, 0.48)
    size, square = traits.frame_size, traits.frame_squareness
    pair = pose.pair(sheet, spacing=traits.eye_spacing + 0.01, v=traits.eye_level + 0.015, depth=0.70)
    across, down = (pair.across * (1 / size)).square_(), (pair.down * (1 / (0.84 * size))).square_()
    power = across + down + square * (across * across + down * down - across - down)
    inside = (1 - power) * (size / (2 + 2 * square))
    bar = 0.9 * traits.frame_thickness - (pair.down + 0.05).abs_()
    beside = torch.minimum(pair.across.abs_() - 0.96 * size, 0.97 * traits.face_width - sheet.u.abs())
    rims = torch.maximum(traits.frame_thickness - inside.abs(), torch.minimum(bar, beside))
    sheet.paint(sheet.cover(inside) * (0.22 * wave(0.9 * sheet.u + 0.6 * sheet.v + 0.2)), 1.0)
    sheet.paint(sheet.cover(rims), traits.frame_colour)
