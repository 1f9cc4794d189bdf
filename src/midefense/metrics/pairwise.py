"""A reconstruction against the one private image it answers: whom it shows, and how much of the picture is back.

Evidence that points at images (split inference) has one true answer per target, so nothing is searched for: the pair is
given by the id of the private image. Sources: Wang et al., NDSS 2024 (Crafter) for accuracy by identity, the cosine of
an identity network's features (which its code calls FSIM) and SSIM; Wang et al., IEEE TIP 2004 (SSIM); Zhang et al.,
IEEE TIP 2011 (FSIM itself); Zhang et al., CVPR 2018 (LPIPS).

Intervals are over identities: images of one person are not independent. Where each has one image, that is over images.
Those of similarities are Student's t: they seldom lie at the ends of their range, of which a bound would have to think.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from kornia.metrics import ssim as structural_similarity
from torch import Tensor

from midefense.metrics.accuracy import answers, ranks
from midefense.metrics.base import Judged, Measured, Metric, World, over_classes, share_of_hits
from midefense.metrics.features import (
    batch_rows,
    class_count,
    evaluator_names,
    judged_trace,
    original_features,
    require_names,
)
from midefense.metrics.fsim import fsim
from midefense.metrics.intervals import POSITIVE, REAL
from midefense.ranges import Count, Some
from midefense.types import Refused

WINDOW = 11  # pixels of SSIM's Gaussian, whose deviation is 1.5
ROUNDING = 1 / (12 * 255**2)  # mean squared error of rounding to 8 bits, below which nothing is told apart
SMALLEST = 32  # pixels a side that AlexNet can take
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
ALEXNET_ADDRESS = f"https://download.pytorch.org/models/{ALEXNET_FILE}"


class PairedMetric(Metric):
    """What every metric of pairs shares: it needs to know which private image each reconstruction answers. Its rows
    have that image's `identity` int64 [M]."""

    matches = "image"

    def rows(self, judged: Judged, world: World) -> dict[str, Tensor]:
        if judged.ids is None:
            raise Refused(
                f"{type(self).__name__}: expected the private image of each reconstruction, got classes alone; try "
                "evidence=released_features, or metrics=all"
            )
        return {"identity": world.identities(judged.ids), **self.pairs(judged, world)}

    def pairs(self, judged: Judged, world: World) -> dict[str, Tensor]:
        """What to keep of a batch, of which `judged.ids` int64 [M] are the private images."""
        raise NotImplementedError


