"""Crafter's prior: GMI's WGAN-GP with a generator that starts at 8 px instead of 4 (the authors' G1; Wang et al., NDSS
2024, card crafter.md, 4.1 and 4.2). Their other one, G2, is GMI's own: `prior=gmi_gan` with more latents."""

from __future__ import annotations

from midefense.priors.gmi import GmiGan
from midefense.ranges import Batch, Betas, Count, NotNegative, Positive, Width


class CrafterGan(GmiGan):
    """Latents [B, latent_size], normal when sampled; images of 32, 64 or 128 px through a sigmoid, so in [0, 1]. The critic
    judges an image of 128 px in 25 places and gives their mean.

    Args:
        latent_size: 500 for CelebA at 64 px, 3,000 for LFW at 128 px, 700 where features are released to train on.
        steps: of the critic (100,000 in the paper); None counts them by `epochs` over the public images.
        width, epochs, batch_size, critic_steps, learning_rate, betas, penalty, unit: see `GmiGan`.
    """

    sizes = (32, 64, 128)
    start = 8
    called = "crafter_gan"

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        latent_size: Width = 500,
        width: Width = 64,
        epochs: Count = 120,
        steps: Count | None = 100_000,
        batch_size: Batch = 64,
        critic_steps: Count = 5,
        learning_rate: Positive = 4e-4,
        betas: Betas = (0.5, 0.999),
        penalty: NotNegative = 10.0,
        unit: Count = 100,
    ):
        super().__init__(
            channels=channels,
            size=size,
            latent_size=latent_size,
            width=width,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            critic_steps=critic_steps,
            learning_rate=learning_rate,
            betas=betas,
            penalty=penalty,
            unit=unit,
        )
