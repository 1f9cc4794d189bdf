"""Steps of a training loop as CUDA graphs: a small network's step is thousands of kernels, each of them done before the
next is launched. Recorded once and replayed, the GPU need not wait for Python. Replays run the same kernels on the same
numbers as the step itself: not a bit differs, so nothing asks for it or is hashed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM = 3  # calls that run as they are before one is recorded: libraries choose kernels and take memory at the first


class Captured:
    """A function of tensors, and of what it holds, that gives a tensor: recorded at its fourth call on a GPU, replayed
    from then on. Anywhere else it runs as it is.

    It must take tensors of the same shapes each time, wait for nothing on the GPU, draw from torch's global stream
    alone, and leave gradients it can do without: what it gives, and what lies in `.grad`, is overwritten by its next
    call. Optimisers that step in it are `capturable`.

    Args:
        function: the step.
        device: where it runs.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function, self._calls = function, 0
        self._replays = device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._given: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        self._calls += 1
        if not self._replays or self._calls <= WARM:
            return self._function(*inputs)
        if self._graph is None:
            self._record(inputs)
        for room, values in zip(self._inputs, inputs, strict=True):
            room.copy_(values)
        self._graph.replay()
        return self._given

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Nothing is calculated yet: kernels are noted down as they would be launched."""
        self._inputs = [values.clone() for values in inputs]
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._given = self._function(*self._inputs)
