"""Masking and mixing defenses: what is hidden and how often, against closed forms and the numbers of the cards."""

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from midefense import seeds
from midefense.architectures.small import CNN, MLP
from midefense.defenses.base import Defense, NoDefense, Stack, cross_entropy
from midefense.defenses.bido import BiDO
from midefense.defenses.label_smoothing import LabelSmoothing, smoothed_cross_entropy
from midefense.defenses.masking import Cutout, EntireErasing, GridMask, HideAndSeek, PixelDropout
from midefense.defenses.mixing import CutMix, Mixup
from midefense.defenses.random_erasing import RandomErasing
from midefense.training import loop
from midefense.training.augmentations import HorizontalFlip
from midefense.training.recipe import Recipe
from midefense.types import Batch, Images, Refused

MASKS = {
    "cutout": functools.partial(Cutout, side=0.5),
    "hide_and_seek": HideAndSeek,
    "gridmask": GridMask,
    "pixel_dropout": PixelDropout,
    "torus": functools.partial(RandomErasing, location="torus"),
    "boundary": functools.partial(RandomErasing, location="boundary"),
}


def batch_of(images: torch.Tensor, key: object = 0, labels: torch.Tensor | None = None) -> Batch:
    count = len(images)
    labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels
    return Batch(images, labels, torch.arange(count), torch.ones(count), seeds.generator("test", key))


def unmade(count: int, height: int, width: int | None = None) -> torch.Tensor:
    """Images whose pixels nobody looks at."""
    return torch.empty(count, 1, 1, 1).expand(-1, -1, height, width or height)


def ready(defense: Defense, size: int = 32, channels: int = 1, classes: int = 2) -> Defense:
    loop.assemble(MLP(classes=classes, channels=channels, size=size, widths=[4]), defense, seed=0)
    return defense


def hidden_by(defense: Defense, count: int, size: int, key: object = 0) -> torch.Tensor:
    return ready(defense, size).hidden(batch_of(unmade(count, size), key))[:, 0]


# What all masks share


