"""Whether a configured value can be what a constructor's annotation asks for, and the annotation in plain words."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path

from midefense.ranges import MARKERS

NUMBERS = {bool: (bool,), int: (int,), float: (int, float)}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


@functools.cache
def hints_of(target: Callable) -> dict[str, object]:
    """The annotations of a class's constructor, by argument; arguments without one are absent. Not to be changed."""
    return typing.get_type_hints(target.__init__, include_extras=True)


def fits(value: object, hint: object) -> bool:
    """Whether `value`, as it comes from YAML, can be given where `hint` stands.

    A list stands for any sequence, a text for a path, a whole number for a float. A checked node (`build.Bound`)
    stands for what it will build, one that is `_partial_` for a function that gives it. Ranges (`midefense.ranges`)
    count; annotations of other kinds admit everything.
    """
    if typing.get_origin(hint) is typing.Annotated:
        return fits(value, hint.__origin__) and all(marker.holds(value) for marker in _markers(hint))
    inner, kind = typing.get_args(hint), typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return value in inner
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if kind is types.NoneType:
        return value is None
    if not inspect.isclass(kind) or kind is object:
        return True
    if hasattr(value, "partial"):
        return _gives(value.target, inner, kind) if value.partial else issubclass(value.target, kind)
    if kind in NUMBERS:
        return isinstance(value, NUMBERS[kind]) and (kind is bool or not isinstance(value, bool))
    if kind is Path:
        return isinstance(value, str | Path)
    if kind is not str and issubclass(kind, collections.abc.Sequence):
        return isinstance(value, list | tuple) and _items_fit(value, inner)
    if issubclass(kind, collections.abc.Mapping):
        is_mapping = isinstance(value, collections.abc.Mapping)
        return is_mapping and all(fits(item, hint) for hint in inner[1:] for item in value.values())
    return isinstance(value, kind)


def in_words(hint: object) -> str:
    """What `hint` admits, as a message says it."""
    if typing.get_origin(hint) is typing.Annotated:
        return " ".join([in_words(hint.__origin__), *map(str, _markers(hint))])
    inner, kind = typing.get_args(hint), typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return " or ".join(map(str, inner))
    if kind in (typing.Union, types.UnionType):
        return " or ".join(in_words(choice) for choice in inner)
    if kind is types.NoneType:
        return "null"
    if kind in WORDS:
        return WORDS[kind]
    if inspect.isclass(kind) and issubclass(kind, collections.abc.Sequence):
        fixed = kind is tuple and Ellipsis not in inner
        return f"a list of {len(inner)}" if fixed else f"a list ({in_words(inner[0])} each)" if inner else "a list"
    if inspect.isclass(kind) and issubclass(kind, collections.abc.Mapping):
        return f"a mapping ({in_words(inner[1])} each)" if inner else "a mapping"
    if kind is collections.abc.Callable and _given(inner) is not None:
        return f"a node of a class {_given(inner).__name__} with _partial_: true"
    return f"a node with a _target_ ({getattr(kind, '__name__', kind)})"


def _markers(hint: object) -> list[object]:
    return [marker for marker in hint.__metadata__ if isinstance(marker, MARKERS)]


def _gives(target: type, inner: tuple, kind: object) -> bool:
    """Whether a partial node of `target` is a function such as the annotation asks for."""
    return kind is collections.abc.Callable and (_given(inner) is None or issubclass(target, _given(inner)))


def _given(inner: tuple) -> type | None:
    """The class of what an annotated function gives, if it names one."""
    return inner[-1] if inner and inspect.isclass(inner[-1]) else None


def _items_fit(value: list | tuple, inner: tuple) -> bool:
    items = [hint for hint in inner if hint is not Ellipsis]
    if not items:
        return True
    if len(items) == 1:
        items *= len(value)
    return len(items) == len(value) and all(fits(v, hint) for v, hint in zip(value, items, strict=True))
