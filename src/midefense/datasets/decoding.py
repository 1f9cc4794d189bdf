"""Pictures to pixels, by Pillow only: cropped, resized, checked, and decoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from midefense.datasets.cache import HASH_BYTES, cached_pixels, picture_hashes
from midefense.datasets.files import Files, stamp
from midefense.terminal import Stage
from midefense.types import Images, Refused, refuse_unknown

FRAMINGS = ("centre_crop", "squash")
RESAMPLES = ("bilinear", "bicubic")
DECODING_REVISION = 1  # raised with the numbers of `decode`: cached pixels of before are then made anew
_GREY_MODES = {"L", "1"}


@dataclass(frozen=True)
class Decoding:
    """How a picture becomes pixels.

    `channels` 1 (grey) or 3 (RGB). `size`: the side in pixels. `framing`: `squash` keeps all of the picture and
    distorts, `centre_crop` keeps the largest centred square. `crop`: (left, top, right, bottom, width, height), the
    part that counts of a picture of width x height; other sizes are scaled to it; None is all of it. `convert`: whether
    grey and colour are turned into `channels`, or the first that differs is refused. Resizing is bilinear and
    antialiased (`resample`: or `bicubic`), from the crop straight to `size`.
    """

    channels: int
    size: int
    framing: str = "squash"
    crop: Sequence[float] | None = None
    convert: bool = False
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise Refused(f"dataset.channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if self.size < 1:
            raise Refused(f"dataset.size: expected at least 1, got {self.size}")
        if self.framing not in FRAMINGS:
            raise refuse_unknown("dataset.framing", self.framing, FRAMINGS)
        if self.resample not in RESAMPLES:
            raise refuse_unknown("dataset.resample", self.resample, RESAMPLES)
        if self.crop is not None:
            left, top, right, bottom, width, height = self.crop
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise Refused(
                    "dataset.crop: expected [left, top, right, bottom, width, height] with the box inside the picture, "
                    f"got {list(self.crop)}; try null, or [35, 55, 143, 163, 178, 218] for aligned CelebA"
                )

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture of this size that is resized to the square."""
        left, top, right, bottom = 0.0, 0.0, float(width), float(height)
        if self.crop is not None:
            across, down = width / self.crop[4], height / self.crop[5]
            left, top, right, bottom = (
                edge * scale for edge, scale in zip(self.crop[:4], (across, down, across, down), strict=True)
            )
        if self.framing == "squash":
            return left, top, right, bottom
        side = min(right - left, bottom - top)  # whole pixels, as in torchvision's CenterCrop
        left, top = left + (right - left - side) // 2, top + (bottom - top - side) // 2
        return left, top, left + side, top + side

    def frame(self, picture: Image.Image, box: Sequence[float] | None = None) -> Image.Image:
        """A picture, or the part `box` of it, as size x size."""
        if box is not None:
            picture = picture.crop(tuple(box))
        resample, inside = Image.Resampling[self.resample.upper()], self.box(*picture.size)
        if any(edge % 1 for edge in inside):
            return picture.resize((self.size, self.size), resample, box=inside)
        # Whole pixels are cut out first, as the papers do: `box=` would let the filter see what lies beside them.
        return picture.crop(tuple(map(int, inside))).resize((self.size, self.size), resample)


def decode(parts: Sequence[Files], decoding: Decoding, cache: Path | None = None) -> list[Images]:
    """Read the pictures of several parts as uint8 [N, channels, size, size] each, in order; decoded once where there is
    a `cache`. EXIF is ignored.

    Refused, the file named: what Pillow cannot read, more than 8 bits, and a picture that is not plain grey
    (channels=1) or plain RGB (channels=3), unless it is to be converted.
    """
    sources = _sources(parts)

    def fill(array: np.ndarray) -> None:
        def read(row: int) -> None:
            array[row] = _read_image(*sources[row], decoding)

        _each(read, len(sources), "decoding")

    key = {"revision": DECODING_REVISION, **asdict(decoding), "files": [[*stamp(path), box] for path, box in sources]}
    shape = (len(sources), decoding.channels, decoding.size, decoding.size)
    return _images(parts, *cached_pixels(shape, fill, key, cache))


def survey(parts: Sequence[Files], decoding: Decoding) -> tuple[list[Images], list[str]]:
    """What `decode` would give, without memory for it: every picture is read, but only its hash is kept and the pixels
    are black. And why each picture that cannot be decoded is refused, in order (its hash is 0)."""
    sources = _sources(parts)
    refusals = [""] * len(sources)
    hashes = torch.zeros(len(sources), HASH_BYTES, dtype=torch.uint8)

    def read(row: int) -> None:
        try:
            pixels = _read_image(*sources[row], decoding)
        except Refused as refusal:
            refusals[row] = str(refusal)
        else:
            hashes[row] = picture_hashes(torch.tensor(pixels[None]))[0]

    _each(read, len(sources), "reading")
    black = torch.zeros((), dtype=torch.uint8).expand(len(sources), decoding.channels, decoding.size, decoding.size)
    return _images(parts, black, hashes), [refusal for refusal in refusals if refusal]


def _sources(parts: Sequence[Files]) -> list[tuple[Path, list[float] | None]]:
    """Every picture and the box of it that counts, part by part."""
    boxes = [[None] * len(part) if part.boxes is None else part.boxes.tolist() for part in parts]
    return [source for part, own in zip(parts, boxes, strict=True) for source in zip(part.paths, own, strict=True)]


def _images(parts: Sequence[Files], pixels: Tensor, hashes: Tensor) -> list[Images]:
    """The parts, whose pixels and hashes lie one after the other."""
    lengths = [len(part) for part in parts]
    return [
        Images(own, part.labels, part.ids, part.names, (own, own_hashes))
        for part, own, own_hashes in zip(parts, pixels.split(lengths), hashes.split(lengths), strict=True)
    ]


def _each(read: Callable[[int], None], count: int, what: str) -> None:
    """`read` every row, on all cores. After an error, or Ctrl-C, no further row is begun."""
    pool = ThreadPoolExecutor()
    try:
        rows = pool.map(read, range(count))
        with Stage(f"{what} pictures", count, announced=False) as stage:
            for row, _ in enumerate(rows, start=1):
                stage.at(row)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_image(path: Path, box: Sequence[float] | None, decoding: Decoding) -> np.ndarray:
    """Pixels uint8 [C, size, size]."""
    picture = _open(path)
    mode = "L" if decoding.channels == 1 else "RGB"
    _refuse_other_mode(path, picture.mode, mode, decoding.convert)
    pixels = np.asarray(decoding.frame(picture.convert(mode), box))
    return pixels[None] if decoding.channels == 1 else pixels.transpose(2, 0, 1)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's ways to say broken
        raise Refused(f"{path} cannot be read as an image ({error}). Try replacing or removing the file.") from error


def _refuse_other_mode(path: Path, got: str, mode: str, convert: bool) -> None:
    if got[0] in "IF":  # converting these would clip, silently
        raise Refused(f"{path} holds values of more than 8 bits (Pillow mode {got}); expected 8-bit images")
    if got == mode or convert or (mode == "L" and got in _GREY_MODES):
        return
    kind = "grey" if got in _GREY_MODES else "RGB" if got == "RGB" else f"of Pillow mode {got}"
    wanted, other = ("grey", 3) if mode == "L" else ("RGB", 1)
    switch = f"dataset.channels={other} if all images are so, or " if kind in ("grey", "RGB") else ""
    raise Refused(f"{path} is {kind}; expected {wanted}. Try {switch}dataset.convert=true to convert what differs.")
