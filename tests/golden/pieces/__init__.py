"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import (
    bido,
    c2f_mi,
    crafter,
    crafter_attackers,
    gmi,
    ked,
    lokt,
    lomma,
    losses,
    mirror,
    network_inversion,
    networks,
    plg,
    stylegan2,
    vmi,
)

__all__ = [
    "bido",
    "c2f_mi",
    "crafter",
    "crafter_attackers",
    "gmi",
    "ked",
    "lokt",
    "lomma",
    "losses",
    "mirror",
    "network_inversion",
    "networks",
    "plg",
    "stylegan2",
    "vmi",
]
