"""Values as JSON's own types, without secrets: what is written to a store or a run folder goes through here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence

_SECRET_NAME = re.compile(r"(^|[^a-z])(api_?)?(key|token|password|passwd|secret|credentials?)$", re.IGNORECASE)
_SHORTEST_SECRET = 8  # shorter environment values ("1", "true") are no secrets and would mask ordinary text
_taken: set[str] = set()  # environment variables that the configuration has read, in this process


def plain(value: object) -> object:
    """`value` in JSON's own types, without secrets: containers become dicts and lists, numbers of any library
    Python numbers, non-finite floats their names, everything else its text. Values under secret-looking names, and
    wherever they stand in a text the values of environment variables that look like secrets or that a configuration
    took (`mask_variable`), become "***"."""
    return _plain(value, environment_secrets())


def mask_variable(name: str) -> None:
    """Mask the value of the environment variable `name` from now on, as one whose name looks secret: a configuration
    took it from there, so its author did not want it written. Places stay readable (`_is_place`)."""
    _taken.add(name)


def looks_secret(name: str) -> bool:
    """Whether an option or variable of this name holds a secret (`api_key`, `hf_token`, `password` ...)."""
    return _SECRET_NAME.search(name) is not None


def writable(text: str) -> bool:
    """Whether a text can stand in a file and in a file's name: Unicode characters, and none of them NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # half a character, as Python reads names of files that are not UTF-8
        return False


def _plain(value: object, secrets: Sequence[str]) -> object:
    if isinstance(value, Mapping):
        return {
            str(name): "***" if item and looks_secret(str(name)) else _plain(item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, secrets) for item in value]
    if hasattr(value, "tolist"):  # tensors and NumPy values
        return _plain(value.tolist(), secrets)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def environment_secrets() -> list[str]:
    """Values of environment variables that may reach no file, longest first."""
    hidden = (v for n, v in os.environ.items() if looks_secret(n) or (n in _taken and not _is_place(n, v)))
    return sorted({value for value in hidden if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True)


def _is_place(name: str, value: str) -> bool:
    """Whether a variable tells where files are: artefacts are opened again by such a place, so it is written."""
    return name == "MIDEFENSE_STORE" or os.path.exists(os.path.expanduser(value))
