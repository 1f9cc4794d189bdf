"""What the target is shown: differentiable transforms, drawn per image.

`draw(count, rng)` gives one row of `columns` numbers per image (for the whole group, before it is cut to fit memory);
calling the view applies the rows to images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense import rectangles, resampling
from midefense.attacks.part import Part
from midefense.priors.augmentation import Augmentation
from midefense.ranges import Colour, Count, NotNegative, Ratios, Share, Shares, Whole
from midefense.types import Refused, Setting, refuse_unknown

FITS = ("clamp", "redraw")
TRIES = 10  # as in torchvision


class RandomResizedCrop(Part):
    """Crop a random part, scale it back to full size (bilinear), and maybe mirror it.

    PPA's search views (scale .9 to 1) and selection views (scale .5 to .9, ratio .8 to 1.2, flip .5).

    Args:
        scale: least and largest share of the area.
        ratio: least and largest width divided by height, drawn log-uniformly.
        flip: probability of a mirror image.
        shared: one draw for all images of a call, as torchvision did in the original.
        fit: what becomes of a crop that is wider or taller than the image: `clamp` cuts it to the image, which keeps
            large crops; `redraw` draws another, up to ten times, and then takes the largest in the middle, as
            torchvision did in the original (except that edges are not rounded to whole pixels). PPA's selection views
            show .70 of an image on average if clamped, .69 if redrawn.
    """

    columns = 4
    later = {"fit": "clamp"}

    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (1.0, 1.0),
        flip: Share = 0.0,
        shared: bool = False,
        fit: str = "clamp",
    ):
        if fit not in FITS:
            raise refuse_unknown("views.fit", fit, FITS)
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1] and 0 <= flip <= 1):
            raise Refused(
                f"views: expected 0 < scale <= 1, 0 < ratio and flip in [0, 1], each pair in ascending order, "
                f"got scale={tuple(scale)}, ratio={tuple(ratio)}, flip={flip}"
            )
        self.scale, self.ratio, self.flip, self.shared, self.fit = tuple(scale), tuple(ratio), flip, shared, fit
        self.smallest = min(1.0, (scale[0] * min(ratio[0], 1 / ratio[1])) ** 0.5)

    def as_published(self) -> RandomResizedCrop:
        """One draw for all images, and crops that do not fit drawn again."""
        return RandomResizedCrop(scale=self.scale, ratio=self.ratio, flip=self.flip, shared=True, fit="redraw")

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Affine parameters [count, 4]: half-width, half-height, centre x, centre y, in units of the image."""
        tries = TRIES if self.fit == "redraw" else 1
        dice = torch.rand(1 if self.shared else count, 2 * tries + 3, generator=rng)
        width, height = self._sizes(dice[:, 0 : 2 * tries : 2], dice[:, 1 : 2 * tries : 2])
        across, down, mirror = dice[:, 2 * tries :].unbind(1)
        x, y = (1 - width) * (2 * across - 1), (1 - height) * (2 * down - 1)
        mirrored = torch.where(mirror < self.flip, -width, width)
        return torch.stack([mirrored, height, x, y], 1).expand(count, 4)

    def _sizes(self, areas: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """Widths and heights [N], of dice [N, tries] in [0, 1): those of the first try that fits, or of the only one,
        cut to the image."""
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * areas
        low, high = torch.tensor(self.ratio).log()
        ratio = (low + (high - low) * ratios).exp()
        widths, heights = (area * ratio).sqrt(), (area / ratio).sqrt()
        if self.fit == "clamp":
            return widths[:, 0].clamp(max=1), heights[:, 0].clamp(max=1)
        fits = (widths <= 1) & (heights <= 1)
        first, found = fits.int().argmax(1, keepdim=True), fits.any(1)
        squarest = min(max(1.0, self.ratio[0]), self.ratio[1])
        largest = min(1.0, squarest), min(1.0, 1 / squarest)
        width, height = (
            torch.where(found, drawn.gather(1, first)[:, 0], most)
            for drawn, most in zip((widths, heights), largest, strict=True)
        )
        return width, height

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]; `draws` [B, 4] on the images' device."""
        return resampling.cropped(images, draws, self.smallest)


