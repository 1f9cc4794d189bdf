"""What priors share whose generator knows the target's classes: where a latent keeps its class, and how it is drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midefense.priors.base import Prior


class ClassConditional(Prior):
    """Latents [B, latent_size + 1]: normal numbers when sampled, and last the class of the target whose image is
    wanted, which no search moves. Images through a tanh that learns [0, 1]: values somewhat outside occur.

    A member sets `classes`, `latent_size` and `generator`, called with latents [B, latent_size] and labels int64 [B].
    """

    learns = True
    held = 1
    strays = 0.2
    classes: int
    latent_size: int
    generator: nn.Module

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Latents [count, latent_size + 1]: N(0, I), and any of the classes."""
        latents = torch.randn(count, self.latent_size, generator=rng)
        return torch.cat([latents, torch.randint(self.classes, (count, 1), generator=rng).float()], 1)

    def of_classes(self, latents: Tensor, labels: Tensor) -> Tensor:
        """The latents [B, latent_size + 1] with these classes int64 [B]."""
        return torch.cat([latents[:, :-1], labels[:, None].to(latents)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, size, size], mostly in [0, 1]. In eval mode rows do not depend on each other."""
        labels = latents[:, -1].detach().round().long().clamp(0, self.classes - 1)
        return self.generator(latents[:, :-1], labels)
