"""What the target is still good for: numbers recorded when it was trained, repeated beside the privacy numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from midefense.metrics.base import Judged, Measured, Metric, World, recorded


class TargetUtility(Metric):
    """`utility/<name>` for every number in `world.utility`, and NaN for a name in `expects` that is not there.

    Accuracies are fractions in [0, 1], named `...accuracy` or `...accuracy_top<k>`; those have a chance level.
    """

    kind = "utility"
    matches = None

    def __init__(self, *, expects: Sequence[str] = ("test_accuracy_top1",)) -> None:
        super().__init__()
        self.expects = tuple(expects)

    def update(self, judged: Judged, world: World) -> None:
        """Nothing to see: utility does not depend on recovered images."""

    def compute(self, world: World) -> dict[str, Measured]:
        return recorded("utility", world.utility, self.expects)

    def chance(self, world: World) -> dict[str, float]:
        levels = {}
        for name in {*self.expects, *world.utility}:
            accuracy = re.search(r"accuracy(?:_top(\d+))?$", name)
            top = int(accuracy[1] or 1) if accuracy else world.classes
            if top < world.classes:
                levels[f"utility/{name}"] = top / world.classes
        return levels
