"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import bido, gmi, losses, networks, stylegan2

__all__ = ["bido", "gmi", "losses", "networks", "stylegan2"]
