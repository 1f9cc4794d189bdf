"""Distributions that a variational attack learns, one per target and layer, all at once: every parameter has a leading
dimension for them, so that a step for many targets is a handful of batched products (VMI; Wang et al., NeurIPS 2021).

A miner starts near N(0, I), which its divergence is measured to. Noise is handed in, so that it says what was drawn:
tensors [G, B, ...] for G distributions, drawn on the CPU.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense.attacks.part import Part
from midefense.ranges import Count, Depth, Range, Width
from midefense.types import Refused

Noise = tuple[Tensor, ...]
WEIGHT_STD = 0.05  # of the two hidden layers of a coupling (the authors' code)
GROWTH = 3.0  # scales of layers that begin at zero are exp(3 logs)


class Miner(nn.Module):
    """`targets` times `layers` distributions on R^width."""

    def __init__(self, *, targets: int, layers: int, width: int):
        super().__init__()
        self.targets, self.layers, self.width = targets, layers, width

    @property
    def count(self) -> int:
        """How many distributions; that of layer l of target t is number t * layers + l."""
        return self.targets * self.layers

    def noise(self, draws: int, rng: torch.Generator, shared: bool) -> Noise:
        """Noise for `draws` samples of every distribution; where it is `shared`, the layers of a target take their
        first noise from one another."""
        raise NotImplementedError

    def sample(self, noise: Noise) -> Tensor:
        """Samples [G, B, width]."""
        raise NotImplementedError

    def divergence(self, draws: int, rng: torch.Generator) -> Tensor:
        """KL(q || N(0, I)) of every distribution [G], estimated from samples of its own."""
        raise NotImplementedError

    def first_noise(self, draws: int, width: int, rng: torch.Generator, shared: bool) -> Tensor:
        """Normal noise [G, draws, width]."""
        layers = 1 if shared else self.layers
        drawn = torch.randn(self.targets, layers, draws, width, generator=rng)
        return drawn.expand(-1, self.layers, -1, -1).flatten(0, 1)


class Family(Part):
    """A kind of distribution, with its hyperparameters."""

    def check_width(self, width: int) -> None:
        """Refuse latents of a width it cannot be a distribution of."""

    def miner(self, targets: int, layers: int, width: int, rng: torch.Generator) -> Miner:
        """Fresh distributions, on the CPU in float32."""
        raise NotImplementedError


class Gaussian(Family):
    """A normal distribution with a full matrix, z = m + L e, from m = 0 and L = I.

    Args:
        draws: samples the divergence is estimated from (1,000 in the authors' code); None is its closed form.
    """

    def __init__(self, *, draws: Count | None = 1000):
        self.draws = draws

    def miner(self, targets: int, layers: int, width: int, rng: torch.Generator) -> Miner:
        """As `Family`; nothing is drawn."""
        return GaussianMiner(targets=targets, layers=layers, width=width, draws=self.draws)


class GaussianMiner(Miner):
    """See `Gaussian`. `mean` [G, 1, d] and `factor` [G, d, d]."""

    def __init__(self, *, targets: int, layers: int, width: int, draws: int | None = None):
        super().__init__(targets=targets, layers=layers, width=width)
        self.draws = draws
        self.mean = nn.Parameter(torch.zeros(self.count, 1, width))
        self.factor = nn.Parameter(torch.eye(width).repeat(self.count, 1, 1))

    def noise(self, draws: int, rng: torch.Generator, shared: bool) -> Noise:
        return (self.first_noise(draws, self.width, rng, shared),)

    def sample(self, noise: Noise) -> Tensor:
        return self.mean + noise[0].to(self.mean) @ self.factor.mT

    def divergence(self, draws: int, rng: torch.Generator) -> Tensor:
        """-1/2 logdet(L L') + 1/2 (E ||z||^2 - d); of the last expectation alone there may be an estimate."""
        if self.draws is None:
            norms = self.factor.square().sum((1, 2)) + self.mean.square().sum((1, 2))
        else:
            norms = self.sample(self.noise(self.draws, rng, shared=False)).square().sum(2).mean(1)
        return (norms - self.width) / 2 - torch.linalg.slogdet(self.factor).logabsdet


class Glow(Family):
    """A normalising flow of additive couplings (Glow: Kingma, Dhariwal, NeurIPS 2018) on vectors, as VMI uses it.

    Args:
        levels: after each but the last, half of what is left becomes a conditional normal.
        steps: couplings per level.
        hidden: width of a coupling's two hidden layers.
        warm_up: draws of N(0, I) from which the scales are set, so that a flow begins near N(0, I).
    """

    def __init__(
        self, *, levels: Depth = 3, steps: Depth = 10, hidden: Width = 100, warm_up: Annotated[int, Range(2)] = 100
    ):
        self.levels, self.steps, self.hidden, self.warm_up = levels, steps, hidden, warm_up

    def check_width(self, width: int) -> None:
        """Every level needs two numbers or more to couple."""
        if width < 2**self.levels:
            raise Refused(
                f"attack.search.family.levels: expected at most {int(math.log2(max(width, 2)))} for latents of "
                f"{width} numbers, got {self.levels}; try attack/search/family=gaussian"
            )

    def miner(self, targets: int, layers: int, width: int, rng: torch.Generator) -> Miner:
        """As `Family`, its scales set."""
        flow = Flow(
            targets=targets, layers=layers, width=width, levels=self.levels, steps=self.steps, hidden=self.hidden
        )
        flow.draw(rng)
        flow.settle(torch.randn(flow.count, self.warm_up, width, generator=rng))
        return flow


class Flow(Miner):
    """See `Glow`. Its state has everything that samples depend on, the permutations too. `parts` are in the order of
    the density's direction, from z to noise."""

    def __init__(self, *, targets: int, layers: int, width: int, levels: int, steps: int, hidden: int):
        super().__init__(targets=targets, layers=layers, width=width)
        parts: list[Coupling | Split] = []
        left = width
        for level in range(levels):
            parts += [Coupling(self.count, left, hidden) for _ in range(steps)]
            if level + 1 < levels:
                parts.append(Split(self.count, left))
                left //= 2
        self.parts, self.last_width = nn.ModuleList(parts), left

    def draw(self, rng: torch.Generator) -> None:
        """Draw permutations and the weights that do not begin at zero."""
        for part in self.parts:
            part.draw(rng)

    @torch.no_grad()
    def settle(self, samples: Tensor) -> None:
        """Set every norm's bias and scale so that what it gives of `samples` [G, B, width] has mean 0 and
        deviation 1."""
        for part in self.parts:
            samples = part.settle(samples)

    def noise(self, draws: int, rng: torch.Generator, shared: bool) -> Noise:
        """For the innermost numbers, then for what each split gave up, the deepest first."""
        splits = [part for part in reversed(self.parts) if isinstance(part, Split)]
        inner = self.first_noise(draws, self.last_width, rng, shared)
        return (inner, *(torch.randn(self.count, draws, split.given_up, generator=rng) for split in splits))

    def sample(self, noise: Noise) -> Tensor:
        return self.sample_with_density(noise)[0]

    def sample_with_density(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Samples [G, B, width] and log q of each [G, B]. The density is that of the noise on the way, the same
        function of noise and parameters as if the sample were taken back through the flow, at half the cost."""
        inner, *others = (each.to(self.dtype) for each in noise)
        density, left = standard_density(inner), iter(others)
        for part in reversed(self.parts):
            inner, change = part.out(inner, left)
            density = density + change
        return inner, density

    def density(self, samples: Tensor) -> tuple[Tensor, Noise]:
        """log q [G, B] of samples [G, B, width], and the noise that they come from."""
        density, noise = 0, []
        for part in self.parts:
            samples, change, given = part.back(samples)
            density = density + change
            noise += given
        return density + standard_density(samples), (samples, *reversed(noise))

    def divergence(self, draws: int, rng: torch.Generator) -> Tensor:
        """E[log q - log N], heavy-tailed."""
        samples, density = self.sample_with_density(self.noise(draws, rng, shared=False))
        return (density - standard_density(samples)).mean(1)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class Norm(nn.Module):
    """(x + bias) exp(logs), per number."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(count, 1, width))
        self.logs = nn.Parameter(torch.zeros(count, 1, width))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs + self.bias) * self.logs.exp()

    def out(self, outputs: Tensor) -> Tensor:
        """The inputs of outputs."""
        return outputs * (-self.logs).exp() - self.bias

    def settle(self, inputs: Tensor) -> Tensor:
        self.bias.copy_(-inputs.mean(1, keepdim=True))
        self.logs.copy_(-(inputs.std(1, keepdim=True, unbiased=False) + 1e-6).log())
        return self(inputs)


class GrowingLinear(nn.Module):
    """(x W + b) exp(3 logs), all of which begin at zero."""

    def __init__(self, count: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(count, 1, outputs))
        self.logs = nn.Parameter(torch.zeros(count, 1, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, inputs, self.weight) * (GROWTH * self.logs).exp()


class Coupling(nn.Module):
    """One step of the flow: norm, permutation, and the second half moved by a network of the first. The original's
    convolutions over maps of one pixel are linear layers here: only their centre counts."""

    def __init__(self, count: int, width: int, hidden: int):
        super().__init__()
        self.half = width // 2
        self.norm = Norm(count, width)
        self.register_buffer("order", torch.arange(width).repeat(count, 1))
        self.first = nn.Parameter(torch.zeros(count, self.half, hidden))
        self.first_norm = Norm(count, hidden)
        self.second = nn.Parameter(torch.zeros(count, hidden, hidden))
        self.second_norm = Norm(count, hidden)
        self.last = GrowingLinear(count, hidden, width - self.half)

    @torch.no_grad()
    def draw(self, rng: torch.Generator) -> None:
        for weight in (self.first, self.second):
            weight.copy_(torch.randn(weight.shape, generator=rng) * WEIGHT_STD)
        self.order.copy_(torch.rand(self.order.shape, generator=rng).argsort(1))

    def shift(self, half: Tensor) -> Tensor:
        hidden = F.elu(self.first_norm(half @ self.first))
        return self.last(F.elu(self.second_norm(hidden @ self.second)))

    def back(self, samples: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Towards the noise: what is left, the change of log q [G, 1], and the noise given up."""
        kept, moved = self._mixed(self.norm(samples))
        return torch.cat([kept, moved + self.shift(kept)], 2), self._stretch(), []

    def out(self, inner: Tensor, noise: object) -> tuple[Tensor, Tensor]:
        """Towards the sample."""
        kept, moved = inner[..., : self.half], inner[..., self.half :]
        mixed = torch.cat([kept, moved - self.shift(kept)], 2)
        order = self.order[:, None].expand_as(mixed)
        return self.norm.out(torch.zeros_like(mixed).scatter(2, order, mixed)), self._stretch()

    def settle(self, samples: Tensor) -> Tensor:
        kept, moved = self._mixed(self.norm.settle(samples))
        hidden = F.elu(self.first_norm.settle(kept @ self.first))
        hidden = F.elu(self.second_norm.settle(hidden @ self.second))
        return torch.cat([kept, moved + self.last(hidden)], 2)

    def _mixed(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        mixed = samples.gather(2, self.order[:, None].expand_as(samples))
        return mixed[..., : self.half], mixed[..., self.half :]

    def _stretch(self) -> Tensor:
        """log |det| [G, 1]: the couplings keep the volume, and norms inside them are no part of the map."""
        return self.norm.logs.sum(2)


class Split(nn.Module):
    """The second half becomes a normal given the first: mean and log-deviation are linear in it, and interleaved."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.kept, self.given_up = width // 2, width - width // 2
        self.moments = GrowingLinear(count, self.kept, 2 * self.given_up)

    def draw(self, rng: torch.Generator) -> None:
        """Nothing: it begins at zero."""

    def back(self, samples: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        kept, given = samples[..., : self.kept], samples[..., self.kept :]
        mean, logs = self._moments(kept)
        noise = (given - mean) * (-logs).exp()
        return kept, standard_density(noise) - logs.sum(2), [noise]

    def out(self, inner: Tensor, noise: object) -> tuple[Tensor, Tensor]:
        mean, logs = self._moments(inner)
        drawn = next(noise)
        return torch.cat([inner, mean + logs.exp() * drawn], 2), standard_density(drawn) - logs.sum(2)

    def settle(self, samples: Tensor) -> Tensor:
        return samples[..., : self.kept]

    def _moments(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        both = self.moments(kept)
        return both[..., 0::2], both[..., 1::2]


def standard_density(values: Tensor) -> Tensor:
    """log N(x; 0, I) of values [..., d]."""
    return -(values.square().sum(-1) + values.shape[-1] * math.log(2 * math.pi)) / 2
