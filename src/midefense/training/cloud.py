"""Split training: the cloud's half of a network learns from features that the edge released, and sees no picture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from midefense import seeds
from midefense.defenses.base import share_right, task_loss
from midefense.training.recipe import Recipe
from midefense.training_state import moments, put_moments, under, within
from midefense.types import Diverged, Progress, Refused

BATCH = 256  # features that are asked about at once


def fit_cloud(
    cloud: nn.Module,
    features: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    state: dict[str, Tensor] | None = None,
) -> Iterator[Progress]:
    """Train `cloud` in place on released features [N, ...] to say their labels: int64 [N], or attributes uint8 [N, K]
    (`task_loss`; Wang et al., NDSS 2024, appendix G). Yields `(epochs done, logs, state)` after every epoch; the state
    handed back as `state` continues bit for bit.

    Raises:
        Refused: what a recipe asks for that features cannot do.
        Diverged: the loss of an epoch was not finite.
    """
    require_recipe_of_features(recipe)
    cloud.to(device).requires_grad_(True)
    optimizer = recipe.optimizer(list(cloud.parameters()))
    rates = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if state is not None:
        first = int(state["epoch"])
        _take(cloud, optimizer, state)
    for epoch in range(first, recipe.epochs):
        cloud.train()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * recipe.rate(epoch)
        order = recipe.batches(labels, recipe.sampler, 2, seeds.generator(seed, "cloud", "order", epoch))
        losses = []
        with seeds.isolated(seed, "cloud", "step", epoch):
            for rows in order:
                loss = task_loss(cloud(features[rows].to(device)), labels[rows].to(device)).mean()
                optimizer.zero_grad()
                loss.backward()
                if recipe.clip_norm is not None:
                    nn.utils.clip_grad_norm_(cloud.parameters(), recipe.clip_norm)
                optimizer.step()
                losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not torch.isfinite(torch.tensor(mean)):
            raise Diverged(f"split training diverged in epoch {epoch}; try a lower learning rate or cloud.clip_norm=1")
        yield epoch + 1, {"loss": mean}, lambda done=epoch + 1: _state(cloud, optimizer, done)


@torch.no_grad()
def cloud_logits(cloud: nn.Module, features: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """What the cloud says of features [N, ...]: logits float32 [N, classes] on the CPU, in evaluation mode."""
    cloud.to(device).eval()
    with seeds.isolated("evaluate"):
        return torch.cat([cloud(part.to(device)).float().cpu() for part in features.split(BATCH)])


def mean_right(logits: Tensor, labels: Tensor) -> float:
    """The share of right answers: of classes, or of all attributes of all images."""
    return share_right(logits, labels).double().mean().item()


def require_recipe_of_features(recipe: Recipe) -> None:
    """Refuse what a recipe asks for that only pictures, or a held-out part of them, can give."""
    asked = {
        "augment": bool(recipe.augment),
        "select": recipe.select != "last",
        "head": recipe.head != "trained",
        "start": recipe.start is not None,
        "precision": recipe.precision != "32-true",
    }
    if wrong := [name for name, does in asked.items() if does]:
        raise Refused(
            f"cloud.{wrong[0]}: expected a recipe for features, which are no pictures, got one that needs them; try "
            "recipe@cloud=split_training"
        )


def _state(cloud: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, Tensor]:
    kept = {**under(cloud.state_dict(), "cloud."), **under(moments(optimizer), "optimizer.")}
    return {**{name: value.detach().cpu().clone() for name, value in kept.items()}, "epoch": torch.tensor(epoch)}


def _take(cloud: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    cloud.load_state_dict(within(state, "cloud."))
    put_moments(optimizer, within(state, "optimizer."))
