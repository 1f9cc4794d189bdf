"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import (
    bido,
    crafter,
    crafter_attackers,
    gmi,
    ked,
    lomma,
    losses,
    network_inversion,
    networks,
    plg,
    rolss,
    stylegan2,
    transfer,
    vib,
    vmi,
)

__all__ = [
    "bido",
    "crafter",
    "crafter_attackers",
    "gmi",
    "ked",
    "lomma",
    "losses",
    "network_inversion",
    "networks",
    "plg",
    "rolss",
    "stylegan2",
    "transfer",
    "vib",
    "vmi",
]
