"""FSIM, the feature similarity index for image quality of Zhang, Zhang, Mou and Zhang (IEEE TIP 2011), of luminance.

Two images are alike where their phase congruency (Kovesi, Videre 1999: where Fourier components are in phase, as at
edges) and their gradients are; places count by the larger phase congruency. The constants are those of the authors'
code for intensities of 0 to 255. It is no identity measure: what the code of Crafter calls FSIM is `id_feature_cosine`.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES, ORIENTATIONS = 4, 4
SHORTEST = 6.0  # wavelength of the finest filters, in pixels; doubled from scale to scale
BANDWIDTH = 0.55  # of a log-Gabor filter: the deviation of its transfer function over its centre
ANGLE = math.pi / ORIENTATIONS / 1.2  # deviation of a filter over angles
NOISE = 2.0  # deviations above the mean of the noise that an energy must reach
SHRINK = 1.7  # noise adds up to less in several filters than in one
CUTOFF, SHARPNESS = 0.45, 15  # of the low-pass that takes the corners off the spectrum
T_PHASE, T_GRADIENT = 0.85, 160.0
SMALL = 1e-4
FINEST = 256  # larger images are averaged down to about so many pixels a side
LUMINANCE = (0.299, 0.587, 0.114)


def fsim(images: Tensor, others: Tensor) -> Tensor:
    """How alike images [N, C, H, W] in [0, 1], grey or RGB, are to `others` of the same shape: [N] in (0, 1], where 1
    is a copy; float64."""
    first, second = (_averaged(255 * _luminance(each.double())) for each in (images, others))
    phase = phase_congruency(first), phase_congruency(second)
    gradient = _gradient(first), _gradient(second)
    weight = torch.maximum(*phase)
    similarity = _alike(*phase, T_PHASE) * _alike(*gradient, T_GRADIENT)
    tiny = torch.finfo(torch.float64).tiny  # two flat images have no phase anywhere, and are alike
    return ((similarity * weight).sum((1, 2)) + tiny) / (weight.sum((1, 2)) + tiny)


def phase_congruency(luminance: Tensor) -> Tensor:
    """In [0, 1], of each pixel of [N, H, W]: the energy of all filters together over what they have apart."""
    spectrum = torch.fft.fft2(luminance)
    energy, amplitude = torch.zeros_like(luminance), torch.zeros_like(luminance)
    for filters in _filters(*luminance.shape[-2:]).to(luminance.device):
        answers = torch.fft.ifft2(spectrum[:, None] * filters)  # [N, scales, H, W]
        even, odd = answers.real, answers.imag
        length = torch.sqrt(even.sum(1) ** 2 + odd.sum(1) ** 2) + SMALL
        along = torch.stack([even.sum(1) / length, odd.sum(1) / length])[:, :, None]
        agreeing = even * along[0] + odd * along[1] - (even * along[1] - odd * along[0]).abs()
        energy += (agreeing.sum(1) - _noise(answers[:, 0], filters)[:, None, None]).clamp(min=0)
        amplitude += answers.abs().sum(1)
    return energy / (amplitude + torch.finfo(torch.float64).tiny)


def _noise(finest: Tensor, filters: Tensor) -> Tensor:
    """The energy [N] that noise alone would have, judged by the answers [N, H, W] of the finest filter: Rayleigh."""
    power = finest.abs().square().flatten(1)
    middle = power.sort(1).values[:, [(power.shape[1] - 1) // 2, power.shape[1] // 2]].mean(1)
    per_filter = middle / math.log(2) / filters[0].square().sum()
    impulses = torch.fft.ifft2(filters).real * math.sqrt(filters[0].numel())
    products = torch.einsum("shw,thw->st", impulses, impulses)
    squares = products.trace()
    crossed = (products.sum() - squares) / 2
    deviation = torch.sqrt(per_filter * (squares + 2 * crossed).clamp(min=0))
    return deviation * (math.sqrt(math.pi / 2) + NOISE * math.sqrt(2 - math.pi / 2)) / SHRINK


@functools.lru_cache(maxsize=4)
def _filters(height: int, width: int) -> Tensor:
    """Log-Gabor filters over frequencies, float64 [orientations, scales, H, W], with the mean frequency first."""
    down, across = torch.meshgrid(_frequencies(height), _frequencies(width), indexing="ij")
    radius, angle = torch.sqrt(down**2 + across**2), torch.atan2(-down, across)
    low = 1 / (1 + (radius / CUTOFF) ** (2 * SHARPNESS))
    radius[0, 0] = 1.0  # its logarithm is asked for; no filter lets the mean through
    centres = [1 / (SHORTEST * 2**scale) for scale in range(SCALES)]
    radial = torch.stack([torch.exp(-(torch.log(radius / f) ** 2) / (2 * math.log(BANDWIDTH) ** 2)) for f in centres])
    radial = radial * low
    radial[:, 0, 0] = 0.0
    towards = torch.arange(ORIENTATIONS, dtype=torch.float64)[:, None, None] * math.pi / ORIENTATIONS
    apart = torch.atan2(torch.sin(angle - towards), torch.cos(angle - towards)).abs()
    return torch.exp(-(apart**2) / (2 * ANGLE**2))[:, None] * radial


def _frequencies(size: int) -> Tensor:
    """Cycles per pixel as the authors space them, the mean first."""
    odd = size % 2
    places = torch.arange(size, dtype=torch.float64) - (size - odd) / 2
    return torch.fft.ifftshift(places / (size - odd if size > 1 else 1))


def _gradient(luminance: Tensor) -> Tensor:
    """The length of Scharr's gradient of [N, H, W], with black beyond the border."""
    across = torch.tensor([[3.0, 0.0, -3.0], [10.0, 0.0, -10.0], [3.0, 0.0, -3.0]]).to(luminance) / 16
    both = F.conv2d(luminance[:, None], torch.stack([across, across.T])[:, None], padding=1)
    return both.square().sum(1).sqrt()


def _alike(first: Tensor, second: Tensor, constant: float) -> Tensor:
    return (2 * first * second + constant) / (first**2 + second**2 + constant)


def _luminance(images: Tensor) -> Tensor:
    """[N, H, W] of grey or RGB images."""
    if images.shape[1] == 1:
        return images[:, 0]
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMINANCE))


def _averaged(luminance: Tensor) -> Tensor:
    """Images much larger than `FINEST`, averaged: what is seen depends on the distance from which one looks."""
    factor = max(1, round(min(luminance.shape[-2:]) / FINEST))
    return F.avg_pool2d(luminance[:, None], factor)[:, 0] if factor > 1 else luminance
