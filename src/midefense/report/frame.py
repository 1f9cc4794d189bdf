"""What every page is framed by, whole in itself: head, styles, a heading, a foot, and scripts where it has some."""

from __future__ import annotations

import string
from collections.abc import Sequence
from importlib import resources

from midefense.report.markup import Markup, join, tag

TITLE = "Model inversion: attacks against defenses"
SIGNED = b'<meta name="generator" content="midefense report">'  # in the head of every page


def framed(
    content: Markup, *, heading: str, counts: str, footer: str, styles: Sequence[str], end: Markup | None = None
) -> str:
    """A page.

    Args:
        content: its body below the heading.
        counts: what it is about, in numbers, under the heading.
        styles: files of this folder, in their order.
        end: what stands behind all of it, such as `scripted`.
    """
    return string.Template(source("frame.html")).substitute(
        style="".join(map(source, styles)),
        title=join(heading),
        heading=join(heading),
        counts=join(counts),
        content=content,
        footer=join(footer),
        end=end or "",
    )


def scripted(data: Markup, script: str) -> Markup:
    """The data of a page, and the file of this folder that shows them, behind what all scripts begin with."""
    whole = Markup(source("dom.js") + source(script))
    return join(
        tag("script", data, type="application/json", id="data"), Markup("\n<script>\n"), whole, Markup("</script>")
    )


def filled(name: str, **parts: object) -> Markup:
    """A file of this folder with its `$names` filled in."""
    return Markup(string.Template(source(name)).substitute(parts))


def source(name: str) -> str:
    """A file of this folder."""
    return resources.files("midefense.report").joinpath(name).read_text(encoding="utf-8")
