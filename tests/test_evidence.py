"""The victim's side: which classes an attacker is told to attack."""

import pytest
import torch

from midefense.datasets.toy import Toy
from midefense.evidence.class_labels import ClassLabels
from midefense.types import Refused


@pytest.fixture(scope="module")
def splits():
    return Toy(classes=3, public_classes=3, images_per_class=2, test_images_per_class=2, size=8).load()


def test_all_classes_in_order_and_nothing_observed(splits):
    evidence = ClassLabels().collect(splits)
    assert evidence.labels.tolist() == evidence.ids.tolist() == [0, 1, 2]
    assert evidence.labels.dtype == torch.int64
    assert evidence.observed is None  # a class number is all that class inversion is told


def test_named_classes_keep_their_order(splits):
    evidence = ClassLabels(classes=[2, 0]).collect(splits)
    assert evidence.labels.tolist() == [2, 0]
    evidence.labels[0] = 1
    assert evidence.ids.tolist() == [2, 0]  # no shared memory


@pytest.mark.parametrize(
    ("classes", "complaint"),
    [
        ([0, 3], r"expected class numbers from 0 to 2 \(private 0, private 1, private 2\), got \[3\]"),
        ([-1], r"got \[-1\]"),
        ([1, 1], r"expected distinct class numbers, at least one, got \[1, 1\]"),
        ([], r"at least one, got \[\]"),
    ],
)
def test_wrong_classes_are_refused(splits, classes, complaint):
    with pytest.raises(Refused, match=complaint):
        ClassLabels(classes=classes).collect(splits)


def test_a_word_that_is_not_all_is_refused_when_built():
    with pytest.raises(Refused, match="expected \"all\" or a list of class numbers, got 'every'"):
        ClassLabels(classes="every")
