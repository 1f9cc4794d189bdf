"""The prior: sample latents, decode them to images, and optionally judge how real an image looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from midefense.resampling import resized
from midefense.types import Access, Images, Progress, Refused


class Entrance(Protocol):
    """A generator entered at one of its blocks. `features` [B, ...] are what that block takes (None at block 0), and
    `images` the picture of the blocks below; None leaves out what they would have added."""

    def draw(self, latents: Tensor, features: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        """Pictures [B, C, r, r]."""
        ...

    def lift(
        self, latents: Tensor, features: Tensor | None = None, images: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Features and picture behind this block alone: what the next one takes."""
        ...


class Prior(nn.Module):
    """What the attacker believes images look like.

    A prior is built with hyperparameters and the image shape, learns from public images in `fit` (if it learns at
    all), and afterwards only answers. Its state dict is what is stored.

    Attributes:
        asks: the access `fit` needs to the target, or None. A prior that asks belongs to one target.
        learns: whether `fit` does anything; one that does not is never stored.
        offers: what parts of an attack or a defense may ask of it: `sample`, `realism`, `critic` (one that is learned
            anew, `new_critic`), `classifier` (of the target's classes), `places` (`realism_at`), `normal` (its latents
            are a function of normal noise), and of StyleGAN2 `styles` (draws with a truncation, a row per layer) and
            `blocks` (a generator that is entered at any block); of pixels, `pixels`.
        normal_width: how many numbers of normal noise make a latent, where it offers `normal`.
        rows: of styles in a latent, where it offers `styles`.
        slope: below 0, of the leaky ReLU that latents come out of; 1 where they are as they were drawn (a P-space then
            is the space of latents; An et al., NDSS 2022).
        coupled: how real an image looks depends on the others that `realism` is shown with it.
        held: how many entries at the end of a latent no search may move; a class-conditional generator keeps the class
            there, as a number, and one that completes what was observed the row of it.
        completes: its images complete what evidence shows of private ones (`given`).
        target_mode: `eval`, or the legacy `train`, in which the originals' scripts forgot their target while a prior
            learned from it (`Oracle`).
        strays: share of the pixels that may lie outside [0, 1], where a generator only learns that range.
    """

    revision = 1
    asks: Access | None = None
    learns = False
    offers: frozenset[str] = frozenset({"sample"})
    normal_width: int
    rows: int
    slope = 1.0
    coupled = False
    held = 0
    completes = False
    target_mode = "eval"
    strays = 0.0

    def __init__(self, *, channels: int, size: int):
        super().__init__()
        self.channels, self.size = channels, size
        # a prior without weights must know its device too
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where latents and images live."""
        return self._place.device

    def fit_steps(self, public: Images) -> int:
        """How many steps `fit` takes on these images, for a progress bar."""
        return 0

    def fit(
        self, public: Images, *, seed: int, oracle: object = None, state: dict[str, Tensor] | None = None
    ) -> Iterator[Progress]:
        """Learn from public images; yields progress and can continue from a stored `state`."""
        return iter(())

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` latents [count, ...] on the CPU, drawn from `rng`."""
        raise Refused(f"{type(self).__name__} cannot sample; choose another attack.init")

    def of_normal(self, noise: Tensor) -> Tensor:
        """Latents, or rows of styles [..., width], of normal noise [..., normal_width]: of draws as `sample` has them.
        Differentiable."""
        raise Refused(f"{type(self).__name__} has no latents of normal noise; choose another attack.search")

    def of_classes(self, latents: Tensor, labels: Tensor) -> Tensor:
        """The latents [B, ...] that stand for images of the target's classes `labels` int64 [B], where a prior knows
        classes; here the same."""
        return latents

    def given(self, observed: Tensor | None) -> Prior:
        """This prior once the attacker has `observed` [N, ...] something of N targets (None: nothing); here the same.
        Raises `Refused` for what it cannot complete."""
        return self

    def of_rows(self, latents: Tensor, rows: Tensor) -> Tensor:
        """The latents [B, ...] that stand for images of the targets at `rows` int64 [B] of what was observed; here the
        same."""
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W], nominally in [0, 1], differentiable in `latents` [B, ...]; not clamped."""
        raise Refused(f"{type(self).__name__} cannot decode latents")

    def draw(self, latents: Tensor) -> Tensor:
        """Pictures as the generator makes them, of any size, before they are framed as images; here the same."""
        return self.decode(latents)

    def frame(self, drawn: Tensor, size: int | None = None) -> Tensor:
        """Images [B, C, size, size] of pictures (None: of the dataset's size): `decode(latents)` is
        `frame(draw(latents))`. Each network is shown what is framed for it, resized once, not what was framed for
        another."""
        return drawn if size is None else resized(drawn, size)

    def normalised(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], of any size, in the scale of colours that latents of pixels have; here the same."""
        return images

    def realism(self, drawn: Tensor) -> Tensor:
        """How real each picture looks [B]; higher is more real. Unbounded: log it beside the identity loss."""
        raise Refused(f"{type(self).__name__} has no critic")

    def realism_at(self, drawn: Tensor, places: Tensor) -> Tensor:
        """As `realism`, where a part of each picture is judged too, which lies at `places` [B, 2], down and across, in
        [0, 1) of where it may."""
        raise Refused(f"{type(self).__name__} has no critic of parts; try prior=inpainting_gan")

    def new_critic(self) -> nn.Module:
        """A network as this prior's critic, with weights drawn from torch's global stream: images [B, C, H, W] to
        scores [B], whose rows do not depend on each other."""
        raise Refused(f"{type(self).__name__} has no critic that can be learned anew; try prior=crafter_gan")

    def classifier(self) -> nn.Module:
        """A network that tells the target's classes apart, learned with the generator: images [B, C, H, W] to a
        `Trace`."""
        raise Refused(f"{type(self).__name__} has no classifier; try prior=lokt_gan")

    def styles(self, count: int, rng: torch.Generator, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """`count` latents of one row per layer [count, rows, width]; the first `cutoff` rows (None: all) are drawn
        towards the mean by the truncation `psi`."""
        raise Refused(f"{type(self).__name__} has no styles; choose another attack.init")

    @property
    def blocks(self) -> int:
        """At how many places the generator can be entered."""
        return 1

    def at(self, block: int) -> Entrance:
        """The generator from `block` on (0: the whole of it)."""
        raise Refused(f"{type(self).__name__} cannot be entered; choose another attack.search")

    @classmethod
    def shaped(cls, **arguments: object) -> Prior:
        """The prior of these constructor's arguments by its shapes alone: what is read of files is no weights. To see,
        before anything is trained, whether it can be."""
        return cls(**arguments)

    def specimen(self) -> Tensor:
        """An image [1, C, S, S], any one, that shows the shape of those it makes."""
        return self.decode(self.sample(1, torch.Generator().manual_seed(0)).to(self.device))

    @classmethod
    def require_files(cls, arguments: Mapping[str, object], needs: Iterable[str]) -> None:
        """Refuse files among the constructor's arguments that are missing, or lack what an attack `needs`; called
        before anything is trained."""

    @classmethod
    def require_world(cls, dataset: type) -> None:
        """Refuse a dataset (its class) whose images this prior can never make; called before anything is trained."""

    @classmethod
    def require_some(cls, images: Images) -> None:
        """Refuse to learn from no public images at all."""
        if cls.learns and not len(images):
            raise Refused(
                f"{cls.__name__}: expected public images to learn from, got none: this dataset has only private ones; "
                "try public=... (see --help), dataset.public_root=DIR of an image folder, or prior=pixels with an "
                "attack that takes it"
            )

    def require(self, images: Images) -> None:
        """Refuse public images of another shape than this prior makes, and none at all."""
        self.require_some(images)
        expected, got = (self.channels, self.size, self.size), tuple(images.pixels.shape[1:])
        if got != expected:
            raise Refused(
                f"{type(self).__name__}: expected public images [C, S, S] = {expected}, got {got}; "
                "set dataset.size, or choose another public set"
            )
