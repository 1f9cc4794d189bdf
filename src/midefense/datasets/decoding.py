"""Pictures to pixels, by Pillow only: turned upright, cropped, resized, checked, and decoded once.

A file can hold more than one sees in it: an orientation, colours under what is transparent, further frames. What
becomes of it is decided by `Decoding`, and said for every set that is read (`remarks`).
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor
from torch import Tensor

from midefense.datasets import cache as cache_module
from midefense.datasets.cache import HASH_BYTES, Caches, cached_pixels, picture_hashes
from midefense.datasets.files import Files, stamp
from midefense.terminal import Stage
from midefense.types import Images, Refused, refuse_unknown

FRAMINGS = ("centre_crop", "squash")
RESAMPLES = ("bilinear", "bicubic")
ORIENTATIONS = ("applied", "ignored")
ALPHAS = ("refused", "ignored")  # or a colour
DECODING_REVISION = 1  # raised with the numbers of `decode`: cached pixels of before are then made anew
_GREY_MODES = {"L", "1"}
_UNREADABLE = (  # Pillow's ways to say broken
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_TURNS = {  # what brings a picture upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING, TRANSPARENT, SEVERAL = 1, 2, 4  # notes on a picture, added up

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """How a picture becomes pixels.

    `channels` 1 (grey) or 3 (RGB). `size`: the side in pixels. `framing`: `squash` keeps all of the picture and
    distorts, `centre_crop` keeps the largest centred square. `crop`: (left, top, right, bottom, width, height), the
    part that counts of a picture of width x height; other sizes are scaled to it; None is all of it. `convert`: whether
    grey and colour are turned into `channels`, or the first that differs is refused. Resizing is bilinear and
    antialiased (`resample`: or `bicubic`), from the crop straight to `size`.

    `orientation`: what EXIF says of it is `applied` before anything else (`crop` counts in the upright picture), or
    `ignored`, as most published code does; Pillow itself turns TIFF files. `alpha`: a picture that is transparent in
    part is `refused`, or laid on a colour (a name or #rrggbb), or `ignored` shows the colours that were hidden.
    """

    channels: int
    size: int
    framing: str = "squash"
    crop: Sequence[float] | None = None
    convert: bool = False
    resample: str = "bilinear"
    orientation: str = "applied"
    alpha: str = "refused"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise Refused(f"dataset.channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if self.size < 1:
            raise Refused(f"dataset.size: expected at least 1, got {self.size}")
        if self.framing not in FRAMINGS:
            raise refuse_unknown("dataset.framing", self.framing, FRAMINGS)
        if self.resample not in RESAMPLES:
            raise refuse_unknown("dataset.resample", self.resample, RESAMPLES)
        if self.orientation not in ORIENTATIONS:
            raise refuse_unknown("dataset.orientation", self.orientation, ORIENTATIONS)
        if self.alpha not in ALPHAS and not _is_colour(self.alpha):
            raise refuse_unknown("dataset.alpha", self.alpha, [*ALPHAS, "a colour such as white, black or '#808080'"])
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


def _is_colour(name: str) -> bool:
    """Whether it names an opaque colour."""
    try:
        return len(ImageColor.getrgb(name)) == 3
    except ValueError:
        return False


def decode(parts: Sequence[Files], decoding: Decoding, cache: Caches = None) -> list[Images]:
    """Read the pictures of several parts as uint8 [N, channels, size, size] each, in order; decoded once where there is
    a `cache`. What was done to some of them is logged, every time.

    Refused, the file named: what Pillow cannot read, more than 8 bits, a picture that is not plain grey (channels=1) or
    plain RGB (channels=3), unless it is to be converted, and one that is transparent in part, unless `alpha` says how.
    """
    sources = _sources(parts)
    notes = np.zeros(len(sources), dtype=np.uint8)

    def fill(array: np.ndarray, first: int) -> Iterator[int]:
        def read(row: int) -> None:
            array[row], notes[row] = _read_image(*sources[row], decoding)

        return _each(read, range(first, len(sources)), "decoding")

    key = {"revision": DECODING_REVISION, **asdict(decoding), "files": [[*stamp(path), box] for path, box in sources]}
    shape = (len(sources), decoding.channels, decoding.size, decoding.size)
    pixels, hashes = cached_pixels(shape, fill, key, cache, notes)
    for remark in remarks([path for path, _ in sources], notes, decoding):
        logger.warning("%s", remark)
    return _images(parts, pixels, hashes)


@dataclass(frozen=True)
class Survey:
    """What reading all pictures showed: the `images`, one per part, with their hashes and black pixels; why each that
    cannot be decoded is `refused`, in order (its hash is 0); and `remarks` on the others."""

    images: list[Images]
    refused: list[str]
    remarks: list[str]


def survey(parts: Sequence[Files], decoding: Decoding) -> Survey:
    """What `decode` would give, without memory for it: every picture is read, but only its hash and notes are kept."""
    sources = _sources(parts)
    refusals = [""] * len(sources)
    notes = np.zeros(len(sources), dtype=np.uint8)
    hashes = torch.zeros(len(sources), HASH_BYTES, dtype=torch.uint8)

    def read(row: int) -> None:
        try:
            pixels, notes[row] = _read_image(*sources[row], decoding)
        except Refused as refusal:
            refusals[row] = str(refusal)
        else:
            hashes[row] = picture_hashes(torch.tensor(pixels[None]))[0]

    for _ in _each(read, range(len(sources)), "reading"):
        pass
    black = torch.zeros((), dtype=torch.uint8).expand(len(sources), decoding.channels, decoding.size, decoding.size)
    said = remarks([path for path, _ in sources], notes, decoding)
    return Survey(_images(parts, black, hashes), [refusal for refusal in refusals if refusal], said)


def remarks(paths: Sequence[Path], notes: np.ndarray, decoding: Decoding) -> list[str]:
    """One sentence per kind of note (uint8 [N], aligned with `paths`) that there is: how many pictures, what became of
    them, and the first of them."""
    lying = {
        "applied": "turned upright, as their EXIF orientation says; dataset.orientation=ignored takes them as stored",
        "ignored": "taken as stored, not upright as their EXIF orientation says (dataset.orientation=ignored)",
    }
    hidden = {"ignored": "transparent in part and taken with the colours hidden there (dataset.alpha=ignored)"}
    what = {
        LYING: lying[decoding.orientation],
        TRANSPARENT: hidden.get(decoding.alpha, f"transparent in part and laid on {decoding.alpha} (dataset.alpha)"),
        SEVERAL: "of several frames or pages, of which the first one counts",
    }
    rows = {note: np.flatnonzero(notes & note) for note in what}
    return [
        f"{len(found):,} of {len(paths):,} pictures are {what[note]}. First: {paths[found[0]]}"
        for note, found in rows.items()
        if len(found)
    ]


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


def _each(read: Callable[[int], None], rows: range, what: str) -> Iterator[int]:
    """`read` every row, on all cores; yields, in order, up to where rows were read. After an error, Ctrl-C, or once
    nobody wants more, no further row is begun."""
    pool = ThreadPoolExecutor()
    try:
        with Stage(f"{what} pictures", rows.stop, announced=False) as stage:
            for start in range(
                rows.start, rows.stop, cache_module.UNIT
            ):  # no further ahead than what is saved together
                unit = range(start, min(start + cache_module.UNIT, rows.stop))
                for row, _ in zip(unit, pool.map(read, unit), strict=True):
                    stage.at(row + 1)
                    yield row + 1
    finally:
        pool.shutdown(cancel_futures=True)


def _read_image(path: Path, box: Sequence[float] | None, decoding: Decoding) -> tuple[np.ndarray, int]:
    """Pixels uint8 [C, size, size], and the notes on the picture."""
    picture, notes = _open(path, decoding)
    mode = "L" if decoding.channels == 1 else "RGB"
    _refuse_other_mode(path, picture, mode, decoding.convert)
    if _is_transparent(picture):
        picture, notes = _opaque(path, picture, decoding.alpha), notes | TRANSPARENT
    pixels = np.asarray(decoding.frame(picture.convert(mode), box))
    return (pixels[None] if decoding.channels == 1 else pixels.transpose(2, 0, 1)), notes


def _open(path: Path, decoding: Decoding) -> tuple[Image.Image, int]:
    """The first frame of a file, upright where that is asked for, and the notes on the file."""
    try:
        with Image.open(path) as picture:
            notes = SEVERAL if getattr(picture, "n_frames", 1) > 1 else 0
            _refuse_deep(path, picture)
            # loading turns a TIFF, and then it says no more
            before = _orientation(path, picture, decoding) if picture.format == "TIFF" else 1
            picture.load()
            left = _orientation(path, picture, decoding)
            notes |= LYING if {before, left} & _TURNS.keys() else 0
            turn = _TURNS.get(left) if decoding.orientation == "applied" else None
            return (picture if turn is None else picture.transpose(turn)), notes
    except Refused:
        raise
    except _UNREADABLE as error:
        raise Refused(f"{path} cannot be read as an image ({error}). Try replacing or removing the file.") from error


def _orientation(path: Path, picture: Image.Image, decoding: Decoding) -> object:
    """The EXIF orientation: 1 if nothing is said of it."""
    try:
        exif = picture.getexif()
        if not exif and "exif" in picture.info:  # opening a JPEG passes over what is wrong with it
            Image.Exif().load(picture.info["exif"])
        return exif.get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE as error:
        if decoding.orientation == "ignored":  # who does not ask for it need not be able to read it
            return 1
        raise Refused(
            f"{path}: its EXIF cannot be read ({error}), so that nobody knows which side is up. "
            "Try replacing the file, or dataset.orientation=ignored."
        ) from error


def _refuse_deep(path: Path, picture: Image.Image) -> None:
    """Refuse more than 8 bits per value. Where they are three values per pixel, only the raw mode tells: Pillow cuts
    them off without a word."""
    for codec, _, _, arguments in getattr(picture, "tile", ()):
        for argument in arguments if isinstance(arguments, tuple) else (arguments,):
            deep = isinstance(argument, str) and re.search(r"(?<!BGR);(16|32|64)", argument)  # BGR;16 is 5, 6 and 5
            if deep or (codec.startswith("ppm") and isinstance(argument, int) and argument > 255):
                raise Refused(f"{path} holds values of more than 8 bits (raw mode {argument}); expected 8-bit images")


def _is_transparent(picture: Image.Image) -> bool:
    """Whether something is seen through. An alpha channel may also say that nothing is."""
    if not (picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info):
        return False
    return picture.convert("RGBA").getextrema()[3][0] < 255


def _opaque(path: Path, picture: Image.Image, alpha: str) -> Image.Image:
    """The picture without its alpha, as `Decoding.alpha` says."""
    if alpha == "ignored":
        return picture
    if alpha == "refused":
        raise Refused(
            f"{path} is transparent in part, and the colours hidden there would be learnt; expected opaque images. "
            "Try dataset.alpha=white (or another colour) to lay them on it, or dataset.alpha=ignored."
        )
    seen = picture.convert("RGBA")
    ground = Image.new("RGBA", seen.size, ImageColor.getrgb(alpha))
    return Image.alpha_composite(ground, seen).convert("RGB")


def _refuse_other_mode(path: Path, picture: Image.Image, mode: str, convert: bool) -> None:
    got = picture.mode
    if got[0] in "IF":  # converting these would clip, silently
        raise Refused(f"{path} holds values of more than 8 bits (Pillow mode {got}); expected 8-bit images")
    if got == mode or convert or (mode == "L" and got in _GREY_MODES):
        return
    kind = "grey" if got in _GREY_MODES else "RGB" if got == "RGB" else f"of Pillow mode {got}"
    wanted, other = ("grey", 3) if mode == "L" else ("RGB", 1)
    switch = f"dataset.channels={other} if all images are so, or " if kind in ("grey", "RGB") else ""
    laid = " dataset.alpha=white" if _is_transparent(picture) else ""
    raise Refused(
        f"{path} is {kind}; expected {wanted}. Try {switch}dataset.convert=true{laid} to convert what differs."
    )
