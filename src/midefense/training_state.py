"""The state of a training as a flat dict of tensors, which goes into a file as it is and from which the training goes
on to the same bits: weights under the name of each network, what an optimiser keeps under a name of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def training_state(
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    done: int,
    beside: Mapping[str, Tensor] | None = None,
) -> Callable[[], dict[str, Tensor]]:
    """A function that gives everything needed to go on after step `done`; `beside` too."""

    def state() -> dict[str, Tensor]:
        flat = {"step": torch.tensor(done), **(beside or {})}
        for name, network in networks.items():
            flat |= under(network.state_dict(), f"{name}.")
        for name, optimizer in optimizers.items():
            flat |= under(moments(optimizer), f"optimizer.{name}.")
        return flat

    return state


def load_training(
    state: Mapping[str, Tensor] | None,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> int:
    """Put a saved state back; returns the steps done (0 without one)."""
    if not state:
        return 0
    for name, network in networks.items():
        network.load_state_dict(within(state, f"{name}."))
    for name, optimizer in optimizers.items():
        put_moments(optimizer, within(state, f"optimizer.{name}."))
    return int(state["step"])


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser keeps of each parameter, by `<number of the parameter>.<name>`; None is left out."""
    kept = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, slots in kept.items()
        for name, value in slots.items()
        if value is not None
    }


def put_moments(optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    """Put back what `moments` gave; rates and the like stay as they are."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in kept.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix of a flat state, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A flat state whose names get a prefix."""
    return {f"{prefix}{name}": value for name, value in state.items()}