class Flip(Part):
    """A mirror image, or the image itself (MIRROR's `do_flip`).

    Args:
        p: share of images that are mirrored.
        shared: one draw for all images of a call, as in the original.
    """

    columns = 1

    def __init__(self, *, p: Share = 0.5, shared: bool = False):
        self.p, self.shared = p, shared

    def as_published(self) -> Flip:
        """One draw for all images."""
        return Flip(p=self.p, shared=True)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Dice [count, 1] in [0, 1)."""
        return torch.rand(1 if self.shared else count, 1, generator=rng).expand(count, 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]; `draws` [B, 1] on the images' device."""
        return torch.where((draws < self.p)[..., None, None], images.flip(3), images)


class RandomErase(Part):
    """Show the target what it was trained on: one rectangle per image overwritten, as by the defense of random erasing.

    The attack that knows of the defense takes the expectation over its randomness (Athalye et al., ICML 2018): a loss
    that need not be low behind the rectangle leaves to the prior what the target was never asked about.

    Args:
        p: share of images erased.
        scale: least and largest share of the area.
        ratio: least and largest height divided by width, drawn log-uniformly.
        value: colour in [0, 1], one value or one per channel; grey images get the mean of several.
    """

    columns = rectangles.COLUMNS

    def __init__(
        self,
        *,
        p: Share = 1.0,
        scale: Shares = (0.1, 0.4),
        ratio: Ratios = (1.0, 1.0),
        value: Colour = (0.7425, 0.728, 0.703),
    ):
        rectangles.require_boxes(p, scale, ratio)
        self.p, self.scale, self.ratio = p, tuple(scale), tuple(ratio)
        self.value = value if isinstance(value, int | float) else tuple(value)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Dice [count, columns] in [0, 1)."""
        return rectangles.roll(count, rng)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]; `draws` [B, columns] on the images' device."""
        height, width = images.shape[-2:]
        boxes = rectangles.random_boxes(draws, height, width, p=self.p, scale=self.scale, ratio=self.ratio)
        fill = rectangles.fill_on(self.value, images.shape[1], images.device, images.dtype)
        return torch.where(rectangles.inside(boxes, height, width), fill, images)


class PixelNoise(Part):
    """Normal noise added to every pixel and channel, each image its own in every look.

    Args:
        std: its standard deviation, of pixels in [0, 1]; values may leave [0, 1].
    """

    columns = 1

    def __init__(self, *, std: NotNegative = 0.05):
        self.std = std

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """A key of the noise [count, 1], in [0, 1)."""
        return torch.rand(count, 1, generator=rng)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]; `draws` [B, 1] on the images' device."""
        uniform = uniform_of_keys((draws[:, 0] * 2**24).long(), images[0].numel())
        normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
        return images + self.std * normal.view(images.shape).to(images.dtype)


def uniform_of_keys(keys: Tensor, count: int) -> Tensor:
    """`count` numbers between 0 and 1 of each of `keys` int64 [B] below 2**24, float64 [B, count], without waiting for
    their device: a bijection of 32 bits (Wellons' lowbias32) of the place, then of what that gives and the key."""
    places = torch.arange(count, device=keys.device)
    return (_mixed(_mixed(places)[None, :] ^ _mixed(keys + 2**24)[:, None]) + 0.5) / 2**32


def _mixed(bits: Tensor) -> Tensor:
    """Another number below 2**32 of each below 2**32, int64."""
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


class PlgAugmentation(Augmentation, Part):
    """PLG-MI's crop, jitter, mirror image and rotation (Yuan et al., AAAI 2023): see `priors.augmentation`."""


