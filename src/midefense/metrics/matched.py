"""Reconstructions of a training set, matched one to one with its images, beside the same matching with images that were
not trained on.

A digit that looks like a digit of its class is no reconstruction: a blurred mean of a class is similar to all of its
images. So every number stands beside what held-out images of the same classes, as many, get from the same candidates.
Sources: Buzaglo et al., NeurIPS 2023 (SSIM above .4 is "good"); Suhail and Sethi, arXiv 2502.00760 (matching by class,
one to one); SSIM of Wang et al., IEEE TIP 2004, with a uniform window as scikit-image has it by default.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from midefense import seeds
from midefense.metrics.base import Judged, Measured, Metric, World, over_classes
from midefense.metrics.intervals import REAL, SHARE
from midefense.ranges import Count, Share
from midefense.types import Refused

STABILISERS = (0.01**2, 0.03**2)  # of SSIM, for images in [0, 1]
AT_ONCE = 2**24  # values of one block of pairs
BEST = (5, 10)  # of how many of the most similar pairs there is a mean
STRICTEST = 0.99  # quantile of the held-out matches that a reconstruction must exceed


class Matched(Metric):
    """SSIM of the pairs of a one-to-one matching, class by class, of reconstructions with training images:

    - `matched_ssim/train` and `matched_ssim/held_out`: means over the images matched, in [-1, 1]. The second stands for
      the same matching with as many private test images, a mean over `nulls` draws of them;
    - `matched_ssim_gain/train`: the first minus the second, with its interval over classes; what a set leaks;
    - `matched_best/train`: the largest SSIM of any pair; `matched_best5/train` and `matched_best10/train`, the means of
      the five and the ten most similar pairs, and `.../held_out`, those of the held-out matches, which some of many
      pairs are by chance; NaN where there are fewer pairs;
    - `reconstructed_share/train`: the share of the training images whose match is above `good` and above the 99 %
      quantile of all held-out matches.

    Args:
        window: side of SSIM's uniform window in pixels (scikit-image: 7; Haim et al. take 3).
        stretch: stretch every reconstruction to [0, 1] first, as Haim et al. do; faint ones become more similar.
        good: least SSIM of a reconstruction that is called one (Buzaglo et al.: .4).
        nulls: draws of held-out images.
    """

    matches = "training_set"
    higher_leaks = True
    best = dict.fromkeys(("matched_ssim", "matched_best", *(f"matched_best{count}" for count in BEST)), 1.0)

    def __init__(self, *, window: Count = 7, stretch: bool = False, good: Share = 0.4, nulls: Count = 20) -> None:
        super().__init__()
        if window % 2 == 0:
            raise Refused(f"Matched.window: expected an odd side, got {window}; try {window + 1}")
        self.window, self.stretch, self.good, self.nulls = window, stretch, good, nulls

    def reset(self) -> None:
        super().reset()
        self._drawings: dict[str, Tensor] = {}

    def drawings(self) -> dict[str, Tensor]:
        """`matched.rows` int64 [K], the reconstruction that each training image was matched with, in the order of
        metrics; `matched.ids` int64 [K] of those images; `matched.ssim` [K]."""
        return self._drawings

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        side = judged.images.shape[-1]
        if side < self.window:
            raise Refused(f"Matched.window: expected at most the {side} px of the images, got {self.window}")
        return {"image": stretched(judged.images) if self.stretch else judged.images}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        labels = rows["label"].unique().tolist()
        tests = world.tests
        counts = {label: int((world.references.labels == label).sum()) for label in labels}
        held_out = {label: 0 if tests is None else int((tests.labels == label).sum()) for label in labels}
        found = [self._match(rows, world, label) for label in labels]
        train = [similarities for similarities, _, _ in found]
        self._drawings = {
            "matched.ssim": torch.cat(train).cpu(),
            "matched.rows": torch.cat([rows_of for _, rows_of, _ in found]).cpu(),
            "matched.ids": torch.cat([ids for _, _, ids in found]).cpu(),
        }
        owners = torch.cat([torch.full((len(one),), label) for one, label in zip(train, labels, strict=True)])
        pairs = torch.cat(train)
        measured = {
            "matched_ssim/train": over_classes(pairs, owners, True, REAL),
            "matched_best/train": Measured(value=float(pairs.max()), n=len(pairs), higher_leaks=True),
            **_means_of_best(pairs[None], "train"),
        }
        if few := [label for label in labels if held_out[label] < counts[label]]:
            lonely = (
                f"fewer test images than training images of classes {few[:5]}: nothing to hold the matching against; "
                "try fewer training images (dataset.images_per_class)"
            )
            names = ("matched_ssim/held_out", "matched_ssim_gain/train", "reconstructed_share/train")
            names += tuple(f"matched_best{count}/held_out" for count in BEST)
            return measured | {
                name: Measured.undefined(lonely, len(pairs), name.endswith("train") or None) for name in names
            }
        null = [self._null(rows, world, label, counts[label]) for label in labels]
        means = torch.stack([one.mean() for one in null])
        bar = max(self.good, float(torch.cat([one.flatten() for one in null]).quantile(STRICTEST)))
        gain = pairs - means.repeat_interleave(torch.tensor([len(one) for one in train]))
        nulls = torch.cat([one.mean(0) for one in null])
        return measured | {
            **_means_of_best(torch.cat(null, dim=1), "held_out"),
            "matched_ssim/held_out": over_classes(nulls, owners, None, REAL),
            "matched_ssim_gain/train": over_classes(gain, owners, True, REAL),
            "reconstructed_share/train": over_classes((pairs > bar).double(), owners, True, SHARE),
        }

    def _null(self, rows: dict[str, Tensor], world: World, label: int, count: int) -> Tensor:
        """Similarities [nulls, count] of the matching with `count` test images of a class, drawn again each time."""
        of_class = (world.tests.labels == label).nonzero()[:, 0]
        rng = seeds.generator("metrics", "matched", label)
        draws = torch.stack([torch.randperm(len(of_class), generator=rng)[:count] for _ in range(self.nulls)])
        looked_at, columns = draws.unique(return_inverse=True)  # an image that is drawn again is compared once
        own = rows["image"][rows["label"] == label]
        table = ssim_of_pairs(own, world.tests.floats(of_class[looked_at], world.device), self.window).cpu()
        return torch.stack([best_pairs(table[:, drawn])[0] for drawn in columns])

    def _match(self, rows: dict[str, Tensor], world: World, label: int) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities [K] of the best matching of a class's reconstructions with its training images, the rows of the
        reconstructions and the ids of the images, int64 [K]."""
        own, private = (rows["label"] == label).nonzero()[:, 0], world.references.of_class(label)
        table = ssim_of_pairs(rows["image"][own], private.floats(device=world.device), self.window).cpu()
        similarities, chosen, matched = best_pairs(table)
        return similarities, own.cpu()[chosen], private.ids[matched]


