"""The victim's side: which classes or pictures an attacker is told to attack, and how what he sees gets to him."""

import pytest
import torch

from midefense.datasets.toy import Toy
from midefense.evidence.class_labels import ClassLabels
from midefense.evidence.released import ReleasedFeatures, spread_over
from midefense.evidence.transport import TRANSPORTS, bytes_of, pack, unpack
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


def test_a_picture_is_a_row_of_its_own(splits):
    source = ReleasedFeatures()
    evidence = source.collect(splits)
    assert evidence.ids.tolist() == splits.private_test.ids.tolist()
    assert evidence.labels.tolist() == splits.private_test.labels.tolist()
    assert source.points_at == "image" and evidence.observed is None
    trained_on = ReleasedFeatures(part="train", images=4).collect(splits)
    assert torch.isin(trained_on.ids, splits.private_train.ids).all() and len(trained_on) == 4


def test_what_is_observed_is_the_mean_over_releases_of_the_same_pictures(splits):
    asked = []

    def release(request):
        asked.append(request)
        return torch.arange(float(request.repeats)).view(-1, 1, 1).expand(-1, len(request.images), 4)

    source = ReleasedFeatures(images=4, repeats=3, transport="uint8", cut="here")
    evidence = source.observe(source.collect(splits), splits, release)
    assert evidence.observed.shape == (4, 4) and evidence.observed.unique().tolist() == [1.0]
    (request,) = asked
    assert request.images.ids.tolist() == evidence.ids.tolist()
    assert (request.cut, request.repeats, request.transport) == ("here", 3, "uint8")


@pytest.mark.parametrize(
    ("sizes", "count", "chosen"),
    [
        ([4, 4, 4], 6, [2, 2, 2]),
        ([4, 4, 4], 5, [2, 2, 1]),
        ([3, 3, 3, 3], 2, [1, 0, 1, 0]),  # apart from each other, and not the first two
        ([1, 5, 5], 9, [1, 4, 4]),  # a class that has no more leaves its share to the others
        ([2, 2], 4, [2, 2]),
    ],
)
def test_a_choice_of_pictures_is_spread_over_the_classes(sizes, count, chosen):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    for order in (labels, shuffled):
        rows = spread_over(order, count)
        assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == count
        assert torch.bincount(order[rows], minlength=len(sizes)).tolist() == chosen
        first = [(order == label).nonzero()[:n, 0] for label, n in enumerate(chosen)]
        assert torch.cat(first).sort().values.equal(rows), "of each class the first"


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 6, 6), (2, 1)], ids=str)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_arrives_is_as_close_as_the_transport_allows(transport, shape):
    """Maps of very different scales: a scale for all of them together would lose the small ones."""
    scales = 10.0 ** torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2))
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * (scales if len(shape) > 2 else 1)
    features[0, 0] = 3.0  # one value all over
    packed = pack(features, transport)
    arrived = unpack(packed)
    assert arrived.dtype == torch.float32 and arrived.shape == features.shape
    spread = features.amax((2, 3), keepdim=True) - features.amin((2, 3), keepdim=True) if len(shape) > 2 else None
    if spread is None:
        spread = features.amax(1, keepdim=True) - features.amin(1, keepdim=True)
    allowed = {"float32": 0, "float16": 2**-11 * features.abs(), "uint8": spread / 255 / 2 * 1.001 + 1e-6}[transport]
    assert ((arrived - features).abs() <= allowed).all()
    one = {"float32": 4, "float16": 2, "uint8": 1}[transport] * features.numel()
    maps = shape[0] * (shape[1] if len(shape) > 2 else 1)
    assert bytes_of(packed) == one + (8 * maps if transport == "uint8" else 0)
    alone = pack(features[:1], transport)
    assert all(packed[name][:1].equal(part) for name, part in alone.items()), "no row depends on those beside it"


def test_what_no_transport_can_carry_is_refused():
    with pytest.raises(Refused, match="evidence.transport=float16: expected released features that are finite"):
        pack(torch.tensor([[1e6]]), "float16")
    with pytest.raises(Refused, match="values up to inf or none"):
        pack(torch.tensor([[float("inf")]]), "uint8")
