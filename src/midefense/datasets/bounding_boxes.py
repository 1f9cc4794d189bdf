"""Bounding boxes in the XML of PASCAL VOC, as Stanford Dogs annotates its pictures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from midefense.types import Refused

LARGEST = 64 * 1024  # bytes; an official annotation has about 500
EDGES = ("xmin", "ymin", "xmax", "ymax")


class _PlainTree(ElementTree.TreeBuilder):
    """A tree without document types: nothing can be declared, so nothing expands and nothing else is opened."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ElementTree.ParseError(f"it declares a document type, {name}")


def first_box(path: Path) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) in pixels of the first object that a file annotates.

    Refused, the file named: a missing or oversized file, what is not plain XML, and a box that is none.
    """
    box = _parsed(path).find("object/bndbox")
    texts = ["nothing" if box is None else box.findtext(edge, default="nothing").strip() for edge in EDGES]
    whole = [int(text) for text in texts if text.isdecimal()]
    if len(whole) < len(EDGES) or not (whole[0] < whole[2] and whole[1] < whole[3]):
        found = ", ".join(f"{edge} {text}" for edge, text in zip(EDGES, texts, strict=True))
        raise Refused(
            f"{path}: expected a first object with a box xmin < xmax, ymin < ymax in whole pixels, got {found}. "
            "Try unpacking the annotations again."
        )
    left, top, right, bottom = map(float, whole)
    return left, top, right, bottom


def _parsed(path: Path) -> ElementTree.Element:
    if not path.is_file():
        raise Refused(f"no file at {path}; expected the annotation of a picture. Try unpacking the annotations again.")
    if (size := path.stat().st_size) > LARGEST:
        raise Refused(f"{path}: expected an annotation of at most {LARGEST} bytes, got {size}")
    parser = ElementTree.XMLParser(target=_PlainTree())
    try:
        parser.feed(path.read_bytes())
        return parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: encodings it does not know
        raise Refused(
            f"{path} cannot be read as an annotation ({error}). Try unpacking the annotations again."
        ) from error
