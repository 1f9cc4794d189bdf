"""torch.compile for the networks of a search and for a generator that learns: one shape, compiled once, and as they are
where it cannot be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from midefense.terminal import tell

BACKEND = "inductor"


class Compiler:
    """What is compiled under one `option`: for one number of rows, that of a full chunk of a full group. What has
    another number, such as a last chunk, runs as it is, so that nothing is compiled again. The number follows from the
    plan alone, not from what ran before: a run that goes on gives the same bits. Of a search, groups tell it; of a
    training it is the batch, told at once.
    """

    def __init__(self, option: str, rows: int | None = None) -> None:
        self.option = option
        self.rows: int | None = rows  # None: not known yet
        self.failed = False
        self._targets, self._group_rows = 0, None
        self._known: dict[str, tuple[object, Compiled]] = {}

    def begin_group(self, targets: int) -> None:
        """Another group; full ones have so many targets."""
        self.rows, self._targets, self._group_rows = None, targets, None

    def expect(self, rows_per_target: float, width_of: Callable[[int], int | None]) -> None:
        """All rows of the group are about to be looked at (those who rest are left out later on); `width_of` says into
        how large chunks so many rows are cut."""
        if self._group_rows is None:
            self._group_rows = round(rows_per_target * self._targets)
        self.rows = width_of(self._group_rows)

    def of(self, name: str, owner: object, function: Callable) -> Callable:
        """`function` of rows first, compiled; the same again for the same `owner`."""
        if name not in self._known or self._known[name][0] is not owner:
            self._known[name] = owner, Compiled(self, function)
        return self._known[name][1]


class Compiled:
    """A function whose first argument is rows [B, ...], through torch.compile where the compiler says so."""

    def __init__(self, compiler: Compiler, function: Callable) -> None:
        self._compiler, self._usual = compiler, function
        self._fast = torch.compile(function, dynamic=False, backend=BACKEND)
        self._done = False

    def __call__(self, rows: Tensor, *others: object, **named: object) -> object:
        from torch._dynamo.exc import TorchDynamoException  # seconds to import

        if self._compiler.failed or len(rows) != self._compiler.rows:
            return self._usual(rows, *others, **named)
        try:
            with nullcontext() if self._done else warnings.catch_warnings():
                if not self._done:  # it looks where networks do not: through caches, at gradients that are not there
                    warnings.simplefilter("ignore", UserWarning)
                given = self._fast(rows, *others, **named)
            self._done = True
            return given
        except TorchDynamoException as error:
            self._compiler.failed = True
            why = " ".join(str(error).split("\n\n")[0].split())
            tell(f"{self._compiler.option}: torch.compile failed here ({why}); networks run without it")
            return self._usual(rows, *others, **named)


@contextmanager
def forward_compiled(network: nn.Module, compiler: Compiler | None) -> Iterator[None]:
    """Within it the forward of a network is the compiled one (None: its own)."""
    if compiler is None:
        yield
        return
    network.forward = compiler.of("forward", network, network.forward)  # of this one object, before its class's
    try:
        yield
    finally:
        del network.forward
