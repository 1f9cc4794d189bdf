"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import (
    bido,
    crafter,
    crafter_attackers,
    gmi,
    inversion,
    ked,
    lomma,
    losses,
    network_inversion,
    networks,
    plg,
    stylegan2,
    vmi,
)

__all__ = [
    "bido",
    "crafter",
    "crafter_attackers",
    "gmi",
    "inversion",
    "ked",
    "lomma",
    "losses",
    "network_inversion",
    "networks",
    "plg",
    "stylegan2",
    "vmi",
]
