"""Run by tests/test_stylegan2_kernels.py in a process of its own, in which Triton's interpreter stands for a GPU: each
kernel beside what it is for in torch's operations. Tells the largest differences, for one memory format, as JSON."""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

import torch
import torch.nn.functional as F

from midefense.priors.stylegan2 import generator, kernels

kernels.ROWS, kernels.TILE = 4, 64  # an interpreted program takes milliseconds for every line


def differences(ours, theirs, leaves, weights):
    """Largest differences of the results, of the gradients and of a gradient of the gradient."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = []
    for way in (ours, theirs):
        given = way(*leaves)
        slopes = torch.autograd.grad((given * weights).sum(), wanted)
        twice = torch.autograd.grad((way(*leaves) * weights).pow(2).sum(), wanted, create_graph=True)
        bends = torch.autograd.grad(sum(slope.square().sum() for slope in twice), wanted)
        found.append([given.detach(), *slopes, *(bend / bend.abs().max().clamp(min=1) for bend in bends)])
    return [float((mine - other).abs().max()) for mine, other in zip(*found, strict=True)]


def resampling(maps):
    """By size, the filter alone and beside steps; the gradient of the gradient too."""
    side = maps.shape[2]
    ways = {
        "blur": ((1, 1, 1, 4.0, (side - 1,) * 2), lambda x: generator.blurred(x, padding=1, gain=4.0)),
        "wide blur": ((1, 1, 2, 1.0, (side + 1,) * 2), lambda x: generator.blurred(x, padding=2)),
        "down": ((1, 2, 1, 1.0, (side // 2,) * 2), lambda x: generator.blurred(x, padding=1, every=2)),
        "up": ((2, 1, 2, 4.0, (2 * side,) * 2), generator.upsampled),
    }
    found = {}
    for name, (how, usual) in ways.items():
        leaf = maps.clone(memory_format=torch.preserve_format).requires_grad_()
        results = []
        for way in (lambda x, how=how: kernels.Resampled.apply(x, *how), usual):
            given = way(leaf)
            slope = torch.autograd.grad(given.pow(3).sum(), leaf, create_graph=True)[0]
            results.append((given, slope, torch.autograd.grad(slope.square().sum(), leaf)[0]))
        pairs = [(mine.detach(), other.detach()) for mine, other in zip(*results, strict=True)]
        found[name] = [float((mine - other).abs().max() / other.abs().max()) for mine, other in pairs]
    return found


def layers(maps, noise, clamp):
    """The end of a layer, a scaling and a picture."""
    strength, bias, loudness = torch.rand(1, 3) + 0.5, torch.randn(3), torch.tensor(0.7)
    weights, own = torch.randn(1, 2, 3), torch.randn(2)
    bound = float("inf") if clamp is None else clamp

    def finished(x, strength, bias, loudness):
        extra = 0 if noise is None else noise * loudness
        return F.leaky_relu(x * strength[:, :, None, None] + bias[:, None, None] + extra, 0.2).clamp(-bound, bound)

    def picture(x, weights, bias):
        return (torch.einsum("nchw,nkc->nkhw", x, weights) + bias[:, None, None]).clamp(-bound, bound)

    leaves = [value.clone().requires_grad_() for value in (maps, strength, bias, loudness)]
    leaves[3].requires_grad_(noise is not None)
    painted = [value.clone().requires_grad_() for value in (maps, weights, own)]
    loud = (lambda loudness: None) if noise is None else (lambda loudness: loudness)
    return {
        "finished": differences(
            lambda x, s, b, v: kernels.Finished.apply(x * 1.0, s, b, noise, loud(v), 0.2, clamp),
            finished, leaves, torch.randn_like(maps),
        ),
        "frozen": differences(
            lambda x: kernels.Finished.apply(x * 1.0, strength, bias, noise, loud(loudness), 0.2, clamp),
            lambda x: finished(x, strength, bias, loudness), leaves[:1], torch.randn_like(maps),
        ),
        "scaled": differences(
            kernels.Scaled.apply, lambda x, s: x * s[:, :, None, None], leaves[:2], torch.randn_like(maps)
        ),
        "picture": differences(
            lambda x, w, b: kernels.Picture.apply(x, w, b, clamp), picture, painted,
            torch.randn(1, 2, *maps.shape[2:]),
        ),
    }  # fmt: skip


def main():
    torch.manual_seed(0)
    last = sys.argv[1] == "side by side"
    maps = torch.randn(1, 3, 4, 4).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    told = resampling(maps) | layers(maps, torch.randn(1, 1, 4, 4), 1.0)
    told |= {f"{key}, plain": value for key, value in layers(maps, None, None).items()}
    kept = kernels.resampled(maps, 1, 1, 1, 4.0, (3, 3))
    assert kernels.is_channels_last(maps) is kernels.is_channels_last(kept) is last, "the memory format is not kept"
    print(json.dumps(told))


if __name__ == "__main__":
    main()
