"""A network whose weights are known sums of gradients at known images (card network_inversion.md, section 8, 1)."""

import math

import torch
from torch import nn

from midefense import seeds
from midefense.types import Trace


class Planted(nn.Module):
    """A hidden layer of ReLU whose weights are sums of the training images, without biases."""

    def __init__(self, hidden, outputs):
        super().__init__()
        self.hidden, self.outputs = nn.Parameter(hidden), nn.Parameter(outputs)

    def forward(self, images, taps=()):
        activations = torch.relu(images.flatten(1) @ self.hidden.T)
        score = activations @ self.outputs
        return Trace(torch.stack([-score / 2, score / 2], 1), activations)


def planted():
    """The network, its six images [6, 1, 4, 4], labels and the multiplier that all of them have."""
    count, inputs, together, width = 6, 16, 2, 60
    rng = seeds.generator("planted")
    centred = torch.eye(count, dtype=torch.float64) - 1 / count
    simplex = centred / centred.norm(dim=1, keepdim=True)  # products -1 / 5
    turn = torch.linalg.qr(torch.randn(inputs, count, dtype=torch.float64, generator=rng))[0]
    images = simplex @ turn.T
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    multiplier = 1 / math.sqrt(together * (1 - (together - 1) / (count - 1)))
    hidden, outputs = [], []
    for neuron in range(width):
        label = neuron % 2
        members = (labels == label).nonzero()[:, 0]
        chosen = members[torch.randperm(3, generator=rng)[:together]]
        size = 0.5 + torch.rand((), dtype=torch.float64, generator=rng)
        hidden.append(size * multiplier * images[chosen].sum(0))
        outputs.append((2 * label - 1) * size)
    return Planted(torch.stack(hidden), torch.stack(outputs)), images.view(-1, 1, 4, 4), labels, multiplier
