"""What is known of pictures beside whose they are: binary attributes, and images labelled by them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from midefense.types import Images, Refused, refuse_unknown

if TYPE_CHECKING:
    from midefense.datasets.base import Dataset

LABELS = ("identity", "attributes")
UNKNOWN = 255  # of an attribute that nobody noted for a picture


def require_label(label: str) -> None:
    """Refuse a `dataset.label` that is none."""
    if label not in LABELS:
        raise refuse_unknown("dataset.label", label, LABELS)


def by_attributes(images: Images, dataset: Dataset) -> Images:
    """The same images under labels uint8 [N, K], 1 where the picture shows attribute k of `dataset.attribute_names`,
    which become the names. Pictures of which an attribute is not known are left out.

    Raises `Refused` where none is left.
    """
    shown = dataset.attributes(images.ids)
    known = (shown != UNKNOWN).all(1)
    if not known.any():
        raise Refused(
            f"dataset.label=attributes: expected the attributes of some of {len(images):,} pictures, got none; "
            "try completing the file of attributes, or dataset.label=identity"
        )
    return replace(images.take(known.nonzero()[:, 0]), labels=shown[known], names=list(dataset.attribute_names))
