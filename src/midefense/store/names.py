"""Names that become folders: what may be called so, and what a text is called where it may not."""

from __future__ import annotations

from midefense.types import Refused

LONGEST = 120  # bytes: an id, a host and a process stand beside it in the name of a folder, which takes 255
HIDING = " .-~"  # what hides a folder where it begins a name, or makes an option or a home of it


def require_name(name: object, what: str) -> str:
    """The name, where a folder can be called so and lies where it is looked for."""
    if not isinstance(name, str) or not name or name != safe_name(name):
        tried = safe_name(str(name)) or "another"
        raise Refused(
            f"{what}: expected a name of at most {LONGEST} bytes that is no path and shows every character, got "
            f"{str(name)[:LONGEST]!r}; try {tried}"
        )
    return name


def safe_name(text: str) -> str:
    """The text as a name: what separates folders and what cannot be seen are underscores."""
    seen = "".join(mark if mark.isprintable() and mark not in "/\\" else "_" for mark in text)
    return seen.lstrip(HIDING).encode()[:LONGEST].decode(errors="ignore").rstrip()
