"""Values as JSON's own types, without secrets: what is written to a store or a run folder goes through here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence

_SECRET_NAME = re.compile(r"(^|[^a-z])(api_?)?(key|token|password|passwd|secret|credentials?)$", re.IGNORECASE)
_SHORTEST_SECRET = 8  # shorter environment values ("1", "true") are no secrets and would mask ordinary text


def plain(value: object) -> object:
    """`value` in JSON's own types, without secrets: containers become dicts and lists, numbers of any library
    Python numbers, non-finite floats their names, everything else its text. Values under secret-looking names,
    and the values of secret-looking environment variables wherever they stand in a text, become "***"."""
    return _plain(value, _environment_secrets())


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


def _environment_secrets() -> list[str]:
    """Values of environment variables named like secrets, longest first: none may reach a file."""
    values = {v for name, v in os.environ.items() if looks_secret(name) and len(v) >= _SHORTEST_SECRET}
    return sorted(values, key=len, reverse=True)
