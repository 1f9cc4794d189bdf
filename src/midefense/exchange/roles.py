"""What a state dict seems to be, by the names and shapes of its tensors: so that a file in the wrong place is named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

IMAGE_CHANNELS = (1, 3)
SPECTRAL_NORM = "weight_orig"  # what torch's older spectral norm, used by discriminators alone, calls a weight


def looks_like(state: Mapping[str, Tensor]) -> str:
    """`classifier`, `generator`, `critic` (of a GAN, with one score or many), or `unknown`.

    The weights of a network stand in its order. A generator begins with latents and ends with the channels of an image;
    a critic begins with an image and ends with one score, or compares the images of a batch, or has spectral norms; a
    classifier ends with a linear layer of several classes.
    """
    if {"mapping", "synthesis"} <= {part for name in state for part in name.split(".")}:
        return "generator"
    weights = [tensor for tensor in state.values() if tensor.dim() in (2, 4)]
    if not weights:
        return "unknown"
    first, last = weights[0], weights[-1]
    sees_images = first.dim() == 4 and first.shape[1] in IMAGE_CHANNELS
    paints = last.dim() == 4 and (last.shape[0] in IMAGE_CHANNELS or last.shape[1] in IMAGE_CHANNELS)
    if paints and not sees_images:
        return "generator"
    compares = any(tensor.dim() == 3 and len(tensor) > 1 for tensor in state.values())
    if sees_images and (len(last) == 1 or compares or any(name.endswith(SPECTRAL_NORM) for name in state)):
        return "critic"
    return "classifier" if last.dim() == 2 and len(last) > 1 else "unknown"
