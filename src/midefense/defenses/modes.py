"""A network in eval mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """`network` in eval mode; afterwards every module is in the mode it was in (what is frozen may stand in another
    than the whole)."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
