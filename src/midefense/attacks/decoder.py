"""Decoders: attacks that learn to turn what the target answers back into the image (inverse networks; He et al., ACSAC
2019; Dosovitskiy and Brox, CVPR 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from midefense.attacks.base import Attack
from midefense.attacks.learning import Learning, public_images
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.ranges import Count
from midefense.types import Evidence, Found, Images, Progress, Refused, to_pixels


class Decoder(Attack):
    """A network learns from pairs of what the target answers about a public image and that image, once for all targets;
    then it decodes what was observed of each target, and asks no more. What it asked is on the shared bill.

    Its images are no generator's: they are returned as pixels, under the prior of pixels, and have no latents [N, 0].

    Args:
        learning: the network, called with answers [B, ...] for images [B, C, H, W], and how it learns.
        access, budget, group: see `Attack`.
    """

    reads: tuple[str, ...] = ("features",)
    needs = ("pixels",)
    prepares = True
    steps = 1

    def __init__(self, *, learning: Learning, access: str = "features", budget: Count | None = None, group: Count = 60):
        super().__init__(access=access, budget=budget, group=group)
        self.access.require(self.reads, f"attack ({type(self).__name__})")
        self.learning = learning

    def ask(self, oracle: Oracle, images: Tensor) -> Tensor:
        """The target's answers [B, ...] of the kind that is observed of a target; here the features."""
        return getattr(oracle(images, reads=self.reads), self.reads[0])

    def loss(self, network: nn.Module, images: Tensor, answers: Tensor) -> Tensor:
        """Mean squared error of the pixels, per image [B]."""
        decoded = network(answers)
        if decoded.shape != images.shape:
            raise Refused(
                f"attack.learning.network: expected images {list(images.shape)}, those of the dataset, got "
                f"{list(decoded.shape)}; try its channels and size"
            )
        return (decoded - images).square().flatten(1).mean(1)

    def prepare(
        self, prior: Prior, oracle: Oracle, public: Images, rng: torch.Generator, state: dict[str, Tensor] | None
    ) -> Iterator[Progress]:
        """Ask about every public image, then learn."""
        return self.learning.fit(
            public_images(public, prior.device),
            lambda images: self.ask(oracle, images),
            self.loss,
            rng=rng,
            device=prior.device,
            state=state,
        )

    @torch.no_grad()
    def recover(
        self, state: Mapping[str, Tensor], prior: Prior, oracle: Oracle, evidence: Evidence, rng: torch.Generator
    ) -> Iterator[Found]:
        """One image per row of the evidence, as `selected`; nothing is measured of it, so its loss is NaN."""
        if evidence.observed is None:
            raise Refused(
                f"{type(self).__name__} decodes what was observed of each target, got evidence of classes alone; "
                "try evidence of released features"
            )
        network = self.learning.learned(state, prior.device)
        pieces = evidence.observed.split(self.learning.batch_size)
        pixels = torch.cat([to_pixels(network(piece.to(prior.device))) for piece in pieces])
        nothing = torch.full((len(pixels),), torch.nan)
        yield Found(
            pixels.new_zeros(len(pixels), 0).float(), nothing, torch.arange(len(pixels)), "selected", pixels=pixels
        )