class Chain(Part):
    """Several views, each of what the one before it shows.

    Args:
        members: name to view, in order.
    """

    def __init__(self, *, members: Mapping[str, Part]):
        if not members:
            raise Refused("views.members: expected one or more views, got none; try views: null")
        self.members = dict(members)
        self.reads = tuple(dict.fromkeys(name for view in self.members.values() for name in view.reads))
        self.needs = tuple(dict.fromkeys(name for view in self.members.values() for name in view.needs))
        self.coupled = any(view.coupled for view in self.members.values())
        self.columns = sum(view.columns for view in self.members.values())

    def as_published(self) -> Chain:
        """The members as published; itself, where that changes none."""
        members = {name: view.as_published() for name, view in self.members.items()}
        return self if all(members[name] is view for name, view in self.members.items()) else Chain(members=members)

    def check(self, setting: Setting) -> None:
        """Whatever a member refuses."""
        for view in self.members.values():
            view.check(setting)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """The members' draws side by side [count, columns]."""
        return torch.cat([view.draw(count, rng) for view in self.members.values()], 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]; `draws` [B, columns] on the images' device."""
        shares = draws.split([view.columns for view in self.members.values()], 1)
        for view, share in zip(self.members.values(), shares, strict=True):
            images = view(images, share)
        return images


class Shift(Part):
    """Rolled by whole pixels, what leaves at one edge coming back at the other, and maybe mirrored (DeepInversion's
    jitter; Yin et al., CVPR 2020).

    Args:
        pixels: the furthest, down and across, either way; both are drawn uniformly.
        flip: probability of a mirror image.
        shared: one draw for all images of a call, as the authors have it.
    """

    columns = 3

    def __init__(self, *, pixels: Whole = 30, flip: Share = 0.5, shared: bool = True):
        self.pixels, self.flip, self.shared = pixels, flip, shared

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Rows [count, 3]: pixels down, pixels across, and a number in [0, 1), mirrored where it is over 1 - flip."""
        rows = 1 if self.shared else count
        moves = torch.randint(-self.pixels, self.pixels + 1, (rows, 2), generator=rng).float()
        return torch.cat([moves, torch.rand(rows, 1, generator=rng)], 1).expand(count, 3)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]; `draws` [B, 3] on the images' device."""
        down, across = (self._sources(move, side) for move, side in zip(draws.T, images.shape[2:], strict=False))
        mirrored = (draws[:, 2] > 1 - self.flip)[:, None]
        across = torch.where(mirrored, across.flip(1), across)
        rows = images.gather(2, down[:, None, :, None].expand_as(images))
        return rows.gather(3, across[:, None, None].expand_as(images))

    def _sources(self, moves: Tensor, side: int) -> Tensor:
        """Which pixel each pixel of a side is taken from, int64 [B, side]."""
        places = torch.arange(side, device=moves.device)
        return (places - moves[:, None].long()) % side


class Pool(Part):
    """Means of squares of pixels: the picture made smaller (DeepInversion's first stage shows halves). A network of
    ours that takes one size enlarges it again.

    Args:
        factor: of the sides.
    """

    columns = 0

    def __init__(self, *, factor: Count = 2):
        self.factor = factor

    def check(self, setting: Setting) -> None:
        """Refuse images that would have no pixel left."""
        if self.factor > setting.dataset.size:
            raise Refused(
                f"views.factor: expected at most {setting.dataset.size}, the side of an image, got {self.factor}; try 2"
            )

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Nothing [count, 0]."""
        return torch.empty(count, 0)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H // factor, W // factor] of images [B, C, H, W]."""
        return F.avg_pool2d(images, self.factor)


class Clip(Part):
    """Pixels cut to [0, 1] before what comes after it (PPA's `clip`, off in all its published configurations). What is
    cut gets no gradient."""

    columns = 0

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Nothing [count, 0]."""
        return torch.empty(count, 0)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Views [B, C, H, W] of images [B, C, H, W]."""
        return images.clamp(0, 1)
