"""Files that others wrote, read within limits: a regular file, no larger than what it is for, no deeper than a program
can follow, and without references that grow when they are followed.

What is refused here would take minutes, all memory, or the process itself (the readers of pickles and of YAML end in a
segmentation fault a few ten thousand levels down).
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import yaml

from midefense.types import Refused

MOST_BYTES = 1 << 22  # of a file of YAML: read at about one megabyte a second
MOST_JSON = 1 << 26
DEEPEST = 64  # levels of containers in containers
LONGEST_NUMBER = 400  # characters of a number: 1:1:1:... to the base of 60 takes the square of its length
MOST_REPEATED = 100_000  # nodes of a file once its references (*name) are written out

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same results, ten times as fast


def path_of(path: object, what: str = "a folder or a file") -> Path:
    """A path with `~` written out. Refused where nobody is called so."""
    try:
        return Path(str(path)).expanduser()
    except RuntimeError as error:
        raise Refused(f"{path}: expected {what}, got the home of nobody ({error}); try ./{path}") from error


def resolved(path: object, what: str = "a folder or a file") -> Path:
    """As `path_of`, from the root on and without links. Refused where they lead in a circle."""
    try:
        return path_of(path, what).resolve()
    except (OSError, RuntimeError) as error:
        raise Refused(f"{path}: expected {what}, got a link that leads to itself; try another path") from error


def read_foreign(file: Path, most: int, what: str = "a file") -> bytes:
    """The content of a regular file of at most so many bytes. Nothing is waited for: a named pipe is not opened to be
    read.

    Raises:
        FileNotFoundError: there is none.
        Refused: something else is there, or more.
    """
    require_regular(file, what)
    with open(file, "rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise Refused(f"{file}: expected {what} of at most {most:,} bytes, got more; try another file")
    return content


def require_regular(file: Path, what: str = "a file") -> None:
    """Refuse what can be opened and is no file: a folder, a named pipe, a device, a link that leads to itself.

    Raises `FileNotFoundError` where there is nothing.
    """
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused(f"{file}: expected {what}, got a link that leads to itself; try another path") from error
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file)) from error
        raise
    except ValueError as error:  # a NUL byte in the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), repr(str(file))) from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise Refused(f"{file}: expected {what}, got {kind}; try another path")


def json_of(content: bytes | str, name: object) -> object:
    """What a text of JSON says. Raises `Refused` for another text, and for one that is too deep or has a number too
    long to be read."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also of a text that is no UTF-8
        raise Refused(f"{name}: expected JSON, got what cannot be read ({_first_line(error)})") from error


def yaml_of(content: bytes | str, name: object) -> object:
    """What a text of YAML says, in JSON's own types. Raises `Refused` for another text, and for one that goes beyond
    the limits; references within it (&name, *name) are not read at all."""
    try:
        _look_through(content, name, references=False)
        value = yaml.load(content, Loader=_LOADER)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{name}: expected plain YAML, got what cannot be read ({_first_line(error)})") from error
    return value


def require_small_yaml(file: Path) -> None:
    """Refuse a file that goes beyond the limits of YAML; what is wrong with it otherwise its reader says."""
    content = read_foreign(file, MOST_BYTES, "a file of YAML")
    with_mistakes = (yaml.YAMLError, UnicodeDecodeError)
    try:
        _look_through(content, file, references=True)
    except with_mistakes:
        return


def _look_through(content: bytes | str, name: object, references: bool) -> None:
    """Go through the events of a text once, without building anything."""
    if len(content) > MOST_BYTES:
        raise Refused(f"{name}: expected at most {MOST_BYTES:,} bytes of YAML, got more")
    sizes: list[int] = [0]  # nodes within each open container, written out
    anchors: dict[str, int] = {}
    opened: list[str | None] = []
    for event in yaml.parse(content, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            if not references:
                raise Refused(f"{name}: expected YAML without references, got *{event.anchor}")
            sizes[-1] += anchors.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > LONGEST_NUMBER and event.implicit[0] and event.value[0] in "+-.0123456789":
                raise Refused(f"{name}: expected numbers of at most {LONGEST_NUMBER} characters, got a longer one")
            sizes[-1] += 1
            if event.anchor:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append(event.anchor)
            sizes.append(1)
            if len(opened) > DEEPEST:
                raise Refused(f"{name}: expected at most {DEEPEST} levels of YAML, got more")
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop(), opened.pop()
            sizes[-1] += size
            if anchor:
                anchors[anchor] = size
        if sizes[-1] > MOST_REPEATED:
            raise Refused(f"{name}: expected at most {MOST_REPEATED:,} values once its references are written out")


def _first_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split("\n")[0].split())
