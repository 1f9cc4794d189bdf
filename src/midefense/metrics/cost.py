"""What the attack cost: images asked of the target and wall time, as the oracle and the clock counted them."""

from __future__ import annotations

from collections.abc import Sequence

from midefense.metrics.base import Judged, Measured, Metric, World, recorded


class Cost(Metric):
    """`cost/<name>` for every number in `world.bill`, and NaN for a name in `expects` that is not there.

    Queries count images, never calls. Those asked for all targets together (a pool, a surrogate) stay apart from those
    per target, since only the latter grow with the number of targets.
    """

    kind = "cost"
    matches = None

    def __init__(
        self,
        *,
        expects: Sequence[str] = ("queries_per_target_mean", "queries_per_target_max", "shared_queries", "seconds"),
    ) -> None:
        super().__init__()
        self.expects = tuple(expects)

    def update(self, judged: Judged, world: World) -> None:
        """Nothing to see: the bill does not depend on how the images look."""

    def compute(self, world: World) -> dict[str, Measured]:
        return recorded("cost", world.bill, self.expects)
