"""Published names: the state dict of an original implementation under our names, and back.

A network that reproduces a published one carries the attribute `published`, a table {original prefix: our prefix};
prefixes end at a dot or at the end of a name, and the longest of ours that fits decides. A network without a table, or
a name that no prefix fits, keeps its own names. A state under our own names is taken too.

What is in front of all names is no difference: wrappers put it there, and saving a part of a model takes it away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from midefense.types import Refused, in_a_sentence

# What DataParallel, Lightning modules and Opacus put in front of every name.
WRAPPERS = ("module.", "model.", "_module.")
# What torch.compile, FSDP and activation checkpointing put into names, at any place.
MARKS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
AVERAGES = "n_averaged"  # beside the names of a moving average (`torch.optim.swa_utils.AveragedModel`)
COUNTER = "num_batches_tracked"  # of batch norm, which files from before torch 0.4.1 do not have
HEAD = "classifier."  # what the names of a classifier's head begin with
SHOWN = 3  # names that a refusal spells out of each kind


def from_published(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published `state` as a state dict of `module`, in its order.

    What stands in front of all names is adapted first, and counters of batch norm that are absent are 0. Raises
    `Refused` unless names and shapes then are exactly those that `to_published(module)`, or `module.state_dict()`,
    gives, nothing missing, nothing unexpected; and unless all numbers are of a kind that fits, and finite.
    """
    own = module.state_dict()
    names, state = named_as(module, state)
    expected = {names[name]: tensor for name, tensor in own.items()}
    state = _completed(module, state, expected, names)
    require_match(type(module).__name__, state, expected)
    require_numbers(state, expected)
    return {name: state[published] for name, published in names.items()}


def named_as(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The names that `state` has for the tensors of `module` (by our name), and the state with what stands in front
    of all names adapted to them. Where neither the published names nor ours fit, the published ones."""
    own = module.state_dict()
    optional = may_lack(module, own)
    published = published_names(own, getattr(module, "published", {}))
    for names in (published, {name: name for name in own}):
        needed = {names[name] for name in own if name not in optional}
        adapted = aligned(state, needed, names.values())
        if fits(adapted, needed, names.values()):
            return names, adapted
    return published, aligned(state, {published[name] for name in own if name not in optional}, published.values())


def may_lack(module: nn.Module, own: Iterable[str]) -> set[str]:
    """The `own` names of tensors that are 0 where a file lacks them: counters, and what the module itself says."""
    said = set(getattr(module, "zero_if_absent", ()))
    return {name for name in own if name in said or name.rpartition(".")[2] == COUNTER}


def _completed(
    module: nn.Module, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """`state` with zeros for what it `may_lack`; as it is where more than that is missing."""
    zeros = {names[name] for name in may_lack(module, names)} & expected.keys() - state.keys()
    if not expected.keys() - zeros <= state.keys():
        return dict(state)
    return {**state, **{name: torch.zeros_like(expected[name]) for name in zeros}}


def body_from_published(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published `state` as the tensors of `module` that are not its head `classifier`, under our names.

    Whatever head the state has, and for however many classes, is left; it may have none. Raises `Refused` unless names
    and shapes of the rest are exactly those of the module.
    """
    own = module.state_dict()
    body = [name for name in own if not name.startswith(HEAD)]
    published = published_names(own, getattr(module, "published", {}))
    refusal = None
    for names in (published, {name: name for name in own}):
        heads = tuple({names[name].rpartition(".")[0] + "." for name in own if name.startswith(HEAD)})
        expected = {names[name]: own[name] for name in body}
        rest = {name: t for name, t in unwrapped(state, names.values()).items() if not name.startswith(heads)}
        rest = _completed(module, rest, expected, names)
        try:
            require_match(f"the body of {type(module).__name__}", rest, expected)
        except Refused as error:
            refusal = refusal or error  # of the published names: what most files have
            continue
        require_numbers(rest, expected)
        return {name: rest[names[name]] for name in body}
    raise refusal


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


def aligned(state: Mapping[str, Tensor], needed: Iterable[str], known: Iterable[str]) -> dict[str, Tensor]:
    """`state` with what stands in front of all its names exchanged for what stands in front of all `known` ones, where
    they then `fit`; else without wrappers alone."""
    known, needed = set(known), set(needed)
    state = unwrapped(state, known)
    if fits(state, needed, known):
        return state
    theirs, ours = common_prefix(state), common_prefix(known)
    exchanged = {ours + name.removeprefix(theirs): tensor for name, tensor in state.items()}
    return exchanged if fits(exchanged, needed, known) else state


def fits(state: Mapping[str, Tensor], needed: Iterable[str], known: Iterable[str]) -> bool:
    """Whether the names of `state` are all that are `needed`, and `known` ones beside them."""
    return set(needed) <= state.keys() <= set(known)


def common_prefix(names: Iterable[str]) -> str:
    """What all dotted names begin with, up to a dot: "" or `backbone.`."""
    parents = [name.split(".")[:-1] for name in names]
    return "".join(f"{part}." for part in os.path.commonprefix(parents))


def prefixes_of(state: Iterable[str], needed: Iterable[str]) -> list[str]:
    """Every prefix under which `state` has all the `needed` names, among others."""
    state, needed = set(state), list(needed)
    first = next(iter(needed), "")
    found = sorted({name.removesuffix(first) for name in state if name.endswith(f".{first}")})
    return [prefix for prefix in found if state.issuperset(prefix + name for name in needed)]


def unwrapped(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """`state` without what wrappers put into names and in front of all of them, unless the `expected` names have it
    too, and without the count of a moving average."""
    expected, state = list(expected), dict(state)
    for mark in MARKS:
        if not any(mark in name for name in expected):
            state = {name.replace(mark, ""): tensor for name, tensor in state.items()}
    if AVERAGES not in expected and _all_begin(state.keys() - {AVERAGES}, WRAPPERS[0]):
        state.pop(AVERAGES, None)
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


def require_numbers(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a kind that cannot stand where the `expected` ones stand (integers or complex numbers for
    fractions), and numbers that are not finite where the expected ones are (a mask may hold infinity on purpose)."""
    pairs = {name: (state[name], tensor) for name, tensor in expected.items() if not state[name].is_meta}
    if odd := [f"{name} {_kind(got)}" for name, (got, own) in pairs.items() if _unlike(got, own)]:
        raise Refused(
            f"weights: expected floating-point numbers, got others in {len(odd)} of {len(pairs)} tensors "
            f"({_first(odd)}); try the file from before it was quantised or converted"
        )
    if broken := [name for name, (got, own) in pairs.items() if not _finite(got) and (own.is_meta or _finite(own))]:
        raise Refused(
            f"weights: expected finite numbers, got NaN or infinity in {len(broken)} of {len(pairs)} tensors "
            f"({_first(broken)}): a training that diverged, or an export in half precision that overflowed; "
            "try an earlier epoch, or an export in float32"
        )


def _unlike(got: Tensor, own: Tensor) -> bool:
    return own.is_floating_point() and not got.is_floating_point()


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(names: list[str]) -> str:
    return ", ".join(map(in_a_sentence, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
