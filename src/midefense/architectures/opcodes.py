"""Pickles looked through before they are obeyed: how many instructions, and how deep their tuples nest.

A tuple that is nested some ten thousand times over ends Python with a segmentation fault where it is hashed, and a
pickle of a megabyte can hold a million. Nothing is run: `pickletools` reads the instructions.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import BinaryIO

MOST = 200_000  # instructions; the checkpoint of ResNet-152 with its optimizer has a fourth
DEEPEST = 100
LONGEST = 4096  # bits of a number
LONGEST_NAME = 300  # of a class
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # put into what is there
_NOTES = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCHES = {"GET", "BINGET", "LONG_BINGET"}


class TooMuch(ValueError):
    """What a pickle holds that is not read, in words that follow "which holds"."""


def _takes(opcode: pickletools.OpcodeInfo) -> tuple[bool, int]:
    """Whether an instruction takes all down to a mark, and how many values besides."""
    before = [kind.name for kind in opcode.stack_before]
    return "mark" in before, before.index("mark") if "mark" in before else len(before)


_TAKES = {opcode.name: _takes(opcode) for opcode in pickletools.opcodes}
_GIVES = {opcode.name: len(opcode.stack_after) for opcode in pickletools.opcodes}

Instruction = tuple[pickletools.OpcodeInfo, object]


def look_through(stream: BinaryIO) -> Iterator[Instruction]:
    """The instructions of the next pickle of a stream, one after the other.

    Raises:
        TooMuch: they are too many, their tuples too deep, or a number too long.
        Others, as `pickletools` does, where it was cut short or changed.
    """
    depths: list[int | None] = []  # of what lies on the stack; None is a mark
    noted: dict[object, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MOST:
            raise TooMuch(f"a pickle of more than {MOST:,} instructions")
        if isinstance(argument, int) and argument.bit_length() > LONGEST:
            raise TooMuch("a pickle with a number of thousands of digits")
        if opcode.name == "GLOBAL" and len(str(argument)) > LONGEST_NAME:  # torch looks for a pattern in its complaint
            raise TooMuch("a pickle that asks for a name of hundreds of characters")
        yield opcode, argument
        _follow(opcode, argument, depths, noted)
        if depths and (depths[-1] or 0) > DEEPEST:
            raise TooMuch(f"a pickle of more than {DEEPEST} levels")


def _follow(
    opcode: pickletools.OpcodeInfo, argument: object, depths: list[int | None], noted: dict[object, int]
) -> None:
    """What an instruction does to the stack, as far as depths go."""
    if opcode.name in _FETCHES:
        depths.append(noted.get(argument, 0))
    elif opcode.name in _NOTES:
        noted[argument] = depths[-1] or 0
    elif opcode.name == "MEMOIZE":
        noted[len(noted)] = depths[-1] or 0
    elif opcode.name == "MARK":
        depths.append(None)
    else:
        taken = _take(opcode.name, depths)
        if opcode.name in _FILLS:
            depths.append(max(taken[0], 1 + max(taken[1:], default=0)))
        elif _GIVES[opcode.name]:
            depths.extend([1 + max(taken) if taken else 0] * _GIVES[opcode.name])


def _take(name: str, depths: list[int | None]) -> list[int]:
    """Take what an instruction takes off the stack, the lowest first."""
    to_mark, count = _TAKES[name]
    taken: list[int] = []
    if to_mark:
        while (depth := depths.pop()) is not None:
            taken.append(depth)
    for _ in range(count):
        taken.append(depths.pop() or 0)
    return taken[::-1]
