"""Published names: the state dict of an original implementation under our names, and back.

A network that reproduces a published one carries the attribute `published`, a table {original prefix: our prefix};
prefixes end at a dot or at the end of a name, and the longest of ours that fits decides. A network without a table, or
a name that no prefix fits, keeps its own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from midefense.types import Refused

# What DataParallel, Lightning modules and torch.compile put in front of every name.
WRAPPERS = ("module.", "model.", "_orig_mod.")
HEAD = "classifier."  # what the names of a classifier's head begin with
SHOWN = 3  # names that a refusal spells out of each kind


def from_published(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published `state` as a state dict of `module`, in its order.

    Prefixes of wrappers in front of all names are stripped first. Raises `Refused` unless names and shapes then are
    exactly those that `to_published(module)` gives: nothing missing, nothing unexpected.
    """
    own = module.state_dict()
    names = published_names(own, getattr(module, "published", {}))
    expected = {names[name]: tensor for name, tensor in own.items()}
    state = unwrapped(state, expected)
    require_match(type(module).__name__, state, expected)
    return {name: state[published] for name, published in names.items()}


def body_from_published(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published `state` as the tensors of `module` that are not its head `classifier`, under our names.

    Whatever head the state has, and for however many classes, is left; it may have none. Raises `Refused` unless names
    and shapes of the rest are exactly those of the module.
    """
    names = published_names(module.state_dict(), getattr(module, "published", {}))
    expected = {names[name]: tensor for name, tensor in module.state_dict().items()}
    heads = tuple({names[name].rpartition(".")[0] + "." for name in names if name.startswith(HEAD)})
    rest, wanted = (
        {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
        for tensors in (unwrapped(state, expected), expected)
    )
    require_match(f"the body of {type(module).__name__}", rest, wanted)
    return {name: rest[published] for name, published in names.items() if published in wanted}


def to_published(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of `module` under the published names: the inverse of `from_published`."""
    own = module.state_dict()
    names = published_names(own, getattr(module, "published", {}))
    return {names[name]: tensor for name, tensor in own.items()}


def published_names(names: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    """The published name of each of our `names`, under a table {original prefix: our prefix}."""
    originals = {ours: original for original, ours in table.items()}
    return {name: _published_name(name, originals) for name in names}


def _published_name(name: str, originals: Mapping[str, str]) -> str:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:count])) in originals:
            return ".".join([originals[prefix], *parts[count:]])
    return name


def unwrapped(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes of wrappers that all its names share, unless the `expected` names share them too."""
    state = dict(state)
    while wrapper := next((prefix for prefix in WRAPPERS if _all_begin(state, prefix)), None):
        if _all_begin(expected, wrapper):
            break
        state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def _all_begin(names: Iterable[str], prefix: str) -> bool:
    names = list(names)
    return bool(names) and all(name.startswith(prefix) for name in names)


def require_match(who: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a `state` whose names or shapes are not the `expected` ones; the first of each kind are spelt out."""
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": misshapen,
    }
    if found := [f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names]:
        raise Refused(
            f"state: expected the {len(expected)} names and shapes of {who}, got {'; '.join(found)}; "
            "try the network, and the number of classes, channels and pixels, that the file was made with"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
