"""Reading image files: folders in an order of their own, pictures by Pillow only, refusals that name the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from midefense.types import Refused, refuse_unknown

FRAMINGS = ("centre_crop", "squash")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
_GREY_MODES = {"L", "1"}


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key under which numbers inside names count as numbers: s2 before s10."""
    pieces = re.split(r"([0-9]+)", name)  # text and digits alternate, so that like is compared with like
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name


def entries(folder: Path) -> list[Path]:
    """What lies in `folder`, in natural order, without hidden and system files."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted((p for p in visible if p.name.lower() not in _SYSTEM_FILES), key=lambda path: natural_key(path.name))


def require_folder(root: str | None, argument: str, tree: str) -> Path:
    """The folder given by a constructor argument, or a refusal that says where it was looked for."""
    if not root:
        raise Refused(f"dataset.{argument} is not set; expected a folder\n{tree}\nTry dataset.{argument}=DIR.")
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        raise Refused(f"no folder at {path}; expected\n{tree}\nTry dataset.{argument}=DIR.")
    return path


def first_difference(expected: Iterable[str], got: Iterable[str]) -> str:
    """The first place where two listings differ, in words; empty if they are the same."""
    for wanted, found in zip_longest(expected, got):
        if wanted != found:
            return f"expected {wanted or 'nothing more'}, got {found or 'nothing more'}"
    return ""


def require_framing(framing: str) -> None:
    """Refuse a framing that `frame` does not know."""
    if framing not in FRAMINGS:
        raise refuse_unknown("dataset.framing", framing, FRAMINGS)


def frame(picture: Image.Image, size: int, framing: str) -> Image.Image:
    """Bring a picture to size x size, bilinear and antialiased: `squash` keeps all of it and distorts,
    `centre_crop` keeps the largest centred square."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if framing == "centre_crop" else None
    return picture.resize((size, size), Image.Resampling.BILINEAR, box=box)


def read_images(paths: Sequence[Path], *, channels: int, size: int, framing: str, convert: bool = False) -> Tensor:
    """Pictures as uint8 [N, channels, size, size], in the order of `paths`. EXIF is ignored.

    Refused, the file named: what Pillow cannot read, more than 8 bits, and a picture that is not plain grey
    (channels=1) or plain RGB (channels=3), unless `convert`.
    """
    read = partial(_read_image, mode="L" if channels == 1 else "RGB", size=size, framing=framing, convert=convert)
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(read, paths)))
    return torch.from_numpy(pixels.reshape(len(paths), size, size, channels)).permute(0, 3, 1, 2).contiguous()


def _read_image(path: Path, mode: str, size: int, framing: str, convert: bool) -> np.ndarray:
    picture = _open(path)
    _refuse_other_mode(path, picture.mode, mode, convert)
    return np.asarray(frame(picture.convert(mode), size, framing))


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
