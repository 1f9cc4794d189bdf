"""How far the distribution of reconstructions is from that of faces drawn at random: the epsilon of Crafter.

Wang et al., NDSS 2024: a release is epsilon-PII private if the earth mover's distance between the reconstructions
G(z*) and random G(z) is at most epsilon; their critic, which the defense itself plays against, estimates it. Here a
fresh critic is trained on the reconstructions of every second identity and asked about the others, so that neither the
defense nor the attack has met it, and it has not learned its answers by heart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.metrics.base import Judged, Measured, World, over_classes
from midefense.metrics.features import batch_rows
from midefense.metrics.intervals import REAL
from midefense.metrics.pairwise import PairedMetric
from midefense.ranges import Count, Positive, Whole
from midefense.types import to_pixels

SAMPLES = 512  # of the prior at least, half of them held out


class EarthMoverGap(PairedMetric):
    """`emd_gap`: what a 1-Lipschitz critic says of held-out reconstructions, less what it says of held-out samples of
    the prior. An estimate from below of the Wasserstein-1 distance, in units of the L2 distance between images in
    [0, 1]; about 0 if reconstructions are like random faces, higher leaks more. Intervals are over held-out identities.

    The critic (two convolutions and a linear layer) is trained for `steps` batches of `batch_size` by WGAN-GP's loss
    with the given weight of the `penalty`; all draws come from `seed`.
    """

    higher_leaks = True
    generates = True

    def __init__(
        self,
        *,
        steps: Count = 300,
        batch_size: Count = 32,
        width: Count = 16,
        learning_rate: Positive = 1e-3,
        penalty: Positive = 20.0,
        seed: Whole = 0,
    ) -> None:
        super().__init__()
        self.steps, self.batch_size, self.width = steps, batch_size, width
        self.learning_rate, self.penalty, self.seed = learning_rate, penalty, seed

    def pairs(self, judged: Judged, world: World) -> dict[str, Tensor]:
        return {"pixels": to_pixels(judged.images)}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        people, owner = rows["identity"].unique(return_inverse=True)
        if world.samples is None:
            reason = "the prior generates nothing to hold reconstructions against"
            return {"emd_gap": Measured.undefined(reason, len(owner), higher_leaks=True)}
        if len(people) < 2:
            reason = "one identity only: nobody is left to ask a critic about"
            return {"emd_gap": Measured.undefined(reason, len(owner), higher_leaks=True)}
        held = owner % 2 == 1
        samples = to_pixels(world.samples(max(SAMPLES, 2 * len(owner)))).to(rows["pixels"].device)
        critic = self._trained(rows["pixels"][~held], samples[::2])
        floor = float(_asked(critic, samples[1::2]).mean())
        return {
            "emd_gap": over_classes(_asked(critic, rows["pixels"][held]) - floor, rows["identity"][held], True, REAL)
        }

    def _trained(self, recovered: Tensor, samples: Tensor) -> nn.Module:
        """A critic that has learned to tell images uint8 [N, C, H, W] from samples uint8 [S, C, H, W]."""
        key = (self.seed, "evaluate", "emd")
        with seeds.isolated(*key):
            critic = _critic(*recovered.shape[1:], self.width).to(recovered.device)
        optimizer = torch.optim.Adam(critic.parameters(), self.learning_rate, betas=(0.5, 0.9))
        rng = seeds.generator(*key, "batches")
        for _ in range(self.steps):
            real, fake = (_drawn(images, self.batch_size, rng) for images in (recovered, samples))
            share = torch.rand(self.batch_size, 1, 1, 1, generator=rng).to(real)
            loss = critic(fake).mean() - critic(real).mean()
            loss = loss + self.penalty * slope_penalty(critic, share * real + (1 - share) * fake)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return critic


def slope_penalty(critic: nn.Module, images: Tensor) -> Tensor:
    """How far the critic's slope is from 1 at `images` [N, C, H, W], squared and averaged (Gulrajani et al., NeurIPS
    2017)."""
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def _critic(channels: int, height: int, width: int, filters: int) -> nn.Module:
    left = math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
    return nn.Sequential(
        nn.Conv2d(channels, filters, 5, 2, 2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(filters, 2 * filters, 5, 2, 2),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * filters * left, 1),
        nn.Flatten(0),
    )


@torch.no_grad()
def _asked(critic: nn.Module, pixels: Tensor) -> Tensor:
    """What the critic says [N] of images uint8 [N, C, H, W]."""
    return torch.cat([critic(part.float() / 255) for part in pixels.split(batch_rows(256, pixels.shape[-1]))]).double()


def _drawn(pixels: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """So many of images uint8 [N, C, H, W], with replacement, as floats in [0, 1]."""
    return pixels[torch.randint(len(pixels), (count,), generator=rng).to(pixels.device)].float() / 255
