"""Reconstruction of a training set: the weights of the target, and which classes it tells apart."""

from __future__ import annotations

from midefense.evidence.class_labels import ClassLabels


class Weights(ClassLabels):
    """The attacker holds the weights, which a white-box attack reads itself (`Oracle.weights`), and wants the images
    that they were trained on. Rows are classes; what is recovered for one stands for any of its training images, so
    that metrics match one to one (`metrics.matched`).

    Args:
        classes: as `ClassLabels`.
    """

    revision = 1
    points_at = "training_set"
