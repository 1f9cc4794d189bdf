"""Defenses against the known answers of their papers' code (numbers copied here) and their invariants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN, MLP
from midefense.defenses.base import Defense, NoDefense, Stack, cross_entropy
from midefense.defenses.bido import BiDO, centre, normalise
from midefense.defenses.label_smoothing import LabelSmoothing, smoothed_cross_entropy
from midefense.defenses.random_erasing import RandomErasing
from midefense.training import loop
from midefense.types import Batch, Origin, Refused, Trace


def batch_of(images: torch.Tensor, key: object = 0, labels: torch.Tensor | None = None) -> Batch:
    count = len(images)
    labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels
    return Batch(images, labels, torch.arange(count), torch.ones(count), seeds.generator("test", key))


def erasing(size: int = 64, channels: int = 1, **settings) -> RandomErasing:
    defense = RandomErasing(**settings)
    loop.assemble(MLP(classes=2, channels=channels, size=size, widths=[4]), defense, seed=0)
    return defense


# Random erasing


@pytest.mark.parametrize(
    ("size", "high", "area", "centre", "quarter", "corner", "sides"),
    [
        (224, 0.4, 0.25, 0.77, 0.27, 8e-5, (71, 142)),
        (224, 0.8, 0.45, 0.90, 0.62, 3e-4, (71, 200)),
        (64, 0.4, 0.25, 0.758, 0.281, 1e-3, (20, 40)),
        (64, 0.8, 0.45, 0.896, 0.622, 3.6e-3, (20, 57)),
    ],
)
def test_erasing_statistics_of_the_card(size, high, area, centre, quarter, corner, sides):
    batch = batch_of(torch.empty(20_000, 1, 1, 1).expand(-1, -1, size, size))
    top, left, tall, wide = erasing(scale=(0.1, high)).boxes(batch)
    assert torch.equal(tall, wide)
    assert sides[0] <= tall.min() <= sides[0] + 1 and sides[1] - 1 <= tall.max() <= sides[1]
    assert ((top >= 0) & (left >= 0) & (top + tall <= size) & (left + wide <= size)).all()
    assert (tall * wide / size**2).float().mean().item() == pytest.approx(area, abs=0.01)

    def share_covering(row: int, column: int) -> float:
        inside = (top <= row) & (row < top + tall) & (left <= column) & (column < left + wide)
        return inside.float().mean().item()

    assert share_covering(size // 2, size // 2) == pytest.approx(centre, abs=0.012)
    assert share_covering(size // 4, size // 4) == pytest.approx(quarter, abs=0.012)
    assert share_covering(0, 0) == pytest.approx(corner, abs=0.002)


def test_erasing_writes_one_box_per_image_and_nothing_else():
    images = torch.rand(50, 3, 32, 32)
    defense = erasing(channels=3, fill_space="pixel", value=[2.0, 3.0, 4.0])
    erased = defense.transform(batch_of(images)).images
    boxes = defense.boxes(batch_of(images)).T.tolist()
    assert len({tuple(box) for box in boxes}) > 40
    for before, after, (top, left, tall, wide) in zip(images, erased, boxes, strict=True):
        expected = before.clone()
        expected[:, top : top + tall, left : left + wide] = torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1)
        assert torch.equal(after, expected)


def test_normalized_fill_is_exact_in_the_space_of_the_network():
    model = MLP(classes=2, channels=3, widths=[4], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    defense = RandomErasing()
    loop.assemble(model, defense, seed=0)
    batch = batch_of(torch.rand(8, 3, 32, 32))
    seen = model.preprocess(defense.transform(batch).images)
    top, left, tall, wide = defense.boxes(batch_of(batch.images))[:, 0].tolist()
    value = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    assert (seen[0, :, top : top + tall, left : left + wide] - value).abs().max() < 1e-6


def test_erasing_that_erases_nothing_is_the_identity():
    batch = batch_of(torch.rand(16, 1, 32, 32))
    for settings in ({"p": 0.0}, {"scale": (0.0, 0.0)}, {"scale": (1.0, 1.0)}):
        assert torch.equal(erasing(**settings).transform(batch).images, batch.images)
    share = (erasing(p=0.25).boxes(batch_of(torch.empty(8000, 1, 32, 32)))[2] > 0).float().mean()
    assert share.item() == pytest.approx(0.25, abs=0.02)


def test_erasing_ratio_is_height_to_width():
    _, _, tall, wide = erasing(ratio=(2.0, 2.0), scale=(0.1, 0.2)).boxes(batch_of(torch.empty(500, 1, 64, 64)))
    assert ((tall / wide) - 2).abs().max() < 0.15


def test_erasing_locations():
    images = torch.empty(4000, 1, 64, 64)
    top, left, tall, wide = erasing(location="center").boxes(batch_of(images))
    assert torch.equal(top, (64 - tall) // 2) and torch.equal(left, (64 - wide) // 2)

    top, left, tall, wide = erasing(location="boundary", scale=(0.05, 0.1)).boxes(batch_of(images))
    central = (top >= 16) & (top + tall <= 48) & (left >= 16) & (left + wide <= 48)
    assert not central[tall > 0].any() and (tall > 0).float().mean() > 0.999

    fixed = erasing(location="per_image", scale=(0.2, 0.2))
    once, again = fixed.boxes(batch_of(images, key=1)), fixed.boxes(batch_of(images, key=2))
    assert torch.equal(once, again) and len(once.T.unique(dim=0)) > 1000
    reordered = batch_of(images, key=3)
    reordered.ids = reordered.ids.flip(0)
    assert torch.equal(fixed.boxes(reordered), once.flip(1))


def test_erasing_refusals():
    with pytest.raises(Refused, match="location: got 'centre'.*Did you mean 'center'"):
        RandomErasing(location="centre")
    with pytest.raises(Refused, match="fill_space"):
        RandomErasing(fill_space="raw")
    with pytest.raises(Refused, match="scale: expected"):
        RandomErasing(scale=(0.4, 0.1))
    with pytest.raises(Refused, match="p: expected"):
        RandomErasing(p=2)
    with pytest.raises(Refused, match="ratio: expected"):
        RandomErasing(ratio=(0, 1))
    with pytest.raises(Refused, match="try loop.assemble"):
        RandomErasing().transform(batch_of(torch.rand(2, 1, 8, 8)))
    with pytest.raises(Refused, match="value: expected 1 or 3 values"):
        erasing(channels=3, value=[0.1, 0.2])


# Label smoothing


@pytest.mark.parametrize(
    ("logits", "alpha", "loss"),
    [
        ([2.0, 0.0, -1.0], 0.0, 0.169846),
        ([2.0, 0.0, -1.0], 0.1, 0.336513),
        ([2.0, 0.0, -1.0], -0.05, 0.086513),
        ([20.0, 0.0, -1.0], 0.1, 1.366667),
        ([20.0, 0.0, -1.0], -0.05, -0.683333),
    ],
)
def test_smoothed_loss_of_the_card(logits, alpha, loss):
    assert smoothed_cross_entropy(torch.tensor([logits]), torch.tensor([0]), alpha).item() == pytest.approx(
        loss, abs=2e-6
    )


@pytest.mark.parametrize(("margin", "loss"), [(0, 6.272877), (5, 1.268753), (20, -0.998112), (100, -4.990566)])
def test_smoothed_loss_falls_linearly_with_the_margin(margin, loss):
    logits = torch.zeros(1, 530)
    logits[0, 0] = margin
    assert smoothed_cross_entropy(logits, torch.tensor([0]), -0.05).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("alpha", "gradient"), [(0.1, (-0.089539, 0.080862, 0.008677)), (-0.05, (-0.189539, 0.130862, 0.058677))]
)
def test_smoothed_gradient_of_the_card(alpha, gradient):
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    smoothed_cross_entropy(logits, torch.tensor([0]), alpha).sum().backward()
    assert logits.grad[0].tolist() == pytest.approx(gradient, abs=2e-6)


@pytest.mark.parametrize(
    ("alpha", "loss", "gradient"),
    [
        (0.1, 5.5805736, [0.0001949013, 6.141928e-05, 0.02119249, -0.0006029159]),
        (-0.05, 5.658579, [0.001132401, 0.0009989194, 0.02212999, 0.0003345841]),
        (-0.3, 5.7885885, [0.002694902, 0.00256142, 0.0236925, 0.001897084]),
    ],
)
def test_smoothed_loss_of_the_original_implementation(alpha, loss, gradient):
    """shared/reference/losses.npz, label_smoothing: the inputs are these NumPy draws; first entries of the gradient."""
    logits = torch.tensor(3 * np.random.RandomState(21).randn(16, 10), dtype=torch.float32, requires_grad=True)
    labels = torch.tensor([5, 4, 0, 4, 6, 6, 4, 8, 4, 2, 8, 7, 2, 9, 8, 8])
    mean = smoothed_cross_entropy(logits, labels, alpha).mean()
    mean.backward()
    assert mean.item() == pytest.approx(loss, rel=1e-5)
    assert logits.grad[0, :4].tolist() == pytest.approx(gradient, rel=1e-4)


def test_smoothed_loss_equals_torch_where_torch_can():
    logits, labels = torch.randn(9, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    for alpha in (0.0, 0.1, 1.0):
        expected = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=alpha)
        torch.testing.assert_close(smoothed_cross_entropy(logits, labels, alpha), expected)
    soft = nn.functional.one_hot(labels, 4).float()
    hard = smoothed_cross_entropy(logits, labels, -0.05)
    torch.testing.assert_close(smoothed_cross_entropy(logits, soft, -0.05), hard)
    assert not torch.allclose(hard, cross_entropy(logits, labels))


def test_smoothing_schedule_of_the_card():
    scheduled = LabelSmoothing(alpha=-0.05).scheduled
    values = [scheduled(epoch, 100) for epoch in (0, 49, 50, 60, 74, 75, 99)]
    assert values == pytest.approx([0, 0, -0.001, -0.011, -0.025, -0.05, -0.05])
    assert LabelSmoothing(alpha=0.1).scheduled(0, 100) == 0.1
    assert LabelSmoothing(alpha=-0.05, start=0, full=0).scheduled(0, 100) == -0.05
    defense = LabelSmoothing(alpha=-0.05)
    assert defense.begin_epoch(nn.Identity(), 60, 100) == {"alpha": pytest.approx(-0.011)}
    trace = Trace(torch.tensor([[2.0, 0.0, -1.0]]), torch.zeros(1, 1))
    loss = defense.losses(trace, batch_of(torch.zeros(1, 1, 2, 2)))["task"]
    assert loss.item() == pytest.approx(1.011 * 0.169846 - 0.011 * 1.836513, abs=2e-6)


@pytest.mark.slow
def test_negative_smoothing_builds_steep_far_reaching_decisions():
    """The card's toy (the authors' notebook, cut from 5000 to 1500 training steps): an inversion from (-3, -10)
    reaches confidence .95 sooner, and further from the class, the more negative alpha is."""
    from sklearn.datasets import make_blobs

    centres = [(0, -10), (-10, 10), (10, 10)]
    points, labels = make_blobs(n_samples=500, centers=centres, cluster_std=1.6, random_state=17)
    points, labels = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)

    def invert(alpha: float) -> tuple[int, float]:
        with torch.random.fork_rng():
            torch.manual_seed(42)
            layers = [nn.Linear(2, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU()]
            model = nn.Sequential(*layers, nn.Linear(20, 3, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        for _ in range(1500):
            optimizer.zero_grad()
            smoothed_cross_entropy(model(points), labels, alpha).mean().backward()
            optimizer.step()
        model.eval().requires_grad_(False)
        point, steps = torch.tensor([[-3.0, -10.0]], requires_grad=True), 0
        while (logits := model(point)).softmax(1)[0, 2] < 0.95:
            (gradient,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([2])).sum(), point)
            point = (point - 0.1 * gradient).detach().requires_grad_()
            steps += 1
        return steps, torch.cdist(point, points[labels == 2]).min().item()

    (negative, far), (none, between), (positive, near) = (invert(alpha) for alpha in (-0.05, 0.0, 0.05))
    assert negative < none < positive and far > between > near


def test_smoothing_refusals():
    with pytest.raises(Refused, match="alpha: expected at most 1"):
        LabelSmoothing(alpha=1.5)
    with pytest.raises(Refused, match="start <= full"):
        LabelSmoothing(alpha=-0.05, start=0.8, full=0.5)


# BiDO


def dependence(measure: str, left: torch.Tensor, right: torch.Tensor, labels: torch.Tensor, **settings):
    defense = BiDO(measure=measure, lambda_x=1.0, lambda_y=1.0, **settings)
    on_images, on_labels = defense.dependence([left], right, labels)
    return on_images.item(), on_labels.item()


LINE = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
PAIRS = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("measure", "label_kernel", "on_itself", "on_labels"),
    [
        ("hsic", "linear", 2.08423, 0.87024),
        ("hsic", "gaussian", 2.08423, 0.86938),
        ("coco", "linear", 0.0461281, 0.144048),
    ],
)
def test_dependence_of_the_card(measure, label_kernel, on_itself, on_labels):
    values = dependence(measure, LINE, LINE, PAIRS, label_kernel=label_kernel)
    assert values == pytest.approx((on_itself, on_labels), rel=1e-4)


def test_dependence_on_the_corners_of_a_square():
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    first = nn.functional.one_hot(corners[:, 0].long(), 2)
    unequal = nn.functional.one_hot((corners[:, 0] != corners[:, 1]).long(), 2)
    assert dependence("hsic", corners, corners, first)[1] == pytest.approx(0.99796, rel=1e-4)
    assert dependence("hsic", corners, corners, unequal)[1] == pytest.approx(0.71223, rel=1e-4)


def reference_case(measure: str) -> tuple[float, float, torch.Tensor, tuple]:
    """shared/reference/losses.npz, bido: the inputs are these NumPy draws, 12 rows of four classes."""
    images = torch.tensor(np.random.RandomState(31).rand(12, 48), dtype=torch.float32)
    hidden = torch.tensor(np.random.RandomState(32).randn(12, 30), dtype=torch.float32).double().requires_grad_()
    labels = nn.functional.one_hot(torch.arange(12) // 3, 4)
    defense = BiDO(measure=measure, lambda_x=0.05, lambda_y=0.5)
    on_images, on_labels = defense.dependence([hidden], images, labels)
    (0.05 * on_images.sum() - 0.5 * on_labels.sum()).backward()
    return on_images.item(), on_labels.item(), hidden.grad, (images.double(), hidden.detach(), labels.double())


def test_the_forms_of_the_paper():
    """Plain HSIC is tr(K H L H) / (m - 1)^2; the paper's COCO takes the spectral norm, written out for four points."""
    centring = torch.eye(4, dtype=torch.float64) - 0.25
    points, one_hot = LINE.double(), PAIRS.double()
    kernel = torch.exp(-((points - points.T) ** 2) / 50)
    plain = torch.trace(kernel @ centring @ (one_hot @ one_hot.T) @ centring) / 9
    assert dependence("hsic", LINE, LINE, PAIRS, hsic_form="plain")[1] == pytest.approx(plain.item(), rel=1e-9)
    product = centring @ kernel @ centring @ centring @ (one_hot @ one_hot.T) @ centring
    spectral = torch.linalg.svdvals(product)[0].sqrt() / 4
    assert dependence("coco", LINE, LINE, PAIRS, coco_norm="spectral")[1] == pytest.approx(spectral.item(), rel=1e-6)
    inverse = centring @ (1 / (2 * (1 - one_hot @ one_hot.T) + 1).sqrt()) @ centring
    imq = (kernel @ centring @ inverse).trace() / 9
    assert dependence("hsic", LINE, LINE, PAIRS, hsic_form="plain", label_kernel="imq")[1] == pytest.approx(imq.item())


