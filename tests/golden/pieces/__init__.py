"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import (
    bido,
    crafter,
    crafter_attackers,
    deep_inversion,
    gmi,
    ked,
    lomma,
    losses,
    network_inversion,
    networks,
    plg,
    secret_gen,
    stylegan2,
    vmi,
)

__all__ = [
    "bido",
    "crafter",
    "crafter_attackers",
    "deep_inversion",
    "gmi",
    "ked",
    "lomma",
    "losses",
    "network_inversion",
    "networks",
    "plg",
    "secret_gen",
    "stylegan2",
    "vmi",
]
