"""How much of a target's weights its own training images leave unexplained: the anchor of reconstruction from weights.

An attack that looks for images whose gradients add up to the weights can find the training images only if those do so
better than other images of the same classes. That can be asked before any search: with the true images given, the best
multipliers are a nonnegative least-squares problem (Lawson and Hanson, 1974; the conditions are those of Haim et al.,
NeurIPS 2022, and Buzaglo et al., NeurIPS 2023; card network_inversion.md, 4.7).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from midefense import seeds
from midefense.metrics.base import Judged, Measured, Metric, World
from midefense.ranges import Count
from midefense.types import Images

AT_ONCE = 2**25  # numbers of one block of gradients, in float64; a few blocks are in memory at once
Columns = Callable[[slice], Tensor]  # the gradients [columns, parameters] that belong to a slice of the images


class UnexplainedWeights(Metric):
    """`unexplained_weights/train` and `unexplained_weights/held_out`, in [0, 1]: the least squared distance of the
    weights from a sum of gradients at images with multipliers of at least 0, over the weights' squared norm; of all
    training images, and of as many private test images of each class, the mean over `draws`.

    0 is what a network at rest gets from its training images, 1 what images get that explain nothing. Where both
    numbers are alike, no attack on these conditions can tell training images from others. It is oracle-assisted (nobody
    who attacks has the training images), and looks at no reconstruction.

    Args:
        coefficients: `all_pairs`, a multiplier for every image and other class; `runner_up`, one for every image, for
            the class that comes next.
        draws: of held-out images.
        columns: most multipliers that are solved for; beyond, both numbers are NaN (the time grows with the cube).
    """

    kind = "oracle"
    matches = None

    def __init__(
        self, *, coefficients: Literal["all_pairs", "runner_up"] = "all_pairs", draws: Count = 3, columns: Count = 2000
    ) -> None:
        super().__init__()
        self.coefficients, self.draws, self.columns = coefficients, draws, columns

    def update(self, judged: Judged, world: World) -> None:
        """Nothing to see: what explains the weights does not depend on recovered images."""

    def compute(self, world: World) -> dict[str, Measured]:
        names = ("unexplained_weights/train", "unexplained_weights/held_out")
        if world.target is None:
            return {name: Measured.undefined("no target is at hand") for name in names}
        if any(getattr(module, "draws_when_deployed", False) for module in world.target.modules()):
            reason = "the target draws for every answer, so that no one gradient belongs to an image"
            return {name: Measured.undefined(reason) for name in names}
        train, tests = world.references, world.tests
        per_image = world.classes - 1 if self.coefficients == "all_pairs" else 1
        if len(train) * per_image > self.columns:
            reason = (
                f"{len(train) * per_image} multipliers, more than the {self.columns} that are solved for; "
                "try fewer training images (dataset.images_per_class), or coefficients=runner_up"
            )
            return {name: Measured.undefined(reason, len(train)) for name in names}
        found = {names[0]: Measured(value=self._of(train, world), n=len(train))}
        counts = {label: int((train.labels == label).sum()) for label in train.labels.unique().tolist()}
        few = [k for k, count in counts.items() if tests is None or int((tests.labels == k).sum()) < count]
        if few:
            reason = f"fewer test images than training images of classes {few[:5]}; try dataset.images_per_class"
            return found | {names[1]: Measured.undefined(reason, len(train))}
        draws = [self._of(tests.take(_drawn(tests, counts, draw)), world) for draw in range(self.draws)]
        return found | {names[1]: Measured(value=float(np.mean(draws)), n=len(train) * self.draws)}

    def _of(self, images: Images, world: World) -> float:
        labels = images.labels.to(world.device)
        return unexplained(world.target, images.floats(device=world.device), labels, world.classes, self.coefficients)[
            0
        ]


def _drawn(tests: Images, counts: dict[int, int], draw: int) -> Tensor:
    """Rows of as many test images of each class as there are training images, int64 [N]."""
    rows = []
    for label, count in counts.items():
        of_class = (tests.labels == label).nonzero()[:, 0]
        rng = seeds.generator("metrics", "unexplained weights", label, draw)
        rows.append(of_class[torch.randperm(len(of_class), generator=rng)[:count]])
    return torch.cat(rows)


def unexplained(
    model: nn.Module, images: Tensor, labels: Tensor, classes: int, coefficients: str = "all_pairs"
) -> tuple[float, Tensor]:
    """The share of the weights' squared norm that gradients of the margins at these images leave, in [0, 1], and the
    multipliers that do best, float64 [N, classes - 1] or, for the `runner_up`, [N, 1].

    Args:
        model: called as `model(images)`; returns a `Trace`. A copy in float64 is asked, as it answers once deployed.
        images: float [N, C, H, W] in [0, 1].
        labels: int64 [N].
        classes: how many of its outputs, the first, are told apart.
    """
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    theta = {name: value.detach() for name, value in model.named_parameters()}
    flat = torch.cat([value.flatten() for value in theta.values()])
    columns = _margin_gradients(model, theta, images.double(), labels, classes, coefficients)
    width = max(1, AT_ONCE // (classes * len(flat)))
    products, along = _products(columns, len(images), width, flat)
    norm = float(flat.square().sum())
    multipliers = _nonnegative(products, along)
    left = norm - 2 * float(along @ multipliers) + float(multipliers @ products @ multipliers)
    return min(max(left / norm, 0.0), 1.0), torch.from_numpy(multipliers).view(len(images), -1)


def _margin_gradients(
    model: nn.Module,
    theta: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    classes: int,
    coefficients: str,
) -> Columns:
    """How gradients of the margins of a slice of the images are made: rows [B * (classes - 1), P] or [B, P]."""

    def logits(weights: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.func.functional_call(model, weights, (image[None],)).logits[0, :classes]
        return found, found

    of_each = torch.func.vmap(torch.func.jacrev(logits, has_aux=True), in_dims=(None, 0))

    def columns(rows: slice) -> Tensor:
        jacobians, values = of_each(theta, images[rows])
        gradients = torch.cat([part.flatten(2) for part in jacobians.values()], 2)  # [B, classes, P]
        own = torch.nn.functional.one_hot(labels[rows], classes).bool()
        if coefficients == "runner_up":
            own_gradients = gradients[own]
            second = values.masked_fill(own, -torch.inf).argmax(1)
            return own_gradients - gradients[torch.arange(len(second), device=second.device), second]
        return (gradients[own][:, None] - gradients)[~own]

    return columns


def _products(columns: Columns, count: int, width: int, flat: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """All inner products of the columns with each other [K, K] and with the weights [K]; two blocks of `width` images
    are in memory at once."""
    blocks = [slice(start, min(start + width, count)) for start in range(0, count, width)]
    rows, along = [], []
    for number, first in enumerate(blocks):
        mine = columns(first)
        along.append(mine @ flat)
        rows.append([mine @ (mine if other is first else columns(other)).T for other in blocks[number:]])
    sides = [len(part) for part in along]
    products = flat.new_zeros(sum(sides), sum(sides))
    starts = np.cumsum([0, *sides])
    for number, parts in enumerate(rows):
        for other, part in enumerate(parts, start=number):
            here, there = slice(*starts[number : number + 2]), slice(*starts[other : other + 2])
            products[here, there], products[there, here] = part, part.T
    return products.cpu().numpy(), torch.cat(along).cpu().numpy()


def _nonnegative(products: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The multipliers [K] of at least 0 that bring the sum of columns nearest to the weights, by the columns' inner
    products: the problem turned into its principal directions, as columns themselves may not fit in memory."""
    sizes, directions = np.linalg.eigh(products)
    kept = sizes > len(sizes) * np.finfo(float).eps * sizes.max(initial=0)
    roots = np.sqrt(sizes[kept])
    if not len(roots):  # no image moves any weight
        return np.zeros(len(along))
    matrix = roots[:, None] * directions[:, kept].T
    return nnls(matrix, (directions[:, kept].T @ along) / roots, maxiter=30 * len(along))[0]