def test_coco_of_the_original_implementation():
    on_images, on_labels, gradient, _ = reference_case("coco")
    assert (on_images, on_labels) == pytest.approx((0.00204503, 0.03757311), rel=1e-5)
    first = [0.0001138449, -0.0001174684, -6.647944e-05, 0.0002549367, -6.354698e-05, -8.265937e-06]
    assert gradient[:2, :3].flatten().tolist() == pytest.approx(first, rel=1e-4)
    assert gradient.norm().item() == pytest.approx(0.002017832, rel=1e-5)


def test_hsic_of_the_original_implementation():
    """The recording is float32, where the original's one-sided inverse loses digits: the values move by up to 1e-3 and
    the gradient by 30 %. So values are compared as far as they go, and the gradient with the original's formula,
    written out as the authors do, in float64."""
    on_images, on_labels, gradient, (images, hidden, labels) = reference_case("hsic")
    assert on_images == pytest.approx(10.415461, rel=1e-4)
    assert on_labels == pytest.approx(2.982446, rel=1e-3)

    hidden = hidden.clone().requires_grad_()
    identity = torch.eye(12, dtype=torch.float64)
    centring = identity - 1 / 12

    def operator(kernel: torch.Tensor) -> torch.Tensor:
        return kernel @ centring @ torch.inverse(kernel @ centring + 1e-5 * 12 * identity)

    def gaussian(rows: torch.Tensor) -> torch.Tensor:
        differences = (rows.unsqueeze(1) - rows).square().sum(-1)
        return torch.exp(-differences / (2 * 5.0**2 * rows.shape[1]))

    of_hidden = operator(gaussian(hidden))
    to_images = (of_hidden @ operator(gaussian(images))).trace()
    to_labels = (of_hidden @ operator(labels @ labels.T)).trace()
    (0.05 * to_images - 0.5 * to_labels).backward()
    assert (on_images, on_labels) == pytest.approx((to_images.item(), to_labels.item()), rel=1e-8)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_dependence_invariants(measure):
    rng = seeds.generator("bido")
    hidden, images = torch.randn(12, 5, generator=rng), torch.randn(12, 7, generator=rng)
    labels = nn.functional.one_hot(torch.arange(12) % 3, 3)
    value, on_labels = dependence(measure, hidden, images, labels)
    assert 0 <= value <= 11 and 0 <= on_labels <= 2
    assert dependence(measure, images, hidden, labels)[0] == pytest.approx(value, rel=1e-6)
    order = torch.randperm(12, generator=rng)
    assert dependence(measure, hidden[order], images[order], labels[order])[0] == pytest.approx(value, rel=1e-6)
    constant = torch.ones(12, 5, requires_grad=True)
    defense = BiDO(measure=measure, lambda_x=1.0, lambda_y=1.0)
    on_images, on_labels = defense.dependence([constant], images, labels)
    assert on_images.item() == pytest.approx(0, abs=1e-4) and on_labels.item() == pytest.approx(0, abs=1e-4)
    (on_images + on_labels).sum().backward()
    assert constant.grad.isfinite().all()