@pytest.mark.parametrize("name", MASKS)
def test_masks_write_the_exact_fill_and_touch_nothing_else(name):
    images = torch.rand(40, 3, 32, 24, generator=seeds.generator("pictures"))
    value = [2.0, 3.0, 4.0]
    defense = ready(MASKS[name](value=value, fill_space="pixel"), channels=3)
    hidden = defense.hidden(batch_of(images)).expand_as(images)
    masked = defense.transform(batch_of(images)).images
    assert hidden.any() and not hidden.all()
    assert torch.equal(masked[hidden], torch.tensor(value).view(3, 1, 1).expand_as(images)[hidden])
    assert torch.equal(masked[~hidden], images[~hidden])


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_drawn_per_image_anew_in_every_batch_and_the_same_under_a_seed(name):
    first, again, later = (hidden_by(MASKS[name](), 30, 32, key) for key in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert len(first.flatten(1).unique(dim=0)) > 20


@pytest.mark.parametrize("name", MASKS)
def test_masks_spare_the_share_that_p_says(name):
    images = torch.rand(4000, 1, 8, 8, generator=seeds.generator("pictures"))
    assert torch.equal(ready(MASKS[name](p=0.0)).transform(batch_of(images)).images, images)
    touched = [
        (ready(MASKS[name](p=p, value=2.0)).transform(batch_of(images)).images != images).flatten(1).any(1).float()
        for p in (0.25, 1.0)
    ]
    assert touched[0].mean().item() == pytest.approx(0.25 * touched[1].mean().item(), abs=0.02)


def test_the_normalised_fill_is_what_the_network_sees():
    model = MLP(classes=2, channels=3, widths=[4], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    defense = PixelDropout(q=1.0, value=0.0)
    loop.assemble(model, defense, seed=0)
    seen = model.preprocess(defense.transform(batch_of(torch.rand(2, 3, 32, 32))).images)
    assert seen.abs().max() < 1e-6


# One mask after the other


@pytest.mark.parametrize(("side", "area"), [(0.5, 0.19140625), (0.25, 0.054931640625)])
def test_cutout_loses_area_at_the_edges(side, area):
    """64 px: a square of 32 hides .191 on average and one of 16 .055, where .25 and .0625 would be whole squares."""
    defense = Cutout(side=side)
    assert hidden_by(defense, 4000, 64).float().mean().item() == pytest.approx(area, rel=0.03)
    tops, lefts, tall, wide = defense.boxes(2000, 64, 64, seeds.generator("test", 0))
    length = round(64 * side)
    assert (tall == length).all() and (wide == length).all()
    for edges in (tops, lefts):
        assert edges.min() == -length // 2 and edges.max() == 63 - length // 2


def test_cutout_of_a_batch_is_cutout_of_each():
    defense = ready(Cutout(side=0.4))
    hidden = defense.hidden(batch_of(unmade(30, 32, 24)))
    boxes = defense.boxes(30, 32, 24, seeds.generator("test", 0)).T.tolist()
    for mask, (top, left, tall, wide) in zip(hidden, boxes, strict=True):
        expected = torch.zeros(1, 32, 24, dtype=torch.bool)
        expected[:, max(top, 0) : top + tall, max(left, 0) : left + wide] = True
        assert torch.equal(mask, expected)


def test_hide_and_seek_hides_cells_by_the_binomial():
    hidden = hidden_by(HideAndSeek(grids=[8], q=0.3), 4000, 32)
    cells = hidden.unflatten(2, (8, 4)).unflatten(1, (8, 4))  # [B, 8, 4, 8, 4]
    assert torch.equal(cells.any(4).any(2), cells.all(4).all(2)), "a cell is hidden as a whole or not at all"
    counts = cells.any(4).any(2).flatten(1).sum(1).double()
    assert counts.mean().item() == pytest.approx(64 * 0.3, abs=0.25)
    assert counts.var().item() == pytest.approx(64 * 0.3 * 0.7, rel=0.1)


def test_hide_and_seek_draws_a_grid_per_image():
    hidden = hidden_by(HideAndSeek(grids=[1, 2], q=0.5), 4000, 8).unflatten(2, (2, 4)).unflatten(1, (2, 4))
    quarters = hidden.any(4).any(2).flatten(1).sum(1)
    uniform = ((quarters == 0) | (quarters == 4)).float().mean().item()
    assert uniform == pytest.approx(0.5 + 0.5 * 2 / 16, abs=0.03)
    uneven = hidden_by(HideAndSeek(grids=[3], q=0.5), 4000, 8)
    assert uneven.float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_gridmask_is_periodic_squares():
    hidden = hidden_by(GridMask(period=[0.5, 0.5], kept=0.5), 500, 32)
    assert torch.equal(hidden[:, :16], hidden[:, 16:]) and torch.equal(hidden[..., :16], hidden[..., 16:])
    assert (hidden.flatten(1).sum(1) == 4 * 8 * 8).all()
    rows = hidden.any(2)
    assert torch.equal(hidden, rows.unsqueeze(2) & hidden.any(1).unsqueeze(1)) and (rows.sum(1) == 16).all()
    assert len(rows.unique(dim=0)) == 16, "all offsets"
    assert hidden_by(GridMask(kept=0.75), 500, 224).float().mean().item() == pytest.approx(0.25**2, rel=0.05)
    assert not hidden_by(GridMask(kept=1.0), 10, 32).any() and hidden_by(GridMask(kept=0.0), 10, 32).all()


def test_pixel_dropout_hides_pixels_by_the_binomial():
    counts = hidden_by(PixelDropout(q=0.25), 4000, 16).flatten(1).sum(1).double()
    assert counts.mean().item() == pytest.approx(64, abs=0.5) and counts.var().item() == pytest.approx(48, rel=0.1)


# Where rectangles lie


def coverage(size: int, high: float, row: int, column: int) -> float:
    """Exact probability that random erasing of scale (.1, high) hides a pixel: a sum over sides and places."""
    total = 0.0
    for side in range(1, size):
        low, top = max((side - 0.5) ** 2 / size**2, 0.1), min((side + 0.5) ** 2 / size**2, high)
        places = size - side + 1
        covering = [min(at, size - side) - max(0, at - side + 1) + 1 for at in (row, column)]
        total += max(top - low, 0) / (high - 0.1) * covering[0] * covering[1] / places**2
    return total


@pytest.mark.parametrize("high", [0.4, 0.8])
@pytest.mark.parametrize("size", [64, 112, 224])
def test_random_places_hide_the_middle_most(size, high):
    defense = ready(RandomErasing(scale=(0.1, high)), size)
    top, left, tall, wide = defense.boxes(batch_of(unmade(20_000, size)))
    for row, column in [(size // 2, size // 2), (size // 4, size // 4), (size // 2, 0), (0, 0), (size // 3, size - 2)]:
        inside = (top <= row) & (row < top + tall) & (left <= column) & (column < left + wide)
        assert inside.float().mean().item() == pytest.approx(coverage(size, high, row, column), abs=0.011)


def test_the_coverage_of_the_card():
    assert coverage(224, 0.4, 112, 112) == pytest.approx(0.769, abs=2e-3)
    assert coverage(224, 0.4, 112, 0) == pytest.approx(0.008, abs=1e-3)
    assert coverage(224, 0.4, 0, 0) == pytest.approx(8e-5, abs=1e-5)
    assert coverage(224, 0.8, 112, 112) == pytest.approx(0.901, abs=2e-3)
    assert coverage(64, 0.8, 32, 32) == pytest.approx(0.896, abs=2e-3)


def test_the_torus_hides_every_pixel_equally_often():
    hidden = hidden_by(RandomErasing(location="torus"), 20_000, 32).float()
    plain = hidden_by(RandomErasing(), 20_000, 32).float()
    assert hidden.mean().item() == pytest.approx(plain.mean().item(), abs=1e-6), "the same sizes"
    assert (hidden.mean(0) - hidden.mean()).abs().max() < 0.016
    assert (plain.mean(0) - plain.mean()).abs().max() > 0.2
    crossing = hidden[:, 0].any(1) & hidden[:, -1].any(1)
    assert crossing.float().mean().item() > 0.3, "rectangles come back at the other edge"


def corners(count: int = 20_000, size: int = 8, **settings) -> torch.Tensor:
    """How often each top left corner was drawn [size, size]."""
    top, left, tall, wide = ready(RandomErasing(**settings), size).boxes(batch_of(unmade(count, size)))
    assert (tall > 0).all() and (top + tall <= size).all() and (left + wide <= size).all()
    return torch.bincount(top * size + left, minlength=size * size).view(size, size)


@pytest.mark.parametrize(
    ("side", "avoid_center", "allowed", "ruled_out"),
    [
        (4, "contained", 5, [(2, 2)]),
        (3, "contained", 6, [(row, column) for row in (2, 3) for column in (2, 3)]),
        (2, "strict", 7, [(row, column) for row in range(1, 6) for column in range(1, 6)]),
        (1, "strict", 8, [(row, column) for row in range(2, 6) for column in range(2, 6)]),
    ],
)
@pytest.mark.parametrize("location", ["boundary", "per_image_boundary"])
def test_the_central_half_is_avoided_and_all_else_is_as_likely(side, avoid_center, allowed, ruled_out, location):
    """8 px: the central half is the pixels 2 to 5."""
    share = (side / 8) ** 2
    counts = corners(scale=(share, share), location=location, avoid_center=avoid_center)
    expected = torch.zeros(8, 8)
    expected[:allowed, :allowed] = 1
    for row, column in ruled_out:
        expected[row, column] = 0
    expected *= 20_000 / expected.sum()
    assert torch.equal(counts > 0, expected > 0)
    assert ((counts - expected).abs() <= 5 * expected.sqrt()).all()


def test_the_boundary_of_the_authors_rules_out_one_place_in_a_hundred():
    """224 px, squares of 100: 13 of 124 places per axis lie in the central half."""
    settings = {"scale": (0.2, 0.2)}
    images = unmade(40_000, 224)

    def contained(location: str) -> float:
        top, left, tall, _ = ready(RandomErasing(location=location, **settings), 224).boxes(batch_of(images))
        assert (tall == 100).all()
        return ((top >= 56) & (top <= 68) & (left >= 56) & (left <= 68)).float().mean().item()

    assert contained("random") == pytest.approx((13 / 125) ** 2, abs=0.002)
    assert contained("boundary") == contained("per_image_boundary") == 0


def test_images_without_an_allowed_place_stay_whole():
    """A square of 30 px * sqrt(1/16) rounds to 8, one more than the edge of 7 takes."""
    defense = ready(RandomErasing(scale=(0.0625, 0.0625), location="boundary", avoid_center="strict"), 30)
    images = torch.rand(20, 1, 30, 30)
    assert torch.equal(defense.transform(batch_of(images)).images, images)


# Fixed places and the order of the trainer


class Seen(Defense):
    """Keeps the batches that reach the network."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    def transform(self, batch: Batch) -> Batch:
        self.batches.append(batch)
        return batch


def pictures(count: int = 40, size: int = 8) -> Images:
    rng = seeds.generator("stored")
    pixels = torch.randint(256, (count, 1, size, size), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 2, 1000 + torch.arange(count), ["first", "second"])


def shown(defense: Defense, epochs: int = 2, augment: tuple = (), batch_size: int = 16) -> list[Batch]:
    """The batches of a training under `defense`, as the network saw them."""
    seen, images = Seen(), pictures()
    stack = Stack(members={"defense": defense, "seen": seen})
    with seeds.isolated("network"):
        model = MLP(classes=2, channels=1, size=8, widths=[4])
    optimizer = functools.partial(torch.optim.SGD, lr=0.01)
    recipe = Recipe(epochs=epochs, batch_size=batch_size, optimizer=optimizer, augment=augment)
    loop.assemble(model, stack, seed=0)
    assert len(list(loop.fit(model, stack, images, recipe, seed=0))) == epochs
    return seen.batches


def by_id(batches: list[Batch]) -> torch.Tensor:
    images, ids = torch.cat([batch.images for batch in batches]), torch.cat([batch.ids for batch in batches])
    return images[ids.argsort()]


def test_fixed_erasing_hides_the_same_pixels_in_every_epoch_and_under_every_augmentation():
    fixed = {"scale": (0.2, 0.2), "value": 2.0, "fill_space": "pixel"}
    plain = shown(RandomErasing(location="per_image", **fixed))
    first, second = by_id(plain[:3]), by_id(plain[3:])
    assert torch.equal(first, second)
    assert len((first == 2).flatten(1).unique(dim=0)) > 10, "but other pixels in another image"
    mirrored = by_id(shown(RandomErasing(location="per_image", **fixed), augment=(HorizontalFlip(p=1.0),))[:3])
    assert torch.equal(mirrored, first.flip(3)), "hidden before the augmentation, so that no epoch shows the rest"
    moving = shown(RandomErasing(**fixed))
    assert not torch.equal(by_id(moving[:3]), by_id(moving[3:]))


@pytest.mark.parametrize(("rate", "updates"), [(1.0, 5), (0.6, 3), (0.2, 1), (0.01, 1)])
def test_entire_erasing_makes_fewer_updates_on_other_images_each_epoch(rate, updates):
    batches, all_batches = shown(EntireErasing(rate=rate), batch_size=8), shown(NoDefense(), batch_size=8)
    assert len(batches) == 2 * updates
    kept = [*all_batches[:updates], *all_batches[5 : 5 + updates]]
    assert all(torch.equal(batch.images, other.images) for batch, other in zip(batches, kept, strict=True))
    ids = [set(torch.cat([batch.ids for batch in epoch]).tolist()) for epoch in (batches[:updates], batches[updates:])]
    assert len(ids[0]) == len(ids[1]) == 8 * updates and (rate == 1 or ids[0] != ids[1])


def test_shares_of_an_epoch_multiply_in_a_stack():
    members = {"one": EntireErasing(rate=0.5), "two": EntireErasing(rate=0.5), "three": NoDefense()}
    assert Stack(members=members).epoch_share == 0.25


# Mixing


def constant_images(count: int) -> Batch:
    """Image i has the value i everywhere and label i: whatever is mixed, its mean is that of its labels."""
    values = torch.arange(count)
    return batch_of(values.float().view(-1, 1, 1, 1).expand(-1, 1, 12, 16), labels=values)


@pytest.mark.parametrize("kind", [CutMix, Mixup])
def test_labels_are_mixed_by_the_exact_share_of_the_pixels(kind):
    defense = ready(kind(p=1.0, alpha=1.0), classes=500)
    batch = constant_images(500)
    mixed = defense.transform(batch)
    assert mixed.labels.shape == (500, 500) and mixed.labels.min() >= 0
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(500))
    torch.testing.assert_close(mixed.images.mean((1, 2, 3)), mixed.labels @ torch.arange(500.0), rtol=1e-5, atol=1e-3)
    own = mixed.labels[torch.arange(500), batch.labels]
    assert own.unique().numel() > 20, "a share of its own for every image"
    again = defense.transform(replace(batch, rng=seeds.generator("test", 0)))
    assert torch.equal(again.images, mixed.images) and torch.equal(again.labels, mixed.labels)


def test_cutmix_pastes_one_rectangle():
    mixed = ready(CutMix(p=1.0), classes=500).transform(constant_images(500))
    pasted = mixed.images[:, 0] != torch.arange(500.0).view(-1, 1, 1)
    assert torch.equal(pasted, pasted.any(2, keepdim=True) & pasted.any(1, keepdim=True)) and pasted.any()
    for line in (pasted.any(2), pasted.any(1)):
        assert (line.int().diff(dim=1) == 1).sum(1).max() <= 1, "without a gap"


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_are_beta(alpha):
    mixed = ready(Mixup(p=1.0, alpha=alpha), classes=2000).transform(constant_images(2000))
    own = mixed.labels[torch.arange(2000), torch.arange(2000)]
    assert own.mean().item() == pytest.approx(0.5, abs=0.03)
    assert own.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("kind", [CutMix, Mixup])
def test_mixing_spares_the_share_that_p_says(kind):
    batch = constant_images(2000)
    assert ready(kind(p=0.0, alpha=1.0)).transform(batch) is batch, "labels too: soft ones are rounded otherwise"
    mixed = ready(kind(p=0.25, alpha=4.0), classes=2000).transform(batch)
    whole = mixed.labels[torch.arange(2000), batch.labels] == 1
    assert whole.float().mean().item() == pytest.approx(0.75, abs=0.04)
    assert torch.equal(mixed.images[whole], batch.images[whole])


@pytest.mark.parametrize("alpha", [-0.05, 0.0, 0.1])
def test_the_smoothed_loss_of_a_mixture_is_the_mixture_of_smoothed_losses(alpha):
    rng = seeds.generator("logits")
    logits = 3 * torch.randn(20, 6, generator=rng)
    mixed = torch.rand(20, 6, generator=rng).softmax(1)
    each = torch.stack([smoothed_cross_entropy(logits, torch.full((20,), label), alpha) for label in range(6)], 1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, mixed, alpha), (mixed * each).sum(1))


def test_mixtures_of_mixtures_train_under_smoothing_and_bido():
    members = {
        "cutmix": CutMix(p=1.0),
        "mixup": Mixup(p=1.0),
        "smooth": LabelSmoothing(alpha=-0.05, start=0.0, full=0.0),
        "bido": BiDO(measure="hsic", lambda_x=0.05, lambda_y=0.5),
    }
    stack = Stack(members=members)
    model = CNN(classes=3, channels=1, size=16, widths=[4], features=5)
    loop.assemble(model, stack, seed=0)
    batch = batch_of(torch.rand(12, 1, 16, 16, generator=seeds.generator("mix")), labels=torch.arange(12) % 3)
    mixed = stack.transform(batch)
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(12))
    trace = model(mixed.images, taps=stack.taps)
    terms = stack.losses(trace, mixed)
    assert set(terms) == {"task", "bido/bido_images", "bido/bido_labels"}
    torch.testing.assert_close(terms["task"], smoothed_cross_entropy(trace.logits, mixed.labels, -0.05))
    sum(term.sum() for term in terms.values()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


# What it is for


def test_strong_erasing_leaks_less_of_the_joint_pattern():
    """The card's toy: a class is one pattern in the left half and the same in the right; either would do to tell it.
    Inputs that the trained network takes for a class look less like the class if it never saw both halves."""
    half = 0.5 + 0.5 * torch.randn(6, 1, 8, 4, generator=seeds.generator("patterns"))
    means = torch.cat([half, half], 3)

    def faces(count: int, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 6
        noise = torch.randn(count, 1, 8, 8, generator=seeds.generator("two features", key))
        return means[labels] + 0.45 * noise, labels

    def leak(defense: Defense) -> tuple[float, float]:
        """Correlation of inverted inputs with the class means, and accuracy on unseen faces."""
        images, labels = faces(300, "train")
        with seeds.isolated("toy"):
            model = MLP(classes=6, channels=1, size=8, widths=[64])
        loop.assemble(model, defense, seed=0)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for step in range(600):
            batch = defense.transform(batch_of(images, step, labels))
            optimizer.zero_grad()
            cross_entropy(model(batch.images).logits, batch.labels).mean().backward()
            optimizer.step()
        found = torch.full((6, 1, 8, 8), 0.5, requires_grad=True)
        for _ in range(100):
            loss = cross_entropy(model(found).logits, torch.arange(6)).sum()
            found = (found - 0.1 * torch.autograd.grad(loss, found)[0]).detach().requires_grad_()
        similar = F.cosine_similarity((found - 0.5).flatten(1), (means - means.mean(0)).flatten(1))
        unseen, truth = faces(600, "test")
        return similar.mean().item(), (model(unseen).logits.argmax(1) == truth).float().mean().item()

    plain, erased = leak(NoDefense()), leak(RandomErasing(scale=(0.1, 0.8), value=0.0))
    assert plain[1] > 0.99 and erased[1] > 0.99
    assert erased[0] < plain[0] - 0.05


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cutout(fill_space="raw"), "fill_space: got 'raw'; choices: normalized, pixel"),
        (lambda: GridMask(period=[0.5, 0.25]), "period: expected 0 < low <= high <= 1"),
        (lambda: EntireErasing(rate=0.0), "rate: expected a share of the batches"),
        (lambda: EntireErasing(rate=1.1), "rate: expected a share of the batches"),
        (lambda: Mixup(alpha=0.0), "alpha: expected above 0"),
        (lambda: RandomErasing(avoid_center="none"), "avoid_center: got 'none'; choices: contained, strict"),
        (lambda: RandomErasing(location="boundary", avoid_center="strict"), "avoid_center: strict leaves a quarter"),
        (lambda: Cutout().transform(batch_of(torch.rand(2, 1, 8, 8))), r"Cutout: expected rebuild.*loop.assemble"),
        (lambda: CutMix().transform(batch_of(torch.rand(2, 1, 8, 8))), r"CutMix: expected rebuild.*loop.assemble"),
        (lambda: ready(Cutout(value=[0.1, 0.2]), channels=3), "value: expected 1 or 3 values for 3 channels, got 2"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(Refused, match=message):
        make()
