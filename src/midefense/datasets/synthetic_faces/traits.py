"""Who is drawn and under which conditions: every number of a synthetic face, with the range it is drawn from.

Lengths are in head units: the face is 2 high, from the top of the skull at -1 to the chin at 1; u runs to the
right and v down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midefense.datasets.synthetic_faces.numbers import Record, around, between, chance, one_of, spread

SKINS = (
    (0.97, 0.83, 0.73),
    (0.94, 0.76, 0.63),
    (0.91, 0.71, 0.55),
    (0.80, 0.58, 0.42),
    (0.64, 0.44, 0.31),
    (0.48, 0.31, 0.22),
)
DARK_HAIRS = ((0.10, 0.09, 0.12), (0.17, 0.12, 0.10), (0.26, 0.16, 0.10))
LIGHT_HAIRS = (
    (0.60, 0.37, 0.20),
    (0.68, 0.36, 0.18),
    (0.52, 0.20, 0.16),
    (0.87, 0.66, 0.34),
    (0.96, 0.85, 0.58),
    (0.74, 0.74, 0.77),
)
IRISES = (
    (0.24, 0.14, 0.08),
    (0.42, 0.25, 0.12),
    (0.52, 0.42, 0.18),
    (0.26, 0.48, 0.28),
    (0.22, 0.46, 0.68),
    (0.42, 0.52, 0.58),
)
LIPS = ((0.80, 0.42, 0.40), (0.72, 0.30, 0.32), (0.86, 0.50, 0.48), (0.66, 0.22, 0.30))
CLOTHES = (
    (0.16, 0.22, 0.36),
    (0.62, 0.20, 0.22),
    (0.20, 0.44, 0.42),
    (0.92, 0.90, 0.86),
    (0.86, 0.62, 0.24),
    (0.44, 0.34, 0.56),
    (0.24, 0.24, 0.26),
)
HATS = (
    (0.72, 0.22, 0.22),
    (0.18, 0.30, 0.52),
    (0.90, 0.72, 0.28),
    (0.20, 0.42, 0.34),
    (0.24, 0.62, 0.62),
    (0.42, 0.26, 0.44),
    (0.86, 0.46, 0.52),
)
FRAMES = ((0.08, 0.08, 0.10), (0.36, 0.20, 0.12), (0.60, 0.12, 0.16), (0.14, 0.26, 0.44), (0.70, 0.58, 0.30))
JEWELS = ((0.98, 0.80, 0.30), (0.92, 0.94, 0.98), (0.20, 0.66, 0.62), (0.90, 0.28, 0.36))
BACKGROUNDS = (
    (0.66, 0.80, 0.88),
    (0.92, 0.84, 0.72),
    (0.76, 0.86, 0.74),
    (0.86, 0.76, 0.84),
    (0.52, 0.62, 0.70),
    (0.95, 0.90, 0.84),
    (0.82, 0.66, 0.58),
    (0.42, 0.50, 0.56),
)


@dataclass(frozen=True, eq=False)
class Traits(Record):
    """What stays with a person. `ruggedness` ties jaw, brows, lips and facial hair together, as they are in people."""

    ruggedness: Tensor = spread(0.0, 1.0)
    skin: Tensor = between(SKINS)
    face_width: Tensor = spread(0.68, 0.83)  # half of it, at the cheekbones
    cheeks: Tensor = spread(-0.08, 0.16)  # fullness below the cheekbones
    jaw: Tensor = spread(0.14, 0.34)  # how much the face narrows towards the chin
    squareness: Tensor = spread(0.0, 0.35)
    ear_size: Tensor = spread(0.8, 1.25)
    blush: Tensor = spread(0.0, 0.4)

    eye_colour: Tensor = one_of(IRISES)
    eye_width: Tensor = spread(0.150, 0.205)  # half of it
    eye_height: Tensor = spread(0.085, 0.135)  # of the upper lid above the middle
    eye_spacing: Tensor = spread(0.29, 0.37)  # from the middle of the face
    eye_level: Tensor = spread(-0.02, 0.10)
    eye_slant: Tensor = spread(-0.16, 0.22)  # outer corner up
    iris_size: Tensor = spread(0.080, 0.105)
    lashes: Tensor = spread(0.016, 0.034)

    brow_gap: Tensor = spread(0.20, 0.28)
    brow_arch: Tensor = spread(0.02, 0.11)
    brow_slant: Tensor = spread(-0.22, 0.20)
    brow_width: Tensor = spread(0.19, 0.25)  # half of it
    brow_thickness: Tensor = spread(0.022, 0.046)

    nose_length: Tensor = spread(0.30, 0.46)  # from the eyes down to the tip
    nose_width: Tensor = spread(0.09, 0.165)  # half of it
    nose_bridge: Tensor = spread(0.3, 1.0)  # how strongly the ridge shows

    mouth_level: Tensor = spread(0.58, 0.67)
    mouth_width: Tensor = spread(0.20, 0.31)  # half of it
    lip_thickness: Tensor = spread(0.035, 0.085)
    lip_colour: Tensor = between(LIPS)
    lip_strength: Tensor = spread(0.35, 0.85)

    has_dark_hair: Tensor = chance(0.5)
    dark_hair_colour: Tensor = between(DARK_HAIRS)
    light_hair_colour: Tensor = one_of(LIGHT_HAIRS)
    has_long_hair: Tensor = chance(0.42)
    hair_length: Tensor = spread(0.75, 1.35)  # where long hair ends
    hair_flare: Tensor = spread(-0.05, 0.22)  # how much wider long hair is at its end
    hair_height: Tensor = spread(0.08, 0.30)  # above the skull
    hair_side: Tensor = spread(0.05, 0.20)  # beside the face
    hair_curl: Tensor = spread(0.0, 1.0)  # bumps along the outline, from 0.5 on
    hair_streaks: Tensor = spread(3.0, 7.0)  # per head unit
    hairline: Tensor = spread(-0.74, -0.46)
    parting: Tensor = spread(-0.5, 0.5)
    fringe: Tensor = spread(0.0, 0.24)  # how steeply the hairline falls from the parting to the temples
    bun_choice: Tensor = spread(0.0, 1.0)
    bald_choice: Tensor = spread(0.0, 1.0)
    beard_choice: Tensor = spread(0.0, 1.0)
    beard_length: Tensor = spread(0.04, 0.26)  # below the chin
    moustache_choice: Tensor = spread(0.0, 1.0)
    moustache_size: Tensor = spread(0.065, 0.11)

    has_eyeglasses: Tensor = chance(0.28)
    frame_colour: Tensor = one_of(FRAMES)
    frame_size: Tensor = spread(0.235, 0.285)
    frame_squareness: Tensor = spread(0.0, 1.0)
    frame_thickness: Tensor = spread(0.022, 0.040)
    earring_choice: Tensor = spread(0.0, 1.0)
    earring_colour: Tensor = one_of(JEWELS)
    earring_size: Tensor = spread(0.075, 0.105)
    hat_choice: Tensor = spread(0.0, 1.0)
    hat_colour: Tensor = one_of(HATS)
    hat_band_colour: Tensor = one_of(HATS)
    hat_brim: Tensor = spread(1.04, 1.55)  # its half width, in half widths of the hair
    hat_height: Tensor = spread(0.68, 0.88)

    @property
    def bald(self) -> Tensor:
        return ((self.ruggedness > 0.45) & (self.bald_choice < 0.24)).float()

    @property
    def dark_hair(self) -> Tensor:
        return self.has_dark_hair * (1 - self.bald)

    @property
    def long_hair(self) -> Tensor:
        return ((self.ruggedness < 0.6) | (self.hair_curl > 0.75)).float() * self.has_long_hair * (1 - self.bald)

    @property
    def beard(self) -> Tensor:
        return ((self.ruggedness > 0.5) & (self.beard_choice < 0.5)).float()

    @property
    def moustache(self) -> Tensor:
        return ((self.ruggedness > 0.5) & (self.moustache_choice < 0.45)).float()

    @property
    def earrings(self) -> Tensor:
        return ((self.ruggedness < 0.6) & (self.earring_choice < 0.5)).float()

    @property
    def owns_hat(self) -> Tensor:
        return (self.hat_choice < 0.36).float() * (1 - self.bald)

    @property
    def bun(self) -> Tensor:
        return ((self.ruggedness < 0.5) & (self.bun_choice < 0.3)).float() * (1 - self.bald)

    @property
    def hair_colour(self) -> Tensor:
        """[N, 3, 1, 1], also of brows and beard."""
        return self.light_hair_colour + self.has_dark_hair * (self.dark_hair_colour - self.light_hair_colour)


@dataclass(frozen=True, eq=False)
class Conditions(Record):
    """What differs from picture to picture: pose, light, expression, clothes and background."""

    yaw: Tensor = around(-0.42, 0.42)  # sine of the turn; positive looks to the right of the picture
    pitch: Tensor = around(-0.18, 0.18)  # sine of the nod; positive looks down
    roll: Tensor = around(-0.16, 0.16)  # sine of the tilt
    shift_x: Tensor = around(-0.09, 0.09)  # of the head, in half pictures
    shift_y: Tensor = around(-0.06, 0.06)
    zoom: Tensor = around(0.90, 1.08)

    light_x: Tensor = spread(-0.75, 0.75)  # where the light comes from; the rest comes from the front
    light_y: Tensor = spread(-0.60, 0.10)
    contrast: Tensor = spread(0.25, 0.75)
    exposure: Tensor = around(0.84, 1.10)
    warmth: Tensor = around(-0.05, 0.08)

    is_smiling: Tensor = chance(0.5)
    smile_amount: Tensor = spread(0.0, 1.0)
    has_open_mouth: Tensor = chance(0.35)
    open_amount: Tensor = spread(0.55, 1.0)
    brow_raise: Tensor = around(-0.05, 0.06)
    eye_openness: Tensor = around(0.72, 1.12)
    gaze_x: Tensor = around(-0.055, 0.055)
    gaze_y: Tensor = around(-0.025, 0.025)

    clothes: Tensor = one_of(CLOTHES)
    neckline: Tensor = spread(0.0, 1.0)
    background: Tensor = between(BACKGROUNDS)
    background_end: Tensor = between(BACKGROUNDS)
    background_slant: Tensor = spread(-0.5, 0.5)  # direction of the gradient
    background_pattern: Tensor = spread(0.0, 1.0)  # plain, stripes or rings
    background_pitch: Tensor = spread(1.5, 4.0)
    wears_hat: Tensor = chance(0.6)

    @property
    def smile(self) -> Tensor:
        """From 0.55 to 1 in those who smile, else from -0.2 (corners down) to 0.15."""
        return self.smile_amount * (0.35 + 0.10 * self.is_smiling) + (0.75 * self.is_smiling - 0.20)

    @property
    def mouth_open(self) -> Tensor:
        """0 (closed), or 0.55 to 1."""
        return self.has_open_mouth * self.open_amount


# What is known of every picture, in this order.
ATTRIBUTES = (
    "bald",
    "beard",
    "dark_hair",
    "earrings",
    "eyeglasses",
    "hat",
    "long_hair",
    "moustache",
    "mouth_open",
    "smiling",
)


def shown_attributes(traits: Traits, conditions: Conditions) -> Tensor:
    """Which of `ATTRIBUTES` each picture shows, uint8 [N, 10]."""
    shown = {
        "bald": traits.bald,
        "beard": traits.beard,
        "dark_hair": traits.dark_hair,
        "earrings": traits.earrings,
        "eyeglasses": traits.has_eyeglasses,
        "hat": traits.owns_hat * conditions.wears_hat,
        "long_hair": traits.long_hair,
        "moustache": traits.moustache,
        "mouth_open": conditions.has_open_mouth,
        "smiling": conditions.is_smiling,
    }
    return torch.cat([shown[name].flatten(1) for name in ATTRIBUTES], dim=1).to(torch.uint8)