def _means_of_best(pairs: Tensor, side: str) -> dict[str, Measured]:
    """Mean similarity of the most similar of `pairs` [draws, K], and its mean over draws, for each of `BEST`."""
    leaks = True if side == "train" else None
    found = {}
    for count in BEST:
        name = f"matched_best{count}/{side}"
        if pairs.shape[1] < count:
            found[name] = Measured.undefined(f"{pairs.shape[1]} pairs, fewer than {count}", pairs.shape[1], leaks)
        else:
            value = float(pairs.topk(count, dim=1).values.mean())
            found[name] = Measured(value=value, n=count, higher_leaks=leaks)
    return found


def best_pairs(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The one-to-one matching of rows and columns of a table [N, M] whose values add up to most: those values, and
    their rows and columns, each [min(N, M)]."""
    rows, columns = map(torch.from_numpy, linear_sum_assignment(table.numpy(), maximize=True))
    return table[rows, columns], rows, columns


def ssim_of_pairs(first: Tensor, second: Tensor, window: int) -> Tensor:
    """SSIM of every image of `first` [N, C, H, W] with every one of `second` [M, C, H, W], float64 [N, M]: a uniform
    window, sample covariances, the mean over all windows that lie within the image, and over channels; images in
    [0, 1]. As `skimage.metrics.structural_similarity(data_range=1)`."""
    first, second = first.double(), second.double()
    count = window**2
    unbiased = count / (count - 1)

    def mean(images: Tensor) -> Tensor:
        return F.avg_pool2d(images, window, stride=1)

    def spread(images: Tensor, means: Tensor) -> Tensor:
        return unbiased * (mean(images.square()) - means.square())

    means = mean(first), mean(second)
    spreads = spread(first, means[0]), spread(second, means[1])
    width = max(1, AT_ONCE // second.numel())
    tables = []
    for rows in range(0, len(first), width):
        part = slice(rows, rows + width)
        together = mean((first[part, None] * second).flatten(0, 1)).unflatten(0, (-1, len(second)))
        product = means[0][part, None] * means[1]
        covariance = unbiased * (together - product)
        light = (2 * product + STABILISERS[0]) / (means[0][part, None].square() + means[1].square() + STABILISERS[0])
        contrast = (2 * covariance + STABILISERS[1]) / (spreads[0][part, None] + spreads[1] + STABILISERS[1])
        tables.append((light * contrast).flatten(2).mean(2))
    return torch.cat(tables)


def stretched(images: Tensor) -> Tensor:
    """Each image with its least pixel at 0 and its largest at 1; one of a single colour stays as it is."""
    low, high = images.flatten(1).aminmax(dim=1)
    low, span = low[:, None, None, None], (high - low)[:, None, None, None]
    return torch.where(span > 0, (images - low) / span.clamp(min=math.ulp(1)), images)
