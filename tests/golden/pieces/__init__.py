"""Recorded answers of the original implementations, replayed through our code. Importing it registers all pieces."""

from . import bido, crafter, gmi, ked, lomma, losses, network_inversion, networks, plg, stylegan2, vmi

__all__ = ["bido", "crafter", "gmi", "ked", "lomma", "losses", "network_inversion", "networks", "plg", "stylegan2", "vmi"]
