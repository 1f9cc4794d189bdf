"""Bilateral dependency optimisation (BiDO; Peng et al., KDD 2022): hidden features should depend little on the image
and much on the label. Dependence is measured by normalised HSIC or by COCO, over the images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from midefense.architectures.base import Classifier
from midefense.defenses.base import Defense
from midefense.ranges import Positive
from midefense.types import Batch, Origin, Refused, Trace, refuse_unknown

MEASURES = ("hsic", "coco")
HSIC_FORMS = ("normalized", "plain")
COCO_NORMS = ("frobenius", "spectral")
LABEL_KERNELS = ("linear", "gaussian", "imq")
BLOCKS = "blocks"  # all stages but a stem
ROOT_GUARD = 1e-12  # under both roots of COCO, whose gradient is not finite where the kernels' product is zero


class BiDO(Defense):
    """Adds `sum over layers of lambda_x d(z, x) - lambda_y d(z, y)`, with z a layer's output, x the image as the
    network sees it and y the one-hot label.

    `measure`: `hsic` or `coco`. `sigma`: the Gaussian bandwidth is `sigma sqrt(d)` for d-dimensional vectors. `eps`:
    the ridge of normalised HSIC. `hsic_form`: `normalized` as the authors' code, or the `plain` estimator of their
    paper; `coco_norm`: `frobenius` as the code, or `spectral` as the paper; lambdas do not carry over between forms.
    `layers`: taps; None for all stages up to the features, `blocks` for the same without a stem, which is the authors'
    choice for VGG16 and MCNN, whose networks have none. `dtype` of kernels and solves. `sampler`: the batches it asks
    for, such as `{identities: 16, images: 4}`, since d grows with the classes in a batch; None keeps the recipe's.
    """

    revision = 1
    needs_classes = True
    coupled = True
    neutral: ClassVar[dict[str, float]] = {"lambda_x": 0.0, "lambda_y": 0.0}

    def __init__(
        self,
        *,
        measure: str,
        lambda_x: float,
        lambda_y: float,
        sigma: Positive = 5.0,
        label_kernel: str = "linear",
        eps: Positive = 1e-5,
        hsic_form: str = "normalized",
        coco_norm: str = "frobenius",
        layers: Sequence[str] | str | None = None,
        dtype: str = "float64",
        sampler: str | dict[str, int | str] | None = None,
    ) -> None:
        super().__init__()
        if measure not in MEASURES:
            raise refuse_unknown("measure", measure, MEASURES)
        if hsic_form not in HSIC_FORMS:
            raise refuse_unknown("hsic_form", hsic_form, HSIC_FORMS)
        if coco_norm not in COCO_NORMS:
            raise refuse_unknown("coco_norm", coco_norm, COCO_NORMS)
        if label_kernel not in LABEL_KERNELS:
            raise refuse_unknown("label_kernel", label_kernel, LABEL_KERNELS)
        if dtype not in ("float64", "float32"):
            raise refuse_unknown("dtype", dtype, ("float64", "float32"))
        self.measure = measure
        self.lambda_x = lambda_x
        self.lambda_y = lambda_y
        self.sigma = sigma
        self.label_kernel = label_kernel
        self.eps = eps
        self.hsic_form = hsic_form
        self.coco_norm = coco_norm
        self.layers = layers
        self.dtype = getattr(torch, dtype)
        self.sampler = sampler
        self.owns = ("sampler",) if sampler is not None else ()

    def rebuild(self, model: Classifier, origin: Origin = Origin.DRAWN) -> Classifier:
        """Look up the layers and the preprocessing in front of them. Raises `Refused` for an unknown layer."""
        if isinstance(self.layers, str) and self.layers != BLOCKS:
            raise refuse_unknown("layers", self.layers, (BLOCKS,), "Or name a list of stages.")
        stages = model.tap_names[: model.tap_names.index("features") + 1]  # a defense's own stages stand behind
        blocks = [name for name in stages if name != "stem"]
        self.taps = tuple(blocks if self.layers == BLOCKS else self.layers or stages)
        for name in self.taps:
            if name not in model.tap_names:
                raise refuse_unknown("layers", name, model.tap_names)
        self.preprocess = model.preprocess
        return model

    def losses(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        if not self.taps:
            raise Refused("bido: expected rebuild(model) before training, got none; try loop.assemble")
        labels = batch.labels
        if not labels.is_floating_point():
            labels = F.one_hot(labels, trace.logits.shape[1])
        hidden = [trace.taps[name] for name in self.taps]
        on_images, on_labels = self.dependence(hidden, self.preprocess(batch.images), labels)
        return {"bido_images": self.lambda_x * on_images.sum(), "bido_labels": -self.lambda_y * on_labels.sum()}

    def dependence(self, hidden: Sequence[Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """d(z, x) and d(z, y) per layer, [layers] each, from tensors [B, ...]; labels [B, classes], soft or one-hot."""
        flat = [tensor.flatten(1).to(self.dtype) for tensor in (images, *hidden)]
        of_labels = self._label_kernel(labels.to(self.dtype))
        centred = centre(torch.cat([gaussian_kernels(flat, self.sigma), of_labels[None]]))
        if self.measure == "coco":
            return tuple(coco(centred[1:-1], other, self.coco_norm) for other in (centred[0], centred[-1]))
        if self.hsic_form == "plain":
            return tuple(_traces(centred[1:-1], other) / (len(images) - 1) ** 2 for other in (centred[0], centred[-1]))
        operators = normalise(centred, self.eps)  # one batched solve serves images, labels and all layers
        return _traces(operators[1:-1], operators[0]), _traces(operators[1:-1], operators[-1])

    def _label_kernel(self, one_hot: Tensor) -> Tensor:
        if self.label_kernel == "linear":
            return one_hot @ one_hot.T
        if self.label_kernel == "imq":
            return (squared_distances(one_hot @ one_hot.T) + 1).rsqrt()
        return gaussian_kernels([one_hot], self.sigma)[0]


def gaussian_kernels(several: Sequence[Tensor], sigma: float) -> Tensor:
    """exp(-D / (2 sigma^2 d)) of each of n [m, d] of widths d of their own, D the squared distances of its rows;
    [n, m, m]. What follows the products is done for all at once: on a GPU steps so small cost their launch."""
    grams = torch.stack([rows @ rows.T / rows.shape[1] for rows in several])
    return torch.exp(-squared_distances(grams) / (2 * sigma**2))


def squared_distances(grams: Tensor) -> Tensor:
    """Squared distances [..., m, m] between rows, of their products [..., m, m]."""
    squares = grams.diagonal(dim1=-2, dim2=-1)
    return (squares.unsqueeze(-1) - 2 * grams + squares.unsqueeze(-2)).abs()


def centre(kernels: Tensor) -> Tensor:
    """H K H with H = I - 11'/m, for kernels [..., m, m]."""
    by_row = kernels - kernels.mean(dim=-1, keepdim=True)
    return by_row - by_row.mean(dim=-2, keepdim=True)


def normalise(centred: Tensor, eps: float) -> Tensor:
    """R = (K + eps m I)^-1 K for centred kernels [..., m, m]. The ridge keeps it solvable, so the solver's error code
    is not read: that would make the device wait."""
    count = centred.shape[-1]
    ridge = eps * count * torch.eye(count, dtype=centred.dtype, device=centred.device)
    return torch.linalg.solve_ex(centred + ridge, centred).result


def coco(left: Tensor, right: Tensor, norm_name: str = "frobenius") -> Tensor:
    """sqrt(||K_left K_right||) / m of centred kernels [..., m, m] and [m, m]."""
    product = left @ right
    if norm_name == "spectral":
        norm = torch.linalg.matrix_norm(product, 2)
    else:
        norm = (product.square().sum(dim=(-2, -1)) + ROOT_GUARD).sqrt()
    return (norm + ROOT_GUARD).sqrt() / left.shape[-1]


def _traces(left: Tensor, right: Tensor) -> Tensor:
    """tr(left @ right) of symmetric-similar matrices [layers, m, m] and [m, m]: the normalised HSIC."""
    return (left * right.T).sum(dim=(-2, -1))
