"""HTML and SVG as nested calls: everything that is not markup is escaped, so nothing can be forgotten."""

from __future__ import annotations

import html

LONG_NAME = 10  # characters


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element. Children that are not `Markup` are escaped, None is left out. Attributes lose a trailing
    underscore (`class_`) and turn others into hyphens; True stands alone, None and False are left out."""
    shown = []
    for attribute, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = attribute.rstrip("_").replace("_", "-")
        shown.append(f" {attribute}" if value is True else f' {attribute}="{html.escape(str(value))}"')
    return Markup(f"<{name}{''.join(shown)}>{join(*children)}</{name}>")


def void(name: str, **attributes: object) -> Markup:
    """An element that has no end tag (img, col)."""
    return Markup(tag(name, **attributes).removesuffix(f"</{name}>"))


def join(*children: object) -> Markup:
    """Children side by side, escaped where they are not `Markup`."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(str(child)) for child in children if child is not None
        )
    )


def breakable(name: str) -> Markup:
    """A name that, if long, may be broken after its underscores: it would push numbers off the page."""
    words = name.split("_") if len(name) > LONG_NAME else [name]
    return join(*[join(Markup("_<wbr>") if number else "", word) for number, word in enumerate(words)])