def test_label_term_of_sixteen_identities_by_four():
    labels = nn.functional.one_hot(torch.arange(64) // 4, 16)
    one_hot = labels.double()
    operator = normalise(centre(one_hot @ one_hot.T), 1e-5)
    assert operator.square().sum().item() == pytest.approx(14.9952, abs=1e-4)


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_dependence_gradients(measure):
    rng = seeds.generator("gradcheck")
    hidden = torch.randn(6, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    images, labels = torch.randn(6, 4, generator=rng), nn.functional.one_hot(torch.arange(6) % 2, 2)
    defense = BiDO(measure=measure, lambda_x=1.0, lambda_y=1.0)
    assert torch.autograd.gradcheck(lambda z: torch.cat(defense.dependence([z], images, labels)), hidden)


def test_bido_sums_over_layers_and_sees_what_the_network_sees():
    model = CNN(classes=3, channels=1, size=16, widths=[4, 4], features=5)
    defense = BiDO(measure="hsic", lambda_x=0.05, lambda_y=0.5)
    loop.assemble(model, defense, seed=0)
    assert defense.taps == model.tap_names
    batch = batch_of(torch.rand(9, 1, 20, 20), labels=torch.arange(9) % 3)
    trace = model(batch.images, taps=defense.taps)
    terms = defense.losses(trace, batch)
    seen, one_hot = model.preprocess(batch.images), nn.functional.one_hot(batch.labels, 3)
    single = [defense.dependence([trace.taps[name]], seen, one_hot) for name in defense.taps]
    assert terms["bido_images"].item() == pytest.approx(0.05 * sum(x.item() for x, _ in single))
    assert terms["bido_labels"].item() == pytest.approx(-0.5 * sum(y.item() for _, y in single))
    soft = defense.losses(trace, replace(batch, labels=one_hot.float()))
    assert torch.equal(soft["bido_labels"], terms["bido_labels"])


def test_bido_lowers_the_dependence_on_images_and_alone_destroys_the_classes():
    """The card's toy: four Gaussian classes under nuisance dimensions, a small MLP, 150 updates of Adam."""
    rng = seeds.generator("gaussians")
    labels = torch.arange(64) % 4
    images = torch.rand(64, 1, 8, 8, generator=rng)
    images[:, 0, 0, :4] = 0.5 + nn.functional.one_hot(labels, 4) + 0.1 * torch.randn(64, 4, generator=rng)
    batch = batch_of(images, labels=labels)

    def result(lambda_x: float, lambda_y: float) -> tuple[float, float]:
        with seeds.isolated("bido toy"):
            model = MLP(classes=4, channels=1, size=8, widths=[32])
        defense = BiDO(measure="hsic", lambda_x=lambda_x, lambda_y=lambda_y)
        loop.assemble(model, defense, seed=0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            trace = model(images, taps=defense.taps)
            terms = defense.losses(trace, batch)
            (cross_entropy(trace.logits, labels).mean() + terms["bido_images"] + terms["bido_labels"]).backward()
            optimizer.step()
        on_images, _ = defense.dependence([trace.features], model.preprocess(images), nn.functional.one_hot(labels))
        return (trace.logits.argmax(1) == labels).float().mean().item(), on_images.item()

    plain, bilateral, alone = result(0.0, 0.0), result(0.05, 0.5), result(1.0, 0.0)
    assert plain[0] == bilateral[0] == 1.0 and bilateral[1] < plain[1] / 2
    assert alone[0] < 0.5 and alone[1] < 1.0


def test_bido_refusals():
    with pytest.raises(Refused, match="measure: got 'HSIC'; choices: hsic, coco"):
        BiDO(measure="HSIC", lambda_x=1, lambda_y=1)
    with pytest.raises(Refused, match="label_kernel"):
        BiDO(measure="hsic", lambda_x=1, lambda_y=1, label_kernel="cosine")
    with pytest.raises(Refused, match="dtype"):
        BiDO(measure="hsic", lambda_x=1, lambda_y=1, dtype="float16")
    defense = BiDO(measure="hsic", lambda_x=1, lambda_y=1, layers=["stage9"])
    with pytest.raises(Refused, match="layers: got 'stage9'; choices: hidden1, features"):
        defense.rebuild(MLP(classes=2, channels=1, widths=[4, 4]))
    with pytest.raises(Refused, match="try loop.assemble"):
        BiDO(measure="hsic", lambda_x=1, lambda_y=1).losses(Trace(torch.zeros(2, 2), torch.zeros(2, 2)), None)


# Stack


class Recorder(Defense):
    """Notes the order of calls and draws one number per transform."""

    def __init__(self, name: str, notes: list) -> None:
        super().__init__()
        self.name, self.notes = name, notes

    def rebuild(self, model, origin=Origin.DRAWN):
        self.notes.append(("rebuild", self.name))
        return model

    def transform(self, batch):
        self.notes.append((self.name, torch.rand(1, generator=batch.rng).item()))
        return batch

    def losses(self, trace, batch):
        return {"extra": trace.logits.sum(1)}


def test_stack_chains_and_keeps_draws_apart():
    notes: list = []
    stack = Stack(members={"first": Recorder("a", notes), "second": Recorder("b", notes)})
    stack.rebuild(nn.Identity())
    batch = batch_of(torch.rand(2, 1, 4, 4))
    assert stack.transform(batch).rng is batch.rng
    alone: list = []
    Stack(members={"second": Recorder("b", alone)}).transform(batch_of(torch.rand(2, 1, 4, 4)))
    assert notes[:2] == [("rebuild", "a"), ("rebuild", "b")] and notes[3] == alone[0] and notes[2][1] != notes[3][1]
    terms = stack.losses(Trace(torch.ones(2, 3), torch.ones(2, 1)), batch)
    assert set(terms) == {"first/extra", "second/extra"}


def test_stack_merges_taps_slots_and_flags():
    model = CNN(classes=3, channels=1, size=16, widths=[4], features=5)
    bido = BiDO(measure="coco", lambda_x=1, lambda_y=1, sampler={"identities": 3, "images": 2})
    stack = Stack(members={"erase": RandomErasing(), "smooth": LabelSmoothing(alpha=-0.05), "bido": bido})
    loop.assemble(model, stack, seed=0)
    assert stack.taps == ("stage1", "features") and set(stack.owns) == {"task", "sampler"}
    assert stack.coupled and not stack.stochastic_when_deployed and stack.sampler == bido.sampler
    assert stack.begin_epoch(model, 99, 100) == {"smooth/alpha": -0.05}
    batch = batch_of(torch.rand(6, 1, 16, 16), labels=torch.arange(6) % 3)
    terms = stack.losses(model(batch.images, taps=stack.taps), batch)
    assert set(terms) == {"task", "bido/bido_images", "bido/bido_labels"}
    assert stack.seal(model) is model and not model.training


def test_stack_refusals():
    smoothing = {"plus": LabelSmoothing(alpha=0.1), "minus": LabelSmoothing(alpha=-0.1)}
    with pytest.raises(Refused, match="one owner of slot 'task', got 'plus' and 'minus'"):
        Stack(members=smoothing)
    samplers = {
        name: BiDO(measure=name, lambda_x=1, lambda_y=1, sampler={"identities": 2, "images": 2})
        for name in ("hsic", "coco")
    }
    with pytest.raises(Refused, match="one owner of slot 'sampler', got 'hsic' and 'coco'"):
        Stack(members=samplers)
    with pytest.raises(Refused, match="expected one or more defenses"):
        Stack(members={})


def test_no_defense_does_nothing():
    defense, model = NoDefense(), MLP(classes=2, channels=1, size=8, widths=[4])
    batch = batch_of(torch.rand(2, 1, 8, 8))
    assert loop.assemble(model, defense, seed=0) is model and defense.transform(batch) is batch
    assert defense.losses(model(batch.images), batch) == {} and not list(defense.parameters())
    edge, _ = model.split("features")
    assert torch.equal(defense.release(edge, batch.images, batch.ids, batch.rng), model.features(batch.images))
