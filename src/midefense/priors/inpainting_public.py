"""SecretGen's prior for a black box: completions differ by what a network of the attacker's own sees in them, and the
target is not asked (Yuan et al., ECCV 2022; card secret_gen.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midefense import seeds
from midefense.obscuring import Obscuring
from midefense.oracle import Oracle
from midefense.priors.gan import Losses, stepped
from midefense.priors.inpainting import Beforehand, InpaintingGan
from midefense.ranges import Batch, Betas, Count, NotNegative, Positive, Width
from midefense.types import Images, Progress, Refused


class PublicInpaintingGan(InpaintingGan):
    """As `InpaintingGan`, for any target: diversity is one of features by which a classifier, which learns first, tells
    the people of the public images apart. The classifier is forgotten once the prior has learned.

    Args:
        classifier: a partial of an architecture (`_partial_: true`); it is told the classes of the public images.
        lessons: updates of it, by Adam, before the prior's own.
        lesson_rate: their learning rate.
        obscuring, latent_size, ..., unit: see `InpaintingGan`.
    """

    asks = None
    later = {}

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        obscuring: Obscuring,
        classifier: Callable[..., nn.Module],
        lessons: Count = 2000,
        lesson_rate: Positive = 1e-3,
        latent_size: Width = 100,
        width: Width = 64,
        epochs: Count = 100,
        steps: Count | None = None,
        batch_size: Batch = 64,
        learning_rate: Positive = 4e-3,
        betas: Betas = (0.5, 0.999),
        penalty: NotNegative = 10.0,
        diversity_weight: NotNegative = 0.5,
        agreement_weight: NotNegative = 0.0,
        judged: str = "both",
        unit: Count = 100,
    ):
        super().__init__(
            channels=channels,
            size=size,
            obscuring=obscuring,
            latent_size=latent_size,
            width=width,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            betas=betas,
            penalty=penalty,
            diversity_weight=diversity_weight,
            agreement_weight=agreement_weight,
            judged=judged,
            unit=unit,
        )
        self.classifier, self.lessons, self.lesson_rate = classifier, lessons, lesson_rate

    def fit_steps(self, public: Images) -> int:
        """Lessons, then updates of each network, of a whole `fit` on these images."""
        return self.lessons + super().fit_steps(public)

    def fit(
        self, public: Images, *, seed: int, oracle: Oracle | None = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """The classifier learns from the public images and whom they show, then the GAN; no target is asked."""
        self.require(public)
        classes = len(public.names)
        if classes < 2:
            raise Refused(
                f"{type(self).__name__}: expected public images of two or more people to learn to tell apart, got "
                f"{classes}; try another public set, or prior=secret_gan with a target that shows its features"
            )
        with seeds.isolated(seed, "prior", "classifier"):
            network = self.classifier(classes=classes, channels=self.channels).to(self.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lesson_rate)

        def lesson(step: int) -> Losses:
            rng = seeds.generator(seed, "prior", "lesson", step)
            rows = torch.randint(len(public), (self.batch_size,), generator=rng)
            images, labels = public.floats(rows, self.device), public.labels[rows].to(self.device)
            with seeds.isolated(seed, "prior", "lesson", step):
                loss = F.cross_entropy(network(images).logits, labels)
            return {"classifier_loss": stepped(optimizer, loss)}

        own = Beforehand(self.lessons, {"classifier": network}, {"classifier": optimizer}, lesson)
        return self.learn(public, lambda images: network(images).features, seed, state, own)
