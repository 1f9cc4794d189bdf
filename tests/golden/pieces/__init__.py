"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import bido, gmi, ked, losses, networks, plg, stylegan2

__all__ = ["bido", "gmi", "ked", "losses", "networks", "plg", "stylegan2"]
