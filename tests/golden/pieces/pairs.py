"""Measures of an image against another (`crafter.npz`), through the metrics of pairs."""

from __future__ import annotations

from collections.abc import Iterator

from midefense.metrics.pairwise import feature_cosine, ssim

from .recording import Entry, Recording


def measures(recording: Recording) -> Iterator[Entry]:
    """SSIM, and what the original calls FSIM: the mean cosine, here of the flat pixels."""
    images, others = recording["x"], recording["xhat"]
    yield recording.compare("ssim_per_image", ssim(images, others))
    yield recording.compare("ssim", ssim(images, others).mean())
    yield recording.compare("ssim_close", ssim(images, recording["x_close"]).mean())
    cosine = feature_cosine(images.flatten(1), others.flatten(1)).mean()
    yield recording.compare("fsim_of_flattened_pixels", cosine)
