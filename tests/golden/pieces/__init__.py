"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import bido, gmi, lomma, losses, networks, stylegan2, vmi

__all__ = ["bido", "gmi", "lomma", "losses", "networks", "stylegan2", "vmi"]
