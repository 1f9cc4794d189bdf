"""Starting a network from published backbone weights (ImageNet, MS-Celeb-1M) that lie in a file of the user's."""

from __future__ import annotations

import hashlib
from pathlib import Path

from midefense.architectures.base import Classifier
from midefense.architectures.checkpoints import read_tensors
from midefense.architectures.state_names import published_names, require_match, unwrapped
from midefense.types import Refused

PINNED = "sha256:"


def load_backbone(model: Classifier, weights: str, *, prefix: str, aside: tuple[str, ...]) -> None:
    """Fill the backbone of `model` (what its published table calls `feature`) from the file `weights`.

    Args:
        prefix: what stands in the file where the published network says `feature.`.
        aside: beginnings of names in the file that belong to no backbone, such as its own head.
    Raises:
        Refused: names or shapes of the rest are not exactly those of the backbone.
    """
    table = {
        prefix + original.removeprefix("feature."): ours
        for original, ours in model.published.items()
        if original.startswith("feature.")
    }
    inside = tuple(f"{ours}." for ours in table.values())
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(inside)}
    names = published_names(own, table)
    expected = {names[name]: tensor for name, tensor in own.items()}
    state = unwrapped(read_tensors(weights), expected)
    state = {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(aside)}
    require_match(f"the backbone of {type(model).__name__}", state, expected)
    filled = {name: state[published] for name, published in names.items()}
    model.load_state_dict({**model.state_dict(), **filled})


def pin_weights(arguments: dict[str, object]) -> dict[str, object]:
    """Constructor arguments with the file `weights` replaced by its SHA-256: content decides an id, not a path."""
    weights = arguments["weights"]
    if weights is None or str(weights).startswith(PINNED):
        return arguments
    file = Path(str(weights))
    if not file.is_file():
        raise Refused(f"weights: expected a file, got {file}; try weights=null to start from random weights")
    return {**arguments, "weights": PINNED + hashlib.sha256(file.read_bytes()).hexdigest()}
