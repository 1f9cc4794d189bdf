"""Training against a decoder that learns, in turn with the network, to see the picture in what leaves the edge: adversarial
learning, and what it shares with DISCO (card crafter.md, 4.11)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense, task_loss
from midefense.ranges import Share
from midefense.types import Batch, Origin, Refused, Trace

REFERENCE_BATCH = 32  # images whose error the original takes as one norm


class AgainstDecoder(Defense):
    """A defense that trains a decoder of its own from what leaves the edge at a cut; the decoder is left behind.

    Args:
        cut: the stage behind which features are released; the attacker's is the one to name.
        decoder: a partial of the decoder, told the shape that is `observed`, and the images' channels and size.
    """

    def __init__(self, *, cut: str, decoder: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cut, self.new_decoder = cut, decoder
        self.decoder: nn.Module | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.cut,)

    def shape(self, model: Classifier) -> list[int]:
        """The shape of what leaves the edge of one image."""
        edge, device = model.split(self.cut)[0], next(model.parameters()).device
        training = model.training
        with torch.no_grad():
            shape = edge.eval()(torch.zeros(1, model.channels, model.size, model.size, device=device)).shape
        model.train(training)
        return list(shape[1:])

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Build the decoder, where training follows; the network stays as it is."""
        if origin is not Origin.LOADED:
            self.decoder = self.new_decoder(observed=self.shape(model))
        elif self.cut not in model.tap_names:
            model.split(self.cut)  # refuses it
        return model

    def against(self, released: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Two errors per image [B]: one that teaches the decoder alone, and one that moves what was `released` [B, ...]
        alone, in which the decoder stands still."""
        if self.decoder is None:
            raise Refused(f"{type(self).__name__}: expected rebuild(model) before training, got none; try loop.assemble")
        frozen = {name: tensor.detach().clone() for name, tensor in self.decoder.state_dict().items()}
        learned = self.error(images, self.decoder(released.detach().float()))
        moved = self.error(images, torch.func.functional_call(self.decoder, frozen, (released.float(),)))
        return learned, moved

    def error(self, images: Tensor, decoded: Tensor) -> Tensor:
        """How far decoded images are from `images` [B, C, H, W], per image [B]."""
        if decoded.shape != images.shape:
            raise Refused(
                f"defense.decoder: expected images {list(images.shape)}, those of the dataset, got "
                f"{list(decoded.shape)}; try its channels and size"
            )
        return self.distance(images, decoded)

    def distance(self, images: Tensor, decoded: Tensor) -> Tensor:
        """The error of images of one shape."""
        raise NotImplementedError


class AdversarialLearning(AgainstDecoder):
    """The network minimises (1 - weight) task - weight ||x - Dec(F)|| / (W H), Dec a decoder that learns to minimise the
    same error; ours takes a step with every step of the network, on its pictures, where the original alternates by
    epochs and teaches the decoder on public ones.

    The original's norm is that of a whole batch of 32. Per image it is taken sqrt(32) times, which gives the same for
    equal errors.

    Args:
        weight: lambda of the paper, 0.1, 0.5 or 0.8.
        cut, decoder: see `AgainstDecoder`.
    """

    revision = 1
    owns = ("task",)
    neutral: ClassVar[dict[str, float]] = {"weight": 0.0}

    def __init__(self, *, cut: str, decoder: Callable[..., nn.Module], weight: Share = 0.5) -> None:
        super().__init__(cut=cut, decoder=decoder)
        self.weight = weight

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        task = task_loss(trace.logits, batch.labels)
        learned, moved = self.against(trace.taps[self.cut], batch.images)
        privacy = {"privacy": -self.weight * moved} if self.weight else {}
        return {"task": (1 - self.weight) * task, "decoder": learned, **privacy}

    def distance(self, images: Tensor, decoded: Tensor) -> Tensor:
        return math.sqrt(REFERENCE_BATCH) * norm_per_pixel(images, decoded)


def norm_per_pixel(images: Tensor, decoded: Tensor) -> Tensor:
    """||x - Dec|| / (W H) per image [B]."""
    return (images - decoded).flatten(1).norm(dim=1) / (images.shape[-1] * images.shape[-2])
