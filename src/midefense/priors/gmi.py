"""GMI's prior: a WGAN-GP trained once on public images, independent of any target (Zhang et al., CVPR 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from midefense.precision import require_precision
from midefense.priors.base import Prior
from midefense.priors.gan import adversarial_fit
from midefense.priors.nets.gmi import Critic, Generator
from midefense.ranges import Batch, Betas, Count, NotNegative, Positive, Width
from midefense.types import Images, Progress, Refused


class GmiGan(Prior):
    """Latents [B, latent_size], normal when sampled; images through a sigmoid, so in [0, 1].

    Args:
        latent_size: 100 in the paper.
        width: channels of the finest stage; 64 in the paper, fewer for a small machine.
        epochs: passes of the critic over the public images (120 in the benchmark, 280 in the paper, of 30,000 images).
        steps: critic steps, instead of epochs; None counts them by epochs.
        critic_steps: critic steps to one generator step.
        penalty: weight of the gradient penalty.
        unit: steps between two saved states.
        precision: of the networks while they learn: see `midefense.precision`.
        compile: the generator goes through torch.compile while it learns.

    Class attributes: what its YAML is `called`, the `sizes` of images in pixels, and the side at which the maps of the
    generator `start`.
    """

    later = {"precision": "32-true", "compile": False}
    learns = True
    unhashed = ("unit",)
    offers = frozenset({"sample", "realism", "normal", "critic"})
    sizes: ClassVar[tuple[int, ...]] = (32, 64)
    start = 4
    called = "gmi_gan"

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        latent_size: Width = 100,
        width: Width = 64,
        epochs: Count = 120,
        steps: Count | None = None,
        batch_size: Batch = 64,
        critic_steps: Count = 5,
        learning_rate: Positive = 2e-4,
        betas: Betas = (0.5, 0.999),
        penalty: NotNegative = 10.0,
        unit: Count = 100,
        precision: str = "32-true",
        compile: bool = False,
    ):
        super().__init__(channels=channels, size=size)
        if size not in self.sizes:
            raise Refused(self._other_size(size))
        self.latent_size, self.epochs, self.steps = latent_size, epochs, steps
        self.training_options = {
            "latent_size": latent_size,
            "batch_size": batch_size,
            "critic_steps": critic_steps,
            "learning_rate": learning_rate,
            "betas": tuple(betas),
            "penalty": penalty,
            "unit": unit,
            "precision": require_precision("prior.precision", precision),
            "compile": compile,
        }
        self.width = width
        shape = {"channels": channels, "size": size, "width": width}
        self.generator = Generator(latent_size=latent_size, start=self.start, **shape)
        self.critic = Critic(**shape)

    def _other_size(self, size: int) -> str:
        *some, last = map(str, self.sizes)
        *tries, final = (f"dataset.size={one}" for one in self.sizes)
        return (
            f"{self.called}: expected a size of {', '.join(some)} or {last}, got {size}; "
            f"set {', '.join(tries)} or {final}"
        )

    def new_critic(self) -> nn.Module:
        return Critic(channels=self.channels, size=self.size, width=self.width)

    def fit_steps(self, public: Images) -> int:
        """Critic steps of a whole `fit` on these images."""
        return self.steps or self.epochs * math.ceil(len(public) / self.training_options["batch_size"])

    def fit(
        self, public: Images, *, seed: int, oracle: object = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """Train generator and critic on public images; one unit of progress is `unit` critic steps."""
        self.require(public)
        steps = self.fit_steps(public)
        options = self.training_options
        return adversarial_fit(self.generator, self.critic, public, steps=steps, seed=seed, state=state, **options)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Latents [count, latent_size] ~ N(0, I)."""
        return torch.randn(count, self.latent_size, generator=rng)

    @property
    def normal_width(self) -> int:
        """The latents are normal themselves."""
        return self.latent_size

    def of_normal(self, noise: Tensor) -> Tensor:
        """The noise [..., latent_size] as it is."""
        return noise

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, size, size] in [0, 1]. In eval mode rows do not depend on each other."""
        return self.generator(latents)

    def realism(self, images: Tensor) -> Tensor:
        """The critic's score [B]."""
        return self.critic(images)