class PairedAccuracy(PairedMetric):
    """`paired_accuracy_top<k>/<evaluator>`: how often an evaluator sees, among all the people it knows, the one whom
    the private image shows; in [0, 1].

    Its answers are kept beside the numbers (`drawings`), so that attacks on the same images can be held together.
    """

    higher_leaks = True
    unhashed = ("batch_size",)
    best = {"paired_accuracy_top1": 1.0, "paired_accuracy_top5": 1.0}

    def __init__(self, *, top: Annotated[Sequence[Count], Some()] = (1, 5), batch_size: Count = 256) -> None:
        super().__init__()
        self.top = tuple(top)
        self.batch_size = batch_size
        if len(set(self.top)) < len(self.top):
            raise Refused(f"PairedAccuracy.top: expected distinct counts, got {list(top)}; try [1, 5]")

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse evaluators whose names stand for other networks."""
        require_names(evaluators)

    def reset(self) -> None:
        super().reset()
        self._drawings: dict[str, Tensor] = {}

    def drawings(self) -> dict[str, Tensor]:
        """`paired.ids` int64 [M], the private image of each reconstruction; `paired.identities` int64 [M], whom it
        shows; `paired.answers.<evaluator>` int64 [M], whom the evaluator saw (-1 where several tie)."""
        return self._drawings

    def pairs(self, judged: Judged, world: World) -> dict[str, Tensor]:
        identities, kept = world.identities(judged.ids), {"id": judged.ids}
        for name in evaluator_names(world):
            class_count(world, name)
            logits = judged_trace(judged, world, name, self.batch_size).logits
            kept[f"rank/{name}"] = ranks(logits, identities)
            kept[f"answer/{name}"] = answers(logits)
        return kept

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        names, identities = evaluator_names(world), rows["identity"]
        self._drawings = {"paired.ids": rows["id"].cpu(), "paired.identities": identities.cpu()}
        self._drawings |= {f"paired.answers.{name}": rows[f"answer/{name}"].cpu() for name in names}
        measured = {}
        for name in names:
            classes = class_count(world, name)
            for top in self.top:
                found = share_of_hits(rows[f"rank/{name}"] <= top, identities, world)
                if top >= classes:
                    reason = f"top-{top} of the {classes} people whom evaluator {name!r} knows is always right"
                    found = Measured.undefined(reason, len(identities), higher_leaks=True)
                measured[f"paired_accuracy_top{top}/{name}"] = found
        return measured

    def chance(self, world: World) -> dict[str, float]:
        counts = {name: class_count(world, name) for name in evaluator_names(world)}
        return {
            f"paired_accuracy_top{top}/{name}": top / classes
            for name, classes in counts.items()
            for top in self.top
            if top < classes
        }


class FeatureCosine(PairedMetric):
    """`id_feature_cosine/<evaluator>`: cosine between the evaluator's features of reconstruction and private image, in
    [-1, 1]. What the code of Crafter calls FSIM."""

    higher_leaks = True
    unhashed = ("batch_size",)
    best = {"id_feature_cosine": 1.0}

    def __init__(self, *, batch_size: Count = 256) -> None:
        super().__init__()
        self.batch_size = batch_size

    def check(self, evaluators: Sequence[str]) -> None:
        """Refuse evaluators whose names stand for other networks."""
        require_names(evaluators)

    def pairs(self, judged: Judged, world: World) -> dict[str, Tensor]:
        kept = {}
        for name in evaluator_names(world):
            recovered = judged_trace(judged, world, name, self.batch_size).features
            original = original_features(judged, world, name, self.batch_size)
            kept[f"cosine/{name}"] = feature_cosine(recovered, original)
        return kept

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        return {
            f"id_feature_cosine/{name}": over_classes(rows[f"cosine/{name}"], rows["identity"], True, REAL)
            for name in evaluator_names(world)
        }


class PictureSimilarity(PairedMetric):
    """`ssim`, `fsim` and `psnr` of the pictures, at the target's size; higher leaks more.

    SSIM: 11 x 11 Gaussian of deviation 1.5, K1 = .01, K2 = .03, no padding, range 1, mean over places and channels.
    FSIM is of luminance (`fsim`). PSNR in dB is that of the mean squared error of one image, averaged over images; an
    error below that of rounding to 8 bits counts as that, so that a copy has 58.9 dB.
    """

    higher_leaks = True
    best = {"ssim": 1.0, "fsim": 1.0, "psnr": 10 * torch.tensor(ROUNDING, dtype=torch.float64).log10().neg().item()}
    names = ("ssim", "fsim", "psnr")

    def pairs(self, judged: Judged, world: World) -> dict[str, Tensor]:
        images, originals = judged.images.float(), world.private(judged.ids)
        return {"ssim": ssim(images, originals), "fsim": fsim(images, originals), "psnr": psnr(images, originals)}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        measured = {
            name: over_classes(rows[name], rows["identity"], True, REAL)
            for name in self.names
            if not rows[name].isnan().any()
        }
        if "ssim" not in measured:
            reason = f"its window is {WINDOW} pixels wide, the images are smaller"
            measured["ssim"] = Measured.undefined(reason, len(rows["identity"]), higher_leaks=True)
        return measured


class PerceptualDistance(PairedMetric):
    """`lpips/alexnet`: the learned perceptual distance, at least 0, lower leaks more; at the target's size, grey images
    as three equal channels. AlexNet's weights are torchvision's and are never downloaded; those of its head come with
    torchmetrics, whose implementation it is.

    Raises `Refused` where either is missing.
    """

    higher_leaks = False
    best = {"lpips": 0.0}

    def __init__(self) -> None:
        super().__init__()
        require_perceptual()

    def pairs(self, judged: Judged, world: World) -> dict[str, Tensor]:
        images, originals = (each.expand(-1, 3, -1, -1) for each in (judged.images.float(), world.private(judged.ids)))
        if images.shape[-1] < SMALLEST:
            return {"distance": images.new_full((len(images),), torch.nan)}
        return {"distance": perceptual_distance(images, originals)}

    def measure(self, rows: dict[str, Tensor], world: World) -> dict[str, Measured]:
        found = over_classes(rows["distance"], rows["identity"], False, POSITIVE)
        if math.isnan(found.value):
            reason = f"AlexNet takes images of {SMALLEST} pixels a side or more"
            found = Measured.undefined(reason, len(rows["identity"]), higher_leaks=False)
        return {"lpips/alexnet": found}


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """The structural similarity [N] in [-1, 1] of images [N, C, H, W] in [0, 1]; NaN where they are smaller than its
    window."""
    if min(images.shape[-2:]) < WINDOW:
        return images.new_full((len(images),), torch.nan)
    return structural_similarity(images, others, WINDOW, 1.0, eps=0.0, padding="valid").mean((1, 2, 3))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """The peak signal-to-noise ratio [N] in dB of images [N, C, H, W] in [0, 1]; see `PictureSimilarity`."""
    error = (images.double() - others.double()).square().mean((1, 2, 3))
    return -10 * error.clamp(min=ROUNDING).log10()


def feature_cosine(features: Tensor, others: Tensor) -> Tensor:
    """The cosine [N] between features [N, F]; 0 where either is 0 throughout."""
    return F.cosine_similarity(features.double(), others.double(), dim=1).clamp(-1, 1)


def alexnet_file() -> Path:
    """Where torchvision looks for AlexNet's weights before it would download them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE


def require_perceptual() -> None:
    """Refuse LPIPS where its parts are not at hand; nothing is ever downloaded for it."""
    if not alexnet_file().is_file():
        raise Refused(
            f"metrics.lpips: expected AlexNet's weights at {alexnet_file()}, got no such file; try "
            f"{ALEXNET_ADDRESS}, or go without metrics=lpips"
        )
    if importlib.util.find_spec("torchmetrics") is None:
        raise Refused(
            "metrics.lpips: expected the package torchmetrics, which has the weights of its head, got none; try "
            "pip install 'midefense[lpips]', or go without metrics=lpips"
        )


@torch.no_grad()
def perceptual_distance(images: Tensor, others: Tensor) -> Tensor:
    """LPIPS [N] of RGB images [N, 3, H, W] in [0, 1], at least 0."""
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity as lpips

    require_perceptual()
    rows = batch_rows(len(images), images.shape[-1])
    pairs = zip(images.split(rows), others.split(rows), strict=True)
    return torch.cat([lpips(*pair, net_type="alex", reduction="none", normalize=True).flatten() for pair in pairs])
