"""Feature to identity: how much of a person is in a released feature at all (Wang et al., Crafter, NDSS 2024; card
crafter.md, 4.9).

A network learns, on the private training images and their identities, to name a person from what the edge computes; it
is then asked about what was released of other images of the same people. No attacker has those identities: it is
oracle-assisted, as its name says everywhere. It is a metric and no attack: it recovers no image that another metric
could judge, nothing that `attack.py` reaches may see private labels, and so it can stand beside every attack's row
without ever being the worst case of a ladder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from midefense import seeds
from midefense.metrics.base import Judged, Measured, Metric, Released, World, over_classes
from midefense.metrics.features import batch_rows
from midefense.metrics.intervals import SHARE
from midefense.ranges import Batch, Count, Positive, Whole
from midefense.training.recipe import shuffled_batches
from midefense.types import Refused

NAME = "feature_to_id_oracle_assisted"


class FeatureToId(Metric):
    """`feature_to_id_oracle_assisted/released` and `.../clean`: how often the network names the right person, from what
    was released and from the same features before the defense; top-1 in [0, 1], among all private identities.

    Args:
        head: a partial of the network, told the shape of what is `observed` of one image and how many `classes`.
        epochs, batch_size, learning_rate: of Adam, on the clean features of all private training images.
        seed: of initial weights and order.
    """

    revision = 1
    matches = None
    judges_release = True
    higher_leaks = True

    def __init__(
        self,
        *,
        head: Callable[..., nn.Module],
        epochs: Count = 400,
        batch_size: Batch = 128,
        learning_rate: Positive = 1e-3,
        seed: Whole = 0,
    ) -> None:
        super().__init__()
        if not callable(head):
            raise Refused(f"head: expected a function of observed and classes, got {head!r}; try _partial_: true")
        self.head, self.epochs, self.batch_size, self.learning_rate = head, epochs, batch_size, learning_rate
        self.key = ("metrics", "feature to id", seed)

    def update(self, judged: Judged, world: World) -> None:
        """Nothing to see: no recovered image is looked at."""

    def compute(self, world: World) -> dict[str, Measured]:
        released = world.released
        if released is None:
            return self._undefined("nothing was released: the evidence is no feature", 0)
        if torch.isin(released.ids, world.references.ids).any():
            return self._undefined("it learned from the very images; try evidence.part=test", len(released.ids))
        head, identities = self._taught(released, world), world.identities(released.ids).cpu()
        measured = {}
        for name, features in (("released", released.features), ("clean", released.clean)):
            if features.shape[1:] != released.clean.shape[1:]:
                reason = f"it learned from features {list(released.clean.shape[1:])}, got {list(features.shape[1:])}"
                measured[f"{NAME}/{name}"] = Measured.undefined(reason, len(features), True)
                continue
            named = self._asked(head, features, world.device)
            measured[f"{NAME}/{name}"] = over_classes(named == identities, identities, True, SHARE)
        return measured

    def chance(self, world: World) -> dict[str, float]:
        """One in as many people as it knows."""
        return {} if world.released is None else dict.fromkeys((f"{NAME}/released", f"{NAME}/clean"), 1 / world.classes)

    def _taught(self, released: Released, world: World) -> nn.Module:
        """A fresh network after all epochs on the private training images, in eval mode."""
        with seeds.isolated(*self.key, "init"):
            head = self.head(observed=tuple(released.clean.shape[1:]), classes=world.classes)
        head = head.to(world.device).train()
        optimizer = torch.optim.Adam(head.parameters(), lr=self.learning_rate)
        images = world.references
        for epoch in range(self.epochs):
            order = seeds.generator(*self.key, "order", epoch)
            for rows in shuffled_batches(len(images), self.batch_size, 2, False, order):
                with torch.no_grad():
                    features = released.edge(images.floats(rows, world.device)).float()
                loss = cross_entropy(head(features), images.labels[rows].to(world.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return head.eval()

    @torch.no_grad()
    def _asked(self, head: nn.Module, features: Tensor, device: torch.device | str) -> Tensor:
        """Whom it names [N], on the CPU."""
        parts = features.split(batch_rows(256, features.shape[-1]))
        return torch.cat([head(part.to(device)).argmax(1).cpu() for part in parts])

    def _undefined(self, reason: str, count: int) -> dict[str, Measured]:
        return {f"{NAME}/{name}": Measured.undefined(reason, count, True) for name in ("released", "clean")}
