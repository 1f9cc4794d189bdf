"""Whether weights of others know a dataset: what test images can tell, and what they are too few for."""

from __future__ import annotations

import math

from scipy.special import bdtr

from midefense.training.chance import odds_of
from midefense.types import Refused

TOLERANCE = 0.02  # how far below the accuracy that was expected the measured one may lie
LUCK = 0.001  # how rarely blind guessing may do as well as weights that are said to know something


def can_tell(images: int, classes: int) -> bool:
    """Whether so many test images can tell weights that are always right from blind guessing."""
    return odds_of(images, images, 1 / classes) <= LUCK


def doubt_of(images: int, classes: int, expect: float | None = None) -> str:
    """What so few test images leave open, in a sentence; "" where they judge."""
    if expect is None and not can_tell(images, classes):
        odds = round(1 / odds_of(images, images, 1 / classes))
        return (
            f"{images} test images of {classes} classes are too few to judge: blind guessing gets all of them right in "
            f"1 of {odds:,} tries; more test images would tell (dataset.test_share, or a test folder)"
        )
    if expect is not None and images * TOLERANCE < 1:
        return (
            f"{images} test images are too few to measure an accuracy to {TOLERANCE:.2f}: one image is "
            f"{1 / images:.3f}; more test images would tell (dataset.test_share, or a test folder)"
        )
    return ""


def require_accuracy(measured: float, images: int, classes: int, expect: float | None, suspicion: str) -> None:
    """Refuse weights that know less of the dataset than expected or, without an expectation, no more than chance.

    Args:
        measured: the accuracy on so many test `images` of `classes`.
        expect: what is reported of the weights. Few images are given the luck that they need.
        suspicion: what the wrong answers look like, in words.
    """
    right, chance = round(measured * images), 1 / classes
    reasons = (
        f"likely reasons: the order of the labels{suspicion}; the crop or the size of the images; the normalisation "
        "(architecture.mean, architecture.std). Try --class-names FILE"
    )
    if expect is not None:
        unlucky = images * TOLERANCE < 1 and float(bdtr(right, images, expect)) > LUCK
        if measured < expect - TOLERANCE and not unlucky:
            raise Refused(
                f"test accuracy: expected {expect:.4f} or at most {TOLERANCE} less, got {measured:.4f}; {reasons}"
            )
        return
    luck = odds_of(right, images, chance)
    if measured <= chance or (luck > LUCK and can_tell(images, classes)):
        raise Refused(
            f"test accuracy: expected more than chance, which is {chance:.4f} of these images, got {measured:.4f} "
            f"({right} of {images}, as blind guessing does or better in {_share(luck)} of all tries); "
            f"{reasons}, or --expect with the accuracy that is meant"
        )


def _share(luck: float) -> str:
    return f"{100 * luck:.{1 if luck >= 0.01 else max(1, -math.floor(math.log10(luck)) - 1)}f} %"
