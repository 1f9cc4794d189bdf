"""What a classifier says of a set of images, under the same conditions each time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.defenses.base import share_right, task_loss
from midefense.types import Images, Refused, Trace


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Images, batch_size: int = 256, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """`accuracy`, `accuracy_top5` and mean `loss` (`task_loss`) of `model(images).logits`.

    Up to five classes every label is in the top five, which says nothing: `accuracy_top5` is left out. Of attributes
    (labels uint8 [N, K]) the accuracy is the mean over them, and there is no top five. Runs in
    evaluation mode under a seed of its own (a stochastic network answers the same each time); the modes of all modules
    are put back. Raises `Refused` if there are no images.
    """
    if not len(images):
        raise Refused("evaluate: expected at least one image, got none")
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for rows, trace in _traces(model, images, batch_size, device):
        logits = trace.logits.float()
        labels = images.labels[rows].to(device)
        if labels.dim() == 1:
            hits = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
        else:
            hits = share_right(logits, labels).unsqueeze(1)
        sums = [hits[:, 0].sum(), hits.sum(), task_loss(logits, labels).sum()]
        totals += torch.stack([value.double() for value in sums])
    accuracy, accuracy_top5, loss = (totals / len(images)).tolist()
    top5 = {"accuracy_top5": accuracy_top5} if images.labels.dim() == 1 and logits.shape[1] > 5 else {}
    return {"accuracy": accuracy, **top5, "loss": loss}


@torch.no_grad()
def features_of(model: nn.Module, images: Images, batch_size: int = 256, device: torch.device | str = "cpu") -> Tensor:
    """Features [N, F] of all images on the CPU, under the conditions of `evaluate`."""
    return torch.cat([trace.features.float().cpu() for _, trace in _traces(model, images, batch_size, device)])


@torch.no_grad()
def logits_of(model: nn.Module, images: Images, batch_size: int = 256, device: torch.device | str = "cpu") -> Tensor:
    """Logits float32 [N, classes] of all images on the CPU, under the conditions of `evaluate`."""
    return torch.cat([trace.logits.float().cpu() for _, trace in _traces(model, images, batch_size, device)])


def told_attributes(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """What logits [N, K] tell of attributes `labels` uint8 [N, K], by name: `accuracy` (right where logit > 0 says so),
    `auc`, the area under the ROC curve (NaN where all images have it, or none), and the `share` that has it."""
    from sklearn.metrics import roc_auc_score  # slow to import, and few ask

    told = {}
    for name, scores, shown in zip(names, logits.T, labels.T, strict=True):
        both = 0 < int(shown.sum()) < len(shown)
        told[name] = {
            "accuracy": ((scores > 0) == shown.bool()).double().mean().item(),
            "auc": float(roc_auc_score(shown.numpy(), scores.numpy())) if both else math.nan,
            "share": shown.double().mean().item(),
        }
    return told


def mean_over_attributes(told: Mapping[str, Mapping[str, float]], number: str) -> float:
    """The mean of a `number` of `told_attributes` over those where it is defined; NaN where it is of none."""
    return torch.tensor([one[number] for one in told.values()], dtype=torch.float64).nanmean().item()


@torch.no_grad()
def answers_of(model: nn.Module, images: Images, batch_size: int = 256, device: torch.device | str = "cpu") -> Tensor:
    """The label [N] that the model answers for each image, on the CPU, under the conditions of `evaluate`."""
    return torch.cat([trace.logits.argmax(1).cpu() for _, trace in _traces(model, images, batch_size, device)])


def _traces(
    model: nn.Module, images: Images, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Trace]]:
    """Rows and their forward, in evaluation mode and under a seed of its own; modes are put back at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with seeds.isolated("evaluate"):
        for rows in torch.arange(len(images)).split(batch_size):
            yield rows, model(images.floats(rows, device))
    for module, training in modes.items():
        module.training = training
