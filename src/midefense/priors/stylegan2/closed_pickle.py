"""Pickles read as data: every opcode and every name in them is on a closed list, and nothing of theirs is run.

What a name stands for is given by the caller: a function of ours in `Named`, or `Plain`. Both are sealed, so that a
pickle can call them and change nothing in them.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

from midefense.architectures.opcodes import TooMuch, look_through

# What picklers of protocol 2 to 5 write for numbers, text, bytes, plain containers and calls; no more.
OPCODES = {
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINBYTES",
    "BINBYTES",
    "BINBYTES8",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
    "EMPTY_SET",
    "ADDITEMS",
    "MEMOIZE",
    "BINPUT",
    "LONG_BINPUT",
    "BINGET",
    "LONG_BINGET",
    "GLOBAL",
    "STACK_GLOBAL",
    "REDUCE",
    "NEWOBJ",
    "BUILD",
    "BINPERSID",
}
NUMBERED = ("BINPUT", "LONG_BINPUT")  # they say which place of the memo to fill, and the memo grows to it
SHOWN = 80  # characters of a pickle that a message repeats

# What a pickle that was cut short or changed can raise, by where it was.
DAMAGED = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)

Name = tuple[str, str]  # of a module, and of what stands in it


class NotTaken(pickle.UnpicklingError):
    """What a file holds that is not read, in words that follow "which holds"."""


class Named(NamedTuple):
    """A function that a pickle may call. As a tuple it has no attribute that a pickle could set."""

    make: Callable[..., object]

    def __call__(self, *arguments: object) -> object:
        return self.make(*arguments)


class Plain(dict):
    """A dictionary's subclass: made empty, filled as dictionaries are, without attributes."""

    __slots__ = ()

    def __new__(cls) -> Plain:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        if state != {}:
            raise NotTaken("a dictionary with attributes")


def load(
    stream: io.BytesIO, names: Mapping[Name, object], *, instead: Mapping[Name, str], persistent: bool = False
) -> object:
    """The next pickle of a stream.

    Its opcodes are looked through before any is obeyed: they must be on the list, declare no more bytes than there are,
    number no place of the memo that a pickler would not have come to, and stay within the limits of `opcodes.py`.

    Args:
        names: what each name stands for; others are refused.
        instead: how to speak of a name that is refused, where there is more to say than the name.
        persistent: read a persistent id as itself; otherwise it is refused.
    Raises:
        NotTaken, or one of `DAMAGED`.
    """
    start = stream.tell()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a damaged name with a strange escape in it
        _require_listed(stream)
    stream.seek(start)
    return _Reader(stream, names, instead, persistent).load()


def _require_listed(stream: io.BytesIO) -> None:
    try:
        for count, (opcode, argument) in enumerate(look_through(stream)):
            if opcode.name not in OPCODES:
                raise NotTaken(f"a pickle with the opcode {opcode.name}")
            if opcode.name in NUMBERED and argument > count:
                raise NotTaken("a pickle that numbers what it does not hold")
    except TooMuch as error:
        raise NotTaken(str(error)) from error


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, names: Mapping[Name, object], instead: Mapping[Name, str], persistent: bool):
        super().__init__(stream)
        self.names, self.instead, self.persistent = names, instead, persistent

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.names:
            asked = f"a pickle that asks for {module}.{name}"[:SHOWN]
            raise NotTaken(self.instead.get((module, name), asked))
        return self.names[module, name]

    def persistent_load(self, pid: object) -> object:
        if not self.persistent:
            raise NotTaken("a pickle that asks for objects outside it")
        return pid
