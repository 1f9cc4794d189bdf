"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import (
    bido,
    brep_mi,
    crafter,
    crafter_attackers,
    gmi,
    ked,
    lomma,
    losses,
    mirror,
    network_inversion,
    networks,
    plg,
    rlb_mi,
    stylegan2,
    vmi,
)

__all__ = [
    "bido",
    "brep_mi",
    "crafter",
    "crafter_attackers",
    "gmi",
    "ked",
    "lomma",
    "losses",
    "mirror",
    "network_inversion",
    "networks",
    "plg",
    "rlb_mi",
    "stylegan2",
    "vmi",
]
